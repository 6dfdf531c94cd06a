//! Progress of a batch on standard error: a bar on a terminal, a plain line at intervals elsewhere.
//!
//! A batch that does not advance has no speed and no time left to show. What it waits for is shown in their place, and,
//! when it lasts, once in full with what to do about it.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{BatchState, BatchView, Stall, StallCode};

use crate::report::printable;
use crate::span;

/// Between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// A batch that waits no longer than this is nothing to explain.
const EXPLAIN_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Progress {
    shown: Shown,
    stall: Waiting,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines { last: Option<(Instant, String)> },
}

/// Since when a batch has waited for the same thing, and whether that was explained.
#[derive(Debug, Default)]
struct Waiting {
    code: Option<StallCode>,
    since: Option<Instant>,
    explained: bool,
}

impl Waiting {
    /// The explanation, when it is due.
    fn look(&mut self, now: Instant, stall: Option<&Stall>) -> Option<String> {
        let code = stall.map(|stall| stall.code);
        if code != self.code {
            *self = Waiting { code, since: Some(now), explained: false };
        }
        let stall = stall?;
        let lasts = self.since.is_some_and(|since| now.duration_since(since) >= EXPLAIN_AFTER);
        if !lasts || std::mem::replace(&mut self.explained, true) {
            return None;
        }
        Some(format!("waiting: {}", reason_of(stall)))
    }
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress { shown: Shown::new(), stall: Waiting::default() }
    }

    pub(crate) fn show(&mut self, batch: &BatchView) {
        if let Some(text) = self.stall.look(Instant::now(), batch.stall.as_ref()) {
            self.shown.say(&text);
        }
        self.shown.show(batch);
    }

    /// Replaces the bar with a line, so that what follows begins on a new one.
    pub(crate) fn finish(&mut self, batch: &BatchView) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
            eprintln!("{}", describe(batch, TimeMs::now()));
        } else {
            self.show(batch);
        }
    }
}

impl Shown {
    fn new() -> Shown {
        if !std::io::stderr().is_terminal() {
            return Shown::Lines { last: None };
        }
        let bar = ProgressBar::new(0);
        // The bar takes what the figures leave of the line.
        let style = if crate::logging::colours(true) { "{wide_bar:.cyan} {msg}" } else { "{wide_bar} {msg}" };
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Shown::Bar(bar)
    }

    fn show(&mut self, batch: &BatchView) {
        let text = describe(batch, TimeMs::now());
        match self {
            Shown::Bar(bar) => {
                bar.set_length(u64::from(batch.total));
                bar.set_position(u64::from(batch.completed + batch.failed));
                bar.set_message(text);
            }
            Shown::Lines { last } => {
                let due = last.as_ref().is_none_or(|(at, _)| at.elapsed() >= LINE_EVERY);
                let changed = last.as_ref().is_none_or(|(_, shown)| *shown != text);
                if changed && (due || batch.state.is_terminal()) {
                    eprintln!("{text}");
                    *last = Some((Instant::now(), text));
                }
            }
        }
    }

    /// A line that stays.
    fn say(&self, text: &str) {
        match self {
            Shown::Bar(bar) => bar.println(text),
            Shown::Lines { .. } => eprintln!("{text}"),
        }
    }
}

/// Why a batch waits, and what to do about it.
pub(crate) fn reason_of(stall: &Stall) -> String {
    let mut text = printable(&stall.reason);
    if let Some(advice) = &stall.advice {
        text += &format!("\n  → {}", printable(advice));
    }
    text
}

/// Jobs, tokens, tokens per second, dollars so far, time left; or what it waits for.
pub(crate) fn describe(batch: &BatchView, now: TimeMs) -> String {
    let done = batch.completed + batch.failed;
    let total = if batch.total_is_final { batch.total.to_string() } else { format!("{}+", batch.total) };
    let mut parts = vec![format!("jobs {done}/{total}")];
    if batch.failed > 0 {
        parts.push(format!("{} failed", batch.failed));
    }
    parts.push(format!("{} tokens", batch.completion_tokens));
    if batch.stall.is_none() {
        parts.push(format!("{:.1} tok/s", rate_tok_s(batch)));
    }
    parts.push(batch.cost_usd_micro.to_string());
    match (&batch.stall, batch.state, batch.finish_estimate) {
        (Some(stall), ..) => parts.push(waiting(stall.code)),
        (None, BatchState::InProgress, Some(finish)) => {
            parts.push(format!("{} left", span::short(finish.since(now))));
        }
        (None, BatchState::InProgress, None) => {}
        (None, state, _) => parts.push(state_name(state)),
    }
    parts.join(" · ")
}

fn waiting(code: StallCode) -> String {
    match code {
        StallCode::Validating | StallCode::DeadlinePassed => code.short().to_owned(),
        StallCode::Other => "waiting".to_owned(),
        code => format!("waiting: {}", code.short()),
    }
}

/// Over the last seconds while it runs, over all of it once it has ended.
fn rate_tok_s(batch: &BatchView) -> f64 {
    match (batch.started_at, batch.ended_at) {
        (Some(started), Some(ended)) => {
            batch.completion_tokens as f64 / ended.since(started).as_secs_f64().max(0.001)
        }
        _ => batch.rate_tok_s,
    }
}

/// A state in the words of the wire.
pub(crate) fn state_name(state: BatchState) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{state:?}"),
    }
}

/// In a column: what the batch waits for, or else its state.
pub(crate) fn state_or_stall(batch: &BatchView) -> String {
    match &batch.stall {
        Some(stall) => stall.code.short().to_owned(),
        None => state_name(batch.state).replace('_', " "),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn batch(stall: serde_json::Value) -> BatchView {
        serde_json::from_value(json!({
            "id": "batch_1", "tenant": "default", "name": null, "state": "in_progress", "input_object": "i",
            "total": 10, "completed": 3, "failed": 1, "total_is_final": true, "created_at": 0, "started_at": 0,
            "expires_at": 86_400_000, "options": {}, "metadata": {}, "prompt_tokens": 0, "completion_tokens": 40,
            "wasted_tokens": 0, "cost_usd_micro": 5_000, "rate_tok_s": 20.0, "finish_estimate": 750_000,
            "durability": "stored", "replicas": 1, "stall": stall,
        }))
        .unwrap()
    }

    #[test]
    fn a_batch_that_advances_has_a_speed_and_a_time_left() {
        let text = describe(&batch(json!(null)), TimeMs(0));
        assert_eq!(text, "jobs 4/10 · 1 failed · 40 tokens · 20.0 tok/s · $0.005000 · 12m 30s left");
    }

    #[test]
    fn a_batch_that_waits_says_for_what_and_shows_no_time_left() {
        let text = describe(&batch(json!({ "code": "no_workers", "reason": "none" })), TimeMs(0));
        assert_eq!(text, "jobs 4/10 · 1 failed · 40 tokens · $0.005000 · waiting: no workers");
    }

    #[test]
    fn what_a_batch_waits_for_is_explained_once_and_only_when_it_lasts() {
        let stall = |code| Stall { code, reason: "why".into(), advice: Some("do this".into()) };
        let (mut waiting, begin) = (Waiting::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let no_workers = stall(StallCode::NoWorkers);
        assert_eq!(waiting.look(at(0), Some(&no_workers)), None);
        assert_eq!(waiting.look(at(1_000), None), None);
        assert_eq!(waiting.look(at(1_500), Some(&no_workers)), None, "it waited for less than 2 s");
        assert_eq!(waiting.look(at(3_500), Some(&no_workers)).as_deref(), Some("waiting: why\n  → do this"));
        assert_eq!(waiting.look(at(9_000), Some(&no_workers)), None, "said once");
        let spent = stall(StallCode::BudgetSpent);
        assert_eq!(waiting.look(at(9_100), Some(&spent)), None);
        assert!(waiting.look(at(11_200), Some(&spent)).is_some(), "another reason");
    }
}
