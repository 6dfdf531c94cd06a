//! Our tokenizer, built from plain parts, against Hugging Face's crate reading Llama 3's own tokenizer.json:
//! the same ids for odd strings. `tests/fetch/llama3-tokenizer.sh` fetches the file; without it the test is
//! skipped with a line that says so, unless `CI` is set.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ternfleet_text::{Manifest, Message, Role, TokenType, Tokenizer, Vocabulary};

const MANIFEST: &str = include_str!("../../models/bitnet-b1.58-2B-4T/manifest.toml");

fn tokenizer_json() -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/llama3/tokenizer.json"));
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{} is missing: run tests/fetch/llama3-tokenizer.sh",
        path.display()
    );
    eprintln!("SKIPPED: {} is missing; tests/fetch/llama3-tokenizer.sh fetches it", path.display());
    None
}

/// The vocabulary as a GGUF of the model would hold it.
fn vocabulary(path: &Path) -> Vocabulary {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut tokens = vec![String::new(); 128_256];
    let mut token_types = vec![TokenType::Normal; 128_256];
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        tokens[id] = added["content"].as_str().unwrap().to_owned();
        token_types[id] = TokenType::Control;
    }
    let merges = json["model"]["merges"].as_array().unwrap();
    Vocabulary {
        tokens,
        token_types,
        merges: merges.iter().map(|merge| merge.as_str().unwrap().to_owned()).collect(),
        bos: Some(128_000),
        eos: Some(128_001),
        add_bos: Some(true),
        model: Some("gpt2".into()),
        pre: None,
        ..Vocabulary::default()
    }
}

/// Strings that tokenizers get wrong, and a few thousand made by joining their parts.
fn odd_strings() -> Vec<String> {
    const PARTS: [&str; 48] = [
        "",
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        " \n ",
        "\u{a0}",
        "\u{3000}",
        "a",
        "Hello",
        " world",
        "don't",
        "I'LL",
        "'s",
        "'ſ",
        "12345",
        "3.14",
        "１２３",
        "Ⅷ",
        "!",
        "?!...",
        " -- ",
        "naïve",
        "e\u{301}",
        "日本語",
        "한국어",
        "العربية",
        "हिन्दी",
        "🌍",
        "👩‍👩‍👧‍👦",
        "\u{200d}",
        "\u{0}",
        "\u{fffd}",
        "\u{feff}",
        "<|eot_id|>",
        "<|eot_id",
        "|>",
        "<|begin_of_text|>",
        "<|reserved_special_token_250|>",
        "fn main() {\n    let x = 1;\n}",
        "https://a.b/c?d=e",
        "ǅ",
        "ß",
        "ﬁ",
        "Straße",
    ];
    let mut strings: Vec<String> = PARTS.iter().map(|part| (*part).to_owned()).collect();
    strings.push("The future of artificial intelligence is".into());
    strings.push("a".repeat(5_000));
    strings.push(format!("x{}y", " ".repeat(5_000)));
    let mut state = 1u64;
    for _ in 0..4_000 {
        let mut text = String::new();
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(PARTS[(state >> 33) as usize % PARTS.len()]);
        }
        strings.push(text);
    }
    strings
}

#[test]
fn ids_and_texts_are_those_of_the_models_own_tokenizer() {
    let Some(path) = tokenizer_json() else { return };
    let theirs = tokenizers::Tokenizer::from_file(&path).unwrap();
    let ours = Tokenizer::from_parts(&vocabulary(&path), None).unwrap();
    assert!(ours.note.unwrap().contains("Llama 3"));
    let ours = ours.tokenizer;
    for text in odd_strings() {
        let expected = theirs.encode_fast(text.as_str(), false).unwrap();
        let ids = ours.encode(&text, false).unwrap();
        assert_eq!(ids, expected.get_ids(), "{text:?}");
        assert_eq!(ours.decode(&ids), theirs.decode(&ids, true).unwrap(), "{text:?}");
    }
    let theirs = {
        let mut theirs = theirs;
        theirs.set_encode_special_tokens(true);
        theirs
    };
    for text in odd_strings() {
        let expected = theirs.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(ours.encode_literal(&text).unwrap(), expected.get_ids(), "{text:?}");
    }
}

#[test]
fn the_manifest_and_the_vocabulary_alone_give_the_same_tokenizer() {
    let Some(path) = tokenizer_json() else { return };
    let vocabulary = vocabulary(&path);
    let manifest = Manifest::parse(MANIFEST, "the manifest").unwrap();
    let start = Instant::now();
    let told = Tokenizer::from_parts(&vocabulary, Some(&manifest)).unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "building the tokenizer took {took:?}");
    assert_eq!(told.note, None);
    let found = Tokenizer::from_parts(&vocabulary, None).unwrap();
    assert_eq!(told.tokenizer.stop_ids(), found.tokenizer.stop_ids());
    let messages = [Message::new(Role::User, "What is 2+2? <|eot_id|>")];
    let ids = told.tokenizer.encode_chat(&messages).unwrap();
    assert_eq!(ids, found.tokenizer.encode_chat(&messages).unwrap());
    assert_eq!(ids[..3], [128_000, 1_502, 25]); // BOS, "User", ":"
    assert_eq!(ids[ids.len() - 4..], [128_009, 72_803, 25, 220]); // <|eot_id|>, "Assistant", ":", " "
    assert_eq!(ids.iter().filter(|&&id| id >= 128_000).count(), 2);
}
