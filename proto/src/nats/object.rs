//! Objects in the layout that every NATS client knows (stream `OBJ_<bucket>`, chunks on `$O.<bucket>.C.<nuid>`,
//! metadata on `$O.<bucket>.M.<name in base64>`), with two additions: chunks are of equal size and each carries its
//! byte offset in a header, so that a reader can begin at any byte without fetching what is before.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_nats::jetstream::object_store::{ObjectInfo, ObjectOptions};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, ready, stream};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::{NatsBus, reconnect_delay, replay};
use crate::bus::{BusError, BusStream, ObjectFacts, PendingAck, Publish, Replayed, Result, Stored};
use crate::id::TimeMs;
use crate::table::{self, ObjectSpec, Role, object_chunks as chunks, object_stream as stream_name};

const CHUNK_BYTES: usize = 128 << 10;
/// Chunks sent but not yet acknowledged.
const CHUNKS_IN_FLIGHT: usize = 32;
/// A cluster that chooses a new leader answers nothing for a few seconds.
const READ_TRIES: usize = 8;
/// Up to here a round trip for each chunk costs less than a consumer.
const FEW_BYTES: u64 = 8 * CHUNK_BYTES as u64;
const OFFSET: &str = "Ternfleet-Offset";
const ROLLUP: &str = "Nats-Rollup";
/// Key of the object's own metadata: milliseconds since 1970 by the clock of whoever stored it.
const STORED_MS: &str = "ternfleet-stored-ms";

pub(super) fn configuration(spec: &ObjectSpec) -> Value {
    json!({
        "name": stream_name(&spec.bucket),
        "subjects": [chunks(&spec.bucket, ">"), table::object_metadata(&spec.bucket, ">")],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": spec.replicas,
        "max_age": spec.max_age.map_or(0, |age| age.as_nanos() as u64),
        "max_bytes": spec.max_bytes.unwrap_or(-1),
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "allow_rollup_hdrs": true,
        "allow_direct": true,
    })
}

fn metadata(bucket: &str, name: &str) -> String {
    table::object_metadata(bucket, &URL_SAFE.encode(name))
}

impl NatsBus {
    pub(super) async fn object_info(&self, bucket: &str, name: &str) -> Result<Option<ObjectInfo>> {
        let Some(message) = self.stored_last(&stream_name(bucket), &metadata(bucket, name)).await? else {
            return Ok(None);
        };
        let info: ObjectInfo = serde_json::from_slice(&message.payload).map_err(|reason| {
            BusError::Refused(format!(
                "the metadata of object {name} cannot be parsed: \
                                                         {reason}"
            ))
        })?;
        Ok(Some(info).filter(|info| !info.deleted))
    }

    /// The object appears whole, with its last chunk stored, or not at all.
    pub(super) async fn put_object(
        &self,
        bucket: &str,
        name: &str,
        mut content: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<u64> {
        let before = self.object_info(bucket, name).await?;
        let inbox = self.client.new_inbox();
        let nuid = inbox.rsplit('.').next().unwrap_or(&inbox).to_owned();
        let subject = chunks(bucket, &nuid);
        let (size, n_chunks, digest) = match self.put_chunks(&subject, &mut content).await {
            Ok(stored) => stored,
            Err(reason) => {
                // Best effort: without metadata nobody will ever read these chunks.
                let _ = self.purge_filtered(&stream_name(bucket), &subject).await;
                return Err(reason);
            }
        };
        let info = ObjectInfo {
            name: name.to_owned(),
            description: None,
            metadata: [(STORED_MS.to_owned(), TimeMs::now().0.to_string())].into(),
            headers: None,
            options: Some(ObjectOptions { link: None, max_chunk_size: Some(CHUNK_BYTES) }),
            bucket: bucket.to_owned(),
            nuid,
            size: size as usize,
            chunks: n_chunks,
            modified: None,
            digest: Some(digest),
            deleted: false,
        };
        self.put_metadata(bucket, &info).await?;
        if let Some(before) = before {
            self.purge_filtered(&stream_name(bucket), &chunks(bucket, &before.nuid)).await?;
        }
        Ok(size)
    }

    async fn put_chunks(
        &self,
        subject: &str,
        content: &mut Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<(u64, usize, String)> {
        let mut in_flight: VecDeque<PendingAck> = VecDeque::new();
        let mut hasher = Sha256::new();
        let (mut size, mut n_chunks) = (0u64, 0usize);
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
            while buffer.len() < CHUNK_BYTES {
                let room = CHUNK_BYTES - buffer.len();
                let read = (&mut *content).take(room as u64).read_buf(&mut buffer).await;
                let n = read
                    .map_err(|reason| BusError::Refused(format!("the content cannot be read: {reason}")))?;
                if n == 0 {
                    break;
                }
            }
            if buffer.is_empty() {
                break;
            }
            let chunk = buffer.freeze();
            let ended = chunk.len() < CHUNK_BYTES;
            hasher.update(&chunk);
            let headers = vec![(OFFSET.to_owned(), size.to_string())];
            size += chunk.len() as u64;
            n_chunks += 1;
            in_flight.push_back(
                self.start_publish(subject, chunk, Publish { headers, ..Publish::default() }).await?,
            );
            if in_flight.len() >= CHUNKS_IN_FLIGHT
                && let Some(oldest) = in_flight.pop_front()
            {
                oldest.await?;
            }
            if ended {
                break;
            }
        }
        for pending in in_flight {
            pending.await?;
        }
        Ok((size, n_chunks, format!("SHA-256={}", URL_SAFE.encode(hasher.finalize()))))
    }

    async fn put_metadata(&self, bucket: &str, info: &ObjectInfo) -> Result<Stored> {
        let payload =
            serde_json::to_vec(info).expect("because object metadata holds only strings and numbers");
        let how = Publish { headers: vec![(ROLLUP.to_owned(), "sub".to_owned())], ..Publish::default() };
        self.start_publish(&metadata(bucket, &info.name), payload.into(), how).await?.await
    }

    /// Reads all metadata of the bucket once; each object has one such message.
    pub(super) async fn list_objects(&self, bucket: &str) -> Result<Vec<ObjectFacts>> {
        let filter = format!("$O.{bucket}.M.>");
        let mut messages = replay::open(self.clone(), &stream_name(bucket), &filter, 1).await?;
        let mut objects = BTreeMap::new();
        while let Some(item) = messages.next().await {
            let Replayed::Message(message) = item? else { break };
            // Metadata of another client that does not read as such is not an object of ours.
            let Ok(info) = serde_json::from_slice::<ObjectInfo>(&message.payload) else { continue };
            if info.deleted {
                objects.remove(&info.name);
                continue;
            }
            let modified = info.metadata.get(STORED_MS).and_then(|ms| ms.parse().ok()).unwrap_or_default();
            let facts =
                ObjectFacts { name: info.name.clone(), bytes: info.size as u64, modified: TimeMs(modified) };
            objects.insert(info.name, facts);
        }
        Ok(objects.into_values().collect())
    }

    /// First it is marked as deleted, as other clients expect it, then all of it goes, the mark too: a bucket would keep
    /// one for each object that it ever held.
    pub(super) async fn delete_object(&self, bucket: &str, name: &str) -> Result<()> {
        let Some(mut info) = self.object_info(bucket, name).await? else { return Ok(()) };
        (info.size, info.chunks, info.deleted) = (0, 0, true);
        let mark = self.put_metadata(bucket, &info).await?;
        self.purge_filtered(&stream_name(bucket), &chunks(bucket, &info.nuid)).await?;
        // The mark has done its work: nobody reads on. An object that got the name meanwhile is behind it.
        self.purge_up_to(&stream_name(bucket), &metadata(bucket, name), mark.sequence).await.map(drop)
    }

    pub(super) async fn read_part(
        &self,
        bucket: &str,
        name: &str,
        from_byte: u64,
        bytes: usize,
    ) -> Result<Bytes> {
        let missing = || BusError::NotFound(format!("object {name} in {bucket}"));
        let info = self.object_info(bucket, name).await?.ok_or_else(missing)?;
        let left = (info.size as u64).saturating_sub(from_byte).min(bytes as u64) as usize;
        if left == 0 {
            return Ok(Bytes::new());
        }
        let subject = chunks(bucket, &info.nuid);
        let (sequence, offset) = self.chunk_at(bucket, &subject, from_byte).await?.ok_or_else(missing)?;
        let mut chunks = one_by_one(self.clone(), stream_name(bucket), subject, sequence);
        let mut skip = (from_byte - offset) as usize;
        let mut part = BytesMut::with_capacity(left);
        while part.len() < left {
            let Some(Replayed::Message(chunk)) = chunks.next().await.transpose()? else {
                return Err(missing());
            };
            let from = skip.min(chunk.payload.len());
            skip -= from;
            let upto = chunk.payload.len().min(from + left - part.len());
            part.extend_from_slice(&chunk.payload[from..upto]);
        }
        Ok(part.freeze())
    }

    pub(super) async fn open_object(
        &self,
        bucket: &str,
        name: &str,
        from_byte: u64,
    ) -> Result<Pin<Box<dyn AsyncRead + Send>>> {
        let missing = || BusError::NotFound(format!("object {name} in {bucket}"));
        let info = self.object_info(bucket, name).await?.ok_or_else(missing)?;
        let size = info.size as u64;
        if from_byte >= size {
            return Ok(Box::pin(tokio::io::empty()));
        }
        let subject = chunks(bucket, &info.nuid);
        let (sequence, offset) = self.chunk_at(bucket, &subject, from_byte).await?.ok_or_else(missing)?;
        let left = size - offset;
        let messages = match self.role {
            None | Some(Role::Coordinator) if left > FEW_BYTES => {
                replay::open(self.clone(), &stream_name(bucket), &subject, sequence).await?
            }
            // Others may make no consumers: see `table::permissions`. And a stream has only so many: a few hundred small
            // objects that are read at about the same time would use them up.
            _ => one_by_one(self.clone(), stream_name(bucket), subject, sequence),
        };
        let check = (offset == 0 && from_byte == 0).then(Sha256::new);
        let body = stream::try_unfold(
            Body { messages, left, check, digest: info.digest, name: name.to_owned() },
            |mut body| async move { Ok(body.next().await?.map(|chunk| (chunk, body))) },
        );
        Ok(Box::pin(Reader { chunks: Box::pin(body), current: Bytes::new(), skip: from_byte - offset }))
    }

    /// Sequence and byte offset of the chunk that holds `byte`.
    ///
    /// Chunk k cannot lie nearer than k sequences after the first, so the chunk found at or after that guess is k or an
    /// earlier one, and so on from there: one look when nobody else wrote meanwhile, a few when somebody did.
    async fn chunk_at(&self, bucket: &str, subject: &str, byte: u64) -> Result<Option<(u64, u64)>> {
        let wanted = byte / CHUNK_BYTES as u64;
        let mut guess = 1;
        loop {
            let Some(chunk) = self.stored_next(&stream_name(bucket), subject, guess).await? else {
                return Ok(None);
            };
            let offset: Option<u64> = chunk.header(OFFSET).and_then(|text| text.parse().ok());
            match offset {
                Some(offset) if offset / (CHUNK_BYTES as u64) < wanted => {
                    guess = chunk.sequence + (wanted - offset / CHUNK_BYTES as u64);
                }
                Some(offset) => return Ok(Some((chunk.sequence, offset))),
                // Written by another client: read from its first chunk and skip.
                None => return Ok(Some((chunk.sequence, 0))),
            }
        }
    }
}

/// The messages of a subject by one request each: one round trip a chunk, and no consumer.
fn one_by_one(
    bus: NatsBus,
    stream: String,
    subject: String,
    from_sequence: u64,
) -> BusStream<Result<Replayed>> {
    Box::pin(stream::unfold((bus, from_sequence), move |(bus, next)| {
        let (stream, subject) = (stream.clone(), subject.clone());
        async move {
            let mut tries = 0;
            loop {
                match bus.stored_next(&stream, &subject, next).await {
                    Ok(Some(message)) => {
                        let after = message.sequence + 1;
                        return Some((Ok(Replayed::Message(message.into_message())), (bus, after)));
                    }
                    Ok(None) => return Some((Ok(Replayed::CaughtUp), (bus, next))),
                    Err(BusError::Unreachable(_)) if tries < READ_TRIES => {
                        tries += 1;
                        tokio::time::sleep(reconnect_delay(tries)).await;
                    }
                    Err(fault) => return Some((Err(fault), (bus, next))),
                }
            }
        }
    }))
}

struct Body {
    messages: BusStream<Result<Replayed>>,
    left: u64,
    check: Option<Sha256>,
    digest: Option<String>,
    name: String,
}

impl Body {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let cut_short = || {
            let name = &self.name;
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("object {name} was deleted or replaced while read"),
            )
        };
        match self.messages.next().await {
            // All chunks were stored before the metadata, so the last one comes before the end is reached.
            None | Some(Ok(Replayed::CaughtUp)) => Err(cut_short()),
            Some(Err(reason)) => Err(io::Error::other(reason)),
            Some(Ok(Replayed::Message(message))) => {
                let n = message.payload.len() as u64;
                if n > self.left {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "an object longer than its \
                                                                           metadata says",
                    ));
                }
                self.left -= n;
                self.verify(&message.payload)?;
                Ok(Some(message.payload))
            }
        }
    }

    fn verify(&mut self, chunk: &[u8]) -> io::Result<()> {
        let Some(check) = &mut self.check else { return Ok(()) };
        check.update(chunk);
        if self.left > 0 {
            return Ok(());
        }
        let found = format!("SHA-256={}", URL_SAFE.encode(std::mem::take(check).finalize()));
        match &self.digest {
            Some(expected) if *expected != found => {
                let name = &self.name;
                Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("object {name} is damaged: digest differs"),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Chunks as one byte stream, the first few bytes skipped.
struct Reader {
    chunks: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    current: Bytes,
    skip: u64,
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.chunks.try_poll_next_unpin(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(reason)) => return Poll::Ready(Err(reason)),
                Some(Ok(mut chunk)) => {
                    let skipped = self.skip.min(chunk.len() as u64);
                    self.skip -= skipped;
                    self.current = chunk.split_off(skipped as usize);
                }
            }
        }
        let n = self.current.len().min(into.remaining());
        into.put_slice(&self.current.split_to(n));
        Poll::Ready(Ok(()))
    }
}
