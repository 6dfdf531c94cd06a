//! A model's vocabulary as `llguidance` wants it: a trie of the tokens' bytes, and canonical tokens of forced bytes.

use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::Tokenizer;

/// A vocabulary, whose tokenizer says how forced text is written.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

/// The vocabulary of a tokenizer that names a token to end with.
pub(super) fn of(tokenizer: Arc<Tokenizer>) -> Option<TokEnv> {
    let ends = ends(&tokenizer);
    let &end = ends.first()?;
    let words: Vec<Vec<u8>> = (0..tokenizer.n_vocab() as u32).map(|id| word(&tokenizer, id)).collect();
    let info = TokRxInfo::new(words.len() as u32, end);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
    Some(Arc::new(Vocabulary { trie, tokenizer }))
}

/// Ids that end an output.
pub(super) fn ends(tokenizer: &Tokenizer) -> Vec<TokenId> {
    match tokenizer.stop_ids() {
        [] => tokenizer.eos().into_iter().collect(),
        ids => ids.to_vec(),
    }
}

/// A token's bytes; those of a control token are marked, so that no text reaches it.
fn word(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let (text, own) = (tokenizer.text_bytes(id), tokenizer.token_bytes(id));
    if text.is_empty() && !own.is_empty() {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], own].concat();
    }
    text.to_vec()
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let canonical = |text: &str| {
            self.tokenizer.encode_literal(text).unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        };
        self.trie.tokenize_with_greedy_fallback(bytes, canonical)
    }
}

/// The 256 bytes and an end: for checking grammars without a model.
struct Bytes(TokTrie);

pub(super) fn bytes() -> TokEnv {
    let words: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).chain([b"\xff<end>".to_vec()]).collect();
    Arc::new(Bytes(TokTrie::from(&TokRxInfo::new(257, 256), &words)))
}

impl TokenizerEnv for Bytes {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        bytes.iter().map(|&byte| byte.into()).collect()
    }
}
