use super::*;

const SHIPPED: &str = include_str!("../../../models/bitnet-b1.58-2B-4T/manifest.toml");

fn faults(text: &str) -> Vec<String> {
    match Manifest::parse(text, "test") {
        Err(Error::Manifest { faults, .. }) => faults,
        other => panic!("{other:?} is no list of faults"),
    }
}

#[test]
fn the_manifest_of_the_official_model_is_read() {
    let manifest = Manifest::parse(SHIPPED, "test").unwrap();
    assert_eq!(manifest.tokenizer.unwrap().stop_ids, [128_009, 128_001]);
    assert_eq!(manifest.shape.vocab, Some(128_256));
    assert_eq!(manifest.chat.unwrap().template, crate::chat::BITNET_2B_4T);
    let sha256 = manifest.source.unwrap().sha256.unwrap();
    assert!(sha256.starts_with("4221b252"), "{sha256}");
}

#[test]
fn every_manifest_of_this_repository_is_read() {
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../models");
    let mut n_read = 0;
    for folder in std::fs::read_dir(models).unwrap() {
        let path = folder.unwrap().path().join(FILE_NAME);
        if path.exists() {
            Manifest::open(&path).unwrap();
            n_read += 1;
        }
    }
    assert!(n_read >= 1, "no manifest under {models}");
}

#[test]
fn all_faults_come_at_once() {
    let text = "name = 3\nlicense = 'MIT'\n[tokenizer]\nkind = 'wordpiece'\nbos = -1\nsplit = '('\n\
        [shape]\nn_layers = 0\n[sampling]\ntop_p = 1.5\n[source]\nfile = '../x'\nsha256 = 'abc'\n";
    let faults = faults(text).join("\n");
    for part in [
        "name: expected text, found 3",
        "description: it is missing",
        "licence: it is missing",
        "license: unknown key",
        "[tokenizer] kind: 'wordpiece'",
        "[tokenizer] bos: expected an integer of at least 0",
        "[tokenizer] split: it is not a valid regular expression",
        "[tokenizer] stop_ids: it is missing",
        "[shape] n_layers: expected a positive integer",
        "[sampling] top_p: expected a number between 0 and 1",
        "[source] file: it must be a file name",
        "[source] sha256: it must be 64 lower-case",
    ] {
        assert!(faults.contains(part), "'{part}' is not among:\n{faults}");
    }
}

#[test]
fn a_misspelt_key_is_refused_wherever_it_stands() {
    for section in ["", "[source]\n", "[shape]\n", "[tokenizer]\n", "[chat]\n", "[sampling]\n"] {
        let text = if section.is_empty() {
            format!("surprise = 1\n{SHIPPED}")
        } else {
            SHIPPED.replace(section, &format!("{section}surprise = 1\n"))
        };
        let faults = faults(&text);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].ends_with("surprise: unknown key"), "{faults:?}");
    }
}

#[test]
fn a_template_that_does_not_parse_is_a_fault() {
    let text = SHIPPED.replace("{% endfor %}", "");
    assert!(faults(&text)[0].starts_with("[chat] template"));
}

#[test]
fn a_manifest_is_found_beside_its_model_file_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    assert_eq!(Manifest::beside(&model).unwrap(), None);
    std::fs::write(folder.path().join(FILE_NAME), SHIPPED).unwrap();
    assert_eq!(Manifest::beside(&model).unwrap().unwrap().name, "bitnet-b1.58-2B-4T");
}

#[test]
fn a_manifest_may_leave_the_tokenizer_to_the_file() {
    let text = "name = 'some-model'\ndescription = 'd'\nlicence = 'MIT'\n";
    assert_eq!(Manifest::parse(text, "test").unwrap().tokenizer, None);
    let manifest = Manifest::parse(&format!("{text}not_runnable = 'no kernel'\n"), "test").unwrap();
    assert_eq!((manifest.tokenizer, manifest.not_runnable.as_deref()), (None, Some("no kernel")));
}

#[test]
fn a_pre_tokenizer_by_name_brings_splits_normaliser_and_merging_along() {
    let text = |tokenizer: &str| {
        format!(
            "name = 'm'\ndescription = 'd'\nlicence = 'MIT'\n[tokenizer]\n{tokenizer}\nadd_bos = \
             false\neos = 1\nstop_ids = [1]\n"
        )
    };
    let facts = Manifest::parse(&text("kind = 'bpe'\npre = 'qwen2'"), "test").unwrap().tokenizer.unwrap();
    assert_eq!((facts.splits.len(), facts.normalizer, facts.ignore_merges), (1, Normalizer::Nfc, false));
    assert_eq!((facts.bos, facts.pre), (None, Some(&["qwen2"][..])));
    let facts = Manifest::parse(&text("kind = 'bpe'\nsplit = ['[a-z]+', '[0-9]']"), "test")
        .unwrap()
        .tokenizer
        .unwrap();
    assert_eq!((facts.splits, facts.pre), (vec!["[a-z]+".to_owned(), "[0-9]".to_owned()], None));
    let facts = Manifest::parse(&text("kind = 'sentencepiece'"), "test").unwrap().tokenizer.unwrap();
    assert_eq!(facts.kind, Kind::SentencePiece);
    assert!(faults(&text("kind = 'bpe'\npre = 'gpt-9'"))[0].starts_with("[tokenizer] pre: 'gpt-9'"));
    assert!(faults(&text("kind = 'bpe'"))[0].starts_with("[tokenizer] split: it is missing"));
}

#[test]
fn names_become_folders_and_addresses_have_a_scheme() {
    for name in ["../up", ".hidden", "a/b", "", "two words"] {
        let found = faults(&SHIPPED.replace("bitnet-b1.58-2B-4T\"", &format!("{name}\"")));
        assert!(found.iter().any(|fault| fault.starts_with("name: it must consist")), "{name:?}: {found:?}");
    }
    let found = faults(&SHIPPED.replace("https://", "ftp://"));
    assert!(found[0].starts_with("[source] url: it must begin"), "{found:?}");
}

#[test]
fn text_that_is_no_toml_is_told_with_its_place() {
    assert!(faults("name = ")[0].contains("line 1"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(cut in 0..SHIPPED.len(), put in ".{0,12}") {
        let mut text = SHIPPED.to_owned();
        if text.is_char_boundary(cut) {
            text.insert_str(cut, &put);
        }
        let _ = Manifest::parse(&text, "test");
    }
}
