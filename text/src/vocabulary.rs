//! A model's vocabulary as plain data: what the engine reads from a model file and hands to this crate.

/// What a token is for, by ggml's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenType {
    /// Part of text (1).
    Normal,
    /// Stands for something outside text, as the end of a turn does (3): never made from a user's words.
    Control,
    /// Added by whoever tuned the model (4): found in text as a whole, and printed.
    UserDefined,
    /// One byte (6), for what no other token of a SentencePiece vocabulary covers.
    Byte,
    /// Unknown (2), unused (5) and all others: never made from text here.
    Other(u32),
}

impl TokenType {
    /// The type with ggml's number `id`.
    pub fn from_id(id: u32) -> Self {
        match id {
            1 => Self::Normal,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            other => Self::Other(other),
        }
    }
}

/// A vocabulary: byte-level BPE's, or SentencePiece's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vocabulary {
    /// Tokens by id, in the byte-level alphabet (a space is `Ġ`); control tokens as they are.
    pub tokens: Vec<String>,
    /// Merges in order of rank, each two tokens with one space between.
    pub merges: Vec<String>,
    /// One entry a token.
    pub token_types: Vec<TokenType>,
    /// SentencePiece's: which tokens are joined first. One a token, or none.
    pub scores: Vec<f32>,
    /// Id of the token that begins a text.
    pub bos: Option<u32>,
    /// Id of the token that ends one.
    pub eos: Option<u32>,
    /// Whether the file wants BOS put before a text.
    pub add_bos: Option<bool>,
    /// SentencePiece's: whether a text gets a space in front (`tokenizer.ggml.add_space_prefix`).
    pub add_space_prefix: Option<bool>,
    /// The chat template of the file; a manifest's is preferred.
    pub chat_template: Option<String>,
    /// The family of tokenizers (`tokenizer.ggml.model`): `gpt2` is byte-level BPE, `llama` SentencePiece.
    pub model: Option<String>,
    /// How text is split before merging (`tokenizer.ggml.pre`); often absent.
    pub pre: Option<String>,
}
