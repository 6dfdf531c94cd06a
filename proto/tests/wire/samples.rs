//! The large samples: a batch as callers see it, and a quote.

use ternfleet_proto::message::*;
use ternfleet_proto::{TimeMs, UsdMicro};

use super::{batch_id, tenant};

pub(super) fn view() -> BatchView {
    BatchView {
        id: batch_id(),
        tenant: tenant(),
        name: Some("Märchen".into()),
        state: BatchState::PausedBudget,
        input_object: "in".into(),
        endpoint: None,
        output_object: None,
        error_object: None,
        proof_object: None,
        total: 10,
        completed: 3,
        failed: 1,
        total_is_final: true,
        created_at: TimeMs(1_000),
        started_at: Some(TimeMs(2_000)),
        cancelling_at: None,
        finalizing_at: None,
        ended_at: None,
        expires_at: TimeMs(86_400_000),
        options: BatchOptions {
            budget_usd_micro: Some(UsdMicro(5)),
            priority: -3,
            ..BatchOptions::default()
        },
        metadata: [("k".to_owned(), "v".to_owned())].into(),
        prompt_tokens: 30,
        completion_tokens: 40,
        wasted_tokens: 2,
        cost_usd_micro: UsdMicro(18),
        over_budget_usd_micro: UsdMicro(1),
        rate_tok_s: 20.5,
        finish_estimate: Some(TimeMs(9_000)),
        durability: Durability::Stored,
        replicas: 1,
        reason: Some("spent".into()),
        stall: Some(Stall {
            code: StallCode::BudgetSpent,
            reason: "spent".into(),
            advice: Some("raise it".into()),
        }),
        webhook: None,
        quote: None,
        model: Some("m".into()),
        cached_tokens: 2,
        outputs_expire_at: Some(TimeMs(7)),
        nondeterministic: true,
    }
}

pub(super) fn quote() -> Quote {
    let other = Alternative { deadline_ms: None, cost_usd_micro: UsdMicro(1), finish_p95_ms: TimeMs(9) };
    Quote {
        work_tokens: 10.0,
        work_tokens_low: 9.0,
        work_tokens_high: 11.0,
        cached_lines: 3,
        kept: false,
        binds: Some(Binds::Budget),
        explanation: "too dear".into(),
        cost_p50_usd_micro: UsdMicro(1),
        cost_p95_usd_micro: UsdMicro(2),
        bill_p50_usd_micro: Some(UsdMicro(1)),
        bill_p95_usd_micro: Some(UsdMicro(2)),
        finish_p50_ms: TimeMs(3),
        finish_p95_ms: TimeMs(4),
        bound_usd_micro: UsdMicro(1),
        pods: vec![PodsUsed {
            class: "c".into(),
            pods: 2,
            started: 1,
            from_ms: TimeMs(1),
            until_ms: TimeMs(3),
        }],
        classes: vec![ClassCost { class: "c".into(), usd_micro_per_million_tokens: UsdMicro(7) }],
        cheaper: Some(other),
        faster: None,
    }
}
