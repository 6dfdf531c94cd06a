//! One task a batch: looks through its input once, then reads lines on request and turns them into tasks.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::message::{Abilities, Failure, FailureCode, Generation, Input as JobInput, Line};
use ternfleet_proto::openai::{Endpoint, ModelDefaults, is_blank, line_too_long, parse_line};
use ternfleet_proto::{BatchId, JobKey, TenantId, codec, table};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

use super::Input;
use super::lines::{INDEX_EVERY, LineIndex, RawLine, next_line, scan};
use crate::constraints::Constraints;
use crate::core::{BatchSlot, Content, Event, Fed, Task, Wanted, estimate, start_of};

/// Text of one answer to a read request; a request for more lines ends early.
const PART_BYTES: usize = 4 << 20;
/// What a work message holds beside the request itself.
const ENVELOPE_BYTES: usize = 8 << 10;
const ATTEMPTS: u32 = 20;

/// What the shell asks of a reader.
#[derive(Debug)]
pub(crate) enum Command {
    Scan,
    Read { from: u32, lines: u32, skip: Vec<u64> },
}

/// Whose input it is.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) slot: BatchSlot,
    pub(crate) batch: BatchId,
    pub(crate) tenant: TenantId,
    pub(crate) object: String,
    pub(crate) endpoint: Option<Endpoint>,
    /// For the lines that name no model.
    pub(crate) model: Option<String>,
    /// As counted before, if they were.
    pub(crate) lines: Option<u32>,
    pub(crate) lines_max: u32,
    /// Where scratch files are made, if not where the system makes them.
    pub(crate) scratch: Option<std::path::PathBuf>,
}

type Stream = BufReader<Pin<Box<dyn AsyncRead + Send>>>;

struct Reader {
    bus: Arc<dyn Bus>,
    source: Source,
    index: Option<LineIndex>,
    /// An open stream and the line that comes next in it.
    open: Option<(Stream, u32)>,
    constraints: Constraints,
}

/// Serves commands until the sender is dropped.
pub(crate) async fn serve(
    bus: Arc<dyn Bus>,
    source: Source,
    mut commands: mpsc::UnboundedReceiver<Command>,
    inbox: mpsc::Sender<Input>,
) {
    let slot = source.slot;
    let mut reader = Reader { bus, source, index: None, open: None, constraints: Constraints::default() };
    while let Some(command) = commands.recv().await {
        let event = match patiently(&mut reader, &command).await {
            Ok(event) => event,
            Err(error) => {
                Event::InputLost { batch: slot, reason: format!("the input cannot be read: {error:#}") }
            }
        };
        if inbox.send(Input::Event(event)).await.is_err() {
            return;
        }
    }
}

/// An outage, however long, does not lose a batch: tries count only while the object can be seen and not be read.
async fn patiently(reader: &mut Reader, command: &Command) -> anyhow::Result<Event> {
    let mut attempt = 0;
    loop {
        match reader.obey(command).await {
            Ok(event) => return Ok(event),
            Err(error) => {
                reader.open = None;
                match reader.bus.object_length(&reader.bucket(), &reader.source.object).await {
                    Ok(None) => return Err(error),
                    Ok(Some(_)) => attempt += 1,
                    Err(_) => {}
                }
                if attempt >= ATTEMPTS {
                    return Err(error);
                }
                tracing::warn!(batch = %reader.source.batch, error = format!("{error:#}"), "the input \
                                                                                            could not be \
                                                                                            read; retrying");
                tokio::time::sleep(Duration::from_millis(200 * u64::from(attempt + 1))).await;
            }
        }
    }
}

impl Reader {
    fn bucket(&self) -> String {
        table::files_bucket(&self.source.tenant)
    }

    async fn obey(&mut self, command: &Command) -> anyhow::Result<Event> {
        match command {
            Command::Scan => {
                let (batch, lines_max) = (self.source.slot, self.source.lines_max);
                Ok(match self.index().await? {
                    Some(index) => Event::Scanned { batch, lines: index.lines },
                    None => Event::InputLost {
                        batch,
                        reason: format!("the file has more than {lines_max} lines: split it"),
                    },
                })
            }
            Command::Read { from, lines, skip } => self.read(*from, *lines, skip).await,
        }
    }

    async fn stream(&mut self, from_byte: u64) -> anyhow::Result<Stream> {
        let content = self.bus.object_get(&self.bucket(), &self.source.object, from_byte).await?;
        Ok(BufReader::with_capacity(64 << 10, content))
    }

    /// The stored index, or a new one that is stored; `None` when the file has too many lines. It lies where tenants
    /// cannot write, since it says how much memory the ledger takes.
    async fn index(&mut self) -> anyhow::Result<Option<&LineIndex>> {
        if self.index.is_none() {
            let name = index_object(&self.source.batch);
            let mut index = match self.stored_index(&name).await? {
                Some(index) => index,
                None => {
                    let lines_max = self.source.lines_max.max(self.source.lines.unwrap_or(0));
                    let content = self.stream(0).await?;
                    let found = scan(content, lines_max, self.source.scratch.as_deref()).await?;
                    let Some(index) = found else { return Ok(None) };
                    let content = Box::pin(std::io::Cursor::new(codec::encode(&index)));
                    let stored = self.bus.object_put(table::LARGE_REQUESTS, &name, content).await;
                    stored.context("the line index")?;
                    index
                }
            };
            // Coordinators up to 0.1 counted blank lines at the end as well.
            index.lines = index.lines.max(self.source.lines.unwrap_or(0));
            self.index = Some(index);
        }
        Ok(self.index.as_ref())
    }

    async fn stored_index(&mut self, name: &str) -> anyhow::Result<Option<LineIndex>> {
        let lines_max = self.source.lines_max.max(self.source.lines.unwrap_or(0));
        let length = self.bus.object_length(table::LARGE_REQUESTS, name).await?;
        if length.is_none_or(|bytes| bytes > LineIndex::bytes_max(lines_max)) {
            return Ok(None);
        }
        let mut content = Vec::new();
        self.bus.object_get(table::LARGE_REQUESTS, name, 0).await?.read_to_end(&mut content).await?;
        let index: Option<LineIndex> = codec::decode(&content).ok();
        Ok(index.filter(|index| index.lines <= lines_max))
    }

    async fn read(&mut self, from: u32, lines: u32, skip: &[u64]) -> anyhow::Result<Event> {
        let Some(index) = self.index().await? else { anyhow::bail!("the file has too many lines") };
        let (near, offset) = index.before(from);
        let (mut stream, mut next) = match self.open.take() {
            // Reading on, or skipping a little, is cheaper than opening again.
            Some((stream, next)) if next <= from && from - next <= 2 * INDEX_EVERY => (stream, next),
            _ => (self.stream(offset).await?, near),
        };
        let mut line = Vec::new();
        let mut fed = Vec::new();
        let mut bytes = 0;
        let mut end = false;
        while next < from.saturating_add(lines) && bytes < PART_BYTES {
            let wanted = next >= from && !is_set(skip, next - from);
            let Some((raw, _)) = next_line(&mut stream, &mut line, wanted).await? else {
                end = true;
                break;
            };
            if wanted {
                bytes += line.len();
                let content = self.content(next, raw, &line).await?;
                fed.push(Fed { index: next, content });
            }
            next += 1;
        }
        end |= self.index.as_ref().is_some_and(|index| next >= index.lines);
        // Most batches end here; a file that is read again is opened again.
        self.open = (!end).then_some((stream, next));
        Ok(Event::Lines { batch: self.source.slot, lines: fed, next, end })
    }

    async fn content(&mut self, index: u32, raw: RawLine, text: &[u8]) -> anyhow::Result<Content> {
        let number = u64::from(index) + 1;
        if let RawLine::TooLong { bytes } = raw {
            return Ok(Content::Bad(Box::new(line_too_long(number, bytes))));
        }
        if is_blank(text) {
            return Ok(Content::Blank);
        }
        let job = JobKey { batch: self.source.batch.clone(), index };
        let defaults = ModelDefaults { name: self.source.model.clone(), ..ModelDefaults::default() };
        let (line, mut generation) = match parse_line(text, number, &job, &defaults) {
            Ok(parsed) => parsed,
            Err(bad) => return Ok(Content::Bad(Box::new(bad))),
        };
        if let Some(fault) = self.fault(index, &line) {
            let failure =
                Failure { code: FailureCode::InvalidRequest, message: format!("line {number}: {fault}") };
            return Ok(Content::Bad(Box::new((line, failure))));
        }
        if let Err(failure) = self.constraints.check(&generation).await {
            let failure = Failure { message: format!("line {number}: {}", failure.message), ..failure };
            return Ok(Content::Bad(Box::new((line, failure))));
        }
        let wanted = Wanted::of(&mut generation, job.seed());
        let start = start_of(&generation.prompt);
        let (tokens_estimate, constrained) = (estimate::tokens(&generation), generation.is_constrained());
        let needs = Abilities::needed_by(&generation);
        let (input, bytes) = self.input(&job, &line, generation).await?;
        Ok(Content::Good(Arc::new(Task {
            line,
            input,
            constrained,
            needs,
            tokens_estimate,
            bytes,
            wanted,
            start,
        })))
    }

    /// What is wrong with a line that is a request in itself.
    fn fault(&self, index: u32, line: &Line) -> Option<String> {
        if let Some(endpoint) = self.source.endpoint
            && endpoint != line.endpoint
        {
            return Some(format!(
                "its url is {}, but the batch is for {}",
                line.endpoint.as_str(),
                endpoint.as_str()
            ));
        }
        let repeated = self.index.as_ref().is_some_and(|known| known.repeated.binary_search(&index).is_ok());
        let id = line.custom_id.as_deref().unwrap_or_default();
        repeated.then(|| format!("an earlier line has the same custom_id {id:?}"))
    }

    /// Small requests travel in the message, large ones as an object. What the answer repeats is in the message in any case.
    async fn input(
        &mut self,
        job: &JobKey,
        line: &Line,
        generation: Generation,
    ) -> anyhow::Result<(JobInput, u32)> {
        let settings = line.settings.len();
        let bytes = estimate::bytes(&generation) + settings as u32;
        if (bytes as usize) < table::WORK_MESSAGE_BYTES_MAX / 4 {
            return Ok((JobInput::Inline(generation), bytes));
        }
        let encoded = codec::encode(&generation);
        if encoded.len() + settings + ENVELOPE_BYTES <= table::WORK_MESSAGE_BYTES_MAX {
            return Ok((JobInput::Inline(generation), bytes));
        }
        let name = job_object(job);
        let content = Box::pin(std::io::Cursor::new(encoded));
        self.bus.object_put(table::LARGE_REQUESTS, &name, content).await.context("a large request")?;
        Ok((JobInput::Object(name), settings as u32 + 400))
    }
}

/// Name of the object that holds a batch's line index.
fn index_object(batch: &BatchId) -> String {
    format!("index-{batch}")
}

/// Name of the object that holds a large request.
fn job_object(job: &JobKey) -> String {
    format!("job-{}-{}", job.batch, job.index)
}

/// Deletes what a reader stored for a batch that has ended, each object by its name: the work does not grow with what other
/// batches have stored. Without an index nothing was stored.
pub(crate) async fn forget(bus: &dyn Bus, batch: &BatchId) -> Result<(), BusError> {
    let name = index_object(batch);
    let mut content = Vec::new();
    match bus.object_get(table::LARGE_REQUESTS, &name, 0).await {
        Err(BusError::NotFound(_)) => return Ok(()),
        opened => {
            let read = opened?.read_to_end(&mut content).await;
            read.map_err(|error| BusError::Unreachable(error.to_string()))?;
        }
    }
    let index: LineIndex = codec::decode(&content).unwrap_or_default();
    for index in index.long {
        let job = JobKey { batch: batch.clone(), index };
        bus.object_delete(table::LARGE_REQUESTS, &job_object(&job)).await?;
    }
    // The index is last: whoever begins again still finds the names.
    bus.object_delete(table::LARGE_REQUESTS, &name).await
}

fn is_set(bits: &[u64], place: u32) -> bool {
    bits.get((place / 64) as usize).is_some_and(|word| word >> (place % 64) & 1 == 1)
}
