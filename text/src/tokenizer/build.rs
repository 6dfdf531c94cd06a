//! From a vocabulary and a manifest to a tokenizer: the two must agree, or the file be silent.

use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::bytes::TokenBytes;
use super::llama3;
use super::special::Specials;
use super::split::Split;
use super::{Prepared, Rules, Tokenizer};
use crate::manifest::TokenizerFacts;
use crate::{Error, Manifest, TokenType, Vocabulary, chat};

/// Bound on a token's length: far above any, and small enough that sums of lengths cannot overflow.
const MAX_TOKEN_BYTES: usize = 1 << 16;
/// Words whose merges are remembered by each thread.
const CACHED_WORDS: usize = 10_000;

pub(super) fn prepare(vocabulary: &Vocabulary, manifest: Option<&Manifest>) -> Result<Prepared, Error> {
    check(vocabulary)?;
    let (rules, note) = match manifest.and_then(|manifest| Some((manifest, manifest.tokenizer.as_ref()?))) {
        Some((manifest, facts)) => (rules_of_manifest(vocabulary, manifest, facts)?, None),
        None => rules_of_file(vocabulary)?,
    };
    let split = Split::new(&rules.split).map_err(Error::Vocabulary)?;
    let bpe = merges(vocabulary, rules.ignore_merges)?;
    let of_type = |wanted: TokenType| {
        let tokens = vocabulary.tokens.iter().zip(&vocabulary.token_types).enumerate();
        Specials::new(
            tokens
                .filter(move |(_, (_, kind))| **kind == wanted)
                .map(|(id, (text, _))| (id as u32, text.clone())),
        )
    };
    let bytes = TokenBytes::new(vocabulary.tokens.iter().map(String::as_str), |token| {
        tokenizers::Model::token_to_id(&bpe, token).is_some()
    })?;
    let tokenizer = Tokenizer {
        bpe,
        split,
        control: of_type(TokenType::Control),
        user_defined: of_type(TokenType::UserDefined),
        bytes,
        rules,
    };
    Ok(Prepared { tokenizer, note })
}

/// What must hold for every vocabulary, whoever says how it splits.
fn check(vocabulary: &Vocabulary) -> Result<(), Error> {
    let n_tokens = vocabulary.tokens.len();
    let fault = |reason: String| Err(Error::Vocabulary(reason));
    if let Some(model) = vocabulary.model.as_deref().filter(|model| *model != "gpt2") {
        return fault(format!(
            "tokenizer.ggml.model is '{model}', and only byte-level BPE ('gpt2') is done here"
        ));
    }
    if n_tokens == 0 || u32::try_from(n_tokens).is_err() {
        return fault(format!("it has {n_tokens} tokens"));
    }
    if vocabulary.token_types.len() != n_tokens {
        return fault(format!("it has {n_tokens} tokens, but {} token types", vocabulary.token_types.len()));
    }
    if let Some(id) = vocabulary.tokens.iter().position(|token| token.len() > MAX_TOKEN_BYTES) {
        return fault(format!("token {id} is longer than {MAX_TOKEN_BYTES} bytes"));
    }
    for (name, id) in [("bos", vocabulary.bos), ("eos", vocabulary.eos)] {
        if let Some(id) = id.filter(|&id| id as usize >= n_tokens) {
            return fault(format!("its {name} id {id} is outside its {n_tokens} tokens"));
        }
    }
    Ok(())
}

/// The manifest's rules, if the file agrees with them or is silent.
fn rules_of_manifest(
    vocabulary: &Vocabulary,
    manifest: &Manifest,
    facts: &TokenizerFacts,
) -> Result<Rules, Error> {
    let mut disagreements = Vec::new();
    let mut compare = |what: &str, file: Option<String>, manifest: String| {
        if let Some(file) = file.filter(|file| *file != manifest) {
            disagreements.push(format!("{what}: the file says {file}, the manifest {manifest}"));
        }
    };
    compare("bos", vocabulary.bos.map(|id| id.to_string()), facts.bos.to_string());
    compare("eos", vocabulary.eos.map(|id| id.to_string()), facts.eos.to_string());
    compare("add_bos", vocabulary.add_bos.map(|flag| flag.to_string()), facts.add_bos.to_string());
    if let Some(vocab) = manifest.shape.vocab {
        compare("tokens", Some(vocabulary.tokens.len().to_string()), vocab.to_string());
    }
    if let Some(pre) = vocabulary.pre.as_deref().filter(|pre| !llama3::PRE_NAMES.contains(pre)) {
        compare(
            "pre-tokenizer",
            Some(format!("'{pre}'")),
            format!("one of Llama 3's kind {:?}", llama3::PRE_NAMES),
        );
    }
    let n_tokens = vocabulary.tokens.len();
    let ids = [("bos", facts.bos), ("eos", facts.eos)];
    for (what, id) in ids.into_iter().chain(facts.stop_ids.iter().map(|&id| ("stop_ids", id))) {
        if id as usize >= n_tokens {
            disagreements.push(format!("{what}: the manifest says {id}, but the file has {n_tokens} tokens"));
        }
    }
    if !disagreements.is_empty() {
        return Err(Error::Vocabulary(format!(
            "the file and the manifest of '{}' disagree ({}); one of them belongs to another model",
            manifest.name,
            disagreements.join("; ")
        )));
    }
    Ok(Rules {
        split: facts.split.clone(),
        ignore_merges: facts.ignore_merges,
        bos: Some(facts.bos),
        add_bos: facts.add_bos,
        eos: Some(facts.eos),
        stop_ids: facts.stop_ids.clone(),
        template: manifest.chat.as_ref().map(|chat| chat.template.clone()),
    })
}

/// Llama 3's rules, if the file names them or holds that very vocabulary.
fn rules_of_file(vocabulary: &Vocabulary) -> Result<(Rules, Option<String>), Error> {
    let note = match vocabulary.pre.as_deref() {
        Some(pre) if llama3::PRE_NAMES.contains(&pre) => None,
        Some(pre) => {
            return Err(Error::UnknownSplit(format!("tokenizer.ggml.pre is '{}'", pre.escape_debug())));
        }
        None => {
            llama3::recognise(vocabulary).map_err(Error::UnknownSplit)?;
            let note = "the model file does not say how it splits text and has no manifest.toml beside it; \
                its vocabulary is Llama 3's, so text is split as Llama 3 does";
            Some(note.to_owned())
        }
    };
    let control =
        |(token, kind): (&String, &TokenType)| *kind == TokenType::Control && token == llama3::END_OF_TURN;
    let end_of_turn =
        vocabulary.tokens.iter().zip(&vocabulary.token_types).position(control).map(|id| id as u32);
    let mut stop_ids: Vec<u32> = end_of_turn.into_iter().chain(vocabulary.eos).collect();
    stop_ids.dedup();
    let rules = Rules {
        split: llama3::SPLIT.to_owned(),
        ignore_merges: true,
        bos: vocabulary.bos,
        add_bos: vocabulary.add_bos.unwrap_or(vocabulary.bos.is_some()),
        eos: vocabulary.eos,
        stop_ids,
        // The template ends turns with that token; a vocabulary without it was not tuned to chat like this.
        template: end_of_turn.map(|_| chat::BITNET_2B_4T.to_owned()),
    };
    Ok((rules, note))
}

/// The merging model. Only normal tokens take part: words can neither be nor become any other.
fn merges(vocabulary: &Vocabulary, ignore_merges: bool) -> Result<BPE, Error> {
    let mut longest = 0;
    let mut ids = Vocab::default();
    ids.reserve(vocabulary.tokens.len());
    for (id, (token, kind)) in vocabulary.tokens.iter().zip(&vocabulary.token_types).enumerate() {
        if *kind != TokenType::Normal {
            continue;
        }
        longest = longest.max(token.len());
        if let Some(other) = ids.insert(token.clone(), id as u32) {
            let token = token.escape_debug();
            return Err(Error::Vocabulary(format!("tokens {other} and {id} are the same: '{token}'")));
        }
    }
    let mut merges: Merges = Vec::with_capacity(vocabulary.merges.len());
    for (rank, merge) in vocabulary.merges.iter().enumerate() {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            // The crate copies both halves into a buffer as long as the longest token, unchecked.
            !left.is_empty()
                && !right.is_empty()
                && !right.contains(' ')
                && left.len() + right.len() <= longest
        });
        let Some((left, right)) = pair else {
            let merge = merge.escape_debug();
            return Err(Error::Vocabulary(format!("merge {rank} is no pair of tokens: '{merge}'")));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(ignore_merges)
        .cache_capacity(CACHED_WORDS)
        .build()
        .map_err(|fault| Error::Vocabulary(fault.to_string()))
}
