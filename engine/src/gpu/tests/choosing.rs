//! What a device finds for a draw: the draw from that is the draw from all scores, and no more is handed over than is needed.

use super::{Bench, Bytes, bits, scalar};
use crate::gpu::device::{Arg, Pointer};
use crate::request::Sampling;
use crate::sampler::{Candidate, Draw, candidates_of, keep_ranked};

const ROOM: usize = 512;

/// Scores of some kind: usual ones, flat ones, a few far above the rest, many equals.
fn scores_of(kind: usize, bytes: &mut Bytes, vocab: usize) -> Vec<f32> {
    match kind {
        0 => (0..4).fold(vec![0.0; vocab], |sum: Vec<f32>, _| {
            sum.iter().zip(bytes.floats(vocab, 3.0)).map(|(a, b)| a + b).collect()
        }),
        1 => bytes.floats(vocab, 1e-3),
        2 => (0..vocab).map(|id| if id % 331 == 7 { 20.0 } else { -3.0 - id as f32 * 1e-4 }).collect(),
        _ => (0..vocab).map(|id| (id % 97) as f32 - 50.0).collect(),
    }
}

/// One row: what it asks for, and its draw.
struct Case {
    kind: usize,
    sampling: Sampling,
    seed: u64,
    /// One token in this many is forbidden; 0 for none.
    forbidden: usize,
}

fn is_allowed(case: &Case, id: u32) -> bool {
    case.forbidden == 0 || (id as usize * 7919) % case.forbidden != 0
}

#[test]
fn a_draw_from_what_is_found_is_the_draw_from_all_scores() {
    let (vocab, mut bytes) = (2001, Bytes(11));
    let sampling = |temperature, top_k| Sampling { temperature, top_k, ..Sampling::default() };
    let samplings = [
        sampling(0.0, 0),
        sampling(1.0, 0),
        sampling(0.05, 0),
        sampling(100.0, 0),
        sampling(1e-6, 0),
        sampling(0.7, 1),
        sampling(0.8, 40),
        Sampling { top_p: 0.9, min_p: 0.01, ..sampling(1.2, 128) },
    ];
    let kinds = samplings.len() * 4;
    let cases: Vec<Case> = (0..kinds)
        .map(|i| Case {
            kind: i / samplings.len() % 4,
            sampling: samplings[i % samplings.len()].clone(),
            seed: 99 * i as u64 + (1 << 40),
            forbidden: [0, 0, 2, 5, 30][i % 5],
        })
        .collect();
    let rows: Vec<Vec<f32>> = cases.iter().map(|case| scores_of(case.kind, &mut bytes, vocab)).collect();
    let draws: Vec<Draw<'_>> = cases
        .iter()
        .enumerate()
        .map(|(i, case)| Draw {
            sampling: &case.sampling,
            seed: case.seed,
            choice: i as u32 % 3,
            position: 5 + i as u32,
            adjustments: Vec::new(),
            top_logprobs: None,
            given: None,
        })
        .collect();
    let most = |draw: &Draw<'_>| if draw.is_greedy() { 1 } else { (draw.sampling.top_k as usize).max(1) };
    let is_noisy = |draw: &Draw<'_>| !draw.is_greedy() && draw.sampling.top_k == 0;
    let mut masks: Vec<u32> = Vec::new();
    let mut choices: Vec<u32> = Vec::new();
    for (case, draw) in cases.iter().zip(&draws) {
        let mut mask = u32::MAX;
        if case.forbidden > 0 {
            mask = masks.len() as u32;
            let bit = |id: u32| u32::from((id as usize) < vocab && is_allowed(case, id));
            masks.extend(
                (0..vocab as u32).step_by(32).map(|first| (0..32).fold(0, |w, i| w | bit(first + i) << i)),
            );
        }
        let temperature = case.sampling.temperature;
        choices.extend([
            most(draw) as u32,
            u32::from(is_noisy(draw)),
            temperature.to_bits(),
            (1.0 / temperature).to_bits(),
        ]);
        choices.extend([draw.seed as u32, (draw.seed >> 32) as u32, draw.choice, draw.position, mask]);
    }
    let n = cases.len();
    let mut bench = Bench::new();
    let scores = bench.floats(&rows.concat());
    let (choices, masks) = (bench.words(choices), bench.words(masks));
    let (counts, found) = (bench.words(vec![0; 2 * n]), bench.words(vec![0; 2 * n * ROOM]));
    let arrays: [Pointer; 5] = [scores, choices, masks, counts, found];
    let args = [&arrays.map(Arg::from)[..], &[vocab, n, ROOM].map(Arg::from)].concat();
    bench.launch("choose", [n as u32, 1, 1], 256, &args);
    let (counts, found) = (bench.read_words(counts, 2 * n), bench.read_words(found, 2 * n * ROOM));
    for (row, (case, draw)) in cases.iter().zip(&draws).enumerate() {
        let [count, is_broken] = [counts[2 * row] as usize, counts[2 * row + 1] as usize];
        let said = format!("row {row}: kind {} {:?}, {count} found", case.kind, case.sampling);
        assert_eq!(is_broken, 0, "{said}");
        let mut all = candidates_of(&rows[row]);
        all.retain(|candidate| is_allowed(case, candidate.id));
        if count > ROOM {
            // Only where that many are equal, or might as well be.
            assert!(matches!(case.kind, 1 | 3), "{said}");
            continue;
        }
        let at = |i: usize| &found[2 * (i * n + row)..2 * (i * n + row) + 2];
        let candidate = |i| Candidate { id: at(i)[0], score: f32::from_bits(at(i)[1]) };
        let mut some: Vec<Candidate> = (0..count).map(candidate).collect();
        for candidate in &some {
            let id = candidate.id as usize;
            assert_eq!(candidate.score.to_bits(), rows[row][id].to_bits(), "{said}");
            assert!(is_allowed(case, candidate.id), "{said}");
        }
        if !is_noisy(draw) {
            let (mut best, mut best_found) = (all.clone(), some.clone());
            keep_ranked(&mut best, most(draw));
            keep_ranked(&mut best_found, most(draw));
            assert_eq!(best, best_found, "{said}");
        }
        assert_eq!(draw.pick(&mut some), draw.pick(&mut all), "{said}");
    }
}

#[test]
fn sums_and_named_scores_are_those_of_the_scalar_kernels_and_faults_are_seen() {
    let (vocab, mut bytes) = (2500, Bytes(12));
    let rows =
        [scores_of(0, &mut bytes, vocab), scores_of(1, &mut bytes, vocab), scores_of(2, &mut bytes, vocab)];
    let mut bench = Bench::new();
    let scores = bench.floats(&rows.concat());
    let (asked, sums) = (bench.words([2, 0]), bench.words(vec![0; 2 * 4]));
    bench.launch("exp_sums", [2, 1, 1], 256, &[scores.into(), asked.into(), sums.into(), vocab.into()]);
    for (row, found) in [2, 0].into_iter().zip(bench.read_words(sums, 8).chunks(4)) {
        let mut padded = rows[row].clone();
        padded.resize(vocab.next_multiple_of(16), f32::NEG_INFINITY);
        let largest = scalar().largest(&padded);
        let pieces = padded.chunks(1024).map(|piece| scalar().exp_sum(piece, largest) as f32);
        assert_eq!(found, bits(&std::iter::once(largest).chain(pieces).collect::<Vec<f32>>()));
    }
    // The best of the first row is taken, so the second best is found; the others have a score that is none.
    let best = |row: usize| {
        let mut all = candidates_of(&rows[row]);
        keep_ranked(&mut all, 2);
        all
    };
    let (first, taken) = (best(0), bench.words([0; 2]));
    let pairs = bench.words([0, first[0].id, 2, 11]);
    bench.launch(
        "take",
        [1, 1, 1],
        256,
        &[scores.into(), pairs.into(), taken.into(), vocab.into(), 2usize.into()],
    );
    assert_eq!(bench.read_words(taken, 2), bits(&[first[0].score, rows[2][11]]));
    for (at, wrong) in [(vocab + 2499, f32::NAN), (2 * vocab, f32::NEG_INFINITY)] {
        let to = scores.plus(4 * at);
        crate::gpu::upload_words(&mut bench.0, to, std::iter::once(wrong.to_bits())).unwrap();
    }
    let choices = bench.words([1, 0, 0, 0, 0, 0, 0, 0, u32::MAX].repeat(3));
    let (counts, found) = (bench.words([0; 6]), bench.words([0; 6]));
    let arrays = [scores, choices, choices, counts, found].map(Arg::from);
    bench.launch("choose", [3, 1, 1], 256, &[&arrays[..], &[vocab, 3, 1].map(Arg::from)].concat());
    let counts = bench.read_words(counts, 6);
    assert_eq!([counts[1], counts[3], counts[5]], [0, 1, 1]);
    let found = bench.read_words(found, 6);
    assert_eq!((counts[0], found[0], found[1]), (1, first[1].id, first[1].score.to_bits()));
}
