//! Metadata values. Arrays stay in the file and are walked when asked for: a vocabulary is never held twice.

use super::Error;
use super::cursor::Cursor;

/// The type of an array's elements, by GGUF's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it all.
pub enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

impl Element {
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Fixed size in bytes; for a string, the least it can take (its length field).
    pub(super) fn least_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
        }
    }
}

/// A metadata array: where its elements are in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Array {
    /// The elements' type.
    pub element: Element,
    /// How many there are.
    pub len: u64,
    /// First and one-past-last byte of the elements, from the file's start; already checked.
    pub(super) start: usize,
    pub(super) end: usize,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer type.
    Unsigned(u64),
    /// Any signed integer type.
    Signed(i64),
    /// f32 or f64; an f32 survives the way to f64 and back.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// An array; read it by `File::strings` or `File::integers`.
    Array(Array),
}

impl Value {
    /// What kind of value this is, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::Text(_) => "text",
            Self::Array(_) => "an array",
        }
    }

    /// The value as a count or an id: any integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// The value as a float.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::Float(value) => Some(value as f32),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }
}

/// Reads the value that follows a key.
pub(super) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Error> {
    let field = || format!("metadata '{key}'");
    let id = cursor.u32(&field)?;
    if id == 9 {
        return read_array(cursor, key).map(Value::Array);
    }
    let Some(element) = Element::from_id(id) else {
        return Err(Error::damaged(field(), format!("type {id} does not exist (0 to 12 do)")));
    };
    if element == Element::String {
        return cursor.string(&field).map(|text| Value::Text(text.to_owned()));
    }
    let bytes = cursor.take(element.least_bytes(), &field)?;
    scalar(element, bytes).ok_or_else(|| Error::damaged(field(), format!("{} is not a boolean", bytes[0])))
}

/// Decodes one element of fixed size; `None` for a byte that is no truth value (or for a string).
pub(super) fn scalar(element: Element, bytes: &[u8]) -> Option<Value> {
    let mut wide = [0u8; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let raw = u64::from_le_bytes(wide);
    Some(match element {
        Element::U8 | Element::U16 | Element::U32 | Element::U64 => Value::Unsigned(raw),
        Element::I8 => Value::Signed(i64::from(raw as u8 as i8)),
        Element::I16 => Value::Signed(i64::from(raw as u16 as i16)),
        Element::I32 => Value::Signed(i64::from(raw as u32 as i32)),
        Element::I64 => Value::Signed(raw as i64),
        Element::F32 => Value::Float(f64::from(f32::from_bits(raw as u32))),
        Element::F64 => Value::Float(f64::from_bits(raw)),
        Element::Bool if raw <= 1 => Value::Bool(raw == 1),
        Element::Bool | Element::String => return None,
    })
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, Error> {
    let field = || format!("metadata '{key}' (array)");
    let id = cursor.u32(&field)?;
    let Some(element) = Element::from_id(id) else {
        let reason =
            if id == 9 { "arrays of arrays are not used by any model" } else { "no such element type" };
        return Err(Error::damaged(field(), format!("element type {id}: {reason}")));
    };
    let len = cursor.u64(&field)?;
    let least = len.checked_mul(element.least_bytes()).filter(|&bytes| bytes <= cursor.remaining() as u64);
    let Some(least) = least else {
        return Err(Error::damaged(
            field(),
            format!("{len} elements cannot fit into the {} bytes that are left", cursor.remaining()),
        ));
    };
    let start = cursor.position();
    if element == Element::String {
        for index in 0..len {
            cursor.string_bytes(&|| format!("metadata '{key}', element {index}"))?;
        }
    } else {
        cursor.take(least, &field)?;
    }
    Ok(Array { element, len, start, end: cursor.position() })
}
