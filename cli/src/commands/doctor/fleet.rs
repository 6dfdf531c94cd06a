//! The fleet: does a coordinator lead, which workers live, do they run the same model and version, do clocks agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ternfleet_proto::message::{PodList, PodView, Reply, ScaleDials, ScaleView, WorkerState};
use ternfleet_proto::nats::NatsBus;
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{Bus, TenantId, TimeMs, codec};

use super::Finding;
use super::server::clock;
use crate::client::tenant_of;
use crate::connection::Connection;
use crate::report;

/// A takeover by a standby fits inside.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);
const START_A_WORKER: &str = "start one with `ternfleet worker --nats URL --model PATH`";

pub(super) async fn look(bus: Option<&std::sync::Arc<NatsBus>>, connection: &Connection) -> Vec<Finding> {
    let address = connection.address();
    let address = address.url();
    // A tenant's credentials let it ask in its own name alone.
    let tenant = match tenant_of(connection) {
        Ok(tenant) => tenant,
        Err(reason) => {
            let fix = "pass valid credentials with --nats-credentials-file";
            return vec![Finding::fault("coordinator", format!("{reason:#}"), fix)];
        }
    };
    let Some(bus) = bus else {
        return ["coordinator", "workers"]
            .map(|check| Finding::unknown(check, "not checked: NATS does not reply", "fix NATS first"))
            .into();
    };
    let began = Instant::now();
    let answer =
        bus.request(&table::api_of(ApiVerb::Pods, &tenant), codec::encode(&()), ANSWER_TIMEOUT).await;
    let reply: Reply<Vec<PodView>> = match answer.map(|payload| codec::decode(&payload)) {
        Ok(Ok(reply)) => reply,
        Ok(Err(reason)) => {
            let fix = "coordinator and this program have different versions: update the older one";
            return vec![Finding::fault("coordinator", reason.to_string(), fix)];
        }
        Err(reason) => {
            let fix =
                format!("start one with `ternfleet coordinator --nats {address}`; if one runs, read its log");
            return vec![
                Finding::fault("coordinator", format!("no coordinator leads: {reason}"), fix),
                Finding::unknown("workers", "not checked: no coordinator leads", "fix the coordinator first"),
            ];
        }
    };
    let mut found = Vec::new();
    match reply {
        Ok(mut pods) => {
            pods.extend(further_pages(bus, &tenant, &pods).await);
            found.push(Finding::ok(
                "coordinator",
                format!("leads, replied in {} ms", began.elapsed().as_millis()),
            ));
            let scale = scale(bus, &tenant).await;
            found.extend(workers(&pods, scale.as_ref(), TimeMs::now()));
            found.extend(scale.into_iter().flat_map(rented));
        }
        Err(refusal) => {
            found.push(Finding::warning(
                "coordinator",
                refusal.message,
                "it is starting: check again in some seconds",
            ));
        }
    }
    found
}

/// What the fleet rents. Who may not ask has none, nor has a fleet that rents nothing.
async fn scale(bus: &NatsBus, tenant: &TenantId) -> Option<ScaleView> {
    let question = codec::encode(&ScaleDials::default());
    let answer = bus.request(&table::api_of(ApiVerb::ScaleShow, tenant), question, ANSWER_TIMEOUT).await;
    codec::decode::<Reply<ScaleView>>(&answer.ok()?).ok()?.ok()
}

/// Classes whose pods fail, with their last lines.
fn rented(view: ScaleView) -> Vec<Finding> {
    let mut found = Vec::new();
    for class in view.classes {
        if let Some(failed) = &class.failed {
            let last = failed.log.last().map(|line| format!(": {line}")).unwrap_or_default();
            found.push(Finding::warning(
                "rented pods",
                format!("{} of class {} failed, {}{last}", failed.pod, class.name, failed.why),
                "see its last log lines with `ternfleet scale show`",
            ));
        }
        if let Some(why) = class.refused {
            let fix = "fix the class in the coordinator's configuration, or wait";
            found.push(Finding::warning("rented pods", format!("none of class {}: {why}", class.name), fix));
        }
    }
    if let Some(why) = view.halted {
        found.push(Finding::fault(
            "rented pods",
            format!("nothing is ordered: {why}"),
            "check the account at the provider",
        ));
    }
    found
}

/// The pages behind the first, as far as they are told.
async fn further_pages(bus: &NatsBus, tenant: &TenantId, first: &[PodView]) -> Vec<PodView> {
    let mut found: Vec<PodView> = Vec::new();
    while let Some(last) = found.last().or(first.last()) {
        let ask = codec::encode(&PodList { after: Some(last.heartbeat.worker.clone()) });
        let answer = bus.request(&table::api_of(ApiVerb::Pods, tenant), ask, ANSWER_TIMEOUT).await;
        let page = answer.ok().and_then(|payload| codec::decode::<Reply<Vec<PodView>>>(&payload).ok());
        match page {
            Some(Ok(page)) if !page.is_empty() => found.extend(page),
            _ => break,
        }
    }
    found
}

fn workers(pods: &[PodView], scale: Option<&ScaleView>, now: TimeMs) -> Vec<Finding> {
    let live: Vec<&PodView> = pods.iter().filter(|pod| pod.live).collect();
    if pods.is_empty() && scale.is_some_and(|scale| scale.pods_max > 0) {
        return vec![Finding::ok("workers", report::no_pods(scale))];
    }
    if live.is_empty() {
        let detail = match pods.len() {
            0 => "no worker is connected".to_owned(),
            n => format!("{n} known, none of them live"),
        };
        return vec![Finding::fault("workers", detail, START_A_WORKER)];
    }
    let rate: f64 = live.iter().map(|pod| pod.rate_tok_s).sum();
    let mut found = vec![Finding::ok("workers", format!("{} live, {rate:.1} tok/s measured", live.len()))];
    for pod in pods.iter().filter(|pod| !pod.live) {
        found.push(Finding::warning(
            "workers",
            format!("{} on {} sends no heartbeats", pod.heartbeat.worker, pod.heartbeat.pod),
            "its jobs move to other workers; check the pod, and terminate it if it does not recover",
        ));
    }
    for pod in live.iter().filter(|pod| pod.heartbeat.state == WorkerState::Draining) {
        found.push(Finding::warning(
            "workers",
            format!("{} drains and takes no new jobs", pod.heartbeat.worker),
            "start another worker if you did not ask for this",
        ));
    }
    let mut digests: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut versions = BTreeSet::new();
    for pod in &live {
        digests.entry(&pod.heartbeat.model).or_default().insert(&pod.heartbeat.model_digest);
        versions.insert(pod.heartbeat.version.as_str());
    }
    for (model, kinds) in digests.iter().filter(|(_, kinds)| kinds.len() > 1) {
        found.push(Finding::warning(
            "models",
            format!("{} different files are served under the name {model}", kinds.len()),
            "a job that moves between them starts from the beginning; use the same file on every worker",
        ));
    }
    if digests.values().all(|kinds| kinds.len() == 1) {
        let names: Vec<&str> = digests.keys().copied().collect();
        found.push(Finding::ok("models", names.join(", ")));
    }
    if versions.iter().any(|version| *version != env!("CARGO_PKG_VERSION")) {
        let all: Vec<&str> = versions.into_iter().collect();
        found.push(Finding::warning(
            "versions",
            format!("workers run {}, this program is {}", all.join(", "), env!("CARGO_PKG_VERSION")),
            "update the older ones when convenient; neighbouring versions work together",
        ));
    }
    // A heartbeat is up to a second old when it is looked at; that is well within what is allowed.
    if let Some(worst) = live.iter().max_by_key(|pod| pod.heartbeat.at.0.abs_diff(now.0)) {
        let name = format!("worker {}", worst.heartbeat.worker);
        found.push(clock("worker clocks", &name, worst.heartbeat.at.0, now));
    }
    found
}
