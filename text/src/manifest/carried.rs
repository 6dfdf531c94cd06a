//! The manifests of `models/`, carried along, so that a model can be named where its manifest is not at hand.

use super::Manifest;
use crate::Error;

/// As they are written.
pub const CARRIED: [&str; 4] = [
    include_str!("../../../models/storyteller/manifest.toml"),
    include_str!("../../../models/bitnet-b1.58-2B-4T/manifest.toml"),
    include_str!("../../../models/falcon-e-1b-instruct/manifest.toml"),
    include_str!("../../../models/falcon-e-3b-instruct/manifest.toml"),
];

impl Manifest {
    /// The carried manifest of that name, in large or small letters.
    ///
    /// # Errors
    /// When a carried manifest is not valid, which a test rules out.
    pub fn carried(name: &str) -> Result<Option<Manifest>, Error> {
        for text in CARRIED {
            let manifest = Manifest::parse(text, "a manifest of this program")?;
            if manifest.name.eq_ignore_ascii_case(name) {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// Names of the carried manifests whose models run.
    pub fn carried_names() -> Vec<String> {
        let all = CARRIED.iter().filter_map(|text| Manifest::parse(text, "a manifest of this program").ok());
        all.filter(|manifest| manifest.not_runnable.is_none()).map(|manifest| manifest.name).collect()
    }
}
