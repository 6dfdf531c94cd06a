//! Which ternary kernel is the fastest here: measured on the model's own shape, once, and remembered in a file.
//!
//! Called by `Engine::load` for [`KernelChoice::Auto`]. All candidates compute the same bits, so nothing but speed hangs on
//! the choice, and a cache file that cannot be read or written costs a second, no more. The file is `kernels.json` in
//! `$TERNFLEET_CACHE`, or else in `ternfleet` of the user's cache folder; it may be deleted at any time.
#![allow(unsafe_code)] // Members of the pool write, then read, disjoint parts of one region.

use crate::KernelChoice;
use crate::gguf::Hyper;
use crate::gguf::architecture::Rounding;
use crate::kernel::{Acts, Epilogue, Kernels, Layout, Quantised, ROWS, Scratch, Then};
use crate::memory::Region;
use crate::pool::Pool;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The environment variable that names the folder of the cache file.
pub const CACHE_VARIABLE: &str = "TERNFLEET_CACHE";

/// Models whose two-bit weights take less than this fit into caches, where multiplying wins: not worth a measurement.
const SMALL_BYTES: u64 = 64 << 20;
/// Bytes of weights that a measurement runs over: more than private caches hold.
const SAMPLE_BYTES: usize = 96 << 20;
/// Tokens of a product at most: from there on nothing changes any more.
const MOST_TOKENS: usize = 16;
const ROUNDS: usize = 5;
/// The tables must be so much faster: where the two are near each other, another batch than the measured one suits products better.
const CLEARLY: f64 = 1.1;
/// A measurement ends after this, whatever the number of rounds.
const PATIENCE: Duration = Duration::from_millis(800);

const CANDIDATES: [(KernelChoice, Layout); 2] =
    [(KernelChoice::I2s, Layout::I2s), (KernelChoice::Tl2, Layout::Tl2)];

/// The layout for `choice`, on `cpu_model`, for steps of up to `n_tokens` tokens.
pub(crate) fn layout(
    choice: KernelChoice,
    hyper: &Hyper,
    n_tokens: usize,
    cpu_model: &str,
    kernels: Kernels,
    pool: &mut Pool,
) -> Layout {
    match choice {
        _ if hyper.graph.rounding == Rounding::Groups => return Layout::Grouped,
        KernelChoice::I2s => return Layout::I2s,
        KernelChoice::Tl2 => return Layout::Tl2,
        KernelChoice::Auto if hyper.n_ternary_weights() / 4 < SMALL_BYTES => return Layout::I2s,
        KernelChoice::Auto => {}
    }
    let n_tokens = n_tokens.min(MOST_TOKENS);
    let file = cache_file();
    let key = format!(
        "{cpu_model}, {}, {} threads, best rounds of prompts and {n_tokens} tokens, {} layers of {} and {}",
        kernels.isa(),
        pool.count(),
        hyper.n_layers,
        hyper.hidden,
        hyper.ffn
    );
    if let Some(layout) = file.as_deref().and_then(|file| recall(file, &key)) {
        return layout;
    }
    let Ok(rates) = measure_both(hyper, n_tokens, kernels, pool) else { return Layout::I2s };
    let best = if rates[1] > CLEARLY * rates[0] { CANDIDATES[1] } else { CANDIDATES[0] };
    tracing::info!(
        kernel = %best.0, i2s_gmac_s = rates[0] / 1e9, tl2_gmac_s = rates[1] / 1e9, n_tokens, "kernels \
                                                                                               measured"
    );
    if let Some(file) = file
        && let Err(error) = remember(&file, &key, best.0, rates)
    {
        tracing::warn!(%error, file = %file.display(), "the measured kernel could not be stored");
    }
    best.1
}

/// What each candidate makes of a prompt token for each generated one: a kernel that wins by a tenth with a single token and
/// takes five times as long for prompts must not be chosen.
fn measure_both(
    hyper: &Hyper,
    n_tokens: usize,
    kernels: Kernels,
    pool: &mut Pool,
) -> std::io::Result<[f64; 2]> {
    let generating = measure(hyper, n_tokens, kernels, pool)?;
    if n_tokens == MOST_TOKENS {
        return Ok(generating);
    }
    let prompt = measure(hyper, MOST_TOKENS, kernels, pool)?;
    Ok(std::array::from_fn(|i| 2.0 / (1.0 / generating[i] + 1.0 / prompt[i])))
}

/// Multiply-adds a second of each candidate, all members together: the best of rounds in turn. Other work on the machine only
/// makes a round longer, and what is found is kept.
fn measure(hyper: &Hyper, n_tokens: usize, kernels: Kernels, pool: &mut Pool) -> std::io::Result<[f64; 2]> {
    let width = hyper.hidden;
    let pair_bytes = CANDIDATES.map(|(_, layout)| 2 * layout.group_bytes(width));
    // The same number of pairs for each, as the model has.
    let n_pairs = SAMPLE_BYTES / pair_bytes[0];
    let regions = [Region::new(n_pairs * pair_bytes[0], true)?, Region::new(n_pairs * pair_bytes[1], true)?];
    pool.run(&|member| {
        for (region, pair_bytes) in regions.iter().zip(pair_bytes) {
            let pairs = member.share(n_pairs);
            // SAFETY: members' shares are disjoint. 0x55 is a weight of zero in one layout and an index in the other.
            unsafe { region.write::<u8>(pairs.start * pair_bytes..pairs.end * pair_bytes) }.fill(0x55);
        }
    });
    let rows: Vec<i8> = (0..n_tokens * width).map(|i| (i * 37 % 255) as u8 as i8).collect();
    let activations = vec![Quantised { scale: 1.0, step: 1.0, sum: 0 }; n_tokens];
    let mut times: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    let start = Instant::now();
    while times[0].len() < ROUNDS && start.elapsed() < PATIENCE || times[0].is_empty() {
        for (i, (_, layout)) in CANDIDATES.into_iter().enumerate() {
            let kernels = kernels.with_layout(layout);
            let table_bytes = layout.table_bytes(width);
            let begin = Instant::now();
            pool.run(&|member| {
                // Tables are a part of the work: each member makes its own, as for a single token.
                let mut tables = vec![0u8; n_tokens * table_bytes];
                if table_bytes > 0 {
                    for (tables, row) in tables.chunks_exact_mut(table_bytes).zip(rows.chunks_exact(width)) {
                        kernels.tabulate(row, tables);
                    }
                }
                let acts = Acts { width, rows: &rows, tables: &tables };
                let mut scratch = Scratch::new();
                let mut out = vec![0f32; n_tokens * 2 * ROWS];
                for pair in member.share(n_pairs) {
                    // SAFETY: nothing writes into the region any more.
                    let groups =
                        unsafe { regions[i].read::<u8>(pair * pair_bytes[i]..(pair + 1) * pair_bytes[i]) };
                    let epilogue = Epilogue {
                        activations: &activations,
                        n_tokens,
                        weight_scales: &[1.0; 2 * ROWS],
                        n_groups: 2,
                        out: out.as_mut_ptr(),
                        stride: 2 * ROWS,
                        then: Then::Store,
                    };
                    // SAFETY: `out` holds two groups of rows a token, and is this member's own.
                    unsafe { kernels.product(groups, &acts, &epilogue, &mut scratch) };
                }
            });
            times[i].push(begin.elapsed().as_secs_f64());
        }
    }
    let work = (n_pairs * 2 * ROWS * width * n_tokens) as f64;
    Ok(times.map(|times| work / times.into_iter().fold(f64::INFINITY, f64::min)))
}

fn cache_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = folder(CACHE_VARIABLE)
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("ternfleet")))
        .or_else(|| Some(folder("HOME")?.join(".cache/ternfleet")))?;
    Some(folder.join("kernels.json"))
}

type Entries = serde_json::Map<String, serde_json::Value>;

fn read(file: &Path) -> Option<Entries> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn recall(file: &Path, key: &str) -> Option<Layout> {
    let choice: KernelChoice = read(file)?.get(key)?.get("kernel")?.as_str()?.parse().ok()?;
    CANDIDATES.into_iter().find(|&(candidate, _)| candidate == choice).map(|(_, layout)| layout)
}

fn remember(file: &Path, key: &str, choice: KernelChoice, rates: [f64; 2]) -> std::io::Result<()> {
    let mut entries = read(file).unwrap_or_default();
    let rounded = rates.map(|rate| (rate / 1e8).round() / 10.0);
    let entry =
        serde_json::json!({"kernel": choice.to_string(), "i2s_gmac_s": rounded[0], "tl2_gmac_s": rounded[1]});
    entries.insert(key.to_owned(), entry);
    std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    // Written aside and renamed, so that another process never reads half of it.
    let part = file.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&part, serde_json::to_vec_pretty(&entries)?)?;
    std::fs::rename(&part, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn what_was_measured_is_remembered_beside_what_stood_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/kernels.json");
        assert_eq!(recall(&file, "here"), None);
        remember(&file, "here", KernelChoice::Tl2, [1e9, 2e9]).unwrap();
        remember(&file, "there", KernelChoice::I2s, [2e9, 1e9]).unwrap();
        assert_eq!(recall(&file, "here"), Some(Layout::Tl2));
        assert_eq!(recall(&file, "there"), Some(Layout::I2s));
        std::fs::write(&file, "not json").unwrap();
        assert_eq!(recall(&file, "here"), None);
    }

    #[test]
    fn a_choice_that_was_made_is_not_measured() {
        let mut pool = Pool::new(1, &[]).unwrap();
        let kernels = Kernels::new(Isa::Scalar).unwrap();
        let hyper = crate::kv::tests::hyper();
        let mut layout = |choice| layout(choice, &hyper, 1, "a CPU", kernels, &mut pool);
        assert_eq!(layout(KernelChoice::Tl2), Layout::Tl2);
        assert_eq!(layout(KernelChoice::I2s), Layout::I2s);
        assert_eq!(layout(KernelChoice::Auto), Layout::I2s);
    }
}
