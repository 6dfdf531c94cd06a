//! What an answer is a function of, besides model and numerics, as one digest: the evidence of an answer is made with it,
//! and `ternfleet verify` makes it again.

use serde::Serialize;
use ternfleet_proto::message::{Constraint, Generation, Sampling, Tools};
use ternfleet_proto::{Digest, codec};

/// A request as the engine gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    digest: Digest,
    /// None where no draw depends on it.
    pub seed: Option<u64>,
}

/// What the digest is of: a MessagePack map of these fields, in this order. Changing it changes every digest.
#[derive(Serialize)]
struct Canonical<'a> {
    /// Token ids, one list a prompt.
    prompts: &'a [Vec<u32>],
    choices_per_prompt: u32,
    max_tokens: Option<u32>,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: &'a [(u32, f32)],
    seed: Option<u64>,
    stop: &'a [String],
    stop_ids: &'a [u32],
    logprobs: Option<u8>,
    echo: bool,
    constraint: Option<&'a Constraint>,
    tools: Option<&'a Tools>,
}

impl Asked {
    /// `sampling` is the generation's with the model's defaults filled in.
    pub(crate) fn of(
        generation: &Generation,
        prompts: &[Vec<u32>],
        sampling: &Sampling,
        stop_ids: &[u32],
    ) -> Asked {
        let seed = (sampling.temperature > 0.0).then_some(generation.seed);
        let canonical = Canonical {
            prompts,
            choices_per_prompt: generation.prompt.n(),
            max_tokens: generation.max_tokens,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: &sampling.logit_bias,
            seed,
            stop: &generation.stop,
            stop_ids,
            logprobs: generation.logprobs,
            echo: generation.echo,
            constraint: generation.constraint.as_ref(),
            tools: generation.prompt.tools(),
        };
        Asked { digest: Digest::of(&codec::encode(&canonical)), seed }
    }

    /// The digest of the request at this model.
    pub fn request(&self, model_digest: &str, numerics: &str) -> Digest {
        Digest::of_parts(&[model_digest.as_bytes(), numerics.as_bytes(), &self.digest.0])
    }
}
