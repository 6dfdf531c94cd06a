//! The results of a batch as a table: the rows of its input with the columns of the answers, or the answers alone.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use tempfile::NamedTempFile;

use ternfleet_proto::message::BatchView;

use super::input::{Joined, Skipped};
use super::place::{self, Remote};
use super::plan::row_id;
use super::shape::{Answer, Costs, Shape, beside};
use super::write::{Form, Sink};
use crate::answers::Format;
use crate::client::{Fleet, Patience};
use crate::follow;
use crate::output::{Existing, WholeFile};

/// Answers that are written at once where there is no table.
const ROWS: usize = 1024;

/// Where results go; the place is checked when it is made.
#[derive(Debug)]
pub(crate) struct Results {
    draft: WholeFile,
    form: Form,
    /// In place of the one of the file's name.
    format: Option<Format>,
    remote: Option<Remote>,
}

impl Results {
    pub(crate) async fn create(
        out: &Path,
        existing: Existing,
        format: Option<Format>,
    ) -> anyhow::Result<Results> {
        let (form, remote) = (Form::of(out), place::remote(out)?);
        let draft = match &remote {
            None => WholeFile::create(out, existing)?,
            Some(remote) => remote.draft(existing).await?,
        };
        Ok(Results { draft, form, format, remote })
    }

    /// Over a draft of this file.
    pub(crate) fn over(draft: WholeFile, out: &Path) -> Results {
        Results { draft, form: Form::of(out), format: None, remote: None }
    }

    /// Writes all answers there are; answers where they lie. A file of requests has OpenAI's lines in JSONL.
    pub(crate) async fn write(
        self,
        fleet: &Fleet,
        batch: &BatchView,
        joined: Option<Arc<Joined>>,
        patience: Patience,
    ) -> anyhow::Result<PathBuf> {
        let Results { draft, form, format, remote } = self;
        let path = if format.is_some() || (joined.is_none() && form == Form::Jsonl) {
            follow::into_file(fleet, batch, draft, format.unwrap_or_default(), patience).await?
        } else {
            let spool = NamedTempFile::new().context("cannot write a temporary file")?;
            let mut spool = BufWriter::with_capacity(256 << 10, spool);
            let mut all_us = 0;
            follow::each(fleet, batch, patience, |line| {
                all_us += u128::from(Answer::parse(line)?.engine_us);
                spool.write_all(line.as_bytes())?;
                Ok(spool.write_all(b"\n")?)
            })
            .await?;
            let spool = spool.into_inner().map_err(|fault| fault.into_error())?;
            let (id, ended, cost) = (batch.id.clone(), batch.state.is_terminal(), batch.cost_usd_micro.0);
            let write = move || {
                let mut draft = draft;
                let out = draft.writer();
                join(joined.as_deref(), id.as_str(), ended, cost, all_us, spool.path(), form, out)?;
                draft.publish()
            };
            tokio::task::spawn_blocking(write).await.context("writing stopped")??
        };
        match remote {
            None => Ok(path),
            Some(remote) => remote.put(path).await,
        }
    }
}

/// The lines of a spool file.
struct Answers {
    lines: BufReader<File>,
    next: Option<Answer>,
}

impl Answers {
    fn peek(&mut self) -> anyhow::Result<Option<&Answer>> {
        if self.next.is_none() {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? > 0 {
                self.next = Some(Answer::parse(&line)?);
            }
        }
        Ok(self.next.as_ref())
    }

    fn take(&mut self) -> anyhow::Result<Option<Answer>> {
        self.peek()?;
        Ok(self.next.take())
    }
}

/// Writes the answers of a spool file, beside the rows of a table if there is one.
pub(super) fn join(
    joined: Option<&Joined>,
    batch: &str,
    ended: bool,
    cost_usd_micro: i64,
    all_us: u128,
    spool: &Path,
    form: Form,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let costs = Costs::new(cost_usd_micro, all_us);
    let answers = Answers { lines: BufReader::new(File::open(spool)?), next: None };
    match joined {
        Some(joined) => beside_rows(joined, batch, ended, answers, costs, form, out),
        None => alone(answers, costs, form, out),
    }
}

fn beside_rows(
    joined: &Joined,
    batch: &str,
    ended: bool,
    mut answers: Answers,
    mut costs: Costs,
    form: Form,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let Joined { table, shape, id, .. } = joined;
    let own = table.schema();
    if let Some(field) =
        own.fields().iter().find(|field| form.is_text() && !super::cell::is_readable(field.data_type()))
    {
        bail!(
            "column {:?} has the type {}, which text cannot hold: write .parquet or .arrow",
            field.name(),
            field.data_type()
        );
    }
    let fields = own.fields().iter().map(|field| field.as_ref().clone()).chain(shape.fields());
    let schema: SchemaRef =
        Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), own.metadata().clone()));
    let mut sink = Sink::new(form, out, &schema)?;
    let mut skipped = Skipped::of(joined)?;
    let mut number = 0;
    for piece in table.pieces()? {
        let piece = piece?;
        let mut cells = Vec::with_capacity(piece.rows.num_rows());
        for at in 0..piece.rows.num_rows() {
            let row = row_id(*id, &piece.rows, at, number);
            let why = skipped.why(number)?.or_else(|| piece.faults.get(&at).cloned());
            let has_answer = match (&why, &row) {
                (None, Ok(row)) => answers.peek()?.is_some_and(|answer| answer.id.as_ref() == Some(row)),
                _ => false,
            };
            cells.push(match (why, row) {
                (Some(why), _) | (None, Err(why)) => shape.failed(&why),
                _ if has_answer => match answers.take()? {
                    Some(answer) => shape.cells(&answer, costs.next(answer.engine_us)),
                    None => shape.failed(""),
                },
                _ if ended => shape.failed("this row had no request"),
                _ => shape.failed("this row has no answer yet"),
            });
            number += 1;
        }
        let columns = beside(piece.rows.columns(), shape.arrays(&cells));
        sink.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
    }
    if let Some(answer) = answers.peek()? {
        let id = answer.id.as_deref().unwrap_or_default();
        bail!(
            "{} is not the table that {batch} was made from: no row takes the answer to {id:?}",
            table.name()
        );
    }
    if joined.rows.is_some_and(|rows| rows != number) {
        bail!("{} has {number} rows, but {batch} was made from a table of more", table.name());
    }
    sink.finish()
}

/// Answers to a file of requests, by their custom ids.
fn alone(
    mut answers: Answers,
    mut costs: Costs,
    form: Form,
    out: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let shape = Shape::new(None, "");
    let id = Field::new("custom_id", DataType::Utf8, true);
    let fields: Vec<Field> = std::iter::once(id).chain(shape.fields()).collect();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let mut sink = Sink::new(form, out, &schema)?;
    loop {
        let (mut ids, mut cells) = (Vec::new(), Vec::new());
        while cells.len() < ROWS
            && let Some(answer) = answers.take()?
        {
            cells.push(shape.cells(&answer, costs.next(answer.engine_us)));
            ids.push(answer.id);
        }
        if cells.is_empty() {
            return sink.finish();
        }
        let ids: ArrayRef = Arc::new(StringArray::from(ids));
        sink.write(&RecordBatch::try_new(schema.clone(), beside(&[ids], shape.arrays(&cells)))?)?;
    }
}
