//! Parquet and Arrow IPC, as the crates of Apache Arrow read them. Columns with a dictionary come with their values.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use arrow_array::cast::AsArray;
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{BYTES, Piece, Pieces, ROWS_MAX};

const BUFFER_BYTES: usize = 256 << 10;

pub(super) fn parquet_schema(path: &Path) -> anyhow::Result<SchemaRef> {
    Ok(plain(ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.schema()))
}

pub(super) fn arrow_schema(path: &Path) -> anyhow::Result<SchemaRef> {
    Ok(plain(&FileReader::try_new(BufReader::new(File::open(path)?), None)?.schema()))
}

pub(super) fn stream_schema(path: &Path) -> anyhow::Result<SchemaRef> {
    Ok(plain(&StreamReader::try_new(BufReader::new(File::open(path)?), None)?.schema()))
}

pub(super) fn parquet(path: &Path) -> anyhow::Result<Pieces> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let groups = builder.metadata().row_groups();
    // The largest rows of any row group decide.
    let row_bytes = |group: &parquet::file::metadata::RowGroupMetaData| {
        group.total_byte_size().max(0) as usize / group.num_rows().max(1) as usize
    };
    let row_bytes = groups.iter().map(row_bytes).max().unwrap_or(0).max(1);
    let rows = (BYTES / row_bytes).clamp(1, ROWS_MAX);
    pieces(builder.with_batch_size(rows).build()?)
}

pub(super) fn arrow(path: &Path) -> anyhow::Result<Pieces> {
    let file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
    pieces(FileReader::try_new(file, None)?)
}

pub(super) fn stream(path: &Path) -> anyhow::Result<Pieces> {
    let file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
    pieces(StreamReader::try_new(file, None)?)
}

fn pieces(
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>> + 'static,
) -> anyhow::Result<Pieces> {
    Ok(Box::new(batches.flat_map(|batch| {
        let batch = match batch.context("it is damaged").and_then(without_dictionaries) {
            Ok(batch) => batch,
            Err(error) => return vec![Err(error)],
        };
        let starts = (0..batch.num_rows()).step_by(ROWS_MAX);
        let piece = |start: usize| {
            let rows = batch.slice(start, ROWS_MAX.min(batch.num_rows() - start));
            Ok(Piece { rows, faults: BTreeMap::new() })
        };
        starts.map(piece).collect()
    })))
}

/// Each part of a file may have its own dictionary, which other formats cannot take.
fn without_dictionaries(batch: RecordBatch) -> anyhow::Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| match column.as_any_dictionary_opt() {
        Some(coded) => arrow_select::take::take(coded.values(), coded.keys(), None),
        None => Ok(column.clone()),
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(plain(batch.schema_ref()), columns, &options)?)
}

fn plain(schema: &Schema) -> SchemaRef {
    let field = |field: &Arc<Field>| match field.data_type() {
        DataType::Dictionary(_, value) => Arc::new(field.as_ref().clone().with_data_type(*value.clone())),
        _ => field.clone(),
    };
    let fields = schema.fields().iter().map(field).collect::<Vec<_>>();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}
