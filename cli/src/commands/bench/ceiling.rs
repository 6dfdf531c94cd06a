//! What the machine allows at best: bytes over its read rate or multiply-adds over its arithmetic, whichever takes longer.

use serde::Serialize;

use ternfleet_engine::Info;

use super::spread::Spread;

/// What computing some tokens together takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) tokens: f64,
    pub(super) bytes: f64,
    pub(super) macs: f64,
}

/// The machine's rates at the time of one run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    pub(super) read_gb_s: f64,
    pub(super) mac_per_s: f64,
}

impl Rates {
    /// What a run had on average whose beginning and end saw these rates.
    pub(super) fn mean(self, other: Rates) -> Rates {
        Rates {
            read_gb_s: (self.read_gb_s + other.read_gb_s) / 2.0,
            mac_per_s: (self.mac_per_s + other.mac_per_s) / 2.0,
        }
    }
}

/// How near to the ceiling that binds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Ceiling {
    /// `memory` or `arithmetic`.
    pub(super) binds: &'static str,
    pub(super) tok_s: f64,
    /// Median of the runs' own ratios, each to the rates measured beside it.
    pub(super) percent: f64,
}

impl Cost {
    /// One step of `batch` sequences that decode at `context` positions: weights once, keys and values of each.
    pub(super) fn of_decoding(info: &Info, batch: usize, context: usize) -> Cost {
        let (batch, context) = (batch as f64, context as f64);
        let kv_bytes_a_position = info.kv_bytes as f64 / (info.kv_pages * info.page_tokens) as f64;
        Cost {
            tokens: batch,
            bytes: info.bytes_per_token as f64 + batch * context * kv_bytes_a_position,
            macs: batch * (info.macs_per_token as f64 + context * attention_macs_a_position(info)),
        }
    }

    /// A prompt: no output head but for its last token, and half of its positions to attend to on average.
    pub(super) fn of_prompt(info: &Info, tokens: usize, chunk: usize) -> Cost {
        let (n, steps) = (tokens as f64, tokens.div_ceil(chunk) as f64);
        let ternary_macs = info.hyper.n_ternary_weights() as f64;
        let head_macs = info.macs_per_token as f64 - ternary_macs;
        Cost {
            tokens: n,
            // Two bits a weight.
            bytes: steps * ternary_macs / 4.0,
            macs: n * (ternary_macs + n / 2.0 * attention_macs_a_position(info)) + head_macs,
        }
    }

    fn tok_s(&self, rates: Rates) -> (&'static str, f64) {
        let (read_s, compute_s) = (self.bytes / (rates.read_gb_s * 1e9), self.macs / rates.mac_per_s);
        if read_s >= compute_s {
            ("memory", self.tokens / read_s)
        } else {
            ("arithmetic", self.tokens / compute_s)
        }
    }

    /// Compares runs with the rates that were measured beside each.
    pub(super) fn compare(&self, tok_s: &[f64], rates: &[Rates]) -> Ceiling {
        let ratios: Vec<f64> =
            tok_s.iter().zip(rates).map(|(rate, &machine)| 100.0 * rate / self.tok_s(machine).1).collect();
        let (binds, ceiling) = self.tok_s(medians(rates));
        Ceiling { binds, tok_s: ceiling, percent: Spread::of(&ratios).median }
    }
}

/// Scores and weighted values of one position, all layers and heads.
fn attention_macs_a_position(info: &Info) -> f64 {
    (2 * info.hyper.n_layers * info.hyper.n_heads * info.hyper.head_dim) as f64
}

pub(super) fn medians(rates: &[Rates]) -> Rates {
    let of = |rate: fn(&Rates) -> f64| Spread::of(&rates.iter().map(rate).collect::<Vec<_>>()).median;
    Rates { read_gb_s: of(|rates| rates.read_gb_s), mac_per_s: of(|rates| rates.mac_per_s) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_memory_and_arithmetic_binds() {
        // The official model at 30 GB/s and 870 G multiply-adds: one stream is bound by memory, 32 by arithmetic.
        let rates = Rates { read_gb_s: 30.0, mac_per_s: 870e9 };
        let one = Cost { tokens: 1.0, bytes: 851e6, macs: 2.412e9 };
        let batch = Cost { tokens: 32.0, bytes: 851e6, macs: 32.0 * 2.412e9 };
        let (binds, tok_s) = one.tok_s(rates);
        assert!(binds == "memory" && (tok_s - 35.25).abs() < 0.01, "{tok_s}");
        let (binds, tok_s) = batch.tok_s(rates);
        assert!(binds == "arithmetic" && (tok_s - 360.7).abs() < 0.1, "{tok_s}");
        assert!((one.compare(&[30.0, 35.25, 20.0], &[rates; 3]).percent - 85.1).abs() < 0.1);
    }
}
