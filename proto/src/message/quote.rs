//! What a batch would cost and when it would be done: the question, the answer, and what is kept of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{TenantId, TimeMs};
use crate::message::Prompt;
use crate::money::UsdMicro;
use crate::openai::Endpoint;

/// Lines of a file that are counted at most; a question stays well under the server's largest message.
pub const QUOTE_SAMPLE_MAX: usize = 1_000;

/// `tf.api.quote`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuoteAsk {
    pub tenant: TenantId,
    pub work: WorkSample,
    #[serde(default)]
    pub deadline: Option<TimeMs>,
    #[serde(default)]
    pub budget_usd_micro: Option<UsdMicro>,
    /// Only pods of these classes; all when empty.
    #[serde(default)]
    pub classes: Vec<String>,
}

/// How much work a file holds, as some of its lines tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkSample {
    /// Lines with a request that can be run, in the whole file.
    pub lines: u64,
    /// Up to [`QUOTE_SAMPLE_MAX`] of them, spread over the file.
    pub sample: Vec<LineSize>,
    /// How many lines of the file name which model; lines that name none are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, u64>,
}

/// One line of the sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineSize {
    /// Counted with the model's own tokenizer.
    pub prompt_tokens: u32,
    /// The line's limit; `None` lets the context decide.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// What it asks for: lengths of outputs are learned apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Digest of what it asks for, if its answer may be that of another line: what is known already costs nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<u128>,
}

/// The limiting factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binds {
    Deadline,
    Budget,
    /// All pods that there are together are too slow, or none may run it.
    Capacity,
    /// The fleet's own limits (dollars per hour or day, number of pods) keep further pods out.
    FleetLimit,
}

impl Binds {
    pub fn as_str(self) -> &'static str {
        match self {
            Binds::Deadline => "deadline",
            Binds::Budget => "budget",
            Binds::Capacity => "capacity",
            Binds::FleetLimit => "fleet_limit",
        }
    }
}

/// Pods of one class that the batch would use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodsUsed {
    pub class: String,
    pub pods: u32,
    /// Of these, still to be rented.
    pub started: u32,
    /// When the first of them can begin.
    pub from_ms: TimeMs,
    /// When the last of them is needed no longer.
    pub until_ms: TimeMs,
}

/// What tokens cost on pods of a class that could run the batch, whether they are used or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCost {
    pub class: String,
    /// On its cheapest pod, without its start.
    pub usd_micro_per_million_tokens: UsdMicro,
}

/// Another choice that the caller could make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// The deadline to ask for; none means whenever it is cheapest.
    pub deadline_ms: Option<TimeMs>,
    pub cost_usd_micro: UsdMicro,
    pub finish_p95_ms: TimeMs,
}

/// The answer to [`QuoteAsk`]. Money is in micro-dollars, times in milliseconds since 1970; a time that never comes is
/// far in the future.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Quote {
    /// Work in generated tokens, prompts weighed by the time they take, with its interval of 95 %.
    pub work_tokens: f64,
    pub work_tokens_low: f64,
    pub work_tokens_high: f64,
    /// Lines that need no work, as far as the sample tells: their answers are known, or are those of other lines.
    #[serde(default)]
    pub cached_lines: u64,
    /// False if a limit cannot be met.
    pub kept: bool,
    /// The limit; none when nothing binds.
    pub binds: Option<Binds>,
    /// In words, with what to do about it.
    pub explanation: String,
    /// Everything that the batch brings about: what it is billed, and the starting and ending of pods that are rented
    /// for it.
    pub cost_p50_usd_micro: UsdMicro,
    pub cost_p95_usd_micro: UsdMicro,
    /// Of that, what the batch itself is billed: the time of the engines that its jobs run on.
    #[serde(default)]
    pub bill_p50_usd_micro: Option<UsdMicro>,
    #[serde(default)]
    pub bill_p95_usd_micro: Option<UsdMicro>,
    pub finish_p50_ms: TimeMs,
    pub finish_p95_ms: TimeMs,
    /// No plan whatever is cheaper than this, a boot for each pod included.
    pub bound_usd_micro: UsdMicro,
    pub pods: Vec<PodsUsed>,
    /// All classes that could run it, the cheapest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassCost>,
    /// For less money, later.
    pub cheaper: Option<Alternative>,
    /// Sooner, for more money.
    pub faster: Option<Alternative>,
}

/// What was quoted when a batch was accepted, kept with it to be compared with the bill.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Promise {
    pub quoted_at: TimeMs,
    pub work_tokens: f64,
    pub work_tokens_sd: f64,
    pub cost_p50_usd_micro: UsdMicro,
    pub cost_p95_usd_micro: UsdMicro,
    /// As in [`Quote::bill_p50_usd_micro`].
    #[serde(default)]
    pub bill_p50_usd_micro: Option<UsdMicro>,
    #[serde(default)]
    pub bill_p95_usd_micro: Option<UsdMicro>,
    /// By what the bill was corrected, from earlier quotes and bills.
    #[serde(default = "uncorrected")]
    pub bill_factor: f64,
    pub finish_p50_ms: TimeMs,
    pub finish_p95_ms: TimeMs,
    /// The limit that a batch accepted at risk may not meet.
    #[serde(default)]
    pub binds: Option<Binds>,
    /// As in [`WorkSample::models`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, u64>,
}

fn uncorrected() -> f64 {
    1.0
}

/// Verb `count`: how many tokens these prompts have, by the tokenizer of some worker that is up. Answered with a
/// `Vec<Option<u32>>`; `None` for a prompt that would be refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CountTokens {
    pub tenant: TenantId,
    pub prompts: Vec<Prompt>,
    /// The model whose tokenizer is wanted; any model's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// `tf.fleet.count.<worker>`: the same, passed on to that worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CountAsk {
    pub prompts: Vec<Prompt>,
}
