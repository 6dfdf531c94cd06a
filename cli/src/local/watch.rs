//! When a fleet ends by itself: nobody asks anything and nothing is under way, or the money is spent.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use ternfleet_cloud::http::Server;
use ternfleet_proto::message::{ScaleDials, ScaleView};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{TimeMs, UsdMicro};

use super::rented::return_all;
use crate::client::{Fleet, PART_NAMES};
use crate::connection::Connection;

const LOOK_EVERY: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Of the coordinator's metrics: batches of all tenants that have not ended, and what was asked by anybody.
const ACTIVE: &str = "ternfleet_batches_active ";
const QUESTIONS: &str = "ternfleet_questions_total ";
/// The limit of the day is lowered in steps of this share of the budget.
const STEPS: i64 = 200;

/// Where the parts of a fleet tell what goes on.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    pub(crate) monitor: u16,
    pub(crate) http: u16,
}

/// What a rented head and its pods may cost together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LaunchBudget {
    pub(crate) budget_usd_micro: UsdMicro,
    /// Kept back for the time in which results wait to be fetched.
    pub(crate) aside_usd_micro: UsdMicro,
    pub(crate) head_usd_micro_per_hour: UsdMicro,
    pub(crate) head_since: TimeMs,
}

impl LaunchBudget {
    fn head_cost(&self, now: TimeMs) -> UsdMicro {
        self.head_usd_micro_per_hour.over(now.since(self.head_since))
    }

    fn is_spent(&self, by_pods: UsdMicro, now: TimeMs) -> bool {
        by_pods + self.head_cost(now) >= self.budget_usd_micro
    }

    /// The limit of the day that keeps the whole: what the pods may cost in all, without what they cost on days before.
    /// It only ever falls. Not zero, which would lift the limit.
    fn limit_today(&self, view: &ScaleView, now: TimeMs) -> UsdMicro {
        let for_pods = self.budget_usd_micro - self.aside_usd_micro - self.head_cost(now);
        let before = view.spent_usd_micro - view.spent_today_usd_micro;
        (for_pods - before).max(UsdMicro(1))
    }

    /// The limit to set, when the present one is too high by more than a step.
    fn lower(&self, view: &ScaleView, now: TimeMs) -> Option<UsdMicro> {
        let wanted = self.limit_today(view, now);
        let step = UsdMicro(self.budget_usd_micro.0 / STEPS);
        view.usd_micro_per_day_max.is_none_or(|limit| wanted + step < limit).then_some(wanted)
    }
}

/// Why a fleet ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Unheard,
    /// The budget is used up, the head's own cost included.
    Spent,
}

/// What one look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    /// Connections to NATS that are none of the fleet's own.
    callers: usize,
    /// Batches of all tenants that have not ended.
    active: u64,
    /// Counted since the coordinator began.
    questions: u64,
    /// No pod works, and none may be rented within the limit: what is active waits in vain.
    stuck: bool,
}

/// When the fleet was last heard of.
#[derive(Debug)]
struct Watch {
    limit: Duration,
    heard_at: Instant,
    questions: u64,
}

impl Watch {
    fn new(limit: Duration, now: Instant) -> Watch {
        Watch { limit, heard_at: now, questions: 0 }
    }

    /// True when nobody has been heard of for the limit. What cannot be asked (`None`) counts as heard: a fleet whose
    /// server restarts has not been forgotten.
    fn is_forgotten(&mut self, look: Option<Look>, now: Instant) -> bool {
        let quiet = look.is_some_and(|look| {
            let asked = std::mem::replace(&mut self.questions, look.questions) != look.questions;
            look.callers == 0 && !asked && (look.active == 0 || look.stuck)
        });
        if !quiet {
            self.heard_at = now;
        }
        now.duration_since(self.heard_at) >= self.limit
    }
}

/// What nats-server's monitoring says of its connections, as far as it is used.
#[derive(Deserialize)]
struct Connections {
    connections: Vec<NatsClient>,
}

#[derive(Deserialize)]
struct NatsClient {
    #[serde(default)]
    name: String,
}

/// Resolves when the fleet is to end, and what was rented has been given back: nobody was connected, nothing was asked
/// and no batch was under way for `limit`, or the budget is empty.
pub(crate) async fn end_of(
    ports: Ports,
    to: Connection,
    limit: Duration,
    budget: Option<LaunchBudget>,
) -> Why {
    let mut watch = Watch::new(limit, Instant::now());
    let mut fleet = None;
    let why = loop {
        tokio::time::sleep(LOOK_EVERY.min(limit)).await;
        let mut stuck = false;
        if let Some(budget) = &budget
            && let Some(view) = keep_limit(&mut fleet, &to, budget).await
        {
            if budget.is_spent(view.spent_usd_micro, TimeMs::now()) {
                break Why::Spent;
            }
            stuck = view.limit_reached && view.pods.is_empty();
        }
        if watch.is_forgotten(look(&ports, stuck).await, Instant::now()) {
            break Why::Unheard;
        }
    };
    if let Some(fleet) = connected(&mut fleet, &to).await
        && let Err(error) = return_all(fleet).await
    {
        // Pods whose coordinator is gone end themselves.
        eprintln!("{error:#}");
    }
    why
}

/// The connection of earlier looks, or a new one.
async fn connected<'a>(fleet: &'a mut Option<Fleet>, to: &Connection) -> Option<&'a Fleet> {
    if fleet.is_none() {
        *fleet = Fleet::connect_as_part(to).await.ok();
    }
    fleet.as_ref()
}

/// Lowers the scaler's limit as the head's own cost grows; answers what the scaler says.
async fn keep_limit(fleet: &mut Option<Fleet>, to: &Connection, budget: &LaunchBudget) -> Option<ScaleView> {
    let fleet = connected(fleet, to).await?;
    let view: ScaleView = fleet.ask_once(ApiVerb::ScaleShow, &ScaleDials::default()).await.ok()?;
    if let Some(limit) = budget.lower(&view, TimeMs::now()) {
        let dials = ScaleDials { usd_micro_per_day_max: Some(limit), ..ScaleDials::default() };
        return fleet.ask_once(ApiVerb::ScaleSet, &dials).await.ok();
    }
    Some(view)
}

async fn look(ports: &Ports, stuck: bool) -> Option<Look> {
    let known: Connections = serde_json::from_slice(&get(ports.monitor, "/connz?limit=10000").await?).ok()?;
    let callers = known.connections.iter().filter(|client| !PART_NAMES.contains(&client.name.as_str()));
    let metrics = get(ports.http, "/metrics").await?;
    let metrics = std::str::from_utf8(&metrics).ok()?;
    Some(Look {
        callers: callers.count(),
        active: number(metrics, ACTIVE)?,
        questions: number(metrics, QUESTIONS)?,
        stuck,
    })
}

async fn get(port: u16, path: &str) -> Option<Vec<u8>> {
    let server = Server::new(&format!("http://127.0.0.1:{port}"), None, ANSWER_TIMEOUT).ok()?;
    server.get(path).await.ok().filter(|answer| answer.status == 200).map(|answer| answer.body.to_vec())
}

/// The value of a series without labels.
fn number(metrics: &str, name: &str) -> Option<u64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse::<f64>().ok().map(|value| value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Look = Look { callers: 0, active: 0, questions: 7, stuck: false };

    #[test]
    fn a_fleet_is_forgotten_when_nobody_asks_in_any_way_and_nothing_is_under_way() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut watch = Watch::new(Duration::from_secs(10), begin);
        // The first questions are new to the watch.
        assert!(!watch.is_forgotten(Some(QUIET), at(1)));
        assert!(!watch.is_forgotten(Some(QUIET), at(10)));
        assert!(watch.is_forgotten(Some(QUIET), at(11)));
        for heard in [
            Some(Look { callers: 1, ..QUIET }),
            Some(Look { active: 1, ..QUIET }),
            // Over HTTP nobody stays connected to NATS.
            Some(Look { questions: 8, ..QUIET }),
            None,
        ] {
            let mut watch = Watch { questions: 7, ..Watch::new(Duration::from_secs(10), begin) };
            assert!(!watch.is_forgotten(heard, at(20)), "{heard:?}");
        }
        // What waits for money that does not come is not under way.
        let mut watch = Watch { questions: 7, ..Watch::new(Duration::from_secs(10), begin) };
        assert!(watch.is_forgotten(Some(Look { active: 1, stuck: true, ..QUIET }), at(20)));
    }

    #[test]
    fn the_series_are_read_by_their_whole_names() {
        let text =
            "# HELP ternfleet_batches_active x\nternfleet_batches_active 3\nternfleet_questions_total 12\n";
        assert_eq!((number(text, ACTIVE), number(text, QUESTIONS)), (Some(3), Some(12)));
        assert_eq!(number("ternfleet_batches_active_old 3\n", ACTIVE), None);
    }

    #[test]
    fn head_and_pods_together_stay_within_the_budget() {
        let usd = UsdMicro::from_dollars;
        let budget = LaunchBudget {
            budget_usd_micro: usd(2.0),
            aside_usd_micro: usd(0.5),
            head_usd_micro_per_hour: usd(0.1),
            head_since: TimeMs(0),
        };
        let hour = |hours: u64| TimeMs(hours * 3_600_000);
        let view = |spent, today, limit: Option<f64>| ScaleView {
            spent_usd_micro: usd(spent),
            spent_today_usd_micro: usd(today),
            usd_micro_per_day_max: limit.map(usd),
            ..ScaleView::default()
        };
        assert_eq!(budget.lower(&view(0.0, 0.0, None), hour(1)), Some(usd(1.4)));
        assert_eq!(budget.lower(&view(1.0, 1.0, Some(1.4)), hour(1)), None, "it stands");
        assert_eq!(budget.lower(&view(1.0, 1.0, Some(1.4)), hour(3)), Some(usd(1.2)), "the head costs, too");
        assert_eq!(
            budget.lower(&view(1.0, 0.0, Some(1.2)), hour(3)),
            Some(usd(0.2)),
            "a new day is no new money"
        );
        assert_eq!(
            budget.lower(&view(1.5, 0.0, Some(0.2)), hour(4)),
            Some(UsdMicro(1)),
            "zero would lift it"
        );
        assert_eq!(budget.lower(&view(1.0, 1.0, Some(0.3)), hour(1)), None, "somebody wants less");
        assert!(!budget.is_spent(usd(1.5), hour(4)) && budget.is_spent(usd(1.5), hour(5)));
    }
}
