use serde_json::json;
use ternfleet_text::tokenizer::{LLAMA3_SPLIT, compare};

use super::*;
use crate::gguf::{self, File};

/// A small tokenizer.json, changed by `change`, as the keys of a GGUF.
fn written(change: impl FnOnce(&mut Value)) -> Result<(File, Option<String>), Error> {
    let mut value = byte_level();
    change(&mut value);
    let folder = tempfile::tempdir().unwrap();
    keys(&value, folder.path(), 7)
}

/// The keys of a GGUF for a tokenizer.json, which is left in the folder.
fn keys(json: &Value, folder: &Path, n_vocab: usize) -> Result<(File, Option<String>), Error> {
    std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
    let mut plan = Plan::default();
    let note = write(&mut plan, folder, n_vocab)?;
    let bytes = plan.begin(Vec::new()).unwrap().finish().unwrap();
    Ok((File::from_bytes(bytes).unwrap(), note))
}

fn byte_level() -> Value {
    json!({
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "added_tokens": [
            {"id": 4, "content": "<|eot_id|>", "special": true},
            {"id": 6, "content": "[tool]", "special": false},
        ],
        "model": {"type": "BPE", "ignore_merges": true, "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": ["a b"]},
    })
}

#[test]
fn tokens_types_and_merges_are_those_of_the_file() {
    let (file, note) = written(|_| ()).unwrap();
    assert_eq!(note, None);
    let vocabulary = gguf::vocabulary(&file).unwrap();
    assert_eq!(vocabulary.tokens, ["a", "b", "ab", "Ġ", "<|eot_id|>", "[UNUSED_5]", "[tool]"]);
    assert_eq!(file.integers("tokenizer.ggml.token_type").unwrap().unwrap(), [1, 1, 1, 1, 3, 5, 4]);
    assert_eq!(vocabulary.merges, ["a b"]);
    assert_eq!(vocabulary.pre.as_deref(), Some("llama-bpe"));
    let tokenizer = ternfleet_text::Tokenizer::from_parts(&vocabulary, None).unwrap().tokenizer;
    assert_eq!(tokenizer.encode("ab <|eot_id|>[tool]", false).unwrap(), [2, 3, 4, 6]);
}

#[test]
fn merges_may_be_pairs() {
    let (file, _) = written(|json| json["model"]["merges"] = json!([["a", "b"]])).unwrap();
    assert_eq!(file.strings("tokenizer.ggml.merges").unwrap().unwrap(), ["a b"]);
}

#[test]
fn another_split_has_no_name_and_is_reported() {
    let changes: [fn(&mut Value); 4] = [
        |json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("\\s+"),
        |json| json["model"]["ignore_merges"] = json!(false),
        |json| json["normalizer"] = json!({"type": "NFC"}),
        |json| json["pre_tokenizer"] = Value::Null,
    ];
    for change in changes {
        let (file, note) = written(change).unwrap();
        assert_eq!(file.text("tokenizer.ggml.pre").unwrap(), None);
        assert!(note.unwrap().contains("manifest.toml"));
    }
}

#[test]
fn a_broken_tokenizer_is_refused_by_field() {
    type Change = (fn(&mut Value), &'static str);
    let changes: [Change; 5] = [
        (|json| json["model"]["type"] = json!("Unigram"), "model.type"),
        (|json| json["model"]["vocab"]["z"] = json!(7), "id 7 is outside"),
        (|json| json["model"]["vocab"]["z"] = json!(-1), "id -1 is outside"),
        (|json| json["model"]["merges"] = json!([["a"]]), "not a pair"),
        (|json| json["added_tokens"][0]["content"] = json!(5), "added_tokens"),
    ];
    for (change, part) in changes {
        let refusal = written(change).unwrap_err().to_string();
        assert!(refusal.contains(part), "'{part}' is not in: {refusal}");
    }
}

/// A small SentencePiece tokenizer as `tokenizer.json` has it: the bytes, then letters and words, each with all merges that make
/// it, in another order than that of their lengths.
fn pieces() -> Value {
    let words = [
        "th",
        "the",
        "▁t",
        "▁the",
        "in",
        "ing",
        "an",
        "and",
        "▁a",
        "▁an",
        "▁and",
        "er",
        "ver",
        "over",
        "he",
        "qu",
        "▁qu",
        "ick",
        "ck",
        "ic",
        "ow",
        "own",
        "br",
        "▁b",
        "▁br",
        "▁▁",
        "▁▁▁▁",
        "ss",
        "st",
        "ost",
        "um",
        "mp",
        "ump",
        "19",
        "'s",
        "//",
        "日本",
        "本語",
        "日本語",
        "ий",
        "ски",
        "er▁",
    ];
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let mut letters: Vec<char> = words.iter().flat_map(|word| word.chars()).collect();
    letters.extend('a'..='z');
    letters.sort_unstable();
    letters.dedup();
    tokens.extend(letters.iter().map(char::to_string));
    let joined = tokens.len();
    tokens.extend(words.map(str::to_owned));
    let known = |token: &str| tokens[259..].iter().any(|known| known == token);
    let mut merges = Vec::new();
    for at in 0..words.len() {
        let word = words[at * 5 % words.len()];
        for (cut, _) in word.char_indices().skip(1) {
            let (left, right) = word.split_at(cut);
            if known(left) && known(right) {
                merges.push(json!([left, right]));
            }
        }
    }
    assert!(joined > 259 && merges.len() > words.len());
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().zip((0..).map(|id: u32| json!(id))).collect();
    let special = |id: u32, token: &str| json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": merges,
        },
    })
}

fn n_tokens(json: &Value) -> usize {
    json["model"]["vocab"].as_object().unwrap().len()
}

#[test]
fn sentencepiece_gives_the_ids_of_its_tokenizer_json() {
    let folder = tempfile::tempdir().unwrap();
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false});
    let mut without_prefix = pieces();
    without_prefix["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut split = pieces();
    (split["normalizer"], split["pre_tokenizer"]) = (Value::Null, metaspace);
    for (json, prefix) in [(pieces(), true), (without_prefix, false), (split, false)] {
        let (file, note) = keys(&json, folder.path(), n_tokens(&json)).unwrap();
        assert_eq!((file.boolean("tokenizer.ggml.add_space_prefix").unwrap(), note), (Some(prefix), None));
        let vocabulary = gguf::vocabulary(&file).unwrap();
        assert_eq!(file.integers("tokenizer.ggml.token_type").unwrap().unwrap()[..5], [2, 3, 3, 6, 6]);
        let tokenizer = ternfleet_text::Tokenizer::from_parts(&vocabulary, None).unwrap().tokenizer;
        let (n_texts, differences) = compare(&tokenizer, &folder.path().join("tokenizer.json")).unwrap();
        assert!(n_texts > 20);
        assert_eq!(differences, []);
    }
}

#[test]
fn sentencepiece_that_no_scores_can_say_is_refused() {
    type Change = (fn(&mut Value), &'static str);
    let changes: [Change; 5] = [
        (
            |json| drop(json["model"]["merges"].as_array_mut().unwrap().pop()),
            "is missing, but scores would merge it",
        ),
        (
            |json| {
                let merges = json["model"]["merges"].as_array_mut().unwrap();
                let three = merges.iter().position(|merge| *merge == json!(["▁t", "he"])).unwrap();
                let moved = merges.remove(three);
                merges.push(moved);
            },
            "is not next to the other merges",
        ),
        (|json| json["normalizer"]["normalizers"][0]["prepend"] = json!("_"), "normalizer"),
        (|json| json["normalizer"] = json!({"type": "NFKC"}), "normalizer"),
        (|json| json["model"]["type"] = json!("Unigram"), "model.type"),
    ];
    for (change, part) in changes {
        let mut json = pieces();
        change(&mut json);
        let folder = tempfile::tempdir().unwrap();
        let n_vocab = n_tokens(&json);
        let refusal = keys(&json, folder.path(), n_vocab).unwrap_err().to_string();
        assert!(refusal.contains(part), "'{part}' is not in: {refusal}");
    }
}
