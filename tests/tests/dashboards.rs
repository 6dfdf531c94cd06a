//! Dashboards, rules and documentation name only metrics that exist, and are what their sources make of them.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use ternfleet_coordinator::Metrics;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("because tests/ is a folder of the repository")
        .to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Words of a query that look like names of ours.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with("ternfleet_"))
        .map(str::to_owned)
        .collect()
}

/// Every series name that the coordinator exposes, with the three of each histogram.
fn known() -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for metric in Metrics::default().described() {
        if metric.kind == "histogram" {
            known.extend(["bucket", "sum", "count"].map(|part| format!("{}_{part}", metric.name)));
        }
        known.insert(metric.name);
    }
    known
}

fn dashboards() -> Vec<(String, Value)> {
    ["fleet", "batches", "engine", "reliability"]
        .map(|name| {
            (name.to_owned(), serde_json::from_str(&read(&format!("dashboards/{name}.json"))).unwrap())
        })
        .into()
}

#[test]
fn every_query_of_every_panel_names_metrics_that_exist() {
    let known = known();
    for (name, dashboard) in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            let queries: Vec<&str> = panel["targets"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|target| target["expr"].as_str())
                .collect();
            assert!(!queries.is_empty(), "{name}: {} asks nothing", panel["title"]);
            for metric in queries.into_iter().flat_map(names) {
                assert!(
                    known.contains(&metric),
                    "{name}: {} names {metric}, which nobody counts",
                    panel["title"]
                );
            }
        }
    }
}

#[test]
fn every_panel_says_its_question_unit_and_source() {
    for (name, dashboard) in dashboards() {
        let mut ids = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(
                panel["description"].as_str().unwrap().contains(['?', '.']),
                "{name}: {title} has no question"
            );
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name}: {title} has no unit");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: two panels have one id");
            assert!(
                read(&format!("dashboards/{name}.md")).contains(title),
                "{name}.md does not speak of {title}"
            );
        }
    }
}

#[test]
fn rules_name_metrics_that_exist_and_alerts_link_to_the_runbook() {
    let known = known();
    let runbook = read("docs/runbook.md");
    let sections: BTreeSet<String> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|title| title.to_lowercase().replace(' ', "-"))
        .collect();
    for file in ["dashboards/rules/alerts.yml", "dashboards/rules/recording.yml"] {
        for line in read(file).lines() {
            if let Some(query) = line.trim().strip_prefix("expr:") {
                for metric in names(query) {
                    assert!(known.contains(&metric), "{file} names {metric}, which nobody counts");
                }
            }
            if let Some(link) = line.trim().strip_prefix("runbook: docs/runbook.md#") {
                assert!(sections.contains(link), "{file} links to a section {link:?} that the runbook lacks");
            }
        }
    }
}

#[test]
fn the_table_of_metrics_in_the_docs_is_the_one_in_the_code() {
    let mut page = String::from(
        "# Metrics\n\nWhat `/metrics` of a coordinator exposes; this page is made from the code. Labels have closed sets of \
         values, but for `pod`, `class` and `batch`, which name what is live.\n\n| name | kind | labels | help |\n|---|---|---|---|\n",
    );
    for metric in Metrics::default().described() {
        let labels = metric.labels.join(", ");
        page.push_str(&format!("| `{}` | {} | {labels} | {} |\n", metric.name, metric.kind, metric.help));
    }
    let path = root().join("docs/metrics.md");
    if std::env::var_os("TERNFLEET_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert_eq!(
        read("docs/metrics.md"),
        page,
        "run this test once with TERNFLEET_BLESS=1 and commit docs/metrics.md"
    );
}

#[test]
fn the_dashboards_are_as_their_script_makes_them() {
    let output =
        Command::new("python3").arg(root().join("dashboards/build.py")).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
