//! `ternfleet status ID`: one batch.

use std::process::ExitCode;

use clap::Args;

use ternfleet_proto::message::{BatchView, Durability, WebhookState};
use ternfleet_proto::{TimeMs, UsdMicro, openai};

use crate::client::Fleet;
use crate::connection::Connection;
use crate::named::Named;
use crate::output::{say, say_json};
use crate::progress::describe;
use crate::report::{elapsed, printable};
use crate::{date, span, stop};

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Batch id, the beginning of it, or the batch name
    #[arg(value_name = "BATCH")]
    id: Named,
    /// Print the batch object as JSON: OpenAI's fields, and `ternfleet`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Status {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let batch = stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            self.id.find(&fleet).await
        })?;
        if self.json { say_json(&openai::batch_object(&batch)) } else { say(&page(&batch)) }?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A few lines for people.
pub(crate) fn page(batch: &BatchView) -> String {
    let mut lines = vec![batch.id.to_string()];
    if let Some(name) = &batch.name {
        lines.push(format!("  name      {}", printable(name)));
    }
    lines.push(format!("  state     {}", crate::progress::state_name(batch.state)));
    let elapsed = span::short(elapsed(batch, TimeMs::now()));
    lines.push(format!("  created   {} UTC, {elapsed} elapsed", date::utc(batch.created_at)));
    lines.push(format!("  progress  {}", describe(batch, TimeMs::now())));
    lines.push(format!(
        "  tokens    {} in, {} out, {} wasted",
        batch.prompt_tokens, batch.completion_tokens, batch.wasted_tokens
    ));
    let over = match batch.over_budget_usd_micro {
        UsdMicro::ZERO => String::new(),
        over => format!(", and {over} over budget that is not charged"),
    };
    lines.push(format!("  cost      {}{over}", batch.cost_usd_micro));
    lines.extend(quoted(batch));
    lines.push(format!("  stored    {}", durability(batch)));
    if let Some(webhook) = &batch.webhook {
        let state = match webhook {
            WebhookState::Waiting => "will be called at the end".to_owned(),
            WebhookState::Calling => "being called".to_owned(),
            WebhookState::Delivered => "delivered".to_owned(),
            WebhookState::GivenUp(reason) => format!("failed: {}", printable(reason)),
        };
        lines.push(format!("  webhook   {state}"));
    }
    match (&batch.stall, &batch.reason) {
        (Some(stall), _) => {
            lines.push(format!("  waiting   {}", printable(&stall.reason)));
            lines.extend(stall.advice.iter().map(|advice| format!("            → {}", printable(advice))));
        }
        (None, Some(reason)) => lines.push(format!("  reason    {}", printable(reason))),
        (None, None) => {}
    }
    lines.join("\n")
}

/// What was quoted, beside what has come of it.
fn quoted(batch: &BatchView) -> Option<String> {
    let quote = batch.quote.as_ref()?;
    let span = |at: TimeMs| match at.since(batch.created_at) {
        never if never.as_secs() > 10 * 365 * 86_400 => "never".to_owned(),
        span => span::short(span),
    };
    let (cost, cost_max) = (quote.cost_p50_usd_micro, quote.cost_p95_usd_micro);
    let mut line = match (span(quote.finish_p50_ms), span(quote.finish_p95_ms)) {
        (likely, _) if likely == "never" => {
            format!("  quoted    {cost} for a part of it, not finished in time")
        }
        (likely, late) => {
            format!("  quoted    {cost} (p50), {cost_max} (p95), done after {likely} (p50), {late} (p95)")
        }
    };
    if let Some(binds) = quote.binds {
        line += &format!(", at risk: {}", binds.as_str());
    }
    // The batch is not billed for pods that start and end.
    let bill = quote.bill_p50_usd_micro.unwrap_or(cost);
    if bill < cost {
        line += &format!(", {bill} of it for the batch");
    }
    if let Some(ended) = batch.ended_at {
        let ratio = batch.cost_usd_micro.0 as f64 / bill.0.max(1) as f64;
        line += &format!("; actual: {} ({ratio:.2} x) after {}", batch.cost_usd_micro, span(ended));
    }
    Some(line)
}

/// What "accepted" rests on, in words.
pub(crate) fn durability(batch: &BatchView) -> String {
    match batch.durability {
        Durability::Memory => "in the memory of NATS only".to_owned(),
        Durability::Stored => {
            format!("on {} of {0} servers, periodic fsync", batch.replicas)
        }
        Durability::Replicated => format!("replicated on {} servers", batch.replicas),
        Durability::Fsynced => format!("fsynced on {} of {0} replicas", batch.replicas),
    }
}
