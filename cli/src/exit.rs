//! Exit codes, and the one place where an error is printed.

use std::io;
use std::process::ExitCode;

use ternfleet_proto::message::{BatchState, BatchView};

/// The command line is wrong (`EX_USAGE`). Not clap's own 2, which here means that some lines are error lines.
const USAGE: u8 = 64;
/// Some lines of the batch are error lines.
const SOME_ERRORS: u8 = 2;
/// Ended by Ctrl-C, as shells count it.
pub(crate) const INTERRUPTED: u8 = 130;

/// Prints a usage error, or the help that was asked for.
pub(crate) fn usage(problem: &clap::Error) -> ExitCode {
    // Printing fails only when nobody listens any more.
    let _ = problem.print();
    if problem.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

/// Prints an error once, with its causes on the same line.
pub(crate) fn code(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        // `ternfleet results … | head`: the reader has had enough, which is no fault.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the end of a batch means to the shell.
pub(crate) fn of_batch(batch: &BatchView) -> ExitCode {
    match batch.state {
        BatchState::Failed => ExitCode::FAILURE,
        _ if batch.failed > 0 => ExitCode::from(SOME_ERRORS),
        _ => ExitCode::SUCCESS,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
