//! Why an open batch does not advance, and what its owner can do about it. The coordinator works it out; commands, HTTP
//! and the page show it as it is.

use serde::{Deserialize, Serialize};

/// What a batch waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    pub code: StallCode,
    /// In words, without a full stop.
    pub reason: String,
    /// What to do about it; none where waiting is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StallCode {
    /// Its input is being checked and its lines are being counted.
    Validating,
    /// No worker is connected, and no pods are rented on demand.
    NoWorkers,
    /// Pods were ordered, and none of them has a worker yet.
    PodsStarting,
    /// Pods are needed, and none can be rented: a limit, the provider, or the batch's own deadline or budget.
    PodsUnavailable,
    /// Workers are connected, and none of them serves the model.
    ModelNotServed,
    /// Workers of its model are connected and do not take jobs yet, or no more.
    WorkersNotReady,
    /// Every worker of its model is silent, hangs, or runs on a quarantined host.
    NoHealthyHost,
    /// The rest of its budget pays for no further job.
    BudgetSpent,
    /// Its deadline has passed: the lines without an answer become error lines.
    DeadlinePassed,
    /// All workers of its model are busy with other batches.
    BehindOtherBatches,
    /// Its remaining lines failed and are tried again after a pause.
    Retrying,
    /// A later version's code: the reason explains it.
    #[serde(other)]
    Other,
}

impl StallCode {
    /// A few words for a narrow column.
    pub fn short(self) -> &'static str {
        match self {
            StallCode::Validating => "checking input",
            StallCode::NoWorkers => "no workers",
            StallCode::PodsStarting => "pods starting",
            StallCode::PodsUnavailable => "no pods to rent",
            StallCode::ModelNotServed => "model not served",
            StallCode::WorkersNotReady => "workers not ready",
            StallCode::NoHealthyHost => "no healthy host",
            StallCode::BudgetSpent => "budget spent",
            StallCode::DeadlinePassed => "deadline passed",
            StallCode::BehindOtherBatches => "behind other batches",
            StallCode::Retrying => "retrying",
            StallCode::Other => "waiting",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_code_of_a_later_version_is_read_as_other() {
        #[derive(Serialize)]
        struct Later {
            code: &'static str,
            reason: &'static str,
        }
        let later = codec::encode(&Later { code: "moon_phase", reason: "the moon is full" });
        let read: Stall = codec::decode(&later).unwrap();
        assert_eq!(
            (read.code, read.reason.as_str(), read.advice),
            (StallCode::Other, "the moon is full", None)
        );
    }
}
