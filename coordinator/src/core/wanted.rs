//! What lines ask for, as keys: two lines with one key have one answer. The rules are `cache.rs`'s.

use serde::{Deserialize, Serialize};
use ternfleet_proto::message::{Conversation, Generation, Prompt};
use ternfleet_proto::{Digest, TenantId, codec};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wanted(u128);

/// A request of a tenant at a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CacheKey(u128);

/// Where an answer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At this sequence of RESULTS.
    Results(u64),
    /// In a segment of the store, so many bytes from its beginning.
    Segment { segment: u32, at: u32, bytes: u32 },
}

impl Wanted {
    /// None for a request whose answer depends on chance, is streamed, or is not to be remembered. `own_seed` is the one
    /// that the line has if it names none.
    pub fn of(generation: &mut Generation, own_seed: u64) -> Option<Wanted> {
        let sampling = &generation.sampling;
        let greedy = sampling.temperature == 0.0 && !sampling.open.temperature;
        let seeded = generation.seed != own_seed;
        if generation.no_cache || generation.stream || !(greedy || seeded) {
            return None;
        }
        // Greedy requests draw nothing.
        let seed = generation.seed;
        if greedy {
            generation.seed = 0;
        }
        let digest = Digest::of(&codec::encode(generation));
        generation.seed = seed;
        Some(Wanted(first_half(digest)))
    }

    /// As it is told to others.
    pub fn told(self) -> u128 {
        self.0
    }

    /// As another process has told it.
    pub fn heard(told: u128) -> Wanted {
        Wanted(told)
    }

    pub(super) fn key(self, tenant: &TenantId, digest: &str, numerics: &str) -> CacheKey {
        let wanted = self.0.to_le_bytes();
        let parts = [tenant.as_str().as_bytes(), digest.as_bytes(), numerics.as_bytes(), &wanted];
        CacheKey(first_half(Digest::of_parts(&parts)))
    }
}

fn first_half(digest: Digest) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&digest.0[..16]);
    u128::from_le_bytes(half)
}

/// Lines of one batch that ask for the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Same {
    /// It runs.
    pub(super) first: u32,
    /// They wait for its answer.
    pub(super) others: Vec<u32>,
}

/// A start shorter than a page of a worker's cache is not worth being shared.
const START_BYTES_MIN: usize = 512;
/// Of a prompt that is one text, so much of it counts.
const START_BYTES: usize = 1024;
const START_IDS: usize = 256;

/// A digest of how a prompt begins: all messages but the last, or the first part of a text. None if that is short.
pub fn start_of(prompt: &Prompt) -> Option<u64> {
    let messages = match prompt {
        Prompt::Text(text) => {
            return text.as_bytes().get(..START_BYTES).map(|start| Digest::of(start).short());
        }
        Prompt::Tokens(ids) => {
            return ids.get(..START_IDS).map(|start| Digest::of(&codec::encode(&start)).short());
        }
        Prompt::Chat(messages) => messages,
        Prompt::Conversation(Conversation { messages, .. }) => messages,
        Prompt::Several(_) => return None,
    };
    let (_, before) = messages.split_last()?;
    let bytes: usize = before.iter().map(|message| message.content.len()).sum();
    (bytes >= START_BYTES_MIN).then(|| Digest::of(&codec::encode(&before)).short())
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::message::{ChatMessage, Sampling};

    use super::*;

    fn said(content: &str) -> ChatMessage {
        ChatMessage { role: "user".into(), content: content.into(), ..ChatMessage::default() }
    }

    #[test]
    fn only_requests_without_chance_are_wanted_and_a_greedy_one_whatever_its_seed() {
        let greedy = |seed| Generation {
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            seed,
            ..Generation::default()
        };
        let wanted = |mut generation: Generation| Wanted::of(&mut generation, 5);
        assert!(wanted(greedy(5)).is_some());
        assert_eq!(wanted(greedy(5)), wanted(greedy(6)));
        let seeded = |seed| Generation { seed, ..Generation::default() };
        assert_eq!(wanted(seeded(5)), None, "its own seed is that of no other line");
        assert!(wanted(seeded(6)).is_some() && wanted(seeded(6)) != wanted(seeded(7)));
        assert_eq!(wanted(Generation { no_cache: true, ..greedy(6) }), None);
        assert_eq!(wanted(Generation { stream: true, ..greedy(6) }), None);
        let mut open = greedy(5);
        open.sampling.open.temperature = true;
        assert_eq!(wanted(open), None, "the model decides whether it is greedy");
    }

    #[test]
    fn prompts_begin_alike_if_all_but_their_end_is_the_same_and_long() {
        let system = said(&"x".repeat(600));
        let chat = |last: &str| start_of(&Prompt::Chat(vec![system.clone(), said(last)]));
        assert!(chat("a").is_some() && chat("a") == chat("b"));
        assert_eq!(start_of(&Prompt::Chat(vec![said("short"), said("a")])), None);
        let text = |last: &str| start_of(&Prompt::Text("y".repeat(2000) + last));
        assert!(text("a").is_some() && text("a") == text("b"));
        assert_eq!(start_of(&Prompt::Text("short".into())), None);
    }
}
