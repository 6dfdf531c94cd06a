//! Subjects and names: one function to build each, one to read each that arrives.

use crate::id::{BatchId, JobKey, Lane, TenantId, WorkerId};

/// Name of a work stream. At most 500 workers share one: 1,000 consumers is the server's default limit.
pub fn work_stream(shard: u16) -> String {
    format!("WORK-{shard}")
}

/// `tf.work.<shard>.<worker>.<lane>`: the shard is a token because streams must not overlap in subjects.
pub fn work(shard: u16, worker: &WorkerId, lane: Lane) -> String {
    format!("tf.work.{shard}.{worker}.{}", lane.as_str())
}

pub fn work_all(shard: u16) -> String {
    format!("tf.work.{shard}.>")
}

/// Shard, worker and lane of a work message's subject; `None` for anything else.
pub fn parse_work_subject(subject: &str) -> Option<(u16, WorkerId, Lane)> {
    let mut tokens = subject.strip_prefix("tf.work.")?.split('.');
    let shard = tokens.next()?.parse().ok()?;
    let worker = tokens.next()?.parse().ok()?;
    let word = tokens.next()?;
    let lane = Lane::ALL.into_iter().find(|lane| lane.as_str() == word)?;
    tokens.next().is_none().then_some((shard, worker, lane))
}

/// Message id of an assignment. A new one for each epoch, since an id repeated on another subject of the stream would be
/// taken for a duplicate and stored nowhere.
pub fn work_message_id(job: &JobKey, epoch: crate::id::Epoch) -> String {
    format!("{job}.{epoch}")
}

pub fn work_consumer(worker: &WorkerId, lane: Lane) -> String {
    format!("{worker}-{}", lane.as_str())
}

pub fn checkpoint(job: &JobKey) -> String {
    format!("tf.ckpt.{}.{}", job.batch, job.index)
}

/// The job of a checkpoint's subject; `None` for anything else.
pub fn parse_checkpoint_subject(subject: &str) -> Option<JobKey> {
    let mut tokens = subject.strip_prefix("tf.ckpt.")?.split('.');
    let job = job_of(tokens.next()?, tokens.next()?)?;
    tokens.next().is_none().then_some(job)
}

pub fn checkpoints_all() -> &'static str {
    "tf.ckpt.>"
}

pub fn checkpoints_of(batch: &BatchId) -> String {
    format!("tf.ckpt.{batch}.>")
}

pub fn result(tenant: &TenantId, job: &JobKey, worker: &WorkerId) -> String {
    format!("tf.result.{tenant}.{}.{}.{worker}", job.batch, job.index)
}

/// Tenant, job and author of a result's subject; `None` for anything else. The subject is what the server let the
/// author publish under, so it is believed before the message is.
pub fn parse_result_subject(subject: &str) -> Option<(TenantId, JobKey, WorkerId)> {
    let mut tokens = subject.strip_prefix("tf.result.")?.split('.');
    let tenant = tokens.next()?.parse().ok()?;
    let job = job_of(tokens.next()?, tokens.next()?)?;
    let worker = tokens.next()?.parse().ok()?;
    tokens.next().is_none().then_some((tenant, job, worker))
}

pub fn results_of(tenant: &TenantId, batch: &BatchId) -> String {
    format!("tf.result.{tenant}.{batch}.>")
}

pub fn results_all() -> &'static str {
    "tf.result.>"
}

pub fn event(kind: &str) -> String {
    format!("tf.event.{kind}")
}

pub fn dead_all() -> &'static str {
    "tf.dead.>"
}

pub fn events_all() -> &'static str {
    "tf.event.>"
}

/// What the server itself has to say: messages given up, consumers deleted, leaders changed.
pub fn advisories_all() -> &'static str {
    "$JS.EVENT.ADVISORY.>"
}

pub fn dead(tenant: &TenantId, job: &JobKey) -> String {
    format!("tf.dead.{tenant}.{}.{}", job.batch, job.index)
}

/// Dead jobs of a tenant, or of one of its batches.
pub fn dead_of(tenant: &TenantId, batch: Option<&BatchId>) -> String {
    match batch {
        Some(batch) => format!("tf.dead.{tenant}.{batch}.*"),
        None => format!("tf.dead.{tenant}.>"),
    }
}

pub fn heartbeat(worker: &WorkerId) -> String {
    format!("tf.fleet.heartbeat.{worker}")
}

pub fn heartbeats() -> &'static str {
    "tf.fleet.heartbeat.*"
}

/// The worker of a heartbeat's subject; `None` for anything else.
pub fn parse_heartbeat_subject(subject: &str) -> Option<WorkerId> {
    subject.strip_prefix("tf.fleet.heartbeat.")?.parse().ok()
}

/// Where the coordinator has a worker count the tokens of prompts ([`crate::message::CountAsk`]).
pub fn count(worker: &WorkerId) -> String {
    format!("tf.fleet.count.{worker}")
}

pub fn control(worker: &WorkerId) -> String {
    format!("tf.fleet.control.{worker}")
}

pub fn control_all() -> &'static str {
    "tf.fleet.control.all"
}

pub fn tokens(job: &JobKey) -> String {
    format!("tf.token.{}.{}", job.batch, job.index)
}

/// Core subject on which the coordinator announces the committed answer (`JobResult`) of a job that somebody waits for.
pub fn done(job: &JobKey) -> String {
    format!("tf.done.{}.{}", job.batch, job.index)
}

/// For callers who act for every tenant and are trusted to name the right one: the gateway, and all on a NATS without
/// permissions.
pub fn api(verb: ApiVerb) -> String {
    format!("tf.api.{}", verb.as_str())
}

/// For a caller who is one tenant: the server lets only that tenant publish here.
pub fn api_of(verb: ApiVerb, tenant: &TenantId) -> String {
    format!("tf.api.{}.{tenant}", verb.as_str())
}

pub fn api_all() -> &'static str {
    "tf.api.>"
}

/// A worker asks whether a coordinator is there; any answer will do.
pub fn ping(worker: &WorkerId) -> String {
    format!("tf.fleet.ping.{worker}")
}

pub fn pings() -> &'static str {
    "tf.fleet.ping.*"
}

/// Where `name` asks for credentials: a pod with a join token, or a worker that renews its own.
pub fn join(name: &str) -> String {
    format!("tf.join.{name}")
}

pub fn joins() -> &'static str {
    "tf.join.*"
}

/// Who asks on a [`join`] subject.
pub fn parse_join_subject(subject: &str) -> Option<&str> {
    subject.strip_prefix("tf.join.").filter(|name| !name.contains('.'))
}

/// Where a pod whose start failed says so, under the name that it would have joined with ([`crate::message::StartFailed`]).
pub fn start_failed(name: &str) -> String {
    format!("tf.fleet.failed.{name}")
}

pub fn starts_failed() -> &'static str {
    "tf.fleet.failed.*"
}

/// Whose start failed.
pub fn parse_start_failed_subject(subject: &str) -> Option<&str> {
    subject.strip_prefix("tf.fleet.failed.").filter(|name| !name.contains('.'))
}

/// The coordinator's verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiVerb {
    BatchCreate,
    BatchGet,
    BatchList,
    /// Batches by state and text, open ones first.
    BatchFind,
    BatchCancel,
    BatchSet,
    Results,
    Pods,
    /// Pods, lost pods, and what all of them have cost.
    Fleet,
    /// A lost pod is shown no longer.
    PodDismiss,
    JobCreate,
    DeadList,
    Quote,
    /// Tokens of prompts, counted by some worker.
    Count,
    ScaleShow,
    ScaleSet,
    ScalePlan,
    /// Makes the tenant's bucket for files, if it is not there.
    TenantOpen,
    /// Removes a file of the tenant, unless a batch that has not ended reads it.
    FileDelete,
}

impl ApiVerb {
    pub const ALL: [ApiVerb; 19] = [
        ApiVerb::BatchCreate,
        ApiVerb::BatchGet,
        ApiVerb::BatchList,
        ApiVerb::BatchFind,
        ApiVerb::BatchCancel,
        ApiVerb::BatchSet,
        ApiVerb::Results,
        ApiVerb::Pods,
        ApiVerb::Fleet,
        ApiVerb::PodDismiss,
        ApiVerb::JobCreate,
        ApiVerb::DeadList,
        ApiVerb::Quote,
        ApiVerb::Count,
        ApiVerb::ScaleShow,
        ApiVerb::ScaleSet,
        ApiVerb::ScalePlan,
        ApiVerb::TenantOpen,
        ApiVerb::FileDelete,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            ApiVerb::BatchCreate => "batch_create",
            ApiVerb::BatchGet => "batch_get",
            ApiVerb::BatchList => "batch_list",
            ApiVerb::BatchFind => "batch_find",
            ApiVerb::BatchCancel => "batch_cancel",
            ApiVerb::BatchSet => "batch_set",
            ApiVerb::Results => "results",
            ApiVerb::Pods => "pods",
            ApiVerb::Fleet => "fleet",
            ApiVerb::PodDismiss => "pod_dismiss",
            ApiVerb::JobCreate => "job_create",
            ApiVerb::DeadList => "dead_list",
            ApiVerb::Quote => "quote",
            ApiVerb::Count => "count",
            ApiVerb::ScaleShow => "scale_show",
            ApiVerb::ScaleSet => "scale_set",
            ApiVerb::ScalePlan => "scale_plan",
            ApiVerb::TenantOpen => "tenant_open",
            ApiVerb::FileDelete => "file_delete",
        }
    }

    /// Answered by the scaler, not by the ledger.
    pub fn is_of_the_scaler(self) -> bool {
        matches!(self, ApiVerb::ScaleShow | ApiVerb::ScaleSet | ApiVerb::ScalePlan)
    }

    /// Changes or tells what is the operator's alone; tenants may not ask it.
    pub fn is_of_the_operator(self) -> bool {
        self.is_of_the_scaler() || self == ApiVerb::PodDismiss
    }

    /// The verb of a subject, and the tenant that the server has vouched for, if the subject names one.
    pub fn parse(subject: &str) -> Option<(ApiVerb, Option<TenantId>)> {
        let mut tokens = subject.strip_prefix("tf.api.")?.split('.');
        let word = tokens.next()?;
        let verb = Self::ALL.into_iter().find(|v| v.as_str() == word)?;
        let tenant = match tokens.next() {
            Some(token) => Some(token.parse().ok()?),
            None => None,
        };
        tokens.next().is_none().then_some((verb, tenant))
    }
}

/// Every question of NATS's service protocol.
pub fn services_all() -> &'static str {
    "$SRV.>"
}

/// What such a question asks, if it is for every service, or for the one of this name, or for this instance of it.
pub fn parse_service<'a>(subject: &'a str, name: &str, id: &str) -> Option<&'a str> {
    let mut tokens = subject.strip_prefix("$SRV.")?.split('.');
    let verb = tokens.next()?;
    let is_for = [name, id].iter().all(|own| tokens.next().is_none_or(|token| token == *own));
    (is_for && tokens.next().is_none()).then_some(verb)
}

/// Bucket of a tenant's inputs and outputs.
pub fn files_bucket(tenant: &TenantId) -> String {
    format!("files_{tenant}")
}

/// Key of a file of the tenant in the bucket of file records.
pub fn file_key(tenant: &TenantId, object: &str) -> String {
    format!("{tenant}.{object}")
}

/// The tenant and the object of a key that [`file_key`] has made.
pub fn parse_file_key(key: &str) -> Option<(TenantId, &str)> {
    // Ids of tenants have no dot.
    let (tenant, object) = key.split_once('.')?;
    Some((tenant.parse().ok()?, object))
}

/// Stream of a key-value bucket, as every NATS client names it.
pub fn kv_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// Every value of a key-value bucket, in its stream.
pub fn kv_values(bucket: &str) -> String {
    format!("$KV.{bucket}.>")
}

/// The key that a message of a bucket's stream belongs to.
pub fn kv_key<'a>(bucket: &str, subject: &'a str) -> Option<&'a str> {
    subject.strip_prefix("$KV.")?.strip_prefix(bucket)?.strip_prefix('.')
}

/// Stream of an object bucket, as every NATS client names it.
pub fn object_stream(bucket: &str) -> String {
    format!("OBJ_{bucket}")
}

pub(crate) fn object_chunks(bucket: &str, nuid: &str) -> String {
    format!("$O.{bucket}.C.{nuid}")
}

pub(crate) fn object_metadata(bucket: &str, encoded_name: &str) -> String {
    format!("$O.{bucket}.M.{encoded_name}")
}

pub(crate) fn any_checkpoint() -> String {
    "tf.ckpt.*.*".to_owned()
}

pub(crate) fn any_tokens() -> String {
    "tf.token.*.*".to_owned()
}

pub(crate) fn any_result_by(worker: &WorkerId) -> String {
    format!("tf.result.*.*.*.{worker}")
}

fn job_of(batch: &str, index: &str) -> Option<JobKey> {
    // Only the spelling that the builder writes: `+7` and `007` would be a second name for one job.
    let index_number: u32 = index.parse().ok()?;
    (index_number.to_string() == index).then_some(())?;
    Some(JobKey { batch: batch.parse().ok()?, index: index_number })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobKey {
        JobKey { batch: "batch_a-1".parse().unwrap(), index: 70_000 }
    }

    #[test]
    fn every_built_subject_reads_back() {
        let (tenant, worker): (TenantId, WorkerId) = ("acme".parse().unwrap(), "w-7_x".parse().unwrap());
        assert_eq!(parse_checkpoint_subject(&checkpoint(&job())), Some(job()));
        assert_eq!(
            parse_result_subject(&result(&tenant, &job(), &worker)),
            Some((tenant.clone(), job(), worker.clone()))
        );
        for lane in Lane::ALL {
            assert_eq!(parse_work_subject(&work(499, &worker, lane)), Some((499, worker.clone(), lane)));
        }
        assert_eq!(parse_heartbeat_subject(&heartbeat(&worker)), Some(worker));
        for verb in ApiVerb::ALL {
            assert_eq!(ApiVerb::parse(&api(verb)), Some((verb, None)));
            assert_eq!(ApiVerb::parse(&api_of(verb, &tenant)), Some((verb, Some(tenant.clone()))));
        }
    }

    #[test]
    fn a_subject_of_another_shape_reads_as_nothing() {
        for foreign in [
            "",
            "tf.ckpt.",
            "tf.ckpt.b",
            "tf.ckpt.b.x",
            "tf.ckpt.b.-1",
            "tf.ckpt.b.007",
            "tf.ckpt.b.4294967296",
            "tf.ckpt.b.1.2",
            "tf.ckpt.b b.1",
            "tf.result.t.b.1",
        ] {
            assert_eq!(parse_checkpoint_subject(foreign), None, "{foreign}");
        }
        for foreign in
            ["tf.result.t.b.1", "tf.result.t.b.1.w.more", "tf.result.t.b.one.w", "tf.result.t.b.1.*"]
        {
            assert_eq!(parse_result_subject(foreign), None, "{foreign}");
        }
        for foreign in ["tf.work.0.w", "tf.work.0.w.express", "tf.work.65536.w.batch", "tf.work.0.w.batch.x"]
        {
            assert_eq!(parse_work_subject(foreign), None, "{foreign}");
        }
        for foreign in ["tf.api.format_disk", "tf.api.pods.a b", "tf.api.pods.a.b", "tf.api.pods."] {
            assert_eq!(ApiVerb::parse(foreign), None, "{foreign}");
        }
        assert_eq!(parse_join_subject(&join("pod-1")), Some("pod-1"));
        assert_eq!(parse_join_subject("tf.join.a.b"), None);
    }
}
