//! `ternfleet launch PROMPTS`: a fleet for one batch, from quote to bill, with everything given back at the end.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};

use ternfleet_cloud::http::Secret;
use ternfleet_cloud::runpod::{Options, Runpod};
use ternfleet_proto::{TenantId, TimeMs, UsdMicro};

use super::quote;
use super::submit::random_name;
use crate::launch::{self, Elsewhere, Folder, Folders, Head, Outcome, Place, Rent, State};
use crate::output::{Existing, say};
use crate::stop::Stops;
use crate::table::{Asked, Input, Results, is_here, shown};
use crate::{dollars, exit, local, locate, span, stop};

/// Of the random key, so much makes the fleet's name.
const NAME_DIGITS: usize = 8;

#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is ordered before you accept the quote. Ctrl-C asks whether to detach or to end \
                  the batch.\n\
                  `ternfleet fleets` lists launched fleets, `ternfleet down` ends one."
)]
pub(crate) struct Launch {
    /// JSONL file of requests, or a table with --prompt or --messages, as for `submit`
    #[arg(value_name = "PROMPTS", required_unless_present = "resume")]
    prompts: Option<PathBuf>,
    /// Where the fleet runs
    #[arg(long, value_enum, default_value = "local", conflicts_with_all = ["head", "resume"])]
    at: Place,
    /// Use the running coordinator at this NATS address in place of a new fleet
    #[arg(long, value_name = "URL", conflicts_with = "resume")]
    head: Option<String>,
    /// With --head: credentials for a NATS server with permissions
    #[arg(long, value_name = "FILE", env = "TERNFLEET_NATS_CREDENTIALS_FILE")]
    nats_credentials_file: Option<PathBuf>,
    /// With --head: additional certificates to trust
    #[arg(long, value_name = "FILE", env = "TERNFLEET_NATS_ROOT_CERTIFICATES")]
    nats_root_certificates: Option<PathBuf>,
    /// With --head: tenant of the batch
    #[arg(long, value_name = "NAME", env = "TERNFLEET_TENANT", default_value = "default")]
    tenant: TenantId,
    /// Continue a launched fleet [default: the only one that is open]
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    resume: Option<String>,
    /// Model: a file, or a name of `ternfleet model list` [default: the included storyteller]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Maximum cost of the batch, in dollars; the batch pauses when it is spent
    #[arg(long, value_name = "USD", value_parser = dollars::parse, allow_negative_numbers = true)]
    budget: Option<UsdMicro>,
    /// Time from now by which the batch must be done: 90s, 45m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    deadline: Option<Duration>,
    /// Maximum number of pods at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    pods: u32,
    /// Use only these pod classes (see deploy/fleets/runpod.toml)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    class: Vec<String>,
    /// Address from which pods download `ternfleet`, `nats-server` and, for a model file, `model.gguf` and `manifest.toml`
    #[arg(long, value_name = "URL", env = "TERNFLEET_FILES_URL")]
    files: Option<String>,
    /// Only the head downloads from --files, and workers download from the head; for an address that is slow or expires soon
    #[arg(long, requires = "files")]
    files_from_head: bool,
    /// File with your own classes and limits: a `[scale]` table as in deploy/fleets/runpod.toml
    #[arg(long, value_name = "FILE")]
    fleet: Option<PathBuf>,
    /// The static binary that --files serves as `ternfleet` [default: this program]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// How long a rented head keeps results before it terminates itself [default: 6h]
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    keep: Option<Duration>,
    /// Container image in place of the default one; needs a shell, curl and certificates
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// File with the API key of the provider [default: RUNPOD_API_KEY]
    #[arg(long, value_name = "FILE", env = "RUNPOD_API_KEY_FILE")]
    key_file: Option<PathBuf>,
    /// Address in place of RunPod's API
    #[arg(long, value_name = "URL", env = "TERNFLEET_RUNPOD_BASE", hide = true)]
    runpod_base: Option<String>,
    /// How long an order without an answer takes to show in the provider's list
    #[arg(long, value_name = "TIME", value_parser = span::parse, hide = true)]
    runpod_settle: Option<Duration>,
    /// Price of a local pod per hour, used for quote and bill
    #[arg(long, value_name = "X", default_value_t = 0.34)]
    price_usd_per_hour: f64,
    /// File for the results, complete and in input order, as for `submit` [default: PROMPTS.answers.jsonl in the current folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite the file of --out if it exists
    #[arg(long)]
    force: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Continue even if the quote exceeds the deadline or budget
    #[arg(long)]
    anyway: bool,
    #[command(flatten)]
    table: Asked,
}

impl Launch {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let folders = Folders::find()?;
        stop::block_on(async {
            let mut stops = Stops::listen()?;
            let (mut state, input) = match &self.resume {
                Some(name) => (folders.choose(Some(name.as_str()).filter(|name| !name.is_empty()))?, None),
                None => match self.begin(&mut stops).await? {
                    Some((state, input)) => (state, Some(input)),
                    None => return Ok(ExitCode::from(exit::INTERRUPTED)),
                },
            };
            if state.ended_at.is_some() {
                bail!("{} has ended; its results are in {}", state.name, state.out.display());
            }
            let folder = folders.folder(&state.name);
            let _held = folder.lock()?;
            if let Some(input) = input {
                state.prompts = std::path::absolute(input.keep(folder.path())?)?;
            }
            folder.write(&state)?;
            go(&folder, state, &mut stops).await
        })
    }

    /// Shows the quote, asks, and answers what is to be done; `None` when it is not.
    async fn begin(&self, stops: &mut Stops) -> anyhow::Result<Option<(State, Input)>> {
        let prompts = self.prompts.as_deref().context("no file of prompts given")?;
        let out = self.out.clone().unwrap_or_else(|| answers_beside(prompts));
        if !is_here(&out) {
            bail!("launch writes its results to a file on this machine: pass a file name with --out");
        }
        drop(Results::create(&out, Existing::forced(self.force), None).await?);
        let input = Input::open(prompts, &self.table).await?;
        if let Some(note) = input.note() {
            eprintln!("{note}");
        }
        if input.joined().is_some() && prompts == Path::new("-") {
            bail!("the table is read again at the end, so it must be a file or an address");
        }
        let table = input.joined().is_some().then(|| match is_here(prompts) {
            true => std::path::absolute(prompts),
            false => Ok(prompts.to_owned()),
        });
        let key = random_name()?;
        let at = if self.head.is_some() { Place::Elsewhere } else { self.at };
        let mut state = State {
            name: format!("tf-{}", &key[..NAME_DIGITS]),
            at,
            began_at: TimeMs::now(),
            prompts: std::path::absolute(input.requests())?,
            table: table.transpose()?,
            metadata: input.metadata().clone(),
            out: std::path::absolute(&out)?,
            replaces_out: self.force,
            model: self.model(at)?,
            key,
            deadline: self.deadline.map(|span| TimeMs::now().plus(span)),
            budget_usd_micro: self.budget,
            pods_max: self.pods,
            price_usd_per_hour: self.price_usd_per_hour,
            quote: None,
            elsewhere: self.elsewhere()?,
            batch: None,
            fetched: None,
            rent: None,
            ended_at: None,
            bill: Default::default(),
        };
        if at == Place::Runpod {
            state.rent = Some(self.rent(&state).await?);
        }
        let (quote, text) = self.quote(&state).await?;
        say(text.trim_end())?;
        if !quote.kept && self.yes && !self.anyway {
            bail!("the quote exceeds the deadline or budget: change them, or add --anyway");
        }
        state.quote = Some(quote);
        if self.yes {
            return Ok(Some((state, input)));
        }
        if !std::io::stdin().is_terminal() {
            bail!("standard input is not a terminal, so the plan cannot be confirmed: add --yes");
        }
        let answer = tokio::select! {
            answer = ask("continue? [y/N] ") => answer?,
            () = stops.next() => String::new(),
        };
        Ok(matches!(answer.as_str(), "y" | "yes").then_some((state, input)))
    }

    async fn quote(&self, state: &State) -> anyhow::Result<(ternfleet_proto::message::Quote, String)> {
        if let Some(elsewhere) = &state.elsewhere {
            return quote::by_the_fleet(
                &elsewhere.connection(),
                &state.prompts,
                state.deadline,
                state.budget_usd_micro,
            )
            .await;
        }
        let head = match &state.rent {
            None => ("nats-server and coordinator on this machine".to_owned(), UsdMicro::ZERO),
            Some(rent) => (rent.head_words(), rent.head_price_usd_micro_per_hour),
        };
        let offers = match &state.rent {
            None => vec![local::guessed_class(&state.model, state.pods_max, state.price_usd_per_hour)],
            Some(rent) => rent.market(),
        };
        let plan = launch::Plan {
            prompts: &state.prompts,
            model: &state.model,
            deadline: state.deadline,
            budget: state.budget_usd_micro,
            head: (&head.0, head.1),
            pods: &offers,
        };
        launch::plan(&plan).await
    }

    fn elsewhere(&self) -> anyhow::Result<Option<Elsewhere>> {
        let Some(nats) = &self.head else { return Ok(None) };
        // `--resume` may be typed in another folder.
        let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
        Ok(Some(Elsewhere {
            nats: nats.clone(),
            credentials_file: absolute(&self.nats_credentials_file)?,
            root_certificates: absolute(&self.nats_root_certificates)?,
            tenant: self.tenant.clone(),
        }))
    }

    /// At RunPod a model need not be here: pods fetch it.
    fn model(&self, at: Place) -> anyhow::Result<PathBuf> {
        match &self.model {
            Some(name) if at == Place::Runpod && !name.is_file() => Ok(name.clone()),
            given => locate::model(given.as_deref()),
        }
    }

    /// Asks the provider what may be rented, and for how much.
    async fn rent(&self, state: &State) -> anyhow::Result<Rent> {
        let files = self.files.as_deref().context(
            "pods download this program, nats-server and your own model from an address that you provide: \
             pass it with --files (see docs/runpod.md)",
        )?;
        let key = launch::key(self.key_file.as_deref())?;
        let mut options = Options::new(Secret::new(key));
        if let Some(base) = &self.runpod_base {
            options.base.clone_from(base);
        }
        let wishes = launch::Wishes {
            base: self.runpod_base.as_deref(),
            key_file: self.key_file.as_deref(),
            files,
            from_head: self.files_from_head,
            image: self.image.as_deref(),
            fleet: self.fleet.as_deref(),
            settle: self.runpod_settle,
            classes: &self.class,
            pods_max: state.pods_max,
            keep: self.keep,
            model: &state.model,
            binary: self.binary.as_deref(),
        };
        Rent::choose(&wishes, &Runpod::new(options)?).await
    }
}

/// Tables are answered in their own format, where it can be written.
const TABLES: [&str; 3] = ["csv", "parquet", "arrow"];

/// `tales.jsonl` is answered in `tales.answers.jsonl` here.
fn answers_beside(prompts: &Path) -> PathBuf {
    let name = shown(prompts);
    let name = Path::new(&name);
    let stem = name.file_stem().map_or_else(|| "prompts".into(), |stem| stem.to_string_lossy().into_owned());
    let end = name.extension().and_then(|end| end.to_str()).filter(|end| TABLES.contains(end));
    format!("{stem}.answers.{}", end.unwrap_or("jsonl")).into()
}

/// How long after an interruption an answer still counts as typed before it.
const ANSWER_ON_ITS_WAY: Duration = Duration::from_millis(300);

/// What Ctrl-C is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Continue,
    Detach,
    End,
}

/// Does what is left to do, and asks when somebody interrupts it.
async fn go(folder: &Folder, state: State, stops: &mut Stops) -> anyhow::Result<ExitCode> {
    let name = state.name.clone();
    let outcome = {
        let work = launch::run(folder, state);
        tokio::pin!(work);
        let mut interrupted = false;
        loop {
            if !interrupted {
                tokio::select! {
                    outcome = &mut work => break Ok(outcome),
                    () = stops.next() => {}
                }
            }
            let wish;
            (wish, interrupted) = answer(wish_asked(), stops.next()).await?;
            if wish != Wish::Continue {
                break Err(wish);
            }
        }
    };
    match outcome {
        Ok(Ok(Outcome { batch, state })) => {
            say(&state.bill_page())?;
            Ok(exit::of_batch(&batch))
        }
        Ok(Err(error)) => {
            let state = folder.read()?;
            // Nothing was begun that could be lost.
            if state.batch.is_none() {
                end(folder, state).await?;
            } else {
                say_how_to_go_on(&name);
            }
            Err(error)
        }
        Err(Wish::End) => {
            super::down::end(folder, folder.read()?).await?;
            Ok(ExitCode::from(exit::INTERRUPTED))
        }
        Err(_) => {
            say_how_to_go_on(&name);
            Ok(ExitCode::from(exit::INTERRUPTED))
        }
    }
}

async fn end(folder: &Folder, mut state: State) -> anyhow::Result<()> {
    let head = Head::of(&state, folder)?;
    launch::give_back(&head, folder, &mut state).await
}

fn say_how_to_go_on(name: &str) {
    eprintln!("\n{name} continues without this command.");
    eprintln!("  to follow it again: ternfleet launch --resume {name}");
    eprintln!("  to end it:          ternfleet down {name}");
}

/// The answer to the question, and whether it was interrupted once more after that. Interrupted without an answer, the
/// command lets go. An answer that was typed before the interruption may still be on its way from the terminal.
async fn answer(
    wish: impl Future<Output = anyhow::Result<Wish>>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<(Wish, bool)> {
    tokio::pin!(wish);
    tokio::select! {
        biased;
        wish = &mut wish => return Ok((wish?, false)),
        () = stop => {}
    }
    match tokio::time::timeout(ANSWER_ON_ITS_WAY, wish).await {
        Ok(wish) => Ok((wish?, true)),
        Err(_) => Ok((Wish::Detach, true)),
    }
}

/// On a terminal somebody is asked; elsewhere a signal lets go, and the fleet works on.
async fn wish_asked() -> anyhow::Result<Wish> {
    if !std::io::stdin().is_terminal() {
        return Ok(Wish::Detach);
    }
    loop {
        let answer = ask("\n[d]etach and let it run, [e]nd it and return all pods, or [c]ontinue? ").await?;
        match answer.as_str() {
            "d" | "detach" => return Ok(Wish::Detach),
            "e" | "end" => return Ok(Wish::End),
            "c" | "continue" => return Ok(Wish::Continue),
            _ => {}
        }
    }
}

/// A line from the terminal, in small letters. At its end nobody answers any more, which is an error.
async fn ask(question: &str) -> anyhow::Result<String> {
    eprint!("{question}");
    std::io::stderr().flush()?;
    let mut line = String::new();
    let read =
        BufReader::new(tokio::io::stdin()).read_line(&mut line).await.context("cannot read the answer")?;
    if read == 0 {
        bail!("standard input has ended, so the question cannot be answered: add --yes");
    }
    Ok(line.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_the_next_interruption_overtakes_counts_and_is_asked_for_again() {
        let typed = |ms| async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(Wish::Continue)
        };
        let stop = |ms| tokio::time::sleep(Duration::from_millis(ms));
        assert_eq!(answer(typed(10), stop(20)).await.unwrap(), (Wish::Continue, false));
        assert_eq!(answer(typed(60), stop(20)).await.unwrap(), (Wish::Continue, true));
        assert_eq!(answer(typed(60_000), stop(20)).await.unwrap(), (Wish::Detach, true));
        assert_eq!(answer(typed(0), std::future::ready(())).await.unwrap().0, Wish::Continue);
    }

    #[test]
    fn answers_lie_here_under_the_name_of_the_prompts() {
        assert_eq!(answers_beside(Path::new("/data/tales.jsonl")), Path::new("tales.answers.jsonl"));
    }
}
