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
    after_help = "Exit codes: 0 success, 1 error, 2 the batch ended and has error lines, 64 invalid command line,\n\
                        130 interrupted.\n\
                        Environment: TERNFLEET_NATS, TERNFLEET_NATS_SERVER, TERNFLEET_ISA, TERNFLEET_CACHE,\n\
                        TERNFLEET_STATE_DIR, TERNFLEET_LOG, NO_COLOR."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Rent a fleet for one batch, write its answers, and return all pods
    Launch(Launch),
    /// Run the head of a launched fleet in its rented pod
    #[command(hide = true)]
    Head(Head),
    /// List the fleets launched from this machine
    Fleets(Fleets),
    /// Stop a fleet that `up` or `launch` started, and return all pods
    Down(Down),
    /// Run a fleet on this machine: NATS, a coordinator and workers
    Up(Up),
    /// Submit a file of prompts as a batch, and wait for the answers
    Submit(Submit),
    /// List batches, open ones first
    Batches(Batches),
    /// Show state, progress and cost of a batch
    Status(Status),
    /// Get the answers of a running or finished batch
    Results(Results),
    /// Check the answers of a batch without a fleet: signature, lines, and lines run again on this machine
    Verify(Verify),
    /// Cancel a batch; finished answers are kept
    Cancel(Cancel),
    /// Submit the failed lines of a batch again, as a new batch
    Resubmit(Resubmit),
    /// Show and retry dead letters: jobs whose attempts all failed
    Dead(Dead),
    /// Change budget, deadline or priority of an open batch
    Batch(Batch),
    /// List pods with their measured speed and price
    Pods(Pods),
    /// Show pods, batches, queue and cost, live
    Top(Top),
    /// Show the logs of a fleet on this machine
    Logs(Logs),
    /// Check NATS, streams, coordinator, workers, model, clocks and CPU, and suggest fixes
    Doctor(Doctor),
    /// Run a worker: an engine that pulls jobs from NATS
    Worker(Worker),
    /// Run the worker of a rented pod: download and check the model, then run the worker
    Pod(Pod),
    /// Run a coordinator
    Coordinator(Coordinator),
    /// Generate text from one prompt on this machine, without a fleet
    Generate(Generate),
    /// Write the logits after each token of a sequence, to compare engines
    Logits(Logits),
    /// Measure prompt and generation speed of this machine, by thread count and batch size
    Bench(Bench),
    /// Measure a model's perplexity on a text, or score given continuations
    Perplexity(PerplexityOf),
    /// Measure a model's quality, or how far the predictions of two models differ
    Eval(Eval),
    /// Download, verify, inspect, convert and create model files
    Model(Model),
    /// Show cores, caches and instruction sets of this machine, and the engine's settings for it
    Topology(TopologyCommand),
    /// Estimate cost and finish time of a file of prompts
    Quote(Quote),
    /// Show and change the limits of rented pods, and show what the scaler would do next
    Scale(Scale),
    /// Compare renting and routing policies on a simulated fleet
    Simulate(Simulate),
    /// Create API keys for the HTTP API
    Key(Key),
    /// Create keys, permissions and server configuration for NATS with several users
    Nats(Nats),
    /// Back up the data of a running fleet to a folder
    Backup(Backup),
    /// Restore a backup into an empty NATS server
    Restore(Restore),
    /// Start a fleet, run some prompts, show answers and costs, and stop it
    Demo(Demo),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Write manual pages
    Man(Man),
    /// Run a program that ends with its parent process
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
