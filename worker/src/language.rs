//! Text to ids and back, for a real model or for the instant engine, whose tokens are bytes.

use std::fmt;

use ternfleet_proto::message::{Failure, FailureCode, Prompt};
use ternfleet_text::{Message, Role, Stream, Tokenizer};

/// How prompts become ids and ids become text.
pub enum Language {
    Model(Box<Tokenizer>),
    /// One token a byte.
    Bytes,
}

impl fmt::Debug for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model(_) => "Language::Model",
            Self::Bytes => "Language::Bytes",
        })
    }
}

impl Language {
    /// The ids of a prompt; the failure says what to change.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, Failure> {
        match (self, prompt) {
            (_, Prompt::Tokens(ids)) => Ok(ids.clone()),
            (Self::Model(tokenizer), Prompt::Text(text)) => {
                tokenizer.encode(text, tokenizer.adds_bos()).map_err(|fault| invalid(fault.to_string()))
            }
            (Self::Model(tokenizer), Prompt::Chat(messages)) => {
                let messages: Result<Vec<Message>, Failure> = messages
                    .iter()
                    .map(|message| match Role::parse(&message.role) {
                        Some(role) => Ok(Message { role, content: message.content.clone() }),
                        None => {
                            Err(invalid(format!("role {:?}: use system, user or assistant", message.role)))
                        }
                    })
                    .collect();
                tokenizer.encode_chat(&messages?).map_err(|fault| invalid(fault.to_string()))
            }
            // Whoever runs several prompts encodes each.
            (_, Prompt::Several(several)) => {
                let each: Result<Vec<_>, _> =
                    several.prompts.iter().map(|prompt| self.encode(prompt)).collect();
                Ok(each?.concat())
            }
            (Self::Bytes, Prompt::Text(text)) => Ok(text.bytes().map(u32::from).collect()),
            (Self::Bytes, Prompt::Chat(messages)) => {
                Ok(messages.iter().flat_map(|message| message.content.bytes()).map(u32::from).collect())
            }
        }
    }

    /// Ids that end a generation.
    pub fn stop_ids(&self) -> &[u32] {
        match self {
            Self::Model(tokenizer) => tokenizer.stop_ids(),
            Self::Bytes => &[],
        }
    }

    /// The text of one token by itself; what is no whole character becomes U+FFFD in it, and the bytes come besides.
    pub fn token(&self, id: u32) -> (String, Option<Vec<u8>>) {
        let byte = [id as u8];
        let bytes = match self {
            Self::Model(tokenizer) => tokenizer.token_bytes(id),
            Self::Bytes => &byte,
        };
        match std::str::from_utf8(bytes) {
            Ok(text) => (text.to_owned(), None),
            Err(_) => (String::from_utf8_lossy(bytes).into_owned(), Some(bytes.to_vec())),
        }
    }

    /// The text of many.
    pub fn decode(&self, ids: &[u32]) -> String {
        match self {
            Self::Model(tokenizer) => tokenizer.decode(ids),
            Self::Bytes => ids.iter().map(|&id| byte_text(id)).collect(),
        }
    }

    /// The text that is certain after one more id.
    pub(crate) fn push(&self, stream: &mut Stream, id: u32) -> String {
        match self {
            Self::Model(tokenizer) => stream.push(tokenizer, id),
            Self::Bytes => byte_text(id),
        }
    }
}

fn byte_text(id: u32) -> String {
    char::from_u32(id).filter(char::is_ascii).unwrap_or(char::REPLACEMENT_CHARACTER).to_string()
}

fn invalid(message: String) -> Failure {
    Failure { code: FailureCode::InvalidRequest, message }
}
