//! How much work a file holds: some of its lines, chosen evenly, with the tokens of their prompts counted by the
//! tokenizer of a worker. Called by the gateway and by the command line; the quote itself is [`crate::quote`]'s.

use std::collections::BTreeMap;
use std::time::Duration;

use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{
    CountTokens, Generation, Line, LineSize, Prompt, QUOTE_SAMPLE_MAX, Reply, WorkSample,
};
use ternfleet_proto::openai::{Endpoint, ModelDefaults, is_blank, model_named, parse_line};
use ternfleet_proto::{BatchId, JobKey, TenantId, codec};
use tokio::io::AsyncBufRead;

use crate::core::estimate::prompt_tokens;
use crate::core::{MODELS_MAX, Wanted};
use crate::random::Random;
use crate::shell::lines::{RawLine, next_line};

/// Longer prompts are estimated from their bytes, so that a sample fits into memory.
const PROMPT_BYTES_MAX: usize = 64 << 10;
/// Prompts in one question.
const QUESTION_BYTES: usize = 400 << 10;
/// The coordinator itself waits for a worker in this time.
const COUNT_TIMEOUT: Duration = Duration::from_secs(4);

/// What was found in a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Lines with a request that can be run, as far as the sample tells.
    pub lines: u64,
    /// Lines of the sample that would be error lines.
    pub bad: usize,
    /// The requests of the good ones.
    pub requests: Vec<SampledRequest>,
    /// How many lines of the whole file name which model.
    pub models: BTreeMap<String, u64>,
}

/// What a line's size depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledRequest {
    /// `None` when it is too long to be kept: then `reckoned_tokens` stands for it.
    pub prompt: Option<Prompt>,
    pub reckoned_tokens: u32,
    pub max_tokens: Option<u32>,
    pub endpoint: Endpoint,
    pub model: Option<String>,
    pub wanted: Option<Wanted>,
}

impl SampledRequest {
    fn of(line: Line, mut generation: Generation, own_seed: u64) -> SampledRequest {
        let wanted = Wanted::of(&mut generation, own_seed);
        let reckoned_tokens = prompt_tokens(&generation.prompt);
        let choices = generation.prompt.choices();
        let short = codec::encode(&generation.prompt).len() <= PROMPT_BYTES_MAX;
        SampledRequest {
            prompt: short.then_some(generation.prompt),
            reckoned_tokens,
            max_tokens: generation.max_tokens.map(|each| each.saturating_mul(choices)),
            endpoint: line.endpoint,
            model: line.model,
            wanted,
        }
    }
}

/// Reads a file once. Every line has the same chance to be in the sample, and the same file has the same sample.
///
/// # Errors
/// When the file cannot be read.
pub async fn read(input: &mut (impl AsyncBufRead + Unpin), most: usize) -> std::io::Result<Sample> {
    let most = most.clamp(1, QUOTE_SAMPLE_MAX) as u64;
    let batch: BatchId = "quote".parse().expect("because it is made of id characters");
    let mut chosen: Vec<Option<SampledRequest>> = Vec::new();
    let mut models = BTreeMap::new();
    let mut lines: u64 = 0;
    let mut number: u64 = 0;
    let mut line = Vec::new();
    // Which place of the sample the coming line takes, if any (Vitter's algorithm R).
    while let Some((kind, _)) = next_line(input, &mut line, true).await? {
        number += 1;
        if kind == RawLine::Text && is_blank(&line) {
            continue;
        }
        note_model(&mut models, &line);
        let place = if lines < most { lines } else { Random::at(lines).next() % (lines + 1) };
        lines += 1;
        if place >= most {
            continue;
        }
        let job = JobKey { batch: batch.clone(), index: number as u32 };
        let parsed = match kind {
            RawLine::TooLong { .. } => None,
            RawLine::Text => parse_line(&line, number, &job, &ModelDefaults::default()).ok(),
        };
        let request = parsed.map(|(line, generation)| SampledRequest::of(line, generation, job.seed()));
        match chosen.get_mut(place as usize) {
            Some(taken) => *taken = request,
            None => chosen.push(request),
        }
    }
    let all = chosen.len();
    let requests: Vec<SampledRequest> = chosen.into_iter().flatten().collect();
    let share = if all > 0 { requests.len() as f64 / all as f64 } else { 0.0 };
    Ok(Sample { lines: (lines as f64 * share).round() as u64, bad: all - requests.len(), requests, models })
}

/// Counts the model that a line names. A file may name only so many; the rest of its lines are answered with an error.
pub(crate) fn note_model(models: &mut BTreeMap<String, u64>, line: &[u8]) {
    let Some(model) = model_named(line) else { return };
    if models.len() < MODELS_MAX || models.contains_key(&model) {
        *models.entry(model).or_default() += 1;
    }
}

impl Sample {
    /// With prompts counted by `count`; a prompt that it refuses will be an error line and costs nothing.
    pub fn counted_by(&self, count: impl Fn(&Prompt) -> Option<u32>) -> WorkSample {
        let size = |request: &SampledRequest| match &request.prompt {
            None => size_of(Some(request.reckoned_tokens), request),
            Some(prompt) => size_of(count(prompt), request),
        };
        self.with_sizes(self.requests.iter().map(size).collect())
    }

    fn with_sizes(&self, sample: Vec<LineSize>) -> WorkSample {
        WorkSample { lines: self.lines, sample, models: self.models.clone() }
    }

    /// With prompts estimated from their bytes, where no tokenizer is at hand.
    pub fn reckoned(&self) -> WorkSample {
        self.counted_by(|prompt| Some(prompt_tokens(prompt)))
    }

    /// With prompts counted by a worker that is up; estimated from their bytes when none is. `subject` is that of the
    /// verb `count` on which the caller may ask.
    pub async fn counted_by_fleet(&self, bus: &dyn Bus, subject: &str, tenant: &TenantId) -> WorkSample {
        let counts = self.ask(bus, subject, tenant).await.unwrap_or_else(|why| {
            tracing::debug!(why, "prompt tokens are estimated from their bytes");
            self.requests.iter().map(|request| Some(request.reckoned_tokens)).collect()
        });
        let sizes = self.requests.iter().zip(counts).map(|(request, count)| size_of(count, request));
        self.with_sizes(sizes.collect())
    }

    async fn ask(&self, bus: &dyn Bus, subject: &str, tenant: &TenantId) -> Result<Vec<Option<u32>>, String> {
        let mut counts = Vec::with_capacity(self.requests.len());
        let mut rest = self.requests.as_slice();
        while let Some(first) = rest.first() {
            let Some(_) = &first.prompt else {
                counts.push(Some(first.reckoned_tokens));
                rest = &rest[1..];
                continue;
            };
            let mut bytes = 0;
            let prompts: Vec<Prompt> = rest
                .iter()
                .take_while(|request| request.model == first.model)
                .map_while(|request| request.prompt.clone())
                .take_while(|prompt| {
                    bytes += codec::encode(prompt).len();
                    bytes <= QUESTION_BYTES
                })
                .collect();
            let asked = prompts.len();
            let question =
                codec::encode(&CountTokens { tenant: tenant.clone(), prompts, model: first.model.clone() });
            let answer = bus.request(subject, question, COUNT_TIMEOUT).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let reply: Reply<Vec<Option<u32>>> = codec::decode(&answer).map_err(|error| error.to_string())?;
            let part = reply.map_err(|refusal| refusal.message)?;
            if part.len() != asked || asked == 0 {
                return Err(format!("the tokens of {} of {asked} prompts were counted", part.len()));
            }
            counts.extend(part);
            rest = &rest[asked..];
        }
        Ok(counts)
    }
}

/// A prompt that nobody can count is answered with an error, for nothing.
fn size_of(count: Option<u32>, request: &SampledRequest) -> LineSize {
    let endpoint = Some(request.endpoint);
    match count {
        Some(prompt_tokens) => LineSize {
            prompt_tokens,
            max_tokens: request.max_tokens,
            endpoint,
            wanted: request.wanted.map(Wanted::told),
        },
        None => LineSize { prompt_tokens: 0, max_tokens: Some(0), endpoint, wanted: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sample_of(text: &str, most: usize) -> Sample {
        read(&mut text.as_bytes(), most).await.unwrap()
    }

    #[tokio::test]
    async fn a_small_file_is_its_own_sample_and_bad_lines_are_no_work() {
        let sample =
            sample_of("{\"prompt\":\"a\",\"max_tokens\":3}\n\nnonsense\n{\"prompt\":\"bc\"}\n", 10).await;
        assert_eq!((sample.lines, sample.bad, sample.requests.len()), (2, 1, 2));
        let work = sample.counted_by(|prompt| match prompt {
            Prompt::Text(text) => Some(text.len() as u32),
            _ => None,
        });
        assert_eq!(
            work.sample[0],
            LineSize {
                prompt_tokens: 1,
                max_tokens: Some(3),
                endpoint: Some(Endpoint::Completions),
                wanted: None
            }
        );
        assert_eq!(work.sample[1].prompt_tokens, 2);
    }

    #[tokio::test]
    async fn a_large_file_is_sampled_evenly_and_alike_each_time() {
        let text: String =
            (0..5000).map(|n| format!("{{\"prompt\":\"x\",\"max_tokens\":{}}}\n", n + 1)).collect();
        let sample = sample_of(&text, 200).await;
        assert_eq!((sample.lines, sample.requests.len()), (5000, 200));
        let mean = sample.requests.iter().map(|r| f64::from(r.max_tokens.unwrap())).sum::<f64>() / 200.0;
        assert!((2200.0..2800.0).contains(&mean), "{mean}");
        assert_eq!(sample, sample_of(&text, 200).await);
    }

    #[tokio::test]
    async fn an_empty_file_holds_no_work() {
        assert_eq!(sample_of("\n\n", 10).await, Sample::default());
    }
}
