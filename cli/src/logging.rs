//! Logs go to standard error: `TERNFLEET_LOG` sets levels by module, as in `info,ternfleet_worker=debug`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The environment variable with the levels.
pub(crate) const LOG_VARIABLE: &str = "TERNFLEET_LOG";
/// `json` writes one object a line, for machines.
pub(crate) const FORMAT_VARIABLE: &str = "TERNFLEET_LOG_FORMAT";

/// `default_filter` holds when nothing was asked for.
pub(crate) fn init(default_filter: &str) {
    let wanted = std::env::var(LOG_VARIABLE).unwrap_or_default();
    let filter = EnvFilter::try_new(&wanted).ok().filter(|_| !wanted.is_empty());
    let filter = filter.unwrap_or_else(|| EnvFilter::new(default_filter));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var(FORMAT_VARIABLE).is_ok_and(|format| format == "json") {
        log.json().init();
    } else {
        log.with_ansi(colours(std::io::stderr().is_terminal())).init();
    }
}

/// Colours only where somebody looks and has not said no (<https://no-color.org>).
pub(crate) fn colours(is_terminal: bool) -> bool {
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
