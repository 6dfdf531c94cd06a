//! HTTP to the coordinators' gateways, over connections in memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::network::Network;

const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Longer than a gateway lets anybody wait for a completion.
const PATIENCE: Duration = Duration::from_secs(90);

/// A caller that goes to the next coordinator when one does not answer.
#[derive(Debug)]
pub(super) struct Client {
    network: Network,
    coordinators: usize,
    /// Who is asked next.
    place: AtomicUsize,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) method: &'static str,
    pub(super) path: &'a str,
    /// Lines of their own, each with its end.
    pub(super) headers: &'a str,
    pub(super) body: &'a str,
}

/// Status and body.
pub(super) type Answer = (u16, String);

impl Client {
    pub(super) fn new(network: Network, coordinators: usize, first: usize) -> Client {
        Client { network, coordinators, place: AtomicUsize::new(first % coordinators) }
    }

    /// `None` when nobody listens or the answer breaks off; then the next coordinator is asked next.
    pub(super) async fn once(&self, question: Question<'_>) -> Option<Answer> {
        let answer = self.answer(question).await;
        if answer.is_none() {
            let next = (self.place.load(Ordering::Relaxed) + 1) % self.coordinators;
            self.place.store(next, Ordering::Relaxed);
        }
        let (status, body) = answer?;
        if matches!(status, 500 | 502) {
            let Question { method, path, .. } = question;
            self.network.check().fail(format!("G1: {method} {path} was answered with {status}: {body}"));
        }
        Some((status, body))
    }

    /// Until there is an answer that is none of "try again later".
    pub(super) async fn ask(&self, question: Question<'_>) -> Answer {
        loop {
            match self.once(question).await {
                Some((429 | 503 | 504, _)) | None => tokio::time::sleep(ASK_AGAIN).await,
                Some(answer) => return answer,
            }
        }
    }

    async fn answer(&self, question: Question<'_>) -> Option<Answer> {
        let mut socket = self.network.connect(self.place.load(Ordering::Relaxed))?;
        let Question { method, path, headers, body } = question;
        // By HTTP/1.0, so that no body comes in chunks.
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.0\r\nhost: sim\r\ncontent-length: {length}\r\n{headers}\r\n");
        let exchange = async {
            socket.write_all(head.as_bytes()).await.ok()?;
            socket.write_all(body.as_bytes()).await.ok()?;
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await.ok()?;
            String::from_utf8(answer).ok()
        };
        let answer = match timeout(PATIENCE, exchange).await {
            Ok(answer) => answer?,
            Err(_) => {
                if self.network.calm_ms() > PATIENCE.as_millis() as u64 {
                    let told = format!("G1: {method} {path} was not answered in {PATIENCE:?}");
                    self.network.check().fail(told);
                }
                return None;
            }
        };
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let whole = length.is_none_or(|length: usize| length == body.len());
        whole.then(|| (status, body.to_owned()))
    }
}
