//! What gates and barriers synchronise with. The model check in `tests/barrier.rs` puts loom's versions in this place.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Condvar, Mutex};
pub(crate) use std::thread::yield_now;

/// Turns given to other threads between spinning and sleeping.
pub(crate) const YIELDS: u32 = 64;
