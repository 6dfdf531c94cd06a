use proptest::prelude::*;

use super::*;
use crate::{Stream, TokenType};

/// 256 bytes, a few words with their merges, three control tokens and a user's own one.
pub(crate) fn small_vocabulary() -> Vocabulary {
    let mut tokens: Vec<String> = bytes::alphabet().map(String::from).to_vec();
    let words = ["he", "ll", "hell", "hello", "Ġw", "or", "Ġwor", "Ġworld", "Ġt"];
    tokens.extend(words.iter().map(|word| (*word).to_owned()));
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or"].map(str::to_owned).to_vec();
    let n_normal = tokens.len();
    tokens.extend(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "[tool]"].map(str::to_owned));
    let mut token_types = vec![TokenType::Normal; n_normal];
    token_types.extend([TokenType::Control; 3]);
    token_types.push(TokenType::UserDefined);
    Vocabulary {
        tokens,
        merges,
        token_types,
        bos: Some(n_normal as u32),
        eos: Some(n_normal as u32 + 1),
        add_bos: Some(true),
        model: Some("gpt2".into()),
        pre: Some("llama-bpe".into()),
        ..Vocabulary::default()
    }
}

pub(crate) fn small() -> Tokenizer {
    Tokenizer::from_parts(&small_vocabulary(), None).unwrap().tokenizer
}

fn id(token: &str) -> u32 {
    small_vocabulary().tokens.iter().position(|known| known == token).unwrap() as u32
}

fn manifest() -> Manifest {
    let vocabulary = small_vocabulary();
    let shipped = include_str!("../../../models/bitnet-b1.58-2B-4T/manifest.toml");
    let mut manifest = Manifest::parse(shipped, "test").unwrap();
    manifest.shape.vocab = Some(vocabulary.tokens.len() as u64);
    facts(&mut manifest).bos = vocabulary.bos;
    facts(&mut manifest).eos = vocabulary.eos.unwrap();
    facts(&mut manifest).stop_ids = vec![id("<|eot_id|>")];
    manifest
}

fn facts(manifest: &mut Manifest) -> &mut crate::manifest::TokenizerFacts {
    manifest.tokenizer.as_mut().unwrap()
}

fn refusal(vocabulary: &Vocabulary, manifest: Option<&Manifest>) -> String {
    Tokenizer::from_parts(vocabulary, manifest).unwrap_err().to_string()
}

#[test]
fn words_are_merged_by_rank() {
    let ids = small().encode("hello world", false).unwrap();
    // "Ġworld" has no merge that ends in it, but is a token, and whole tokens are taken as they are.
    assert_eq!(ids, [id("hello"), id("Ġworld")]);
    assert_eq!(small().encode("hell wor", false).unwrap(), [id("hell"), id("Ġwor")]);
}

#[test]
fn without_ignore_merges_a_word_is_only_what_its_merges_make() {
    let mut manifest = manifest();
    facts(&mut manifest).ignore_merges = false;
    let tokenizer = Tokenizer::from_parts(&small_vocabulary(), Some(&manifest)).unwrap().tokenizer;
    assert_eq!(tokenizer.encode(" world", false).unwrap(), [id("Ġwor"), id("l"), id("d")]);
}

#[test]
fn bos_comes_once() {
    let tokenizer = small();
    let bos = tokenizer.bos().unwrap();
    assert_eq!(tokenizer.encode("he", true).unwrap(), [bos, id("he")]);
    assert_eq!(tokenizer.encode("<|begin_of_text|>he", true).unwrap(), [bos, id("he")]);
    assert_eq!(tokenizer.encode("", true).unwrap(), [bos]);
    assert_eq!(tokenizer.encode("", false).unwrap(), [0u32; 0]);
}

#[test]
fn control_tokens_are_found_in_prompts_and_never_in_literal_text() {
    let tokenizer = small();
    assert_eq!(tokenizer.encode("he<|eot_id|>he", false).unwrap(), [id("he"), id("<|eot_id|>"), id("he")]);
    let literal = tokenizer.encode_literal("he<|eot_id|>he").unwrap();
    assert!(literal.iter().all(|&id| tokenizer.token(id).is_none()), "{literal:?}");
    assert_eq!(tokenizer.decode(&literal), "he<|eot_id|>he");
}

#[test]
fn a_users_own_token_is_found_in_literal_text_and_printed() {
    let tokenizer = small();
    assert_eq!(tokenizer.encode_literal("he[tool]").unwrap(), [id("he"), id("[tool]")]);
    assert_eq!(tokenizer.decode(&[id("[tool]")]), "[tool]");
}

#[test]
fn control_tokens_and_foreign_ids_have_no_text() {
    let tokenizer = small();
    assert_eq!(tokenizer.decode(&[id("he"), id("<|eot_id|>"), 1_000_000, u32::MAX]), "he");
    assert_eq!(tokenizer.token_bytes(id("<|eot_id|>")), b"<|eot_id|>");
}

#[test]
fn the_longest_control_token_at_the_leftmost_place_wins() {
    let specials = Specials::new([(1, "<a".into()), (2, "<a>".into()), (3, "a>b".into()), (4, "<<".into())]);
    let expected =
        [Piece::Text("x"), Piece::Special(2), Piece::Text("b"), Piece::Special(4), Piece::Special(1)];
    assert_eq!(specials.pieces("x<a>b<<<a"), expected);
}

#[test]
fn stop_ids_are_the_end_of_turn_and_the_end_of_text() {
    let tokenizer = small();
    assert_eq!(tokenizer.stop_ids(), [id("<|eot_id|>"), id("<|end_of_text|>")]);
}

#[test]
fn a_vocabulary_that_names_no_split_is_refused_unless_it_is_llama_3s() {
    let mut vocabulary = small_vocabulary();
    vocabulary.pre = None;
    assert!(refusal(&vocabulary, None).contains("manifest.toml"));
    vocabulary.pre = Some("deepseek-coder".into());
    assert!(refusal(&vocabulary, None).contains("'deepseek-coder'"));
    assert!(refusal(&vocabulary, Some(&manifest())).contains("differ"));
    vocabulary.pre = None;
    assert!(Tokenizer::from_parts(&vocabulary, Some(&manifest())).is_ok());
}

#[test]
fn all_disagreements_of_file_and_manifest_are_told() {
    let mut manifest = manifest();
    facts(&mut manifest).bos = Some(1);
    facts(&mut manifest).add_bos = false;
    facts(&mut manifest).stop_ids = vec![999_999];
    manifest.shape.vocab = Some(7);
    let refusal = refusal(&small_vocabulary(), Some(&manifest));
    for part in ["bos: the file says 265, the manifest 1", "add_bos:", "stop_ids:", "tokens:"] {
        assert!(refusal.contains(part), "'{part}' is not in {refusal}");
    }
}

#[test]
fn a_broken_vocabulary_is_refused_with_what_is_wrong() {
    let broken = |change: fn(&mut Vocabulary)| {
        let mut vocabulary = small_vocabulary();
        change(&mut vocabulary);
        refusal(&vocabulary, None)
    };
    assert!(broken(|it| it.model = Some("bert".into())).contains("'bert'"));
    assert!(broken(|it| it.tokens.clear()).contains("0 tokens"));
    assert!(broken(|it| it.token_types.truncate(3)).contains("3 token types"));
    assert!(broken(|it| it.bos = Some(u32::MAX)).contains("outside"));
    assert!(broken(|it| it.tokens[1] = it.tokens[0].clone()).contains("are the same"));
    assert!(broken(|it| it.merges.push("no-space".into())).contains("not a pair"));
    assert!(broken(|it| it.merges.push("a b c".into())).contains("not a pair"));
    assert!(broken(|it| it.merges.push("zz zz".into())).contains("vocabulary"));
    assert!(broken(|it| it.merges.push("Ġworld Ġworld".into())).contains("not a pair"));
    assert!(broken(|it| it.tokens[2] = "x".repeat(70_000)).contains("longer"));
}

#[test]
fn a_byte_without_a_token_is_an_error_and_not_lost() {
    let mut vocabulary = small_vocabulary();
    vocabulary.tokens[usize::from(b'q')] = "a word".into();
    let tokenizer = Tokenizer::from_parts(&vocabulary, None).unwrap().tokenizer;
    assert!(tokenizer.encode("queue", false).unwrap_err().to_string().contains("0x71"));
    assert_eq!(tokenizer.encode("he", false).unwrap(), [id("he")]);
}

#[test]
fn very_long_runs_are_tokenized_or_refused_but_never_cut_short() {
    let tokenizer = small();
    for run in [" ", "a", "\n", "1", "!", "é", " \n"] {
        let text = format!("he{}he", run.repeat(300_000));
        match tokenizer.encode(&text, false) {
            Ok(ids) => assert_eq!(tokenizer.decode(&ids), text),
            Err(fault) => assert!(fault.to_string().contains("long run"), "{fault}"),
        }
    }
}

proptest! {
    #[test]
    fn decoding_gives_the_text_back(text in any::<String>()) {
        let tokenizer = small();
        let ids = tokenizer.encode_literal(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
        let mut stream = Stream::new();
        let mut streamed: String = ids.iter().map(|&id| stream.push(&tokenizer, id)).collect();
        streamed.push_str(&stream.finish());
        prop_assert_eq!(streamed, text);
    }

    #[test]
    fn no_vocabulary_makes_the_builder_panic(
        tokens in prop::collection::vec("[aĠ ]{0,3}", 0..8),
        merges in prop::collection::vec("[aĠ ]{0,5}", 0..4),
        kinds in prop::collection::vec(0u32..6, 0..8),
        bos in prop::option::of(0u32..9),
    ) {
        let token_types = kinds.into_iter().map(TokenType::from_id).collect();
        let pre = Some("llama-bpe".to_owned());
        let vocabulary = Vocabulary { tokens, merges, token_types, bos, pre, ..Vocabulary::default() };
        if let Ok(prepared) = Tokenizer::from_parts(&vocabulary, None) {
            let _ = prepared.tokenizer.encode("a Ġ a", true);
        }
    }
}
