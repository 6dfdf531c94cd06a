//! One measurement after the other, several runs of each, the machine's own rates before and after every run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use ternfleet_engine::probe::{self, Probe};
use ternfleet_engine::{
    Device, Engine, Event, Head, Info, Isa, KernelChoice, Kv, Options, Profile, Request, Sampling, SequenceId,
};

use crate::model_file::ModelFile;

use super::ceiling::{Cost, Rates, medians};
use super::process::MemoryUse;
use super::report::{Batch, Figure, KernelRow, Sampled, Shares, Stream, price};
use super::spread::{Spread, quantile};

/// Prompt tokens of a step when many sequences are filled: all of them join the batch soon after one another.
const FILL_CHUNK: usize = 512;

pub(super) struct Bench<'a> {
    pub(super) model: &'a ModelFile,
    pub(super) prompt: usize,
    pub(super) generated: usize,
    pub(super) repeat: usize,
    pub(super) head: Head,
    pub(super) kv: Kv,
    pub(super) device: Device,
    pub(super) kernel: KernelChoice,
    pub(super) huge_pages: bool,
    pub(super) price_usd_per_hour: Option<f64>,
    /// How batch rows are also measured.
    pub(super) sampled: &'a [Draws],
}

/// What tokens are drawn from, other than greedily.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Draws {
    /// All tokens, temperature 1
    Temperature,
    /// Temperature 1, top_p 0.9
    TopP,
    /// Temperature 1, with five log-probabilities for each token
    Logprobs,
}

impl Draws {
    fn apply(self, request: &mut Request, number: usize) {
        let top_p = if self == Draws::TopP { 0.9 } else { 1.0 };
        request.sampling = Sampling { temperature: 1.0, top_p, ..Sampling::default() };
        request.top_logprobs = (self == Draws::Logprobs).then_some(5);
        request.seed = number as u64;
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Draws::Temperature => "temperature",
            Draws::TopP => "top-p",
            Draws::Logprobs => "logprobs",
        }
    }
}

/// An engine ready to be measured.
pub(super) struct Subject {
    pub(super) engine: Engine,
    probe: Probe,
    /// After loading and a few tokens, before the probe took its memory.
    pub(super) memory: MemoryUse,
}

impl Subject {
    pub(super) fn info(&self) -> &Info {
        self.engine.info()
    }

    pub(super) fn first_touch_gb_s(&self) -> f64 {
        self.probe.first_touch_gb_s()
    }

    pub(super) fn rates(&mut self) -> Rates {
        Rates {
            read_gb_s: self.probe.read_gb_s(&mut self.engine),
            mac_per_s: self.probe.mac_per_s(&mut self.engine),
        }
    }
}

/// Which engine to load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) threads: usize,
    pub(super) sequences: usize,
    pub(super) context: usize,
    pub(super) chunk: usize,
    pub(super) isa: Option<Isa>,
    pub(super) kernel: KernelChoice,
}

impl Bench<'_> {
    /// An engine for single sequences.
    pub(super) fn single(&self, threads: usize) -> anyhow::Result<Subject> {
        self.load(Setting {
            threads,
            sequences: 1,
            context: self.prompt.max(self.generated) + 2,
            chunk: Options::default().prefill_chunk,
            isa: None,
            kernel: self.kernel,
        })
    }

    /// An engine for all batch rows.
    pub(super) fn several(
        &self,
        threads: usize,
        batches: &[usize],
        contexts: &[usize],
    ) -> anyhow::Result<Subject> {
        let sequences = batches.iter().copied().max().unwrap_or(1);
        let longest =
            contexts.iter().map(|&prompt| prompt + self.generated + lead(sequences, prompt) + 1).max();
        self.load(Setting {
            threads,
            sequences,
            context: longest.unwrap_or(1).min(self.model.hyper.context),
            chunk: FILL_CHUNK,
            isa: None,
            kernel: self.kernel,
        })
    }

    /// A single sequence: a prompt alone, and generation from one token on.
    pub(super) fn stream(&self, subject: &mut Subject) -> anyhow::Result<Stream> {
        let (mut prompt, mut prompt_rates) = (Vec::new(), Vec::new());
        let (mut decode, mut decode_rates) = (Vec::new(), Vec::new());
        let mut barrier = Vec::new();
        let mut before = subject.rates();
        for _ in 0..self.repeat {
            prompt.push(self.prefill(&mut subject.engine)?);
            let between = subject.rates();
            prompt_rates.push(before.mean(between));
            decode.push(self.decode(&mut subject.engine, self.generated)?);
            before = subject.rates();
            decode_rates.push(between.mean(before));
            barrier.push(probe::barrier_s(&mut subject.engine) * 1e6);
        }
        let info = subject.info();
        let chunk = Options::default().prefill_chunk;
        let figure = |cost: Cost, tok_s: &[f64], rates: &[Rates]| Figure {
            tok_s: Spread::of(tok_s),
            ceiling: cost.compare(tok_s, rates),
        };
        let (prompt, decode) = (
            figure(Cost::of_prompt(info, self.prompt, chunk), &prompt, &prompt_rates),
            figure(Cost::of_decoding(info, 1, self.generated / 2), &decode, &decode_rates),
        );
        let rates = [prompt_rates, decode_rates].concat();
        let spread = |of: fn(&Rates) -> f64| Spread::of(&rates.iter().map(of).collect::<Vec<_>>());
        Ok(Stream {
            threads: info.threads,
            prompt_tok_s: prompt.tok_s.median,
            decode_tok_s: decode.tok_s.median,
            usd_micro_per_million_tokens: price(self.price_usd_per_hour, decode.tok_s.median),
            prompt,
            decode,
            read_gb_s: spread(|rates| rates.read_gb_s),
            mac_per_s: spread(|rates| rates.mac_per_s),
            barrier_us: Spread::of(&barrier),
            load_s: info.load_s,
        })
    }

    /// Generation alone.
    pub(super) fn decoding(&self, subject: &mut Subject) -> anyhow::Result<Spread> {
        let runs = (0..self.repeat).map(|_| self.decode(&mut subject.engine, self.generated));
        Ok(Spread::of(&runs.collect::<anyhow::Result<Vec<f64>>>()?))
    }

    /// One kernel of one instruction set.
    pub(super) fn kernel_row(
        &self,
        threads: usize,
        isa: Isa,
        kernel: KernelChoice,
    ) -> anyhow::Result<KernelRow> {
        // Plain Rust takes minutes for what the others do in seconds.
        let share = if isa == Isa::Scalar { 8 } else { 1 };
        let bench = Bench {
            prompt: (self.prompt / share).max(1),
            generated: (self.generated / share).max(1),
            repeat: if isa == Isa::Scalar { 1 } else { self.repeat },
            ..*self
        };
        let mut subject = bench.load(Setting {
            threads,
            sequences: 1,
            context: bench.prompt.max(bench.generated) + 2,
            chunk: Options::default().prefill_chunk,
            isa: Some(isa),
            kernel,
        })?;
        let (mut prompt, mut decode) = (Vec::new(), Vec::new());
        for _ in 0..bench.repeat {
            prompt.push(bench.prefill(&mut subject.engine)?);
            decode.push(bench.decode(&mut subject.engine, bench.generated)?);
        }
        Ok(KernelRow {
            isa: isa.to_string(),
            kernel: subject.engine.info().kernel.to_owned(),
            threads,
            prompt_tok_s: Spread::of(&prompt),
            decode_tok_s: Spread::of(&decode),
        })
    }

    /// The prompt of a batch row, shortened where prompt and output would pass the model's context.
    pub(super) fn prompt_that_fits(&self, sequences: usize, prompt: usize) -> usize {
        let room = self.model.hyper.context.saturating_sub(self.generated + lead(sequences, prompt) + 1);
        prompt.min(room).max(1)
    }

    /// Several sequences at once; an error says why they cannot run together.
    pub(super) fn batch(
        &self,
        subject: &mut Subject,
        sequences: usize,
        prompt: usize,
    ) -> anyhow::Result<Batch> {
        let (mut tok_s, mut rates, mut first, mut gaps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut profile, mut steady) = (Profile::default(), Duration::ZERO);
        let mut steps = 0;
        let mut sampled: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); self.sampled.len()];
        let mut before = subject.rates();
        for _ in 0..self.repeat {
            let run = self.batch_once(&mut subject.engine, sequences, prompt, None)?;
            let after = subject.rates();
            rates.push(before.mean(after));
            let rate = |run: &Run| (sequences * run.steps) as f64 / run.steady.as_secs_f64();
            tok_s.push(rate(&run));
            for (&draws, (rates, shares)) in self.sampled.iter().zip(&mut sampled) {
                let drawn = rate(&self.batch_once(&mut subject.engine, sequences, prompt, Some(draws))?);
                rates.push(drawn);
                shares.push(100.0 * drawn / rate(&run));
            }
            before = if sampled.is_empty() { after } else { subject.rates() };
            first.extend(run.first_ms);
            gaps.extend(run.gaps_ms);
            profile = profile.plus(&run.profile);
            steady += run.steady;
            steps += run.steps;
        }
        let cost = Cost::of_decoding(subject.info(), sequences, prompt + self.generated / 2);
        let decode = Figure { tok_s: Spread::of(&tok_s), ceiling: cost.compare(&tok_s, &rates) };
        let tok_s = decode.tok_s.median;
        Ok(Batch {
            batch: sequences,
            prompt,
            generated: self.generated,
            tok_s,
            tok_s_a_stream: tok_s / sequences as f64,
            usd_micro_per_million_tokens: price(self.price_usd_per_hour, tok_s),
            decode,
            first_token_ms_p50: quantile(&first, 0.5),
            first_token_ms_max: quantile(&first, 1.0),
            between_tokens_ms_p50: quantile(&gaps, 0.5),
            between_tokens_ms_p99: quantile(&gaps, 0.99),
            shares: shares(&profile, steady),
            sampled: self
                .sampled
                .iter()
                .zip(&sampled)
                .map(|(draws, (rates, shares))| Sampled {
                    draws: draws.name(),
                    tok_s: Spread::of(rates),
                    percent_of_greedy: Spread::of(shares),
                })
                .collect(),
            attention_ms: profile.attend_s * 1e3 / steps as f64,
        })
    }

    fn batch_once(
        &self,
        engine: &mut Engine,
        sequences: usize,
        prompt: usize,
        draws: Option<Draws>,
    ) -> anyhow::Result<Run> {
        let n_tokens = self.generated + lead(sequences, prompt);
        let begun = Instant::now();
        let ids: Vec<SequenceId> = (0..sequences)
            .map(|number| {
                let mut request = self.request(prompt, n_tokens, number);
                if let Some(draws) = draws {
                    draws.apply(&mut request, number);
                }
                engine.submit(request)
            })
            .collect::<Result<_, _>>()?;
        let mut run = Run::default();
        let mut last: BTreeMap<SequenceId, Instant> = BTreeMap::new();
        let mut events = Vec::new();
        while run.steps < self.generated && !engine.is_idle() {
            let before = engine.profile();
            let stats = engine.step(&mut events);
            let now = Instant::now();
            for event in events.drain(..) {
                let Event::Token { sequence, .. } = event else { continue };
                match last.insert(sequence, now) {
                    None => run.first_ms.push((now - begun).as_secs_f64() * 1e3),
                    Some(before) => run.gaps_ms.push((now - before).as_secs_f64() * 1e3),
                }
            }
            if stats.prefill_tokens == 0 && stats.decode_tokens == sequences {
                run.steps += 1;
                run.steady += stats.elapsed;
                run.profile = run.profile.plus(&engine.profile().since(&before));
            }
        }
        for id in ids {
            engine.cancel(id);
        }
        drain(engine);
        if run.steps == 0 {
            bail!("{sequences} sequences of {} tokens do not fit into memory together", prompt + n_tokens);
        }
        Ok(run)
    }

    fn prefill(&self, engine: &mut Engine) -> anyhow::Result<f64> {
        engine.submit(self.request(self.prompt, 1, 0))?;
        let mut events = Vec::new();
        let (mut tokens, mut time) = (0, Duration::ZERO);
        while !engine.is_idle() {
            let stats = engine.step(&mut events);
            tokens += stats.prefill_tokens;
            time += stats.elapsed;
        }
        Ok(tokens as f64 / time.as_secs_f64())
    }

    fn decode(&self, engine: &mut Engine, n_tokens: usize) -> anyhow::Result<f64> {
        // The first token belongs to the prompt's step.
        engine.submit(self.request(1, n_tokens + 1, 0))?;
        let mut events = Vec::new();
        let (mut tokens, mut time) = (0, Duration::ZERO);
        while !engine.is_idle() {
            let stats = engine.step(&mut events);
            if stats.prefill_tokens == 0 {
                tokens += stats.decode_tokens;
                time += stats.elapsed;
            }
        }
        if !events.iter().any(|event| matches!(event, Event::Finished { .. })) {
            bail!("the engine stopped before the sequence was finished");
        }
        Ok(tokens as f64 / time.as_secs_f64())
    }

    /// Nothing stops the sequence before its length.
    fn request(&self, prompt: usize, n_tokens: usize, number: usize) -> Request {
        let prompt = ids(self.model.hyper.vocab, prompt, number);
        Request { prompt, max_new_tokens: n_tokens, sampling: Sampling::greedy(), ..Request::default() }
    }

    pub(super) fn load(&self, setting: Setting) -> anyhow::Result<Subject> {
        let Setting { threads, sequences, context, chunk, isa, kernel } = setting;
        if context > self.model.hyper.context {
            bail!(
                "{context} positions are needed, but the model has {}: use a shorter --prompt or --gen",
                self.model.hyper.context
            );
        }
        let options = Options {
            threads: Some(threads),
            max_sequences: sequences,
            max_context: Some(context),
            prefill_chunk: chunk,
            head: self.head,
            kv: self.kv,
            device: self.device,
            huge_pages: self.huge_pages,
            isa,
            kernel,
            ..Options::default()
        };
        let said = || format!("the engine does not start with {threads} thread(s)");
        let mut engine = self.model.load(&options).with_context(said)?;
        // A short run first: caches, page tables and clocks settle.
        self.decode(&mut engine, self.generated.min(8).min(context - 2))?;
        let memory = MemoryUse::read();
        let probe = Probe::new(&mut engine).context("not enough memory to measure the read rate (1 GiB)")?;
        Ok(Subject { engine, probe, memory })
    }

    /// The rates of a machine on which no thread row was measured.
    pub(super) fn rates_alone(&self, subject: &mut Subject) -> Rates {
        medians(&(0..self.repeat).map(|_| subject.rates()).collect::<Vec<_>>())
    }
}

/// Ids spread over the vocabulary.
pub(super) fn ids(vocab: usize, n: usize, number: usize) -> Vec<u32> {
    (0..n).map(|at| ((at * 7919 + number * 104_729 + 17) % vocab) as u32).collect()
}

/// What one run of a batch showed.
#[derive(Default)]
struct Run {
    /// Steps in which all sequences decoded and none was filled.
    steps: usize,
    steady: Duration,
    profile: Profile,
    first_ms: Vec<f64>,
    gaps_ms: Vec<f64>,
}

/// The first sequences decode while the last are filled; they need that many tokens more.
fn lead(sequences: usize, prompt: usize) -> usize {
    (sequences * prompt).div_ceil(FILL_CHUNK) + 2
}

pub(super) fn shares(profile: &Profile, whole: Duration) -> Shares {
    let percent = |seconds: f64| 100.0 * seconds / whole.as_secs_f64();
    let (product, attention) = (percent(profile.product_s), percent(profile.attend_s));
    let (head, norm, waiting) = (percent(profile.head_s), percent(profile.norm_s), percent(profile.wait_s));
    let other = (100.0 - product - attention - head - norm - waiting).max(0.0);
    Shares { product, attention, head, norm, waiting, other }
}

fn drain(engine: &mut Engine) {
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events);
        events.clear();
    }
}
