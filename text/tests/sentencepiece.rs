//! SentencePiece vocabularies against Hugging Face's crate, which joins the same pairs by a list of merges: those that make a
//! token, the token with the highest score first.
#![allow(clippy::unwrap_used)] // A test may panic.

use proptest::prelude::*;
use ternfleet_text::{TokenType, Tokenizer, Vocabulary};
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

const WORDS: [&str; 30] = [
    "▁",
    "a",
    "b",
    "c",
    "é",
    "日",
    "▁a",
    "▁b",
    "ab",
    "bc",
    "abc",
    "▁ab",
    "▁abc",
    "ca",
    "cab",
    "▁cab",
    "aa",
    "aaa",
    "aaaa",
    "▁aa",
    "bb",
    "▁bb",
    "cc",
    "ac",
    "▁c",
    "▁▁",
    "▁▁▁",
    "éa",
    "日a",
    "▁日",
];

/// Three control tokens, the bytes, then words, the score of each as far below 0 as it stands behind.
fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut token_types = vec![TokenType::Other(2), TokenType::Control, TokenType::Control];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        token_types.push(TokenType::Byte);
    }
    let mut scores = vec![0.0; tokens.len()];
    for (at, word) in WORDS.iter().enumerate() {
        tokens.push((*word).to_owned());
        token_types.push(TokenType::Normal);
        // Longer words are not always the better ones.
        scores.push(-((at * 7 % WORDS.len()) as f32));
    }
    Vocabulary {
        tokens,
        token_types,
        scores,
        bos: Some(1),
        eos: Some(2),
        add_bos: Some(true),
        model: Some("llama".into()),
        ..Vocabulary::default()
    }
}

fn reference(vocabulary: &Vocabulary) -> BPE {
    let is_word = |token: &str| WORDS.contains(&token);
    let score =
        |token: &str| vocabulary.scores[vocabulary.tokens.iter().position(|known| known == token).unwrap()];
    let mut merges = Vec::new();
    for word in WORDS {
        for (cut, _) in word.char_indices().skip(1) {
            let (left, right) = word.split_at(cut);
            if is_word(left) && is_word(right) {
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
    }
    merges.sort_by(|(a, b), (c, d)| score(&format!("{c}{d}")).total_cmp(&score(&format!("{a}{b}"))));
    let ids: tokenizers::models::bpe::Vocab = vocabulary.tokens.iter().cloned().zip(0u32..).collect();
    BPE::builder()
        .vocab_and_merges(ids, merges)
        .byte_fallback(true)
        .unk_token("<unk>".into())
        .build()
        .unwrap()
}

#[test]
fn words_begin_with_a_space_and_what_is_no_token_becomes_bytes() {
    let tokenizer = Tokenizer::from_parts(&vocabulary(), None).unwrap().tokenizer;
    let id = |token: &str| vocabulary().tokens.iter().position(|known| known == token).unwrap() as u32;
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, id("▁a")]);
    assert_eq!(tokenizer.encode("\n", false).unwrap(), [id("▁"), id("<0x0A>")]);
    assert_eq!(tokenizer.decode(&[id("▁a"), id("b"), id("<0xC3>"), id("<0xA9>")]), " abé");
}

proptest! {
    #[test]
    fn ids_are_those_of_the_merges(text in "[abcé日xß \n]{0,24}") {
        let vocabulary = vocabulary();
        let tokenizer = Tokenizer::from_parts(&vocabulary, None).unwrap().tokenizer;
        let spelled = if text.is_empty() { String::new() } else { format!("▁{}", text.replace(' ', "▁")) };
        let expected: Vec<u32> = reference(&vocabulary).tokenize(&spelled).unwrap().iter().map(|token| token.id).collect();
        prop_assert_eq!(tokenizer.encode(&text, false).unwrap(), expected);
    }
}
