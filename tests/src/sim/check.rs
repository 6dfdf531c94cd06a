//! The numbered invariants, checked from outside: by what the streams hold, not by what the cores believe.
//!
//! J1 one terminal record a job, the same for all who read · J2 ack only after a stored result or a cause to drop ·
//! J3 attempts bounded, old owners fenced · M1 spend within budget · L1 (in the world) when faults stop everything ends ·
//! G1 HTTP callers get an answer or an error, and a stored answer within seconds once nothing is wrong · G2 what they get is
//! right, each line once · R1 an answer leaves RESULTS only when it is kept elsewhere, and then it does · S1 pods are written down before they are ordered · S2 no name is ordered twice · S3 no more pods
//! than allowed · S4 what the scaler says that they cost is what they cost.
//! What the coordinators count themselves (M2 among it) is read from their metrics.

mod departure;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use ternfleet_coordinator::core::{Answer, BatchRecord, Verdict, batch_id};
use ternfleet_proto::message::{
    self, BatchState, Checkpoint, Control, EventKind, Generated, Heartbeat, JobResult, Order, Work,
};
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{
    BatchId, Epoch, JobKey, LeaderRevision, TenantId, TimeMs, UsdMicro, WorkerId, codec, table,
};

use super::JetStream;
use super::cloud::Bill;
use super::generator::ids_of;
use super::inputs::{COMPLETION_TOKENS, blanks, seed};
use super::scenario::{Fault, Scenario};
use super::world::Tally;

/// Failed attempts that make a job poison.
const ATTEMPTS_MAX: u32 = 5;
/// Each fault may move a job a few times without any fault of its own: claims, retries, a leader that could not know.
const MOVES_A_FAULT: u32 = 4;
/// By how much the wall clocks of processes may differ.
const SKEW_MAX: Duration = Duration::from_secs(40);
/// How long a pod may be rented, or gone, before the scaler notices it.
const UNNOTICED: Duration = Duration::from_secs(5);
/// How the ids of completions begin.
const COMPLETION: &str = "cmpl-";
/// From a stored answer to its caller, where nothing is wrong: a leader may have to be replaced first.
const TOLD_WITHIN: Duration = Duration::from_secs(12);

#[derive(Debug)]
struct Batch {
    place: usize,
    lines: u32,
    tokens_max: usize,
    /// Its creation was confirmed to the caller.
    accepted: bool,
    /// As its record says; nothing of it counts before that is stored.
    results_after: Option<u64>,
    answered: u32,
}

#[derive(Debug)]
pub(super) struct Checker {
    key: AssignmentKey,
    broken: Option<String>,
    results_read: u64,
    checkpoints_read: u64,
    batches: BTreeMap<BatchId, Batch>,
    /// With its sequence in RESULTS.
    committed: BTreeMap<JobKey, (u64, Verdict)>,
    /// When the record that names its answers' object was last stored.
    archived: BTreeMap<BatchId, TimeMs>,
    /// Jobs with a valid answer, under whatever epoch: that of an audit too, which belongs to no accepted batch.
    answered_jobs: BTreeSet<JobKey>,
    answered_epochs: BTreeSet<(JobKey, Epoch)>,
    claimed: BTreeMap<JobKey, Epoch>,
    /// The newest epoch that ever claimed a job, even if that claim was lost with the server's power: whoever has read
    /// it may have acted on it.
    claimed_once: BTreeMap<JobKey, Epoch>,
    /// Jobs whose last message in CHECKPOINTS is a forged one.
    hidden: BTreeSet<JobKey>,
    /// By the seed of the job.
    kills: BTreeMap<u64, u32>,
    /// By the seed of the job: attempts that it got back, because a host was at fault.
    given_back: BTreeMap<u64, u32>,
    faults: u32,
    /// The counts of attempts that a loss of power may take away: they are in checkpoints.
    attempts_lost: u32,
    /// The last epoch of a job that was taken back.
    revoked: BTreeMap<JobKey, Epoch>,
    ending: BTreeSet<BatchId>,
    newest_leader: LeaderRevision,
    duplicates: u64,
    moved: u64,
    /// How the names of those begin who lie: their answers may be wrong, and audits must say so.
    liars: Vec<String>,
    /// Checkpoints that were continued from and held wrong output.
    rejected: u64,
    has_forger: bool,
    wrong: u64,
    account_stored_at: TimeMs,
    /// Sequences of the answers of completions, and when they were stored.
    completions: BTreeMap<BatchId, (u64, TimeMs)>,
    /// The last heartbeat of each worker, encoded, and when it came.
    beats: BTreeMap<String, (TimeMs, Bytes)>,
    /// All faults together.
    faults_last: Duration,
    /// Hosts of those who lie.
    liars_hosts: BTreeSet<String>,
}

/// The batch that a scenario's plan becomes.
pub(super) fn id_of(place: usize, tenant: &TenantId) -> BatchId {
    batch_id(tenant, &format!("batch-{place}"))
}

pub(super) fn tenant(number: usize) -> TenantId {
    format!("t{number}").parse().expect("because t and a digit make an id")
}

impl Checker {
    /// How many faults the scenario holds loosens the bound on attempts.
    pub(super) fn new(key: AssignmentKey, scenario: &Scenario) -> Checker {
        let batches = scenario.batches.iter().enumerate().map(|(place, plan)| {
            let batch = Batch {
                place,
                lines: plan.lines,
                tokens_max: plan.tokens_max as usize,
                accepted: false,
                results_after: None,
                answered: 0,
            };
            let tenant = if plan.over_http { TenantId::default_tenant() } else { tenant(plan.tenant) };
            (id_of(place, &tenant), batch)
        });
        let losses =
            scenario.faults.iter().filter(|(_, _, fault)| matches!(fault, Fault::PowerLoss { .. })).count()
                as u32;
        Checker {
            key,
            broken: None,
            results_read: 0,
            checkpoints_read: 0,
            batches: batches.collect(),
            committed: BTreeMap::new(),
            archived: BTreeMap::new(),
            answered_jobs: BTreeSet::new(),
            answered_epochs: BTreeSet::new(),
            claimed: BTreeMap::new(),
            claimed_once: BTreeMap::new(),
            hidden: BTreeSet::new(),
            kills: BTreeMap::new(),
            given_back: BTreeMap::new(),
            attempts_lost: losses * ATTEMPTS_MAX,
            faults: scenario.faults.len() as u32,
            revoked: BTreeMap::new(),
            ending: BTreeSet::new(),
            newest_leader: LeaderRevision(0),
            duplicates: 0,
            moved: 0,
            liars: scenario.liars().map(|place| format!("w{place}-")).collect(),
            rejected: 0,
            has_forger: scenario.forges,
            wrong: 0,
            account_stored_at: TimeMs(0),
            completions: BTreeMap::new(),
            beats: BTreeMap::new(),
            faults_last: scenario.faults.iter().map(|(_, _, fault)| fault.lasting()).sum(),
            liars_hosts: scenario
                .liars()
                .map(|place| format!("host{}", scenario.workers[place].pod))
                .collect(),
        }
    }

    /// The first thing found broken.
    pub(super) fn verdict(&mut self) -> Result<(), String> {
        self.broken.take().map_or(Ok(()), Err)
    }

    pub(super) fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// A caller was told that its batch is accepted.
    pub(super) fn accepted(&mut self, id: &BatchId) {
        if let Some(batch) = self.batches.get_mut(id) {
            batch.accepted = true;
        }
    }

    /// A coordinator gives out a job.
    pub(super) fn handed(&mut self, payload: &[u8]) {
        if let Ok(work) = codec::decode::<Work>(payload) {
            self.newest_leader = self.newest_leader.max(work.leader);
        }
    }

    /// A coordinator takes a job back.
    pub(super) fn revoked(&mut self, payload: &[u8]) {
        if let Ok(work) = codec::decode::<Work>(payload) {
            self.taken_back(work.job, work.epoch);
        }
    }

    /// A coordinator orders something.
    pub(super) fn ordered(&mut self, payload: &[u8]) {
        let Ok(control) = codec::decode::<Control>(payload) else { return };
        self.newest_leader = self.newest_leader.max(control.leader);
        match control.order {
            Order::Revoke { job, epoch } => self.taken_back(job, epoch),
            Order::Cancel { batch } => self.ending(&batch),
            _ => {}
        }
    }

    fn taken_back(&mut self, job: JobKey, epoch: Epoch) {
        let last = self.revoked.entry(job).or_default();
        *last = epoch.max(*last);
    }

    /// A caller wants a batch to end, or it has a reason of its own.
    pub(super) fn ending(&mut self, batch: &BatchId) {
        self.ending.insert(batch.clone());
    }

    /// Output kept from an earlier attempt must be the beginning of the one true output, unless a liar has made it.
    pub(super) fn resumed(&mut self, differs: bool) {
        self.rejected += u64::from(differs);
        if differs && self.liars.is_empty() {
            self.fail("J1: a job resumes from output that is not its own".to_owned());
        }
    }

    /// A worker says what it does.
    pub(super) fn beat(&mut self, now: TimeMs, subject: &str, payload: &Bytes) {
        self.beats.insert(subject.to_owned(), (now, payload.clone()));
    }

    /// A coordinator writes an event down.
    pub(super) fn noted(&mut self, payload: &[u8]) {
        let Ok(event) = codec::decode::<message::Event>(payload) else { return };
        match event.what {
            EventKind::AuditDiverged { convicted_host: Some(host), .. }
                if !self.liars_hosts.contains(&host) =>
            {
                self.fail(format!("J1: an audit convicted {host}, where nobody lies"));
            }
            EventKind::HostQuarantined { given_back, .. } => {
                for job in given_back {
                    if let Some(batch) = self.batches.get(&job.batch) {
                        *self.given_back.entry(seed(batch.place, job.index)).or_default() += 1;
                    }
                }
            }
            _ => {}
        }
    }

    /// Reads what was stored in RESULTS since the last look.
    pub(super) fn results(&mut self, net: &JetStream, now: TimeMs) {
        while let Ok(Some(message)) =
            net.next_message(table::RESULTS, table::results_all(), self.results_read + 1)
        {
            self.results_read = message.sequence;
            let Ok(result) = codec::decode::<JobResult>(&message.payload) else { continue };
            if !self.key.verifies(result.tag, &result.job, result.epoch, &result.worker) {
                self.fail(format!("J1: an answer to {} with a tag that nobody gave out", result.job));
                continue;
            }
            if result.job.batch.as_str().starts_with(COMPLETION) && Answer::from(&result).verdict.is_answer()
            {
                self.completions.entry(result.job.batch.clone()).or_insert((message.sequence, now));
            }
            self.result(message.sequence, &result);
        }
    }

    fn result(&mut self, sequence: u64, result: &JobResult) {
        self.answered_epochs.insert((result.job.clone(), result.epoch));
        let verdict = Answer::from(result).verdict;
        if verdict.is_answer() {
            self.answered_jobs.insert(result.job.clone());
        }
        let lies = self.lies(&result.worker);
        let Some(batch) = self.batches.get_mut(&result.job.batch) else { return };
        let is_early = batch.results_after.is_none_or(|after| sequence <= after);
        if !verdict.is_answer() || is_early || result.job.index >= batch.lines {
            return;
        }
        if let Verdict::Good { ids_digest } = verdict {
            let expected = ids_of(seed(batch.place, result.job.index), batch.tokens_max);
            let is_wrong = Generated::digest_of(&expected) != ids_digest;
            self.wrong += u64::from(is_wrong);
            if is_wrong && !lies {
                let JobResult { job, worker, .. } = result;
                self.fail(format!("J1: {worker} answered {job} with another output than its own"));
                return;
            }
        }
        if self.committed.contains_key(&result.job) {
            self.duplicates += 1;
            return;
        }
        batch.answered += 1;
        self.committed.insert(result.job.clone(), (sequence, verdict));
    }

    fn lies(&self, worker: &WorkerId) -> bool {
        self.liars.iter().any(|name| worker.as_str().starts_with(name))
    }

    /// A single completion came back to whoever asked for it; nothing has been wrong since `calm`.
    pub(super) fn completed(&mut self, id: &str, text: &str, seed: u64, now: TimeMs, calm: TimeMs) {
        if text != text_of(seed, COMPLETION_TOKENS as usize) && self.liars.is_empty() {
            self.fail(format!("G2: {id} was answered with another output than its own: {text:?}"));
        }
        let stored = id.parse().ok().and_then(|id: BatchId| self.completions.get(&id).copied());
        let Some((_, stored)) = stored else {
            return self.fail(format!("G2: {id} was answered, and no such answer is stored"));
        };
        let waited = now.since(stored.max(calm));
        if waited > TOLD_WITHIN {
            self.fail(format!("G1: the answer to {id} was told {waited:?} after it was stored"));
        }
    }

    /// A line of an HTTP batch's output.
    pub(super) fn written(&mut self, place: usize, tokens_max: usize, index: u32, text: &str) {
        if text != text_of(seed(place, index), tokens_max) && self.liars.is_empty() {
            self.fail(format!("G2: line {index} of batch {place} was written as {text:?}"));
        }
    }

    /// Reads what was stored in CHECKPOINTS since the last look.
    pub(super) fn checkpoints(&mut self, net: &JetStream) {
        while let Ok(Some(message)) =
            net.next_message(table::CHECKPOINTS, table::checkpoints_all(), self.checkpoints_read + 1)
        {
            self.checkpoints_read = message.sequence;
            let Some(job) = table::parse_checkpoint_subject(&message.subject) else { continue };
            // Anybody may write there; what counts is sealed.
            let Some(checkpoint) = self.key.checkpoint_key(&job).open(&message.payload) else {
                self.hidden.insert(job);
                continue;
            };
            // An old owner cannot read a claim in whose place somebody has written what is not sealed.
            let hidden = self.hidden.remove(&job);
            let before = self.claimed.get(&checkpoint.job).copied().unwrap_or_default();
            let over = self.ending.contains(&checkpoint.job.batch);
            if checkpoint.epoch < before && !over && !hidden {
                let Checkpoint { job, epoch, owner, .. } = &checkpoint;
                self.fail(format!(
                    "J3: {owner} wrote {job} under epoch {epoch} after epoch {before} had claimed it"
                ));
            }
            if checkpoint.attempt.0 > ATTEMPTS_MAX + 1 + MOVES_A_FAULT * self.faults && !over {
                self.fail(format!("J3: attempt {} of {}", checkpoint.attempt, checkpoint.job));
            }
            self.moved += u64::from(before != Epoch(0) && checkpoint.epoch > before);
            let once = self.claimed_once.entry(checkpoint.job.clone()).or_default();
            *once = checkpoint.epoch.max(*once);
            self.claimed.insert(checkpoint.job.clone(), checkpoint.epoch.max(before));
        }
    }

    /// Claims that the server has lost are nobody's any more.
    pub(super) fn power_lost(&mut self, net: &JetStream) {
        self.claimed.clear();
        self.checkpoints_read = net.stream_facts(table::CHECKPOINTS).map_or(0, |facts| facts.last_sequence);
        let mut from = 1;
        while let Ok(Some(message)) = net.next_message(table::CHECKPOINTS, table::checkpoints_all(), from) {
            from = message.sequence + 1;
            let Some(job) = table::parse_checkpoint_subject(&message.subject) else { continue };
            if let Some(checkpoint) = self.key.checkpoint_key(&job).open(&message.payload) {
                self.claimed.insert(job, checkpoint.epoch);
            }
        }
    }

    /// Jobs that somebody has claimed.
    pub(super) fn claimed_jobs(&self) -> Vec<JobKey> {
        self.claimed.keys().cloned().collect()
    }

    /// A job, named by its seed, has killed its worker.
    pub(super) fn killed(&mut self, seed: u64) {
        *self.kills.entry(seed).or_default() += 1;
    }

    /// At the end: what a leader writes down of a host may come after the job has killed once more.
    fn killed_too_often(&self) -> Option<String> {
        // What is forged takes the place of the count of attempts.
        let times = if self.has_forger { 3 } else { 1 };
        self.kills.iter().find_map(|(seed, kills)| {
            let given_back = self.given_back.get(seed).copied().unwrap_or(0);
            let most = (ATTEMPTS_MAX + given_back + self.attempts_lost + self.faults) * times;
            (*kills > most)
                .then(|| format!("J3: one job has killed {kills} workers, where {most} are the most"))
        })
    }

    /// A worker's ack has removed this work message: there must be an answer, or a cause to drop the job.
    pub(super) fn acked(&mut self, now: TimeMs, payload: &[u8]) {
        let Ok(work) = codec::decode::<Work>(payload) else { return };
        let this = (work.job.clone(), work.epoch);
        let allowed = self.answered_jobs.contains(&work.job)
            || self.answered_epochs.contains(&this)
            || self.revoked.get(&work.job).is_some_and(|epoch| *epoch >= work.epoch)
            || self.claimed_once.get(&work.job).is_some_and(|epoch| *epoch > work.epoch)
            || self.ending.contains(&work.job.batch)
            || work.deadline.is_some_and(|deadline| deadline <= now.plus(SKEW_MAX))
            || self.newest_leader > work.leader;
        if !allowed {
            self.fail(format!("J2: {} was acked under epoch {} without an answer", work.job, work.epoch));
        }
    }

    /// A batch's record was stored. One that ends must have an answer for each of its lines.
    pub(super) fn recorded(&mut self, now: TimeMs, value: &[u8]) {
        let Ok(record) = codec::decode::<BatchRecord>(value) else { return };
        if record.answers_object.is_some() {
            self.archived.insert(record.id.clone(), now);
        }
        if let Some(batch) = self.batches.get_mut(&record.id) {
            batch.results_after.get_or_insert(record.results_after);
        }
        if record.ending.is_some() || record.state.is_terminal() {
            self.ending.insert(record.id.clone());
        }
        if record.state.is_terminal()
            && let Some(fault) = self.incomplete(&record)
        {
            self.fail(fault);
        }
        let totals = record.totals;
        if record.options.budget_usd_micro.is_some_and(|budget| totals.cost_usd_micro > budget) {
            self.fail(format!("M1: {} has spent {} of its budget", record.id, totals.cost_usd_micro));
        }
    }

    /// What the fleet has cost in all was stored.
    pub(super) fn account_stored(&mut self, now: TimeMs) {
        self.account_stored_at = now;
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
    pub(super) fn finish(&mut self, net: &mut JetStream, now: TimeMs, rented: Bill) -> Result<(), String> {
        self.results(net, now);
        self.rented(net, now, rented)?;
        if let Some(fault) = self.killed_too_often() {
            return Err(fault);
        }
        self.verdict()?;
        for id in self.batches.keys() {
            let record = stored_record(net, now, id).ok_or_else(|| format!("J1: {id} has no record"))?;
            if let Some(fault) = self.incomplete(&record) {
                return Err(fault);
            }
            if record.totals.cost_usd_micro < UsdMicro::ZERO {
                return Err(format!("M1: {id} ended having spent {}", record.totals.cost_usd_micro));
            }
        }
        Ok(())
    }

    /// The bill of a pod begins and ends when the scaler notices it, and faults may keep it from noticing, at each pod anew.
    fn rented(&self, net: &mut JetStream, now: TimeMs, rented: Bill) -> Result<(), String> {
        let stored = net.kv_get(now, table::KV_SCALE, "ledger").ok().flatten();
        let ledger: Option<Ledger> = stored.and_then(|entry| codec::decode(&entry.value).ok());
        let spent = ledger.map_or(0, |ledger| ledger.spent_usd_micro.0);
        let slack = (UNNOTICED + self.faults_last) * rented.pods as u32;
        let slack_usd_micro = rented.price_usd_micro_per_hour as f64 * slack.as_secs_f64() / 3600.0;
        let owed = rented.owed_usd_micro;
        if (spent - owed).abs() as f64 <= slack_usd_micro + 1.0 {
            return Ok(());
        }
        Err(format!("S4: {} pods cost {owed}, and the scaler has spent {spent}", rented.pods))
    }

    /// Every batch was accepted and has ended, as its record says, no completion runs, and nothing is rented.
    pub(super) fn all_ended(&self, net: &mut JetStream, now: TimeMs) -> bool {
        let lately = self.beats.values().filter(|(at, _)| now.since(*at) < Duration::from_secs(5));
        let completes = lately
            .filter_map(|(_, beat)| codec::decode::<Heartbeat>(beat).ok())
            .any(|beat| beat.running.iter().any(|job| job.job.batch.as_str().starts_with(COMPLETION)));
        let intents = net.kv_entries(now, table::KV_SCALE).unwrap_or_default();
        if completes || intents.iter().any(|entry| entry.key.starts_with("pod.")) {
            return false;
        }
        let ended = |id| stored_record(net, now, id).is_some_and(|record| record.state.is_terminal());
        self.batches.values().all(|batch| batch.accepted)
            && self.batches.keys().all(ended)
            && self.staying(net, now).next().is_none()
    }

    /// What has not ended, for people.
    pub(super) fn unended(&self, net: &mut JetStream, now: TimeMs) -> String {
        let mut parts = Vec::new();
        for (id, batch) in &self.batches {
            let record = stored_record(net, now, id);
            if batch.accepted && record.as_ref().is_some_and(|record| record.state.is_terminal()) {
                continue;
            }
            let (accepted, answered, lines) = (batch.accepted, batch.answered, batch.lines);
            let state = record.map(|record| (record.state, record.reason));
            let is_open =
                |index: &u32| !self.committed.contains_key(&JobKey { batch: id.clone(), index: *index });
            let open: Vec<u32> = (0..lines).filter(is_open).take(20).collect();
            parts.push(format!(
                "{id} accepted {accepted}, {state:?}, {answered} of {lines} lines answered; open or blank: {open:?}"
            ));
        }
        parts.extend(self.staying(net, now).map(|id| format!("R1: answers of {id} stay in RESULTS")));
        parts.join("; ")
    }

    pub(super) fn count(&self, tally: &mut Tally) {
        let good = |committed: &&(u64, Verdict)| matches!(committed.1, Verdict::Good { .. });
        tally.good = self.committed.values().filter(good).count() as u64;
        tally.duplicates = self.duplicates;
        tally.moved = self.moved;
        tally.wrong = self.wrong;
        tally.rejected = self.rejected;
        tally.account_stored_at = self.account_stored_at;
    }
}

/// What the scaler has stored of its spending.
#[derive(Debug, serde::Deserialize)]
struct Ledger {
    spent_usd_micro: UsdMicro,
}

/// The text of an answer: the simulation's workers speak bytes.
fn text_of(seed: u64, tokens_max: usize) -> String {
    ids_of(seed, tokens_max).into_iter().filter_map(char::from_u32).collect()
}

fn stored_record(net: &mut JetStream, now: TimeMs, id: &BatchId) -> Option<BatchRecord> {
    let entry = net.kv_get(now, table::KV_BATCHES, id.as_str()).ok()??;
    codec::decode(&entry.value).ok()
}
