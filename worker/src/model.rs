//! Loading: the engine, its language, its digest, and its measured speed, on the engine's thread.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use ternfleet_engine::host::Topology;
use ternfleet_engine::{Device, Engine, Options as EngineOptions, Speculation, gguf};
use ternfleet_proto::message::{Abilities, ThreadPoint};
use ternfleet_text::{Manifest, Tokenizer};

use crate::calibrate::{Calibration, calibrate, fewer_is_better, thread_point};
use crate::canary::canary;
use crate::generator::{self, Checked, Generator, INSTANT_CONTEXT};
use crate::language::Language;
use crate::options::{EngineKind, Options};

/// Digest and numerics id of the instant engine.
const INSTANT: &str = "instant";
/// Pages of the instant engine, which has no cache: enough never to bind.
const INSTANT_PAGES: usize = 1 << 20;

/// What is known of a loaded model.
#[derive(Debug)]
pub struct LoadedModel {
    pub name: String,
    /// `blake3:` and the hexadecimal digest of the whole file.
    pub digest: String,
    pub numerics: String,
    /// None where somebody else's server reads and writes.
    pub language: Option<Language>,
    /// What the manifest says for requests that leave it open.
    pub sampling: ternfleet_text::Sampling,
    pub context: usize,
    /// Jobs that generate at once.
    pub slots: usize,
    /// What the engine can do.
    pub abilities: Abilities,
    pub kv_pages: usize,
    pub page_tokens: usize,
    pub threads: usize,
    pub isa: String,
    /// What computes: `cpu`, `cuda`, or somebody else's `server`.
    pub device: &'static str,
    pub load: Duration,
    pub calibration: Calibration,
    /// See [`crate::canary`].
    pub canary: String,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// The file that a running engine has mapped: what is cut off of it is gone from memory, too, and what is deleted cannot be
/// started from again.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    inode: u64,
    bytes: u64,
}

impl MappedFile {
    /// `None` for an engine without a file.
    pub(crate) fn of(options: &Options, kind: EngineKind) -> Option<MappedFile> {
        let path = (kind == EngineKind::Model).then(|| options.model.clone())?;
        let found = std::fs::metadata(&path).ok()?;
        Some(MappedFile { path, inode: found.ino(), bytes: found.len() })
    }

    /// What is wrong with it by now. Another file in its place is a new version, and this one stays mapped.
    pub(crate) fn fault(&self) -> Option<String> {
        let what = match std::fs::metadata(&self.path) {
            Ok(found) if found.ino() == self.inode && found.len() < self.bytes => "is truncated",
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "no longer exists",
            _ => return None,
        };
        Some(format!("the model {} {what}", self.path.display()))
    }
}

/// BLAKE3 of a model file, by all cores over a mapping of it. SHA-256, with which models are published, would take
/// seconds for a gigabyte; the command line checks it when a model is fetched.
pub fn digest_of_file(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(path)?;
    Ok(format!("blake3:{}", hasher.finalize().to_hex()))
}

/// Loads what `options` ask for. Runs on the engine's thread and takes seconds.
pub(crate) fn load(options: &Options, kind: EngineKind) -> anyhow::Result<(Box<dyn Generator>, LoadedModel)> {
    match kind {
        EngineKind::Model => load_model(options),
        EngineKind::Instant { step } => Ok(load_instant(options, step)),
        EngineKind::Openai => anyhow::bail!("a server's model is not loaded here"),
    }
}

fn load_model(options: &Options) -> anyhow::Result<(Box<dyn Generator>, LoadedModel)> {
    let path = options.model.as_path();
    let said = || format!("the model {} cannot be served", path.display());
    let digest = digest_of_file(path).with_context(said)?;
    let manifest = Manifest::beside(path).with_context(said)?;
    let vocabulary = gguf::vocabulary(&gguf::File::open(path).with_context(said)?).with_context(said)?;
    let prepared = Tokenizer::from_parts(&vocabulary, manifest.as_ref()).with_context(said)?;
    let engine_options = EngineOptions {
        threads: options.threads,
        max_sequences: options.slots(),
        max_context: options.max_context,
        kv_budget_bytes: options.kv_budget_bytes,
        prefix_cache: options.prefix_cache,
        head: options.head.parse().with_context(said)?,
        kv: options.kv.parse().with_context(said)?,
        device: options.device.parse().with_context(said)?,
        kernel: options.kernel.parse().with_context(said)?,
        speculation: Speculation { draft_tokens: options.speculate_tokens, ..Speculation::TAIL },
        ..EngineOptions::default()
    };
    let vocab = vocabulary.tokens.len();
    let load_with = |threads| {
        let begun = Instant::now();
        let engine =
            Engine::load(path, &EngineOptions { threads, ..engine_options.clone() }).with_context(said)?;
        Ok::<_, anyhow::Error>((engine, begun.elapsed()))
    };
    let (mut engine, load, thread_scaling) = if engine_options.device == Device::Cpu {
        with_the_best_threads(options, vocab, load_with)?
    } else {
        // The threads only draw tokens.
        let (engine, took) = load_with(options.threads)?;
        (engine, took, Vec::new())
    };
    let info = engine.info().clone();
    let canary = canary(&mut engine, vocab, &mut Vec::new());
    let calibration =
        Calibration { thread_scaling, ..measured(&mut engine, options, vocab, info.max_context) };
    let stem =
        || path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let loaded = LoadedModel {
        sampling: manifest.as_ref().map_or_else(Default::default, |manifest| manifest.sampling.clone()),
        language: Some(Language::of(
            prepared.tokenizer,
            manifest.as_ref().and_then(|manifest| manifest.tools),
        )),
        name: manifest.map_or_else(stem, |manifest| manifest.name),
        digest,
        numerics: info.numerics.to_owned(),
        context: info.max_context,
        slots: options.slots(),
        abilities: Abilities::ALL,
        kv_pages: info.kv_pages,
        page_tokens: info.page_tokens,
        threads: info.threads,
        isa: info.isa.to_string(),
        device: engine_options.device.name(),
        load,
        calibration,
        canary: canary.clone(),
        notes: prepared.note.into_iter().chain(info.warnings).collect(),
    };
    Ok((Box::new(Checked { inner: Box::new(engine), vocab, canary }), loaded))
}

/// Loads the engine. With the number of threads left open, half of them are tried first and kept if all do not help;
/// that costs half a second and one more load, or two where the half is kept, once.
fn with_the_best_threads(
    options: &Options,
    vocab: usize,
    load: impl Fn(Option<usize>) -> anyhow::Result<(Engine, Duration)>,
) -> anyhow::Result<(Engine, Duration, Vec<ThreadPoint>)> {
    let all = Topology::read().default_threads();
    let half = all / 2;
    if options.threads.is_some() || options.calibrate_ms == 0 || half == 0 {
        let (engine, took) = load(options.threads)?;
        return Ok((engine, took, Vec::new()));
    }
    let share = Duration::from_millis(options.calibrate_ms) / 8;
    let load_and_measure = |threads| {
        let (mut engine, took) = load(Some(threads))?;
        let context = engine.info().max_context;
        let point = thread_point(&mut engine, threads, options.slots(), vocab, context, share);
        Ok::<_, anyhow::Error>((engine, took, point))
    };
    let (engine, _, with_half) = load_and_measure(half)?;
    // Never two engines in memory.
    drop(engine);
    let (engine, took, with_all) = load_and_measure(all)?;
    let points = vec![with_half, with_all];
    if !fewer_is_better(with_half, with_all) {
        return Ok((engine, took, points));
    }
    tracing::warn!(
        threads = half,
        tok_s = with_half.tok_s,
        of = all,
        tok_s_of_all = with_all.tok_s,
        "more threads are not faster on this machine: using half of them; set `threads` to override this"
    );
    drop(engine);
    let (engine, took) = load(Some(half))?;
    Ok((engine, took, points))
}

fn load_instant(options: &Options, step: Duration) -> (Box<dyn Generator>, LoadedModel) {
    let mut engine = generator::Instant::new(step);
    let canary = canary(&mut engine, 256, &mut Vec::new());
    let calibration = measured(&mut engine, options, 256, INSTANT_CONTEXT);
    let loaded = LoadedModel {
        sampling: Default::default(),
        name: INSTANT.to_owned(),
        digest: INSTANT.to_owned(),
        numerics: INSTANT.to_owned(),
        language: Some(Language::Bytes),
        context: INSTANT_CONTEXT,
        slots: options.slots(),
        abilities: Abilities::ALL,
        kv_pages: INSTANT_PAGES,
        page_tokens: 128,
        threads: 1,
        isa: INSTANT.to_owned(),
        device: Device::Cpu.name(),
        load: Duration::ZERO,
        calibration,
        canary,
        notes: vec!["this engine generates random letters: for measurements only".to_owned()],
    };
    (Box::new(engine), loaded)
}

fn measured(generator: &mut dyn Generator, options: &Options, vocab: usize, context: usize) -> Calibration {
    match options.calibrate_ms {
        0 => Calibration::default(),
        budget_ms => calibrate(generator, options.slots(), vocab, context, Duration::from_millis(budget_ms)),
    }
}
