//! The interpreter's memory: buffers with bounds, and shadows that find races.
//!
//! A global address is a buffer's number and an offset in it, so that no kernel reaches another buffer by mistake. The shadow
//! of a piece of two bytes knows who wrote and who read it last in the present launch: two threads that touch it, one of
//! them writing, must be of one block with a barrier in between.

use crate::gpu::device::Pointer;

/// Bytes that share a shadow: no kernel writes single bytes.
const PIECE: usize = 2;
const OFFSET_BITS: u32 = 40;
/// More than one thread, or block.
const MANY: u32 = u32::MAX;

/// Who touches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Toucher {
    pub(super) launch: u32,
    pub(super) block: u32,
    /// Barriers of the block so far.
    pub(super) epoch: u32,
    pub(super) thread: u32,
}

impl Toucher {
    const NOBODY: Toucher = Toucher { launch: 0, block: 0, epoch: 0, thread: 0 };

    /// Whether what these two did is not ordered by a barrier.
    fn races(self, earlier: Toucher) -> bool {
        earlier.launch == self.launch
            && (earlier.block != self.block || earlier.epoch == self.epoch && earlier.thread != self.thread)
    }
}

#[derive(Debug, Clone, Copy)]
struct Shadow {
    written: Toucher,
    read: Toucher,
}

/// Bytes, and their shadows where they are watched.
#[derive(Debug)]
pub(super) struct Bytes {
    bytes: Vec<u8>,
    shadows: Option<Vec<Shadow>>,
}

impl Bytes {
    pub(super) fn new(len: usize, is_watched: bool) -> Bytes {
        let nobody = Shadow { written: Toucher::NOBODY, read: Toucher::NOBODY };
        Bytes { bytes: vec![0; len], shadows: is_watched.then(|| vec![nobody; len.div_ceil(PIECE)]) }
    }

    /// `size` bytes at an offset that is a multiple of it.
    fn check(&self, offset: u64, size: usize) -> Result<usize, String> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        if !at.is_multiple_of(size) {
            return Err(format!("offset {at} is not aligned to {size} bytes"));
        }
        match at.checked_add(size) {
            Some(end) if end <= self.bytes.len() => Ok(at),
            _ => Err(format!("{size} bytes at {at} are outside of {} bytes", self.bytes.len())),
        }
    }

    pub(super) fn load(&mut self, offset: u64, size: usize, who: Toucher) -> Result<u64, String> {
        let at = self.check(offset, size)?;
        if let Some(shadows) = &mut self.shadows {
            for shadow in &mut shadows[at / PIECE..(at + size).div_ceil(PIECE)] {
                if who.races(shadow.written) {
                    return Err(format!("reads what {:?} writes at {at}", shadow.written));
                }
                let read = &mut shadow.read;
                if read.launch != who.launch || read.block == who.block && read.epoch != who.epoch {
                    *read = who;
                } else if read.block != who.block {
                    read.block = MANY;
                } else if read.thread != who.thread {
                    read.thread = MANY;
                }
            }
        }
        let bytes = &self.bytes[at..at + size];
        Ok(bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)))
    }

    pub(super) fn store(&mut self, offset: u64, size: usize, value: u64, who: Toucher) -> Result<(), String> {
        let at = self.check(offset, size)?;
        if let Some(shadows) = &mut self.shadows {
            for shadow in &mut shadows[at / PIECE..(at + size).div_ceil(PIECE)] {
                if who.races(shadow.written) || who.races(shadow.read) {
                    return Err(format!("writes at {at} what {shadow:?} touches"));
                }
                shadow.written = who;
            }
        }
        self.bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(())
    }
}

/// All buffers of a device.
#[derive(Debug)]
pub(super) struct Global {
    buffers: Vec<Bytes>,
    is_watched: bool,
}

impl Global {
    pub(super) fn new(is_watched: bool) -> Global {
        Global { buffers: Vec::new(), is_watched }
    }

    pub(super) fn allocate(&mut self, bytes: usize) -> Pointer {
        self.buffers.push(Bytes::new(bytes, self.is_watched));
        Pointer((self.buffers.len() as u64) << OFFSET_BITS)
    }

    /// The buffer of an address, and the offset in it.
    pub(super) fn find(&mut self, address: u64) -> Result<(&mut Bytes, u64), String> {
        let number = (address >> OFFSET_BITS) as usize;
        let buffer = number.checked_sub(1).and_then(|number| self.buffers.get_mut(number));
        let buffer = buffer.ok_or_else(|| format!("address {address:#x} is in no buffer"))?;
        Ok((buffer, address & ((1 << OFFSET_BITS) - 1)))
    }

    /// Bytes that the host reads or writes.
    pub(super) fn bytes(&mut self, from: Pointer, len: usize) -> Result<&mut [u8], String> {
        let (buffer, offset) = self.find(from.0)?;
        let at = offset as usize;
        let all = buffer.bytes.len();
        buffer
            .bytes
            .get_mut(at..at + len)
            .ok_or_else(|| format!("{len} bytes at {at} are outside of {all} bytes"))
    }
}
