//! `/dist/`: what pods fetch from here when there is no other place, this program's own binary and the files of a folder.
//!
//! Who shows a token of the fleet's joiners is served, and nobody else: a pod has one from its order
//! (`TERNFLEET_DIST_TOKEN`). The token is the signed half of a join token, without the key, so whoever reads it on the way
//! can fetch the same files and nothing else.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};
use ternfleet_proto::TimeMs;
use ternfleet_proto::access::Issuer;
use ternfleet_proto::table::Role;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::Options;
use crate::shell::read_issuer;

/// The file that this process runs from, also after it was replaced on disk.
const OWN_BINARY: &str = "/proc/self/exe";
/// Its name under `/dist/`.
const OWN_NAME: &str = "ternfleet";

#[derive(Clone)]
struct Dist {
    issuer: Arc<Issuer>,
    folder: Option<PathBuf>,
}

/// SHA-256 of this program.
pub(crate) fn own_sha256() -> anyhow::Result<String> {
    let read = || -> std::io::Result<Sha256> {
        let mut file = std::fs::File::open(OWN_BINARY)?;
        let (mut digest, mut part) = (Sha256::new(), vec![0u8; 1 << 20]);
        loop {
            match file.read(&mut part)? {
                0 => return Ok(digest),
                length => digest.update(&part[..length]),
            }
        }
    };
    let digest = read().context("the file of this program cannot be read")?.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The route; none where no token could be judged.
pub(crate) fn routes(options: &Options) -> anyhow::Result<Router> {
    let Some(path) = &options.issuer_file else { return Ok(Router::new()) };
    let dist = Dist { issuer: Arc::new(read_issuer(path)?), folder: options.dist_dir.clone() };
    Ok(Router::new().route("/dist/{name}", get(serve)).with_state(dist))
}

async fn serve(State(dist): State<Dist>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = shown.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
    if let Err(fault) = dist.issuer.verify(Role::Joiner, token, TimeMs::now()) {
        return (StatusCode::UNAUTHORIZED, format!("{fault}\n")).into_response();
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let path = match name.as_str() {
        OWN_NAME => Some(PathBuf::from(OWN_BINARY)),
        // One folder, no way out of it.
        name if !name.starts_with('.') && name.chars().all(plain) => {
            dist.folder.as_ref().map(|folder| folder.join(name))
        }
        _ => None,
    };
    match path {
        Some(path) => file(path, &headers).await.unwrap_or_else(|_| missing()),
        None => missing(),
    }
}

fn missing() -> Response {
    (StatusCode::NOT_FOUND, "no such file\n").into_response()
}

/// The file, or the one range that is asked for: a fetch that broke off continues.
async fn file(path: PathBuf, headers: &HeaderMap) -> std::io::Result<Response> {
    let mut file = tokio::fs::File::open(&path).await?;
    let total = file.metadata().await?.len();
    let asked = headers.get(header::RANGE).and_then(|value| range(value.to_str().ok()?, total));
    let (status, first, length) = match asked {
        Some((first, last)) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        None => (StatusCode::OK, 0, total),
    };
    file.seek(std::io::SeekFrom::Start(first)).await?;
    let body = Body::from_stream(ReaderStream::with_capacity(file.take(length), 256 << 10));
    let mut response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, length);
    if status == StatusCode::PARTIAL_CONTENT {
        let last = first + length - 1;
        response = response.header(header::CONTENT_RANGE, format!("bytes {first}-{last}/{total}"));
    }
    response.body(body).map_err(std::io::Error::other)
}

/// First and last byte of `bytes=a-b` or `bytes=a-`; anything else is answered with the whole file, as the standard allows.
fn range(text: &str, total: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let last = if last.is_empty() { u64::MAX } else { last.parse().ok()? };
    let last = last.min(total.checked_sub(1)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use ternfleet_proto::access::{JoinToken, Site};

    #[test]
    fn a_range_is_one_span_inside_the_file() {
        assert_eq!(range("bytes=0-9", 100), Some((0, 9)));
        assert_eq!(range("bytes=90-", 100), Some((90, 99)));
        assert_eq!(range("bytes=90-500", 100), Some((90, 99)));
        for other in ["bytes=100-", "bytes=9-3", "bytes=-5", "bytes=0-1,5-6", "lines=0-1"] {
            assert_eq!(range(other, 100), None, "{other}");
        }
        assert_eq!(range("bytes=0-", 0), None);
    }

    #[tokio::test]
    async fn whoever_shows_a_joiners_token_gets_the_files_and_nobody_else() {
        let (issuer, folder) = (Arc::new(Site::new(TimeMs(0)).issuer()), tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("model.gguf"), b"0123456789").unwrap();
        let dist = Dist { issuer: Arc::clone(&issuer), folder: Some(folder.path().to_owned()) };
        let token = |life| {
            let token = JoinToken::for_order(&issuer, "f-a-0", TimeMs::now(), Duration::from_secs(life));
            token.unwrap().credentials().token()
        };
        let ask = async |name: &str, token: &str, range: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
            if let Some(range) = range {
                headers.insert(header::RANGE, range.parse().unwrap());
            }
            let response = serve(State(dist.clone()), Path(name.to_owned()), headers).await;
            let status = response.status().as_u16();
            (status, axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap())
        };
        assert_eq!(ask("model.gguf", &token(60), None).await, (200, "0123456789".into()));
        assert_eq!(ask("model.gguf", &token(60), Some("bytes=7-")).await, (206, "789".into()));
        let (status, own) = ask("ternfleet", &token(60), Some("bytes=0-3")).await;
        assert_eq!((status, &own[..]), (206, &b"\x7fELF"[..]));
        for name in ["other", "../model.gguf", ".hidden", "a/b"] {
            assert_eq!(ask(name, &token(60), None).await.0, 404, "{name}");
        }
        for wrong in [String::new(), token(0)] {
            assert_eq!(ask("model.gguf", &wrong, None).await.0, 401);
        }
    }
}
