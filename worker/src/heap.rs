//! The program's allocator: the system's, with a reserve for the moment when memory runs out. A worker that is refused
//! memory goes on from the reserve, says that its host is at fault, gives back what it has, and ends. Without it the
//! process would abort in the middle of its jobs, and they would be suspected.
//!
//! Where the system promises more memory than it has, nothing is refused: the process is killed, and the coordinator
//! counts the crash against its host.
#![allow(unsafe_code)] // An allocator is unsafe by nature; this file holds nothing else.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// Enough to say it and to end: far more than a worker allocates in its last seconds.
const RESERVE: Layout = match Layout::from_size_align(8 << 20, 16) {
    Ok(layout) => layout,
    Err(_) => panic!("16 is a power of two"),
};

static SET_ASIDE: AtomicPtr<u8> = AtomicPtr::new(null_mut());
static RAN_OUT: AtomicBool = AtomicBool::new(false);

/// For the binary to name as its global allocator.
#[derive(Debug, Clone, Copy)]
pub struct Heap;

/// Sets the reserve aside. Without it, and without [`Heap`] as the allocator, memory that runs out ends the process.
pub(crate) fn set_aside() {
    // SAFETY: the layout has a size.
    let fresh = unsafe { System.alloc(RESERVE) };
    release(SET_ASIDE.swap(fresh, Ordering::AcqRel));
}

/// True once after the system has refused memory.
pub(crate) fn ran_out() -> bool {
    RAN_OUT.swap(false, Ordering::AcqRel)
}

fn release(reserve: *mut u8) {
    if !reserve.is_null() {
        // SAFETY: only `set_aside` makes it, with this layout and allocator, and whoever swaps it out has it alone.
        unsafe { System.dealloc(reserve, RESERVE) };
    }
}

/// Asks once more when memory was refused, after the reserve was given back to the system. It allocates nothing itself.
fn insist(ask: impl Fn() -> *mut u8) -> *mut u8 {
    let found = ask();
    if !found.is_null() {
        return found;
    }
    RAN_OUT.store(true, Ordering::Release);
    release(SET_ASIDE.swap(null_mut(), Ordering::AcqRel));
    ask()
}

// SAFETY: every block comes from the system's allocator and goes back to it, with the layout that it was asked for by.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the system's condition.
        insist(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        insist(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: as above; a refusal leaves the block as it was, so that it may be asked about again.
        insist(|| unsafe { System.realloc(block, layout, bytes) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_asked_for_again_from_the_reserve_and_said_once() {
        set_aside();
        let asked = std::cell::Cell::new(0);
        let block = insist(|| {
            asked.set(asked.get() + 1);
            // The reserve is there the first time, and given back before the second.
            if SET_ASIDE.load(Ordering::Acquire).is_null() {
                std::ptr::without_provenance_mut(16)
            } else {
                null_mut()
            }
        });
        assert_eq!((block.addr(), asked.get()), (16, 2));
        assert_eq!((ran_out(), ran_out()), (true, false));
    }
}
