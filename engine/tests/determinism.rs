//! The gate: one value whatever the instruction set, threads, batch, prefill chunk, prefix cache, speculation, exact head,
//! ternary kernel, and point of resumption; with constraints and without.
//!
//! The value is a digest of every token, of log-probabilities and of logits, bit by bit; the reference is plain Rust, one
//! thread, one sequence, whole prompts, the full head, and nothing clever. Each run prints its digest. Instruction sets
//! that this machine lacks are named, in `scripts/system-tests.sh` too, where a person sees it.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod common;

use common::{Outcome, constrained, golden, load, prompt, requests, run, synthetic};
use std::path::Path;
use ternfleet_engine::synth::Shape;
use ternfleet_engine::{
    Device, Engine, Head, Isa, KernelChoice, Kv, Options, Request, Sampling, Speculation, StopReason,
};

const NEW_TOKENS: usize = 14;
/// Enough that forced tokens, small sets and large ones all come.
const CONSTRAINED_TOKENS: usize = 24;
const THREADS: [usize; 3] = [1, 2, 3];
const BATCHES: [usize; 4] = [1, 2, 5, 32];
/// As many as neither divides the number of threads nor of batches: each meets all.
const CHUNKS: [usize; 5] = [7, 100, 1, 33, 512];
const KEPT: [usize; 3] = [1, 5, 13];

/// One way of computing what is always the same.
#[derive(Debug)]
struct Way {
    device: Device,
    isa: Isa,
    threads: usize,
    batch: usize,
    chunk: usize,
    head: Head,
    kernel: KernelChoice,
    kv: Kv,
    prefix_cache: bool,
    speculates: bool,
}

impl Way {
    /// The `n`-th choice of everything beside instruction set, threads and batch.
    fn new(isa: Isa, threads: usize, batch: usize, n: usize) -> Way {
        let head = if n % 7 == 6 { Head::Full } else { Head::Screened };
        let kernel = if (n / 3).is_multiple_of(2) { KernelChoice::I2s } else { KernelChoice::Tl2 };
        let (prefix_cache, speculates) = (!n.is_multiple_of(3), n.is_multiple_of(2));
        let chunk = CHUNKS[n % CHUNKS.len()];
        let (device, kv) = (Device::Cpu, Kv::F16);
        Way { device, isa, threads, batch, chunk, head, kernel, kv, prefix_cache, speculates }
    }

    fn load(&self, path: &Path) -> Engine {
        let options = Options {
            device: self.device,
            isa: Some(self.isa),
            threads: Some(self.threads),
            max_sequences: self.batch,
            prefill_chunk: self.chunk,
            head: self.head,
            kernel: self.kernel,
            kv: self.kv,
            prefix_cache: self.prefix_cache,
            speculation: if self.speculates { Speculation::ALWAYS } else { Speculation::OFF },
            max_context: Some(512),
            ..Options::default()
        };
        load(path, options)
    }
}

/// FNV-1a over 32-bit words: short, and the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digest(u64);

impl Digest {
    fn of(words: impl IntoIterator<Item = u32>) -> Digest {
        let bytes = words.into_iter().flat_map(u32::to_le_bytes);
        Digest(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    fn of_all<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, logits: &[f32]) -> Digest {
        let logprobs = |outcome: &'a Outcome| {
            let all = outcome.logprobs.iter().flatten();
            all.flat_map(|l| {
                let top = l.top.iter().flat_map(|&(id, logprob)| [id, logprob.to_bits()]);
                std::iter::once(l.logprob.to_bits()).chain(top)
            })
        };
        let words = outcomes.into_iter().flat_map(|o| o.tokens.iter().copied().chain(logprobs(o)));
        Digest::of(words.chain(logits.iter().map(|logit| logit.to_bits())))
    }
}

/// Requests of every kind, and three that repeat themselves, so that there is something to guess, rightly and wrongly: one
/// by its prompt, one that can only say one word, and one that wavers between two.
fn all_requests(path: &Path, vocab: usize) -> Vec<Request> {
    let mut all = requests(vocab, NEW_TOKENS);
    all.extend(constrained(path, vocab, CONSTRAINED_TOKENS));
    let repeating = prompt(77, 6, vocab).repeat(5);
    for (temperature, logit_bias) in
        [(0.4, vec![]), (0.0, vec![(11, 100.0)]), (8.0, vec![(11, 100.0), (12, 100.0)])]
    {
        all.push(Request {
            prompt: repeating.clone(),
            max_new_tokens: NEW_TOKENS,
            sampling: Sampling { temperature, logit_bias, ..Sampling::default() },
            seed: 99,
            ..Request::default()
        });
    }
    all
}

/// What the gate has seen of speculation and of the prefix cache: a gate that nothing passed through proves nothing.
#[derive(Debug, Default)]
struct Seen {
    drafted: u64,
    accepted: u64,
    cached: usize,
    /// Tokens drawn from the few that a constraint allowed.
    few: u64,
}

/// Computes everything in each way and compares it with the reference. Returns the digest of what runs without constraints,
/// which no other crate has a part in.
fn one_value(path: &Path, ways: impl Iterator<Item = Way>) -> Digest {
    one_value_of(path, ways, false, |requests| requests)
}

/// As [`one_value`], of some of the requests. A ternary head and a GPU always score all rows, also where a constraint allows
/// few.
fn one_value_of(
    path: &Path,
    ways: impl Iterator<Item = Way>,
    scores_all: bool,
    some: fn(Vec<Request>) -> Vec<Request>,
) -> Digest {
    let mut ways = ways.peekable();
    let reference = Way {
        device: Device::Cpu,
        isa: Isa::Scalar,
        threads: 1,
        batch: 1,
        chunk: 512,
        head: Head::Full,
        kernel: KernelChoice::I2s,
        kv: ways.peek().map_or(Kv::F16, |way| way.kv),
        prefix_cache: false,
        speculates: false,
    };
    let mut engine = reference.load(path);
    let (vocab, numerics) = (engine.info().hyper.vocab, engine.info().numerics);
    let requests = some(all_requests(path, vocab));
    let expected = run(&mut engine, &requests);
    let is_constrained = requests.iter().any(|request| request.constraint.is_some());
    assert!(is_constrained || path.ends_with("four-layers/model.gguf"), "only that one has no words");
    let ids = prompt(5, 70, vocab);
    let logits = engine.logits(&ids).unwrap();
    let value = Digest::of_all(&expected, &logits);
    println!("{value:x?} {reference:?}");
    let free = requests.iter().zip(&expected).filter(|(request, _)| request.constraint.is_none());
    let unconstrained = Digest::of_all(free.map(|(_, outcome)| outcome), &logits);
    let mut seen = Seen::default();
    for way in ways {
        let mut engine = way.load(path);
        assert_eq!(engine.info().numerics, numerics);
        // The requests again and again until the batch is full, so that neighbours differ.
        let n = requests.len().max(way.batch);
        let filled: Vec<Request> = requests.iter().cycle().take(n).cloned().collect();
        let found = run(&mut engine, &filled);
        for (i, (outcome, expected)) in found.iter().zip(expected.iter().cycle()).enumerate() {
            assert_eq!(
                (&outcome.tokens, &outcome.logprobs, outcome.end),
                (&expected.tokens, &expected.logprobs, expected.end),
                "{way:?}, {i}"
            );
        }
        let logits = engine.logits(&ids).unwrap();
        let digest = Digest::of_all(&found[..requests.len()], &logits);
        println!("{digest:x?} {way:?}");
        assert_eq!(digest, value, "logits: {way:?}");
        let again = run(&mut engine, &resumed(&requests, &expected));
        for ((outcome, expected), kept) in again.iter().zip(&expected).zip(KEPT.into_iter().cycle()) {
            let kept = kept.min(expected.tokens.len() - 1);
            assert_eq!(outcome.tokens, expected.tokens[kept..], "{way:?}, resumed at {kept}");
        }
        let speculation = engine.speculation_counters();
        assert!(way.speculates || speculation.drafted == 0);
        seen.few += engine.head_counters().few;
        seen.drafted += speculation.drafted;
        seen.accepted += speculation.accepted;
        seen.cached += again.iter().map(|outcome| outcome.cached).sum::<usize>();
    }
    println!("{seen:?}");
    assert!(seen.few > 0 || !is_constrained || scores_all, "{seen:?}");
    assert!(seen.accepted > 0 && seen.drafted > seen.accepted && seen.cached > 0, "{seen:?}");
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        println!("NOT PROVED HERE: {isa} (this machine lacks it)");
    }
    unconstrained
}

/// The requests with a part of their output kept.
fn resumed(requests: &[Request], outcomes: &[Outcome]) -> Vec<Request> {
    let kept = KEPT.into_iter().cycle();
    let kept = requests.iter().zip(outcomes).zip(kept).map(|((request, outcome), kept)| Request {
        generated: outcome.tokens[..kept.min(outcome.tokens.len() - 1)].to_vec(),
        ..request.clone()
    });
    kept.collect()
}

/// Kept output is computed again and drawn again, under every kind of sampling and of constraint: what this engine would not
/// have generated ends its sequence, and what is whole is only proved.
#[test]
fn kept_output_that_this_engine_does_not_draw_is_found_wherever_it_differs() {
    let path = golden("one-layer");
    let mut engine = load(&path, Options { prefix_cache: true, ..Options::default() });
    let vocab = engine.info().hyper.vocab;
    let requests = all_requests(&path, vocab);
    let expected = run(&mut engine, &requests);
    let all = || requests.iter().zip(&expected);
    let whole: Vec<Request> = all()
        .map(|(request, whole)| Request { generated: whole.tokens.clone(), ..request.clone() })
        .collect();
    for (proved, expected) in run(&mut engine, &whole).iter().zip(&expected) {
        assert_eq!((proved.tokens.len(), proved.end), (0, expected.end));
    }
    for wrong_at in [0, 1, 7, usize::MAX] {
        let wrong = all().map(|(request, whole)| {
            let mut generated = whole.tokens[..whole.tokens.len().min(12)].to_vec();
            let at = wrong_at.min(generated.len() - 1);
            generated[at] = (generated[at] + 1) % vocab as u32;
            Request { generated, ..request.clone() }
        });
        let wrong: Vec<Request> = wrong.collect();
        for (i, found) in run(&mut engine, &wrong).iter().enumerate() {
            assert_eq!(
                (found.tokens.len(), found.end),
                (0, Some(StopReason::KeptDiffers)),
                "{i}, {wrong_at}"
            );
        }
    }
    let beyond = |generated| Request { generated, ..requests[0].clone() };
    let impossible = [beyond(vec![u32::MAX]), beyond(vec![1; requests[0].max_new_tokens + 1])];
    for found in run(&mut engine, &impossible) {
        assert_eq!(found.end, Some(StopReason::KeptDiffers));
    }
}

fn threads_and_batches() -> impl Iterator<Item = (usize, usize)> {
    THREADS.into_iter().flat_map(|threads| BATCHES.map(|batch| (threads, batch)))
}

/// Threads × batches, once, the instruction sets in turn. For models that are slow in plain Rust.
fn in_turn() -> impl Iterator<Item = Way> {
    let vectors: Vec<Isa> = Isa::available().into_iter().filter(|&isa| isa != Isa::Scalar).collect();
    let isas: Vec<Isa> = if vectors.is_empty() { vec![Isa::Scalar] } else { vectors };
    let ways = threads_and_batches().enumerate();
    let ways: Vec<Way> =
        ways.map(|(n, (threads, batch))| Way::new(isas[n % isas.len()], threads, batch, n)).collect();
    ways.into_iter().chain([Way::new(Isa::Scalar, 2, 5, 4)])
}

#[test]
fn a_tiny_synthetic_model_gives_one_value() {
    let (_folder, path) = synthetic(&Shape::TINY, 7);
    let isas = Isa::available().into_iter().enumerate();
    let ways = isas.flat_map(|(i, isa)| {
        // Another choice of the rest for each instruction set.
        threads_and_batches()
            .enumerate()
            .map(move |(n, (threads, batch))| Way::new(isa, threads, batch, n + 11 * i))
    });
    // The reference is slow, and was the reference already: some of its ways suffice.
    one_value(
        &path,
        ways.enumerate().filter(|(n, way)| way.isa != Isa::Scalar || n % 4 == 1).map(|(_, way)| way),
    );
}

/// These bits stay: whoever changes one on purpose changes the numerics id, too.
fn is_pinned(value: Digest, pinned: u64, path: &Path) {
    assert_eq!(load(path, Options::default()).info().numerics, "ternfleet-3/f16kv");
    assert!(value == Digest(pinned), "{value:x?} where {pinned:x} was, under the same numerics id");
}

/// A declared approximation is a reference of its own, with a name of its own.
#[test]
fn int8_keys_and_values_give_one_value() {
    let (_folder, path) = synthetic(&Shape::TINY, 7);
    let ids = prompt(5, 70, Shape::TINY.vocab);
    let [halves, bytes] = [Kv::F16, Kv::Int8].map(|kv| {
        let mut engine = load(&path, Options { kv, ..Options::default() });
        (engine.info().numerics, engine.logits(&ids).unwrap())
    });
    assert_eq!([halves.0, bytes.0], ["ternfleet-3/f16kv", "ternfleet-3/int8kv"]);
    assert!(halves.1 != bytes.1);
    one_value(&path, in_turn().map(|way| Way { kv: Kv::Int8, ..way }));
}

#[test]
fn four_golden_layers_give_one_value() {
    let path = golden("four-layers");
    is_pinned(one_value(&path, in_turn()), 0x495b_1e5d_4bd7_034b, &path);
}

#[test]
fn the_storyteller_gives_one_value() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/storyteller/storyteller.gguf");
    is_pinned(one_value(&path, in_turn()), 0xe86d_a3fb_1e23_b983, &path);
}

/// The kernels for GPUs, as PTX on an interpreter: steps, pages, prefix cache, speculation and all else of the backend that a
/// card would run. `TERNFLEET_TEST_DEVICE=cuda` runs it on a card, with the feature `cuda`.
#[test]
fn the_kernels_for_gpus_give_the_same_value() {
    let isa = Isa::detect().unwrap();
    let device =
        std::env::var("TERNFLEET_TEST_DEVICE").map_or(Device::Interpreter, |name| name.parse().unwrap());
    let way = Way { device, ..Way::new(isa, 2, 2, 8) };
    let (_folder, path) = synthetic(&Shape::TINY, 7);
    // Prompts in chunks beside what generates, and two sequences at most, so that they are guessed. An interpreter is slow:
    // of each kind there is one.
    one_value_of(&path, [way].into_iter(), true, |requests| {
        let n = requests.len();
        let kinds = [1, 2, 3, 4, 6, 8, 12, 13];
        let some = requests.into_iter().enumerate().filter(|(i, _)| kinds.contains(i) || i + 3 >= n);
        // Log-probabilities with each way of drawing.
        let asked = [None, Some(0), None, Some(5), Some(20)];
        let ask = |(i, request): (usize, Request)| match asked.get(i).copied().flatten() {
            Some(n_top) => Request { top_logprobs: Some(n_top), ..request },
            None => request,
        };
        some.map(ask).collect()
    });
    // Another activation, layers without sub-norms, and an output matrix of its own.
    let shape: Shape = "llama:2x256x512x4x2x512".parse().unwrap();
    let (_folder, path) = synthetic(&shape, 7);
    let ids = prompt(5, 20, shape.vocab);
    let logits = |device| {
        let options = Options { device, max_context: Some(512), ..Options::default() };
        Digest::of(load(&path, options).logits(&ids).unwrap().iter().map(|logit| logit.to_bits()))
    };
    assert_eq!(logits(device), logits(Device::Cpu));
}

/// More sequences in a step than a CPU takes, and more heads than a device scores together.
#[test]
fn a_large_batch_on_the_device_gives_the_same_tokens() {
    let device =
        std::env::var("TERNFLEET_TEST_DEVICE").map_or(Device::Interpreter, |name| name.parse().unwrap());
    let shape: Shape = "llama:1x128x128x2x1x512".parse().unwrap();
    let (_folder, path) = synthetic(&shape, 7);
    let request = |i: u32| Request {
        prompt: prompt(i, 1 + i as usize % 3, shape.vocab),
        max_new_tokens: 2,
        sampling: Sampling {
            temperature: [0.0, 0.9, 0.7][i as usize % 3],
            top_k: [0, 0, 20][i as usize % 3],
            ..Sampling::default()
        },
        seed: u64::from(i),
        top_logprobs: i.is_multiple_of(7).then_some(3),
        prompt_logprobs: i.is_multiple_of(10).then_some(2),
        ..Request::default()
    };
    let requests: Vec<Request> = (0..140).map(request).collect();
    let [few, many] = [(Device::Cpu, 32), (device, 140)].map(|(device, max_sequences)| {
        let options = Options {
            device,
            max_sequences,
            prefill_chunk: 512,
            max_context: Some(16),
            ..Options::default()
        };
        let mut engine = load(&path, options);
        let outcomes = run(&mut engine, &requests);
        assert_eq!(engine.head_counters().searched > 0, device != Device::Cpu);
        outcomes
    });
    assert_eq!(few, many);
    let options = Options { max_sequences: 65, ..Options::default() };
    let refused = Engine::load(&path, &options).unwrap_err().to_string();
    assert!(refused.contains("use 1 to 64 on the device cpu"), "{refused}");
}

/// I2_S of Llama's architecture with heads that are padded, groups of inputs, and TQ rows with scales of their own.
#[test]
fn other_architectures_give_one_value_each() {
    for shape in ["llama:2x256x512x16x2x512x40", "qwen3:2x256x512x4x2x512x128"] {
        let is_llama = shape.starts_with("llama");
        let shape: Shape = shape.parse().unwrap();
        let (_folder, path) = synthetic(&shape, 7);
        let options = Options { max_context: Some(512), ..Options::default() };
        assert_eq!(load(&path, options).info().kernel == "grouped", !is_llama);
        // What looks weights up knows no groups.
        let kernel = |way| if is_llama { way } else { Way { kernel: KernelChoice::I2s, ..way } };
        one_value_of(&path, in_turn().map(kernel), !is_llama, |requests| requests);
    }
    one_value(&golden("architectures/c2-llama-tq2_0-rows"), in_turn());
}
