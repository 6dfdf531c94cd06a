//! `ternfleet doctor`: checks everything that a fleet depends on; each failed check says how to fix it.
//!
//! It changes nothing. Each look is one [`Finding`]; the checks themselves are in `doctor/`.

mod fleet;
mod machine;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::connection::Connection;
use crate::output::{say, say_json};
use crate::report::printable;
use crate::{logging, stop};

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 no fault (warnings are allowed), 1 at least one fault, 64 invalid command \
                  line."
)]
pub(crate) struct Doctor {
    /// Model file to check [default: the included storyteller]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Monitoring address of NATS (http://host:8222), to read how often it syncs to disk [default: that of the fleet in
    /// ./ternfleet-data]
    #[arg(long, value_name = "URL", env = "TERNFLEET_NATS_MONITORING_URL")]
    nats_monitoring_url: Option<String>,
    /// Print one JSON object: `ok` and `findings`, each with `check`, `state`, `detail` and `fix`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Works, but slower or less safely than it could.
    Warning,
    /// Does not work.
    Fault,
    /// Could not be looked at, because something before it is missing.
    Unknown,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Finding {
        Finding { check, state: State::Ok, detail: detail.into(), fix: None }
    }

    fn warning(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { check, state: State::Warning, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn fault(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { check, state: State::Fault, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn unknown(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { check, state: State::Unknown, detail: detail.into(), fix: Some(fix.into()) }
    }
}

impl Doctor {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut findings = machine::look(self.model.as_deref());
        findings.extend(stop::block_on(async {
            let monitoring = self.nats_monitoring_url.or_else(|| self.connection.monitoring());
            let (mut found, bus) = server::look(&self.connection, monitoring.as_deref()).await;
            found.extend(fleet::look(bus.as_ref(), &self.connection).await);
            Ok(found)
        })?);
        let faults = findings.iter().filter(|finding| finding.state == State::Fault).count();
        if self.json {
            say_json(&json!({ "ok": faults == 0, "findings": findings }))?;
        } else {
            let colours = logging::colours(std::io::IsTerminal::is_terminal(&std::io::stdout()));
            say(&page(&findings, colours))?;
        }
        Ok(if faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// One line a finding, what to do below it, a sum at the end.
fn page(findings: &[Finding], colours: bool) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for finding in findings {
        let (word, colour) = match finding.state {
            State::Ok => ("ok     ", "32"),
            State::Warning => ("warning", "33"),
            State::Fault => ("FAULT  ", "1;31"),
            State::Unknown => ("unknown", "2"),
        };
        let word = if colours { format!("\u{1b}[{colour}m{word}\u{1b}[0m") } else { word.to_owned() };
        lines.push(format!("{word}  {:width$}  {}", finding.check, printable(&finding.detail)));
        if let Some(fix) = &finding.fix {
            lines.push(format!("{:9}{:width$}  → {}", "", "", printable(fix)));
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    lines.push(String::new());
    lines.push(match (count(State::Fault), count(State::Warning), count(State::Unknown)) {
        (0, 0, 0) => "no faults".to_owned(),
        (faults, warnings, unknown) => {
            format!("{}, {}, {unknown} not checked", plural(faults, "fault"), plural(warnings, "warning"))
        }
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_to_do_below_each_fault() {
        let findings = [
            Finding::ok("nats", "answers"),
            Finding::fault("coordinator", "no coordinator leads", "start one with `ternfleet coordinator`"),
        ];
        let text = page(&findings, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok       nats         answers");
        assert_eq!(lines[1], "FAULT    coordinator  no coordinator leads");
        assert!(lines[2].ends_with("→ start one with `ternfleet coordinator`"), "{text}");
        assert_eq!(lines[4], "1 fault, 0 warnings, 0 not checked");
        assert!(!text.contains('\u{1b}'));
        assert!(page(&findings, true).contains("\u{1b}[1;31mFAULT"));
    }
}
