//! What somebody says who has a worker's key and was given no job: another pod's name with an absurd price, jobs as its
//! own, checkpoints and answers that nobody signed.

use bytes::Bytes;
use ternfleet_proto::bus::{Bus, Publish};
use ternfleet_proto::message::{
    Checkpoint, Finish, Generated, Heartbeat, JobResult, Line, Outcome, Running, Timing, Usage, Work,
    WorkerState,
};
use ternfleet_proto::openai::Endpoint;
use ternfleet_proto::table;
use ternfleet_proto::tag::AssignmentTag;
use ternfleet_proto::{Attempt, Epoch, JobKey, LeaderRevision, TenantId, TimeMs, UsdMicro, WorkerId, codec};

use crate::instant::{Manner, first_beat};

/// An id that no answer is made of.
const WRONG: u32 = 35;
/// More than any budget.
const RUINOUS: UsdMicro = UsdMicro(1_000_000_000_000_000);
/// Nobody signed it.
const FORGED: AssignmentTag = AssignmentTag(7);

/// The victim's pod and host with another price and canary, and these jobs as its own.
pub fn lies(me: &WorkerId, victim: &Heartbeat, jobs: impl Iterator<Item = JobKey>) -> Heartbeat {
    let running: Vec<Running> = jobs
        .map(|job| Running {
            tag: job.index.is_multiple_of(2).then_some(FORGED),
            job,
            epoch: Epoch(0),
            generated: 1000,
            engine_us: u64::MAX,
        })
        .collect();
    Heartbeat {
        pod: victim.pod.clone(),
        host: victim.host.clone(),
        price_usd_micro_per_hour: RUINOUS,
        // It asks for no work: what it does besides must cost nobody anything.
        state: WorkerState::Draining,
        model: victim.model.clone(),
        model_digest: victim.model_digest.clone(),
        numerics: victim.numerics.clone(),
        canary: "c2-00000000000000000000000000000000".to_owned(),
        leader_seen: LeaderRevision(u64::MAX),
        slots_in_use: running.len() as u32,
        running,
        ..first_beat(me, &Manner::default(), TimeMs::now())
    }
}

/// A claim under an epoch beyond all others, with its subject.
pub fn forged_checkpoint(me: &WorkerId, job: JobKey) -> (String, Bytes) {
    let subject = table::checkpoint(&job);
    let checkpoint = Checkpoint {
        job,
        epoch: Epoch(u32::MAX),
        tag: Some(FORGED),
        attempt: Attempt(9),
        owner: me.clone(),
        host: "elsewhere".to_owned(),
        leader: LeaderRevision(u64::MAX),
        model_digest: String::new(),
        numerics: String::new(),
        generated: Vec::new(),
        logprobs: Vec::new(),
        choices: Vec::new(),
        generated_by: None,
        text: String::new(),
        claim: true,
        released: false,
        at: TimeMs::now(),
    };
    (subject, codec::encode(&checkpoint))
}

/// A checkpoint of a job that it was given, in good form and with wrong output: the work message brings the key that seals it.
pub fn poisoned_checkpoint(me: &WorkerId, work: &Work, tokens: usize) -> (String, Bytes) {
    let (subject, claim) = forged_checkpoint(me, work.job.clone());
    let mut checkpoint: Checkpoint = codec::decode(&claim).expect("because it was encoded here");
    (checkpoint.epoch, checkpoint.attempt) = (work.epoch, work.attempts_before.next());
    (checkpoint.tag, checkpoint.leader) = (Some(work.tag), work.leader);
    checkpoint.model_digest.clone_from(&work.model_digest);
    checkpoint.numerics.clone_from(&work.numerics);
    (checkpoint.generated, checkpoint.claim) = (vec![WRONG; tokens], false);
    (subject, work.checkpoint_key.seal(&checkpoint))
}

/// An answer to a job that it was not given, with its subject.
pub fn forged_answer(me: &WorkerId, tenant: &TenantId, job: JobKey) -> (String, Bytes) {
    let subject = table::result(tenant, &job, me);
    let text = Generated {
        text: "forged".to_owned(),
        finish: Finish::Stop,
        ids_digest: Generated::digest_of(&[WRONG]),
        ..Generated::default()
    };
    let answer = JobResult {
        job,
        tenant: tenant.clone(),
        epoch: Epoch(1),
        attempt: Attempt(1),
        worker: me.clone(),
        tag: FORGED,
        line: Line::new(None, Endpoint::Completions, None),
        outcome: Outcome::Text(text),
        usage: Usage::default(),
        timing: Timing::default(),
        nondeterministic: false,
        finished_at: TimeMs::now(),
        traceparent: None,
        rejected: None,
    };
    (subject, codec::encode(&answer))
}

/// What others have written it can read, and so write back with other ids under their own names and tags. True if there
/// was something.
pub async fn rewrite(thief: &dyn Bus, job: &JobKey) -> bool {
    let subject = table::checkpoint(job);
    let Ok(Some(last)) = thief.last_on_subject(table::CHECKPOINTS, &subject).await else { return false };
    let Ok(mut found) = codec::decode::<Checkpoint>(&last.payload) else { return false };
    if found.generated.iter().all(|id| *id == WRONG) {
        return false;
    }
    found.generated.fill(WRONG);
    let seal = &last.payload[last.payload.len().saturating_sub(16)..];
    let payload = [&codec::encode(&found)[..], seal].concat();
    thief.publish(&subject, payload.into(), Publish::default()).await.is_ok()
}
