//! A device that is an interpreter of PTX: it runs the kernels that ship, on machines without a GPU. For tests and for a look
//! at what a card should compute; thousands of times slower than one.
//!
//! A block's warps run in turn between barriers; a warp's 32 threads in lockstep, those that are behind first where their ways
//! part. It checks that addresses are in their buffers and aligned, that threads meet where they must, and, where it watches,
//! that no two threads touch the same bytes without a barrier. Floats are those of this machine: IEEE 754, as the PTX says.

mod memory;
mod warp;

use crate::gpu::device::{Arg, Device, Fault, Grid, Pointer};
use crate::gpu::ptx::{self, Kernel, Kind};
use memory::{Bytes, Global};
use std::collections::BTreeMap;
use warp::{Pause, Setting, Warp};

/// What it says that it has: enough for small models.
const FREE_BYTES: u64 = 1 << 30;

/// The interpreter and its memory.
#[derive(Debug)]
pub(crate) struct Interpreter {
    kernels: BTreeMap<String, Kernel>,
    global: Global,
    is_watched: bool,
    launches: u32,
}

impl Interpreter {
    /// `is_watched`: whether it looks for races, which takes memory and time.
    pub(crate) fn new(ptx: &str, is_watched: bool) -> Result<Interpreter, Fault> {
        let kernels = ptx::read(ptx).map_err(Fault)?;
        Ok(Interpreter { kernels, global: Global::new(is_watched), is_watched, launches: 0 })
    }
}

impl Device for Interpreter {
    fn name(&self) -> String {
        "interpreter of PTX".to_owned()
    }

    fn free_bytes(&self) -> Result<u64, Fault> {
        Ok(FREE_BYTES)
    }

    fn allocate(&mut self, bytes: usize) -> Result<Pointer, Fault> {
        Ok(self.global.allocate(bytes))
    }

    fn upload(&mut self, to: Pointer, bytes: &[u8]) -> Result<(), Fault> {
        self.global.bytes(to, bytes.len()).map_err(Fault)?.copy_from_slice(bytes);
        Ok(())
    }

    fn download(&mut self, from: Pointer, to: &mut [u8]) -> Result<(), Fault> {
        to.copy_from_slice(self.global.bytes(from, to.len()).map_err(Fault)?);
        Ok(())
    }

    fn copy(&mut self, from: Pointer, to: Pointer, bytes: usize) -> Result<(), Fault> {
        let copied = self.global.bytes(from, bytes).map_err(Fault)?.to_vec();
        self.upload(to, &copied)
    }

    fn launch(&mut self, name: &'static str, grid: Grid, args: &[Arg]) -> Result<(), Fault> {
        let Interpreter { kernels, global, is_watched, launches } = self;
        let kernel = kernels.get(name).ok_or_else(|| Fault(format!("there is no kernel {name}")))?;
        let parameters = parameters(kernel, args).map_err(|fault| Fault(format!("{name}: {fault}")))?;
        let [x, y, z] = grid.blocks;
        if grid.threads != kernel.max_threads || x == 0 || y == 0 || z == 0 || y.max(z) > u32::from(u16::MAX)
        {
            return Err(Fault(format!("{name}: it cannot run as {grid:?}")));
        }
        *launches += 1;
        let mut warps: Vec<Warp> =
            (0..grid.threads.div_ceil(32)).map(|index| Warp::new(kernel, index)).collect();
        for block in 0..x * y * z {
            let place = [block % x, block / x % y, block / (x * y)];
            let mut shared = Bytes::new(kernel.shared_bytes, *is_watched);
            let (launch, parameters) = (*launches, &parameters);
            let (global, shared) = (&mut *global, &mut shared);
            let mut setting = Setting { kernel, parameters, place, launch, block, epoch: 0, global, shared };
            run_block(&mut warps, &mut setting)
                .map_err(|fault| Fault(format!("{name}, block {place:?}: {fault}")))?;
        }
        Ok(())
    }
}

/// Runs the warps of a block from barrier to barrier.
fn run_block(warps: &mut [Warp], setting: &mut Setting<'_>) -> Result<(), String> {
    warps.iter_mut().for_each(|warp| warp.restart(setting));
    loop {
        let mut waiting = 0;
        for warp in warps.iter_mut() {
            waiting += usize::from(warp.run(setting)? == Pause::Barrier);
        }
        if waiting == 0 {
            return Ok(());
        }
        if waiting < warps.len() {
            return Err(format!(
                "{waiting} of {} warps wait at a barrier, the others have ended",
                warps.len()
            ));
        }
        setting.epoch += 1;
    }
}

/// The arguments as bits, checked against the kernel's parameters.
fn parameters(kernel: &Kernel, args: &[Arg]) -> Result<Vec<u64>, String> {
    if args.len() != kernel.parameters.len() {
        return Err(format!("{} arguments for {} parameters", args.len(), kernel.parameters.len()));
    }
    let values =
        args.iter().zip(&kernel.parameters).enumerate().map(|(i, (arg, ty))| match (arg, ty.kind, ty.bits) {
            (Arg::Pointer(pointer), Kind::Unsigned, 64) => Ok(pointer.0),
            (Arg::Word(word), Kind::Unsigned, 32) => Ok(u64::from(*word)),
            (Arg::Float(value), Kind::Float, 32) => Ok(u64::from(value.to_bits())),
            _ => Err(format!("argument {i}, {arg:?}, is not of type {ty:?}")),
        });
    values.collect()
}
