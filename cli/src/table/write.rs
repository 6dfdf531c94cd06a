//! A table that is written piece by piece, in the format of its file name.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use arrow_array::RecordBatch;
use arrow_ipc::writer::FileWriter;
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::{Map, Value};

use super::cell;

/// A row group is ended at this size, so that no more is held.
const GROUP_BYTES: usize = 32 << 20;

/// Formats of tables that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Jsonl,
    Csv,
    Parquet,
    Arrow,
}

impl Form {
    /// By the ending of a file name; JSONL unless it is one of the others.
    pub(crate) fn of(path: &Path) -> Form {
        match path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase()).as_deref() {
            Some("csv") => Form::Csv,
            Some("parquet" | "pq") => Form::Parquet,
            Some("arrow" | "ipc" | "feather") => Form::Arrow,
            _ => Form::Jsonl,
        }
    }

    /// Whether values are written as text.
    pub(crate) fn is_text(self) -> bool {
        matches!(self, Form::Jsonl | Form::Csv)
    }
}

/// Writes one table.
pub(crate) enum Sink<W: Write + Send> {
    Jsonl { out: W, schema: SchemaRef },
    Csv { out: csv::Writer<W>, schema: SchemaRef },
    Parquet(Box<ArrowWriter<W>>),
    Arrow(Box<FileWriter<W>>),
}

impl<W: Write + Send> Sink<W> {
    pub(crate) fn new(form: Form, out: W, schema: &SchemaRef) -> anyhow::Result<Sink<W>> {
        let schema = schema.clone();
        Ok(match form {
            Form::Jsonl => Sink::Jsonl { out, schema },
            Form::Csv => {
                let mut out = csv::Writer::from_writer(out);
                out.write_record(schema.fields().iter().map(|field| field.name()))?;
                Sink::Csv { out, schema }
            }
            Form::Parquet => {
                let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
                let writer = ArrowWriter::try_new(out, schema, Some(properties));
                Sink::Parquet(Box::new(writer.context("these columns cannot be written as Parquet")?))
            }
            Form::Arrow => Sink::Arrow(Box::new(FileWriter::try_new(out, &schema)?)),
        })
    }

    pub(crate) fn write(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        match self {
            Sink::Jsonl { out, schema } => {
                for row in 0..rows.num_rows() {
                    let cells = schema.fields().iter().zip(values(rows, schema, row));
                    let object: Map<String, Value> =
                        cells.map(|(field, value)| (field.name().clone(), value)).collect();
                    serde_json::to_writer(&mut *out, &object)?;
                    out.write_all(b"\n")?;
                }
            }
            Sink::Csv { out, schema } => {
                for row in 0..rows.num_rows() {
                    out.write_record(values(rows, schema, row).map(|value| cell::text(&value)))?;
                }
            }
            Sink::Parquet(writer) => {
                writer.write(rows)?;
                if writer.in_progress_size() >= GROUP_BYTES {
                    writer.flush()?;
                }
            }
            Sink::Arrow(writer) => writer.write(rows)?,
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> anyhow::Result<()> {
        match self {
            Sink::Jsonl { mut out, .. } => out.flush()?,
            Sink::Csv { mut out, .. } => out.flush()?,
            Sink::Parquet(writer) => drop(writer.close()?),
            Sink::Arrow(mut writer) => writer.finish()?,
        }
        Ok(())
    }
}

/// The cells of a row.
fn values<'a>(rows: &'a RecordBatch, schema: &'a SchemaRef, row: usize) -> impl Iterator<Item = Value> + 'a {
    schema.fields().iter().zip(rows.columns()).map(move |(field, column)| cell::value(field, column, row))
}
