//! OpenAI's batch object, with one more object, `ternfleet`, for what OpenAI's has no place for.

use serde_json::{Value, json};

use super::Endpoint;
use crate::id::TimeMs;
use crate::message::{BatchState, BatchView};

/// OpenAI's window, where none was given.
const USUAL_WINDOW_MS: u64 = 24 * 3_600_000;

/// The batch as callers see it. Times are Unix seconds as OpenAI has them, `*_ms` in `ternfleet` are milliseconds; money
/// is whole millionths of a dollar in `*_usd_micro`.
pub fn batch_object(batch: &BatchView) -> Value {
    let seconds = |at: Option<TimeMs>| at.map(|at| at.0 / 1000);
    let ended_as = |state: BatchState| seconds(batch.ended_at.filter(|_| batch.state == state));
    let errors = match (&batch.reason, batch.state) {
        (Some(reason), BatchState::Failed) => json!({
            "object": "list",
            "data": [{ "code": "batch_failed", "message": reason, "param": null, "line": null }],
        }),
        _ => Value::Null,
    };
    json!({
        "id": batch.id,
        "object": "batch",
        // A batch for lines of every endpoint is none of OpenAI's; clients want a name all the same.
        "endpoint": batch.endpoint.unwrap_or(Endpoint::Completions),
        "errors": errors,
        "input_file_id": batch.input_object,
        "completion_window": window(batch.options.completion_window_ms.unwrap_or(USUAL_WINDOW_MS)),
        "status": status(batch.state),
        "output_file_id": batch.output_object,
        "error_file_id": batch.error_object,
        "created_at": batch.created_at.0 / 1000,
        "in_progress_at": seconds(batch.started_at),
        "expires_at": batch.expires_at.0 / 1000,
        "finalizing_at": seconds(batch.finalizing_at),
        "completed_at": ended_as(BatchState::Completed),
        "failed_at": ended_as(BatchState::Failed),
        "expired_at": ended_as(BatchState::Expired),
        "cancelling_at": seconds(batch.cancelling_at),
        "cancelled_at": ended_as(BatchState::Cancelled),
        "request_counts": { "total": batch.total, "completed": batch.completed, "failed": batch.failed },
        "metadata": batch.metadata,
        "model": batch.model,
        "usage": {
            "input_tokens": batch.prompt_tokens,
            "input_tokens_details": { "cached_tokens": batch.cached_tokens },
            "output_tokens": batch.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": batch.prompt_tokens + batch.completion_tokens,
        },
        "ternfleet": extension(batch),
    })
}

/// What OpenAI's object has no place for.
fn extension(batch: &BatchView) -> Value {
    let mut extension = json!({
        "name": batch.name,
        "tenant": batch.tenant,
        "state": batch.state,
        "reason": batch.reason,
        "stall": batch.stall,
        "total_is_final": batch.total_is_final,
        "wasted_tokens": batch.wasted_tokens,
        "cost_usd_micro": batch.cost_usd_micro,
        "over_budget_usd_micro": batch.over_budget_usd_micro,
        "budget_usd_micro": batch.options.budget_usd_micro,
        "rate_tok_s": batch.rate_tok_s,
        "finish_estimate_ms": batch.finish_estimate,
        "deadline_ms": batch.options.deadline,
        "priority": batch.options.priority,
        "durability": batch.durability,
        "replicas": batch.replicas,
        "created_at_ms": batch.created_at,
        "ended_at_ms": batch.ended_at,
        "quote": batch.quote,
        "proof_file_id": batch.proof_object,
    });
    if batch.nondeterministic {
        extension["deterministic"] = false.into();
    }
    extension
}

/// States that OpenAI's clients do not know are shown as the nearest they do; `ternfleet.state` has the exact one.
fn status(state: BatchState) -> &'static str {
    match state {
        BatchState::Validating => "validating",
        BatchState::InProgress | BatchState::PausedBudget => "in_progress",
        BatchState::Finalizing => "finalizing",
        BatchState::Completed => "completed",
        BatchState::Failed => "failed",
        BatchState::Expired => "expired",
        BatchState::Cancelling => "cancelling",
        BatchState::Cancelled => "cancelled",
    }
}

/// `24h`, `90m`, `45s`: the largest unit that divides it.
fn window(ms: u64) -> String {
    let s = ms.div_ceil(1000);
    match (s % 3600, s % 60) {
        (0, _) => format!("{}h", s / 3600),
        (_, 0) => format!("{}m", s / 60),
        _ => format!("{s}s"),
    }
}
