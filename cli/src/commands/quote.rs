//! `ternfleet quote FILE`: what a batch will cost and when it will be done, before it runs.

pub(crate) mod market;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::io::BufReader;

use ternfleet_coordinator::sample::{self, Sample};
use ternfleet_proto::message::{Conversation, Prompt, Quote as Answer, QuoteAsk, WorkSample};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{TenantId, TimeMs, UsdMicro};
use ternfleet_text::Tokenizer;
use ternfleet_worker::language;

use crate::client::{Fleet, Patience};
use crate::connection::Connection;
use crate::model_file::ModelFile;
use crate::output::{say, say_json};
use crate::table::{Asked, Input, shown};
use crate::{dollars, report, span, stop};

#[derive(Debug, Args)]
pub(crate) struct Quote {
    /// JSONL file of requests, or a table with --prompt or --messages, as for `submit`
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Time within which the batch must be done: 90s, 45m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    deadline: Option<Duration>,
    /// Maximum cost of the batch, in dollars
    #[arg(long, value_name = "USD", value_parser = dollars::parse, allow_negative_numbers = true)]
    budget: Option<UsdMicro>,
    /// Use only these pod classes
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    class: Vec<String>,
    /// File with the pods that can be rented, in place of the fleet's own (TOML, as for `simulate`)
    #[arg(long, value_name = "FILE")]
    market: Option<PathBuf>,
    /// Do not use a running fleet; use only the file of --market
    #[arg(long, requires = "market")]
    offline: bool,
    /// Number of lines whose tokens are counted, at most 1000
    #[arg(long, value_name = "N", default_value_t = 1000)]
    sample: usize,
    /// With --offline: model whose tokenizer counts the tokens [default: the included storyteller]
    #[arg(long, value_name = "PATH", requires = "offline")]
    model: Option<PathBuf>,
    /// Print one JSON object; money is in micro-dollars, times are in milliseconds since 1970
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: Asked,
    #[command(flatten)]
    connection: Connection,
}

impl Quote {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        stop::block_on(self.ask())
    }

    async fn ask(self) -> anyhow::Result<ExitCode> {
        let input = Input::open(&self.file, &self.table).await?;
        let sample = read(input.requests(), self.sample).await?;
        let market = self.market.as_deref().map(market::read).transpose()?;
        let now = TimeMs::now();
        let answer = if self.offline {
            let model = ModelFile::open(self.model.as_deref())?;
            let tokenizer = model.tokenizer()?;
            let work = sample.counted_by(|prompt| count(prompt, &tokenizer));
            let context = model.hyper.context as u32;
            let tenant = &self.connection.tenant;
            market::quote(&self.question(tenant, work, now)?, market.as_ref(), &[], context, now)?
        } else {
            let fleet = Fleet::connect(&self.connection).await?;
            let question = self.question(&fleet.tenant, counted(&sample, &fleet).await, now)?;
            let unasked = "the running fleet does not reply; use `--offline --market FILE` to quote \
                           without it";
            match &market {
                None => fleet.ask(ApiVerb::Quote, &question, Patience::Short).await.context("no quote")?,
                Some(market) => {
                    let running = report::pods(&fleet, Vec::new()).await.context(unasked)?;
                    let context = running.iter().map(|pod| pod.heartbeat.context_tokens).max();
                    market::quote(&question, Some(market), &running, context.unwrap_or(2048), now)?
                }
            }
        };
        if self.json {
            say_json(&answer)?;
        } else {
            say(page(&answer, &sample, now).trim_end())?;
        }
        Ok(if answer.kept { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    fn question(&self, tenant: &TenantId, work: WorkSample, now: TimeMs) -> anyhow::Result<QuoteAsk> {
        if work.sample.is_empty() {
            bail!("{} has no valid request: there is nothing to quote", shown(&self.file));
        }
        Ok(QuoteAsk {
            tenant: tenant.clone(),
            work,
            deadline: self.deadline.map(|span| now.plus(span)),
            budget_usd_micro: self.budget,
            classes: self.class.clone(),
        })
    }
}

/// Reads a batch file and chooses some of its lines.
pub(crate) async fn read(path: &Path, most: usize) -> anyhow::Result<Sample> {
    let cannot = || format!("cannot read {}", path.display());
    let file = tokio::fs::File::open(path).await.with_context(cannot)?;
    sample::read(&mut BufReader::with_capacity(256 << 10, file), most).await.with_context(cannot)
}

/// With the prompts of a sample counted by the fleet.
pub(crate) async fn counted(sample: &Sample, fleet: &Fleet) -> WorkSample {
    let subject = table::api_of(ApiVerb::Count, &fleet.tenant);
    sample.counted_by_fleet(&*fleet.bus, &subject, &fleet.tenant).await
}

/// What a running fleet quotes for a file, and the same for people.
pub(crate) async fn by_the_fleet(
    to: &Connection,
    file: &Path,
    deadline: Option<TimeMs>,
    budget_usd_micro: Option<UsdMicro>,
) -> anyhow::Result<(Answer, String)> {
    let fleet = Fleet::connect(to).await?;
    let sample = read(file, 1000).await?;
    let work = counted(&sample, &fleet).await;
    let tenant = fleet.tenant.clone();
    let question = QuoteAsk { tenant, work, deadline, budget_usd_micro, classes: Vec::new() };
    let answer = fleet.ask(ApiVerb::Quote, &question, Patience::Short).await.context("no quote")?;
    let text = page(&answer, &sample, TimeMs::now());
    Ok((answer, text))
}

/// Tokens of a prompt; `None` when the tokenizer refuses it.
pub(crate) fn count(prompt: &Prompt, tokenizer: &Tokenizer) -> Option<u32> {
    let ids = match prompt {
        Prompt::Tokens(ids) => Some(ids.clone()),
        Prompt::Text(text) => tokenizer.encode(text, true).ok(),
        Prompt::Chat(messages) => language::encode_chat(tokenizer, messages, None).ok(),
        Prompt::Conversation(Conversation { messages, tools }) => {
            language::encode_chat(tokenizer, messages, tools.as_ref()).ok()
        }
        Prompt::Several(several) => {
            return several.prompts.iter().map(|prompt| count(prompt, tokenizer)).sum();
        }
    };
    ids.map(|ids| ids.len() as u32)
}

/// A quote for people.
pub(crate) fn page(answer: &Answer, sample: &Sample, now: TimeMs) -> String {
    let after = |at: TimeMs| match at.since(now).as_secs_f64() {
        never if never > 10.0 * 365.0 * 86_400.0 => "never".to_owned(),
        seconds if seconds >= 7200.0 => format!("{:.1} h", seconds / 3600.0),
        seconds if seconds >= 120.0 => format!("{:.1} min", seconds / 60.0),
        seconds if seconds >= 10.0 => format!("{seconds:.0} s"),
        seconds => format!("{seconds:.1} s"),
    };
    let mut text = format!(
        "lines     {} ({} counted{})\nwork      {:.0} tokens ({:.0} to {:.0})\n",
        sample.lines,
        sample.requests.len(),
        if sample.bad > 0 { format!(", {} invalid", sample.bad) } else { String::new() },
        answer.work_tokens,
        answer.work_tokens_low,
        answer.work_tokens_high,
    );
    if answer.cached_lines > 0 {
        text += &format!("cached    {} of the lines need no work, and cost nothing\n", answer.cached_lines);
    }
    let (cost, cost_max) = (answer.cost_p50_usd_micro, answer.cost_p95_usd_micro);
    text += &match (after(answer.finish_p50_ms), after(answer.finish_p95_ms)) {
        (likely, _) if likely == "never" => "done      not possible with these pods\n".to_owned(),
        (likely, late) => {
            let rented =
                answer.bill_p50_usd_micro.filter(|bill| *bill < cost).map_or(String::new(), |bill| {
                    format!("          {bill} of it for the batch, the rest for starting and ending pods\n")
                });
            format!(
                "cost      {cost} (p50), {cost_max} (p95)\n{rented}done      in {likely} (p50), in {late} \
                 (p95)\n"
            )
        }
    };
    for used in &answer.pods {
        let rent = if used.started > 0 { format!(", {} to rent", used.started) } else { String::new() };
        let (from, until) = (after(used.from_ms), after(used.until_ms));
        text += &format!("pods      {} × {}{rent}, from {from} to {until}\n", used.pods, used.class);
    }
    if answer.classes.len() > 1 {
        let each =
            answer.classes.iter().map(|one| format!("{} {}", one.class, one.usd_micro_per_million_tokens));
        text += &format!("classes   {} per 1M tokens\n", each.collect::<Vec<_>>().join(", "));
    }
    if let Some(other) = &answer.cheaper {
        let (cost, done) = (other.cost_usd_micro, after(other.finish_p95_ms));
        let due =
            other.deadline_ms.map_or("without a deadline".to_owned(), |at| format!("due in {}", after(at)));
        text += &format!("cheaper   {cost} {due}, done in {done}\n");
    }
    // What is faster by less than is shown is no choice.
    let faster =
        answer.faster.as_ref().filter(|other| after(other.finish_p95_ms) != after(answer.finish_p95_ms));
    if let Some(other) = faster {
        text +=
            &format!("faster    {} for a finish in {}\n", other.cost_usd_micro, after(other.finish_p95_ms));
    }
    text + &answer.explanation + "\n"
}
