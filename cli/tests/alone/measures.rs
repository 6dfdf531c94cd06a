//! `ternfleet perplexity` and `ternfleet eval`: what they print, and what they refuse.

use serde_json::Value;

use super::{fields, run, storyteller};

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/tests/data/held-out.txt");

#[test]
fn perplexity_has_two_names_and_two_ways() {
    let model = storyteller();
    let apart = run(&["perplexity", "--model", &model, "--file", TEXT, "--json"]).json();
    let expected = ["bits_per_byte", "n_scored", "n_windows", "perplexity", "standard_error", "windows"];
    assert_eq!(fields(&apart), expected);
    assert_eq!(apart["windows"], serde_json::json!({"context": 512, "first_scored": 256}));
    assert_eq!(
        apart,
        run(&["eval", "perplexity", TEXT, "--model", &model, "--window", "512", "--json"]).json()
    );

    let slid = run(&[
        "perplexity",
        "--model",
        &model,
        "--file",
        TEXT,
        "--context",
        "512",
        "--stride",
        "256",
        "--json",
    ]);
    let slid = slid.json();
    // The figure of the training code for this text is 2.0867.
    assert!((slid["bits_per_byte"].as_f64().unwrap() - 2.0867).abs() < 0.002, "{slid}");
    assert!(slid["n_scored"].as_u64() > apart["n_scored"].as_u64(), "{slid}");

    for (more, word) in [
        (vec!["--file", TEXT, "--context", "4096"], "at most 512"),
        (vec!["--file", TEXT, "--stride", "512"], "stride"),
        (vec!["--file", "no-such.txt"], "no-such.txt"),
    ] {
        let refused = run(&[&["perplexity", "--model", &model], &more[..]].concat());
        assert!(refused.code == Some(1) && refused.stderr.contains(word), "{more:?}: {}", refused.stderr);
    }
    assert_eq!(run(&["perplexity", "--model", &model]).code, Some(64));
}

#[test]
fn continuations_are_scored_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl").display().to_string();
    let lines = "{\"context\": \"Once upon a\", \"continuation\": \" time\"}\n\n\
        {\"context\": \"Once upon a\", \"continuation\": \" turnip\"}\n";
    std::fs::write(&path, lines).unwrap();
    let model = storyteller();
    let scored = run(&["perplexity", "--model", &model, "--continuations", &path, "--json"]);
    assert_eq!(scored.code, Some(0), "{}", scored.stderr);
    let rows: Vec<Value> = scored.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), &rows[0]["line"], &rows[1]["line"]), (2, &Value::from(1), &Value::from(3)));
    assert_eq!(rows[0]["greedy"], true);
    let sum = |row: &Value| row["log_likelihood"].as_f64().unwrap();
    assert!(sum(&rows[0]) > -1.0 && sum(&rows[1]) < sum(&rows[0]) - 3.0, "{rows:?}");

    std::fs::write(&path, "{\"prompt\": \"x\"}\n").unwrap();
    let refused = run(&["perplexity", "--model", &model, "--continuations", &path]);
    assert!(refused.code == Some(1) && refused.stderr.contains("line 1 of"), "{}", refused.stderr);
}

#[test]
fn a_head_is_compared_with_the_full_one() {
    let model = storyteller();
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt").display().to_string();
    std::fs::write(&text, &std::fs::read_to_string(TEXT).unwrap()[..600]).unwrap();
    let kl = |more: &[&str]| run(&[&["eval", "kl", &model, "--text", &text, "--json"], more].concat());
    assert_eq!(kl(&["--head", "screened"]).json()["mean_kl_nats"], 0.0);
    let q8 = kl(&["--head", "q8"]).json();
    let mean = q8["mean_kl_nats"].as_f64().unwrap();
    assert!(mean > 0.0 && mean < 1e-3, "{q8}");
    assert_eq!(kl(&[]).code, Some(64), "B or --head");
}
