//! Each name against Hugging Face's crate, which reads the expressions as a `tokenizer.json` has them: the same pieces of the
//! stored text. The expressions are written out here a second time, as the table of pre-tokenizers of llama.cpp and
//! bitnet.cpp has them.

use serde_json::json;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::{NormalizedString, Normalizer as _, OffsetReferential, OffsetType};
use tokenizers::{PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper};

use super::super::split::Split;
use super::*;

const SAMPLE: &str = include_str!("../sample.txt");
/// The letters of an accent apart, so that composing them shows.
const APART: &str = "cafe\u{301} 1234 A\u{30a}ngstro\u{308}m\n";

const LLAMA3: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const QWEN: &[&str] = &[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const FALCON: &[&str] = &[
    r"[\p{P}\$\+<=>\^~\|`]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"[0-9]",
];

fn ours(name: &str, text: &str) -> Vec<String> {
    let pre = named(name).unwrap();
    let text = pre.normalizer.apply(text).unwrap();
    let mut pieces = Vec::new();
    let split = Split::new(pre.splits.iter().copied()).unwrap();
    split
        .each(&text, |piece| {
            pieces.push(piece.to_owned());
            Ok(())
        })
        .unwrap();
    pieces
}

fn theirs(splits: &[&str], composes: bool, text: &str) -> Vec<String> {
    let mut text = NormalizedString::from(text);
    if composes {
        NFC.normalize(&mut text).unwrap();
    }
    let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let splits: Vec<serde_json::Value> = splits.iter().map(split).collect();
    let sequence = json!({"type": "Sequence", "pretokenizers": splits});
    let sequence: PreTokenizerWrapper = serde_json::from_value(sequence).unwrap();
    let mut pieces = PreTokenizedString::from(text);
    sequence.pre_tokenize(&mut pieces).unwrap();
    let pieces = pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    pieces.into_iter().map(|(piece, ..)| piece.to_owned()).collect()
}

#[test]
fn every_name_cuts_as_the_crate_of_hugging_face_does() {
    let table = [
        ("llama-bpe", LLAMA3, false, true, true),
        ("qwen2", QWEN, true, false, false),
        ("falcon3", LLAMA3, false, true, true),
        ("falcon_e", FALCON, false, false, false),
    ];
    assert_eq!(table.map(|row| row.0), PRES.map(|pre| pre.names[0]), "no name is left out");
    let mut n_pieces = Vec::new();
    for (name, splits, composes, ignore_merges, add_bos) in table {
        let pre = named(name).unwrap();
        assert_eq!((pre.ignore_merges, pre.add_bos), (ignore_merges, add_bos), "{name}");
        let whole = format!("{SAMPLE}{APART}");
        for text in whole.lines().chain(whole.split_inclusive('\n')).chain([whole.as_str()]) {
            let pieces = ours(name, text);
            assert_eq!(pieces, theirs(splits, composes, text), "{name}: {text:?}");
            assert!(composes || pieces.concat() == text, "{name}: nothing is lost");
        }
        n_pieces.push(ours(name, &whole).len());
    }
    assert!(
        n_pieces[0] != n_pieces[1] && n_pieces[0] != n_pieces[3] && n_pieces[1] != n_pieces[3],
        "{n_pieces:?}"
    );
}

#[test]
fn what_tells_the_names_apart() {
    let text = "I'LL pay $1234, don't!";
    let llama3 = ["I", "'LL", " pay", " $", "123", "4", ",", " don", "'t", "!"];
    assert_eq!(ours("llama-bpe", text), llama3);
    assert_eq!(ours("falcon3", text), llama3);
    assert_eq!(ours("qwen2", text), ["I", "'LL", " pay", " $", "1", "2", "3", "4", ",", " don", "'t", "!"]);
    let falcon_e = ["I", "'", "LL", " pay", " ", "$", "1", "2", "3", "4", ",", " don", "'", "t", "!"];
    assert_eq!(ours("falcon_e", text), falcon_e);
    assert_eq!(ours("qwen2", "e\u{301}"), ["é"]);
}
