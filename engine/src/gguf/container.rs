//! The container: header, metadata, tensor table; all of it checked when the file is opened.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::cursor::Cursor;
use super::map::Bytes;
use super::value::{self, Element, Value};
use super::{Error, Kind, spans};

/// Alignment of the tensor data where `general.alignment` is absent.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// Least bytes that a metadata entry (key length, type, one byte) can take: it bounds their count.
const LEAST_ENTRY_BYTES: u64 = 8 + 4 + 1;
/// Least bytes that a tensor's entry (name length, dims, one dim, type, offset) can take.
const LEAST_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;
/// The longest name ggml keeps for a tensor is 64 bytes; GGUF allows keys of 65,535.
const MAX_KEY_BYTES: usize = 65_535;

/// An open GGUF file.
#[derive(Debug)]
pub struct File {
    bytes: Bytes,
    metadata: Vec<(String, Value)>,
    keys: BTreeMap<String, usize>,
    tensors: Vec<Entry>,
    names: BTreeMap<String, usize>,
    alignment: u64,
}

/// A tensor's row of the table, with its place in the file.
#[derive(Debug)]
struct Entry {
    name: String,
    dims: Vec<u64>,
    kind: Kind,
    range: Range<usize>,
}

/// A tensor's row of the table as it was read.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) dims: Vec<u64>,
    pub(super) kind: Kind,
    pub(super) offset: u64,
}

/// A tensor in an open file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name, as in `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Its shape as GGUF writes it: `dims[0]` runs fastest (K, input features), `dims[1]` is M (outputs).
    pub dims: &'a [u64],
    /// Its element type.
    pub kind: Kind,
    /// Its bytes; empty if the type's size is not known here ([`Kind::tensor_bytes`] is `None`).
    pub data: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// The number of weights.
    pub fn n_weights(&self) -> u64 {
        // The product was checked when the file was opened.
        self.dims.iter().product()
    }

    /// `dims[0]`: the length of a row.
    pub fn n_columns(&self) -> usize {
        self.dims[0] as usize
    }

    /// The product of the other dims: the number of rows.
    pub fn n_rows(&self) -> usize {
        self.dims[1..].iter().product::<u64>() as usize
    }

    /// The values of a tensor of [`Kind::F32`].
    pub fn f32s(&self) -> impl Iterator<Item = f32> + use<'a> {
        self.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
    }
}

impl File {
    /// Maps `path` and checks everything but the weights themselves.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::parse(Bytes::map(path.as_ref())?)
    }

    /// The same over bytes in memory: for tests, fuzzing and conversion.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Error> {
        Self::parse(Bytes::Owned(bytes))
    }

    fn parse(bytes: Bytes) -> Result<Self, Error> {
        let mut cursor = Cursor::new(&bytes);
        let (n_tensors, n_entries) = read_preamble(&mut cursor)?;
        let (metadata, keys) = read_metadata(&mut cursor, n_entries)?;
        let alignment = alignment(keys.get("general.alignment").map(|&at| &metadata[at].1))?;
        let (tensors, names) = read_tensors(&mut cursor, n_tensors, alignment)?;
        Ok(Self { bytes, metadata, keys, tensors, names, alignment })
    }

    /// Bytes of the whole file.
    pub fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Alignment of the tensor data, in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&at| &self.metadata[at].1)
    }

    /// All metadata, in the file's order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.names.get(name).map(|&at| self.view(&self.tensors[at]))
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|entry| self.view(entry))
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> Tensor<'a> {
        Tensor {
            name: &entry.name,
            dims: &entry.dims,
            kind: entry.kind,
            data: &self.bytes[entry.range.clone()],
        }
    }

    /// A text; `None` if the key is absent.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "text", Value::as_str)
    }

    /// A count or an id; `None` if the key is absent.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, Error> {
        self.typed(key, "an integer of at least 0", Value::as_u64)
    }

    /// A float; `None` if the key is absent.
    pub fn float(&self, key: &str) -> Result<Option<f32>, Error> {
        self.typed(key, "a float", Value::as_f32)
    }

    /// A truth value; `None` if the key is absent.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.metadata(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::model(
                format!("metadata '{key}'"),
                format!("expected {wanted}, found {}", value.type_name()),
            )),
        }
    }

    /// The elements of an array of strings; `None` if the key is absent.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        let Some(value) = self.metadata(key) else { return Ok(None) };
        let array = match value {
            Value::Array(array) if array.element == Element::String => array,
            other => {
                let reason = format!("expected an array of strings, found {}", other.type_name());
                return Err(Error::model(format!("metadata '{key}'"), reason));
            }
        };
        let mut cursor = Cursor::new(&self.bytes[array.start..array.end]);
        let element = |index| move || format!("metadata '{key}', element {index}");
        (0..array.len).map(|index| cursor.string(&element(index))).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// The elements of an array of f32; `None` if the key is absent.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        match self.metadata(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.element == Element::F32 => {
                let bytes = self.bytes[array.start..array.end].as_chunks::<4>().0;
                Ok(Some(bytes.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
            }
            Some(other) => {
                let reason = format!("expected an array of floats, found {}", other.type_name());
                Err(Error::model(format!("metadata '{key}'"), reason))
            }
        }
    }

    /// The elements of an array of integers; `None` if the key is absent.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        let Some(value) = self.metadata(key) else { return Ok(None) };
        let fault = || {
            let reason = format!("expected an array of integers, found {}", value.type_name());
            Error::model(format!("metadata '{key}'"), reason)
        };
        let Value::Array(array) = value else { return Err(fault()) };
        if array.element == Element::String {
            return Err(fault());
        }
        let width = array.element.least_bytes() as usize;
        self.bytes[array.start..array.end]
            .chunks_exact(width)
            .map(|bytes| match value::scalar(array.element, bytes) {
                Some(Value::Signed(value)) => Ok(value),
                Some(Value::Unsigned(value)) => i64::try_from(value).map_err(|_| fault()),
                _ => Err(fault()),
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Some)
    }
}

/// Magic, version and the two counts, each bounded by the bytes that are there.
fn read_preamble(cursor: &mut Cursor<'_>) -> Result<(u64, u64), Error> {
    let magic = cursor.take(4, &|| "the magic number".into());
    if !matches!(magic, Ok(b"GGUF")) {
        let found = magic.map_or("less than four bytes".into(), |bytes| format!("{bytes:02x?}"));
        return Err(Error::Foreign(format!(
            "this is not a GGUF model file: it starts with {found} instead of 'GGUF'; pass the path of a \
             .gguf file (safetensors can be converted by `ternfleet model convert`)"
        )));
    }
    let version = cursor.u32(&|| "the version".into())?;
    if version != 3 {
        return Err(Error::Foreign(if version != 0 && version & 0xffff == 0 {
            format!(
                "this GGUF file is big-endian (its version reads {version:#010x}); \
                 this engine reads little-endian files: convert it on a little-endian machine"
            )
        } else {
            format!("this GGUF file has version {version}, but this engine reads version 3: convert it again")
        }));
    }
    let n_tensors = cursor.u64(&|| "the tensor count".into())?;
    let n_entries = cursor.u64(&|| "the metadata count".into())?;
    let remaining = cursor.remaining() as u64;
    for (name, count, least) in [
        ("the tensor count", n_tensors, LEAST_TENSOR_BYTES),
        ("the metadata count", n_entries, LEAST_ENTRY_BYTES),
    ] {
        if count.checked_mul(least).is_none_or(|bytes| bytes > remaining) {
            let reason = format!("{count} entries cannot fit into the {remaining} bytes that follow");
            return Err(Error::damaged(name, reason));
        }
    }
    Ok((n_tensors, n_entries))
}

type Metadata = (Vec<(String, Value)>, BTreeMap<String, usize>);

fn read_metadata(cursor: &mut Cursor<'_>, n_entries: u64) -> Result<Metadata, Error> {
    let (mut metadata, mut keys) = (Vec::new(), BTreeMap::new());
    for index in 0..n_entries {
        let field = || format!("metadata entry {index}, key");
        let key = cursor.string(&field)?;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(Error::damaged(
                field(),
                format!("{} bytes long (1 to 65535 are allowed)", key.len()),
            ));
        }
        let value = value::read(cursor, key)?;
        if keys.insert(key.to_owned(), metadata.len()).is_some() {
            return Err(Error::damaged(field(), format!("'{key}' occurs twice")));
        }
        metadata.push((key.to_owned(), value));
    }
    Ok((metadata, keys))
}

fn alignment(value: Option<&Value>) -> Result<u64, Error> {
    let Some(value) = value else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64() {
        Some(bytes) if bytes.is_power_of_two() && (8..=1 << 20).contains(&bytes) => Ok(bytes),
        _ => Err(Error::damaged(
            "metadata 'general.alignment'",
            format!("{value:?} is not a power of two between 8 and 1048576"),
        )),
    }
}

type Tensors = (Vec<Entry>, BTreeMap<String, usize>);

fn read_tensors(cursor: &mut Cursor<'_>, n_tensors: u64, alignment: u64) -> Result<Tensors, Error> {
    let mut rows = Vec::new();
    let mut names = BTreeMap::new();
    for index in 0..n_tensors {
        let name = cursor.string(&|| format!("tensor {index}, name"))?;
        let field = |part: &str| format!("tensor {index} ('{}'), {part}", name.escape_debug());
        if name.is_empty() || name.len() > MAX_KEY_BYTES {
            return Err(Error::damaged(field("name"), format!("{} bytes long", name.len())));
        }
        let n_dims = cursor.u32(&|| field("number of dims"))?;
        if !(1..=4).contains(&n_dims) {
            return Err(Error::damaged(field("number of dims"), format!("{n_dims} (1 to 4 are allowed)")));
        }
        let dims: Vec<u64> = (0..n_dims).map(|_| cursor.u64(&|| field("dims"))).collect::<Result<_, _>>()?;
        let kind = Kind::from_id(cursor.u32(&|| field("type"))?);
        let offset = cursor.u64(&|| field("offset"))?;
        if names.insert(name.to_owned(), rows.len()).is_some() {
            return Err(Error::damaged(field("name"), "another tensor has the same name"));
        }
        rows.push(Row { name: name.to_owned(), dims, kind, offset });
    }
    let start = cursor.position() as u64;
    let start = start.checked_next_multiple_of(alignment).expect("because both are far below 2^63");
    let end = cursor.position() as u64 + cursor.remaining() as u64;
    spans::resolve(&mut rows, end.saturating_sub(start), alignment)?;
    let tensors = rows
        .into_iter()
        .enumerate()
        .map(|(index, row)| place(index, row, start, end, alignment))
        .collect::<Result<Vec<_>, _>>()?;
    check_overlaps(&tensors)?;
    Ok((tensors, names))
}

/// Turns a row of the table into a byte range of the file, every step checked.
fn place(
    index: usize,
    Row { name, dims, kind, offset }: Row,
    start: u64,
    end: u64,
    alignment: u64,
) -> Result<Entry, Error> {
    let field = |part: &str| format!("tensor {index} ('{}'), {part}", name.escape_debug());
    // i64::MAX is ggml's own bound; it also keeps every product below in range.
    let n_weights = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let Some(n_weights) = n_weights.filter(|n| (1..=i64::MAX as u64).contains(n)) else {
        return Err(Error::damaged(field("dims"), format!("{dims:?} is not a valid shape")));
    };
    if !offset.is_multiple_of(alignment) {
        return Err(Error::damaged(
            field("offset"),
            format!("{offset} is not a multiple of the alignment {alignment}"),
        ));
    }
    let first = start.checked_add(offset).filter(|&first| first <= end);
    let Some(first) = first else {
        let reason = format!("{offset} is behind the end of the file ({end} bytes, data from byte {start})");
        return Err(Error::damaged(field("offset"), reason));
    };
    let n_bytes = match kind.block() {
        None => 0,
        Some(block) if !dims[0].is_multiple_of(block) => {
            let reason = format!("rows of {} do not divide into blocks of {block} ({kind})", dims[0]);
            return Err(Error::damaged(field("dims"), reason));
        }
        Some(_) => kind.tensor_bytes(dims[0], n_weights / dims[0]).unwrap_or(u64::MAX),
    };
    let Some(last) = first.checked_add(n_bytes).filter(|&last| last <= end) else {
        let reason = format!(
            "{kind} {dims:?} takes {n_bytes} bytes from byte {first}, but the file ends at byte {end}"
        );
        return Err(Error::damaged(field("data"), reason));
    };
    // Both fit: they are at most the file's length, which is a usize.
    Ok(Entry { name, dims, kind, range: first as usize..last as usize })
}

fn check_overlaps(tensors: &[Entry]) -> Result<(), Error> {
    let mut by_place: Vec<&Entry> = tensors.iter().filter(|entry| !entry.range.is_empty()).collect();
    by_place.sort_by_key(|entry| entry.range.start);
    for pair in by_place.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            let field = format!("tensor '{}', offset", pair[1].name.escape_debug());
            let reason = format!("its bytes overlap those of '{}'", pair[0].name.escape_debug());
            return Err(Error::damaged(field, reason));
        }
    }
    Ok(())
}
