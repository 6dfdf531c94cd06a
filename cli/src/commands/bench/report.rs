//! What a benchmark found: what `--json` prints, and what tables and plot are made of.

use serde::Serialize;

use ternfleet_engine::host::Throttling;
use ternfleet_proto::UsdMicro;
use ternfleet_proto::money::usd_micro_per_million_tokens;

use super::ceiling::Ceiling;
use super::spread::Spread;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    pub(super) model: Model,
    pub(super) machine: Machine,
    pub(super) memory: Memory,
    pub(super) threads: Vec<ThreadRow>,
    pub(super) batch: Vec<BatchRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) workload: Option<Run>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) kernels: Vec<KernelRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oversubscribed: Option<Oversubscribed>,
    pub(super) throttling: Throttled,
    /// False when the CPU quota held the process back meanwhile.
    pub(super) quotable: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Model {
    pub(super) path: String,
    pub(super) head: String,
    pub(super) numerics: &'static str,
    /// Read for one token of a single stream, attention not counted.
    pub(super) bytes_per_token: u64,
    pub(super) macs_per_token: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) isa: String,
    pub(super) kernel: String,
    /// `cpu`, or the GPU that computes.
    pub(super) device: String,
    pub(super) cores: usize,
    /// CPUs' worth of time that the cgroup allows; `null` without a limit.
    pub(super) quota: Option<f64>,
    /// For the thread count of the batch rows, as are the multiply-adds.
    pub(super) read_gb_s: f64,
    pub(super) mac_per_s: f64,
    pub(super) huge_pages: String,
}

/// Of the first engine, after its first tokens.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) load_s: f64,
    /// Rate at which fresh memory can be filled: what loading cannot do without.
    pub(super) first_touch_gb_s: f64,
    pub(super) weights_bytes: u64,
    /// What keys and values may come to; they take it when used.
    pub(super) kv_bytes_max: u64,
    pub(super) resident_bytes: u64,
    pub(super) anonymous_bytes: u64,
    /// Pages of the model file, which the system may drop at any time.
    pub(super) file_bytes: u64,
}

/// One rate, with what binds it.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    #[serde(flatten)]
    pub(super) tok_s: Spread,
    pub(super) ceiling: Ceiling,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum ThreadRow {
    Measured(Box<Stream>),
    Refused { threads: usize, refused: String },
}

/// A single sequence.
#[derive(Debug, Serialize)]
pub(super) struct Stream {
    pub(super) threads: usize,
    pub(super) prompt_tok_s: f64,
    pub(super) decode_tok_s: f64,
    pub(super) prompt: Figure,
    pub(super) decode: Figure,
    pub(super) read_gb_s: Spread,
    pub(super) mac_per_s: Spread,
    /// One meeting of all threads.
    pub(super) barrier_us: Spread,
    pub(super) load_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usd_micro_per_million_tokens: Option<UsdMicro>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum BatchRow {
    Measured(Box<Batch>),
    Refused {
        batch: usize,
        prompt: usize,
        #[serde(rename = "gen")]
        generated: usize,
        refused: String,
    },
}

/// Several sequences at once.
#[derive(Debug, Serialize)]
pub(super) struct Batch {
    pub(super) batch: usize,
    pub(super) prompt: usize,
    #[serde(rename = "gen")]
    pub(super) generated: usize,
    /// Decoding, all sequences together.
    pub(super) tok_s: f64,
    pub(super) decode: Figure,
    pub(super) tok_s_a_stream: f64,
    /// From handing all sequences over to a sequence's first token; median and slowest.
    pub(super) first_token_ms_p50: f64,
    pub(super) first_token_ms_max: f64,
    /// Between a sequence's tokens, the time in which others' prompts are computed included.
    pub(super) between_tokens_ms_p50: f64,
    pub(super) between_tokens_ms_p99: f64,
    /// Where a decoding step's time goes, in percent.
    pub(super) shares: Shares,
    /// The same batch with tokens drawn otherwise than greedily.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) sampled: Vec<Sampled>,
    /// Attention of one step.
    pub(super) attention_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usd_micro_per_million_tokens: Option<UsdMicro>,
}

#[derive(Debug, Serialize)]
pub(super) struct Sampled {
    pub(super) draws: &'static str,
    pub(super) tok_s: Spread,
    /// Each run against the greedy one before it.
    pub(super) percent_of_greedy: Spread,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Shares {
    pub(super) product: f64,
    pub(super) attention: f64,
    pub(super) head: f64,
    pub(super) norm: f64,
    /// For other threads, at the barriers between operations.
    pub(super) waiting: f64,
    pub(super) other: f64,
}

/// What came of a workload.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) workload: String,
    pub(super) requests: usize,
    /// Sequences at once, at most.
    pub(super) slots: usize,
    pub(super) threads: usize,
    /// Of all steps; loading is not in it.
    pub(super) seconds: f64,
    pub(super) prompt_tokens: usize,
    pub(super) output_tokens: usize,
    /// Tokens of prompts and outputs over all seconds, and each of them over all seconds.
    pub(super) tok_s: f64,
    pub(super) prompt_tok_s: f64,
    pub(super) output_tok_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usd_micro_per_million_tokens: Option<UsdMicro>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usd_micro_per_million_output_tokens: Option<UsdMicro>,
    pub(super) steps: usize,
    pub(super) sequences_a_step: f64,
    pub(super) step_ms: Spread,
    pub(super) step_ms_p99: f64,
    pub(super) shares: Shares,
    pub(super) read_gb_s: f64,
    pub(super) mac_per_s: f64,
    /// Multiply-adds of prompts, outputs, attention and head together, of what the machine could have done in that time.
    pub(super) percent_of_mac_rate: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct KernelRow {
    pub(super) isa: String,
    pub(super) kernel: String,
    pub(super) threads: usize,
    pub(super) prompt_tok_s: Spread,
    pub(super) decode_tok_s: Spread,
}

/// Twice as many threads as can run at once.
#[derive(Debug, Serialize)]
pub(super) struct Oversubscribed {
    pub(super) threads: usize,
    pub(super) decode_tok_s: Spread,
    /// What it loses against as many as can.
    pub(super) cost_percent: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Throttled {
    /// Whether the cgroup counts it at all.
    pub(super) counted: bool,
    pub(super) periods: u64,
    pub(super) throttled_us: u64,
}

impl Throttled {
    pub(super) fn between(before: Option<Throttling>, after: Option<Throttling>) -> Throttled {
        match (before, after) {
            (Some(before), Some(after)) => Throttled {
                counted: true,
                periods: after.periods.saturating_sub(before.periods),
                throttled_us: after.throttled_us.saturating_sub(before.throttled_us),
            },
            _ => Throttled { counted: false, periods: 0, throttled_us: 0 },
        }
    }
}

/// What a million tokens cost at a price, where one is given.
pub(super) fn price(usd_per_hour: Option<f64>, tok_s: f64) -> Option<UsdMicro> {
    usd_micro_per_million_tokens(UsdMicro::from_dollars(usd_per_hour?), tok_s)
}
