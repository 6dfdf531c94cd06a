//! Somebody else's server behind a worker: any that speaks OpenAI's API by streaming, such as vLLM or another fleet.
//!
//! What it can do is asked at the start (`probe`), how fast it is measured (`measure`). Each job is one task
//! (`job`) that asks, reads what comes, and says it in the words of the core. Claims, checkpoints and answers are as ever.
//! Called by the worker's shell.

mod ask;
mod client;
mod job;
mod measure;
mod piece;
mod probe;
mod server;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ternfleet_cloud::http::Dial;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::model::LoadedModel;
use crate::options::Options;
use client::Client;
pub(crate) use job::{Job, Said, run as run_job};
pub use probe::Facts;
use server::Server;
pub(crate) use watch::{Notice, Watch};

/// The longest that a worker waits between two looks at a server that starts.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Key/value pages, which are the server's affair: enough never to bind.
const PAGES: usize = 1 << 20;

/// A server that answers, and what was found of it.
#[derive(Debug)]
pub struct Upstream {
    pub(crate) client: Arc<Client>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) server: Option<Server>,
    pub(crate) silence: Duration,
}

impl Upstream {
    /// Starts the server if that is wanted, waits for it, asks what it can do and measures it. None if `shutdown` comes first.
    ///
    /// # Errors
    /// When it cannot be started or does not answer in time, or when it is not known which of its models is meant.
    pub async fn begin(
        options: &Options,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<(Upstream, LoadedModel)>> {
        let key = options.upstream_key_file.as_deref().map(read_key).transpose()?;
        let client = Client::new(&options.upstream, key, Duration::from_secs(options.upstream_silence_s))?;
        Upstream::begin_with(client, options, shutdown).await
    }

    /// The same, for a server within this process.
    ///
    /// # Errors
    /// The same.
    pub async fn begin_within(
        dial: Dial,
        options: &Options,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<(Upstream, LoadedModel)>> {
        let client = Client::within(dial, Duration::from_secs(options.upstream_silence_s));
        Upstream::begin_with(client, options, shutdown).await
    }

    async fn begin_with(
        client: Client,
        options: &Options,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<(Upstream, LoadedModel)>> {
        tokio::select! {
            begun = begin(client, options) => begun.map(Some),
            () = shutdown.cancelled() => Ok(None),
        }
    }
}

async fn begin(nobody: Client, options: &Options) -> anyhow::Result<(Upstream, LoadedModel)> {
    let begun = Instant::now();
    let silence = Duration::from_secs(options.upstream_silence_s);
    let mut server = options.upstream_command.as_deref().map(Server::start).transpose()?;
    let most = Duration::from_secs(options.upstream_start_s);
    wait_for(&nobody, &mut server, most).await?;
    let model = probe::chosen(&nobody, options.upstream_model.as_deref()).await?;
    let client = nobody.of_model(&model.id);
    let facts = loop {
        if let Some(facts) = probe::facts(&client, &model, options).await? {
            break facts;
        }
        if begun.elapsed() > most {
            anyhow::bail!(
                "the server is too busy, or breaks off, so it is not known what it can do: start the worker again when \
                 the server answers"
            );
        }
        tracing::info!(model = model.id, "the server has left questions open; it is asked again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let load = begun.elapsed();
    let (slots, calibration) = measure::measured(&client, &facts, options).await;
    for (has, words) in facts.abilities.named() {
        tracing::info!(model = model.id, "the server {} {words}", if has { "can" } else { "cannot" });
    }
    let loaded = LoadedModel {
        name: model.id.clone(),
        digest: facts.digest.clone(),
        numerics: facts.numerics.clone(),
        language: None,
        sampling: Default::default(),
        context: facts.context,
        slots,
        abilities: facts.abilities,
        kv_pages: PAGES,
        page_tokens: 128,
        threads: 1,
        isa: facts.engine.clone(),
        device: "server",
        load,
        calibration,
        canary: String::new(),
        notes: facts.notes.clone(),
    };
    let upstream = Upstream { client: Arc::new(client), facts: Arc::new(facts), server, silence };
    Ok((upstream, loaded))
}

fn read_key(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the key of the server cannot be read from {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Until the server tells its models.
async fn wait_for(client: &Client, server: &mut Option<Server>, most: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let said = match client.models().await {
            Ok(_) => return Ok(()),
            Err(trouble) => trouble.to_string(),
        };
        if let Some(server) = server
            && let Some(status) = server.ended()
        {
            anyhow::bail!(
                "the server's command ended with {status} before it answered; see its output above"
            );
        }
        if begun.elapsed() >= most {
            anyhow::bail!(
                "no server answers at {}: {said}. Start it, correct `upstream`, or raise `upstream_start_s`",
                client.address()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
