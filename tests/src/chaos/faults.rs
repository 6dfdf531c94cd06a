//! What goes wrong, drawn from a seed.

use crate::sim::Chance;

/// One fault. Numbers are places; times are milliseconds until it is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillWorker {
        place: usize,
        ms: u64,
    },
    StopWorker {
        place: usize,
        ms: u64,
    },
    DrainWorker {
        place: usize,
        ms: u64,
    },
    CutWorker {
        place: usize,
        ms: u64,
    },
    SilenceWorker {
        place: usize,
        ms: u64,
    },
    KillCoordinator {
        place: usize,
        ms: u64,
    },
    StopCoordinator {
        place: usize,
        ms: u64,
    },
    CutCoordinator {
        place: usize,
        ms: u64,
    },
    KillServer {
        place: usize,
        ms: u64,
    },
    StopServer {
        place: usize,
        ms: u64,
    },
    FillDisk {
        place: usize,
        ms: u64,
    },
    /// Its wall clock is stepped, and back again after a while.
    StepWorker {
        place: usize,
        off_s: i64,
        ms: u64,
    },
    StepCoordinator {
        place: usize,
        off_s: i64,
        ms: u64,
    },
    /// Everything is killed at once and comes back in any order.
    KillAll {
        ms: u64,
    },
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillWorker { .. } => "worker: kill -9",
            Fault::StopWorker { .. } => "worker: SIGSTOP",
            Fault::DrainWorker { .. } => "worker: SIGTERM",
            Fault::CutWorker { .. } => "worker: connection cut",
            Fault::SilenceWorker { .. } => "worker: line silent",
            Fault::KillCoordinator { .. } => "coordinator: kill -9",
            Fault::StopCoordinator { .. } => "coordinator: SIGSTOP",
            Fault::CutCoordinator { .. } => "coordinator: connection cut",
            Fault::KillServer { .. } => "nats-server: kill -9",
            Fault::StopServer { .. } => "nats-server: SIGSTOP",
            Fault::FillDisk { .. } => "nats-server: disk full",
            Fault::StepWorker { .. } => "worker: wall clock stepped",
            Fault::StepCoordinator { .. } => "coordinator: wall clock stepped",
            Fault::KillAll { .. } => "everything: kill -9",
        }
    }

    pub(super) fn lasts_ms(self) -> u64 {
        match self {
            Fault::KillWorker { ms, .. }
            | Fault::StopWorker { ms, .. }
            | Fault::DrainWorker { ms, .. }
            | Fault::CutWorker { ms, .. }
            | Fault::SilenceWorker { ms, .. }
            | Fault::KillCoordinator { ms, .. }
            | Fault::StopCoordinator { ms, .. }
            | Fault::CutCoordinator { ms, .. }
            | Fault::KillServer { ms, .. }
            | Fault::StopServer { ms, .. }
            | Fault::FillDisk { ms, .. }
            | Fault::StepWorker { ms, .. }
            | Fault::StepCoordinator { ms, .. }
            | Fault::KillAll { ms } => ms,
        }
    }
}

/// How many there are of each part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) workers: usize,
    pub(super) coordinators: usize,
    pub(super) servers: usize,
    pub(super) small_disks: bool,
    pub(super) clocks: bool,
    /// Sometimes longer than the ack wait of 20 s.
    pub(super) long_stops: bool,
}

pub(super) fn draw(chance: &mut Chance, places: Places) -> Fault {
    let worker = chance.within(0, places.workers as u64 - 1) as usize;
    let coordinator = chance.within(0, places.coordinators as u64 - 1) as usize;
    let server = chance.within(0, places.servers as u64 - 1) as usize;
    let ms = chance.within(200, 6_000);
    let long = places.long_stops && chance.one_in(4);
    let stop_ms = if long { chance.within(22_000, 30_000) } else { ms };
    // From a second to four hours, either way.
    let off_s = 4i64.pow(chance.within(0, 6) as u32) * chance.within(1, 4) as i64;
    let off_s = if chance.one_in(2) { off_s } else { -off_s };
    match chance.within(0, if places.clocks { 24 } else { 21 }) {
        0..=3 => Fault::KillWorker { place: worker, ms },
        4 | 5 => Fault::StopWorker { place: worker, ms: stop_ms },
        6 => Fault::DrainWorker { place: worker, ms },
        7 | 8 => Fault::CutWorker { place: worker, ms },
        9 => Fault::SilenceWorker { place: worker, ms: stop_ms },
        10 | 11 => Fault::KillCoordinator { place: coordinator, ms },
        12 | 13 => Fault::StopCoordinator { place: coordinator, ms: stop_ms },
        14 => Fault::CutCoordinator { place: coordinator, ms },
        15 | 16 => Fault::KillServer { place: server, ms: ms / 2 },
        17 | 18 => Fault::StopServer { place: server, ms: if long { stop_ms } else { ms } },
        19 | 20 if places.small_disks => Fault::FillDisk { place: server, ms },
        19 | 20 => Fault::KillServer { place: server, ms: ms / 2 },
        21 => Fault::KillAll { ms: ms / 2 },
        22 | 23 => Fault::StepWorker { place: worker, off_s, ms },
        _ => Fault::StepCoordinator { place: coordinator, off_s, ms },
    }
}
