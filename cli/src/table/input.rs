//! What a batch is made from: a file of requests as it is, or the requests that templates make of a table.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::Value;
use tempfile::{NamedTempFile, TempPath};

use ternfleet_proto::message::BatchView;
use tokio::io::AsyncBufReadExt;

use super::asked::Asked;
use super::plan::{Plan, column_of};
use super::read::{Kind, Packing, Stored, Table};
use super::shape::Shape;
use super::{place, shown};
use crate::client::{Fleet, Patience};

/// Metadata of a batch that came from a table; the Python module has the same.
const ROWS: &str = "table_rows";
const ID: &str = "table_id";
const PREFIX: &str = "table_prefix";
/// In the folder of a launch.
const SKIPPED: &str = "skipped.jsonl";

/// A file of requests on this machine, and the table that they came from.
#[derive(Debug)]
pub(crate) struct Input {
    requests: PathBuf,
    /// For people: rows, and those without a request.
    note: Option<String>,
    /// Whether the requests are the file that was named.
    is_given: bool,
    joined: Option<Arc<Joined>>,
    metadata: BTreeMap<String, String>,
    /// Files that go when nobody needs them.
    _kept: Vec<TempPath>,
}

/// A table that answers are written beside.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(super) table: Table,
    pub(super) id: Option<usize>,
    pub(super) shape: Shape,
    /// Rows of the table, where they were counted.
    pub(super) rows: Option<u64>,
    /// The rows without a request, each with the reason.
    pub(super) skipped: Option<PathBuf>,
    /// Temporary files among these.
    _kept: Vec<TempPath>,
}

impl Input {
    /// Reads a file, an address, or standard input (`-`).
    pub(crate) async fn open(file: &Path, asked: &Asked) -> anyhow::Result<Input> {
        let (file, asked) = (file.to_owned(), asked.clone());
        tokio::task::spawn_blocking(move || Input::read(&file, &asked)).await.context("reading stopped")?
    }

    pub(super) fn read(file: &Path, asked: &Asked) -> anyhow::Result<Input> {
        let (path, kept) = place::bring(file)?;
        let name = if file == Path::new("-") { "standard input".to_owned() } else { shown(file) };
        let stored = Stored::look(&path, &name, asked.is_table())?;
        if !asked.is_table() {
            return match (stored.kind, stored.packing) {
                (Kind::Jsonl, Packing::Plain) => Ok(Input::of_requests(path, kept)),
                (Kind::Jsonl, _) => {
                    let mut plain = NamedTempFile::new().context("cannot write a temporary file")?;
                    let content = &mut stored.open()?;
                    std::io::copy(content, &mut plain).with_context(|| format!("cannot unpack {name}"))?;
                    let plain = plain.into_temp_path();
                    Ok(Input::of_requests(plain.to_path_buf(), Some(plain)))
                }
                // It has no templates, and says which columns there are.
                _ => {
                    Plan::new(asked, &name, stored.into_table(None)?.schema()).and_then(|_| bail!("no plan"))
                }
            };
        }
        let table = stored.into_table(asked.limit)?;
        let plan = Plan::new(asked, &name, table.schema())?;
        let made = Made::of(&table, &plan)?;
        let metadata = [
            (ROWS, made.rows.to_string()),
            (ID, asked.id_column.clone().unwrap_or_default()),
            (PREFIX, asked.prefix.clone()),
        ];
        let without = match made.rows - made.lines {
            0 => String::new(),
            without => format!(", {without} of them without a request"),
        };
        let joined = Joined {
            table,
            id: plan.id_column(),
            shape: plan.shape,
            rows: Some(made.rows),
            skipped: Some(made.skipped.to_path_buf()),
            _kept: kept.into_iter().chain([made.skipped]).collect(),
        };
        Ok(Input {
            requests: made.requests.to_path_buf(),
            note: Some(format!("{name}: {} rows{without}", made.rows)),
            is_given: false,
            joined: Some(Arc::new(joined)),
            metadata: metadata.map(|(name, value)| (name.to_owned(), value)).into(),
            _kept: vec![made.requests],
        })
    }

    fn of_requests(requests: PathBuf, kept: Option<TempPath>) -> Input {
        let (is_given, _kept) = (kept.is_none(), kept.into_iter().collect());
        Input { requests, note: None, is_given, joined: None, metadata: BTreeMap::new(), _kept }
    }

    pub(crate) fn requests(&self) -> &Path {
        &self.requests
    }

    pub(crate) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    pub(crate) fn joined(&self) -> Option<Arc<Joined>> {
        self.joined.clone()
    }

    /// Copies what would go with this process into a folder; answers where the requests are then.
    pub(crate) fn keep(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        if self.is_given {
            return Ok(self.requests.clone());
        }
        let fault = || format!("cannot write to {}", folder.display());
        let requests = folder.join("requests.jsonl");
        std::fs::copy(&self.requests, &requests).with_context(fault)?;
        if let Some(skipped) = self.joined.as_ref().and_then(|joined| joined.skipped.as_ref()) {
            std::fs::copy(skipped, folder.join(SKIPPED)).with_context(fault)?;
        }
        Ok(requests)
    }

    /// What the batch has to know, so that its answers find their rows in another process.
    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl Joined {
    /// The table of a batch that another process submitted. Its first request tells the schema of the answers. What
    /// [`Input::keep`] wrote is in `kept`.
    pub(crate) async fn of_batch(
        fleet: &Fleet,
        batch: &BatchView,
        file: &Path,
        kept: Option<&Path>,
    ) -> anyhow::Result<Joined> {
        let about = |name: &str| batch.metadata.get(name).map(String::as_str);
        let Some(rows) = about(ROWS).and_then(|rows| rows.parse().ok()) else {
            bail!("{} was not made from a table: leave out --table", batch.id);
        };
        let id = about(ID).filter(|id| !id.is_empty()).map(str::to_owned);
        let mut request = String::new();
        let input = fleet.open(&batch.input_object, 0, Patience::Short).await;
        let input = input.context("the input of the batch has been deleted")?;
        tokio::io::BufReader::new(input).read_line(&mut request).await.context("its input cannot be read")?;
        let request: Value = serde_json::from_str(&request).context("its first request cannot be parsed")?;
        let shape = Shape::of_request(&request, about(PREFIX).unwrap_or_default());
        let file = file.to_owned();
        let skipped = kept.map(|folder| folder.join(SKIPPED)).filter(|path| path.exists());
        let read = move || {
            let (path, kept) = place::bring(&file)?;
            let name = shown(&file);
            let table = Stored::look(&path, &name, true)?.into_table(Some(rows))?;
            let id = id.map(|column| column_of(table.schema(), &column, "the batch's --id", &name));
            let (id, _kept) = (id.transpose()?, kept.into_iter().collect());
            Ok(Joined { table, id, shape, rows: Some(rows), skipped, _kept })
        };
        tokio::task::spawn_blocking(read).await.context("reading stopped")?
    }
}

/// Requests that were made of a table.
struct Made {
    requests: TempPath,
    /// A line for each row without a request: its number and why.
    skipped: TempPath,
    rows: u64,
    lines: u64,
}

impl Made {
    fn of(table: &Table, plan: &Plan) -> anyhow::Result<Made> {
        let file = || NamedTempFile::new().context("cannot write a temporary file");
        let mut requests = BufWriter::with_capacity(256 << 10, file()?);
        let mut skipped = BufWriter::new(file()?);
        let (mut rows, mut lines) = (0, 0);
        let mut first = None;
        let mut seen = HashSet::new();
        for piece in table.pieces()? {
            let piece = piece?;
            for at in 0..piece.rows.num_rows() {
                let line = match piece.faults.get(&at) {
                    Some(fault) => Err(fault.clone()),
                    None => plan.id(&piece.rows, at, rows).and_then(|id| {
                        // Half of a digest takes less room than an id, and two are never the same.
                        let digest = blake3::hash(id.as_bytes());
                        let half: [u8; 16] = std::array::from_fn(|at| digest.as_bytes()[at]);
                        if plan.id_column().is_some() && !seen.insert(half) {
                            return Err(format!("an earlier row has the id {id:?}, too"));
                        }
                        plan.line(&piece.rows, at, &id)
                    }),
                };
                match line {
                    Ok(line) => {
                        requests.write_all(line.as_bytes())?;
                        requests.write_all(b"\n")?;
                        lines += 1;
                    }
                    Err(why) => {
                        serde_json::to_writer(&mut skipped, &(rows, &why))?;
                        skipped.write_all(b"\n")?;
                        first.get_or_insert((rows, why));
                    }
                }
                rows += 1;
            }
        }
        if lines == 0 {
            match first {
                Some((row, why)) => bail!("no row of {} has a request; row {row}: {why}", table.name()),
                None => bail!("{} has no rows", table.name()),
            }
        }
        let whole = |file: BufWriter<NamedTempFile>| -> anyhow::Result<TempPath> {
            let file = file.into_inner().map_err(|fault| fault.into_error());
            Ok(file.context("cannot write a temporary file")?.into_temp_path())
        };
        Ok(Made { requests: whole(requests)?, skipped: whole(skipped)?, rows, lines })
    }
}

/// Why rows have no request, in the order of the rows.
pub(super) struct Skipped {
    lines: Option<BufReader<File>>,
    next: Option<(u64, String)>,
}

impl Skipped {
    pub(super) fn of(joined: &Joined) -> anyhow::Result<Skipped> {
        let lines = joined.skipped.as_ref().map(|path| File::open(path).map(BufReader::new)).transpose()?;
        let mut skipped = Skipped { lines, next: None };
        skipped.advance()?;
        Ok(skipped)
    }

    fn advance(&mut self) -> anyhow::Result<()> {
        let mut line = String::new();
        let read = self.lines.as_mut().map(|lines| lines.read_line(&mut line)).transpose()?;
        self.next = if read.unwrap_or(0) > 0 { Some(serde_json::from_str(&line)?) } else { None };
        Ok(())
    }

    /// Why the row of this number has none; asked for in ascending order.
    pub(super) fn why(&mut self, row: u64) -> anyhow::Result<Option<String>> {
        match self.next.take() {
            Some((at, why)) if at == row => {
                self.advance()?;
                Ok(Some(why))
            }
            other => {
                self.next = other;
                Ok(None)
            }
        }
    }
}
