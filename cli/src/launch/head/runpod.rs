//! A head at RunPod: a small CPU pod with one public port. This machine holds the keys, finds the head again by its
//! name, and ends by name whatever is left.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use ternfleet_cloud::http::Secret;
use ternfleet_cloud::runpod::{Options, Runpod};
use ternfleet_cloud::{CloudError, Compute, Order, Provider, Rented, Tier, start};
use ternfleet_proto::access::Site;
use ternfleet_proto::{TimeMs, UsdMicro};

use super::{Lost, Reached};
use crate::client::Fleet;
use crate::commands::nats::Authority;
use crate::connection::Connection;
use crate::launch::bill::{Bill, PodBill};
use crate::launch::bundle::{self, Bundle, Serves};
use crate::launch::rent::Rent;
use crate::launch::state::{Folder, State};
use crate::local::LaunchBudget;
use crate::output::write_secret;

/// An order that is not answered clearly is repeated for so long.
const ORDERED_WITHIN: Duration = Duration::from_secs(900);
/// Heads that end before they answer have a fault that the next one has, too.
const ORDERS_MAX: u32 = 3;
/// Between two looks at the provider's list, while a head starts and while it works.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Until pods that were ended are looked for.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const WATCH_EVERY: Duration = Duration::from_secs(3);
/// A head is taken for lost when whole lists have not held it for so long.
const MISSED_FOR: Duration = Duration::from_secs(10);
/// Everything is ended within this time, or a person has to look.
const END_WITHIN: Duration = Duration::from_secs(120);
/// A head that was ordered shows in the list within this time, or it has ended.
const LISTED_WITHIN: Duration = Duration::from_secs(15);
/// Looks of the provider's client for an order without an answer, and one more: an order that was under way when its
/// head was ended shows within so many times the client's patience.
const LOOKS: u32 = 4;
const HEAD_DISK_GB: u32 = 10;
/// When a pod was last seen is written down this often.
const NOTED_EVERY: Duration = Duration::from_secs(5);

/// What is kept beside the state: written before each order of a head, and when a pod is first seen.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Seen {
    /// How many heads were ordered: each has another name, and its pods, too.
    heads: u32,
    pods: BTreeMap<String, PodBill>,
    /// By the provider's id: from its creation to when it was last seen.
    #[serde(default)]
    spans: BTreeMap<String, (TimeMs, TimeMs)>,
}

impl Seen {
    /// What the pods have cost, as far as this machine has seen them or the provider has said.
    fn cost(&self, billed: &BTreeMap<String, UsdMicro>) -> UsdMicro {
        let cost = |row: &PodBill| {
            let id = row.provider_id.as_deref().unwrap_or_default();
            let seen =
                self.spans.get(id).map(|(from, to)| row.price_usd_micro_per_hour.over(to.since(*from)));
            seen.into_iter().chain(billed.get(id).copied()).max().unwrap_or_default()
        };
        self.pods.values().map(cost).sum()
    }
}

#[derive(Debug)]
pub(crate) struct RunpodHead {
    provider: Runpod,
    key: String,
    rent: Rent,
    name: String,
    folder: PathBuf,
    site: Site,
    began_at: TimeMs,
    /// For everything together.
    budget: Option<UsdMicro>,
    /// An order that was under way may show for so long.
    settles: Duration,
}

impl RunpodHead {
    pub(super) fn new(state: &State, folder: &Folder) -> anyhow::Result<RunpodHead> {
        let rent = state.rent.clone().context("the state file does not say what may be rented")?;
        let key = rent.key()?;
        let mut options = Options::new(Secret::new(key.clone()));
        if let Some(base) = &rent.base {
            options.base.clone_from(base);
        }
        options.settle = Duration::from_millis(rent.scale.runpod.settle_ms);
        let settles = LOOKS * options.settle;
        let folder = folder.path().to_owned();
        let site = keys(&folder)?;
        Ok(RunpodHead {
            provider: Runpod::new(options)?,
            key,
            rent,
            name: state.name.clone(),
            folder,
            site,
            began_at: state.began_at,
            budget: state.budget_usd_micro,
            settles,
        })
    }

    fn file(&self) -> PathBuf {
        self.folder.join("pods.json")
    }

    fn seen(&self) -> anyhow::Result<Seen> {
        match std::fs::read(self.file()) {
            Ok(text) => serde_json::from_slice(&text).context("pods.json cannot be parsed"),
            Err(reason) if reason.kind() == std::io::ErrorKind::NotFound => Ok(Seen::default()),
            Err(reason) => Err(reason).with_context(|| format!("cannot read {}", self.file().display())),
        }
    }

    fn keep_seen(&self, seen: &Seen) -> anyhow::Result<()> {
        write_secret(&self.file(), &serde_json::to_string_pretty(seen)?)
    }

    /// The name of the head of that number begins with the fleet's, as everything of the fleet does.
    fn head_name(&self, number: u32) -> String {
        format!("{}-head-{number}", self.name)
    }

    /// Every pod of the fleet that the provider lists; each is noted, so that the bill misses none.
    async fn list(&self) -> anyhow::Result<Vec<Rented>> {
        let prefix = format!("{}-", self.name);
        let listed = self.provider.list().await.context("the provider's list cannot be read")?;
        let ours: Vec<Rented> =
            listed.into_iter().filter(|pod| pod.name.starts_with(&prefix) && pod.status.is_alive()).collect();
        self.note(&ours)?;
        Ok(ours)
    }

    /// Keeps what the bill will need to know of pods.
    fn note(&self, pods: &[Rented]) -> anyhow::Result<()> {
        let mut seen = self.seen()?;
        let mut changed = false;
        let now = TimeMs::now();
        for pod in pods {
            let created = pod.created_at_ms.map_or(now, TimeMs);
            let (_, last) = seen.spans.entry(pod.id.0.clone()).or_insert((created, created));
            if now.since(*last) >= NOTED_EVERY {
                *last = now;
                changed = true;
            }
            // Two pods of one name are two rows: both are paid for.
            let known = seen.pods.values().any(|row| row.provider_id.as_deref() == Some(&pod.id.0));
            if !known {
                let is_head = pod.name.contains("-head-");
                // A pod that does not run yet is shown without a price.
                let price = pod.price_usd_micro_per_hour.map(UsdMicro);
                let price = price.or(is_head.then_some(self.rent.head_price_usd_micro_per_hour));
                let row = PodBill {
                    class: if is_head { "head" } else { "worker" }.to_owned(),
                    price_usd_micro_per_hour: price.unwrap_or_default(),
                    provider_id: Some(pod.id.0.clone()),
                    ..PodBill::default()
                };
                let twice = seen.pods.contains_key(&pod.name);
                let name = if twice { format!("{} ({})", pod.name, pod.id) } else { pod.name.clone() };
                seen.pods.insert(name, row);
                changed = true;
            }
        }
        if changed {
            self.keep_seen(&seen)?;
        }
        Ok(())
    }

    /// The newest head, if it is listed.
    fn head<'a>(&self, pods: &'a [Rented], number: u32) -> Option<&'a Rented> {
        pods.iter().find(|pod| pod.name == self.head_name(number))
    }

    /// From the list to a coordinator that answers, as for every pod.
    fn ready_within(&self) -> Duration {
        Duration::from_secs_f64(self.rent.scale.ready_limit_s)
    }

    pub(super) async fn ensure(&self) -> anyhow::Result<Reached> {
        let began = Instant::now();
        let mut ordered = 0;
        // When the last one was ordered here, as long as no list has held it.
        let mut awaited: Option<Instant> = None;
        // When each head was first seen here.
        let mut met: BTreeMap<u32, Instant> = BTreeMap::new();
        loop {
            let pods = self.list().await?;
            let number = self.seen()?.heads;
            let Some(head) = self.head(&pods, number) else {
                if awaited.is_some_and(|since| since.elapsed() < LISTED_WITHIN) {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                if ordered >= ORDERS_MAX {
                    bail!(
                        "{ORDERS_MAX} heads ended before they replied: check that pods can reach {}, and \
                         that the files there are the same as on this machine",
                        self.rent.files
                    );
                }
                // What an earlier head rented does not find this one: it is ended, and the work starts again.
                for pod in &pods {
                    self.provider.terminate(&pod.id).await?;
                }
                let budget = self.budget_left().await?;
                match self.order(budget).await {
                    Ok(()) => {}
                    // The list will tell whether it was rented.
                    Err(fault) if may_pass(&fault) && began.elapsed() < ORDERED_WITHIN => {
                        eprintln!("{fault}")
                    }
                    Err(fault) => return Err(fault).context("no head can be rented"),
                }
                ordered += 1;
                awaited = Some(Instant::now());
                continue;
            };
            awaited = None;
            let since = *met.entry(number).or_insert_with(Instant::now);
            if let Some(connection) = self.connection(head)?
                && Fleet::connect(&connection).await.is_ok()
            {
                return Ok(Reached { connection, fresh: ordered > 0 });
            }
            let limit = self.ready_within();
            if since.elapsed() > limit {
                // One that has answered before may hold results: it is left for a person to decide on.
                if ordered == 0 || ordered >= ORDERS_MAX {
                    bail!("the head {} does not reply within {} s", head.name, limit.as_secs());
                }
                eprintln!("{} has not replied within {} s and is terminated", head.name, limit.as_secs());
                self.provider.terminate(&head.id).await?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What the next head and its pods may cost.
    ///
    /// # Errors
    /// When earlier ones have spent the budget.
    async fn budget_left(&self) -> anyhow::Result<Option<UsdMicro>> {
        let (Some(budget), seen) = (self.budget, self.seen()?) else { return Ok(None) };
        if seen.heads == 0 {
            return Ok(Some(budget));
        }
        // Without the provider's bill, what this machine has seen counts.
        let bills = self.provider.billing(self.began_at.0, TimeMs::now().0).await.unwrap_or_default();
        let mut billed: BTreeMap<String, UsdMicro> = BTreeMap::new();
        for bill in bills {
            *billed.entry(bill.pod.0).or_default() += UsdMicro(bill.amount_usd_micro);
        }
        let cost = seen.cost(&billed);
        let left = budget - cost;
        if left <= UsdMicro::ZERO {
            bail!("the budget of {budget} is spent ({cost}): no further head is rented");
        }
        Ok(Some(left))
    }

    /// Orders the next head, after its number is written down.
    async fn order(&self, budget: Option<UsdMicro>) -> Result<(), CloudError> {
        let written = |fault: anyhow::Error| CloudError::Invalid(format!("{fault:#}"));
        let order = self.next(budget).map_err(written)?;
        let rented = self.provider.create(&order).await?;
        // Noted now: it may be gone before the next list.
        self.note(std::slice::from_ref(&rented)).map_err(written)?;
        eprintln!("{} rented ({})", order.name, rented.id);
        Ok(())
    }

    fn next(&self, budget: Option<UsdMicro>) -> anyhow::Result<Order> {
        let mut seen = self.seen()?;
        seen.heads += 1;
        self.keep_seen(&seen)?;
        let name = self.head_name(seen.heads);
        let mut scale = self.rent.scale.clone();
        scale.fleet = format!("{}-w{}", self.name, seen.heads);
        if let Some(budget) = budget {
            let most = self.rent.for_workers(budget).dollars();
            let limit = scale.usd_per_day_max;
            scale.usd_per_day_max = if limit > 0.0 { limit.min(most) } else { most };
        }
        let serves = self.rent.from_head.then(|| Serves { model: self.rent.own_model() });
        let mut ports = vec![format!("{}/tcp", bundle::NATS_PORT)];
        ports.extend(serves.as_ref().map(|_| format!("{}/tcp", bundle::DIST_PORT)));
        let bundle = Bundle {
            site: self.site.file(),
            authority_key: std::fs::read_to_string(self.folder.join("ca.key"))?,
            provider_key: self.key.clone(),
            nats_server_url: self.rent.file("nats-server"),
            nats_server_sha256: self.rent.nats_server_sha256.clone(),
            ordered_at: TimeMs::now(),
            unheard_limit_s: self.rent.unheard_limit_s,
            budget: budget.map(|budget| LaunchBudget {
                budget_usd_micro: budget,
                aside_usd_micro: budget - self.rent.for_workers(budget),
                head_usd_micro_per_hour: self.rent.head_price_usd_micro_per_hour,
                head_since: TimeMs::now(),
            }),
            serves,
            scale,
        };
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut env = vec![
            (bundle::VARIABLE.to_owned(), bundle.to_variable()?),
            set("TERNFLEET_END_MYSELF", "runpod"),
            set("TERNFLEET_START_LIMIT_MS", &self.ready_within().as_millis().to_string()),
            set("TERNFLEET_BINARY_URL", &self.rent.file("ternfleet")),
            set("TERNFLEET_BINARY_SHA256", &self.rent.binary_sha256),
        ];
        if let Some(base) = &self.rent.base {
            env.push(set("TERNFLEET_RUNPOD_BASE", base));
        }
        let (entrypoint, command) = start::command(&["head"]);
        Ok(Order {
            name,
            compute: Compute::Cpu { id: self.rent.head_cpu.clone(), vcpus: self.rent.head_vcpus },
            tier: Tier::Secure,
            data_centers: Vec::new(),
            image: self.rent.image.clone().unwrap_or_else(|| start::STOCK_IMAGE.to_owned()),
            disk_gb: HEAD_DISK_GB,
            env,
            entrypoint,
            command,
            registry: None,
            ports,
            mount: None,
        })
    }

    /// How to reach a head, once the provider tells its public port.
    fn connection(&self, head: &Rented) -> anyhow::Result<Option<Connection>> {
        let Some(port) = head.ports.iter().find(|port| port.private == bundle::NATS_PORT) else {
            return Ok(None);
        };
        let credentials = self.folder.join("launch.creds");
        if !credentials.exists() {
            write_secret(&credentials, &bundle::credentials(&self.site, TimeMs::now())?)?;
        }
        let nats = format!("tls://{}:{}", port.ip, port.public);
        Ok(Some(Connection::secured(nats, credentials, self.folder.join("ca.crt"))))
    }

    pub(super) async fn find(&self) -> Option<Connection> {
        let pods = self.list().await.ok()?;
        let head = self.head(&pods, self.seen().ok()?.heads)?;
        self.connection(head).ok().flatten()
    }

    /// Returns when the head is not listed any more, or is somewhere else.
    pub(super) async fn keep(&self) -> anyhow::Result<Lost> {
        let mut first = None;
        let mut listed_at = Instant::now();
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            // A list that cannot be read says nothing.
            let Ok(pods) = self.list().await else {
                listed_at = Instant::now();
                continue;
            };
            let head = self.head(&pods, self.seen()?.heads);
            match head.map(|head| self.connection(head)).transpose()?.flatten() {
                Some(connection) if first.as_ref().is_none_or(|first| *first == connection.address()) => {
                    first = Some(connection.address());
                    listed_at = Instant::now();
                }
                // The mapping of its port changes when a pod is reset.
                Some(_) => return Ok(Lost),
                None if listed_at.elapsed() > MISSED_FOR => return Ok(Lost),
                None => {}
            }
        }
    }

    pub(super) fn provider(&self) -> Runpod {
        self.provider.clone()
    }

    /// Adds the pods that no audit log tells of: heads, and what heads had rented that are gone.
    pub(super) fn complete(&self, bill: &mut Bill) -> anyhow::Result<()> {
        for (name, row) in self.seen()?.pods {
            if bill.values().any(|known| known.provider_id == row.provider_id) {
                continue;
            }
            match bill.get_mut(&name) {
                // It was adopted: the log tells of it, and not of its id.
                Some(known) if known.provider_id.is_none() => known.provider_id = row.provider_id,
                Some(_) => {
                    let id = row.provider_id.clone().unwrap_or_default();
                    drop(bill.insert(format!("{name} ({id})"), row));
                }
                None => drop(bill.insert(name, row)),
            }
        }
        Ok(())
    }

    pub(super) async fn end(&self, returned: bool) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut empty_since: Option<Instant> = None;
        let (mut ended, mut fault) = (false, None);
        while began.elapsed() < END_WITHIN {
            match self.list().await {
                Ok(pods) if pods.is_empty() => {
                    // A head that has given back everything had no order under way; of another, one may show late.
                    let quiet = if returned && ended { Duration::ZERO } else { self.settles };
                    if empty_since.get_or_insert_with(Instant::now).elapsed() >= quiet {
                        return Ok(());
                    }
                }
                Ok(mut pods) => {
                    empty_since = None;
                    // The head first, lest it rents new ones.
                    pods.sort_by_key(|pod| !pod.name.contains("-head-"));
                    for pod in pods {
                        match self.provider.terminate(&pod.id).await {
                            Ok(()) => ended = true,
                            Err(error) => fault = Some(format!("{}: {error}", pod.name)),
                        }
                    }
                }
                Err(error) => {
                    empty_since = None;
                    fault = Some(format!("{error:#}"));
                }
            }
            tokio::time::sleep(if ended { AGAIN_AFTER } else { LOOK_EVERY }).await;
        }
        bail!(
            "the provider still lists pods of {} after {} s ({}): check the provider's page, and repeat \
             `ternfleet down {0}`",
            self.name,
            END_WITHIN.as_secs(),
            fault.unwrap_or_default()
        )
    }
}

/// A fault that says nothing about the order.
fn may_pass(fault: &CloudError) -> bool {
    matches!(fault, CloudError::Uncertain(_) | CloudError::Unreachable(_) | CloudError::RateLimited { .. })
}

/// The fleet's keys: made once, before anything is ordered.
fn keys(folder: &std::path::Path) -> anyhow::Result<Site> {
    let site = folder.join("site.json");
    if let Ok(text) = std::fs::read_to_string(&site) {
        return Ok(Site::parse(&text)?);
    }
    let authority = Authority::new()?;
    write_secret(&folder.join("ca.key"), &authority.key())?;
    write_secret(&folder.join("ca.crt"), &authority.certificate()?)?;
    let made = Site::new(TimeMs::now());
    // Last: whoever finds it finds the rest.
    write_secret(&site, &made.file())?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_earlier_heads_have_cost_is_what_was_seen_or_what_the_provider_says_if_that_is_more() {
        let row = |id: &str| PodBill {
            price_usd_micro_per_hour: UsdMicro(3_600_000),
            provider_id: Some(id.to_owned()),
            ..PodBill::default()
        };
        let seen = Seen {
            heads: 1,
            pods: [("a".to_owned(), row("p1")), ("b".to_owned(), row("p2"))].into(),
            spans: [("p1".to_owned(), (TimeMs(0), TimeMs(5_000)))].into(),
        };
        assert_eq!(seen.cost(&BTreeMap::new()), UsdMicro(5_000));
        let billed = [("p1".to_owned(), UsdMicro(4_000)), ("p2".to_owned(), UsdMicro(700))].into();
        assert_eq!(seen.cost(&billed), UsdMicro(5_700), "a bill that lags counts less than what was seen");
    }
}
