//! The `ternfleet` command: a table of contents.
//!
//! Each command is one file under `commands/`; what several of them share is next to this file. Results go to
//! standard output, everything said to people goes to standard error.

mod addresses;
mod answers;
mod args;
mod client;
mod commands;
mod connection;
mod date;
mod dollars;
mod exit;
mod fetch;
mod follow;
mod guard;
mod help;
mod launch;
mod layers;
mod listing;
mod local;
mod locate;
mod lock;
mod logging;
mod losses;
mod model_file;
mod models;
mod named;
#[cfg(feature = "otlp")]
mod otlp;
mod output;
mod progress;
mod report;
mod shipped;
mod span;
mod stop;
mod table;
mod verify;

use std::process::ExitCode;

use clap::FromArgMatches;

use args::{Arguments, Command};

#[global_allocator]
static HEAP: ternfleet_worker::Heap = ternfleet_worker::Heap;

fn main() -> ExitCode {
    let parsed = help::command().try_get_matches().and_then(|found| Arguments::from_arg_matches(&found));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(usage) => return exit::usage(&usage),
    };
    let _sends_spans = logging::init(arguments.command.log_default(), arguments.command.service());
    exit::code(run(arguments.command))
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Launch(command) => command.run(),
        Command::Head(command) => command.run(),
        Command::Fleets(command) => command.run(),
        Command::Down(command) => command.run(),
        Command::Up(command) => command.run(),
        Command::Submit(command) => command.run(),
        Command::Batches(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Results(command) => command.run(),
        Command::Verify(command) => command.run(),
        Command::Scale(command) => command.run(),
        Command::Cancel(command) => command.run(),
        Command::Resubmit(command) => command.run(),
        Command::Dead(command) => command.run(),
        Command::Batch(command) => command.run(),
        Command::Pod(command) => command.run(),
        Command::Pods(command) => command.run(),
        Command::Top(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Worker(command) => command.run(),
        Command::Coordinator(command) => command.run(),
        Command::Generate(command) => command.run(),
        Command::Logits(command) => command.run(),
        Command::Logs(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Perplexity(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Model(command) => command.run(),
        Command::Topology(command) => command.run(),
        Command::Quote(command) => command.run(),
        Command::Simulate(command) => command.run(),
        Command::Key(command) => command.run(),
        Command::Nats(command) => command.run(),
        Command::Backup(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Completions(command) => command.run(help::command()),
        Command::Man(command) => command.run(help::command()),
        Command::Attached(command) => command.run(),
    }
}
