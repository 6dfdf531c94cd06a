//! Small questions to the parts of a local fleet: is this port free, does that server answer.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Below the ports that the kernel assigns to outgoing connections, so that none of those takes one in between.
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 31_999;

pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// A free loopback port that is none of `others`, which their servers need not have opened yet: the first such one of
/// `preferred`, else any.
pub(crate) fn free_port(preferred: &[u16], others: &[u16]) -> anyhow::Result<u16> {
    let usable = |port: &u16| !others.contains(port) && is_free(*port);
    if let Some(port) = preferred.iter().copied().find(usable) {
        return Ok(port);
    }
    let count = u64::from(LAST_PORT - FIRST_PORT);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let start =
        now.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(u64::from(std::process::id()) * 7919) >> 16;
    let mut candidates = (0..count).map(|step| FIRST_PORT + ((start + step) % count) as u16);
    match candidates.find(usable) {
        Some(port) => Ok(port),
        None => bail!("no port from {FIRST_PORT} to {LAST_PORT} is free on the loopback interface"),
    }
}

/// The status of a GET over plain HTTP, if the server answers in time.
pub(crate) async fn http_status(port: u16, path: &str) -> Option<u16> {
    let question = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    let answer = timeout(ANSWER_TIMEOUT, async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        stream.write_all(question.as_bytes()).await.ok()?;
        let mut head = [0u8; 12];
        stream.read_exact(&mut head).await.ok()?;
        Some(head)
    });
    let head = answer.await.ok()??;
    std::str::from_utf8(&head).ok()?.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

/// The name by which a nats-server greets.
pub(crate) async fn nats_server_name(port: u16) -> Option<String> {
    let greeting = timeout(ANSWER_TIMEOUT, async {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        let mut line = String::new();
        BufReader::new(stream).take(64 << 10).read_line(&mut line).await.ok()?;
        Some(line)
    });
    let line = greeting.await.ok()??;
    let facts: serde_json::Value = serde_json::from_str(line.strip_prefix("INFO ")?.trim()).ok()?;
    Some(facts.get("server_name")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_passed_over() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let chosen = free_port(&[port], &[]).unwrap();
        assert_ne!(chosen, port);
        assert!((FIRST_PORT..=LAST_PORT).contains(&chosen));
        assert_ne!(free_port(&[chosen], &[chosen]).unwrap(), chosen, "another server of ours will open it");
    }
}
