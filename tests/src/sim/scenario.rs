//! What a seed stands for: a fleet, some batches, and a list of faults with their times.

use std::time::Duration;

use super::chance::Chance;
use super::cloud::Trouble;
use super::generator::Lie;

/// Faults begin in this span of virtual time, and none lasts beyond its end by more than its own length.
const FAULTS_MS: (u64, u64) = (500, 45_000);

/// Everything that chance decides before the start.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub seed: u64,
    pub workers: Vec<WorkerPlan>,
    pub coordinators: usize,
    pub batches: Vec<BatchPlan>,
    pub completions: Vec<CompletionPlan>,
    /// All workers are on pods that the scaler rents.
    pub rent: Option<Rent>,
    /// Each keeps its number when others are left out, so that a shrunk list names the same faults.
    pub faults: Vec<(usize, u64, Fault)>,
    /// Somebody with a worker's key writes checkpoints of jobs that it was not given. No seed does that; a test does.
    pub forges: bool,
}

#[derive(Debug, Clone)]
pub struct WorkerPlan {
    pub slots: usize,
    pub rate_tok_s: u64,
    pub price_usd_micro_per_hour: i64,
    /// What it says of its own speed, in percent of the truth.
    pub claims_percent: u64,
    pub pod: usize,
    /// No seed makes a liar; a test does.
    pub lies: Option<Lie>,
}

/// A single completion, asked for over HTTP.
#[derive(Debug, Clone, Copy)]
pub struct CompletionPlan {
    pub at_ms: u64,
    pub streamed: bool,
    /// The caller goes away after so long, in milliseconds.
    pub leaves_after_ms: Option<u64>,
}

/// Pods that are rented by the provider's one price.
#[derive(Debug, Clone)]
pub struct Rent {
    pub pods_max: u32,
    pub price_usd_micro_per_hour: i64,
    pub boot_ms: u64,
}

#[derive(Debug, Clone)]
pub struct BatchPlan {
    pub at_ms: u64,
    pub lines: u32,
    pub tokens_max: u32,
    pub tenant: usize,
    pub priority: i8,
    pub window_ms: Option<u64>,
    pub budget_usd_micro: Option<i64>,
    pub cancel_at_ms: Option<u64>,
    /// A line that kills every worker that runs it.
    pub killer: Option<u32>,
    /// By the gateway, not by NATS.
    pub over_http: bool,
}

/// What goes wrong. Numbers of workers and coordinators are places, not names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    CrashWorker {
        place: usize,
        back_after: Duration,
    },
    PauseWorker {
        place: usize,
        lasting: Duration,
    },
    CutWorker {
        place: usize,
        lasting: Duration,
    },
    DrainWorker {
        place: usize,
        back_after: Duration,
    },
    SlowWorker {
        place: usize,
        factor: u64,
        lasting: Duration,
    },
    CrashCoordinator {
        place: usize,
        back_after: Duration,
    },
    PauseCoordinator {
        place: usize,
        lasting: Duration,
    },
    /// Stopped in the middle of an operation: when it has begun so many more.
    StopCoordinator {
        place: usize,
        after_calls: u64,
        lasting: Duration,
    },
    CutCoordinator {
        place: usize,
        lasting: Duration,
    },
    ServerDown {
        lasting: Duration,
    },
    FullStream {
        results: bool,
        lasting: Duration,
    },
    LoseRequests {
        one_in: u64,
        lasting: Duration,
    },
    LoseAnswers {
        one_in: u64,
        lasting: Duration,
    },
    DoubleMessages {
        lasting: Duration,
    },
    /// The server's machine loses its power: what was written to caches in the time before is gone, where everything
    /// else is synced.
    PowerLoss {
        unsynced: Duration,
        lasting: Duration,
    },
    StepWorkersClock {
        place: usize,
        by_ms: i64,
    },
    StepCoordinatorsClock {
        place: usize,
        by_ms: i64,
    },
    /// The provider of pods does not do what it is told, or does not say so.
    Provider {
        trouble: Trouble,
        lasting: Duration,
    },
    /// Pods that are rented meanwhile never come.
    BarrenPods {
        lasting: Duration,
    },
    /// The provider takes a pod away: the one whose worker runs at this place.
    LosePod {
        place: usize,
    },
}

impl Fault {
    /// How long it, and what comes of it at once, keeps somebody from doing what he should.
    pub(super) fn lasting(&self) -> Duration {
        match self {
            Fault::CrashWorker { back_after: lasting, .. }
            | Fault::CrashCoordinator { back_after: lasting, .. }
            | Fault::DrainWorker { back_after: lasting, .. }
            | Fault::PauseWorker { lasting, .. }
            | Fault::CutWorker { lasting, .. }
            | Fault::SlowWorker { lasting, .. }
            | Fault::PauseCoordinator { lasting, .. }
            | Fault::StopCoordinator { lasting, .. }
            | Fault::CutCoordinator { lasting, .. }
            | Fault::ServerDown { lasting }
            | Fault::FullStream { lasting, .. }
            | Fault::LoseRequests { lasting, .. }
            | Fault::LoseAnswers { lasting, .. }
            | Fault::DoubleMessages { lasting }
            | Fault::PowerLoss { lasting, .. }
            | Fault::Provider { lasting, .. }
            | Fault::BarrenPods { lasting } => *lasting,
            Fault::StepWorkersClock { .. } | Fault::StepCoordinatorsClock { .. } | Fault::LosePod { .. } => {
                Duration::ZERO
            }
        }
    }
}

impl Scenario {
    pub fn of(seed: u64) -> Scenario {
        let mut chance = Chance::new(seed);
        let n_workers = chance.within(1, 5) as usize;
        let workers = (0..n_workers).map(|place| WorkerPlan {
            slots: chance.within(1, 6) as usize,
            rate_tok_s: chance.within(20, 400),
            price_usd_micro_per_hour: chance.within(50_000, 3_000_000) as i64,
            claims_percent: if chance.one_in(4) { chance.within(10, 1000) } else { 100 },
            // Sometimes two engines share a pod.
            pod: if place > 0 && chance.one_in(4) { place - 1 } else { place },
            lies: None,
        });
        let mut workers: Vec<WorkerPlan> = workers.collect();
        let coordinators = chance.within(1, 2) as usize;
        let batches = (0..chance.within(1, 3)).map(|_| batch(&mut chance)).collect();
        let count = chance.within(0, 12) as usize;
        let mut faults: Vec<(usize, u64, Fault)> = (0..count)
            .map(|number| {
                let at = chance.within(FAULTS_MS.0, FAULTS_MS.1);
                (number, at, fault(&mut chance, n_workers, coordinators))
            })
            .collect();
        let completions: Vec<u64> = (0..chance.within(0, 6)).map(|_| chance.within(1_000, 50_000)).collect();
        // Drawn last, so that the other faults of a seed stay what they were.
        if chance.one_in(4) {
            let at = chance.within(FAULTS_MS.0, FAULTS_MS.1);
            faults.push((count, at, power_loss(&mut chance)));
        }
        let completions: Vec<CompletionPlan> =
            completions.into_iter().map(|at_ms| completion(&mut chance, at_ms)).collect();
        let mut batches: Vec<BatchPlan> = batches;
        if let Some(plan) = batches.last_mut().filter(|_| chance.one_in(3)) {
            // The gateway quotes what promises something; that is tested elsewhere.
            *plan = BatchPlan { over_http: true, window_ms: None, budget_usd_micro: None, ..plan.clone() };
        }
        let rent = chance.one_in(3).then(|| Rent {
            pods_max: chance.within(1, 3) as u32,
            price_usd_micro_per_hour: chance.within(50_000, 3_000_000) as i64,
            boot_ms: chance.within(500, 8_000),
        });
        if let Some(rent) = &rent {
            // A pod that is being returned runs beside the one in its place.
            while workers.len() < rent.pods_max as usize + 2 {
                workers.push(workers[workers.len() - 1].clone());
            }
            let number = count + 1;
            for number in number..number + chance.within(0, 5) as usize {
                let at = chance.within(FAULTS_MS.0, FAULTS_MS.1);
                faults.push((number, at, rent_fault(&mut chance, workers.len())));
            }
        }
        faults.sort_by_key(|(number, at, _)| (*at, *number));
        Scenario { seed, workers, coordinators, batches, completions, rent, faults, forges: false }
    }

    /// The places of the workers that lie.
    pub fn liars(&self) -> impl Iterator<Item = usize> {
        self.workers.iter().enumerate().filter(|(_, worker)| worker.lies.is_some()).map(|(place, _)| place)
    }

    /// Only the faults with these numbers.
    #[must_use]
    pub fn keeping(mut self, numbers: &[usize]) -> Scenario {
        self.faults.retain(|(number, _, _)| numbers.contains(number));
        self
    }
}

fn batch(chance: &mut Chance) -> BatchPlan {
    let lines = chance.within(1, 120) as u32;
    BatchPlan {
        at_ms: chance.within(0, 10_000),
        lines,
        tokens_max: chance.within(1, 60) as u32,
        tenant: chance.within(0, 1) as usize,
        priority: chance.within(0, 4) as i8 - 2,
        window_ms: chance.one_in(6).then(|| chance.within(3_000, 60_000)),
        budget_usd_micro: chance.one_in(5).then(|| chance.within(10, 20_000) as i64),
        cancel_at_ms: chance.one_in(8).then(|| chance.within(11_000, 40_000)),
        killer: chance.one_in(12).then(|| chance.within(0, u64::from(lines) - 1) as u32),
        over_http: false,
    }
}

fn completion(chance: &mut Chance, at_ms: u64) -> CompletionPlan {
    CompletionPlan {
        at_ms,
        streamed: chance.one_in(2),
        leaves_after_ms: chance.one_in(3).then(|| chance.within(0, 4_000)),
    }
}

fn rent_fault(chance: &mut Chance, workers: usize) -> Fault {
    let lasting = Duration::from_millis(chance.within(500, 20_000));
    match chance.within(0, 9) {
        0 | 1 => Fault::BarrenPods { lasting },
        2 | 3 => Fault::LosePod { place: chance.within(0, workers as u64 - 1) as usize },
        4 => Fault::Provider { trouble: Trouble::NoBalance, lasting },
        5 => Fault::Provider { trouble: Trouble::NoRoom, lasting },
        6 => Fault::Provider { trouble: Trouble::Unreachable, lasting },
        7 => Fault::Provider { trouble: Trouble::TooManyRequests, lasting },
        _ => Fault::Provider { trouble: Trouble::AnswerLost, lasting },
    }
}

fn power_loss(chance: &mut Chance) -> Fault {
    let unsynced_ms = if chance.one_in(3) { chance.within(5_000, 60_000) } else { chance.within(10, 3_000) };
    Fault::PowerLoss {
        unsynced: Duration::from_millis(unsynced_ms),
        lasting: Duration::from_millis(chance.within(500, 8_000)),
    }
}

fn fault(chance: &mut Chance, workers: usize, coordinators: usize) -> Fault {
    let lasting = Duration::from_millis(match chance.within(0, 3) {
        0 => chance.within(50, 1_000),
        1 | 2 => chance.within(1_000, 8_000),
        // Longer than the ack wait.
        _ => chance.within(20_000, 30_000),
    });
    let worker = chance.within(0, workers as u64 - 1) as usize;
    let coordinator = chance.within(0, coordinators as u64 - 1) as usize;
    let one_in = chance.within(2, 20);
    match chance.within(0, 17) {
        0 | 1 => Fault::CrashWorker { place: worker, back_after: lasting },
        2 => Fault::PauseWorker { place: worker, lasting },
        3 => Fault::CutWorker { place: worker, lasting },
        4 => Fault::DrainWorker { place: worker, back_after: lasting },
        5 => Fault::SlowWorker { place: worker, factor: chance.within(2, 20), lasting },
        6 => Fault::StopCoordinator { place: coordinator, after_calls: chance.within(1, 200), lasting },
        7 | 8 => Fault::CrashCoordinator { place: coordinator, back_after: lasting },
        9 => Fault::PauseCoordinator { place: coordinator, lasting },
        10 => Fault::CutCoordinator { place: coordinator, lasting },
        11 => Fault::ServerDown { lasting },
        12 => Fault::FullStream { results: chance.one_in(2), lasting },
        13 => Fault::LoseRequests { one_in, lasting },
        14 => Fault::LoseAnswers { one_in, lasting },
        15 => Fault::DoubleMessages { lasting },
        16 => Fault::StepWorkersClock { place: worker, by_ms: chance.within(0, 20_000) as i64 - 10_000 },
        _ => {
            Fault::StepCoordinatorsClock { place: coordinator, by_ms: chance.within(0, 6_000) as i64 - 3_000 }
        }
    }
}
