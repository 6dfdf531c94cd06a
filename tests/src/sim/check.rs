//! The numbered invariants, checked from outside: by what the streams hold, not by what the cores believe.
//!
//! J1 one terminal record a job, the same for all who read · J2 ack only after a stored result or a cause to drop ·
//! J3 attempts bounded, old owners fenced · M1 spend within budget · M2 attributed + idle = billed · R1 planning
//! twice changes nothing · L1 (in the world) when faults stop everything ends.

use std::collections::{BTreeMap, BTreeSet};

use ternfleet_coordinator::core::{Answer, BatchRecord, CellState, Core, Verdict};
use ternfleet_proto::message::{BatchState, Checkpoint, Generated, JobResult, Work};
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{BatchId, Epoch, JobKey, LeaderRevision, TimeMs, UsdMicro, codec, table};

use super::JetStream;
use super::scenario::Scenario;
use super::world::{Tally, blanks, stored_record};

/// Failed attempts that make a job poison.
const ATTEMPTS_MAX: u32 = 5;
/// A fleet here has room for some dozens of jobs, and a look that places none ends the looking.
const LOOKS_MAX: u32 = 64;
/// Each fault may move a job a few times without any fault of its own: claims, retries, a leader that could not know.
const MOVES_A_FAULT: u32 = 4;

#[derive(Debug, Clone, Copy)]
struct Committed {
    sequence: u64,
    verdict: Verdict,
}

#[derive(Debug, Default)]
struct Accepted {
    results_after: u64,
    lines: u32,
    answered: u32,
}

#[derive(Debug)]
pub(super) struct Checker {
    key: AssignmentKey,
    broken: Option<String>,
    results_read: u64,
    checkpoints_read: u64,
    batches: BTreeMap<BatchId, Accepted>,
    committed: BTreeMap<JobKey, Committed>,
    /// Jobs with a valid answer, under whatever epoch: that of an audit too, which belongs to no accepted batch.
    answered_jobs: BTreeSet<JobKey>,
    answered_epochs: BTreeSet<(JobKey, Epoch)>,
    expected_digest: BTreeMap<JobKey, u64>,
    claimed: BTreeMap<JobKey, Epoch>,
    kills: BTreeMap<JobKey, u32>,
    faults: u32,
    revoked: BTreeSet<(JobKey, Epoch)>,
    ending: BTreeSet<BatchId>,
    newest_leader: LeaderRevision,
    duplicates: u64,
    moved: u64,
    repeated_tokens: u64,
    /// Somebody lies: then answers may be wrong, and audits must say so.
    has_liar: bool,
    wrong: u64,
    /// Agreed and diverged audits and quarantined hosts, the most that one life of a coordinator counted.
    audits: [u64; 3],
}

impl Checker {
    /// How many faults the scenario holds loosens the bound on attempts.
    pub(super) fn new(key: AssignmentKey, scenario: &Scenario) -> Checker {
        Checker {
            key,
            broken: None,
            results_read: 0,
            checkpoints_read: 0,
            batches: BTreeMap::new(),
            committed: BTreeMap::new(),
            answered_jobs: BTreeSet::new(),
            answered_epochs: BTreeSet::new(),
            expected_digest: BTreeMap::new(),
            claimed: BTreeMap::new(),
            kills: BTreeMap::new(),
            faults: scenario.faults.len() as u32,
            revoked: BTreeSet::new(),
            ending: BTreeSet::new(),
            newest_leader: LeaderRevision(0),
            duplicates: 0,
            moved: 0,
            repeated_tokens: 0,
            has_liar: scenario.workers.iter().any(|worker| worker.lies),
            wrong: 0,
            audits: [0; 3],
        }
    }

    /// The first thing found broken.
    pub(super) fn verdict(&mut self) -> Result<(), String> {
        self.broken.take().map_or(Ok(()), Err)
    }

    fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(super) fn accepted(&mut self, record: &BatchRecord, lines: u32) {
        let accepted = Accepted { results_after: record.results_after, lines, answered: 0 };
        self.batches.insert(record.id.clone(), accepted);
    }

    pub(super) fn led(&mut self, leader: LeaderRevision) {
        if leader <= self.newest_leader {
            self.fail(format!("J3: a later leader has revision {leader}, not above {}", self.newest_leader));
        }
        self.newest_leader = self.newest_leader.max(leader);
    }

    pub(super) fn revoked(&mut self, job: &JobKey, epoch: Epoch) {
        self.revoked.insert((job.clone(), epoch));
    }

    pub(super) fn ending(&mut self, batch: &BatchId) {
        self.ending.insert(batch.clone());
    }

    pub(super) fn answered(&self, batch: &BatchId) -> u32 {
        self.batches.get(batch).map_or(0, |batch| batch.answered)
    }

    pub(super) fn diverged(&mut self, job: &JobKey) {
        self.fail(format!("J1: a worker saw two different answers to {job}"));
    }

    /// Output kept from an earlier attempt must be the beginning of the one true output.
    pub(super) fn resumed(&mut self, job: &JobKey, kept: &[u32], ids: &[u32]) {
        if !ids.starts_with(kept) {
            self.fail(format!("J1: {job} resumes from output that is not its own"));
        }
        self.expected_digest.insert(job.clone(), Generated::digest_of(ids));
    }

    /// Reads what was stored in RESULTS since the last look.
    pub(super) fn results(&mut self, net: &JetStream) {
        while let Ok(Some(message)) =
            net.next_message(table::RESULTS, table::results_all(), self.results_read + 1)
        {
            self.results_read = message.sequence;
            let Ok(result) = codec::decode::<JobResult>(&message.payload) else { continue };
            if !self.key.verifies(result.tag, &result.job, result.epoch, &result.worker) {
                self.fail(format!("J1: an answer to {} with a tag that nobody gave out", result.job));
                continue;
            }
            self.result(message.sequence, &result);
        }
    }

    fn result(&mut self, sequence: u64, result: &JobResult) {
        self.answered_epochs.insert((result.job.clone(), result.epoch));
        self.repeated_tokens += u64::from(result.usage.repeated_tokens);
        let verdict = Answer::from(result).verdict;
        if verdict.is_answer() {
            self.answered_jobs.insert(result.job.clone());
        }
        let Some(batch) = self.batches.get_mut(&result.job.batch) else { return };
        if !verdict.is_answer() || sequence <= batch.results_after || result.job.index >= batch.lines {
            return;
        }
        if let Verdict::Good { ids_digest } = verdict {
            let expected = self.expected_digest.get(&result.job);
            let is_wrong = expected.is_some_and(|expected| *expected != ids_digest);
            self.wrong += u64::from(is_wrong);
            if is_wrong && !self.has_liar {
                self.fail(format!("J1: {} was answered with another output than its own", result.job));
                return;
            }
        }
        if self.committed.contains_key(&result.job) {
            self.duplicates += 1;
            return;
        }
        batch.answered += 1;
        self.committed.insert(result.job.clone(), Committed { sequence, verdict });
    }

    /// Reads what was stored in CHECKPOINTS since the last look.
    pub(super) fn checkpoints(&mut self, net: &JetStream) {
        while let Ok(Some(message)) =
            net.next_message(table::CHECKPOINTS, table::checkpoints_all(), self.checkpoints_read + 1)
        {
            self.checkpoints_read = message.sequence;
            let Some(job) = table::parse_checkpoint_subject(&message.subject) else { continue };
            // Anybody may write there; what counts is sealed.
            let Some(checkpoint) = self.key.checkpoint_key(&job).open(&message.payload) else { continue };
            let before = self.claimed.get(&checkpoint.job).copied().unwrap_or_default();
            let over = self.ending.contains(&checkpoint.job.batch);
            if checkpoint.epoch < before && !over {
                let Checkpoint { job, epoch, owner, .. } = &checkpoint;
                self.fail(format!(
                    "J3: {owner} wrote {job} under epoch {epoch} after epoch {before} had claimed it"
                ));
            }
            if checkpoint.attempt.0 > ATTEMPTS_MAX + 1 + MOVES_A_FAULT * self.faults && !over {
                self.fail(format!("J3: attempt {} of {}", checkpoint.attempt, checkpoint.job));
            }
            self.moved += u64::from(before != Epoch(0) && checkpoint.epoch > before);
            self.claimed.insert(checkpoint.job.clone(), checkpoint.epoch.max(before));
        }
    }

    /// Jobs that somebody has claimed.
    pub(super) fn claimed_jobs(&self) -> Vec<&JobKey> {
        self.claimed.keys().collect()
    }

    /// A job has killed its worker.
    pub(super) fn killed(&mut self, job: &JobKey) {
        let kills = self.kills.entry(job.clone()).or_default();
        *kills += 1;
        let kills = *kills;
        if kills > ATTEMPTS_MAX + self.faults {
            self.fail(format!("J3: {job} has killed {kills} workers"));
        }
    }

    /// A worker's ack has removed this work message: there must be an answer, or a cause to drop the job.
    pub(super) fn acked(&mut self, worker_now: TimeMs, payload: &[u8]) {
        let Ok(work) = codec::decode::<Work>(payload) else { return };
        let this = (work.job.clone(), work.epoch);
        let allowed = self.answered_jobs.contains(&work.job)
            || self.answered_epochs.contains(&this)
            || self.revoked.contains(&this)
            || self.claimed.get(&work.job).is_some_and(|epoch| *epoch > work.epoch)
            || self.ending.contains(&work.job.batch)
            || work.deadline.is_some_and(|deadline| deadline <= worker_now)
            || self.newest_leader > work.leader;
        if !allowed {
            self.fail(format!("J2: {} was acked under epoch {} without an answer", work.job, work.epoch));
        }
    }

    /// A coordinator has just read an answer: its ledger must say what the stream says.
    pub(super) fn agrees(&mut self, core: Option<&Core>, job: &JobKey) {
        let Some(core) = core else { return };
        let Some(batch) = core.find(&job.batch).and_then(|slot| core.batch(slot)) else { return };
        if batch.is_ended() {
            return;
        }
        let read_to = core.results_read_to();
        let committed = self.committed.get(job).filter(|committed| committed.sequence <= read_to);
        let expected = committed.map(|committed| match committed.verdict {
            Verdict::Good { .. } => CellState::Good,
            Verdict::Bad | Verdict::Fault | Verdict::HostFault => CellState::Bad,
        });
        let found = batch.cell(job.index).state;
        if expected.is_some_and(|expected| expected != found) {
            self.fail(format!("J1: the ledger says {found:?} of {job}, the stream says {expected:?}"));
        }
        if !batch.commits.is_sorted() {
            self.fail(format!("J1: commits of {} are out of order", job.batch));
        }
    }

    /// R1: this many looks at the same state have each assigned something.
    pub(super) fn planned_again(&mut self, looks: u32) {
        if looks > LOOKS_MAX {
            self.fail(format!("R1: {looks} looks at the same state have all assigned jobs"));
        }
    }

    /// What the core counts itself, and its money seen from outside.
    pub(super) fn violations(&mut self, core: Option<&Core>) {
        let Some(core) = core else { return };
        for (count, name) in core.counts.violations.iter().zip(["J1", "J3", "M1", "M2"]) {
            if *count > 0 {
                self.fail(format!("{name}: the coordinator counted {count} violations itself"));
            }
        }
        let counts = &core.counts;
        if counts.audits_diverged > 0 && !self.has_liar {
            self.fail("J1: two honest workers were told apart by an audit".to_owned());
        }
        let seen = [counts.audits_agreed, counts.audits_diverged, counts.quarantined_hosts];
        self.audits.iter_mut().zip(seen).for_each(|(most, now)| *most = now.max(*most));
        for pod in core.money().pods().values().filter(|pod| !pod.bill.adds_up()) {
            self.fail(format!("M2: {:?} does not add up", pod.bill));
        }
        let ids: Vec<&BatchId> = self.batches.keys().collect();
        let over = ids.iter().find_map(|id| {
            let batch = core.batch(core.find(id)?)?;
            let budget = batch.record.options.budget_usd_micro?;
            (batch.totals.cost_usd_micro > budget)
                .then(|| (id.to_string(), batch.totals.cost_usd_micro, budget))
        });
        if let Some((id, cost, budget)) = over {
            self.fail(format!("M1: {id} has spent {cost} of {budget}"));
        }
    }

    /// A batch that ends must have an answer for each of its lines.
    pub(super) fn recorded(&mut self, record: &BatchRecord) {
        if record.ending.is_some() || record.state.is_terminal() {
            self.ending.insert(record.id.clone());
        }
        if record.state.is_terminal()
            && let Some(fault) = self.incomplete(record)
        {
            self.fail(fault);
        }
    }

    fn incomplete(&self, record: &BatchRecord) -> Option<String> {
        let batch = self.batches.get(&record.id)?;
        if record.state == BatchState::Failed {
            return Some(format!("J1: {} failed: {:?}", record.id, record.reason));
        }
        let totals = record.totals;
        let counted = totals.completed + totals.failed;
        let whole = batch.answered + blanks(batch.lines) == batch.lines;
        (counted != batch.answered || !whole).then(|| {
            let (answered, lines) = (batch.answered, batch.lines);
            format!(
                "J1: {} ended {:?} with {counted} booked, {answered} answered of {lines} lines",
                record.id, record.state
            )
        })
    }

    /// At the end everything accepted is committed or errored, once, and what is stored says so.
    pub(super) fn finish(&mut self, net: &mut JetStream, now: TimeMs) -> Result<(), String> {
        self.results(net);
        self.verdict()?;
        for id in self.batches.keys() {
            let record = stored_record(net, now, id).ok_or_else(|| format!("J1: {id} has no record"))?;
            if let Some(fault) = self.incomplete(&record) {
                return Err(fault);
            }
            let cost = record.totals.cost_usd_micro;
            if record.options.budget_usd_micro.is_some_and(|budget| cost > budget) || cost < UsdMicro::ZERO {
                return Err(format!("M1: {id} ended having spent {cost}"));
            }
        }
        Ok(())
    }

    pub(super) fn count(&self, tally: &mut Tally) {
        let good = |committed: &&Committed| matches!(committed.verdict, Verdict::Good { .. });
        tally.good = self.committed.values().filter(good).count() as u64;
        tally.bad = self.committed.len() as u64 - tally.good;
        tally.duplicates = self.duplicates;
        tally.moved = self.moved;
        tally.repeated_tokens = self.repeated_tokens;
        [tally.audits_agreed, tally.audits_diverged, tally.quarantined_hosts] = self.audits;
        tally.wrong = self.wrong;
    }
}
