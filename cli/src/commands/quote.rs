//! `ternfleet quote FILE`: what a batch will cost and when it will be done, before it runs.

mod sample;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use ternfleet_coordinator::plan::{Batch, Care, ClassSet, Pod, PodClass, PodState, Problem};
use ternfleet_coordinator::quote::{Lengths, Quote as Answer, Request, estimate, quote};
use ternfleet_coordinator::simulate::Fleet as Market;
use ternfleet_proto::message::{PodView, WorkerState};
use ternfleet_proto::{TimeMs, UsdMicro};

use crate::args::Connection;
use crate::client::Fleet;
use crate::model_file::ModelFile;
use crate::output::{say, say_json};
use crate::span;
use crate::{report, stop};

#[derive(Debug, Args)]
pub(crate) struct Quote {
    /// JSONL file of requests, as for `submit`
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
    /// Done within this time: 90s, 45m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    deadline: Option<Duration>,
    /// Most that it may cost, in dollars
    #[arg(long, value_name = "USD")]
    budget: Option<f64>,
    /// Only pods of these classes
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    class: Vec<String>,
    /// Pods that could be rented, beside those that run (TOML, as for `simulate`)
    #[arg(long, value_name = "FILE")]
    market: Option<PathBuf>,
    /// Do not ask a running fleet: the market alone
    #[arg(long, requires = "market")]
    offline: bool,
    /// Lines whose prompts are counted
    #[arg(long, value_name = "N", default_value_t = 1000)]
    sample: usize,
    /// Model whose tokenizer counts; the storyteller by default
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Print one object; money is in micro-dollars, times in milliseconds since 1970
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Decode over prefill speed where no worker has measured it.
const PROMPT_WEIGHT: f64 = 0.3;
/// Spread of a measured speed that no fleet reports, as a share.
const RATE_SPREAD: f64 = 0.05;

impl Quote {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let model = ModelFile::open(self.model.as_deref())?;
        let counted = sample::count(&self.file, self.sample.max(1), &model.tokenizer()?)?;
        let running = if self.offline { Vec::new() } else { self.ask_fleet()? };
        let now = TimeMs::now();
        let mut classes = Vec::new();
        let (mut pods, prompt_weight) = running_pods(&running, &mut classes);
        if let Some(path) = &self.market {
            pods.extend(offers(path, &mut classes)?);
        }
        if pods.is_empty() {
            bail!(
                "no pod runs and no --market says what could be rented: start a worker, or name a market file"
            );
        }
        let lengths = Lengths { seen_ratio: None, context_tokens: model.hyper.context as u32, prompt_weight };
        let request = Request {
            tokens: estimate(&counted.sample, counted.lines, &lengths),
            deadline: self.deadline.map(|span| now.plus(span)),
            budget: self.budget.map(UsdMicro::from_dollars),
            classes: self.class_set(&classes)?,
        };
        let problem =
            Problem { now, pods, batches: Vec::<Batch>::new(), care: Care::default(), ..Problem::default() };
        let answer = quote(&problem, &classes, &request);
        if self.json {
            say_json(&answer)?;
        } else {
            say(page(&answer, &counted, now).trim_end())?;
        }
        Ok(if answer.kept { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn ask_fleet(&self) -> anyhow::Result<Vec<PodView>> {
        stop::block_on(async {
            let fleet = Fleet::connect(&self.connection).await?;
            report::pods(&fleet).await
        })
        .context("the running fleet does not answer; `--offline --market FILE` quotes without it")
    }

    fn class_set(&self, known: &[String]) -> anyhow::Result<ClassSet> {
        if self.class.is_empty() {
            return Ok(ClassSet::ALL);
        }
        let mut chosen = Vec::new();
        for name in &self.class {
            match known.iter().position(|class| class == name) {
                Some(place) => chosen.push(PodClass(place as u8)),
                None => bail!("there are no pods of class {name:?}; there are {}", known.join(", ")),
            }
        }
        Ok(ClassSet::of(&chosen))
    }
}

/// The number of a class, new or known. At most 64 are told apart; the rest share the last number.
fn class_number(name: &str, classes: &mut Vec<String>) -> PodClass {
    let place = classes.iter().position(|class| class == name).unwrap_or_else(|| {
        classes.push(name.to_owned());
        classes.len() - 1
    });
    PodClass(place.min(63) as u8)
}

/// Running pods with the speeds of their engines added up, and decode over prefill speed of them all.
fn running_pods(views: &[PodView], classes: &mut Vec<String>) -> (Vec<Pod>, f64) {
    let mut pods: BTreeMap<&str, Pod> = BTreeMap::new();
    let (mut decode, mut prefill) = (0.0, 0.0);
    for view in views.iter().filter(|view| view.live && view.heartbeat.state == WorkerState::Ready) {
        let said = &view.heartbeat;
        let rate = if view.rate_tok_s > 0.0 { view.rate_tok_s } else { said.decode_tok_s };
        decode += rate;
        prefill += said.prefill_tok_s;
        let pod = pods.entry(&said.pod).or_insert_with(|| Pod {
            name: said.pod.clone(),
            class: class_number(&said.pod_class, classes),
            rate_mean_tok_s: 0.0,
            rate_sd_tok_s: 0.0,
            price_usd_micro_per_hour: said.price_usd_micro_per_hour,
            boot_s: 0.0,
            loss_per_hour: 0.0,
            restart_s: 0.0,
            checkpoint_tokens: 32 * said.slots,
            state: PodState::Running,
        });
        pod.rate_mean_tok_s += rate;
        pod.rate_sd_tok_s += RATE_SPREAD * rate;
    }
    let weight = if prefill > 0.0 { (decode / prefill).clamp(0.0, 1.0) } else { PROMPT_WEIGHT };
    (pods.into_values().collect(), weight)
}

fn offers(path: &PathBuf, classes: &mut Vec<String>) -> anyhow::Result<Vec<Pod>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let market = Market::parse(&text).with_context(|| path.display().to_string())?;
    let mut pods = Vec::new();
    for spec in &market.pods {
        let class = class_number(&spec.class, classes);
        for number in 0..spec.count {
            pods.push(Pod {
                // A running pod's name holds no slash, so the two cannot be taken for one another.
                name: format!("offer/{}/{number:05}", spec.class),
                class,
                rate_mean_tok_s: spec.rate_tok_s,
                rate_sd_tok_s: spec.rate_spread * spec.rate_tok_s,
                price_usd_micro_per_hour: UsdMicro::from_dollars(spec.price_usd_per_hour),
                boot_s: spec.boot_s,
                loss_per_hour: spec.loss_per_hour,
                restart_s: spec.restart_s,
                checkpoint_tokens: spec.checkpoint_tokens.saturating_mul(spec.slots),
                state: PodState::Offered,
            });
        }
    }
    Ok(pods)
}

/// A quote for people.
fn page(answer: &Answer, counted: &sample::Counted, now: TimeMs) -> String {
    let after = |at: TimeMs| match at.since(now).as_secs() {
        never if never > 10 * 365 * 86_400 => "never".to_owned(),
        seconds if seconds >= 7200 => format!("{:.1} h", seconds as f64 / 3600.0),
        seconds if seconds >= 120 => format!("{:.1} min", seconds as f64 / 60.0),
        seconds => format!("{seconds} s"),
    };
    let mut text = format!(
        "lines     {} ({} counted{})\nwork      {:.0} tokens ({:.0} to {:.0})\n",
        counted.lines,
        counted.sample.len(),
        if counted.bad > 0 { format!(", {} of them bad", counted.bad) } else { String::new() },
        answer.work_tokens,
        answer.work_tokens_low,
        answer.work_tokens_high,
    );
    text += &format!(
        "cost      {} expected, up to {}\ndone      in {} expected, by {} with 95 %\n",
        answer.cost_p50_usd_micro,
        answer.cost_p95_usd_micro,
        after(answer.finish_p50_ms),
        after(answer.finish_p95_ms),
    );
    for used in &answer.pods {
        text += &format!("pods      {} × {} ({} to rent)\n", used.pods, used.class, used.started);
    }
    if let Some(other) = &answer.cheaper {
        let (cost, done) = (other.cost_usd_micro, after(other.finish_p95_ms));
        text += &format!("cheaper   {cost} without the deadline, done in {done}\n");
    }
    if let Some(other) = &answer.faster {
        text += &format!("faster    in {} for {}\n", after(other.finish_p95_ms), other.cost_usd_micro);
    }
    text + &answer.explanation + "\n"
}
