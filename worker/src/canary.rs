//! Canaries: a few prompts that every worker runs before its first job, and the digest of all that came out.
//!
//! Engines of one kind give the same bits on every machine, so their canaries are equal; the coordinator compares them
//! and keeps away from a machine that says something else. Log-probabilities count as well as tokens: they show a wrong
//! product long before it changes a token.

use std::collections::BTreeMap;

use ternfleet_engine::{Event, Request, Sampling, SequenceId};

use crate::generator::Generator;

/// Changes when the prompts below do: then old and new canaries are not compared.
const SCHEME: &str = "c2";
/// Short and longer than the blocks of prefill and cache, run together in one batch. The longest is the first, so that
/// an engine that refuses one is left with nothing to run.
const PROMPT_TOKENS: [usize; 3] = [70, 19, 3];
const NEW_TOKENS: usize = 12;

/// The canary of this engine, like `c2-5e1f…`; empty when it cannot run so long a prompt. Sequences that run already go
/// on meanwhile: their events are appended to `others`.
pub fn canary(generator: &mut dyn Generator, vocab: usize, others: &mut Vec<Event>) -> String {
    let mut outputs: BTreeMap<SequenceId, blake3::Hasher> = BTreeMap::new();
    for (number, length) in PROMPT_TOKENS.into_iter().enumerate() {
        match generator.submit(request(vocab, number, length)) {
            Ok(id) => outputs.insert(id, blake3::Hasher::new()),
            Err(_) => return String::new(),
        };
    }
    let mut events = Vec::new();
    let mut running = outputs.len();
    while running > 0 {
        generator.step(&mut events);
        for event in events.drain(..) {
            let sequence = match &event {
                Event::Token { sequence, .. }
                | Event::Prompt { sequence, .. }
                | Event::Finished { sequence, .. } => *sequence,
            };
            let Some(output) = outputs.get_mut(&sequence) else {
                others.push(event);
                continue;
            };
            let Event::Token { token, logprob, .. } = event else {
                running -= 1;
                continue;
            };
            output.update(&token.to_le_bytes());
            let said = logprob.iter().flat_map(|found| &found.top);
            said.for_each(|(id, logprob)| {
                output.update(&id.to_le_bytes()).update(&logprob.to_bits().to_le_bytes());
            });
        }
    }
    // Sequence ids grow in the order of submission.
    let mut all = blake3::Hasher::new();
    for output in outputs.values() {
        all.update(output.finalize().as_bytes());
    }
    format!("{SCHEME}-{}", &all.finalize().to_hex()[..32])
}

/// Ids spread over the vocabulary; which ones they are says nothing, only that they are the same everywhere.
fn request(vocab: usize, number: usize, length: usize) -> Request {
    let id = |place: usize| ((place * 6_151 + number * 50_021 + 17) % vocab.max(1)) as u32;
    Request {
        prompt: (0..length).map(id).collect(),
        max_new_tokens: NEW_TOKENS,
        sampling: Sampling::greedy(),
        top_logprobs: Some(2),
        ..Request::default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use ternfleet_engine::{Engine, Options};

    use super::*;
    use crate::generator::Instant;

    fn storyteller(threads: usize) -> Engine {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/storyteller/storyteller.gguf");
        Engine::load(&path, &Options { threads: Some(threads), ..Options::default() }).unwrap()
    }

    #[test]
    fn engines_of_one_kind_agree_whatever_they_did_before() {
        let vocab = 4096;
        let mut engine = storyteller(1);
        let first = canary(&mut engine, vocab, &mut Vec::new());
        assert_eq!(canary(&mut engine, vocab, &mut Vec::new()), first, "with a warm prefix cache");
        assert_eq!(canary(&mut storyteller(2), vocab, &mut Vec::new()), first, "with other threads");
        assert!(engine.is_idle() && first.starts_with("c2-") && first.len() == 35, "{first}");
    }

    #[test]
    fn another_engine_says_something_else() {
        let letters = canary(&mut Instant::new(Duration::ZERO), 256, &mut Vec::new());
        assert!(!letters.is_empty());
        assert_ne!(letters, canary(&mut storyteller(1), 4096, &mut Vec::new()));
    }
}
