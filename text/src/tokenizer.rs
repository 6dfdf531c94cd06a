//! A tokenizer built from a model file's own vocabulary, byte-level BPE split as its manifest says, or SentencePiece.
//!
//! Three kinds of text come in: a prompt, in which control tokens may be written out ([`Tokenizer::encode`]);
//! words that must never become one ([`Tokenizer::encode_literal`]); and a chat ([`Tokenizer::encode_chat`]).
//! The merging is the `tokenizers` crate's. Splitting is done here, because the crate stops silently where
//! its regex engine gives up; and control tokens are kept out of its vocabulary, so that no words reach them.

mod build;
mod bytes;
mod compare;
mod llama3;
pub(crate) mod pre;
mod sentencepiece;
mod special;
mod split;

use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

use self::bytes::TokenBytes;
use self::sentencepiece::SentencePiece;
use self::special::{Piece, Specials};
use self::split::Split;
use crate::chat::{self, Message};
use crate::{Error, Manifest, Vocabulary};

pub use self::compare::{Difference, compare};
pub use self::llama3::SPLIT as LLAMA3_SPLIT;
pub use self::pre::name_of;
pub use self::split::Normalizer;
pub(crate) use self::split::check as check_split;

/// Turns text into ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    model: Model,
    /// Tokens that stand for something outside text.
    control: Specials,
    /// Tokens found as a whole in any text.
    user_defined: Specials,
    bytes: TokenBytes,
    rules: Rules,
}

/// From text to tokens.
#[derive(Debug)]
enum Model {
    /// Cut, then merged by rank, in the byte-level alphabet.
    ByteLevel { bpe: Box<BPE>, split: Split },
    /// Joined by score.
    SentencePiece(SentencePiece),
}

/// What a model wants around its text.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    splits: Vec<String>,
    normalizer: Normalizer,
    ignore_merges: bool,
    bos: Option<u32>,
    add_bos: bool,
    eos: Option<u32>,
    stop_ids: Vec<u32>,
    template: Option<String>,
}

/// A tokenizer, and what should be reported about its choice.
#[derive(Debug)]
pub struct Prepared {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// One line for the person who loads the model; this library prints nothing.
    pub note: Option<String>,
}

impl Tokenizer {
    /// Builds the tokenizer of a model. Without a manifest, `vocabulary` must itself tell how it splits text,
    /// or be Llama 3's to the token; then the note says so. Anything else is refused.
    pub fn from_parts(vocabulary: &Vocabulary, manifest: Option<&Manifest>) -> Result<Prepared, Error> {
        build::prepare(vocabulary, manifest)
    }

    /// The ids of a prompt. Control tokens written out in `text` become their ids, as Hugging Face's
    /// tokenizers do it. BOS comes first if `add_bos` and the text does not begin with it already.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        for piece in self.control.pieces(text) {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(text) => self.encode_into(text, &mut ids)?,
            }
        }
        if let Some(bos) = self.rules.bos.filter(|bos| add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The ids of words: whatever they say, no control token comes out, and no BOS.
    pub fn encode_literal(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// The same for words in the middle of a text, which get no space in front.
    pub fn encode_within(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        match &self.model {
            Model::ByteLevel { .. } => self.encode_into(text, &mut ids)?,
            Model::SentencePiece(model) => model.encode(text, false, &mut ids)?,
        }
        Ok(ids)
    }

    /// The ids of a chat, ready for the assistant's turn. Contents are taken literally.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        self.encode_chat_with(messages, &chat::Extras::default())
    }

    /// The same with tools, or with the setting for thinking, for templates that read them.
    pub fn encode_chat_with(
        &self,
        messages: &[Message],
        extras: &chat::Extras<'_>,
    ) -> Result<Vec<u32>, Error> {
        match &self.rules.template {
            Some(template) => chat::encode(self, template, messages, extras),
            None => Err(Error::Template(
                "this model has no chat template in its file or in the [chat] section of a manifest; send \
                 a prompt instead of messages"
                    .into(),
            )),
        }
    }

    /// The text of `ids`, without control tokens. What is no UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.text_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes a token adds to the text; none for a control token or an id outside the vocabulary.
    pub fn text_bytes(&self, id: u32) -> &[u8] {
        if self.control.text(id).is_some() { &[] } else { self.bytes.of(id) }
    }

    /// A token's own bytes, control tokens included; none for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.control.text(id).map_or_else(|| self.bytes.of(id), str::as_bytes)
    }

    /// The number of tokens: ids are below it.
    pub fn n_vocab(&self) -> usize {
        self.bytes.len()
    }

    /// The id of the token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.rules.bos
    }

    /// Whether the model wants BOS put before a text.
    pub fn adds_bos(&self) -> bool {
        self.rules.add_bos
    }

    /// The id of the token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.rules.eos
    }

    /// The ids that end a generation.
    pub fn stop_ids(&self) -> &[u32] {
        &self.rules.stop_ids
    }

    /// A control token as a template writes it.
    pub(crate) fn token(&self, id: u32) -> Option<&str> {
        self.control.text(id)
    }

    /// The control token of this text.
    pub fn control_token(&self, text: &str) -> Option<u32> {
        self.control.id(text)
    }

    /// Whether a control token has `character` behind its first one, in whatever case.
    pub(crate) fn continues_special(&self, character: char) -> bool {
        self.control.continues_with(character)
    }

    /// Whether `text` begins with a control token, or is the beginning of one, in whatever case.
    pub(crate) fn may_be_special(&self, text: &str) -> bool {
        self.control.may_begin(text)
    }

    /// As [`Self::encode`] without BOS, taking every `mark` out after control tokens were found.
    pub(crate) fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        for piece in self.control.pieces(text) {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(text) => self.encode_into(&text.replace(mark, ""), &mut ids)?,
            }
        }
        Ok(ids)
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        for piece in self.user_defined.pieces(text) {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(text) => {
                    let text = self.rules.normalizer.apply(text)?;
                    match &self.model {
                        Model::ByteLevel { bpe, split } => split.each(&text, |word| {
                            let word = self.bytes.spell(word)?;
                            let tokens =
                                bpe.tokenize(&word).map_err(|fault| Error::Text(fault.to_string()))?;
                            ids.extend(tokens.iter().map(|token| token.id));
                            Ok(())
                        })?,
                        Model::SentencePiece(model) => {
                            let begins = ids.last().is_none_or(|&id| self.control.text(id).is_some());
                            model.encode(&text, begins, ids)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
