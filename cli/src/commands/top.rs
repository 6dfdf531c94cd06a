//! `ternfleet top`: pods, batches, queue and money in one live view.
//!
//! It asks the coordinator once a second and draws what it heard; between answers it stays responsive to keys and to
//! a new size of the terminal. Without a terminal, or with `--once`, it prints the same once and ends.

mod screen;

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use ternfleet_proto::message::{BatchList, BatchView, FleetView, LostPod, PodView, Spent};
use ternfleet_proto::money::usd_micro_per_million_tokens;
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::{TimeMs, UsdMicro, openai};

use crate::client::Fleet;
use crate::connection::Connection;
use crate::output::{say, say_json};
use crate::stop::Stops;
use crate::{logging, losses, report, stop};

/// One column a second; wider terminals than this exist, but nobody reads that far.
const HISTORY_MAX: usize = 300;
const BATCHES_MAX: u32 = 100;
/// Between two looks at the keyboard by its thread, which ends when the view does.
const KEY_POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(
    after_help = "Keys: q, Esc or Ctrl-C quits; ↑ ↓ PgUp PgDn scroll the batches; a shows ended ones or hides them."
)]
pub(crate) struct Top {
    /// Print once and end, as it does when standard output is no terminal
    #[arg(long)]
    once: bool,
    /// Print one object with `totals`, `pods` and `batches`, and end; money is in micro-dollars
    #[arg(long)]
    json: bool,
    /// Seconds between two looks
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
    pods: Vec<PodView>,
    lost: Vec<LostPod>,
    spent: Option<Spent>,
    batches: Vec<BatchView>,
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
    /// Handed to a worker, but not in a slot yet.
    queued_jobs: u32,
    /// Lines of batches that have not ended, without an answer.
    open_jobs: u64,
}

impl Snapshot {
    async fn take(fleet: &Fleet) -> anyhow::Result<Snapshot> {
        let list = BatchList { tenant: fleet.tenant.clone(), after: None, limit: BATCHES_MAX };
        let FleetView { pods, lost, spent } = losses::sorted(fleet.ask_once(ApiVerb::Fleet, &()).await?);
        let batches = fleet.ask_once(ApiVerb::BatchList, &list).await?;
        Ok(Snapshot { at: TimeMs::now(), pods, lost, spent, batches })
    }

    fn totals(&self) -> Totals {
        let live = || self.pods.iter().filter(|pod| pod.live);
        let rate_tok_s = live().map(|pod| pod.rate_tok_s).sum();
        // Engines of one pod each carry its whole price; the pod is paid once.
        let prices: std::collections::BTreeMap<&str, UsdMicro> =
            live().map(|pod| (pod.heartbeat.pod.as_str(), pod.heartbeat.price_usd_micro_per_hour)).collect();
        let usd_micro_per_hour = prices.into_values().sum();
        let open = self.batches.iter().filter(|batch| !batch.state.is_terminal());
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
            open_jobs: open
                .map(|batch| u64::from(batch.total.saturating_sub(batch.completed + batch.failed)))
                .sum(),
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
            "lost": self.lost,
            "batches": self.batches.iter().map(openai::batch_object).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut parts = vec![totals_line(&self.totals())];
        if self.pods.is_empty() {
            parts.push("no pod is known; `ternfleet worker` starts one".to_owned());
        } else {
            parts.push(report::pod_table(&self.pods));
        }
        parts.extend(losses::lost_table(&self.lost, self.at));
        if self.batches.is_empty() {
            parts.push("there are no batches; `ternfleet submit FILE.jsonl` makes one".to_owned());
        } else {
            parts.push(report::batch_table(&self.batches));
        }
        parts.join("\n\n")
    }
}

fn totals_line(totals: &Totals) -> String {
    let plural = if totals.pods_live == 1 { "" } else { "s" };
    format!(
        "{} pod{plural} live · {:.1} tok/s · {}/h · {} per 1M tokens · {} spent · {} jobs open, {} queued",
        totals.pods_live,
        totals.rate_tok_s,
        totals.usd_micro_per_hour,
        totals.usd_micro_per_million_tokens.map_or("-".to_owned(), |price| price.to_string()),
        totals.spent_usd_micro,
        totals.open_jobs,
        totals.queued_jobs,
    )
}

/// All that the screen shows.
#[derive(Debug)]
struct View {
    address: String,
    tenant: String,
    snapshot: Option<Snapshot>,
    /// Why the last look failed.
    fault: Option<String>,
    /// Tokens a second at each look, oldest first.
    rates: VecDeque<f64>,
    /// Batches scrolled out at the top.
    scroll: usize,
    shows_ended: bool,
    colours: bool,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Quit,
    Scroll(isize),
    ToggleEnded,
}

fn order(key: KeyEvent) -> Option<Order> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Order::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Order::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Order::Scroll(-1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Order::Scroll(1)),
        KeyCode::PageUp => Some(Order::Scroll(-10)),
        KeyCode::PageDown => Some(Order::Scroll(10)),
        KeyCode::Char('a') => Some(Order::ToggleEnded),
        _ => None,
    }
}

impl View {
    fn new(fleet: &Fleet) -> View {
        View {
            address: fleet.address().to_owned(),
            tenant: fleet.tenant.to_string(),
            snapshot: None,
            fault: None,
            rates: VecDeque::new(),
            scroll: 0,
            shows_ended: true,
            colours: logging::colours(true),
        }
    }

    fn hear(&mut self, outcome: anyhow::Result<Snapshot>) {
        match outcome {
            Ok(snapshot) => {
                if self.rates.len() == HISTORY_MAX {
                    self.rates.pop_front();
                }
                self.rates.push_back(snapshot.totals().rate_tok_s);
                self.snapshot = Some(snapshot);
                self.fault = None;
            }
            Err(reason) => self.fault = Some(format!("{reason:#}")),
        }
    }

    /// True when the view should end.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Quit => return true,
            Order::Scroll(by) => {
                let last = self.batches().len().saturating_sub(1);
                self.scroll = self.scroll.saturating_add_signed(by).min(last);
            }
            Order::ToggleEnded => {
                self.shows_ended = !self.shows_ended;
                self.scroll = 0;
            }
        }
        false
    }

    fn batches(&self) -> Vec<&BatchView> {
        let all = self.snapshot.iter().flat_map(|snapshot| &snapshot.batches);
        all.filter(|batch| self.shows_ended || !batch.state.is_terminal()).collect()
    }
}

impl Top {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let live = !self.once && !self.json && std::io::stdout().is_terminal();
        stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            if live {
                return watch(&fleet, Duration::from_secs(self.every.into())).await;
            }
            let snapshot = Snapshot::take(&fleet).await?;
            if self.json { say_json(&snapshot.json()) } else { say(&snapshot.text()) }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Draws until somebody has seen enough. The terminal is given back as it was, however this ends.
async fn watch(fleet: &Fleet, every: Duration) -> anyhow::Result<()> {
    let mut stops = Stops::listen()?;
    let mut terminal = ratatui::try_init().context("this terminal cannot be drawn on: use --once")?;
    let _restored = Restored;
    let mut view = View::new(fleet);
    let mut keys = keyboard();
    let mut looks = tokio::time::interval(every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looking: Option<std::pin::Pin<Box<dyn Future<Output = anyhow::Result<Snapshot>> + '_>>> = None;
    loop {
        terminal.draw(|frame| screen::draw(frame, &view))?;
        tokio::select! {
            _ = looks.tick(), if looking.is_none() => looking = Some(Box::pin(Snapshot::take(fleet))),
            outcome = async { match &mut looking { Some(look) => look.await, None => std::future::pending().await } } => {
                looking = None;
                view.hear(outcome);
            }
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
