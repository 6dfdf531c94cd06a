//! Taking work back: at the end of a batch the fast workers run dry while slow ones still hold jobs that wait.
//!
//! Only *waiting* jobs move here; a move costs one message, no token. Jobs that run move when their worker is lost
//! or drained, and then resume from their checkpoint.

use super::{EngineKind, FleetSnapshot, WINDOW_S, usable};

/// Take one waiting job from one worker and hand it to another; both are indexes into the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub from: usize,
    pub to: usize,
}

/// Moves worth making when no job of this kind waits outside of the workers.
///
/// A job moves from the worker that would start it last to one with an empty slot, and only if it would otherwise
/// have waited for more than a quarter of a window: a trifle is not worth a new epoch. O(n log n) for n workers.
pub fn rebalance(fleet: &FleetSnapshot, kind: EngineKind) -> Vec<Move> {
    let able = |index: &usize| {
        let load = &fleet.workers[*index];
        load.kind == kind && usable(load.rate_mean_tok_s)
    };
    let mut empty: Vec<(usize, u32)> = (0..fleet.workers.len())
        .filter(able)
        .map(|index| (index, fleet.workers[index].slots.saturating_sub(fleet.workers[index].held_jobs)))
        .filter(|&(_, slots)| slots > 0)
        .collect();
    // Fastest receiver last, so that it is popped first; slots break ties whatever the order given.
    empty.sort_unstable_by(|a, b| {
        let (a, b) = (&fleet.workers[a.0], &fleet.workers[b.0]);
        a.rate_mean_tok_s.total_cmp(&b.rate_mean_tok_s).then_with(|| b.worker.cmp(&a.worker))
    });

    let mut donors: Vec<(f64, usize, u32)> = (0..fleet.workers.len())
        .filter(able)
        .filter_map(|index| {
            let load = &fleet.workers[index];
            let waiting = load.held_jobs.saturating_sub(load.slots);
            let waiting_s = load.held_tokens as f64 * f64::from(waiting)
                / f64::from(load.held_jobs.max(1))
                / load.rate_mean_tok_s;
            (waiting > 0 && waiting_s > WINDOW_S / 4.0).then_some((waiting_s, index, waiting))
        })
        .collect();
    donors.sort_unstable_by(|a, b| {
        b.0.total_cmp(&a.0).then_with(|| fleet.workers[a.1].worker.cmp(&fleet.workers[b.1].worker))
    });

    let mut moves = Vec::new();
    for (_, from, waiting) in donors {
        for _ in 0..waiting {
            let Some(receiver) = empty.last_mut() else { return moves };
            moves.push(Move { from, to: receiver.0 });
            receiver.1 -= 1;
            if receiver.1 == 0 {
                empty.pop();
            }
        }
    }
    moves
}
