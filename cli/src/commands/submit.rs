//! `ternfleet submit FILE.jsonl`: uploads the file, creates the batch, shows progress, writes the results.
//!
//! The creation carries an idempotency key, so that a question repeated over a restart of the coordinator makes one
//! batch. Ctrl-C leaves a batch that was accepted running, and says how to continue.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use ternfleet_proto::message::{BatchCreate, BatchOptions, BatchView};
use ternfleet_proto::table::ApiVerb;
use ternfleet_proto::trace::TraceContext;
use ternfleet_proto::{TimeMs, UsdMicro, openai};

use crate::answers::Format;
use crate::client::{Fleet, Patience};
use crate::connection::Connection;
use crate::output::{Existing, Target, say, say_json};
use crate::progress::{Progress, state_name};
use crate::stop::Stops;
use crate::table::{Asked, Input, Results};
use crate::{dollars, exit, follow, span, stop};

/// The environment variable in which programs that trace hand on their context.
const TRACEPARENT: &str = "TRACEPARENT";
/// Lines whose prompts are counted for the quote that a batch is accepted with.
const QUOTE_SAMPLE: usize = 200;

#[derive(Debug, Args)]
#[command(
    after_help = "A line has OpenAI's Batch format or a short form: {\"prompt\": \"Once upon a time\", \
                  \"max_tokens\": 50}"
)]
pub(crate) struct Submit {
    /// JSONL file of requests, or a table (CSV, Parquet, Arrow, JSONL) with --prompt or --messages; also s3://, gs://,
    /// az://, https:// and hf://datasets/…; `-` reads standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// File for the results, complete and in input order: .jsonl, .csv, .parquet or .arrow; `-` writes to standard output,
    /// in order of completion
    #[arg(long, value_name = "FILE", conflicts_with = "detach")]
    pub(crate) out: Option<Target>,
    /// Overwrite the file of --out if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the batch id and do not wait
    #[arg(long)]
    pub(crate) detach: bool,
    /// Name of the batch
    #[arg(long, value_name = "N")]
    pub(crate) name: Option<String>,
    /// Model of lines that name none, as listed by `ternfleet pods --json` [default: the model of any worker]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Maximum cost of the batch, in dollars; the batch pauses when it is spent
    #[arg(long, value_name = "USD", value_parser = dollars::parse, allow_negative_numbers = true)]
    pub(crate) budget: Option<UsdMicro>,
    /// Time from now by which the batch must be done: 90s, 45m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    pub(crate) deadline: Option<Duration>,
    /// Submit even if the quote exceeds the deadline or budget
    #[arg(long)]
    pub(crate) anyway: bool,
    /// Submit even if no worker serves the model yet, and wait for one
    #[arg(long)]
    pub(crate) wait_for_model: bool,
    /// Priority, from -10 (last) to 10 (first)
    #[arg(long, value_name = "P", default_value_t = 0, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i8).range(-10..=10))]
    pub(crate) priority: i8,
    /// URL that the coordinator calls when the batch ends (https://…); failed calls are retried for some hours
    #[arg(long, value_name = "URL")]
    pub(crate) webhook: Option<String>,
    /// File with the secret that signs the call: whsec_ followed by base64
    #[arg(long, value_name = "FILE", requires = "webhook")]
    pub(crate) webhook_secret_file: Option<PathBuf>,
    /// Shell command to run on this machine at the end; TERNFLEET_BATCH, TERNFLEET_STATUS and TERNFLEET_RESULTS are set
    #[arg(long, value_name = "COMMAND", conflicts_with = "detach")]
    pub(crate) then: Option<String>,
    /// The caller's own pairs
    #[arg(skip)]
    pub(crate) metadata: BTreeMap<String, String>,
    /// Print the batch object as JSON at the end
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) table: Asked,
    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Submit {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if self.json && self.out == Some(Target::Stdout) {
            bail!("--json and --out - both write to standard output: choose one");
        }
        stop::block_on(async {
            let mut stops = Stops::listen()?;
            // Known only once the batch is accepted; decides what Ctrl-C has to say.
            let accepted = std::cell::RefCell::new(None);
            tokio::select! {
                outcome = self.send_and_wait(&accepted) => outcome,
                () = stops.next() => {
                    match accepted.borrow().as_ref() {
                        Some(batch) => self.say_how_to_go_on(batch),
                        None => eprintln!("interrupted before the batch was accepted; the fleet may still \
                                           accept it: see `ternfleet batches`"),
                    }
                    Ok(ExitCode::from(exit::INTERRUPTED))
                }
            }
        })
    }

    pub(crate) async fn send_and_wait(
        &self,
        accepted: &std::cell::RefCell<Option<BatchView>>,
    ) -> anyhow::Result<ExitCode> {
        let draft = match &self.out {
            Some(Target::File(path)) => {
                Some(Results::create(path, Existing::forced(self.force), None).await?)
            }
            _ => None,
        };
        let input = Input::open(&self.file, &self.table).await?;
        if let Some(note) = input.note() {
            eprintln!("{note}");
        }

        let fleet = Fleet::connect(&self.connection).await?;
        let batch = self.create(&fleet, &input).await?;
        *accepted.borrow_mut() = Some(batch.clone());
        if self.detach {
            return if self.json { say_json(&openai::batch_object(&batch)) } else { say(batch.id.as_str()) }
                .map(|()| ExitCode::SUCCESS);
        }
        eprintln!("{} accepted, stored {}", batch.id, crate::commands::status::durability(&batch));

        let mut progress = Progress::new();
        let ended = match self.out {
            Some(Target::Stdout) => {
                follow::stream(&fleet, &batch.id, Format::Jsonl, true, Some(&mut progress)).await?
            }
            _ => follow::to_the_end(&fleet, &batch.id, &mut progress).await?,
        };
        progress.finish(&ended);
        if let Some(reason) = &ended.reason {
            eprintln!("{}: {reason}", state_name(ended.state));
        }
        let mut results = None;
        match draft {
            Some(draft) => {
                let path = draft.write(&fleet, &ended, input.joined(), Patience::Endless).await?;
                eprintln!("results: {}", path.display());
                results = Some(path);
            }
            None if self.out.is_none() => {
                eprintln!(
                    "results: ternfleet results {} --out FILE{}",
                    ended.id,
                    self.connection.address().flag()
                );
            }
            None => {}
        }
        if self.json {
            say_json(&openai::batch_object(&ended))?;
        }
        if let Some(command) = &self.then {
            run_then(command, &ended, results.as_deref())?;
        }
        Ok(exit::of_batch(&ended))
    }

    fn webhook_secret(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.webhook_secret_file else { return Ok(None) };
        let secret =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Some(secret.trim().to_owned()))
    }

    async fn create(&self, fleet: &Fleet, input: &Input) -> anyhow::Result<BatchView> {
        let mut metadata = self.metadata.clone();
        metadata.extend(input.metadata().clone());
        let new = NewBatch {
            key: random_name()?,
            name: self.name.clone(),
            options: BatchOptions {
                budget_usd_micro: self.budget,
                deadline: self.deadline.map(|span| TimeMs::now().plus(span)),
                priority: self.priority,
                webhook_url: self.webhook.clone(),
                webhook_secret: self.webhook_secret()?,
                accept_at_risk: self.anyway,
                wait_for_model: self.wait_for_model,
                model: self.model.clone(),
                ..BatchOptions::default()
            },
            metadata,
        };
        new.create(fleet, input.requests()).await
    }

    fn say_how_to_go_on(&self, batch: &BatchView) {
        let (id, elsewhere) = (&batch.id, self.connection.address().flag());
        eprintln!("\n{id} continues without this command.");
        eprintln!("  results:  ternfleet results {id} --wait --out FILE{elsewhere}");
        eprintln!("  cancel:   ternfleet cancel {id}{elsewhere}");
    }
}

/// A batch that is to be made, once, under a key of its own.
#[derive(Debug)]
pub(crate) struct NewBatch {
    /// 128 bits that nobody else has; the same key makes the same batch again.
    pub(crate) key: String,
    pub(crate) name: Option<String>,
    pub(crate) options: BatchOptions,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl NewBatch {
    /// Uploads and creates; both may be tried again without harm.
    pub(crate) async fn create(self, fleet: &Fleet, file: &Path) -> anyhow::Result<BatchView> {
        let sample = super::quote::read(file, QUOTE_SAMPLE).await?;
        if sample.lines == 0 && sample.bad == 0 {
            bail!("no requests: every line is blank");
        }
        let input_object = format!("input-{}.jsonl", self.key);
        fleet.upload(file, &input_object).await?;
        let question = BatchCreate {
            tenant: fleet.tenant.clone(),
            idempotency_key: self.key,
            input_object,
            name: self.name,
            endpoint: None,
            options: self.options,
            traceparent: TraceContext::of(std::env::var(TRACEPARENT).ok().as_deref()).map(|c| c.to_string()),
            metadata: self.metadata,
            work: Some(super::quote::counted(&sample, fleet).await),
        };
        fleet
            .ask(ApiVerb::BatchCreate, &question, Patience::Endless)
            .await
            .context("the batch was not accepted")
    }
}

/// Runs the command of `--then`; its failure is this command's.
fn run_then(command: &str, ended: &BatchView, results: Option<&Path>) -> anyhow::Result<()> {
    let status = std::process::Command::new("sh")
        .args(["-c", command])
        .env("TERNFLEET_BATCH", ended.id.as_str())
        .env("TERNFLEET_STATUS", state_name(ended.state))
        .env("TERNFLEET_RESULTS", results.unwrap_or(Path::new("")))
        .status()
        .context("cannot run sh")?;
    if !status.success() {
        bail!("the batch has ended, but the command of --then failed: {status}");
    }
    Ok(())
}

/// 128 bits that nobody else has, in hexadecimal.
pub(crate) fn random_name() -> anyhow::Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).context("the system returns no random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_names_differ() {
        let names: std::collections::BTreeSet<String> = (0..1000).map(|_| random_name().unwrap()).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 32));
    }
}
