//! The log: one line a job at info, louder where a person should look.

use ternfleet_proto::message::Outcome;

use crate::core::Note;

/// Writes a note as one line.
pub(in crate::shell) fn log(note: &Note) {
    match note {
        Note::Answered(result) => {
            let (usage, ms) = (result.usage, result.timing.total_ms);
            let outcome = match &result.outcome {
                Outcome::Text(_) => "done".to_owned(),
                Outcome::Failed(failure) => format!("failed: {}", failure.message),
            };
            let (prompt_tokens, completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
            // The span around it says which job, of whom, for the how-manieth time.
            tracing::info!(target: "ternfleet_worker", prompt_tokens, completion_tokens, ms, "{outcome}");
        }
        Note::Duplicate { job, diverges: true } => {
            tracing::error!(%job, "DIVERGENCE: a stored answer differs from the one computed now");
        }
        Note::Duplicate { job, diverges: false } => {
            tracing::info!(%job, "already answered, with the same answer")
        }
        Note::Fenced { job, epoch } => {
            tracing::info!(%job, %epoch, "stopped: another worker has claimed the job")
        }
        Note::Released { job, epoch, generated } => tracing::info!(%job, %epoch, generated, "job returned"),
        Note::Dropped { job, epoch, why } => tracing::info!(%job, %epoch, why = why.as_str(), "job dropped"),
        Note::Undecodable { subject, reason } => {
            tracing::warn!(subject, reason, "a message could not be parsed")
        }
        Note::StaleLeader { what } => tracing::warn!(what, "ignored: sent by an earlier leader"),
        Note::ResultsFull { job } => {
            tracing::error!(%job, "RESULTS is full: the answer is kept and retried; free some space");
        }
        Note::CheckpointSkipped { job } => {
            tracing::warn!(%job, "a checkpoint could not be stored; the job continues without it")
        }
        Note::ClockStepped { by_ms } => {
            tracing::warn!(by_ms, "the wall clock was stepped; this affects only dates and deadlines")
        }
        Note::Fault { job, reason } => tracing::warn!(%job, reason, "a generation failed and is retried"),
        Note::CheckpointRejected { job, author, tokens } => {
            let (worker, host) = author.as_ref().map_or(("unknown", ""), |by| (by.worker.as_str(), &by.host));
            tracing::error!(
                %job, tokens, worker, host,
                "the output in a checkpoint is not what this worker computes; the job starts over: watch the worker that \
                 wrote it, or revoke its key"
            );
        }
        Note::Misrouted { job, wants } => tracing::warn!(%job, wants, "this worker serves another model"),
    }
}
