//! What computes a step, with everything that it needs for it: kernels, threads, weights, activations, keys and values.
//!
//! [`Cpu`] runs the forward pass on every member of its pool. The engine knows steps and their results alone.

use crate::forward::{self, Plan};
use crate::head::{Drawn, HeadCounters};
use crate::kernel::Kernels;
use crate::kv::Storage;
use crate::model::Model;
use crate::ops::{Ops, Work};
use crate::pool::Pool;
use crate::profile::Profile;
use std::sync::{Mutex, PoisonError};

/// The threads of this machine.
#[derive(Debug)]
pub(crate) struct Cpu {
    pub(crate) pool: Pool,
    pub(crate) kernels: Kernels,
    pub(crate) model: Model,
    pub(crate) storage: Storage,
    pub(crate) work: Work,
}

impl Cpu {
    /// Runs one step; what was drawn for each head.
    pub(crate) fn step(&mut self, plan: &Plan<'_>) -> Vec<Option<Drawn>> {
        let Cpu { pool, kernels, model, storage, work } = self;
        let (kernels, model, storage, work) = (*kernels, &*model, &*storage, &*work);
        let results: Vec<Mutex<Option<Drawn>>> = plan.heads.iter().map(|_| Mutex::new(None)).collect();
        pool.run(&|member| {
            forward::pass(&mut Ops::new(member, kernels, model, work, storage, plan, &results));
        });
        results
            .into_iter()
            .map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }

    /// The scores of a head without a draw, after a step that had no others.
    pub(crate) fn scores(&self, head: usize) -> &[f32] {
        self.work.head.scores(head)
    }

    /// What the output head did so far.
    pub(crate) fn head_counters(&self) -> HeadCounters {
        self.work.head.counters()
    }

    /// Where the time of all steps so far went.
    pub(crate) fn profile(&self) -> Profile {
        self.work.clocks.read()
    }
}
