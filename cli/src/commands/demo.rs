//! `ternfleet demo`: a batch on this machine, from a file of prompts to answers and their cost.
//!
//! It runs `ternfleet up` as a child process, which ends NATS, coordinator and workers in every case.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Child;

use crate::client::Fleet;
use crate::commands::submit::Submit;
use crate::connection::Connection;
use crate::local::child::{self, Life};
use crate::output::{Target, say};
use crate::report::{pod_table, pods, printable};
use crate::stop::Stops;
use crate::table::check_input;
use crate::{exit, shipped, stop};

/// How often the included prompts are submitted: enough work for all workers of a small machine.
const ROUNDS: usize = 6;
/// Answers shown, and lines of each.
const ANSWERS_SHOWN: usize = 3;
const LINES_SHOWN: usize = 3;
/// Columns of an answer.
const WIDTH: usize = 70;

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Folder for the fleet's state, its logs and the results
    #[arg(long, value_name = "DIR", default_value = "ternfleet-data/demo")]
    dir: PathBuf,
    /// Number of worker processes
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: u16,
    /// File of prompts [default: the included prompts, each several times]
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: Option<PathBuf>,
    /// Price of each worker per hour, used for the costs
    #[arg(long, value_name = "X", value_delimiter = ',', default_value = "0.34,0.50")]
    price_usd_per_hour: Vec<f64>,
}

impl Demo {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let prompts = match &self.prompts {
            Some(prompts) => prompts.clone(),
            None => self.included_prompts()?,
        };
        check_input(&prompts, &prompts)?;
        stop::block_on(async {
            let mut stops = Stops::listen()?;
            let mut fleet = self.start_fleet()?;
            let outcome = tokio::select! {
                outcome = self.show(&prompts, &mut fleet) => outcome,
                () = stops.next() => Ok(ExitCode::from(exit::INTERRUPTED)),
            };
            tokio::select! {
                () = end(&mut fleet) => {}
                // A second Ctrl-C: the fleet's processes die with `up`, which dies here.
                () = stops.next() => fleet.kill().await.context("the fleet cannot be stopped")?,
            }
            outcome
        })
    }

    /// Writes the included prompts several times into one file.
    fn included_prompts(&self) -> anyhow::Result<PathBuf> {
        let path = self.dir.join("prompts.jsonl");
        std::fs::create_dir_all(&self.dir)
            .and_then(|()| std::fs::write(&path, repeated(shipped::STORYTELLER_PROMPTS, ROUNDS)?))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn start_fleet(&self) -> anyhow::Result<Child> {
        let prices: Vec<String> = self.price_usd_per_hour.iter().map(f64::to_string).collect();
        let (workers, prices) = (self.workers.to_string(), prices.join(","));
        let arguments = ["--workers", &workers, "--price-usd-per-hour", &prices].map(Into::into);
        child::start(&self.dir, &arguments, Life::WithThis)
    }

    async fn show(&self, prompts: &Path, fleet: &mut Child) -> anyhow::Result<ExitCode> {
        let workers = if self.workers == 1 { "1 worker" } else { &format!("{} workers", self.workers) };
        eprintln!("starting a fleet of {workers} in {}", self.dir.display());
        let addresses = child::wait_until_ready(&self.dir, Some(fleet)).await?;
        let connection = Connection::local(addresses.nats);
        let results = self.dir.join("results.jsonl");
        let submit = Submit {
            anyway: false,
            wait_for_model: false,
            file: prompts.to_owned(),
            out: Some(Target::File(results.clone())),
            force: true,
            detach: false,
            name: Some("demo".to_owned()),
            model: None,
            budget: None,
            deadline: None,
            priority: 0,
            webhook: None,
            webhook_secret_file: None,
            then: None,
            metadata: Default::default(),
            table: Default::default(),
            json: false,
            connection: connection.clone(),
        };
        let code = submit.send_and_wait(&Default::default()).await?;
        print_answers(prompts, &results)?;
        let fleet = Fleet::connect(&connection).await?;
        say(&format!("\n{}", pod_table(&pods(&fleet, Vec::new()).await?)))?;
        say("tok/s is measured; the price per hour is an example (--price-usd-per-hour)")?;
        let results = std::fs::canonicalize(&results).unwrap_or(results);
        say(&format!("\nall answers: {}", results.display()))?;
        say(&next_steps(&program()))?;
        Ok(code)
    }
}

/// The lines of a batch several times over. Repetitions have other ids, and no seeds, so their answers differ.
fn repeated(lines: &str, rounds: usize) -> std::io::Result<String> {
    let mut all = String::new();
    for round in 1..=rounds {
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            let mut line: serde_json::Map<String, Value> = serde_json::from_str(line)?;
            if round > 1 {
                line.remove("seed");
                line.get_mut("body").and_then(Value::as_object_mut).and_then(|body| body.remove("seed"));
                if let Some(Value::String(id)) = line.get_mut("custom_id") {
                    *id = format!("{id}-{round}");
                }
            }
            all += &format!("{}\n", Value::Object(line));
        }
    }
    Ok(all)
}

/// How this program is called from the current folder.
fn program() -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    program.strip_prefix(here).map_or_else(|_| "ternfleet".to_owned(), |path| path.display().to_string())
}

fn next_steps(program: &str) -> String {
    let steps = [
        (format!("{program} up"), "a fleet on this machine, in one terminal"),
        (r#"echo '{"prompt": "Once upon a time"}' > prompts.jsonl"#.to_owned(), "one request per line"),
        (
            format!("{program} submit prompts.jsonl --out answers.jsonl"),
            "your own batch, in another terminal",
        ),
        (format!("{program} model list"), "larger models, and how to download them"),
    ];
    let lines = steps.map(|(command, what)| format!("\n\n  # {what}\n  {command}"));
    format!("\nnext:{}", lines.concat())
}

/// Asks the fleet to end and waits for it.
async fn end(fleet: &mut Child) {
    if let Some(pid) = fleet.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    // Its own deadlines bound this.
    let _ = fleet.wait().await;
}

/// As much of an output line as showing it takes.
#[derive(Deserialize)]
struct OutputLine {
    response: Option<Response>,
    error: Option<LineError>,
}

#[derive(Deserialize)]
struct Response {
    body: Body,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    message: Option<Reply>,
}

impl Choice {
    fn into_text(self) -> String {
        self.text.or(self.message.map(|message| message.content)).unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Reply {
    content: String,
}

#[derive(Deserialize)]
struct LineError {
    message: String,
}

/// As much of an input line as showing it takes.
#[derive(Default, Deserialize)]
struct InputLine {
    prompt: Option<String>,
    #[serde(default)]
    body: InputBody,
}

#[derive(Default, Deserialize)]
struct InputBody {
    prompt: Option<String>,
}

/// The first answers, each with its input; the file contains the rest.
fn print_answers(prompts: &Path, results: &Path) -> anyhow::Result<()> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (prompts, results) = (read(prompts)?, read(results)?);
    let lines = prompts.lines().filter(|line| !line.trim().is_empty()).zip(results.lines());
    for (prompt, result) in lines.take(ANSWERS_SHOWN) {
        let asked: InputLine = serde_json::from_str(prompt).unwrap_or_default();
        let asked = asked.prompt.or(asked.body.prompt).unwrap_or_default();
        let line: OutputLine =
            serde_json::from_str(result).context("a line of the results cannot be parsed")?;
        let answer = match line {
            OutputLine { error: Some(error), .. } => format!("error: {}", error.message),
            OutputLine { response: Some(Response { body }), .. } => {
                body.choices.into_iter().next().map(Choice::into_text).unwrap_or_default()
            }
            OutputLine { .. } => String::new(),
        };
        say(&format!("\ninput   {}", indented(&printable(&asked))))?;
        say(&format!("answer  {}", indented(&printable(&answer))))?;
    }
    Ok(())
}

/// The beginning of a text as some short lines, each after the first below the first one's beginning.
fn indented(text: &str) -> String {
    shorten(&wrap(text, WIDTH), LINES_SHOWN).replace('\n', "\n        ")
}

/// The first lines of a text, with an ellipsis where there are more.
fn shorten(text: &str, lines: usize) -> String {
    let mut kept: Vec<&str> = text.lines().take(lines).collect();
    if text.lines().nth(lines).is_some() {
        kept.push("…");
    }
    kept.join("\n")
}

/// Breaks a text into lines of at most `width` characters, between words where that is possible.
fn wrap(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("because a line is there from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_broken_between_words() {
        assert_eq!(wrap("one two  three\nfour", 9), "one two\nthree\nfour");
        assert_eq!(wrap("", 9), "");
    }

    #[test]
    fn long_answers_are_cut_with_an_ellipsis() {
        assert_eq!(shorten("a\nb\nc", 2), "a\nb\n…");
        assert_eq!(shorten("a\nb", 2), "a\nb");
    }

    #[test]
    fn repeated_lines_have_other_ids_and_no_seeds() {
        let lines =
            "{\"custom_id\":\"a\",\"body\":{\"prompt\":\"x\",\"seed\":1}}\n\n{\"prompt\":\"y\",\"seed\":2}\n";
        let all: Vec<Value> =
            repeated(lines, 2).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(all.len(), 4);
        assert_eq!((&all[0]["custom_id"], &all[0]["body"]["seed"]), (&"a".into(), &1.into()));
        assert_eq!((&all[2]["custom_id"], &all[2]["body"]["seed"]), (&"a-2".into(), &Value::Null));
        assert_eq!((&all[3]["prompt"], &all[3]["seed"]), (&"y".into(), &Value::Null));
    }
}
