//! The mark of an assignment: proof, carried by the result itself, that this worker was given this epoch.
//!
//! The committed result of a job is the lowest sequence in RESULTS whose (worker, epoch) had been assigned. Rather
//! than write each assignment to a log and read it back after a restart, the coordinator signs it: a keyed BLAKE3
//! over (job, epoch, worker), truncated to 128 bits. The key lives in the control bucket, which workers cannot
//! read. So the rule is a pure function of the stream, costs no write a job, and any restarted or standby
//! coordinator reaches the same verdict.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, JobKey, WorkerId};

/// Key of a fleet's assignments, 32 random bytes made once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentKey(pub [u8; 32]);

impl std::fmt::Debug for AssignmentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AssignmentKey(hidden)")
    }
}

/// What a work message carries and its result returns unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AssignmentTag(pub u128);

impl AssignmentKey {
    pub fn sign(&self, job: &JobKey, epoch: Epoch, worker: &WorkerId) -> AssignmentTag {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        // Ids hold no zero byte, so the parts cannot run into one another.
        hasher.update(job.batch.as_str().as_bytes()).update(&[0]);
        hasher.update(&job.index.to_le_bytes()).update(&epoch.0.to_le_bytes());
        hasher.update(worker.as_str().as_bytes());
        let mut first = [0u8; 16];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        AssignmentTag(u128::from_le_bytes(first))
    }

    pub fn verifies(&self, tag: AssignmentTag, job: &JobKey, epoch: Epoch, worker: &WorkerId) -> bool {
        self.sign(job, epoch, worker) == tag
    }
}
