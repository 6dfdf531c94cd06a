//! Tables: rows in, requests out, and answers beside their rows.
//!
//! A table becomes a file of requests, and the batch knows nothing of it. At the end the table is read again, and each row
//! gets the answer with its id. Called by `submit`, `quote`, `launch` and `results`. Without the feature `tables` there are
//! files of requests alone.

mod asked;
#[cfg(feature = "tables")]
mod cell;
#[cfg(feature = "tables")]
mod input;
#[cfg(feature = "tables")]
mod place;
#[cfg(feature = "tables")]
mod plan;
#[cfg(feature = "tables")]
mod read;
#[cfg(feature = "tables")]
mod results;
#[cfg(feature = "tables")]
mod shape;
#[cfg(feature = "tables")]
mod types;
#[cfg(not(feature = "tables"))]
mod without;
#[cfg(feature = "tables")]
mod write;

use std::path::Path;

use anyhow::{Context, bail};

pub(crate) use self::asked::Asked;
#[cfg(feature = "tables")]
pub(crate) use self::input::{Input, Joined};
#[cfg(feature = "tables")]
pub(crate) use self::results::Results;
#[cfg(not(feature = "tables"))]
pub(crate) use self::without::{Input, Joined, Results};

/// A file or an address as messages show it: a query may hold a signature.
pub(crate) fn shown(place: &Path) -> String {
    let text = place.to_string_lossy();
    match is_here(place) {
        true => text.into_owned(),
        false => text.split(['?', '#']).next().unwrap_or_default().to_owned(),
    }
}

/// Whether it is a file of this machine and no address.
pub(crate) fn is_here(place: &Path) -> bool {
    scheme(place).is_none()
}

/// Refuses a file that cannot be read or has nothing in it; errors name the place that it came from.
pub(crate) fn check_input(file: &Path, place: &Path) -> anyhow::Result<()> {
    let name = if place == Path::new("-") { Path::new("standard input") } else { place }.display();
    let facts = std::fs::metadata(file).with_context(|| format!("cannot read {name}"))?;
    if facts.is_dir() {
        bail!("{name} is a folder: pass a file");
    }
    if facts.is_file() && facts.len() == 0 {
        bail!("{name} is empty: it needs at least one request, one per line");
    }
    // Opened once now, so that a missing permission is said before anything is sent.
    std::fs::File::open(file).with_context(|| format!("cannot read {name}"))?;
    Ok(())
}

/// `s3://bucket/key` as `("s3", "bucket/key")`.
fn scheme(place: &Path) -> Option<(&str, &str)> {
    let (scheme, rest) = place.to_str()?.split_once("://")?;
    scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()).then_some((scheme, rest))
}

#[cfg(all(test, feature = "tables"))]
mod tests;
