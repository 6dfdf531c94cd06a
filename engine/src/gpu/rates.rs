//! What a device can do at best: how fast it reads its memory, multiplies on its tensor cores, and begins a launch. These are
//! the ceilings of `docs/gpu.md`'s sums; `doctor` shows them. Called by `gpu`.

use super::device::{Arg, Device, Fault, Grid, Pointer};
use std::time::Instant;

const THREADS: u32 = 256;
const BYTES_OF_FOUR: usize = 16;
/// By one round of a warp.
const MACS: u64 = 8 * 16 * 8 * 32;

/// How much is done to measure them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// More than any cache of the device holds.
    pub(super) bytes: usize,
    pub(super) blocks: u32,
    pub(super) rounds: u32,
    pub(super) launches: u32,
}

impl Effort {
    /// Some tens of milliseconds on a card.
    pub(super) const CARD: Effort = Effort { bytes: 512 << 20, blocks: 2048, rounds: 4096, launches: 1000 };
}

/// The rates of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// 10^9 bytes a second.
    pub read_gb_s: f64,
    /// Of int8, by the instruction that the ternary products use.
    pub mac_per_s: f64,
    /// Microseconds from one launch to the next of a kernel that does nearly nothing.
    pub launch_us: f64,
}

/// Measures them; a device that counts otherwise is at fault.
pub(super) fn measure(device: &mut dyn Device, effort: Effort) -> Result<Rates, Fault> {
    let Effort { bytes, blocks, rounds, launches } = effort;
    let n_threads = blocks * THREADS;
    let out = device.allocate(4 * n_threads as usize)?;
    let words = device.allocate(bytes)?;
    let n_words = (bytes / BYTES_OF_FOUR) as u32;
    device.upload(words.plus(bytes - 4), &0x0100_0000u32.to_le_bytes())?;

    let seen = n_words.wrapping_sub(1) % n_threads;
    let read = [Arg::Pointer(words), Arg::Pointer(out), Arg::Word(n_words), Arg::Word(n_threads)];
    let read_s = seconds(device, "read_all", blocks, &read, 1, out)?;
    expect(device, out.plus(4 * seen as usize), 0x0100_0000)?;

    let multiply = [Arg::Pointer(out), Arg::Word(rounds)];
    let multiply_s = seconds(device, "multiply_all", blocks, &multiply, 1, out)?;
    expect(device, out.plus(4 * (n_threads as usize - 1)), 8 * 4 * 32 * rounds)?;

    let nothing = [Arg::Pointer(out), Arg::Word(0)];
    let launch_s = seconds(device, "multiply_all", 1, &nothing, launches, out)? / f64::from(launches);
    let macs = u64::from(n_threads / 32) * u64::from(rounds) * MACS;
    Ok(Rates {
        read_gb_s: bytes as f64 / read_s / 1e9,
        mac_per_s: macs as f64 / multiply_s,
        launch_us: launch_s * 1e6,
    })
}

/// How long so many launches take, once the kernel has run before.
fn seconds(
    device: &mut dyn Device,
    kernel: &'static str,
    blocks: u32,
    args: &[Arg],
    launches: u32,
    out: Pointer,
) -> Result<f64, Fault> {
    let grid = || Grid { blocks: [blocks, 1, 1], threads: THREADS };
    // A download waits for all launches.
    let mut word = [0; 4];
    device.launch(kernel, grid(), args)?;
    device.download(out, &mut word)?;
    let start = Instant::now();
    for _ in 0..launches {
        device.launch(kernel, grid(), args)?;
    }
    device.download(out, &mut word)?;
    Ok(start.elapsed().as_secs_f64())
}

fn expect(device: &mut dyn Device, at: Pointer, expected: u32) -> Result<(), Fault> {
    let mut found = [0; 4];
    device.download(at, &mut found)?;
    let found = u32::from_le_bytes(found);
    if found == expected {
        return Ok(());
    }
    Err(Fault(format!(
        "{} counts {found} instead of {expected}: it is defective, or its driver is",
        device.name()
    )))
}
