//! A job on its way: the work message, its checkpoint, its result.

use serde::{Deserialize, Serialize};

use super::tools::{Call, CallPiece, Conversation, PastCall, Tools};
use crate::digest::Digest;
use crate::id::{Attempt, Epoch, JobKey, Lane, LeaderRevision, TenantId, TimeMs, WorkerId};
use crate::openai::Endpoint;
use crate::tag::{AssignmentTag, CheckpointKey};

/// What a worker is asked to do. Subject `tf.work.<shard>.<worker>.<lane>`, message id `<job>.<epoch>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    pub job: JobKey,
    pub tenant: TenantId,
    pub lane: Lane,
    pub epoch: Epoch,
    /// Attempts that had begun before this assignment.
    pub attempts_before: Attempt,
    pub leader: LeaderRevision,
    pub tag: AssignmentTag,
    /// Seals the job's checkpoints.
    #[serde(default)]
    pub checkpoint_key: CheckpointKey,
    /// Digest of the model that must run it (`Heartbeat::model_digest`).
    pub model_digest: String,
    /// Numerics id that must run it (`Heartbeat::numerics`).
    pub numerics: String,
    /// The work is void after this; it never runs then.
    pub deadline: Option<TimeMs>,
    /// What was left of that time at the assignment: a worker whose wall clock is wrong drops nothing that may run.
    #[serde(default)]
    pub left_ms: Option<u64>,
    /// Tokens the coordinator estimates for this job, prompt and output: sizes windows, pages and quotas.
    pub tokens_estimate: u32,
    pub line: Line,
    pub input: Input,
    /// W3C trace context, when the caller is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What the output line repeats of its input line; a worker returns it unread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `line-N` when the caller gave none, `None` when the line could not be parsed. N counts from 1.
    pub custom_id: Option<String>,
    pub endpoint: Endpoint,
    pub model: Option<String>,
    /// What a response repeats of its request, as the text of a JSON object: schemas may nest deeper than messages.
    /// Empty for other endpoints and for single requests.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub settings: String,
}

impl Line {
    /// A line that repeats no settings.
    pub fn new(custom_id: Option<String>, endpoint: Endpoint, model: Option<String>) -> Line {
        Line { custom_id, endpoint, model, settings: String::new() }
    }
}

/// The request itself, or where it lies when it is too large for a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    Inline(Generation),
    /// Name of an object in the tenant's bucket that holds an encoded [`Generation`].
    Object(String),
}

/// One generation, parsed and checked; the worker turns it into an engine request in one function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    pub prompt: Prompt,
    /// Most tokens to generate; `None` lets the context decide.
    pub max_tokens: Option<u32>,
    pub sampling: Sampling,
    /// Always present: the caller's, or the one of [`JobKey::seed`].
    pub seed: u64,
    /// Texts that end the output and are not part of it; at most 4.
    #[serde(default)]
    pub stop: Vec<String>,
    /// How many alternatives to report for each token; `None` reports none.
    #[serde(default)]
    pub logprobs: Option<u8>,
    #[serde(default)]
    pub echo: bool,
    /// Stream tokens to `tf.token.<batch>.<index>` as they come.
    #[serde(default)]
    pub stream: bool,
    /// What the output must look like; checked when the request was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Constraint>,
    /// Report the ids of prompt and output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub token_ids: bool,
    /// Only an engine that gives the same answer each time may run it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deterministic: bool,
    /// It is run, whether its answer is known or not, and its answer is not remembered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
}

/// A language that the output must belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// JSON that a schema takes. The schema as text, its keys in the caller's order, which is that of the answer.
    JsonSchema(String),
    /// Any JSON object.
    JsonObject,
    /// A whole match of a regular expression.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in Lark's syntax.
    Lark(String),
}

impl Generation {
    /// Whether the output must belong to a language, so that its arithmetic is that of constraints too.
    pub fn is_constrained(&self) -> bool {
        self.constraint.is_some() || self.prompt.tools().is_some()
    }
}

impl Default for Generation {
    /// An empty prompt and OpenAI's defaults.
    fn default() -> Self {
        Self {
            prompt: Prompt::Text(String::new()),
            max_tokens: None,
            sampling: Sampling::default(),
            seed: 0,
            stop: Vec::new(),
            logprobs: None,
            echo: false,
            stream: false,
            constraint: None,
            token_ids: false,
            deterministic: false,
            no_cache: false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Chat(Vec<ChatMessage>),
    /// A chat with tools or calls. A variant of its own, so that a worker that knows neither refuses the job by name.
    Conversation(Conversation),
    /// More than one choice. A variant and no fields beside the others: a worker that does not know it refuses the job
    /// by name, instead of giving one choice for several.
    Several(Several),
}

/// Prompts that are not [`Prompt::Several`] themselves, and how many answers each gets. Choices are numbered prompt by
/// prompt, as OpenAI numbers them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Several {
    pub prompts: Vec<Prompt>,
    pub n: u32,
}

impl Prompt {
    /// The prompts, each of which gets [`Prompt::n`] answers.
    pub fn each(&self) -> &[Prompt] {
        match self {
            Prompt::Several(several) => &several.prompts,
            one => std::slice::from_ref(one),
        }
    }

    /// Answers that each prompt gets.
    pub fn n(&self) -> u32 {
        match self {
            Prompt::Several(several) => several.n,
            _ => 1,
        }
    }

    /// What may be called, where something may.
    pub fn tools(&self) -> Option<&Tools> {
        self.each().iter().find_map(|prompt| match prompt {
            Prompt::Conversation(conversation) => conversation.tools.as_ref(),
            _ => None,
        })
    }

    /// Choices in all.
    pub fn choices(&self) -> u32 {
        self.each().len() as u32 * self.n()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
    /// Calls that the assistant made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<PastCall>,
    /// The call that a tool answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
}

/// Sampling parameters in OpenAI's terms, with top-k and min-p as most servers add them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    pub temperature: f32,
    pub top_p: f32,
    /// 0 turns it off.
    pub top_k: u32,
    pub min_p: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    #[serde(default)]
    pub logit_bias: Vec<(u32, f32)>,
    /// The parameters that the request does not set: the worker uses the model's own defaults, if it has any. Nothing is
    /// open in messages of coordinators up to 0.1.0.
    #[serde(default, skip_serializing_if = "OpenSampling::is_empty")]
    pub open: OpenSampling,
}

/// The sampling parameters that a request does not set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenSampling {
    pub temperature: bool,
    pub top_p: bool,
    pub top_k: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub frequency_penalty: bool,
}

impl OpenSampling {
    fn is_empty(&self) -> bool {
        *self == OpenSampling::default()
    }
}

impl Default for Sampling {
    /// OpenAI's defaults: temperature 1, nothing cut off.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            open: OpenSampling::default(),
        }
    }
}

/// Where a generation stood. Subject `tf.ckpt.<batch>.<index>`, written by compare-and-set: the zeroth is the claim.
/// [`CheckpointKey::seal`] encodes it; without a seal it counts for nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub job: JobKey,
    pub epoch: Epoch,
    /// Of the assignment, as it came with the work message: proves epoch and owner to the coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<AssignmentTag>,
    /// Which attempt this is: one more than any claim before it.
    pub attempt: Attempt,
    pub owner: WorkerId,
    /// The owner's host, so that attempts on two hosts can be told from two on one.
    pub host: String,
    pub leader: LeaderRevision,
    pub model_digest: String,
    pub numerics: String,
    /// Ids generated so far; the sampler's position is their count, since draws are keyed by position.
    pub generated: Vec<u32>,
    /// One entry for each of `generated` when the job reports log-probabilities, empty otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    /// Which choice each of `generated` belongs to; empty for a job with one choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<u16>,
    /// Who generated the output, where the owner has not computed it again yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated_by: Option<Author>,
    /// The text of `generated`, from a worker that has no tokenizer of its own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// True on the claim itself, before a token ran.
    pub claim: bool,
    /// Owner gave the job back in good order (drain, revocation); the attempt does not count as a fault.
    #[serde(default)]
    pub released: bool,
    pub at: TimeMs,
}

/// Who generated kept output, as a checkpoint says. It is sealed with its job's key, which every worker has that the job was
/// ever assigned to: it may be another one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    pub worker: WorkerId,
    pub host: String,
}

/// The answer to one job. Subject `tf.result.<tenant>.<batch>.<index>.<worker>`, expected subject sequence 0.
///
/// Lines that never run (unparsable, expired, cancelled, poisoned) are answered by the coordinator itself, under the
/// worker name `coordinator` and a tag it signs for that name, so that RESULTS holds every answer there is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    pub job: JobKey,
    pub tenant: TenantId,
    pub epoch: Epoch,
    pub attempt: Attempt,
    pub worker: WorkerId,
    pub tag: AssignmentTag,
    pub line: Line,
    pub outcome: Outcome,
    pub usage: Usage,
    pub timing: Timing,
    /// The engine may answer the same request otherwise the next time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nondeterministic: bool,
    pub finished_at: TimeMs,
    /// W3C trace context of the attempt that made it, when the caller is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Whose output in the job's checkpoint was not what this worker computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Author>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Text(Generated),
    Failed(Failure),
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    pub text: String,
    pub finish: Finish,
    /// First eight bytes of BLAKE3 over the generated ids: two runs of one job must agree. The first choice's stands for
    /// all of them.
    pub ids_digest: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    /// Of the prompt's tokens, where the job asks for `echo` and log-probabilities. The first one has nothing before it,
    /// and its log-probability means nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Calls that come after the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<Call>,
    /// The generated ids and those of the prompt, where the job asks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt_ids: Vec<u32>,
    /// The choices after the first; they have none themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<Generated>,
    /// Of all choices; the first one has it. None from engines whose answers are not the same bits everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Box<Evidence>>,
    /// The job that was answered with it first: this one asks for the same, and was not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<JobKey>,
}

/// What an answer is a function of, and what it is: by it anybody can run a line again and compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// [`crate::message::Heartbeat::model_digest`] of the worker.
    pub model_digest: String,
    pub numerics: String,
    /// Of model, numerics, the prompt's ids, sampling, seed, limits and constraint.
    pub request: Digest,
    /// None where no draw depends on it: the likeliest token is always taken.
    pub seed: Option<u64>,
    /// [`Generated::answer_digest`] of the ids.
    pub answer: Digest,
}

impl Generated {
    /// The digest that [`Generated::ids_digest`] holds of one choice: the first eight bytes of BLAKE3 over the ids,
    /// little-endian both.
    pub fn digest_of(ids: &[u32]) -> u64 {
        Self::answer_digest(std::slice::from_ref(&ids)).short()
    }

    /// BLAKE3 of the ids of one choice, little-endian; of several, that of the number of each choice's ids and the ids.
    pub fn answer_digest<T: AsRef<[u32]>>(choices: &[T]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for ids in choices.iter().map(AsRef::as_ref) {
            if choices.len() != 1 {
                hasher.update(&(ids.len() as u32).to_le_bytes());
            }
            ids.iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// This choice and those after it.
    pub fn choices(&self) -> impl Iterator<Item = &Generated> {
        std::iter::once(self).chain(&self.more)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    pub id: u32,
    pub text: String,
    pub logprob: f32,
    pub top: Vec<(u32, String, f32)>,
    /// The token's bytes, where they are not those of `text`: part of a character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
    /// The same for entries of `top`, by their place in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_bytes: Vec<(u32, Vec<u8>)>,
}

impl TokenLogprobs {
    /// The token's own bytes.
    pub fn own_bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or(self.text.as_bytes())
    }
}

/// Why an output ended, in OpenAI's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    #[default]
    Stop,
    Length,
}

/// A failure that crosses the wire: a closed code for programs, one sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub code: FailureCode,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The line is not a request: broken JSON, a missing or unknown field, a value out of range.
    InvalidRequest,
    /// Prompt and limit do not fit the model's context.
    PromptTooLong,
    /// `model` names one that this fleet does not serve.
    ModelNotFound,
    /// The completion window or deadline passed first.
    BatchExpired,
    /// Somebody cancelled the batch.
    BatchCancelled,
    /// Every allowed attempt failed; the job is in the dead-letter stream.
    Poison,
    /// The model cannot continue within the constraint: no token that it allows leads further, or finding one is too much work.
    ConstraintDeadEnd,
    /// The model's scores for this job are no numbers (weights that overflow), and the worker's canary says that its machine
    /// computes as ever: so it would be anywhere.
    NotFinite,
    /// The worker could not continue; another one may. A result with this code commits nothing: the coordinator counts a
    /// failed attempt and hands the job to another worker.
    WorkerFault,
    /// The worker's machine cannot be relied on: it computes something else than it did, or what it runs from is gone. Commits
    /// nothing either; the job is not to blame and goes elsewhere, and the host gets no more work.
    HostFault,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    /// Generated again because an earlier attempt's were lost.
    #[serde(default)]
    pub repeated_tokens: u32,
    /// Prompt and kept output that had to be prefilled again by a later attempt.
    #[serde(default)]
    pub reprefilled_tokens: u32,
    #[serde(default)]
    pub cached_tokens: u32,
    /// Time of its engine that the job took in this stay, in microseconds: its part of the steps that it shared with
    /// others. It is billed by this. Zero from a worker that does not count it.
    #[serde(default)]
    pub engine_us: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    pub queued_ms: u32,
    pub first_token_ms: u32,
    pub total_ms: u32,
}

/// Tokens as they come, on the core subject `tf.token.<batch>.<index>`. `position` counts generated tokens, so that
/// a resumed stream shows no gap and no repeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenChunk {
    pub job: JobKey,
    pub epoch: Epoch,
    /// Generated tokens before this chunk.
    pub position: u32,
    /// Tokens in this chunk.
    pub count: u32,
    pub text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    /// Which of several choices it belongs to; `position` counts that one's tokens.
    #[serde(default)]
    pub choice: u32,
    /// As [`Generated::prompt_logprobs`], with the first tokens of a choice. An echo precedes their text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// The model that answers, with the first tokens, where the job named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Parts of calls, after the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<CallPiece>,
    /// Where the job asks for ids: those whose text is complete with this chunk; with the first tokens of a choice also
    /// those of the prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt_ids: Vec<u32>,
}
