//! Progress of a batch on standard error: a bar on a terminal, a plain line at intervals elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use ternfleet_proto::TimeMs;
use ternfleet_proto::message::{BatchState, BatchView};

/// Between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) enum Progress {
    Bar(ProgressBar),
    Lines { last: Option<(Instant, String)> },
}

impl Progress {
    pub(crate) fn new() -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress::Lines { last: None };
        }
        let bar = ProgressBar::new(0);
        let style = if crate::logging::colours(true) { "{bar:30.cyan} {msg}" } else { "{bar:30} {msg}" };
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Progress::Bar(bar)
    }

    pub(crate) fn show(&mut self, batch: &BatchView) {
        let text = describe(batch, TimeMs::now());
        match self {
            Progress::Bar(bar) => {
                bar.set_length(u64::from(batch.total));
                bar.set_position(u64::from(batch.completed + batch.failed));
                bar.set_message(text);
            }
            Progress::Lines { last } => {
                let due = last.as_ref().is_none_or(|(at, _)| at.elapsed() >= LINE_EVERY);
                let changed = last.as_ref().is_none_or(|(_, shown)| *shown != text);
                if changed && (due || batch.state.is_terminal()) {
                    eprintln!("{text}");
                    *last = Some((Instant::now(), text));
                }
            }
        }
    }

    /// Takes the bar away and leaves a line in its place, so that what follows stands on lines of its own.
    pub(crate) fn finish(&mut self, batch: &BatchView) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
            eprintln!("{}", describe(batch, TimeMs::now()));
        } else {
            self.show(batch);
        }
    }
}

/// Jobs, tokens, tokens per second, dollars so far, time left.
pub(crate) fn describe(batch: &BatchView, now: TimeMs) -> String {
    let done = batch.completed + batch.failed;
    let total = if batch.total_is_final { batch.total.to_string() } else { format!("{}+", batch.total) };
    let mut parts = vec![
        format!("jobs {done}/{total}"),
        format!("{} tokens", batch.completion_tokens),
        format!("{:.1} tok/s", rate_tok_s(batch)),
        batch.cost_usd_micro.to_string(),
    ];
    if batch.failed > 0 {
        parts.insert(1, format!("{} failed", batch.failed));
    }
    match (batch.state, batch.finish_estimate) {
        (BatchState::InProgress, Some(finish)) => parts.push(format!("{} left", clock(finish.since(now)))),
        (BatchState::InProgress, None) => {}
        (state, _) => parts.push(state_name(state)),
    }
    parts.join(" · ")
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

/// `0:07`, `12:30`, `3:00:00`.
pub(crate) fn clock(span: Duration) -> String {
    let seconds = span.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_like_a_clock() {
        for (seconds, text) in [(7, "0:07"), (750, "12:30"), (10_800, "3:00:00")] {
            assert_eq!(clock(Duration::from_secs(seconds)), text);
        }
    }
}
