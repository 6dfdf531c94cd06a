//! JSONL: one object a line, and a column for each key that occurs. A line that is no object is a row with a fault.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, Read};
use std::sync::Arc;

use anyhow::{Context, ensure};
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};
use serde_json::{Map, Value};

use super::{BYTES, COLUMNS_MAX, Piece, ROWS_MAX};
use crate::table::types::Type;

const LINE_BYTES_MAX: u64 = 64 << 20;

/// Names and types in the order in which they come up; none until a value that is not null does.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns(Vec<(String, Option<Type>)>);

impl Columns {
    fn types(&self) -> impl Iterator<Item = (&str, Type)> {
        self.0.iter().map(|(name, kind)| (name.as_str(), kind.clone().unwrap_or(Type::Text)))
    }

    pub(super) fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.types().map(|(name, kind)| kind.field(name)).collect::<Vec<_>>()))
    }
}

/// Reads so many rows, to learn what they hold.
pub(super) fn columns(content: impl BufRead, rows_max: u64) -> anyhow::Result<Columns> {
    let (mut columns, mut places) = (Columns::default(), HashMap::new());
    let mut rows = Lines::new(content);
    let mut left = rows_max;
    while let Some((_, object)) = if left > 0 { rows.next()? } else { None } {
        left -= 1;
        for (name, value) in object.unwrap_or_default() {
            let at = *places.entry(name).or_insert_with_key(|name| {
                columns.0.push((name.clone(), None));
                columns.0.len() - 1
            });
            ensure!(at < COLUMNS_MAX, "it has more than {COLUMNS_MAX} columns");
            if let Some(kind) = Type::of(&value) {
                let known = &mut columns.0[at].1;
                *known = Some(match known.take() {
                    Some(known) => known.with(kind),
                    None => kind,
                });
            }
        }
    }
    Ok(columns)
}

pub(super) fn pieces<R: BufRead>(
    content: R,
    columns: &Columns,
) -> impl Iterator<Item = anyhow::Result<Piece>> + use<R> {
    let (schema, mut lines) = (columns.schema(), Lines::new(content));
    let types: Vec<(String, Type)> = columns.types().map(|(name, kind)| (name.to_owned(), kind)).collect();
    std::iter::from_fn(move || piece(&mut lines, &types, &schema).transpose())
}

fn piece<R: BufRead>(
    lines: &mut Lines<R>,
    types: &[(String, Type)],
    schema: &SchemaRef,
) -> anyhow::Result<Option<Piece>> {
    let (mut rows, mut bytes, mut faults) = (Vec::new(), 0, BTreeMap::new());
    while rows.len() < ROWS_MAX && bytes < BYTES {
        let Some((number, object)) = lines.next()? else { break };
        bytes += lines.line.len();
        let at = rows.len();
        rows.push(object.unwrap_or_else(|why| {
            faults.insert(at, format!("line {number} is no JSON object: {why}"));
            Map::new()
        }));
    }
    if rows.is_empty() {
        return Ok(None);
    }
    let arrays = types.iter().map(|(name, kind)| {
        let values: Vec<&Value> = rows.iter().map(|row| row.get(name).unwrap_or(&Value::Null)).collect();
        kind.array(&values)
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    let rows = RecordBatch::try_new_with_options(schema.clone(), arrays.collect(), &options)?;
    Ok(Some(Piece { rows, faults }))
}

/// The lines that are not blank, with their numbers.
struct Lines<R> {
    content: R,
    line: Vec<u8>,
    number: u64,
}

type Object = Result<Map<String, Value>, String>;

impl<R: BufRead> Lines<R> {
    fn new(content: R) -> Lines<R> {
        Lines { content, line: Vec::new(), number: 0 }
    }

    fn next(&mut self) -> anyhow::Result<Option<(u64, Object)>> {
        loop {
            self.line.clear();
            let read = (&mut self.content).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
            let read = read.with_context(|| format!("reading stopped after line {}", self.number))?;
            self.number += 1;
            if read == 0 {
                return Ok(None);
            }
            ensure!((read as u64) < LINE_BYTES_MAX, "line {} is longer than 64 MiB", self.number);
            let line: &[u8] = if self.number == 1 { without_mark(&self.line) } else { &self.line };
            if !line.iter().all(u8::is_ascii_whitespace) {
                let object = serde_json::from_slice(line).map_err(|fault| fault.to_string());
                return Ok(Some((self.number, object)));
            }
        }
    }
}

fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
}
