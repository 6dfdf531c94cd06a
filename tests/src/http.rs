//! As much of an HTTP client as the tests need.

#![allow(clippy::unwrap_used, missing_docs)] // A helper of tests: it may panic as they may.

use std::time::{Duration, Instant};

use ternfleet_coordinator::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The same options with an HTTP address that is free, and the address.
pub fn options(options: Options) -> (Options, String) {
    let port = crate::server::free_port().unwrap();
    let address = format!("127.0.0.1:{port}");
    (Options { http: Some(address.parse().unwrap()), audit_share: 0.0, ..options }, address)
}

/// Status and body.
pub async fn request(address: &str, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    Ok(status_and_body(&answer(address, method, path, "", body).await?))
}

/// Status and headers of a request that has headers of its own, each ending its line.
pub async fn headers(address: &str, method: &str, path: &str, own: &str) -> (u16, String) {
    let answer = answer(address, method, path, own, "").await.unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    let head = text.split_once("\r\n\r\n").map_or(text.as_str(), |(head, _)| head);
    (status_and_body(&answer).0, head.to_lowercase())
}

async fn answer(address: &str, method: &str, path: &str, own: &str, body: &str) -> std::io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         {own}connection: close\r\n\r\n{body}"
    );
    socket.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await?;
    Ok(answer)
}

fn status_and_body(answer: &[u8]) -> (u16, String) {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}

pub async fn post(address: &str, path: &str, body: &str) -> (u16, String) {
    request(address, "POST", path, body).await.unwrap()
}

pub async fn get(address: &str, path: &str) -> (u16, String) {
    request(address, "GET", path, "").await.unwrap()
}

/// As [`get`], for tests without a runtime; `base` begins with `http://`.
pub fn get_blocking(base: &str, path: &str) -> (u16, String) {
    use std::io::{Read as _, Write as _};
    let host = base.strip_prefix("http://").unwrap().trim_end_matches('/');
    let mut socket = std::net::TcpStream::connect(host).unwrap();
    // By HTTP/1.0, so that no body comes in chunks.
    write!(socket, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    status_and_body(&answer)
}

pub async fn wait_ready(address: &str) {
    let began = Instant::now();
    while !matches!(request(address, "GET", "/readyz", "").await, Ok((200, _))) {
        assert!(began.elapsed() < Duration::from_secs(60), "{address} is not ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
