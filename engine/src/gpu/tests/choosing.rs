//! What a device finds for a draw: the draw from that is the draw from all scores, and no more is handed over than is needed.

use super::{Bench, Bytes, bits, rows_of_every_kind, scalar};
use crate::gpu::device::{Arg, Pointer};
use crate::head::Screen;
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
    case.forbidden == 0 || !(id as usize * 7919).is_multiple_of(case.forbidden)
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
    for (row, (case, draw)) in (0..).zip(cases.iter().zip(&draws)) {
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
            row,
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
    let choices = bench.words((0..3).flat_map(|row| [row, 1, 0, 0, 0, 0, 0, 0, 0, u32::MAX]));
    let (counts, found) = (bench.words([0; 6]), bench.words([0; 6]));
    let arrays = [scores, choices, choices, counts, found].map(Arg::from);
    bench.launch("choose", [3, 1, 1], 256, &[&arrays[..], &[vocab, 3, 1].map(Arg::from)].concat());
    let counts = bench.read_words(counts, 6);
    assert_eq!([counts[1], counts[3], counts[5]], [0, 1, 1]);
    let found = bench.read_words(found, 6);
    assert_eq!((counts[0], found[0], found[1]), (1, first[1].id, first[1].score.to_bits()));
}

/// Rounds, scores by an int8 copy, sums and finds what is near the best, as `head` does on a CPU.
#[test]
fn the_copy_is_computed_as_the_scalar_kernels_do_it() {
    let (width, vocab, mut bytes) = (256, 3000, Bytes(13));
    let mut rows = rows_of_every_kind(&mut bytes, width);
    rows.push(
        bytes.floats(width, 2.0).iter().enumerate().map(|(i, v)| if i == 9 { 7.0 } else { *v }).collect(),
    );
    let n = rows.len();
    let most = Screen::largest_activation(width);
    let mut bench = Bench::new();
    let input = bench.floats(&rows.concat());
    let asked: Vec<u32> = (0..n as u32).rev().collect();
    let named = bench.words(asked.iter().copied());
    let [high, low] = [(); 2].map(|()| bench.words(vec![0; 32 * width / 4]));
    let steps = bench.words(vec![0; n]);
    let args =
        [input.into(), named.into(), width.into(), Arg::Float(most), high.into(), low.into(), steps.into()];
    bench.launch("round_wide", [n as u32, 1, 1], 256, &args);
    let (found_high, found_low) = (bench.read(high, n * width), bench.read(low, n * width));
    let found_steps = bench.read_words(steps, n);
    let (mut values, mut all, mut n_narrow) = (vec![0i16; width], Vec::new(), 0);
    for (at, &row) in asked.iter().enumerate() {
        let (mut above, mut below, mut error) = (vec![0; width], vec![0; width], vec![0.0; width]);
        let x = &rows[row as usize];
        let rounded = Screen::round(scalar(), x, Some(63), &mut values, &mut above, &mut below, &mut error);
        assert_eq!(found_steps[at], rounded.step.to_bits(), "row {row}");
        n_narrow += rounded.narrow;
        let both = found_high[at * width..].iter().zip(&found_low[at * width..]);
        let found: Vec<i16> = both.take(width).map(|(&h, &l)| i16::from_le_bytes([l, h])).collect();
        assert_eq!(found, values, "row {row}");
        all.push((values.clone(), rounded.step));
    }
    assert!(n_narrow > 0 && (n_narrow as usize) < n, "{n_narrow} of {n} are narrow");

    let weights: Vec<i8> = (0..vocab * width).map(|_| bytes.next() as i8).collect();
    let n_groups = vocab.div_ceil(16);
    let mut lines = vec![0u8; n_groups * 16 * width];
    for (id, row) in weights.chunks(width).enumerate() {
        for (i, &weight) in row.iter().enumerate() {
            lines[id / 16 * 16 * width + i / 4 * 64 + id % 16 * 4 + i % 4] = weight as u8;
        }
    }
    let scales: Vec<f32> = bytes.floats(n_groups * 16, 1e-5);
    let (lines, on_device) = (bench.bytes(&lines), bench.floats(&scales));
    let about = bench.floats(&vec![0.0; n * vocab]);
    let arrays = [lines, on_device, high, low, steps, about].map(Arg::from);
    let blocks = [n.div_ceil(32) as u32, n_groups.div_ceil(8) as u32, 1];
    bench.launch("screen", blocks, 256, &[&arrays[..], &[width, vocab, n].map(Arg::from)].concat());
    let found = bench.read_words(about, n * vocab);
    let score = |(values, step): &(Vec<i16>, f32), id: usize| {
        let pairs = weights[id * width..(id + 1) * width].iter().zip(values);
        let sum: i32 = pairs.map(|(&weight, &value)| i32::from(weight) * i32::from(value)).sum();
        sum as f32 * (scales[id] * step)
    };
    let expected: Vec<f32> = all
        .iter()
        .flat_map(|row| (0..vocab).map(move |id| (row, id)))
        .map(|(row, id)| score(row, id))
        .collect();
    assert_eq!(found, bits(&expected));
}

/// Sums of pieces, and tokens that are near the best: none in a piece that has too many.
#[test]
fn pieces_and_what_is_near_are_those_of_the_scalar_kernels() {
    let (vocab, mut bytes) = (3000, Bytes(14));
    let rows = [0, 1, 2, 3].map(|kind| scores_of(kind, &mut bytes, vocab));
    let mut bench = Bench::new();
    let n = rows.len();
    let pieces = vocab.div_ceil(1024);
    let about = bench.floats(&rows.concat());
    let exact = bench.words((0..(n * vocab) as u32).map(|i| i ^ 0x3f80_0000));
    let named = bench.words([3, 2, 1, 0]);
    let sums = bench.words(vec![0; n * pieces * 2]);
    bench.launch("piece_sums", [n as u32, 1, 1], 256, &[about.into(), sums.into(), vocab.into()]);
    let (counts, near) = (bench.words(vec![0; n]), bench.words(vec![0; 3 * n * 64 * pieces]));
    let arrays = [about, exact, named, sums, counts, near].map(Arg::from);
    bench.launch("near", [n as u32, 1, 1], 256, &[&arrays[..], &[vocab, n].map(Arg::from)].concat());
    let (sums, counts) = (bench.read_words(sums, n * pieces * 2), bench.read_words(counts, n));
    let near = bench.read_words(near, 3 * n * 64 * pieces);
    let mut distances = [0; 4];
    for (at, row) in rows.iter().enumerate() {
        let mut padded = row.clone();
        padded.resize(vocab.next_multiple_of(16), f32::NEG_INFINITY);
        let expected = padded.chunks(1024).flat_map(|piece| {
            let largest = scalar().largest(piece);
            [largest, scalar().exp_sum(piece, largest) as f32]
        });
        let expected: Vec<f32> = expected.collect();
        assert_eq!(sums[at * pieces * 2..][..pieces * 2], bits(&expected));
        let best = scalar().largest(&padded);
        let mut expected = Vec::new();
        for (first, piece) in row.chunks(1024).enumerate() {
            let hits = |distance: f32| {
                let hits = (0u32..).zip(piece).filter(move |&(_, &score)| score >= best - distance);
                hits.map(|(i, &score)| [first as u32 * 1024 + i, score.to_bits()]).collect::<Vec<_>>()
            };
            let fits = [4.0, 2.0, 1.0].into_iter().map(hits).enumerate().find(|(_, hits)| hits.len() <= 64);
            distances[fits.as_ref().map_or(3, |&(i, _)| i)] += 1;
            expected.extend(fits.map(|(_, hits)| hits).unwrap_or_default());
        }
        let row_of_exact = 3 - at;
        let all = near.as_chunks::<3>().0.iter().skip(at).step_by(n).take(counts[at] as usize);
        let mut found: Vec<[u32; 2]> = all
            .map(|&[id, about, exact]| {
                assert_eq!(exact, ((row_of_exact * vocab) as u32 + id) ^ 0x3f80_0000);
                [id, about]
            })
            .collect();
        found.sort_unstable_by_key(|&[id, _]| id);
        assert_eq!(found, expected);
    }
    assert!(distances[0] > 0 && distances[3] > 0, "{distances:?}");
}
