//! Ids to text as they come: whole UTF-8 characters only, and at the end the same text as decoding at once.

use crate::Tokenizer;

/// An incremental decoder. A character may be spread over several tokens, so up to three bytes wait inside.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    /// The beginning of a character whose end has not come yet.
    pending: Vec<u8>,
}

impl Stream {
    /// A stream that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next id and returns the text that is now certain; often empty. Control tokens have no text.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push_bytes(tokenizer.text_bytes(id))
    }

    /// The same with a control token written out.
    pub fn push_shown(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push_bytes(tokenizer.token_bytes(id))
    }

    /// The same for bytes. What can be no part of any character becomes U+FFFD, one for each longest
    /// sequence that began a character, as `String::from_utf8_lossy` counts them.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(fault) => {
                    let (valid, after) = rest.split_at(fault.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("because valid_up_to says so"));
                    rest = after;
                    let Some(length) = fault.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
            }
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
        text
    }

    /// True if no part of a character waits.
    pub fn is_whole(&self) -> bool {
        self.pending.is_empty()
    }

    /// Ends the stream: a character that never ended becomes U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

#[cfg(test)]
mod tests;
