//! The CPU as a machine that runs a step, with everything that it needs for it: kernels, threads, weights, activations, keys
//! and values. Every member of its pool runs the forward pass. Called by `machine`, and by `gpu`, which draws with it.

use crate::forward::{self, Plan};
use crate::head::Drawn;
use crate::kernel::Kernels;
use crate::kv::Storage;
use crate::model::Model;
use crate::ops::{Ops, Work};
use crate::pool::Pool;
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
        self.run(plan, |ops| forward::pass(ops))
    }

    /// The end of a step alone: what is drawn for each head, where its rows of x and the scores of heads that want them all
    /// were computed elsewhere.
    pub(crate) fn draw(&mut self, plan: &Plan<'_>) -> Vec<Option<Drawn>> {
        self.run(plan, |ops| ops.draw())
    }

    /// Has every member do its part.
    fn run(&mut self, plan: &Plan<'_>, part: impl Fn(&mut Ops<'_, '_>) + Sync) -> Vec<Option<Drawn>> {
        let Cpu { pool, kernels, model, storage, work } = self;
        let (kernels, model, storage, work) = (*kernels, &*model, &*storage, &*work);
        let results: Vec<Mutex<Option<Drawn>>> = plan.heads.iter().map(|_| Mutex::new(None)).collect();
        pool.run(&|member| part(&mut Ops::new(member, kernels, model, work, storage, plan, &results)));
        results
            .into_iter()
            .map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }
}
