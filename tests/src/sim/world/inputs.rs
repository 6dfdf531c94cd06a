//! What batches consist of, and what the coordinator's shell makes of messages before the core sees them.

use std::sync::Arc;

use ternfleet_coordinator::core::{BatchSlot, Content, Event, Fed, Task, Trace};
use ternfleet_proto::message::{Checkpoint, Failure, FailureCode, Generation, Input, Line, Prompt};
use ternfleet_proto::openai::Endpoint;

use super::super::scenario::BatchPlan;

pub(super) fn trace_of(checkpoint: Checkpoint) -> Trace {
    Trace {
        attempt: checkpoint.attempt,
        epoch: checkpoint.epoch,
        owner: checkpoint.owner,
        host: checkpoint.host,
        generated: checkpoint.generated.len() as u32,
        released: checkpoint.released,
    }
}

/// The batch's input: every eleventh line is blank, every seventh is none, the rest are requests.
pub(super) fn read_lines(plan: &BatchPlan, batch: BatchSlot, from: u32, lines: u32, skip: &[u64]) -> Event {
    let next = from.saturating_add(lines).min(plan.lines).max(from);
    let skipped = |index: u32| {
        let offset = index - from;
        skip.get((offset / 64) as usize).is_some_and(|word| word & (1 << (offset % 64)) != 0)
    };
    let fed = (from..next)
        .filter(|index| !skipped(*index))
        .map(|index| Fed { index, content: content(plan, index) });
    Event::Lines { batch, lines: fed.collect(), next, end: next >= plan.lines }
}

fn content(plan: &BatchPlan, index: u32) -> Content {
    let line =
        Line { custom_id: Some(format!("line-{}", index + 1)), endpoint: Endpoint::Completions, model: None };
    if index % 11 == 10 {
        return Content::Blank;
    }
    if index % 7 == 6 {
        let failure = Failure { code: FailureCode::InvalidRequest, message: "simulated".into() };
        return Content::Bad(Box::new((line, failure)));
    }
    let generation = Generation {
        prompt: Prompt::Tokens(vec![index; 12]),
        max_tokens: Some(plan.tokens_max),
        // Different for each line of each batch, as the coordinator's own seeds are.
        seed: plan.at_ms << 32 | u64::from(plan.lines) << 16 | u64::from(index),
        ..Generation::default()
    };
    let task = Task {
        line,
        input: Input::Inline(generation),
        constrained: false,
        tokens_estimate: 12 + plan.tokens_max,
        bytes: 100,
    };
    Content::Good(Arc::new(task))
}

/// Blank lines, which have no answer.
pub(in super::super) fn blanks(lines: u32) -> u32 {
    (0..lines).filter(|index| index % 11 == 10).count() as u32
}
