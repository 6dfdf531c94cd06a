//! Anonymous memory for weights and keys and values: zeroed, page-aligned, touched first by whoever uses it.
#![allow(unsafe_code)] // mmap, and views of its bytes as plain numbers.

use crate::pool::Plain;
use std::ops::Range;

/// A zeroed anonymous mapping. Pages take memory when they are first written.
pub(crate) struct Region {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone; shared writes go through `write`, whose callers keep parts disjoint.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

const HUGE_PAGE: usize = 2 << 20;

impl Region {
    /// Maps `bytes` zeros; `huge_pages` asks the kernel for pages of 2 MiB, which it may ignore.
    pub(crate) fn new(bytes: usize, huge_pages: bool) -> std::io::Result<Region> {
        let bytes =
            bytes.max(1).checked_next_multiple_of(HUGE_PAGE).ok_or(std::io::ErrorKind::OutOfMemory)?;
        // SAFETY: a private anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        #[cfg(target_os = "linux")]
        {
            let advice = if huge_pages { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            // SAFETY: the range is the mapping just made. Refusal is harmless: pages stay small.
            unsafe { libc::madvise(start, bytes, advice) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = huge_pages;
        Ok(Region { start: start.cast(), bytes })
    }

    /// # Safety
    /// No thread writes into `range` while the result lives.
    pub(crate) unsafe fn read<T: Plain>(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.bytes / size_of::<T>());
        // SAFETY: in bounds and aligned (mappings start on a page); every bit pattern is a value.
        unsafe { std::slice::from_raw_parts(self.start.cast::<T>().add(range.start), range.len()) }
    }

    /// The element at `index`, for writes of single elements between those of other threads.
    pub(crate) fn element<T: Plain>(&self, index: usize) -> *mut T {
        assert!(index < self.bytes / size_of::<T>());
        // SAFETY: in bounds.
        unsafe { self.start.cast::<T>().add(index) }
    }

    /// # Safety
    /// No other thread reads or writes `range`, and no other reference into it lives, while the result lives.
    #[allow(clippy::mut_from_ref)] // Members of the pool write disjoint parts.
    pub(crate) unsafe fn write<T: Plain>(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.bytes / size_of::<T>());
        // SAFETY: as in `read`, and the caller answers for other threads.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<T>().add(range.start), range.len()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size, and no reference outlives `self`.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Region({} bytes)", self.bytes)
    }
}

/// Tells the kernel that file-backed `bytes` are not needed for now: they leave resident memory, and come back from the
/// page cache when read again.
///
/// # Safety
/// `bytes` are in a read-only mapping of a file: of other memory this would lose the contents.
pub(crate) unsafe fn release_file_pages(bytes: &[u8]) {
    const PAGE: usize = 4096;
    let start = (bytes.as_ptr() as usize).next_multiple_of(PAGE);
    let end = (bytes.as_ptr() as usize + bytes.len()) / PAGE * PAGE;
    #[cfg(target_os = "linux")]
    if start < end {
        // SAFETY: the whole pages lie inside `bytes`, whose contents the file still holds, as the caller promises.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, end);
}
