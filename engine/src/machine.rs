//! What computes the steps of an engine: the CPU, or a GPU with the CPU beside it. The engine knows steps and their results
//! alone.

use crate::cpu::Cpu;
use crate::forward::Plan;
use crate::gpu::Gpu;
use crate::head::{Drawn, HeadCounters};
use crate::kv::PageId;
use crate::profile::Profile;

/// One of them.
#[derive(Debug)]
pub(crate) enum Machine {
    Cpu(Box<Cpu>),
    Gpu(Box<Gpu>),
}

impl Machine {
    /// Runs one step; what was drawn for each head.
    pub(crate) fn step(&mut self, plan: &Plan<'_>) -> Vec<Option<Drawn>> {
        match self {
            Machine::Cpu(cpu) => cpu.step(plan),
            Machine::Gpu(gpu) => gpu.step(plan),
        }
    }

    /// Copies all positions of a page of keys and values.
    pub(crate) fn copy_page(&mut self, from: PageId, to: PageId) {
        match self {
            Machine::Cpu(cpu) => cpu.storage.copy(from, to),
            Machine::Gpu(gpu) => gpu.copy_page(from, to),
        }
    }

    /// The scores of a head without a draw, after a step that had no others.
    pub(crate) fn scores(&self, head: usize) -> &[f32] {
        self.cpu().work.head.scores(head)
    }

    /// What the output head did so far.
    pub(crate) fn head_counters(&self) -> HeadCounters {
        self.cpu().work.head.counters()
    }

    /// Where the time of all steps so far went.
    pub(crate) fn profile(&self) -> Profile {
        self.cpu().work.clocks.read()
    }

    /// The CPU's part of it.
    pub(crate) fn cpu(&self) -> &Cpu {
        match self {
            Machine::Cpu(cpu) => cpu,
            Machine::Gpu(gpu) => &gpu.cpu,
        }
    }

    pub(crate) fn cpu_mut(&mut self) -> &mut Cpu {
        match self {
            Machine::Cpu(cpu) => cpu,
            Machine::Gpu(gpu) => &mut gpu.cpu,
        }
    }
}
