//! `ternfleet top`: pods, batches, queue and money in one live view.
//!
//! It asks the coordinator once a second and draws what it heard; between answers it stays responsive to keys and to
//! a new size of the terminal. Without a terminal, or with `--once`, it prints the same once and ends.

mod columns;
mod screen;
mod view;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use ratatui::crossterm::event::{self, Event};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use ternfleet_proto::message::{
    BatchFind, BatchPage, BatchState, BatchView, ClassView, FleetView, LostPod, PodView, ScaleView, Spent,
};
use ternfleet_proto::money::usd_micro_per_million_tokens;
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{TimeMs, UsdMicro, openai};

use crate::client::Fleet;
use crate::connection::Connection;
use crate::output::{say, say_json};
use crate::stop::Stops;
use crate::{listing, logging, losses, report, stop};
use view::{View, order};

/// Between two looks at the keyboard by its thread, which ends when the view does.
const KEY_POLL: Duration = Duration::from_millis(200);
/// Between two questions about scaling while no pod is there; each makes the coordinator ask the provider.
const SCALE_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(
    after_help = "Keys: q, Esc or Ctrl-C quits; ↑ ↓ select; Tab goes to the next list; Enter shows all of \
                  the selected \
                  row; a shows ended batches or hides them; ? lists all keys."
)]
pub(crate) struct Top {
    /// Print once and exit; the default if standard output is not a terminal
    #[arg(long)]
    once: bool,
    /// Print one JSON object with `totals`, `pods` and `batches`, and exit; money is in micro-dollars
    #[arg(long)]
    json: bool,
    /// Seconds between updates
    #[arg(long, value_name = "S", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=3600))]
    every: u16,
    #[command(flatten)]
    connection: Connection,
}

/// What the coordinator said at one moment.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    at: TimeMs,
    /// All, or the first of a large fleet, which has sums over all of its workers as well, in all and by class.
    pods: Vec<PodView>,
    all: Option<ClassView>,
    classes: Vec<ClassView>,
    lost: Vec<LostPod>,
    spent: Option<Spent>,
    /// All open ones, then the newest of those that have ended.
    batches: Vec<BatchView>,
    /// All batches by state, those that are not listed included.
    counts: BTreeMap<BatchState, u64>,
    /// Lines of open batches without an answer.
    open_lines: u64,
    /// What may be rented, if anything; known only while there are no pods.
    scale: Option<ScaleView>,
}

/// Sums over a snapshot.
#[derive(Debug, Clone, PartialEq)]
struct Totals {
    pods_live: usize,
    rate_tok_s: f64,
    usd_micro_per_hour: UsdMicro,
    usd_micro_per_million_tokens: Option<UsdMicro>,
    /// What all pods have cost, by the ledger; until the leader has read it, what those known now have cost.
    spent_usd_micro: UsdMicro,
    /// Assigned to a worker, but not in a slot yet.
    queued_jobs: u32,
    /// Lines of open batches without an answer.
    open_jobs: u64,
}

impl Snapshot {
    async fn take(fleet: &Fleet) -> anyhow::Result<Snapshot> {
        let view = losses::sorted(fleet.ask_once(ApiVerb::Fleet, &()).await?);
        let classes = if view.next.is_some() { view.classes.clone() } else { Vec::new() };
        let all = view.next.is_some().then(|| view.total());
        let FleetView { pods, lost, spent, .. } = view;
        let ask = async |question: BatchFind| fleet.ask_once(ApiVerb::BatchFind, &question).await;
        let all_open = |batches: &[BatchView]| batches.last().is_some_and(|batch| batch.state.is_terminal());
        let BatchPage { batches, counts, open_lines, .. } = listing::read(fleet, None, ask, all_open).await?;
        let at = TimeMs::now();
        Ok(Snapshot { at, pods, all, classes, lost, spent, batches, counts, open_lines, scale: None })
    }

    /// Workers that are not lost.
    fn workers(&self) -> usize {
        self.all.as_ref().map_or(self.pods.len(), |all| (all.workers_live + all.workers_quiet) as usize)
    }

    fn totals(&self) -> Totals {
        if let Some(all) = &self.all {
            return Totals {
                pods_live: all.workers_live as usize,
                rate_tok_s: all.rate_tok_s,
                usd_micro_per_hour: all.usd_micro_per_hour,
                usd_micro_per_million_tokens: usd_micro_per_million_tokens(
                    all.usd_micro_per_hour,
                    all.rate_tok_s,
                ),
                spent_usd_micro: self.spent.map_or(all.cost_usd_micro, |spent| spent.total_usd_micro),
                queued_jobs: all.queued_jobs,
                open_jobs: self.open_lines,
            };
        }
        let live = || self.pods.iter().filter(|pod| pod.live);
        // Without the zero a sum of nothing is shown as -0.0.
        let rate_tok_s = 0.0 + live().map(|pod| pod.rate_tok_s).sum::<f64>();
        // Engines of one pod each carry its whole price; the pod is paid once.
        let prices: BTreeMap<&str, UsdMicro> =
            live().map(|pod| (pod.heartbeat.pod.as_str(), pod.heartbeat.price_usd_micro_per_hour)).collect();
        let usd_micro_per_hour = prices.into_values().sum();
        Totals {
            pods_live: live().count(),
            rate_tok_s,
            usd_micro_per_hour,
            usd_micro_per_million_tokens: usd_micro_per_million_tokens(usd_micro_per_hour, rate_tok_s),
            spent_usd_micro: match self.spent {
                Some(spent) => spent.total_usd_micro,
                None => self.pods.iter().map(|pod| pod.cost_usd_micro).sum(),
            },
            queued_jobs: self.pods.iter().map(|pod| pod.queued_jobs).sum(),
            open_jobs: self.open_lines,
        }
    }

    fn json(&self) -> Value {
        let totals = self.totals();
        json!({
            "at_ms": self.at,
            "totals": {
                "pods_live": totals.pods_live,
                "tok_s": totals.rate_tok_s,
                "usd_micro_per_hour": totals.usd_micro_per_hour,
                "usd_micro_per_million_tokens": totals.usd_micro_per_million_tokens,
                "spent_usd_micro": totals.spent_usd_micro,
                "queued_jobs": totals.queued_jobs,
                "open_jobs": totals.open_jobs,
            },
            "pods": self.pods,
            "classes": self.classes,
            "lost": self.lost,
            "batches": self.batches.iter().map(openai::batch_object).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let figures = figures(&self.totals());
        let line: Vec<String> = figures.iter().map(|(number, unit)| format!("{number} {unit}")).collect();
        let mut parts = vec![line.join(" · ")];
        if self.pods.is_empty() {
            parts.push(report::no_pods(self.scale.as_ref()));
        } else {
            parts.push(report::pod_table(&self.pods));
            if self.all.is_some() {
                parts.push(format!("the first {} of {} workers", self.pods.len(), self.workers()));
                parts.push(report::class_table(&self.classes));
            }
        }
        parts.extend(losses::lost_table(&self.lost, self.at));
        if self.batches.is_empty() {
            parts.push("no batches; submit one with `ternfleet submit FILE.jsonl`".to_owned());
        } else {
            parts.push(report::batch_table(&self.batches, self.at));
            parts.extend(report::waits(&self.batches));
        }
        parts.join("\n\n")
    }
}

/// The sums with their units.
fn figures(totals: &Totals) -> [(String, &'static str); 7] {
    let price = totals.usd_micro_per_million_tokens.map_or("-".to_owned(), |price| price.to_string());
    [
        (totals.pods_live.to_string(), if totals.pods_live == 1 { "pod live" } else { "pods live" }),
        (format!("{:.1}", totals.rate_tok_s), "tok/s"),
        (totals.usd_micro_per_hour.to_string(), "an hour"),
        (price, "per 1M tokens"),
        (totals.spent_usd_micro.to_string(), "spent"),
        (totals.open_jobs.to_string(), "jobs open"),
        (totals.queued_jobs.to_string(), "queued"),
    ]
}

impl Top {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let live = !self.once && !self.json && std::io::stdout().is_terminal();
        stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            if live {
                return watch(&fleet, Duration::from_secs(self.every.into())).await;
            }
            let snapshot = Looks::new(&fleet).take().await?;
            if self.json { say_json(&snapshot.json()) } else { say(&snapshot.text()) }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Snapshots, one after the other.
struct Looks<'a> {
    fleet: &'a Fleet,
    scale: Option<(Instant, Option<ScaleView>)>,
}

impl<'a> Looks<'a> {
    fn new(fleet: &'a Fleet) -> Looks<'a> {
        Looks { fleet, scale: None }
    }

    async fn take(&mut self) -> anyhow::Result<Snapshot> {
        let snapshot = Snapshot::take(self.fleet).await?;
        if !snapshot.pods.is_empty() {
            self.scale = None;
            return Ok(snapshot);
        }
        if self.scale.as_ref().is_none_or(|(at, _)| at.elapsed() >= SCALE_EVERY) {
            self.scale = Some((Instant::now(), report::scale(self.fleet).await));
        }
        let scale = self.scale.as_ref().and_then(|(_, view)| view.clone());
        Ok(Snapshot { scale, ..snapshot })
    }
}

/// Draws until somebody has seen enough. The terminal is given back as it was, however this ends.
async fn watch(fleet: &Fleet, every: Duration) -> anyhow::Result<()> {
    let mut stops = Stops::listen()?;
    let mut terminal = ratatui::try_init().context("this terminal is not supported: use --once")?;
    let _restored = Restored;
    let mut view = View::new(fleet.address().to_owned(), fleet.tenant.to_string(), logging::colours(true));
    let mut keys = keyboard();
    let (seen, mut snapshots) = mpsc::channel(1);
    let looking = async {
        let mut looks = Looks::new(fleet);
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Nobody listens any more only when the view ends, and this with it.
            let _ = seen.send(looks.take().await).await;
        }
    };
    tokio::pin!(looking);
    loop {
        terminal.draw(|frame| screen::draw(frame, &view))?;
        tokio::select! {
            () = &mut looking => {}
            Some(outcome) = snapshots.recv() => view.hear(outcome),
            key = keys.recv() => match key {
                Some(Event::Key(key)) => if order(key).is_some_and(|order| view.obey(order)) { return Ok(()) },
                Some(_) => {}
                None => return Ok(()),
            },
            () = stops.next() => return Ok(()),
        }
    }
}

/// Gives the terminal back when it goes.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Keys and new sizes, read on a thread of their own: the terminal has no asynchronous read.
fn keyboard() -> mpsc::Receiver<Event> {
    let (events, keys) = mpsc::channel(64);
    std::thread::spawn(move || {
        while !events.is_closed() {
            match event::poll(KEY_POLL) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if events.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    keys
}

#[cfg(test)]
mod tests;
