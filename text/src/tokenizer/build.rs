//! From a vocabulary and a manifest to a tokenizer: the two must agree, or the file be silent.

use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::bytes::TokenBytes;
use super::sentencepiece::SentencePiece;
use super::special::Specials;
use super::split::{Normalizer, Split};
use super::{Model, Prepared, Rules, Tokenizer, llama3, pre};
use crate::manifest::{Kind, TokenizerFacts};
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
    let of_type = |wanted: TokenType| {
        let tokens = vocabulary.tokens.iter().zip(&vocabulary.token_types).enumerate();
        Specials::new(
            tokens
                .filter(move |(_, (_, kind))| **kind == wanted)
                .map(|(id, (text, _))| (id as u32, text.clone())),
        )
    };
    let (model, bytes) = if is_sentencepiece(vocabulary) {
        let texts = vocabulary.tokens.iter().zip(&vocabulary.token_types);
        let texts = texts.map(|(token, &kind)| SentencePiece::text_of(token, kind));
        (Model::SentencePiece(SentencePiece::new(vocabulary)?), TokenBytes::plain(texts)?)
    } else {
        let split = Split::new(rules.splits.iter().map(String::as_str)).map_err(Error::Vocabulary)?;
        let bpe = Box::new(merges(vocabulary, rules.ignore_merges)?);
        let is_token = |token: &str| tokenizers::Model::token_to_id(&*bpe, token).is_some();
        let bytes = TokenBytes::new(vocabulary.tokens.iter().map(String::as_str), is_token)?;
        (Model::ByteLevel { bpe, split }, bytes)
    };
    let tokenizer = Tokenizer {
        model,
        control: of_type(TokenType::Control),
        user_defined: of_type(TokenType::UserDefined),
        bytes,
        rules,
    };
    Ok(Prepared { tokenizer, note })
}

/// Whether words are joined by score; else they are byte-level BPE's.
fn is_sentencepiece(vocabulary: &Vocabulary) -> bool {
    vocabulary.model.as_deref() == Some("llama")
}

/// What must hold for every vocabulary, whoever says how it splits.
fn check(vocabulary: &Vocabulary) -> Result<(), Error> {
    let n_tokens = vocabulary.tokens.len();
    let fault = |reason: String| Err(Error::Vocabulary(reason));
    if let Some(model) = vocabulary.model.as_deref().filter(|model| !["gpt2", "llama"].contains(model)) {
        return fault(format!(
            "tokenizer.ggml.model is '{model}'; only byte-level BPE ('gpt2') and SentencePiece ('llama') \
             are supported"
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
    // A vocabulary may name a token that is never put before a text.
    if let Some(bos) = facts.bos {
        compare("bos", vocabulary.bos.map(|id| id.to_string()), bos.to_string());
    }
    compare("eos", vocabulary.eos.map(|id| id.to_string()), facts.eos.to_string());
    compare("add_bos", vocabulary.add_bos.map(|flag| flag.to_string()), facts.add_bos.to_string());
    if let Some(vocab) = manifest.shape.vocab {
        compare("tokens", Some(vocabulary.tokens.len().to_string()), vocab.to_string());
    }
    let kind = if is_sentencepiece(vocabulary) { Kind::SentencePiece } else { Kind::ByteLevel };
    if vocabulary.model.is_some() {
        compare("kind", Some(kind.to_string()), facts.kind.to_string());
    }
    if let (Some(found), Some(wanted)) = (vocabulary.pre.as_deref(), facts.pre)
        && kind == Kind::ByteLevel
        && !wanted.contains(&found)
    {
        compare("pre-tokenizer", Some(format!("'{found}'")), format!("one of {wanted:?}"));
    }
    let n_tokens = vocabulary.tokens.len();
    let ids = facts.bos.map(|bos| ("bos", bos)).into_iter().chain([("eos", facts.eos)]);
    for (what, id) in ids.chain(facts.stop_ids.iter().map(|&id| ("stop_ids", id))) {
        if id as usize >= n_tokens {
            disagreements.push(format!("{what}: the manifest says {id}, but the file has {n_tokens} tokens"));
        }
    }
    if !disagreements.is_empty() {
        return Err(Error::Vocabulary(format!(
            "the file and the manifest of '{}' differ ({}); one of them belongs to another model",
            manifest.name,
            disagreements.join("; ")
        )));
    }
    Ok(Rules {
        splits: facts.splits.clone(),
        normalizer: facts.normalizer,
        ignore_merges: facts.ignore_merges,
        bos: facts.bos,
        add_bos: facts.add_bos,
        eos: Some(facts.eos),
        stop_ids: facts.stop_ids.clone(),
        template: manifest
            .chat
            .as_ref()
            .map(|chat| chat.template.clone())
            .or_else(|| file_template(vocabulary)),
    })
}

/// The rules that the file names, or Llama 3's if it holds that very vocabulary.
fn rules_of_file(vocabulary: &Vocabulary) -> Result<(Rules, Option<String>), Error> {
    let (pre, note) = match vocabulary.pre.as_deref() {
        _ if is_sentencepiece(vocabulary) => (None, None),
        Some(name) => match pre::named(name) {
            Some(pre) => (Some(pre), pre.note.map(str::to_owned)),
            None => {
                let known = pre::names();
                return Err(Error::UnknownSplit(format!(
                    "tokenizer.ggml.pre is '{}'; known are {known}",
                    name.escape_debug()
                )));
            }
        },
        None => {
            llama3::recognise(vocabulary).map_err(Error::UnknownSplit)?;
            let note = "the model file has no tokenizer.ggml.pre and no manifest.toml next to it; its \
                        vocabulary is Llama 3's, so the pre-tokenizer of Llama 3 is used";
            (pre::named(llama3::PRE_NAMES[0]), Some(note.to_owned()))
        }
    };
    let control = |wanted: &str| {
        let tokens = vocabulary.tokens.iter().zip(&vocabulary.token_types);
        let mut tokens = tokens.zip(0u32..);
        tokens.find(|((token, kind), _)| **kind == TokenType::Control && *token == wanted).map(|(_, id)| id)
    };
    let end_of_turn = control(llama3::END_OF_TURN);
    let ends = end_of_turn.into_iter().chain(control("<|im_end|>")).chain(vocabulary.eos);
    let mut stop_ids: Vec<u32> = Vec::new();
    for id in ends {
        if !stop_ids.contains(&id) {
            stop_ids.push(id);
        }
    }
    // The template of BitNet ends turns with that token; a vocabulary without it was not tuned to chat like this.
    let bitnet = end_of_turn.map(|_| chat::BITNET_2B_4T.to_owned());
    let of_file =
        vocabulary.pre.as_ref().or(vocabulary.model.as_ref()).and_then(|_| file_template(vocabulary));
    let rules = Rules {
        splits: pre.map_or(Vec::new(), pre::Pre::splits),
        normalizer: pre.map_or(Normalizer::None, |pre| pre.normalizer),
        ignore_merges: pre.is_some_and(|pre| pre.ignore_merges),
        bos: vocabulary.bos,
        add_bos: vocabulary.add_bos.unwrap_or(pre.is_none_or(|pre| pre.add_bos) && vocabulary.bos.is_some()),
        eos: vocabulary.eos,
        stop_ids,
        template: of_file.or(bitnet),
    };
    Ok((rules, note))
}

/// The file's own chat template, unless it is the one that bitnet.cpp's converter puts into every file.
fn file_template(vocabulary: &Vocabulary) -> Option<String> {
    let template = vocabulary.chat_template.as_ref()?;
    let usable = !template.contains("BITNETAssistant") && chat::check(template).is_ok();
    usable.then(|| template.clone())
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
            return Err(Error::Vocabulary(format!("merge {rank} is not a pair of tokens: '{merge}'")));
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
