//! Where tables lie: on this machine, behind https, in a dataset of Hugging Face, or in an object store.
//!
//! What lies elsewhere is brought into a temporary file first, and results are sent when they are complete.

mod store;
mod wire;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::{NamedTempFile, TempPath};

pub(super) use self::store::Remote;
use super::{check_input, scheme};
use crate::fetch::{Source, Wanted, forget};

const CONNECTIONS: usize = 4;
/// Failures in a row, without a byte in between.
const RETRIES: u32 = 8;

/// The file at a place, on this machine. A temporary one goes when its path is dropped.
pub(super) fn bring(place: &Path) -> anyhow::Result<(PathBuf, Option<TempPath>)> {
    let kept = match scheme(place) {
        None if place == Path::new("-") => spool(std::io::stdin().lock(), "standard input")?,
        None => {
            check_input(place, place)?;
            return Ok((place.to_owned(), None));
        }
        Some(("https" | "http", _)) => download(&place.to_string_lossy(), None)?,
        Some(("hf", path)) => {
            let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
            download(&hugging_face(path)?, token)?
        }
        Some((scheme, rest)) => match Remote::open(scheme, rest)? {
            // This thread may wait: the runtime has another.
            Some(remote) => tokio::runtime::Handle::current().block_on(remote.fetch())?,
            None => bail!("{scheme}:// is not known: use s3://, gs://, az://, https:// or hf://"),
        },
    };
    check_input(&kept, place)?;
    Ok((kept.to_path_buf(), Some(kept)))
}

fn spool(mut content: impl Read, name: &str) -> anyhow::Result<TempPath> {
    let fault = || format!("cannot write {name} to a temporary file");
    let mut file = NamedTempFile::new().with_context(fault)?;
    std::io::copy(&mut content, &mut file).with_context(|| format!("cannot read {name}"))?;
    file.flush().with_context(fault)?;
    Ok(file.into_temp_path())
}

fn download(url: &str, token: Option<String>) -> anyhow::Result<TempPath> {
    let source = Source::new(url, token, false)?;
    let wanted = Wanted {
        source: &source,
        sha256: None,
        bytes: None,
        connections: CONNECTIONS,
        retries: RETRIES,
        quiet: false,
    };
    let file = NamedTempFile::new().context("cannot write a temporary file")?.into_temp_path();
    let part = file.with_extension("part");
    let fetched = wanted.fetch(&part).inspect_err(|_| forget(&part))?;
    std::fs::rename(&fetched.path, &file)?;
    forget(&part);
    Ok(file)
}

/// `datasets/owner/name/path`, with `@revision` after the name if it is not `main`.
fn hugging_face(path: &str) -> anyhow::Result<String> {
    let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
    let endpoint = endpoint.as_deref().unwrap_or("https://huggingface.co").trim_end_matches('/');
    let parts: Vec<&str> = path.splitn(4, '/').collect();
    let ["datasets", owner, name, file] = parts.as_slice() else {
        bail!("hf://{path} is not a file of a dataset: write hf://datasets/OWNER/NAME/PATH");
    };
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    Ok(format!("{endpoint}/datasets/{owner}/{name}/resolve/{revision}/{file}"))
}

/// The place in an object store that results are sent to; none for a file of this machine.
pub(super) fn remote(out: &Path) -> anyhow::Result<Option<Remote>> {
    let Some((scheme, rest)) = scheme(out) else { return Ok(None) };
    match Remote::open(scheme, rest)? {
        Some(remote) => Ok(Some(remote)),
        None => bail!("results cannot be written to {scheme}://: use a file, s3://, gs:// or az://"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_and_shown_without_their_query() {
        assert_eq!(scheme(Path::new("s3://b/k.csv")), Some(("s3", "b/k.csv")));
        assert_eq!(scheme(Path::new("C://x y/../z.csv")), None);
        assert_eq!(super::super::shown(Path::new("https://h/x.csv?sig=secret")), "https://h/x.csv");
        assert_eq!(
            hugging_face("datasets/o/n@v1/data/a.parquet").unwrap(),
            "https://huggingface.co/datasets/o/n/resolve/v1/data/a.parquet"
        );
        assert!(hugging_face("o/n/a.parquet").unwrap_err().to_string().contains("hf://datasets/"));
    }
}
