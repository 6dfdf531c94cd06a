//! JetStream's own snapshots of streams, to a file and back, with every sequence number.
//!
//! The server sends a stream as one compressed archive in chunks and waits for a word after each; what is in it is the
//! server's business. A file of ours is one line of JSON (the stream's settings and state) and then that archive.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};

use super::{NatsBus, api};
use crate::bus::{BusError, Result};

const CHUNK_BYTES: usize = 128 << 10;
/// Longest pause between two chunks.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Begun {
    config: Value,
    state: Value,
}

impl NatsBus {
    /// Names of all streams of the account.
    ///
    /// # Errors
    /// When the server does not answer, or these credentials may not ask.
    pub async fn stream_names(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            #[serde(default)]
            streams: Option<Vec<String>>,
        }
        let mut names: Vec<String> = Vec::new();
        loop {
            let page: Page =
                self.api("STREAM.NAMES", &json!({ "offset": names.len() }), "the list of streams").await?;
            let more = page.streams.unwrap_or_default();
            let ended = more.is_empty();
            names.extend(more);
            if ended || names.len() >= page.total {
                return Ok(names);
            }
        }
    }

    /// Writes a stream into a file; answers its bytes.
    ///
    /// # Errors
    /// When the stream is not there, the server falls silent, or the file cannot be written.
    pub async fn save_stream(&self, stream: &str, file: &Path) -> Result<u64> {
        let inbox = self.client.new_inbox();
        let mut chunks = self.client.subscribe(inbox.clone()).await.map_err(api::send_failed)?;
        let request = json!({ "deliver_subject": inbox, "no_consumers": true, "chunk_size": CHUNK_BYTES });
        let begun: Begun =
            self.api(&format!("STREAM.SNAPSHOT.{stream}"), &request, &format!("stream {stream}")).await?;
        let cannot = |fault: std::io::Error| BusError::Refused(format!("{}: {fault}", file.display()));
        let mut out = BufWriter::new(tokio::fs::File::create(file).await.map_err(cannot)?);
        let head = json!({ "config": begun.config, "state": begun.state }).to_string() + "\n";
        out.write_all(head.as_bytes()).await.map_err(cannot)?;
        let mut bytes = head.len() as u64;
        loop {
            let chunk = tokio::time::timeout(SILENCE, chunks.next()).await;
            let Ok(Some(chunk)) = chunk else {
                return Err(BusError::Unreachable(format!("the snapshot of {stream} was interrupted")));
            };
            if chunk.payload.is_empty() {
                // The end, or a word about why there is none.
                match chunk.description.as_deref() {
                    Some(reason) if !reason.eq_ignore_ascii_case("EOF") => {
                        return Err(BusError::Refused(format!("the snapshot of {stream}: {reason}")));
                    }
                    _ => break,
                }
            }
            out.write_all(&chunk.payload).await.map_err(cannot)?;
            bytes += chunk.payload.len() as u64;
            if let Some(reply) = chunk.reply {
                self.client.publish(reply, Bytes::new()).await.map_err(api::send_failed)?;
            }
        }
        out.flush().await.map_err(cannot)?;
        out.get_ref().sync_all().await.map_err(cannot)?;
        Ok(bytes)
    }

    /// Makes a stream out of what [`NatsBus::save_stream`] wrote, with these replicas; answers how many messages it has.
    ///
    /// # Errors
    /// When the stream exists already, the file is not one of ours, or the server refuses it.
    pub async fn load_stream(&self, stream: &str, file: &Path, replicas: usize) -> Result<u64> {
        let cannot = |fault: String| BusError::Refused(format!("{}: {fault}", file.display()));
        let opened = tokio::fs::File::open(file).await.map_err(|fault| cannot(fault.to_string()))?;
        let mut content = BufReader::new(opened);
        let mut head = String::new();
        content.read_line(&mut head).await.map_err(|fault| cannot(fault.to_string()))?;
        let mut settings: Value = serde_json::from_str(&head).map_err(|fault| cannot(fault.to_string()))?;
        settings["config"]["num_replicas"] = json!(replicas);

        #[derive(Deserialize)]
        struct Target {
            deliver_subject: String,
        }
        let what = format!("stream {stream}");
        let target: Target = self.api(&format!("STREAM.RESTORE.{stream}"), &settings, &what).await?;
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let mut filled = 0;
            while filled < CHUNK_BYTES {
                let read = content.read(&mut chunk[filled..]).await;
                match read.map_err(|fault| cannot(fault.to_string()))? {
                    0 => break,
                    n => filled += n,
                }
            }
            chunk.truncate(filled);
            let ended = chunk.is_empty();
            let request = async_nats::Request::new().payload(chunk.into()).timeout(Some(SILENCE));
            let answer = self.client.send_request(target.deliver_subject.clone(), request).await;
            let answer = answer.map_err(|reason| api::request_failed(&target.deliver_subject, &reason))?;
            let word: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
            if let Some(reason) = word["error"]["description"].as_str() {
                return Err(BusError::Refused(format!("{what}: {reason}")));
            }
            if ended {
                return Ok(word["state"]["messages"].as_u64().unwrap_or(0));
            }
        }
    }
}
