//! The audit log, stream EVENTS: money, leases, pod intents, what happened to a batch.

use serde::{Deserialize, Serialize};

use crate::id::{BatchId, JobKey, LeaderRevision, TenantId, TimeMs, WorkerId};
use crate::message::{BatchState, Line};
use crate::money::UsdMicro;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at: TimeMs,
    pub leader: LeaderRevision,
    pub what: EventKind,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    BatchChanged {
        batch: BatchId,
        tenant: TenantId,
        state: BatchState,
    },
    WorkerSeen {
        worker: WorkerId,
        pod: String,
        pod_class: String,
        price_usd_micro_per_hour: UsdMicro,
    },
    WorkerLost {
        worker: WorkerId,
        pod: String,
        reason: String,
    },
    /// Money spent by a pod since its last such event, split by batch and idleness.
    Spent {
        pod: String,
        from: TimeMs,
        to: TimeMs,
        idle_usd_micro: UsdMicro,
        by_batch: Vec<(BatchId, UsdMicro)>,
    },
    PodIntent {
        pod: String,
        pod_class: String,
        price_usd_micro_per_hour: UsdMicro,
    },
    PodRented {
        pod: String,
        provider_id: String,
    },
    PodReturned {
        pod: String,
        billed_usd_micro: UsdMicro,
    },
}

/// A job that was given up, subject `tf.dead.<tenant>.<batch>.<index>` of the stream DEAD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadJob {
    pub job: JobKey,
    pub tenant: TenantId,
    pub line: Line,
    pub attempts: u32,
    /// Machines on which attempts failed.
    pub hosts: Vec<String>,
    pub reason: String,
    pub at: TimeMs,
}
