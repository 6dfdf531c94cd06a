//! Progress of a transfer, with speed and time left: a bar on a terminal, a plain line at intervals elsewhere.

use std::collections::VecDeque;
use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::span;

/// The rate is that of the last seconds.
const WINDOW: Duration = Duration::from_secs(10);
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Bytes that came, and who is told.
#[derive(Debug)]
pub(super) struct Meter {
    total: Option<u64>,
    done: AtomicU64,
    here_before: u64,
    begun: Instant,
    shown: Shown,
    history: Mutex<History>,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

#[derive(Debug)]
struct History {
    seen: VecDeque<(Instant, u64)>,
    line_at: Instant,
}

impl Meter {
    pub(super) fn new(total: Option<u64>, here_before: u64, quiet: bool) -> Meter {
        let shown = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, false) => Shown::Lines,
            (false, true) => Shown::Bar(bar(total)),
        };
        let now = Instant::now();
        let meter = Meter {
            total,
            done: here_before.into(),
            here_before,
            begun: now,
            shown,
            history: Mutex::new(History { seen: VecDeque::from([(now, here_before)]), line_at: now }),
        };
        if here_before > 0 {
            meter.note(format_args!("continuing after {}", size(here_before)));
        }
        meter
    }

    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that will have to come again.
    pub(super) fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn restart(&self) {
        self.done.store(0, Ordering::Relaxed);
    }

    /// Says something besides the numbers.
    pub(super) fn note(&self, note: fmt::Arguments<'_>) {
        match &self.shown {
            Shown::Bar(bar) => bar.println(note.to_string()),
            Shown::Lines => eprintln!("{note}"),
            Shown::Nothing => {}
        }
    }

    /// Shows where it stands, if it is time to.
    pub(super) fn tick(&self) {
        let (now, done) = (Instant::now(), self.done.load(Ordering::Relaxed));
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.seen.push_back((now, done));
        while history.seen.len() > 2 && history.seen.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            history.seen.pop_front();
        }
        let rate = history.seen.front().map_or(0.0, |(at, before)| {
            done.saturating_sub(*before) as f64 / (now - *at).as_secs_f64().max(0.001)
        });
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(describe(done, self.total, rate));
            }
            Shown::Lines if now - history.line_at >= LINE_EVERY => {
                history.line_at = now;
                eprintln!("{}", describe(done, self.total, rate));
            }
            Shown::Lines | Shown::Nothing => {}
        }
    }

    /// The last word.
    pub(super) fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
        if !matches!(self.shown, Shown::Nothing) {
            let came = self.done.load(Ordering::Relaxed).saturating_sub(self.here_before);
            let took = self.begun.elapsed();
            let rate = came as f64 / took.as_secs_f64().max(0.001);
            let spent =
                if took.as_secs() < 60 { format!("{:.1} s", took.as_secs_f64()) } else { span::short(took) };
            eprintln!("{} in {spent} ({}/s); checking its digest", size(came), size(rate as u64));
        }
    }
}

/// A transfer that failed leaves the bar where it was, and the cursor below it.
impl Drop for Meter {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown
            && !bar.is_finished()
        {
            bar.abandon();
        }
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::new(total.unwrap_or(0));
    let style = match (total.is_some(), crate::logging::colours(true)) {
        (true, true) => "{bar:30.cyan} {msg}",
        (true, false) => "{bar:30} {msg}",
        (false, _) => "{spinner} {msg}",
    };
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// `412.3 MB of 1.2 GB (35 %) · 84.2 MB/s · 9s left`.
fn describe(done: u64, total: Option<u64>, rate: f64) -> String {
    let speed = format!("{}/s", size(rate as u64));
    let Some(total) = total else { return format!("{} · {speed}", size(done)) };
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
    let mut line = format!("{} of {} ({percent} %) · {speed}", size(done), size(total));
    if rate >= 1.0 && done < total {
        let left = Duration::from_secs_f64(((total - done) as f64 / rate).min(1e9));
        line.push_str(&format!(" · {} left", span::short(left)));
    }
    line
}

/// A size as people read it, in powers of a thousand.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_how_fast_and_how_long() {
        assert_eq!(
            describe(412_300_000, Some(1_187_801_280), 84_200_000.0),
            "412.3 MB of 1.19 GB (34 %) · 84.2 MB/s · 9s left"
        );
        assert_eq!(describe(5, None, 0.0), "5 B · 0 B/s");
        assert_eq!(describe(0, Some(0), 0.0), "0 B of 0 B (100 %) · 0 B/s");
    }
}
