//! Who may say what: the permissions of each role, made from the same functions that build the subjects.
//!
//! They travel in the account's token as templates; the server puts the name of whoever connects in place of
//! `{{name()}}`. What is not listed here is refused by the server, whatever a client sends.
//!
//! Two operations of JetStream are given to the coordinator alone although others might use them: making a consumer and
//! `DIRECT.GET`. Both let the server deliver stored bytes, headers and all, on a subject that the caller names, and so
//! past the caller's own permissions. `STREAM.MSG.GET` answers with JSON, which nobody takes for a message.

use super::subjects::{self, ApiVerb};
use super::{CHECKPOINTS, LARGE_REQUESTS};
use crate::id::{Lane, TenantId, WorkerId};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Creates streams and consumers, assigns work, reads everything.
    Coordinator,
    /// Named by its worker id: pulls its own work, publishes under its own name.
    Worker,
    /// Named by the tenant: its own files and batches.
    Tenant,
    /// A new pod that has a join token and asks for a worker's credentials.
    Joiner,
}

/// Subjects that a role may publish to and subscribe to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
    /// May answer a request once, wherever its answer is to go.
    pub answers: bool,
}

/// What the server replaces by the name of the user.
const NAME: &str = "{{name()}}";
/// Stands in for the name where a subject is built from an id.
const STAND_IN: &str = "NAME-GOES-HERE";
const INBOXES: &str = "_INBOX";

impl Role {
    pub const ALL: [Role; 4] = [Role::Coordinator, Role::Worker, Role::Tenant, Role::Joiner];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator",
            Role::Worker => "worker",
            Role::Tenant => "tenant",
            Role::Joiner => "joiner",
        }
    }

    pub fn parse(word: &str) -> Option<Role> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }

    /// Where answers to `name` go. Nobody else may listen there.
    pub fn inbox(self, name: &str) -> String {
        format!("{INBOXES}_{}_{name}", self.as_str())
    }
}

/// True for subjects made for answers. Whoever answers a request looks here first: a reply subject is the caller's
/// choice, and anything else would make the answerer publish where the caller may not.
pub fn is_inbox(subject: &str) -> bool {
    subject.strip_prefix(INBOXES).is_some_and(|rest| rest.starts_with(['.', '_']))
}

/// The permissions of a role, with `{{name()}}` where the user's name belongs.
pub fn permissions(role: Role) -> Permissions {
    let (publish, subscribe) = match role {
        Role::Coordinator => (vec![">".to_owned()], vec![">".to_owned()]),
        Role::Worker => worker(),
        Role::Tenant => tenant(),
        Role::Joiner => {
            let publish = vec![subjects::join(STAND_IN), subjects::start_failed(STAND_IN)];
            (publish, vec![format!("{}.>", role.inbox(STAND_IN))])
        }
    };
    let named = |list: Vec<String>| list.into_iter().map(|subject| subject.replace(STAND_IN, NAME)).collect();
    // Only the coordinator may send a worker requests, and it has answers come to its own inbox.
    let answers = role == Role::Worker;
    Permissions { publish: named(publish), subscribe: named(subscribe), answers }
}

fn worker() -> (Vec<String>, Vec<String>) {
    let me: WorkerId = STAND_IN.parse().expect("because the stand-in is made of id characters");
    let mut publish = vec![
        subjects::heartbeat(&me),
        subjects::ping(&me),
        subjects::join(STAND_IN),
        // A worker may be handed any job, so it may claim any; claims are fenced and audited.
        subjects::any_checkpoint(),
        subjects::any_tokens(),
        subjects::any_result_by(&me),
        get_message(CHECKPOINTS),
        get_message(&subjects::object_stream(LARGE_REQUESTS)),
    ];
    for lane in Lane::ALL {
        let consumer = subjects::work_consumer(&me, lane);
        publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.*.{consumer}"));
        // The second form has the server's domain and a hash of the account in front of the stream.
        publish.push(format!("$JS.ACK.*.{consumer}.>"));
        publish.push(format!("$JS.ACK.*.*.*.{consumer}.>"));
    }
    let subscribe = vec![
        subjects::control(&me),
        subjects::control_all().to_owned(),
        subjects::count(&me),
        format!("{}.>", Role::Worker.inbox(STAND_IN)),
    ];
    (publish, subscribe)
}

fn tenant() -> (Vec<String>, Vec<String>) {
    let me: TenantId = STAND_IN.parse().expect("because the stand-in is made of id characters");
    // Single jobs name their own batch and are answered on a subject without a tenant: the gateway's business. What is
    // rented, and for how much, is the operator's.
    let is_theirs = |verb: &ApiVerb| *verb != ApiVerb::JobCreate && !verb.is_of_the_operator();
    let verbs = ApiVerb::ALL.into_iter().filter(is_theirs);
    let mut publish: Vec<String> = verbs.map(|verb| subjects::api_of(verb, &me)).collect();
    let bucket = subjects::files_bucket(&me);
    let stream = subjects::object_stream(&bucket);
    publish.extend([
        subjects::object_chunks(&bucket, "*"),
        subjects::object_metadata(&bucket, "*"),
        get_message(&stream),
        format!("$JS.API.STREAM.PURGE.{stream}"),
    ]);
    (publish, vec![format!("{}.>", Role::Tenant.inbox(STAND_IN))])
}

fn get_message(stream: &str) -> String {
    format!("$JS.API.STREAM.MSG.GET.{stream}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::JobKey;

    /// NATS's own rule for a filter and a subject.
    fn matches(filter: &str, subject: &str) -> bool {
        let mut subject = subject.split('.');
        for token in filter.split('.') {
            match (token, subject.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (word, Some(found)) if word == found => {}
                _ => return false,
            }
        }
        subject.next().is_none()
    }

    fn may_publish(role: Role, name: &str, subject: &str) -> bool {
        permissions(role).publish.iter().any(|filter| matches(&filter.replace(NAME, name), subject))
    }

    fn may_subscribe(role: Role, name: &str, subject: &str) -> bool {
        permissions(role).subscribe.iter().any(|filter| matches(&filter.replace(NAME, name), subject))
    }

    #[test]
    fn a_worker_speaks_under_its_own_name_only() {
        let (me, other): (WorkerId, WorkerId) = ("w-1".parse().unwrap(), "w-2".parse().unwrap());
        let job = JobKey { batch: "b".parse().unwrap(), index: 7 };
        let tenant: TenantId = "acme".parse().unwrap();
        let may = |subject: &str| may_publish(Role::Worker, me.as_str(), subject);
        for own in [
            subjects::heartbeat(&me),
            subjects::result(&tenant, &job, &me),
            subjects::checkpoint(&job),
            subjects::tokens(&job),
            format!("$JS.API.CONSUMER.MSG.NEXT.WORK-0.{}", subjects::work_consumer(&me, Lane::Batch)),
        ] {
            assert!(may(&own), "{own}");
        }
        for foreign in [
            subjects::heartbeat(&other),
            subjects::result(&tenant, &job, &other),
            subjects::work(0, &me, Lane::Batch),
            subjects::control(&other),
            subjects::control_all().to_owned(),
            subjects::count(&other),
            subjects::api(ApiVerb::BatchCancel),
            subjects::event("spent"),
            subjects::done(&job),
            format!("$JS.API.CONSUMER.MSG.NEXT.WORK-0.{}", subjects::work_consumer(&other, Lane::Batch)),
            "$JS.API.STREAM.MSG.GET.KV_control".to_owned(),
            "$JS.API.STREAM.MSG.GET.RESULTS".to_owned(),
            "$JS.API.CONSUMER.CREATE.WORK-0.mine".to_owned(),
            "$JS.API.DIRECT.GET.RESULTS".to_owned(),
        ] {
            assert!(!may(&foreign), "{foreign}");
        }
        assert!(may_subscribe(Role::Worker, "w-1", &subjects::control(&me)));
        assert!(!may_subscribe(Role::Worker, "w-1", &subjects::control(&other)));
        assert!(!may_subscribe(Role::Worker, "w-1", &format!("{}.x", Role::Worker.inbox("w-2"))));
    }

    #[test]
    fn a_tenant_asks_in_its_own_name_and_makes_no_streams() {
        let (me, other): (TenantId, TenantId) = ("acme".parse().unwrap(), "rival".parse().unwrap());
        for verb in ApiVerb::ALL {
            let own = may_publish(Role::Tenant, "acme", &subjects::api_of(verb, &me));
            assert_eq!(own, verb != ApiVerb::JobCreate && !verb.is_of_the_operator(), "{verb:?}");
            assert!(!may_publish(Role::Tenant, "acme", &subjects::api_of(verb, &other)));
            assert!(!may_publish(Role::Tenant, "acme", &subjects::api(verb)));
        }
        let job = JobKey { batch: "b".parse().unwrap(), index: 0 };
        for foreign in [
            subjects::tokens(&job),
            subjects::done(&job),
            subjects::results_of(&me, &job.batch),
            subjects::object_chunks(&subjects::files_bucket(&other), "x"),
            format!("$JS.API.STREAM.CREATE.{}", subjects::object_stream(&subjects::files_bucket(&me))),
        ] {
            assert!(!may_publish(Role::Tenant, "acme", &foreign), "{foreign}");
            assert!(!may_subscribe(Role::Tenant, "acme", &foreign), "{foreign}");
        }
    }

    #[test]
    fn answers_go_to_inboxes_and_nowhere_else() {
        for inbox in ["_INBOX.abc", "_INBOX_tenant_acme.x.y"] {
            assert!(is_inbox(inbox), "{inbox}");
        }
        for other in ["", "tf.fleet.control.all", "_INBOXES.x", "x._INBOX.y", "$JS.API.STREAM.DELETE.RESULTS"]
        {
            assert!(!is_inbox(other), "{other}");
        }
    }
}
