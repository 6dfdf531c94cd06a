//! Buffers that all members of a run may reach, each writing a part of its own between two barriers.
#![allow(unsafe_code)] // Disjointness in time and place is the callers' protocol; each call states it.

use crate::LoadError;
use crate::memory::Region;
use std::ops::Range;

/// Bytes from which on a buffer asks for huge pages: a batch's columns lie further apart than pages of 4 KiB are long, and a
/// core keeps only some tens of addresses of pages at hand.
const HUGE_FROM: usize = 1 << 20;

/// A fixed buffer of plain values, aligned to pages. It takes memory when first used.
pub(crate) struct Shared<T> {
    region: Region,
    len: usize,
    kind: std::marker::PhantomData<T>,
}

/// Types of which every bit pattern, zero included, is a value.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for i8 {}
impl Plain for u8 {}
impl Plain for i16 {}
impl Plain for u16 {}
impl Plain for i32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for crate::kernel::Quantised {}
impl Plain for crate::head::Rounded {}
impl Plain for crate::kernel::State {}

impl<T: Plain> Shared<T> {
    /// `len` zeros for `what`; an error if there is no memory for them.
    pub(crate) fn new(len: usize, what: &'static str) -> Result<Shared<T>, LoadError> {
        let bytes = len.saturating_mul(size_of::<T>());
        let refused = |source| LoadError::Memory { what, bytes: bytes as u64, source };
        let region = Region::new(bytes, bytes >= HUGE_FROM).map_err(refused)?;
        Ok(Shared { region, len, kind: std::marker::PhantomData })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// # Safety
    /// No other thread writes into `range` while the result lives.
    pub(crate) unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the caller answers for other threads.
        unsafe { self.region.read(range) }
    }

    /// # Safety
    /// No other thread reads or writes `range`, and no other reference into it lives, while the result lives.
    #[allow(clippy::mut_from_ref)] // That is what this type is for.
    pub(crate) unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: as in `read`.
        unsafe { self.region.write(range) }
    }

    /// The first element, for kernels that write with a stride.
    pub(crate) fn pointer(&self) -> *mut T {
        self.region.element(0)
    }
}

impl<T> std::fmt::Debug for Shared<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Shared({} elements)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_refused_is_an_error_and_not_the_end() {
        for len in [1 << 58, usize::MAX / 2, usize::MAX] {
            let refused = Shared::<f32>::new(len, "a test").unwrap_err().to_string();
            assert!(refused.contains("bytes of memory for a test:"), "{refused}");
        }
    }
}
