//! Following a batch to its end, and getting its answers: as they land, or whole and in input order.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use ternfleet_proto::message::{BatchView, ResultsPage, ResultsRequest};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{BatchId, openai};

use crate::answers::Format;
use crate::client::{Fleet, Patience};
use crate::output::WholeFile;
use crate::progress::Progress;

/// Answers asked for at once.
const PAGE_LINES: u32 = 200;
/// How long the coordinator may hold a question for more answers.
const PAGE_WAIT_MS: u32 = 1000;
/// Between two looks at a batch whose answers are not read; the first looks come quicker.
const LOOK_EVERY: Duration = Duration::from_millis(400);
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// Reading of one line of a file of results is begun again so often.
const READS_MAX: u32 = 20;
const READ_AGAIN: Duration = Duration::from_millis(500);

/// Waits for the end, showing progress.
pub(crate) async fn to_the_end(
    fleet: &Fleet,
    id: &BatchId,
    progress: &mut Progress,
) -> anyhow::Result<BatchView> {
    let mut pause = FIRST_LOOK;
    loop {
        let batch = fleet.batch(id, Patience::Endless).await?;
        progress.show(&batch);
        if batch.state.is_terminal() {
            return Ok(batch);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_EVERY);
    }
}

/// Writes answers to standard output in the order of their commit: those there are, or all up to the end.
pub(crate) async fn stream(
    fleet: &Fleet,
    id: &BatchId,
    format: Format,
    until_the_end: bool,
    mut progress: Option<&mut Progress>,
) -> anyhow::Result<BatchView> {
    let mut pages = Pages::new(fleet, id, until_the_end);
    let mut text = format.head().to_owned();
    loop {
        let page = pages.next().await?;
        for result in &page.lines {
            text.push_str(&format.answer(&openai::output_line(result))?);
        }
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        drop(out);
        text.clear();
        if let Some(progress) = progress.as_deref_mut() {
            progress.show(&page.batch);
        }
        if page.end || (!until_the_end && page.lines.is_empty()) {
            return Ok(page.batch);
        }
    }
}

/// Writes all answers there are into the file, in input order, good and error lines; answers where it lies. Whoever has
/// waited for the batch waits an outage out here as well.
pub(crate) async fn into_file(
    fleet: &Fleet,
    batch: &BatchView,
    mut file: WholeFile,
    format: Format,
    patience: Patience,
) -> anyhow::Result<PathBuf> {
    file.text(format.head())?;
    each(fleet, batch, patience, |line| file.text(&format.answer(line)?)).await?;
    file.publish()
}

/// Hands over the output line of each answer there is, in input order.
pub(crate) async fn each(
    fleet: &Fleet,
    batch: &BatchView,
    patience: Patience,
    mut take: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if batch.state.is_terminal() && (batch.output_object.is_some() || batch.error_object.is_some()) {
        let mut good = Answers::open(fleet, batch.output_object.as_deref(), patience).await?;
        let mut bad = Answers::open(fleet, batch.error_object.as_deref(), patience).await?;
        let mut written = 0_u32;
        while let Some(line) = earlier(&mut good, &mut bad).await? {
            take(&line)?;
            written += 1;
        }
        if written != batch.completed + batch.failed {
            bail!("read {written} answers, but the batch has {}", batch.completed + batch.failed);
        }
    } else {
        for line in committed_so_far(fleet, &batch.id, patience).await?.values() {
            take(line)?;
        }
    }
    Ok(())
}

/// Writes the signed manifest of a batch that has ended; answers where it lies.
pub(crate) async fn proof_into_file(
    fleet: &Fleet,
    batch: &BatchView,
    mut file: WholeFile,
    patience: Patience,
) -> anyhow::Result<PathBuf> {
    let object = batch.proof_object.as_deref().with_context(|| match batch.state.is_terminal() {
        true => format!(
            "{} has no manifest: its engines give no evidence, or it ended under an earlier version",
            batch.id
        ),
        false => format!("{} is still running: its manifest is written at its end, use --wait", batch.id),
    })?;
    let mut content = fleet.open(object, 0, patience).await?;
    let mut chunk = vec![0; 256 << 10];
    loop {
        match content.read(&mut chunk).await.context("the manifest cannot be read to its end")? {
            0 => return file.publish(),
            count => file.writer().write_all(&chunk[..count]).context("the manifest cannot be written")?,
        }
    }
}

/// The answers of a batch that has no output file yet, by line.
async fn committed_so_far(
    fleet: &Fleet,
    id: &BatchId,
    patience: Patience,
) -> anyhow::Result<BTreeMap<u32, String>> {
    let mut pages = Pages { patience, ..Pages::new(fleet, id, false) };
    let mut lines = BTreeMap::new();
    loop {
        let page = pages.next().await?;
        lines.extend(page.lines.iter().map(|result| (result.job.index, openai::output_line(result))));
        if page.end || page.lines.is_empty() {
            return Ok(lines);
        }
    }
}

/// Committed answers, page by page.
struct Pages<'a> {
    fleet: &'a Fleet,
    request: ResultsRequest,
    patience: Patience,
}

impl<'a> Pages<'a> {
    fn new(fleet: &'a Fleet, id: &BatchId, waits: bool) -> Pages<'a> {
        let request = ResultsRequest {
            tenant: fleet.tenant.clone(),
            id: id.clone(),
            after: 0,
            limit: PAGE_LINES,
            wait_ms: if waits { PAGE_WAIT_MS } else { 0 },
        };
        Pages { fleet, request, patience: if waits { Patience::Endless } else { Patience::Short } }
    }

    async fn next(&mut self) -> anyhow::Result<ResultsPage> {
        let page: ResultsPage = self.fleet.ask(ApiVerb::Results, &self.request, self.patience).await?;
        self.request.after = page.next;
        Ok(page)
    }
}

type ObjectContent = BufReader<Pin<Box<dyn AsyncRead + Send>>>;

/// The lines of an output object, each with its index in the input. Where reading breaks off it is begun again from
/// there.
struct Answers<'a> {
    fleet: &'a Fleet,
    object: Option<&'a str>,
    patience: Patience,
    content: Option<ObjectContent>,
    /// Bytes of the lines read so far.
    read: u64,
    next: Option<(u32, String)>,
}

/// As much of an output line as its place takes.
#[derive(Deserialize)]
struct Placed {
    ternfleet: Place,
}

#[derive(Deserialize)]
struct Place {
    index: u32,
}

impl<'a> Answers<'a> {
    async fn open(
        fleet: &'a Fleet,
        object: Option<&'a str>,
        patience: Patience,
    ) -> anyhow::Result<Answers<'a>> {
        let mut answers = Answers { fleet, object, patience, content: None, read: 0, next: None };
        answers.advance().await?;
        Ok(answers)
    }

    async fn advance(&mut self) -> anyhow::Result<()> {
        self.next = None;
        let Some(object) = self.object else { return Ok(()) };
        let mut tries = 0;
        let line = loop {
            let content = match &mut self.content {
                Some(content) => content,
                None => {
                    let content = self.fleet.open(object, self.read, self.patience).await?;
                    self.content.insert(BufReader::new(content))
                }
            };
            let mut line = String::new();
            match content.read_line(&mut line).await {
                Ok(_) => break line,
                Err(error) => {
                    self.content = None;
                    tries += 1;
                    // Opening again waits for a server that is away; one that keeps breaking off is another matter.
                    if tries >= READS_MAX {
                        return Err(error).context("the results cannot be read completely");
                    }
                    tokio::time::sleep(READ_AGAIN).await;
                }
            }
        };
        if line.is_empty() {
            return Ok(());
        }
        self.read += line.len() as u64;
        let line = line.trim_end_matches('\n').to_owned();
        let placed: Placed = serde_json::from_str(&line).context("a line of the results cannot be parsed")?;
        self.next = Some((placed.ternfleet.index, line));
        Ok(())
    }
}

/// Takes the line of the lower index.
async fn earlier<'a, 'f>(
    one: &'a mut Answers<'f>,
    other: &'a mut Answers<'f>,
) -> anyhow::Result<Option<String>> {
    let first = match (&one.next, &other.next) {
        (Some((a, _)), Some((b, _))) => a <= b,
        (one, _) => one.is_some(),
    };
    let from = if first { one } else { other };
    let line = from.next.take().map(|(_, line)| line);
    from.advance().await?;
    Ok(line)
}
