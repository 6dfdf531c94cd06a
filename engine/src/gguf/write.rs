//! Writing GGUF v3: the header first, then each tensor in the order announced. `synth`, `convert` and tests
//! use it; it streams, so a model never has to fit into memory.

use std::io::{self, Write};

use super::Kind;

/// Alignment of tensor data; the default of the format, and what the official file has.
const ALIGNMENT: u64 = 32;

/// A metadata value to write, in the types the official file uses.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // Each is the type that it names.
pub enum Item {
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A tensor to write: name, dims in GGUF's order (`dims[0]` runs fastest), type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its dims.
    pub dims: Vec<u64>,
    /// Its type, whose size must be known.
    pub kind: Kind,
}

impl Planned {
    /// Bytes of its data.
    ///
    /// # Panics
    /// If the shape is no whole number of blocks of a known type: whoever plans a tensor knows its type.
    pub fn n_bytes(&self) -> u64 {
        let n_rows = self.dims[1..].iter().product();
        self.kind
            .tensor_bytes(self.dims[0], n_rows)
            .expect("because planned tensors hold whole blocks of a known type")
    }
}

/// What a file will hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Metadata, in order.
    pub entries: Vec<(String, Item)>,
    /// Tensors, in order.
    pub tensors: Vec<Planned>,
}

/// A file being written: the header is out, the tensors follow one by one.
#[derive(Debug)]
pub struct Writer<'a, W> {
    out: W,
    tensors: std::slice::Iter<'a, Planned>,
    /// Bytes that the current tensor still needs, and the padding after them.
    missing: u64,
    padding: u64,
}

impl Plan {
    /// Adds a metadata entry.
    pub fn entry(&mut self, key: impl Into<String>, item: Item) {
        self.entries.push((key.into(), item));
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: impl Into<String>, dims: &[usize], kind: Kind) {
        let dims = dims.iter().map(|&dim| dim as u64).collect();
        self.tensors.push(Planned { name: name.into(), dims, kind });
    }

    /// Writes the header to `out`.
    pub fn begin<W: Write>(&self, out: W) -> io::Result<Writer<'_, W>> {
        let mut header = Vec::new();
        header.extend_from_slice(b"GGUF");
        header.extend_from_slice(&3u32.to_le_bytes());
        header.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        for (key, item) in &self.entries {
            text(&mut header, key);
            item.write(&mut header);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            text(&mut header, &tensor.name);
            header.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                header.extend_from_slice(&dim.to_le_bytes());
            }
            header.extend_from_slice(&tensor.kind.id().to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            offset += tensor.n_bytes().next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut out = out;
        out.write_all(&header)?;
        Ok(Writer { out, tensors: self.tensors.iter(), missing: 0, padding: 0 })
    }
}

impl<'a, W: Write> Writer<'a, W> {
    /// Moves on to the next tensor and returns it; `None` after the last.
    ///
    /// # Panics
    /// If the tensor before is not complete.
    pub fn advance(&mut self) -> io::Result<Option<&'a Planned>> {
        assert_eq!(self.missing, 0, "the tensor before lacks bytes");
        self.out.write_all(&[0; ALIGNMENT as usize][..self.padding as usize])?;
        self.padding = 0;
        let next = self.tensors.next();
        if let Some(tensor) = next {
            self.missing = tensor.n_bytes();
            self.padding = self.missing.next_multiple_of(ALIGNMENT) - self.missing;
        }
        Ok(next)
    }

    /// Writes bytes of the current tensor.
    ///
    /// # Panics
    /// If they are more than it takes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.missing.checked_sub(bytes.len() as u64);
        self.missing = left.expect("because no more bytes than the plan says may be written");
        self.out.write_all(bytes)
    }

    /// Ends the file; all tensors must have been written.
    ///
    /// # Panics
    /// If they have not.
    pub fn finish(mut self) -> io::Result<W> {
        assert!(self.advance()?.is_none(), "a tensor of the plan was not written");
        self.out.flush()?;
        Ok(self.out)
    }
}

impl Item {
    fn write(&self, out: &mut Vec<u8>) {
        let mut plain = |id: u32, bytes: &[u8]| {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(bytes);
        };
        match self {
            Self::U32(value) => plain(4, &value.to_le_bytes()),
            Self::I32(value) => plain(5, &value.to_le_bytes()),
            Self::F32(value) => plain(6, &value.to_le_bytes()),
            Self::Bool(value) => plain(7, &[u8::from(*value)]),
            Self::U64(value) => plain(10, &value.to_le_bytes()),
            Self::Text(value) => {
                plain(8, &[]);
                text(out, value);
            }
            Self::Texts(values) => {
                array(out, 8, values.len());
                values.iter().for_each(|value| text(out, value));
            }
            Self::I32s(values) => {
                array(out, 5, values.len());
                values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
            }
            Self::F32s(values) => {
                array(out, 6, values.len());
                values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
            }
        }
    }
}

fn array(out: &mut Vec<u8>, element: u32, length: usize) {
    out.extend_from_slice(&9u32.to_le_bytes());
    out.extend_from_slice(&element.to_le_bytes());
    out.extend_from_slice(&(length as u64).to_le_bytes());
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    out.extend_from_slice(value.as_bytes());
}
