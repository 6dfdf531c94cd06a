//! Buffers that all members of a run may reach, each writing a part of its own between two barriers.
#![allow(unsafe_code)] // Disjointness in time and place is the callers' protocol; each call states it.

use std::cell::UnsafeCell;
use std::ops::Range;

/// A fixed buffer of plain values, aligned to cache lines.
pub(crate) struct Shared<T> {
    cells: Box<[Line]>,
    len: usize,
    kind: std::marker::PhantomData<T>,
}

#[repr(align(64))]
struct Line(#[allow(dead_code)] UnsafeCell<[u8; 64]>);

/// Types of which every bit pattern, zero included, is a value.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for i8 {}
impl Plain for u8 {}
impl Plain for i16 {}
impl Plain for u16 {}
impl Plain for i32 {}
impl Plain for f32 {}
impl Plain for crate::kernel::Quantised {}
impl Plain for crate::head::Rounded {}
impl Plain for crate::kernel::State {}

// SAFETY: access goes through unsafe methods whose callers promise that no part is written by one thread while another
// reads or writes it.
unsafe impl<T: Plain> Sync for Shared<T> {}

impl<T: Plain> Shared<T> {
    /// `len` zeros.
    pub(crate) fn new(len: usize) -> Shared<T> {
        let lines = (len * size_of::<T>()).div_ceil(64);
        let cells = (0..lines).map(|_| Line(UnsafeCell::new([0; 64]))).collect();
        Shared { cells, len, kind: std::marker::PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// # Safety
    /// No other thread writes into `range` while the result lives.
    pub(crate) unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds; all bit patterns are values; the caller answers for other threads.
        unsafe { std::slice::from_raw_parts(self.pointer().add(range.start), range.len()) }
    }

    /// # Safety
    /// No other thread reads or writes `range`, and no other reference into it lives, while the result lives.
    #[allow(clippy::mut_from_ref)] // That is what this type is for.
    pub(crate) unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: as in `read`; the cells make writing through a shared reference sound.
        unsafe { std::slice::from_raw_parts_mut(self.pointer().add(range.start), range.len()) }
    }

    /// The first element, for kernels that write with a stride.
    pub(crate) fn pointer(&self) -> *mut T {
        self.cells.as_ptr().cast::<T>().cast_mut()
    }
}

impl<T> std::fmt::Debug for Shared<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Shared({} elements)", self.len)
    }
}
