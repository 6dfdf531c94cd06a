//! A workload as users have it: requests of mixed lengths, all there at once, through the scheduler as a worker drives it.
//!
//! Prefill and decoding are mixed in the steps, sequences end at different times, and what is drawn from is what the workload
//! says. Nothing stops a sequence before its length, and nothing is drafted: a model with random weights repeats itself.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

use ternfleet_engine::{Event, Options, Profile, Request, Sampling};

use super::ceiling::Cost;
use super::measure::{Bench, Setting, Subject, ids, shares};
use super::report::{Run, price};
use super::spread::{Spread, quantile};

/// Requests of a named workload.
const REQUESTS: usize = 48;

/// What is asked for, one request after the other.
#[derive(Debug)]
pub(super) struct Workload {
    name: String,
    requests: Vec<Wanted>,
}

/// One request: a line of a workload's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    prompt_tokens: usize,
    output_tokens: usize,
    #[serde(default)]
    temperature: f32,
    #[serde(default = "all")]
    top_p: f32,
}

fn all() -> f32 {
    1.0
}

/// Lengths between two bounds, evenly spread over their logarithms.
#[derive(Debug, Clone, Copy)]
struct Lengths(f64, f64);

impl Lengths {
    fn at(self, share: f64) -> usize {
        (self.0 * (self.1 / self.0).powf(share)).round() as usize
    }
}

impl Workload {
    /// By name, or from a file of JSON lines.
    pub(super) fn parse(name: &str) -> anyhow::Result<Workload> {
        let (prompt, output, temperature, top_p) = match name {
            "chat" => (Lengths(100.0, 800.0), Lengths(50.0, 400.0), 0.7, 0.9),
            "extract" => (Lengths(200.0, 2000.0), Lengths(20.0, 200.0), 0.0, 1.0),
            "story" => (Lengths(20.0, 60.0), Lengths(200.0, 800.0), 1.0, 1.0),
            path => return Workload::read(path),
        };
        // Two sequences that fill the unit square evenly, the same on every machine.
        let requests = (1..=REQUESTS).map(|n| Wanted {
            prompt_tokens: prompt.at((n as f64 * 0.754_877_666).fract()),
            output_tokens: output.at((n as f64 * 0.569_840_291).fract()),
            temperature,
            top_p,
        });
        Ok(Workload { name: name.to_owned(), requests: requests.collect() })
    }

    fn read(path: &str) -> anyhow::Result<Workload> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("workload {path}: give a file, or chat, extract or story"))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let requests = lines.map(|(at, line)| {
            let wanted: Wanted = serde_json::from_str(line).with_context(|| {
                format!("workload {path}, line {}: give prompt_tokens and output_tokens", at + 1)
            })?;
            if wanted.prompt_tokens == 0 || wanted.output_tokens == 0 {
                bail!("workload {path}, line {}: use at least one token of each", at + 1);
            }
            Ok(wanted)
        });
        let requests = requests.collect::<anyhow::Result<Vec<_>>>()?;
        if requests.is_empty() {
            bail!("workload {path} has no requests");
        }
        Ok(Workload { name: path.to_owned(), requests })
    }

    /// Runs all of it once, with at most `slots` sequences at a time.
    pub(super) fn run(
        &self,
        bench: &Bench<'_>,
        threads: usize,
        slots: usize,
    ) -> anyhow::Result<(Subject, Run)> {
        let longest = self.requests.iter().map(|wanted| wanted.prompt_tokens + wanted.output_tokens).max();
        let mut subject = bench.load(Setting {
            threads,
            sequences: slots,
            context: longest.unwrap_or(1) + 1,
            chunk: Options::default().prefill_chunk,
            isa: None,
            kernel: bench.kernel,
        })?;
        let before = subject.rates();
        let engine = &mut subject.engine;
        let (mut macs, mut prompt_tokens, mut output_tokens) = (0.0, 0, 0);
        for (number, wanted) in self.requests.iter().enumerate() {
            let info = engine.info();
            macs += Cost::of_prompt(info, wanted.prompt_tokens, 1).macs;
            let context = wanted.prompt_tokens + wanted.output_tokens / 2;
            // The prompt's last column draws the first token.
            macs += Cost::of_decoding(info, 1, context).macs * (wanted.output_tokens - 1) as f64;
            engine.submit(Request {
                prompt: ids(bench.model.hyper.vocab, wanted.prompt_tokens, number),
                max_new_tokens: wanted.output_tokens,
                sampling: Sampling {
                    temperature: wanted.temperature,
                    top_p: wanted.top_p,
                    ..Sampling::default()
                },
                seed: number as u64,
                speculate: false,
                ..Request::default()
            })?;
        }
        let profile = engine.profile();
        let (mut elapsed, mut step_ms, mut sequences, mut events) =
            (Duration::ZERO, Vec::new(), 0, Vec::new());
        while !engine.is_idle() {
            let stats = engine.step(&mut events);
            prompt_tokens += stats.prefill_tokens;
            output_tokens += events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
            events.clear();
            elapsed += stats.elapsed;
            step_ms.push(stats.elapsed.as_secs_f64() * 1e3);
            sequences += stats.sequences;
        }
        let profile: Profile = engine.profile().since(&profile);
        let rates = before.mean(subject.rates());
        let seconds = elapsed.as_secs_f64();
        let tok_s = |tokens: usize| tokens as f64 / seconds;
        let run = Run {
            workload: self.name.clone(),
            requests: self.requests.len(),
            slots,
            threads,
            seconds,
            prompt_tokens,
            output_tokens,
            tok_s: tok_s(prompt_tokens + output_tokens),
            prompt_tok_s: tok_s(prompt_tokens),
            output_tok_s: tok_s(output_tokens),
            usd_micro_per_million_tokens: price(
                bench.price_usd_per_hour,
                tok_s(prompt_tokens + output_tokens),
            ),
            usd_micro_per_million_output_tokens: price(bench.price_usd_per_hour, tok_s(output_tokens)),
            steps: step_ms.len(),
            sequences_a_step: sequences as f64 / step_ms.len() as f64,
            step_ms: Spread::of(&step_ms),
            step_ms_p99: quantile(&step_ms, 0.99),
            shares: shares(&profile, elapsed),
            read_gb_s: rates.read_gb_s,
            mac_per_s: rates.mac_per_s,
            percent_of_mac_rate: 100.0 * macs / (rates.mac_per_s * seconds),
        };
        Ok((subject, run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_workloads_have_lengths_within_their_bounds_and_files_are_read_line_by_line() {
        let extract = Workload::parse("extract").unwrap();
        let prompts: Vec<usize> = extract.requests.iter().map(|wanted| wanted.prompt_tokens).collect();
        assert!(prompts.iter().all(|n| (200..=2000).contains(n)), "{prompts:?}");
        assert!(prompts.iter().any(|&n| n < 300) && prompts.iter().any(|&n| n > 1500), "{prompts:?}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.jsonl").display().to_string();
        std::fs::write(&path, "{\"prompt_tokens\": 3, \"output_tokens\": 2, \"top_p\": 0.5}\n\n").unwrap();
        assert_eq!(Workload::parse(&path).unwrap().requests[0].top_p, 0.5);
        std::fs::write(&path, "{\"prompt_tokens\": 3}\n").unwrap();
        assert!(format!("{:#}", Workload::parse(&path).unwrap_err()).contains("line 1"));
        assert!(format!("{:#}", Workload::parse("sing").unwrap_err()).contains("chat, extract or story"));
    }
}
