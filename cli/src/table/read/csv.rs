//! CSV: every column is text, as it is written. A row of another length is a row with a fault.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, bail};
use arrow_array::builder::StringBuilder;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use csv::ByteRecord;

use super::{BYTES, Piece, ROWS_MAX};

fn reader<R: Read>(content: R, separator: u8) -> csv::Reader<R> {
    csv::ReaderBuilder::new().delimiter(separator).flexible(true).from_reader(content)
}

pub(super) fn schema(content: impl Read, separator: u8) -> anyhow::Result<SchemaRef> {
    let mut reader = reader(content, separator);
    let names = reader.headers().context("its first line does not name the columns")?;
    if names.is_empty() {
        bail!("it is empty");
    }
    let names = names.iter().enumerate();
    let names = names.map(|(at, name)| if at == 0 { name.trim_start_matches('\u{feff}') } else { name });
    Ok(Arc::new(Schema::new(names.map(|name| Field::new(name, DataType::Utf8, true)).collect::<Vec<_>>())))
}

pub(super) fn pieces(
    content: impl Read,
    separator: u8,
    schema: SchemaRef,
) -> impl Iterator<Item = anyhow::Result<Piece>> {
    let mut reader = reader(content, separator);
    let mut record = ByteRecord::new();
    std::iter::from_fn(move || piece(&mut reader, &mut record, &schema).transpose())
}

fn piece<R: Read>(
    reader: &mut csv::Reader<R>,
    record: &mut ByteRecord,
    schema: &SchemaRef,
) -> anyhow::Result<Option<Piece>> {
    let width = schema.fields().len();
    let mut columns: Vec<StringBuilder> = (0..width).map(|_| StringBuilder::new()).collect();
    let (mut rows, mut bytes, mut faults) = (0, 0, BTreeMap::new());
    while rows < ROWS_MAX && bytes < BYTES && reader.read_byte_record(record)? {
        if record.len() != width {
            let line = record.position().map_or(0, csv::Position::line);
            faults
                .insert(rows, format!("line {line} has {} fields, the first line has {width}", record.len()));
        }
        for (at, column) in columns.iter_mut().enumerate() {
            let text = record.get(at).map(String::from_utf8_lossy);
            if let Some(std::borrow::Cow::Owned(_)) = text {
                faults.entry(rows).or_insert_with(|| format!("{:?} is not UTF-8", schema.field(at).name()));
            }
            column.append_option(text);
        }
        bytes += record.as_slice().len();
        rows += 1;
    }
    if rows == 0 {
        return Ok(None);
    }
    let columns = columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
    Ok(Some(Piece { rows: RecordBatch::try_new(schema.clone(), columns)?, faults }))
}
