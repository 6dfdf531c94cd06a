//! Where a step's time goes: seconds a kind of operation, and seconds of waiting for other threads, as the first thread saw it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Embed,
    Norm,
    Product,
    Rotate,
    Attend,
    Head,
    Sample,
    Wait,
}

const N_OPERATIONS: usize = 8;

/// Seconds since loading, by kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Profile {
    pub embed_s: f64,
    /// Norms and rounding to int8.
    pub norm_s: f64,
    /// Ternary products.
    pub product_s: f64,
    /// Rotary positions, and writing keys and values.
    pub rotate_s: f64,
    pub attend_s: f64,
    /// Output scores.
    pub head_s: f64,
    pub sample_s: f64,
    /// At the barriers between operations.
    pub wait_s: f64,
}

impl Profile {
    /// Both together.
    pub fn plus(&self, other: &Profile) -> Profile {
        Profile {
            embed_s: self.embed_s + other.embed_s,
            norm_s: self.norm_s + other.norm_s,
            product_s: self.product_s + other.product_s,
            rotate_s: self.rotate_s + other.rotate_s,
            attend_s: self.attend_s + other.attend_s,
            head_s: self.head_s + other.head_s,
            sample_s: self.sample_s + other.sample_s,
            wait_s: self.wait_s + other.wait_s,
        }
    }

    /// What came on top of an earlier reading.
    pub fn since(&self, earlier: &Profile) -> Profile {
        Profile {
            embed_s: self.embed_s - earlier.embed_s,
            norm_s: self.norm_s - earlier.norm_s,
            product_s: self.product_s - earlier.product_s,
            rotate_s: self.rotate_s - earlier.rotate_s,
            attend_s: self.attend_s - earlier.attend_s,
            head_s: self.head_s - earlier.head_s,
            sample_s: self.sample_s - earlier.sample_s,
            wait_s: self.wait_s - earlier.wait_s,
        }
    }
}

/// The clocks behind a [`Profile`].
#[derive(Debug, Default)]
pub(crate) struct Clocks([AtomicU64; N_OPERATIONS]);

impl Clocks {
    /// Adds the time since `start` to an operation, and starts the next one.
    pub(crate) fn lap(&self, operation: Operation, start: &mut Instant) {
        let now = Instant::now();
        self.0[operation as usize].fetch_add((now - *start).as_nanos() as u64, Ordering::Relaxed);
        *start = now;
    }

    pub(crate) fn read(&self) -> Profile {
        let seconds = |operation: Operation| self.0[operation as usize].load(Ordering::Relaxed) as f64 * 1e-9;
        Profile {
            embed_s: seconds(Operation::Embed),
            norm_s: seconds(Operation::Norm),
            product_s: seconds(Operation::Product),
            rotate_s: seconds(Operation::Rotate),
            attend_s: seconds(Operation::Attend),
            head_s: seconds(Operation::Head),
            sample_s: seconds(Operation::Sample),
            wait_s: seconds(Operation::Wait),
        }
    }
}
