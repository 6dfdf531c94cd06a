//! The manifests of `models/`, built into the program, so that a model can be named without its manifest file.

use super::Manifest;
use crate::Error;

/// As they are written.
pub const CARRIED: [&str; 14] = [
    include_str!("../../../models/storyteller/manifest.toml"),
    include_str!("../../../models/bitnet-b1.58-2B-4T/manifest.toml"),
    include_str!("../../../models/bitnet_b1_58-3B/manifest.toml"),
    include_str!("../../../models/bitnet_b1_58-large/manifest.toml"),
    include_str!("../../../models/falcon-e-1b-instruct/manifest.toml"),
    include_str!("../../../models/falcon-e-3b-instruct/manifest.toml"),
    include_str!("../../../models/falcon3-10b-instruct-1.58bit/manifest.toml"),
    include_str!("../../../models/falcon3-1b-instruct-1.58bit/manifest.toml"),
    include_str!("../../../models/falcon3-3b-instruct-1.58bit/manifest.toml"),
    include_str!("../../../models/falcon3-7b-instruct-1.58bit/manifest.toml"),
    include_str!("../../../models/llama3-8b-1.58-100b-tokens/manifest.toml"),
    include_str!("../../../models/ternary-bonsai-1.7b/manifest.toml"),
    include_str!("../../../models/ternary-bonsai-4b/manifest.toml"),
    include_str!("../../../models/ternary-bonsai-8b/manifest.toml"),
];

impl Manifest {
    /// The carried manifest of that name, whatever the case of its letters.
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
