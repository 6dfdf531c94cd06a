//! How fast a server is: decoding at rising concurrency until more helps no more, and one long prompt.

use std::time::{Duration, Instant};

use serde_json::json;
use ternfleet_proto::message::RatePoint;

use super::ask::{CHAT, COMPLETIONS};
use super::client::Client;
use super::piece;
use super::probe::Facts;
use crate::calibrate::Calibration;
use crate::options::Options;

/// Most jobs at once, where nobody says how many.
const SLOTS_MAX: usize = 256;
/// Where nothing is measured.
const SLOTS: usize = 16;
/// Twice as many requests at once must bring so much more, or it is enough.
const CLEARLY: f64 = 1.1;
/// Levels of concurrency share this part of the time each.
const SHARES: u32 = 4;
const OUTPUT_TOKENS: usize = 128;
const PROMPT_WORDS: usize = 400;

/// How many jobs to run at once, and how fast they are.
pub(super) async fn measured(client: &Client, facts: &Facts, options: &Options) -> (usize, Calibration) {
    if options.calibrate_ms == 0 {
        return (options.slots.unwrap_or(SLOTS), Calibration::default());
    }
    let share = Duration::from_millis(options.calibrate_ms) / SHARES;
    let most = options.slots.unwrap_or(SLOTS_MAX);
    let prefill_tok_s = prefill(client, facts).await;
    let mut decode: Vec<RatePoint> = Vec::new();
    let (mut level, mut slots, mut best) = (1, 1, 0.0);
    loop {
        let tok_s = speed(client, facts, level, share).await;
        if tok_s <= 0.0 {
            break;
        }
        decode.push(RatePoint { batch: level as u32, tok_s });
        if tok_s >= CLEARLY * best {
            (slots, best) = (level, tok_s);
        } else if options.slots.is_none() {
            break;
        }
        if level == most {
            break;
        }
        level = (2 * level).min(most);
    }
    // What is beyond the chosen number says nothing of it.
    let slots = options.slots.unwrap_or(slots);
    decode.retain(|point| point.batch as usize <= slots);
    (slots, Calibration { prefill_tok_s, decode, thread_scaling: Vec::new() })
}

fn request(facts: &Facts, text: &str, tokens: usize) -> (&'static str, serde_json::Value) {
    let rest = json!({ "max_tokens": tokens, "temperature": 0.8, "seed": 1 });
    let (path, mut body) = match facts.abilities.completions {
        true => (COMPLETIONS, json!({ "prompt": text })),
        false => (CHAT, json!({ "messages": [{ "role": "user", "content": text }] })),
    };
    for (name, value) in rest.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    (path, body)
}

/// Tokens a second of so many requests that are always under way.
async fn speed(client: &Client, facts: &Facts, level: usize, share: Duration) -> f64 {
    let tokens = OUTPUT_TOKENS.min(facts.context / 2).max(1);
    let one = |number: usize| async move {
        let mut made = 0usize;
        let keep_asking = async {
            for round in 0.. {
                let text = format!("Story {number} of part {round}: once upon a time");
                let (path, body) = request(facts, &text, tokens);
                let Ok(mut events) = client.stream(path, &body).await else { return };
                while let Ok(Some(event)) = events.next().await {
                    let pieces = piece::pieces(&event).unwrap_or_default();
                    made += pieces.iter().filter(|one| !one.text.is_empty()).count();
                }
            }
        };
        let _ = tokio::time::timeout(share, keep_asking).await;
        made
    };
    let begun = Instant::now();
    let made: usize = futures::future::join_all((0..level).map(one)).await.into_iter().sum();
    made as f64 / begun.elapsed().as_secs_f64()
}

/// Prompt tokens a second; 0 where the server does not count them.
async fn prefill(client: &Client, facts: &Facts) -> f64 {
    let words = PROMPT_WORDS.min(facts.context / 4);
    let mut best = 0.0;
    for salt in 0..2 {
        // Words that no cache has seen.
        let text: Vec<String> =
            (0..words).map(|n| format!("{}", (n * 7919 + salt * 104_729) % 1000)).collect();
        let (path, body) = request(facts, &text.join(" "), 1);
        let begun = Instant::now();
        let Ok(said) = client.ask(path, &body).await else { break };
        let tokens = piece::counts(&said).map_or(0, |counts| counts.prompt_tokens);
        best = f64::max(best, f64::from(tokens) / begun.elapsed().as_secs_f64());
    }
    best
}
