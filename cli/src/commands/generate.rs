//! `ternfleet generate`: one prompt on this machine, without a fleet.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use ternfleet_engine::{
    Device, Event, Head, Kv, Options, Request, Sampling, Speculation, SpeculationCounters, StopReason,
};
use ternfleet_text::constraint::{Compiler, Constraint, Grammar};
use ternfleet_text::{Message, Role, Step, StopMatcher, Stream, Tokenizer};

use crate::model_file::{ModelFile, parse_ids, threads};
use crate::output::say_json;

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// Model: a file, or a name of `ternfleet model list` [default: the included storyteller]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Prompt
    #[arg(short, long, value_name = "TEXT", required_unless_present = "ids", conflicts_with = "ids")]
    prompt: Option<String>,
    /// Token ids in place of a prompt, used as they are; no BOS is added
    #[arg(long, value_name = "1,2,3", value_parser = parse_ids)]
    ids: Option<IdList>,
    /// Maximum number of tokens to generate
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 100)]
    tokens: u32,
    /// Threads [default: usable cores, at most 16]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Temperature; 0 always selects the most likely token [default: the model's, else 0.7]
    #[arg(long, value_name = "X")]
    temp: Option<f32>,
    /// Sample from the most likely tokens up to this total probability [default: the model's, else 0.9]
    #[arg(long, value_name = "X")]
    top_p: Option<f32>,
    /// Sample from this many most likely tokens; 0 means all [default: the model's, else 40]
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Lower a token's score for each time it was generated [default: the model's, else 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Drop tokens below this probability relative to the most likely one
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    min_p: f32,
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Stop before this text; can be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Do not stop at an end-of-text token; generate -n tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Output head: screened and full give the same tokens, q8 and q6 approximate them
    #[arg(long, value_name = "NAME", default_value_t = Head::Screened)]
    head: Head,
    /// How keys and values are stored: f16, or int8, an approximation in half the memory
    #[arg(long, value_name = "NAME", default_value_t = Kv::F16)]
    kv: Kv,
    /// What computes: cpu, or cuda for an NVIDIA card (experimental: no card has run it yet)
    #[arg(long, value_name = "NAME", default_value_t = Device::Cpu)]
    device: Device,
    /// Draft up to this many tokens and verify them in one step; the output is the same; 0 turns it off
    #[arg(long, value_name = "N", default_value_t = Speculation::TAIL.draft_tokens as u8)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=Speculation::MAX_DRAFT_TOKENS as i64))]
    speculate: u8,
    /// Format the prompt as a chat message, with the template of the model's manifest
    #[arg(long, conflicts_with = "ids")]
    chat: bool,
    /// Generate JSON that is valid under the schema in this file; `-` reads standard input
    #[arg(long, value_name = "FILE", group = "constraint")]
    json_schema: Option<PathBuf>,
    /// Generate text that matches this regular expression as a whole
    #[arg(long, value_name = "R", group = "constraint")]
    regex: Option<String>,
    /// Generate one of these texts
    #[arg(long, value_name = "A,B", value_delimiter = ',', group = "constraint")]
    choice: Vec<String>,
    /// Print one JSON object on one line in place of the text
    #[arg(long)]
    json: bool,
}

/// A list of ids as one value of the command line.
pub(crate) type IdList = Vec<u32>;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    prompt_ids: Vec<u32>,
    /// Without the prompt; a stop id that ended it is kept.
    generated_ids: Vec<u32>,
    /// `null` when the model file has no usable tokenizer.
    text: Option<String>,
    stop_reason: &'static str,
    prefill_tok_s: Option<f64>,
    decode_tok_s: Option<f64>,
    /// Tokens guessed ahead, and how many of them were right.
    drafted_tokens: u64,
    accepted_tokens: u64,
    threads: usize,
    isa: String,
    load_s: f64,
}

impl Generate {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let model = ModelFile::open(self.model.as_deref())?;
        let (tokenizer, prompt_ids) = self.prompt_ids(&model)?;
        if !self.stop.is_empty() && tokenizer.is_none() {
            bail!("--stop needs a tokenizer, but this model file has no usable one");
        }
        let tokenizer = tokenizer.map(Arc::new);
        let constraint = self.constraint(tokenizer.as_ref())?;
        let defaults = model.manifest()?.map_or_else(Default::default, |manifest| manifest.sampling);
        let room = prompt_ids.len() + self.tokens as usize + 1;
        let options = Options {
            threads: Some(threads(self.threads.map(usize::from))),
            max_sequences: 1,
            max_context: Some(room.min(model.hyper.context)),
            head: self.head,
            kv: self.kv,
            device: self.device,
            speculation: Speculation {
                draft_tokens: self.speculate.into(),
                sequences: 1,
                ..Speculation::TAIL
            },
            ..Options::default()
        };
        let mut engine = model.load(&options)?;
        let stop_ids = match &tokenizer {
            _ if self.ignore_eos => Vec::new(),
            Some(tokenizer) => tokenizer.stop_ids().to_vec(),
            None => model.hyper.eos.into_iter().collect(),
        };
        let sequence = engine.submit(Request {
            prompt: prompt_ids.clone(),
            max_new_tokens: self.tokens as usize,
            sampling: Sampling {
                temperature: self.temp.or(defaults.temperature).unwrap_or(0.7),
                top_k: self.top_k.or(defaults.top_k).unwrap_or(40),
                top_p: self.top_p.or(defaults.top_p).unwrap_or(0.9),
                min_p: self.min_p,
                frequency_penalty: self.frequency_penalty.or(defaults.frequency_penalty).unwrap_or(0.0),
                ..Sampling::default()
            },
            seed: self.seed,
            stop_ids,
            constraint,
            ..Request::default()
        })?;

        let shows = !self.json;
        let mut writer = Writer::new(tokenizer.as_deref(), self.stop.clone(), shows);
        if shows && std::io::stdout().is_terminal() {
            writer.print(self.prompt.as_deref().unwrap_or_default())?;
        }
        let mut clock = Clock::default();
        let mut events = Vec::new();
        let reason = 'steps: loop {
            let stats = engine.step(&mut events);
            clock.count(stats.prefill_tokens, stats.decode_tokens, stats.elapsed);
            for event in events.drain(..) {
                match event {
                    Event::Prompt { .. } => {}
                    Event::Token { token, .. } => {
                        if writer.take(token)? {
                            engine.cancel(sequence);
                            break 'steps "stop_string";
                        }
                    }
                    Event::Finished { reason, .. } => break 'steps reason_name(reason),
                }
            }
        };
        let SpeculationCounters { drafted, accepted } = engine.speculation_counters();
        let info = engine.info();
        let (threads, isa, load_s) = (info.threads, info.isa.to_string(), info.load_s);
        let (generated_ids, text) = writer.finish()?;
        let report = Report {
            prompt_ids,
            generated_ids,
            text,
            stop_reason: reason,
            prefill_tok_s: clock.prefill_tok_s(),
            decode_tok_s: clock.decode_tok_s(),
            drafted_tokens: drafted,
            accepted_tokens: accepted,
            threads,
            isa,
            load_s,
        };
        if self.json {
            say_json(&report)?;
        } else {
            eprintln!("{}", report.in_words());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What the output must belong to.
    fn constraint(&self, tokenizer: Option<&Arc<Tokenizer>>) -> anyhow::Result<Option<Arc<Constraint>>> {
        let grammar = match (&self.json_schema, &self.regex, &self.choice[..]) {
            (Some(path), ..) => Grammar::JsonSchema(read(path)?),
            (None, Some(expression), _) => Grammar::Regex(expression.clone()),
            (None, None, []) => return Ok(None),
            (None, None, texts) => Grammar::Choice(texts.to_vec()),
        };
        grammar.check().context("this constraint cannot be applied")?;
        grammar.check_stops(&self.stop).context("--stop")?;
        let compiler = tokenizer.and_then(|tokenizer| Compiler::new(Arc::clone(tokenizer)));
        let compiler = compiler.context("a constraint needs a tokenizer with an end-of-text token")?;
        Ok(Some(Arc::new(compiler).constraint(grammar)))
    }

    /// The prompt as ids, and the tokenizer where there is one. Only a text needs it.
    fn prompt_ids(&self, model: &ModelFile) -> anyhow::Result<(Option<Tokenizer>, Vec<u32>)> {
        if let Some(ids) = &self.ids {
            return Ok((model.tokenizer().ok(), ids.clone()));
        }
        let text = self.prompt.as_deref().context("pass a prompt with -p TEXT")?;
        let tokenizer = model.tokenizer()?;
        let ids = if self.chat {
            tokenizer.encode_chat(&[Message::new(Role::User, text)])?
        } else {
            tokenizer.encode(text, tokenizer.adds_bos())?
        };
        if ids.is_empty() {
            bail!("the prompt is empty: it needs at least one token");
        }
        Ok((Some(tokenizer), ids))
    }
}

/// The text of a file, or of standard input for `-`.
fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return Ok(std::io::read_to_string(std::io::stdin())?);
    }
    std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}

impl Report {
    fn in_words(&self) -> String {
        let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1} tok/s"));
        let guessed = match self.drafted_tokens {
            0 => String::new(),
            drafted => format!(" ({} of {drafted} drafted tokens accepted)", self.accepted_tokens),
        };
        format!(
            "{} tokens ({}); prompt of {}: {}, generation: {}{guessed}; {} threads, {}, loaded in {:.2} s",
            self.generated_ids.len(),
            self.stop_reason,
            self.prompt_ids.len(),
            rate(self.prefill_tok_s),
            rate(self.decode_tok_s),
            self.threads,
            self.isa,
            self.load_s
        )
    }
}

fn reason_name(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Length | StopReason::Cancelled => "length",
        StopReason::StopToken => "stop_token",
        StopReason::Context => "context",
        StopReason::DeadEnd(_) => "dead_end",
        StopReason::NotFinite => "not_finite",
        StopReason::KeptDiffers => "kept_differs",
    }
}

/// Turns ids into text as they come, whole characters only, and ends at a stop string.
struct Writer<'a> {
    tokenizer: Option<&'a Tokenizer>,
    stream: Stream,
    matcher: StopMatcher,
    ids: Vec<u32>,
    text: String,
    stopped: bool,
    shows: bool,
}

impl<'a> Writer<'a> {
    fn new(tokenizer: Option<&'a Tokenizer>, stops: Vec<String>, shows: bool) -> Writer<'a> {
        let matcher = StopMatcher::new(stops);
        Writer {
            tokenizer,
            stream: Stream::new(),
            matcher,
            ids: Vec::new(),
            text: String::new(),
            stopped: false,
            shows,
        }
    }

    /// True when a stop string was found.
    fn take(&mut self, id: u32) -> anyhow::Result<bool> {
        self.ids.push(id);
        let Some(tokenizer) = self.tokenizer else {
            let separator = if self.ids.len() == 1 { "" } else { "," };
            self.print(&format!("{separator}{id}"))?;
            return Ok(false);
        };
        let Step { text, stopped } = self.matcher.push(&self.stream.push(tokenizer, id));
        self.print(&text)?;
        self.text.push_str(&text);
        self.stopped = stopped;
        Ok(stopped)
    }

    fn finish(mut self) -> anyhow::Result<(Vec<u32>, Option<String>)> {
        if self.tokenizer.is_some() && !self.stopped {
            let Step { text: mut rest, stopped } =
                self.matcher.push(&std::mem::take(&mut self.stream).finish());
            if !stopped {
                rest.push_str(&std::mem::replace(&mut self.matcher, StopMatcher::new([])).finish());
            }
            self.print(&rest)?;
            self.text.push_str(&rest);
        }
        self.print("\n")?;
        Ok((self.ids, self.tokenizer.map(|_| self.text)))
    }

    fn print(&self, text: &str) -> anyhow::Result<()> {
        if !self.shows {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

/// Splits the time of the steps: up to the first token it is prefill, then decoding.
#[derive(Debug, Default)]
struct Clock {
    prefilled: usize,
    prefill: Duration,
    decoded: usize,
    decode: Duration,
}

impl Clock {
    fn count(&mut self, prefill_tokens: usize, decode_tokens: usize, elapsed: Duration) {
        if prefill_tokens > 0 {
            self.prefilled += prefill_tokens;
            self.prefill += elapsed;
        } else {
            self.decoded += decode_tokens;
            self.decode += elapsed;
        }
    }

    fn prefill_tok_s(&self) -> Option<f64> {
        (self.prefilled > 0).then(|| self.prefilled as f64 / self.prefill.as_secs_f64())
    }

    fn decode_tok_s(&self) -> Option<f64> {
        (self.decoded > 0).then(|| self.decoded as f64 / self.decode.as_secs_f64())
    }
}
