//! A real fleet, watched by a real Prometheus: every query of every panel and rule is asked while a batch runs.
//!
//! Ignored unless asked for: `scripts/system-tests.sh` installs Prometheus where it can and runs it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use ternfleet_tests::program::{LocalFleet, wait_for};

const DASHBOARDS: [&str; 4] = ["fleet", "batches", "engine", "reliability"];
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);

/// A query of a panel, and when it must have an answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Query {
    panel: String,
    expr: String,
    always: bool,
}

#[test]
#[ignore = "needs Prometheus; scripts/system-tests.sh runs it"]
fn every_panel_and_every_rule_has_an_answer_on_a_real_fleet() {
    let fleet = LocalFleet::start(&["--prometheus", "--price-usd-per-hour", "0.34,1.19"]).unwrap();
    let prometheus = fleet.addresses.prometheus.clone().unwrap();
    // Long enough for any machine; it is cancelled once everything has been seen. One line is no request.
    let mut lines: String = (0..5000)
        .map(|n| {
            format!("{{\"prompt\": \"Tale {n}: once upon a time\", \"max_tokens\": 150, \"seed\": {n}}}\n")
        })
        .collect();
    lines.push_str("{\"promt\": 1}\n");
    let input = fleet.write("in.jsonl", &lines).unwrap();
    let submit = fleet.run(&["submit", &input, "--detach", "--budget", "5", "--deadline", "1h"]).unwrap();
    assert_eq!(submit.code, Some(0), "{submit:?}");
    let batch = submit.stdout.trim().to_owned();

    // A batch that ends once Prometheus looks on, so that it sees a bill being compared with its quote; bills of a few
    // micro-dollars are not.
    let looks_on = || Ok(has_data(&ask(&prometheus, "ternfleet_quote_error_ratio_count")).then_some(()));
    wait_for(ANSWERS_WITHIN, looks_on).expect("Prometheus scrapes the coordinator");
    let small: String =
        (0..80).map(|n| format!("{{\"prompt\": \"Once\", \"max_tokens\": 60, \"seed\": {n}}}\n")).collect();
    let small = fleet.write("small.jsonl", &small).unwrap();
    let ended = fleet.run(&["submit", &small]).unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");

    let mut unanswered: BTreeSet<Query> = DASHBOARDS.into_iter().flat_map(queries).collect();
    let all = unanswered.clone();
    assert!(all.len() > 80, "{} queries", all.len());
    let metrics = metrics_of_rules();
    let mut unseen = metrics.clone();
    let seen = wait_for(ANSWERS_WITHIN, || {
        unanswered.retain(|query| !has_data(&ask(&prometheus, &query.expr)));
        unseen.retain(|metric| !has_data(&ask(&prometheus, metric)));
        Ok((unanswered.is_empty() && unseen.is_empty()).then_some(()))
    });
    assert!(seen.is_ok(), "no data for {unanswered:#?} {unseen:?}");

    rules_are_loaded_and_healthy(&prometheus);
    every_panel_can_be_drawn(&prometheus, &fleet.dir.join("pictures"));

    let cancelled = fleet.run(&["cancel", &batch]).unwrap();
    assert_eq!(cancelled.code, Some(0), "{cancelled:?}");
    wait_for(ANSWERS_WITHIN, || {
        let gone = ask(&prometheus, "max(ternfleet_batches_active) == 0");
        let series = ask(&prometheus, &format!("ternfleet_batch_jobs{{batch=\"{batch}\"}}"));
        Ok((has_data(&gone) && !has_data(&series)).then_some(()))
    })
    .expect("the series of a batch end with it");
    for query in all.iter().filter(|query| query.always) {
        assert!(has_data(&ask(&prometheus, &query.expr)), "no data without a batch: {query:?}");
    }
}

/// The queries of a dashboard as its panels ask them, everything chosen.
fn queries(dashboard: &str) -> Vec<Query> {
    let text = |ending: &str| {
        let path = format!("{}/../dashboards/{dashboard}.{ending}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let page = text("md");
    let json: Value = serde_json::from_str(&text("json")).unwrap();
    let mut found = Vec::new();
    for panel in json["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let row = page.lines().find(|line| line.starts_with(&format!("| {title} |"))).unwrap();
        let always = match row.split(" | ").nth(2).unwrap() {
            "always" => true,
            "during a batch" | "after a batch" => false,
            other => panic!("{dashboard}.md: {title} has data {other:?}"),
        };
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            let expr = expr.replace("$__rate_interval", "10s").replace("$__range", "1m");
            let expr = ["job", "pod", "class", "batch"]
                .iter()
                .fold(expr, |expr, variable| expr.replace(&format!("${variable}"), ".+"));
            assert!(!expr.contains('$'), "{expr}");
            found.push(Query { panel: format!("{dashboard}: {title}"), expr, always });
        }
    }
    found
}

/// Every metric of ours that a rule names.
fn metrics_of_rules() -> BTreeSet<String> {
    let file = |name: &str| {
        std::fs::read_to_string(format!("{}/../dashboards/rules/{name}.yml", env!("CARGO_MANIFEST_DIR")))
            .unwrap()
    };
    let text = file("alerts") + &file("recording");
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .flat_map(|query| query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')))
        .filter(|word| word.starts_with("ternfleet_"))
        .map(str::to_owned)
        .collect()
}

fn rules_are_loaded_and_healthy(prometheus: &str) {
    let evaluated = wait_for(ANSWERS_WITHIN, || {
        let groups = get(prometheus, "/api/v1/rules")["data"]["groups"].clone();
        let rules: Vec<Value> = groups
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|group| group["rules"].as_array().unwrap().clone())
            .collect();
        let names = |kind: &str| rules.iter().filter(|rule| rule["type"] == kind).count();
        assert!(names("alerting") >= 14 && names("recording") >= 4, "{rules:#?}");
        let sick: Vec<&Value> = rules.iter().filter(|rule| rule["health"] == "err").collect();
        assert!(sick.is_empty(), "{sick:#?}");
        Ok(rules.iter().all(|rule| rule["health"] == "ok").then_some(rules))
    })
    .unwrap();
    for rule in &evaluated {
        let name = rule["name"].as_str().unwrap();
        if rule["type"] == "recording" {
            let recorded = wait_for(ANSWERS_WITHIN, || Ok(has_data(&ask(prometheus, name)).then_some(())));
            assert!(recorded.is_ok(), "{name} records nothing");
        }
    }
    // The local fleet's NATS does not sync before it answers, and nothing else is wrong with it.
    let raised: Vec<&str> = evaluated
        .iter()
        .filter(|rule| rule["state"] == "pending" || rule["state"] == "firing")
        .filter_map(|rule| rule["name"].as_str())
        .collect();
    assert_eq!(raised, ["TernfleetNotFsynced"]);
}

/// By the script that draws the pictures in the documentation.
fn every_panel_can_be_drawn(prometheus: &str, out: &Path) {
    let script = format!("{}/../dashboards/draw.py", env!("CARGO_MANIFEST_DIR"));
    let mut draw = Command::new("python3");
    draw.args([&script, "--prometheus", prometheus, "--minutes", "1", "--out"]).arg(out);
    let ended = draw.output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    for name in DASHBOARDS {
        let picture = std::fs::read_to_string(out.join(format!("{name}.svg"))).unwrap();
        assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"), "{name}");
        assert!(!picture.contains("no data") && !picture.contains("nan"), "{name} has an empty panel");
    }
}

fn ask(prometheus: &str, query: &str) -> Value {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = get(prometheus, &format!("/api/v1/query?query={encoded}"));
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    answer
}

/// A sample that is a number.
fn has_data(answer: &Value) -> bool {
    let samples = answer["data"]["result"].as_array().unwrap();
    samples.iter().any(|sample| sample["value"][1].as_str().is_some_and(|value| value != "NaN"))
}

fn get(address: &str, path: &str) -> Value {
    let (_, body) = ternfleet_tests::http::get_blocking(address, path);
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}
