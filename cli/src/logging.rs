//! Logs go to standard error: `TERNFLEET_LOG` sets levels by module, as in `info,ternfleet_worker=debug`. Spans go to a
//! collector where that is built in and asked for (`otlp.rs`).

use std::collections::VecDeque;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::report::printable;

/// The environment variable with the levels.
pub(crate) const LOG_VARIABLE: &str = "TERNFLEET_LOG";
/// `json` writes one object a line, for machines.
pub(crate) const FORMAT_VARIABLE: &str = "TERNFLEET_LOG_FORMAT";
/// OpenTelemetry's own names for where spans go.
const COLLECTOR_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// What must live as long as spans are made.
#[cfg(feature = "otlp")]
pub(crate) type Guard = Option<crate::otlp::Export>;
#[cfg(not(feature = "otlp"))]
#[derive(Debug)]
pub(crate) struct Guard;

/// `default_filter` holds when nothing was asked for; `service` is the name under which spans go out.
pub(crate) fn init(default_filter: &str, service: &'static str) -> Guard {
    let wanted = std::env::var(LOG_VARIABLE).unwrap_or_default();
    let filter = EnvFilter::try_new(&wanted).ok().filter(|_| !wanted.is_empty());
    let filter = filter.unwrap_or_else(|| EnvFilter::new(default_filter));
    let log = tracing_subscriber::fmt::layer().with_writer(|| Told(std::io::stderr()));
    let log = if std::env::var(FORMAT_VARIABLE).is_ok_and(|format| format == "json") {
        log.json().with_span_list(false).boxed()
    } else {
        let fields = format::debug_fn(write_field).delimited(" ");
        log.with_ansi(colours(std::io::stderr().is_terminal())).fmt_fields(fields).boxed()
    };
    let collector =
        COLLECTOR_VARIABLES.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    start(log.with_filter(filter), collector, service)
}

/// Lines that are remembered.
const RECENT_LINES: usize = 40;
static RECENT: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// The last lines of this process's log, oldest first: what a pod says before it ends.
pub(crate) fn recent() -> Vec<String> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Standard error, with a memory. The library writes one whole line at a time.
struct Told(std::io::Stderr);

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
        recent.extend(String::from_utf8_lossy(bytes).lines().map(str::to_owned));
        let surplus = recent.len().saturating_sub(RECENT_LINES);
        recent.drain(..surplus);
        self.0.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// A field as text. Names and texts of tenants are in fields, and what they hold is shown, not obeyed; the library
/// escapes messages alone.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = printable(&format!("{value:?}"));
    match field.name() {
        "message" => write!(writer, "{text}"),
        name => write!(writer, "{name}={text}"),
    }
}

#[cfg(feature = "otlp")]
fn start<L>(log: L, collector: bool, service: &'static str) -> Guard
where
    L: Layer<tracing_subscriber::Registry> + Send + Sync,
{
    use tracing_subscriber::filter::{LevelFilter, Targets};
    let registry = tracing_subscriber::registry().with(log);
    match collector.then(|| crate::otlp::layer(service)) {
        Some(Ok((spans, guard))) => {
            // Ours alone, whatever the log is told to leave out.
            let names = ["ternfleet", "ternfleet_coordinator", "ternfleet_worker", "ternfleet_proto"];
            let ours = Targets::new().with_targets(names.map(|name| (name, LevelFilter::INFO)));
            registry.with(spans.with_filter(ours)).init();
            Some(guard)
        }
        Some(Err(error)) => {
            registry.init();
            tracing::error!(error = format!("{error:#}"), "spans are not exported");
            None
        }
        None => {
            registry.init();
            None
        }
    }
}

#[cfg(not(feature = "otlp"))]
fn start<L>(log: L, collector: bool, _service: &'static str) -> Guard
where
    L: Layer<tracing_subscriber::Registry> + Send + Sync,
{
    tracing_subscriber::registry().with(log).init();
    if collector {
        tracing::warn!(
            "a span collector is configured, but this program cannot export spans: build it with \
             --features otlp"
        );
    }
    Guard
}

/// Colours only where somebody looks and has not said no (<https://no-color.org>).
pub(crate) fn colours(is_terminal: bool) -> bool {
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_hostile_field_cannot_steer_whoever_reads_the_log() {
        let kept = Kept::default();
        let fields = format::debug_fn(write_field).delimited(" ");
        let writer = kept.clone();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .fmt_fields(fields)
            .with_writer(move || writer.clone())
            .finish();
        let hostile = "a\u{1b}[2J\u{7}\u{1b}]0;title\u{7}b";
        tracing::subscriber::with_default(log, || {
            tracing::warn!(name = hostile, shown = %hostile, "a tenant's {hostile}");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("title"), "{text:?}");
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
    }
}
