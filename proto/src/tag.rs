//! The mark of an assignment: proof, carried by the result itself, that this worker was given this epoch.
//!
//! The committed result of a job is the lowest sequence in RESULTS whose (worker, epoch) had been assigned. Rather
//! than write each assignment to a log and read it back after a restart, the coordinator signs it: a keyed BLAKE3
//! over (job, epoch, worker), truncated to 128 bits. The key lives in the control bucket, which workers cannot
//! read. So the rule is a pure function of the stream, costs no write a job, and any restarted or standby
//! coordinator reaches the same verdict.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::id::{Epoch, JobKey, WorkerId};
use crate::message::Checkpoint;

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

/// Seals the checkpoints of one job. Whoever is handed the job gets it, and so can tell what was written by others who were
/// handed it from what was not.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointKey(u128);

impl std::fmt::Debug for CheckpointKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CheckpointKey(hidden)")
    }
}

impl CheckpointKey {
    const SEAL_BYTES: usize = 16;

    /// The encoded checkpoint with its seal behind it, which a reader of an earlier version skips.
    pub fn seal(self, checkpoint: &Checkpoint) -> Bytes {
        let mut payload = Vec::from(codec::encode(checkpoint));
        payload.extend(self.mark(&payload));
        payload.into()
    }

    /// The checkpoint, if it was sealed with this key.
    pub fn open(self, payload: &[u8]) -> Option<Checkpoint> {
        let (content, seal) = payload.split_at_checked(payload.len().checked_sub(Self::SEAL_BYTES)?)?;
        (self.mark(content) == seal).then(|| codec::decode(content).ok())?
    }

    fn mark(self, content: &[u8]) -> [u8; Self::SEAL_BYTES] {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&self.0.to_le_bytes());
        first_half(blake3::keyed_hash(&key, content))
    }
}

fn first_half(hash: blake3::Hash) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    first
}

impl AssignmentKey {
    pub fn checkpoint_key(&self, job: &JobKey) -> CheckpointKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        // Nothing that is signed begins with a zero byte.
        hasher
            .update(&[0])
            .update(job.batch.as_str().as_bytes())
            .update(&[0])
            .update(&job.index.to_le_bytes());
        CheckpointKey(u128::from_le_bytes(first_half(hasher.finalize())))
    }

    pub fn sign(&self, job: &JobKey, epoch: Epoch, worker: &WorkerId) -> AssignmentTag {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        // Ids hold no zero byte, so the parts cannot run into one another.
        hasher.update(job.batch.as_str().as_bytes()).update(&[0]);
        hasher.update(&job.index.to_le_bytes()).update(&epoch.0.to_le_bytes());
        hasher.update(worker.as_str().as_bytes());
        AssignmentTag(u128::from_le_bytes(first_half(hasher.finalize())))
    }

    pub fn verifies(&self, tag: AssignmentTag, job: &JobKey, epoch: Epoch, worker: &WorkerId) -> bool {
        self.sign(job, epoch, worker) == tag
    }
}
