use serde_json::json;
use ternfleet_text::tokenizer::LLAMA3_SPLIT;

use super::*;
use crate::gguf::{self, File};

/// A small tokenizer.json, changed by `change`, as the keys of a GGUF.
fn written(change: impl FnOnce(&mut Value)) -> Result<(File, Option<String>), Error> {
    let mut value = json!({
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
    });
    change(&mut value);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), value.to_string()).unwrap();
    let mut plan = Plan::default();
    let note = write(&mut plan, folder.path(), 7)?;
    let bytes = plan.begin(Vec::new()).unwrap().finish().unwrap();
    Ok((File::from_bytes(bytes).unwrap(), note))
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
fn another_split_is_left_unnamed_and_said_aloud() {
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
        (|json| json["model"]["merges"] = json!([["a"]]), "no pair"),
        (|json| json["added_tokens"][0]["content"] = json!(5), "added_tokens"),
    ];
    for (change, part) in changes {
        let refusal = written(change).unwrap_err().to_string();
        assert!(refusal.contains(part), "'{part}' is not in: {refusal}");
    }
}
