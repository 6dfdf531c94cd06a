//! A table on this machine, whatever its format: its schema, and its rows as often as they are asked for.
//!
//! Formats are told apart by content. Rows come in pieces of a few megabytes, so that the size of a table is no matter.

mod columnar;
mod csv;
mod jsonl;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

/// Rows of a piece, at most.
const ROWS_MAX: usize = 1024;
/// Bytes of a piece, about.
const BYTES: usize = 4 << 20;
/// The beginning of a file tells what it is.
const HEAD_BYTES: usize = 64 << 10;
const COLUMNS_MAX: usize = 10_000;

/// Formats of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Jsonl,
    Csv { separator: u8 },
    Parquet,
    Arrow,
    ArrowStream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Rows, with what is wrong with some of them, by their place in the piece.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) rows: RecordBatch,
    pub(crate) faults: BTreeMap<usize, String>,
}

pub(crate) type Pieces = Box<dyn Iterator<Item = anyhow::Result<Piece>>>;

/// A file on this machine, and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    path: PathBuf,
    /// What messages call it.
    name: String,
    pub(crate) kind: Kind,
    pub(crate) packing: Packing,
}

/// A table whose columns are known.
#[derive(Debug)]
pub(crate) struct Table {
    stored: Stored,
    schema: SchemaRef,
    /// Of JSONL, where the schema does not say which values are JSON.
    columns: jsonl::Columns,
    rows_max: u64,
}

impl Stored {
    /// Looks at the first bytes. A text whose first line is no JSON object is CSV if it has that name or if `is_table`.
    pub(crate) fn look(path: &Path, name: &str, is_table: bool) -> anyhow::Result<Stored> {
        let fault = || format!("cannot read {name}");
        let mut packed = Vec::new();
        File::open(path).with_context(fault)?.take(4).read_to_end(&mut packed).with_context(fault)?;
        let packing = match packed.as_slice() {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
            _ => Packing::Plain,
        };
        let mut stored = Stored { path: path.to_owned(), name: name.to_owned(), kind: Kind::Jsonl, packing };
        let mut head = Vec::new();
        stored.open()?.take(HEAD_BYTES as u64).read_to_end(&mut head).with_context(fault)?;
        stored.kind = kind(&head, name, is_table);
        let is_text = matches!(stored.kind, Kind::Jsonl | Kind::Csv { .. });
        if packing != Packing::Plain && !is_text {
            bail!("{name} is a compressed {} file: unpack it first", stored.kind.word());
        }
        Ok(stored)
    }

    /// The content, unpacked.
    pub(crate) fn open(&self) -> anyhow::Result<Box<dyn BufRead>> {
        let file = File::open(&self.path).with_context(|| format!("cannot read {}", self.name))?;
        let file = BufReader::with_capacity(256 << 10, file);
        Ok(match self.packing {
            Packing::Plain => Box::new(file),
            Packing::Gzip => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
            Packing::Zstd => {
                let unpacked = zstd::stream::read::Decoder::with_buffer(file);
                Box::new(BufReader::new(unpacked.context("zstd cannot start")?))
            }
        })
    }

    /// Finds the columns. JSONL is read to its end, or to `rows_max`.
    pub(crate) fn into_table(self, rows_max: Option<u64>) -> anyhow::Result<Table> {
        let rows_max = rows_max.unwrap_or(u64::MAX);
        let fault = || format!("cannot read {}", self.name);
        let mut columns = jsonl::Columns::default();
        let schema = match self.kind {
            Kind::Jsonl => {
                columns = jsonl::columns(self.open()?, rows_max).with_context(fault)?;
                columns.schema()
            }
            Kind::Csv { separator } => csv::schema(self.open()?, separator).with_context(fault)?,
            Kind::Parquet => columnar::parquet_schema(&self.path).with_context(fault)?,
            Kind::Arrow => columnar::arrow_schema(&self.path).with_context(fault)?,
            Kind::ArrowStream => columnar::stream_schema(&self.path).with_context(fault)?,
        };
        let mut seen = std::collections::BTreeSet::new();
        if let Some(twice) = schema.fields().iter().find(|field| !seen.insert(field.name())) {
            bail!("{} has two columns named {:?}: rename one of them", self.name, twice.name());
        }
        if schema.fields().len() > COLUMNS_MAX {
            bail!("{} has {} columns; at most {COLUMNS_MAX} are read", self.name, schema.fields().len());
        }
        Ok(Table { stored: self, schema, columns, rows_max })
    }
}

impl Table {
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn name(&self) -> &str {
        &self.stored.name
    }

    /// The rows from the beginning.
    pub(crate) fn pieces(&self) -> anyhow::Result<Pieces> {
        let Stored { path, name, kind, .. } = &self.stored;
        let pieces: Pieces = match *kind {
            Kind::Jsonl => Box::new(jsonl::pieces(self.stored.open()?, &self.columns)),
            Kind::Csv { separator } => {
                Box::new(csv::pieces(self.stored.open()?, separator, self.schema.clone()))
            }
            Kind::Parquet => columnar::parquet(path)?,
            Kind::Arrow => columnar::arrow(path)?,
            Kind::ArrowStream => columnar::stream(path)?,
        };
        let (name, mut left) = (name.clone(), self.rows_max);
        let pieces = pieces.map(move |piece| piece.with_context(|| format!("cannot read {name}")));
        Ok(Box::new(pieces.map_while(move |piece| {
            let mut piece = match piece {
                Ok(piece) if left > 0 => piece,
                Ok(_) => return None,
                error => return Some(error),
            };
            let rows = piece.rows.num_rows();
            if rows as u64 > left {
                piece.rows = piece.rows.slice(0, usize::try_from(left).unwrap_or(rows));
            }
            left -= piece.rows.num_rows() as u64;
            Some(Ok(piece))
        })))
    }
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Jsonl => "JSONL",
            Kind::Csv { .. } => "CSV",
            Kind::Parquet => "Parquet",
            Kind::Arrow | Kind::ArrowStream => "Arrow",
        }
    }
}

fn kind(head: &[u8], name: &str, is_table: bool) -> Kind {
    if head.starts_with(b"PAR1") {
        return Kind::Parquet;
    }
    if head.starts_with(b"ARROW1") {
        return Kind::Arrow;
    }
    if head.starts_with(&[0xff, 0xff, 0xff, 0xff]) {
        return Kind::ArrowStream;
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    let name = name.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let name = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    let is_jsonl = [".jsonl", ".ndjson", ".json"].iter().any(|end| name.ends_with(end));
    if name.ends_with(".tsv") {
        return Kind::Csv { separator: b'\t' };
    }
    match first {
        Some(b'{') => Kind::Jsonl,
        _ if name.ends_with(".csv") || (is_table && !is_jsonl) => Kind::Csv { separator: b',' },
        _ => Kind::Jsonl,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_content_and_texts_by_their_first_sign() {
        for (head, name, is_table, expected) in [
            (&b"PAR1...."[..], "x.csv", false, Kind::Parquet),
            (b"ARROW1\0\0", "x", true, Kind::Arrow),
            (b"\xff\xff\xff\xff....", "x", true, Kind::ArrowStream),
            (b"\xef\xbb\xbf {\"a\": 1}", "x.csv", true, Kind::Jsonl),
            (b"a,b\n", "https://h/x.CSV.gz?sig=1", false, Kind::Csv { separator: b',' }),
            (b"a\tb\n", "x.tsv", false, Kind::Csv { separator: b'\t' }),
            (b"a,b\n", "-", true, Kind::Csv { separator: b',' }),
            (b"no request\n", "x", false, Kind::Jsonl),
            (b"no row\n", "x.jsonl.zst", true, Kind::Jsonl),
        ] {
            assert_eq!(kind(head, name, is_table), expected, "{name}");
        }
    }
}
