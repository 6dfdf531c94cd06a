//! The measures on models whose answers are known: a synthetic one, checked by hand, and the storyteller,
//! which must prefer its own language.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::path::Path;

use ternfleet_engine::eval::{self, Choices, Continuation, Format, LastWords, Sliding, Windows};
use ternfleet_engine::synth::{self, Shape};
use ternfleet_engine::{Engine, Head, Options, gguf};
use ternfleet_text::{Manifest, Tokenizer};

fn synthetic() -> (tempfile::TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    synth::write(&Shape::TINY, 5, &mut std::fs::File::create(&path).unwrap()).unwrap();
    let engine = Engine::load(&path, &Options::default()).unwrap();
    (folder, engine)
}

fn storyteller() -> (Tokenizer, Engine) {
    storyteller_with(Head::default())
}

fn storyteller_with(head: Head) -> (Tokenizer, Engine) {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/storyteller/storyteller.gguf"));
    let vocabulary = gguf::vocabulary(&gguf::File::open(path).unwrap()).unwrap();
    let manifest = Manifest::beside(path).unwrap();
    let prepared = Tokenizer::from_parts(&vocabulary, manifest.as_ref()).unwrap();
    (prepared.tokenizer, Engine::load(path, &Options { head, ..Options::default() }).unwrap())
}

/// −ln p of `id` in a row of logits, the slow way.
fn nll(row: &[f32], id: u32) -> f64 {
    let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
    sum.ln() - f64::from(row[id as usize])
}

#[test]
fn perplexity_scores_the_second_part_of_each_whole_window_after_bos() {
    let (_folder, mut engine) = synthetic();
    let ids: Vec<u32> = (0..20).map(|index| index * 7 % 500).collect();
    let windows = Windows { tokens: 8, first_scored: 3 };
    let mut heard = 0;
    let found = eval::perplexity(&mut engine, &ids, Some(509), windows, |_| 2, |_| heard += 1).unwrap();

    // 21 tokens with BOS in front: two windows of 8, each beginning with BOS, and a rest of 5.
    let stream: Vec<u32> = std::iter::once(509).chain(ids).collect();
    let mut expected = 0.0;
    for window in [0, 8] {
        let mut window = stream[window..window + 8].to_vec();
        window[0] = 509;
        let logits = engine.logits(&window).unwrap();
        expected += (3..7).map(|at| nll(&logits[at * 512..][..512], window[at + 1])).sum::<f64>();
    }
    assert_eq!((found.n_scored, found.n_windows, found.n_bytes, heard), (8, 2, 16, 2));
    assert!((found.nll - expected).abs() < 1e-6, "{} and not {expected}", found.nll);
    assert!((found.value() - (expected / 8.0).exp()).abs() < 1e-3);
    assert!((found.bits_per_byte() - expected / 16.0 / std::f64::consts::LN_2).abs() < 1e-6);
}

#[test]
fn windows_that_slide_score_each_token_once_with_what_stands_before_it() {
    let (_folder, mut engine) = synthetic();
    let ids: Vec<u32> = (0..13).map(|index| index * 7 % 500).collect();
    for (bos, first) in [(Some(509), 0), (None, 1)] {
        let sliding = Sliding { tokens: 6, stride: 4 };
        let found = eval::sliding_perplexity(&mut engine, &ids, bos, sliding, |_| 1, |_| ()).unwrap();
        // By hand: window k reads from 4·k on, so many tokens as fit, and the next one is predicted besides.
        let (mut expected, mut n_windows, mut scored) = (0.0, 0, first);
        for begin in [0, 4, 8] {
            let end = (begin + 6 - usize::from(bos.is_some())).min(12);
            let read: Vec<u32> = bos.into_iter().chain(ids[begin..end].iter().copied()).collect();
            let logits = engine.logits(&read).unwrap();
            for (next, &id) in ids.iter().enumerate().take(end + 1).skip(scored) {
                let row = next - begin - usize::from(bos.is_none());
                expected += nll(&logits[row * 512..][..512], id);
            }
            (scored, n_windows) = (end + 1, n_windows + 1);
            if scored == ids.len() {
                break;
            }
        }
        assert_eq!((found.n_scored, found.n_windows), (13 - first as u64, n_windows), "{bos:?}");
        assert!((found.nll - expected).abs() < 1e-6, "{bos:?}: {} and not {expected}", found.nll);
    }
    for (tokens, stride) in [(6, 0), (6, 6), (0, 0)] {
        let sliding = Sliding { tokens, stride };
        let refused = eval::sliding_perplexity(&mut engine, &ids, None, sliding, |_| 1, |_| ()).unwrap_err();
        assert!(refused.to_string().contains("stride"), "{refused}");
    }
    let sliding = Sliding { tokens: 6, stride: 4 };
    assert!(eval::sliding_perplexity(&mut engine, &[3], None, sliding, |_| 1, |_| ()).is_err());
}

/// A text that training never saw: the held-out slice of one book of the storyteller's corpus.
const HELD_OUT: &str = include_str!("data/held-out.txt");

#[test]
fn the_storyteller_is_as_good_as_its_training_code_says() {
    let (tokenizer, mut engine) = storyteller();
    let ids = tokenizer.encode_literal(HELD_OUT).unwrap();
    let bytes = |id| tokenizer.text_bytes(id).len();
    let sliding = Sliding { tokens: 512, stride: 256 };
    let slid = eval::sliding_perplexity(&mut engine, &ids, tokenizer.bos(), sliding, bytes, |_| ()).unwrap();
    assert_eq!((slid.n_scored, slid.n_bytes, slid.n_windows), (1628, 5540, 6));
    // What evaluate.py gives for this text, in PyTorch and f32: 2.086694 bits per byte.
    let bits = slid.bits_per_byte();
    assert!((bits - 2.086_694).abs() < 0.002, "{bits}");
    // And what this engine gives, which no kernel, thread count or instruction set may change.
    assert!((bits - 2.087_128).abs() < 2e-6 && (slid.value() - 137.4143).abs() < 2e-4, "{slid:?}");

    let apart =
        eval::perplexity(&mut engine, &ids, tokenizer.bos(), Windows::default(), bytes, |_| ()).unwrap();
    assert_eq!((apart.n_scored, apart.n_windows), (3 * 255, 3));
    assert!((apart.bits_per_byte() - 2.134_390).abs() < 2e-6, "{apart:?}");
    assert!((apart.value() - 133.5859).abs() < 2e-4, "{apart:?}");
}

#[test]
fn a_rounded_head_moves_the_predictions_little_and_the_screened_one_not_at_all() {
    let (tokenizer, mut exact) = storyteller_with(Head::Full);
    let ids = tokenizer.encode(&HELD_OUT[..1200], true).unwrap();
    let reference = exact.logits(&ids).unwrap();
    let vocab = exact.info().hyper.vocab;
    let divergence_of = |head| {
        let logits = storyteller_with(head).1.logits(&ids).unwrap();
        eval::divergence(&reference, &logits, vocab)
    };
    let screened = divergence_of(Head::Screened);
    assert_eq!((screened.largest_nats, screened.rms()), (0.0, 0.0));
    let q8 = divergence_of(Head::Q8);
    println!("q8: {:.3e} nats on average, same best token at {:.4}", q8.mean_nats(), q8.same_best());
    assert!(q8.rms() > 0.0 && q8.mean_nats() < 1e-3 && q8.same_best() > 0.97, "{q8:?}");
    let q6 = divergence_of(Head::Q6);
    println!("q6: {:.3e} nats on average, same best token at {:.4}", q6.mean_nats(), q6.same_best());
    assert!(q6.rms() > q8.rms() && q6.mean_nats() < 1e-2 && q6.same_best() > 0.9, "{q6:?}");
}

#[test]
fn a_text_shorter_than_a_window_and_windows_that_score_nothing_are_refused() {
    let (_folder, mut engine) = synthetic();
    let mut refused = |n: usize, windows| {
        eval::perplexity(&mut engine, &vec![1; n], None, windows, |_| 1, |_| ()).unwrap_err().to_string()
    };
    assert!(refused(7, Windows { tokens: 8, first_scored: 4 }).contains("7 tokens"));
    assert!(refused(20, Windows { tokens: 8, first_scored: 7 }).contains("scores nothing"));
    assert!(refused(20, Windows { tokens: 1, first_scored: 0 }).contains("scores nothing"));
}

#[test]
fn a_continuation_is_scored_token_by_token() {
    let (tokenizer, mut engine) = storyteller();
    let continuation =
        Continuation { context: "Once upon a time there was a".into(), text: " king who".into() };
    let score = continuation.score(&mut engine, &tokenizer).unwrap();
    let ids = tokenizer.encode("Once upon a time there was a king who", true).unwrap();
    let n_context = tokenizer.encode("Once upon a time there was a", true).unwrap().len();
    let logits = engine.logits(&ids).unwrap();
    let vocab = engine.info().hyper.vocab;
    let expected: f64 =
        (n_context..ids.len()).map(|at| -nll(&logits[(at - 1) * vocab..][..vocab], ids[at])).sum();
    assert_eq!(score.n_tokens, ids.len() - n_context);
    assert!((score.log_probability - expected).abs() < 1e-5, "{} and not {expected}", score.log_probability);
}

#[test]
fn a_context_that_is_too_long_loses_its_beginning() {
    let (tokenizer, mut engine) = storyteller();
    let context = "the old king said to his son ".repeat(300);
    let score = Continuation { context, text: "the".into() }.score(&mut engine, &tokenizer).unwrap();
    assert!(score.log_probability < 0.0 && score.n_tokens >= 1);
}

#[test]
fn the_storyteller_prefers_english_to_the_same_words_shuffled() {
    let (tokenizer, mut engine) = storyteller();
    let story = "Once upon a time there was a king who had three sons. The eldest went out into the world to seek his \
        fortune, and after he had walked the whole day he came to a great forest. There he met an old woman, who said \
        to him, Good day, my son, where are you going? ";
    let ids = tokenizer.encode(&story.repeat(2), false).unwrap();
    let mut shuffled = ids.clone();
    (0..shuffled.len()).for_each(|index| shuffled.swap(index, index * 31 % ids.len()));
    let windows = Windows { tokens: 64, first_scored: 8 };
    let bytes = |id| tokenizer.text_bytes(id).len();
    let mut bits = |ids: &[u32]| {
        eval::perplexity(&mut engine, ids, tokenizer.bos(), windows, bytes, |_| ()).unwrap().bits_per_byte()
    };
    let (english, noise) = (bits(&ids), bits(&shuffled));
    println!("bits per byte: {english:.3} for a story, {noise:.3} shuffled");
    assert!(english < 2.5 && noise > english + 0.8, "{english} and {noise}");
}

#[test]
fn the_storyteller_chooses_the_ending_that_makes_sense() {
    let (tokenizer, mut engine) = storyteller();
    let data = r#"{"context": "Once upon a", "choices": ["time", "turnip"], "answer": 0}
        {"context": "The king had three", "choices": ["went", "sons"], "answer": 1}
        {"context": "And they lived happily ever", "choices": ["after", "of"], "answer": 0}
        {"context": "He went out into the", "choices": ["said", "forest"], "answer": 1}"#;
    let mut choices = Choices::default();
    for question in Format::Plain.read(data).unwrap() {
        choices.add(&mut engine, &tokenizer, &question).unwrap();
    }
    assert!(choices.n == 4 && choices.n_right >= 3, "{choices:?}");
    let mut words = LastWords::default();
    words.add(&mut engine, &tokenizer, "Once upon a time").unwrap();
    assert!((words.n, words.n_right) == (1, 1) && words.perplexity() < 2.0, "{words:?}");
}

#[test]
fn an_engine_does_not_diverge_from_itself() {
    let (_folder, mut engine) = synthetic();
    let logits = engine.logits(&[1, 2, 3, 4]).unwrap();
    let again = engine.logits(&[1, 2, 3, 4]).unwrap();
    let same = eval::divergence(&logits, &again, 512);
    assert_eq!((same.n, same.largest_nats, same.same_best()), (4, 0.0, 1.0));
}
