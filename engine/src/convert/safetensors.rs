//! The safetensors format: a length, a JSON table of tensors, the data. Reads a checkpoint of one file or of
//! shards with an index; writes one file.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Error, read_json};
use crate::gguf::Bytes;

/// The format's own bound on its table.
const MAX_TABLE_BYTES: u64 = 100_000_000;

/// Element types that checkpoints of this family use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    F16,
    BF16,
    U8,
}

impl Dtype {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "U8" => Self::U8,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::U8 => "U8",
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 => 1,
        }
    }
}

/// A tensor of an open checkpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor<'a> {
    pub(super) name: &'a str,
    pub(super) path: &'a Path,
    pub(super) dtype: Dtype,
    pub(super) shape: &'a [usize],
    pub(super) data: &'a [u8],
}

/// An open checkpoint.
#[derive(Debug)]
pub(super) struct Reader {
    shards: Vec<(PathBuf, Bytes)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Reader {
    /// Opens the checkpoint in `folder`: `model.safetensors`, or the shards its index names.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        let index = folder.join("model.safetensors.index.json");
        let files = if index.exists() { shard_names(&index)? } else { vec!["model.safetensors".to_owned()] };
        let mut reader = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        for file in files {
            let path = folder.join(file);
            let bytes = Bytes::map(&path)?;
            reader.read_table(&path, &bytes)?;
            reader.shards.push((path, bytes));
        }
        Ok(reader)
    }

    fn read_table(&mut self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let damaged = |field: &str, reason: &str| Error::damaged(path, field, reason);
        let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(damaged("its length field", "the file has fewer than 8 bytes"));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_TABLE_BYTES || length > rest.len() as u64 {
            return Err(damaged(
                "its length field",
                &format!(
                    "a table of {length} bytes does not fit into \
                                                             the file"
                ),
            ));
        }
        let (table, data) = rest.split_at(length as usize);
        let table: BTreeMap<String, Value> =
            serde_json::from_slice(table).map_err(|fault| damaged("its table", &fault.to_string()))?;
        let data_start = bytes.len() - data.len();
        for (name, facts) in table {
            if name == "__metadata__" {
                continue;
            }
            let field = format!("tensor '{}'", name.escape_debug());
            let Some(dtype) = facts["dtype"].as_str().and_then(Dtype::parse) else {
                let reason =
                    format!("the type {} is not supported; use F32, F16, BF16 or U8", facts["dtype"]);
                return Err(Error::unsupported(path, field, reason));
            };
            let entry = entry(&facts, dtype, data.len())
                .map(|(shape, range)| Entry {
                    shard: self.shards.len(),
                    dtype,
                    shape,
                    range: range.start + data_start..range.end + data_start,
                })
                .ok_or_else(|| {
                    damaged(&field, "its shape and offsets do not match each other or the file")
                })?;
            if self.tensors.insert(name, entry).is_some() {
                return Err(damaged(&field, "another shard also has it"));
            }
        }
        Ok(())
    }

    /// The tensor `name`, if the checkpoint has it.
    pub(super) fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        let (path, bytes) = &self.shards[entry.shard];
        let data = &bytes[entry.range.clone()];
        Some(Tensor { name, path, dtype: entry.dtype, shape: &entry.shape, data })
    }

    /// The tensor `name`, of exactly this shape.
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, Error> {
        let path = self.path();
        let field = || format!("tensor '{name}'");
        let tensor = self.find(name).ok_or_else(|| Error::damaged(path, field(), "it is missing"))?;
        if tensor.shape != shape {
            let reason = format!("its shape is {:?}, but config.json needs {shape:?}", tensor.shape);
            return Err(Error::damaged(tensor.path, field(), reason));
        }
        Ok(tensor)
    }

    /// The first file.
    pub(super) fn path(&self) -> &Path {
        &self.shards[0].0
    }

    /// The names of all tensors.
    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

/// Shape and byte range of a table's row, if they fit each other and the data.
fn entry(facts: &Value, dtype: Dtype, n_data: usize) -> Option<(Vec<usize>, Range<usize>)> {
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    let shape: Vec<usize> = facts["shape"].as_array()?.iter().map(number).collect::<Option<_>>()?;
    let [start, end] = facts["data_offsets"].as_array()?.as_slice() else { return None };
    let (start, end) = (number(start)?, number(end)?);
    let n_bytes = shape.iter().try_fold(dtype.bytes(), |product, &dim| product.checked_mul(dim))?;
    (start <= end && end <= n_data && end - start == n_bytes).then_some((shape, start..end))
}

/// The files an index names, each once.
fn shard_names(index: &Path) -> Result<Vec<String>, Error> {
    let json = read_json(index)?;
    let fault = |reason: &str| Error::damaged(index, "weight_map", reason);
    let map = json["weight_map"].as_object().ok_or_else(|| fault("it is missing"))?;
    let mut files = std::collections::BTreeSet::new();
    for file in map.values() {
        let file =
            file.as_str().filter(|file| !file.is_empty() && !file.contains(['/', '\\']) && *file != "..");
        files.insert(file.ok_or_else(|| fault("it must be a file name without folders"))?.to_owned());
    }
    if files.is_empty() {
        return Err(fault("it has no file name"));
    }
    Ok(files.into_iter().collect())
}

/// A tensor to write.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

/// Writes the table; the data of each tensor must follow, in the same order and without gaps.
pub(super) fn write_table(out: &mut impl Write, tensors: &[Planned]) -> io::Result<()> {
    let mut table = serde_json::Map::new();
    table.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for Planned { name, dtype, shape } in tensors {
        let end = offset + shape.iter().product::<usize>() * dtype.bytes();
        let facts = json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [offset, end]});
        table.insert(name.clone(), facts);
        offset = end;
    }
    let mut table = serde_json::to_vec(&table)?;
    // Readers want the data aligned; trailing spaces are part of the format.
    table.resize(table.len().next_multiple_of(8), b' ');
    out.write_all(&(table.len() as u64).to_le_bytes())?;
    out.write_all(&table)
}
