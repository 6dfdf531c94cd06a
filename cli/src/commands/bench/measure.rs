//! One measurement after the other, medians of several runs, the machine's own rates in between.

use std::time::Duration;

use anyhow::{Context, bail};

use ternfleet_engine::probe::Probe;
use ternfleet_engine::{Engine, Event, Options, Request, Sampling, SequenceId};

use crate::model_file::ModelFile;

/// Prompt tokens of a step when many sequences are filled: all of them join the batch soon after one another.
const FILL_CHUNK: usize = 512;

pub(super) struct Bench<'a> {
    pub(super) model: &'a ModelFile,
    pub(super) prompt: usize,
    pub(super) generated: usize,
    pub(super) repeat: usize,
}

/// Medians for one thread count.
pub(super) struct Rates {
    pub(super) isa: String,
    pub(super) prompt_tok_s: f64,
    pub(super) decode_tok_s: f64,
    pub(super) read_gb_s: f64,
    pub(super) mac_per_s: f64,
}

impl Bench<'_> {
    /// A single sequence: a prompt alone, and generation from one token on, each with the machine's rates beside it.
    pub(super) fn single(&self, threads: usize) -> anyhow::Result<Rates> {
        let context = self.prompt.max(self.generated) + 2;
        let mut engine = self.load(threads, 1, context, Options::default().prefill_chunk)?;
        let (mut prompt, mut decode, mut read, mut mac) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let probe = Probe::new(&mut engine).context("there is no memory to measure reading with (1 GiB)")?;
        // One short run first: caches, page tables and clocks settle.
        self.decode(&mut engine, self.generated.min(8))?;
        for _ in 0..self.repeat {
            prompt.push(self.prefill(&mut engine)?);
            decode.push(self.decode(&mut engine, self.generated)?);
            read.push(probe.read_gb_s(&mut engine));
            mac.push(probe.mac_per_s(&mut engine));
        }
        Ok(Rates {
            isa: engine.info().isa.to_string(),
            prompt_tok_s: median(prompt),
            decode_tok_s: median(decode),
            read_gb_s: median(read),
            mac_per_s: median(mac),
        })
    }

    /// Several sequences at once: tokens per second of all together, over the steps in which all of them decode.
    pub(super) fn batch(&self, threads: usize, sequences: usize) -> anyhow::Result<f64> {
        // The first sequences decode while the last are filled; they need that many tokens more.
        let lead = (sequences * self.prompt).div_ceil(FILL_CHUNK) + 2;
        let context = self.prompt + self.generated + lead + 1;
        let mut engine = self.load(threads, sequences, context, FILL_CHUNK)?;
        let rates = (0..self.repeat.min(3)).map(|_| self.batch_once(&mut engine, sequences, lead));
        Ok(median(rates.collect::<anyhow::Result<Vec<f64>>>()?))
    }

    fn batch_once(&self, engine: &mut Engine, sequences: usize, lead: usize) -> anyhow::Result<f64> {
        let ids: Vec<SequenceId> = (0..sequences)
            .map(|number| engine.submit(self.request(self.prompt, self.generated + lead, number)))
            .collect::<Result<_, _>>()?;
        let mut events = Vec::new();
        let (mut tokens, mut time, mut steps) = (0, Duration::ZERO, 0);
        while steps < self.generated && !engine.is_idle() {
            let stats = engine.step(&mut events);
            events.clear();
            if stats.prefill_tokens == 0 && stats.decode_tokens == sequences {
                tokens += stats.decode_tokens;
                time += stats.elapsed;
                steps += 1;
            }
        }
        for id in ids {
            engine.cancel(id);
        }
        drain(engine);
        if tokens == 0 {
            bail!(
                "{sequences} sequences of {} tokens do not fit into memory at once",
                self.prompt + self.generated
            );
        }
        Ok(tokens as f64 / time.as_secs_f64())
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
            bail!("the engine stopped without finishing its sequence");
        }
        Ok(tokens as f64 / time.as_secs_f64())
    }

    /// Ids spread over the vocabulary; nothing stops the sequence before its length.
    fn request(&self, prompt: usize, n_tokens: usize, number: usize) -> Request {
        let vocab = self.model.hyper.vocab;
        let prompt = (0..prompt).map(|at| ((at * 7919 + number * 104_729 + 17) % vocab) as u32).collect();
        Request { prompt, max_new_tokens: n_tokens, sampling: Sampling::greedy(), ..Request::default() }
    }

    fn load(&self, threads: usize, sequences: usize, context: usize, chunk: usize) -> anyhow::Result<Engine> {
        if context > self.model.hyper.context {
            bail!(
                "{context} positions are needed and the model has {}: ask for a shorter --prompt or --gen",
                self.model.hyper.context
            );
        }
        let options = Options {
            threads: Some(threads),
            max_sequences: sequences,
            max_context: Some(context),
            prefill_chunk: chunk,
            prefix_cache: false,
            ..Options::default()
        };
        self.model
            .load(&options)
            .with_context(|| format!("the engine does not start with {threads} thread(s)"))
    }
}

fn drain(engine: &mut Engine) {
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&mut events);
        events.clear();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
