//! A reader that walks over the header's bytes and never past their end.

use super::Error;

/// Little-endian reads over untrusted bytes; each read names the field it is for.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Bytes left to read: the bound of every count in the header.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Takes `n` bytes. The field's name is built only on failure, since half a million strings pass here.
    pub(super) fn take(&mut self, n: u64, field: &dyn Fn() -> String) -> Result<&'a [u8], Error> {
        let have = self.remaining();
        match usize::try_from(n) {
            Ok(n) if n <= have => {
                let taken = &self.bytes[self.at..self.at + n];
                self.at += n;
                Ok(taken)
            }
            _ => Err(Error::damaged(
                field(),
                format!("{n} bytes are needed at byte {}, but only {have} are left", self.at),
            )),
        }
    }

    fn array<const N: usize>(&mut self, field: &dyn Fn() -> String) -> Result<[u8; N], Error> {
        let taken = self.take(N as u64, field)?;
        Ok(taken.try_into().expect("because take returned exactly N bytes"))
    }

    pub(super) fn u32(&mut self, field: &dyn Fn() -> String) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u64(&mut self, field: &dyn Fn() -> String) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A string as GGUF writes it: its length in bytes as u64, then the bytes.
    pub(super) fn string_bytes(&mut self, field: &dyn Fn() -> String) -> Result<&'a [u8], Error> {
        let length = self.u64(field)?;
        self.take(length, field)
    }

    /// The same, which must be UTF-8.
    pub(super) fn string(&mut self, field: &dyn Fn() -> String) -> Result<&'a str, Error> {
        let bytes = self.string_bytes(field)?;
        std::str::from_utf8(bytes).map_err(|fault| Error::damaged(field(), format!("not UTF-8: {fault}")))
    }
}
