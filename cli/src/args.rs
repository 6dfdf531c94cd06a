//! The commands by name. Each command's flags are in its file; those of the connection are in `connection.rs`.

use clap::{Parser, Subcommand};

use crate::commands::attached::Attached;
use crate::commands::backup::{Backup, Restore};
use crate::commands::batch::Batch;
use crate::commands::batches::Batches;
use crate::commands::bench::Bench;
use crate::commands::cancel::Cancel;
use crate::commands::completions::Completions;
use crate::commands::coordinator::Coordinator;
use crate::commands::dead::Dead;
use crate::commands::demo::Demo;
use crate::commands::doctor::Doctor;
use crate::commands::down::Down;
use crate::commands::eval::{Eval, PerplexityOf};
use crate::commands::fleets::Fleets;
use crate::commands::generate::Generate;
use crate::commands::head::Head;
use crate::commands::key::Key;
use crate::commands::launch::Launch;
use crate::commands::logits::Logits;
use crate::commands::logs::Logs;
use crate::commands::man::Man;
use crate::commands::model::Model;
use crate::commands::nats::Nats;
use crate::commands::pod::Pod;
use crate::commands::pods::Pods;
use crate::commands::quote::Quote;
use crate::commands::resubmit::Resubmit;
use crate::commands::results::Results;
use crate::commands::scale::Scale;
use crate::commands::simulate::Simulate;
use crate::commands::status::Status;
use crate::commands::submit::Submit;
use crate::commands::top::Top;
use crate::commands::topology::TopologyCommand;
use crate::commands::up::Up;
use crate::commands::verify::Verify;
use crate::commands::worker::Worker;

/// A release build names its commit: `deploy/image/build.sh` sets it.
const VERSION: &str = match option_env!("TERNFLEET_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Batch text generation with ternary language models on a fleet of rented pods.
#[derive(Debug, Parser)]
#[command(name = "ternfleet", version = VERSION, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 all good, 2 some lines of the batch are error lines, 1 anything else went wrong,\n\
                        64 the command line is wrong, 130 interrupted.\n\
                        Environment: TERNFLEET_NATS, TERNFLEET_NATS_SERVER, TERNFLEET_ISA, TERNFLEET_CACHE,\n\
                        TERNFLEET_STATE_DIR, TERNFLEET_LOG, NO_COLOR."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Rent a fleet for one file of prompts, get its answers, and give everything back
    Launch(Launch),
    /// Run the head of a fleet that was launched, in its rented pod
    #[command(hide = true)]
    Head(Head),
    /// List the fleets that were launched from this machine
    Fleets(Fleets),
    /// End a fleet that `up` or `launch` started, and give everything back
    Down(Down),
    /// Run a whole fleet on this machine: NATS, a coordinator and workers
    Up(Up),
    /// Send a file of prompts to the fleet and wait for its answers
    Submit(Submit),
    /// List batches: the open ones, then those that have ended
    Batches(Batches),
    /// Show one batch
    Status(Status),
    /// Get the answers of a batch, finished or still running
    Results(Results),
    /// Check the answers of a batch: signature, lines, and lines run again on this machine; no fleet is needed
    Verify(Verify),
    /// Stop a batch; what was answered stays
    Cancel(Cancel),
    /// Send the failed lines of a batch again, as a new batch
    Resubmit(Resubmit),
    /// See jobs that were given up, with every attempt, and send them again
    Dead(Dead),
    /// Change what a running batch may cost, or when it must be done
    Batch(Batch),
    /// List the pods with their measured speed and price
    Pods(Pods),
    /// Watch pods, batches, queue and money, live
    Top(Top),
    /// Show what the parts of a fleet on this machine have logged
    Logs(Logs),
    /// Check NATS, streams, coordinator, workers, model, clocks and CPU; each failed check says how to fix it
    Doctor(Doctor),
    /// Run one worker: an engine that pulls jobs from NATS
    Worker(Worker),
    /// Run the worker of a rented pod: find or fetch the model, check it, become the worker
    Pod(Pod),
    /// Run one coordinator
    Coordinator(Coordinator),
    /// Continue one prompt on this machine, without a fleet
    Generate(Generate),
    /// Write the scores of the next token after each of some ids, for comparing engines
    Logits(Logits),
    /// Measure this machine: prompt and generation by threads and by batch
    Bench(Bench),
    /// Measure how well a model predicts a text, or score given continuations
    Perplexity(PerplexityOf),
    /// Measure the quality of a model's predictions, and how far those of two models differ
    Eval(Eval),
    /// Make, convert and look into model files
    Model(Model),
    /// Show what the engine sees of this machine, and what it would do
    Topology(TopologyCommand),
    /// Say what a file of prompts will cost and when it will be done
    Quote(Quote),
    /// Show and set what may be rented, and what would be done
    Scale(Scale),
    /// Compare policies of renting and routing on a virtual fleet
    Simulate(Simulate),
    /// Make API keys for the gateway
    Key(Key),
    /// Keys, permissions and server configuration of a NATS with more than one user
    Nats(Nats),
    /// Save everything that must not be lost, from a running fleet, into a folder
    Backup(Backup),
    /// Bring a backup back into an empty NATS
    Restore(Restore),
    /// Start a fleet, run some real prompts through it, show texts and prices, and stop it
    Demo(Demo),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Write manual pages
    Man(Man),
    /// Run a program that ends when its parent does
    #[command(hide = true)]
    Attached(Attached),
}

impl Command {
    /// The name under which its spans are exported.
    pub(crate) fn service(&self) -> &'static str {
        match self {
            Command::Worker(_) | Command::Pod(_) => "ternfleet-worker",
            Command::Coordinator(_) => "ternfleet-coordinator",
            _ => "ternfleet",
        }
    }

    /// The log filter that suits the command: services tell what they do, tools keep quiet and report in their own words.
    pub(crate) fn log_default(&self) -> &'static str {
        match self {
            Command::Worker(_) | Command::Pod(_) | Command::Coordinator(_) => "info,async_nats=error",
            // A head that starts refuses connections until it is ready, and that is no fault.
            Command::Launch(_) => "warn,async_nats=off,ternfleet_proto=error",
            _ => "warn,async_nats=error,ternfleet_proto=error",
        }
    }
}
