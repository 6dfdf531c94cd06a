//! Two seconds of measuring before the first job: prefill, decode at several batch sizes, and how many threads serve best.
//!
//! Speed is measured, never assumed: a pod's class says little about what its neighbours leave it. Steps cannot be
//! interrupted, so a very slow engine passes the time by up to one step for each measurement.

use std::time::{Duration, Instant};

use ternfleet_engine::{Event, Request, Sampling};
use ternfleet_proto::message::{RatePoint, ThreadPoint};

use crate::generator::Generator;

/// What came out, in tokens per second, all sequences together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calibration {
    pub prefill_tok_s: f64,
    pub decode: Vec<RatePoint>,
    /// Decode at all slots, by number of threads; empty when there was no choice.
    pub thread_scaling: Vec<ThreadPoint>,
}

impl Calibration {
    /// The best decode rate seen.
    pub fn decode_tok_s(&self) -> f64 {
        self.decode.iter().map(|point| point.tok_s).fold(0.0, f64::max)
    }
}

/// Measures `generator` for about `budget`. `vocab` bounds the made-up prompt ids, `context` the positions.
pub fn calibrate(
    generator: &mut dyn Generator,
    slots: usize,
    vocab: usize,
    context: usize,
    budget: Duration,
) -> Calibration {
    let mut sizes = vec![1, (slots / 2).max(1), slots.max(1)];
    sizes.dedup();
    let share = budget / (sizes.len() as u32 + 1);
    let prefill_tok_s = prefill(generator, vocab, share);
    let decode = sizes
        .into_iter()
        .filter_map(|batch| {
            let tok_s = decode(generator, batch, vocab, context, share)?;
            Some(RatePoint { batch: batch as u32, tok_s })
        })
        .collect();
    Calibration { prefill_tok_s, decode, thread_scaling: Vec::new() }
}

/// Of two numbers of threads the fewer, unless more are clearly faster: threads that only wait for memory, or that share
/// a core, cost their neighbours and gain nothing.
const CLEARLY: f64 = 1.02;

/// Whether `fewer` threads should be kept rather than all.
pub fn fewer_is_better(fewer: ThreadPoint, all: ThreadPoint) -> bool {
    fewer.tok_s > 0.0 && all.tok_s < CLEARLY * fewer.tok_s
}

/// Decode speed at all slots with as many threads as `generator` has; 0 if it cannot run so many sequences.
pub fn thread_point(
    generator: &mut dyn Generator,
    threads: usize,
    slots: usize,
    vocab: usize,
    context: usize,
    budget: Duration,
) -> ThreadPoint {
    let tok_s = decode(generator, slots.max(1), vocab, context, budget).unwrap_or(0.0);
    ThreadPoint { threads: threads as u32, tok_s }
}

/// Ids that no prefix cache has seen: they differ with every call.
fn prompt(vocab: usize, length: usize, salt: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * 7919 + salt * 104_729 + 1) % vocab.max(2)) as u32).collect()
}

fn request(prompt: Vec<u32>, max_new_tokens: usize) -> Request {
    // A model that repeats itself would seem faster than it is on real work.
    let speculate = false;
    // What most batches ask for.
    let sampling = Sampling { temperature: 1.0, top_p: 0.9, ..Sampling::default() };
    Request { prompt, max_new_tokens, sampling, speculate, ..Request::default() }
}

/// Prompts of growing length until the time is used up; the last one counts.
fn prefill(generator: &mut dyn Generator, vocab: usize, share: Duration) -> f64 {
    let begun = Instant::now();
    let mut events = Vec::new();
    let (mut length, mut tok_s) = (16, 0.0);
    for salt in 0.. {
        if generator.submit(request(prompt(vocab, length, salt), 1)).is_err() {
            break;
        }
        let (mut tokens, mut busy) = (0, Duration::ZERO);
        while !generator.is_idle() {
            let stats = generator.step(&mut events);
            tokens += stats.prefill_tokens;
            busy += stats.elapsed;
        }
        if tokens > 0 && !busy.is_zero() {
            tok_s = tokens as f64 / busy.as_secs_f64();
        }
        // The next one takes twice as long as this one did.
        if begun.elapsed() + 2 * busy > share || length >= 512 {
            break;
        }
        length *= 2;
    }
    tok_s
}

/// `None` if the engine refuses such a batch.
fn decode(
    generator: &mut dyn Generator,
    batch: usize,
    vocab: usize,
    context: usize,
    share: Duration,
) -> Option<f64> {
    let most = (context / 2).clamp(1, 256);
    let mut ids = Vec::new();
    for salt in 0..batch {
        match generator.submit(request(prompt(vocab, 2, 1000 + salt), most)) {
            Ok(id) => ids.push(id),
            Err(_) => break,
        }
    }
    let whole = ids.len() == batch;
    let mut events = Vec::new();
    let begun = Instant::now();
    let (mut tokens, mut busy, mut steps) = (0, Duration::ZERO, 0);
    while whole && !generator.is_idle() && (begun.elapsed() < share || steps == 0) {
        let stats = generator.step(&mut events);
        // The first step prefills; it is not decoding.
        if stats.prefill_tokens == 0 || steps > 0 {
            tokens += stats.decode_tokens;
            busy += stats.elapsed;
        }
        steps += 1;
    }
    for id in ids {
        generator.cancel(id);
    }
    let cleared = Instant::now();
    while !generator.is_idle() && cleared.elapsed() < Duration::from_secs(10) {
        generator.step(&mut events);
    }
    debug_assert!(events.iter().all(|event| matches!(event, Event::Token { .. } | Event::Finished { .. })));
    (whole && tokens > 0 && !busy.is_zero()).then(|| tokens as f64 / busy.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator;

    #[test]
    fn calibration_measures_each_batch_size_and_leaves_the_engine_idle() {
        let mut engine = generator::Instant::new(Duration::from_millis(1));
        let found = calibrate(&mut engine, 8, 256, 4096, Duration::from_millis(200));
        assert_eq!(found.decode.iter().map(|point| point.batch).collect::<Vec<_>>(), [1, 4, 8]);
        assert!(found.decode[2].tok_s > found.decode[0].tok_s && found.prefill_tok_s > 0.0);
        assert!(engine.is_idle());
    }

    #[test]
    fn more_threads_must_be_clearly_faster() {
        let point = |threads, tok_s| ThreadPoint { threads, tok_s };
        assert!(fewer_is_better(point(16, 50.0), point(32, 45.0)), "as the report saw it");
        assert!(fewer_is_better(point(16, 50.0), point(32, 50.5)));
        assert!(!fewer_is_better(point(8, 30.0), point(16, 55.0)));
        assert!(!fewer_is_better(point(8, 0.0), point(16, 0.0)), "nothing was measured");
    }

    #[test]
    fn calibration_keeps_to_its_time() {
        let begun = Instant::now();
        calibrate(
            &mut generator::Instant::new(Duration::from_millis(2)),
            4,
            256,
            4096,
            Duration::from_millis(300),
        );
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}
