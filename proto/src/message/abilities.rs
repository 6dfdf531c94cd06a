//! What an engine can do, and what a request needs of one. An engine of our own can do everything; somebody else's server
//! is asked at the start of its worker.

use serde::{Deserialize, Serialize};

use super::work::{Constraint, Generation, Prompt};

/// Of an engine: what it can do. Of a request: what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Abilities {
    /// The same request gets the same answer each time.
    pub deterministic: bool,
    pub chat: bool,
    /// Texts that are no chats.
    pub completions: bool,
    /// Prompts of token ids.
    pub id_prompts: bool,
    /// Ids of prompt and output.
    pub token_ids: bool,
    pub logprobs: bool,
    /// Of the prompt's tokens, and its text.
    pub echo: bool,
    /// JSON, with a schema or without.
    pub schemas: bool,
    /// Regular expressions, choices of texts, grammars.
    pub grammars: bool,
    pub tools: bool,
    /// `n` above 1.
    pub choices: bool,
    /// `top_k` and `min_p`.
    pub cutoffs: bool,
    pub logit_bias: bool,
}

impl Default for Abilities {
    fn default() -> Abilities {
        Abilities::ALL
    }
}

impl Abilities {
    pub const ALL: Abilities = Abilities {
        deterministic: true,
        chat: true,
        completions: true,
        id_prompts: true,
        token_ids: true,
        logprobs: true,
        echo: true,
        schemas: true,
        grammars: true,
        tools: true,
        choices: true,
        cutoffs: true,
        logit_bias: true,
    };

    pub const NONE: Abilities = Abilities {
        deterministic: false,
        chat: false,
        completions: false,
        id_prompts: false,
        token_ids: false,
        logprobs: false,
        echo: false,
        schemas: false,
        grammars: false,
        tools: false,
        choices: false,
        cutoffs: false,
        logit_bias: false,
    };

    pub fn is_all(&self) -> bool {
        *self == Abilities::ALL
    }

    /// What a request needs.
    pub fn needed_by(generation: &Generation) -> Abilities {
        let prompts = generation.prompt.each();
        let sampling = &generation.sampling;
        let json = matches!(&generation.constraint, Some(Constraint::JsonSchema(_) | Constraint::JsonObject));
        Abilities {
            deterministic: generation.deterministic,
            chat: prompts.iter().any(|one| matches!(one, Prompt::Chat(_) | Prompt::Conversation(_))),
            completions: prompts.iter().any(|one| matches!(one, Prompt::Text(_))),
            id_prompts: prompts.iter().any(|one| matches!(one, Prompt::Tokens(_))),
            token_ids: generation.token_ids,
            logprobs: generation.logprobs.is_some(),
            echo: generation.echo,
            schemas: json,
            grammars: generation.constraint.is_some() && !json,
            tools: prompts.iter().any(|one| matches!(one, Prompt::Conversation(_))),
            choices: generation.prompt.n() > 1,
            cutoffs: sampling.top_k > 0 || sampling.min_p > 0.0,
            logit_bias: !sampling.logit_bias.is_empty(),
        }
    }

    /// The first ability of `needed` that is not here, in words that follow "can".
    pub fn lacks(&self, needed: &Abilities) -> Option<&'static str> {
        self.named().into_iter().zip(needed.named()).find_map(|((has, words), (needs, _))| {
            let missing = needs && !has;
            missing.then_some(words)
        })
    }

    /// In words, what is here and what is not.
    pub fn named(&self) -> [(bool, &'static str); 13] {
        [
            (self.deterministic, "give the same answer each time"),
            (self.chat, "continue a chat"),
            (self.completions, "continue a text"),
            (self.id_prompts, "take prompts of token ids"),
            (self.token_ids, "report token ids"),
            (self.logprobs, "report log-probabilities"),
            (self.echo, "repeat the prompt (`echo`)"),
            (self.schemas, "hold its answer to a JSON schema"),
            (self.grammars, "hold its answer to a regular expression, a choice or a grammar"),
            (self.tools, "call tools"),
            (self.choices, "give several choices (`n`)"),
            (self.cutoffs, "sample with `top_k` or `min_p`"),
            (self.logit_bias, "sample with `logit_bias`"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_needs_and_an_engine_lacks_is_named() {
        let plain = Abilities::needed_by(&Generation::default());
        assert_eq!(plain, Abilities { completions: true, ..Abilities::NONE });
        assert_eq!(Abilities::NONE.lacks(&plain), Some("continue a text"));
        let asked = Generation { deterministic: true, logprobs: Some(0), ..Generation::default() };
        let needed = Abilities::needed_by(&asked);
        let without = Abilities { logprobs: false, ..Abilities::ALL };
        assert_eq!(Abilities::ALL.lacks(&needed), None);
        assert_eq!(without.lacks(&needed), Some("report log-probabilities"));
        assert_eq!(Abilities::NONE.lacks(&needed), Some("give the same answer each time"));
    }
}
