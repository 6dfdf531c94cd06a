//! Dashboards, rules and documentation name only metrics that exist, and are what their sources make of them.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use ternfleet_coordinator::Metrics;
use ternfleet_tests::program::run;

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

/// What Grafana's linter asks of a dashboard, but for a filter by `instance`: the figures of a fleet come from whichever
/// coordinator leads, so that filter would hide them after a takeover.
#[test]
fn dashboards_keep_the_linters_rules() {
    let metrics: BTreeMap<String, &str> =
        Metrics::default().described().into_iter().map(|metric| (metric.name, metric.kind)).collect();
    for (name, dashboard) in dashboards() {
        assert!(dashboard["schemaVersion"].as_u64() >= Some(41), "{name}");
        assert_eq!(dashboard["editable"], false, "{name}: it is provisioned");
        let others: Vec<&str> =
            dashboard["links"].as_array().unwrap().iter().filter_map(|link| link["url"].as_str()).collect();
        for other in ["fleet", "batches", "engine", "reliability"].into_iter().filter(|other| *other != name)
        {
            assert!(
                others.contains(&format!("/d/ternfleet-{other}").as_str()),
                "{name} has no link to {other}"
            );
        }
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let variable = |wanted: &str| variables.iter().find(|v| v["name"] == wanted).unwrap();
        assert_eq!(variable("datasource")["type"], "datasource", "{name}");
        assert_eq!(variable("datasource")["label"], "Data source", "{name}");
        for one in variables.iter().filter(|v| v["type"] == "query") {
            assert_eq!(
                (&one["multi"], &one["includeAll"], &one["refresh"]),
                (&true.into(), &true.into(), &2.into())
            );
            assert_eq!(one["allValue"], ".+", "{name}: {one}");
        }
        variable("job");
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = &panel["title"];
            let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().unwrap();
            assert!(steps[0]["value"].is_null() && steps[0]["color"].is_string(), "{name}: {title}");
            for query in panel["targets"].as_array().unwrap().iter().filter_map(|t| t["expr"].as_str()) {
                for (at, metric) in query.match_indices("ternfleet_") {
                    let series: String =
                        query[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                    let after = &query[at + series.len()..];
                    assert!(
                        after.starts_with("{job=~\"$job\""),
                        "{name}: {title}: {metric} of any job in {query}"
                    );
                    let counts = metrics.get(&series).is_none_or(|kind| *kind == "counter");
                    let before = &query[..at];
                    let inside = ["rate(", "increase("].iter().any(|call| before.ends_with(call));
                    assert!(
                        !counts || inside,
                        "{name}: {title}: the counter {series} is shown raw in {query}"
                    );
                }
                let fixed = query.split('[').skip(1).any(|range| !range.starts_with("$__"));
                assert!(!fixed, "{name}: {title}: a range that does not follow the screen in {query}");
            }
        }
    }
}

/// By Grafana's published types, as npm has them: there is no Grafana here to be asked.
#[test]
fn every_field_of_the_dashboards_is_one_that_grafana_knows() {
    let modules = root().join("target/npm");
    if !modules.join("node_modules/@grafana/schema").is_dir() {
        assert!(std::env::var_os("CI").is_none(), "npm is missing: scripts/fetch-npm-clients.sh got nothing");
        eprintln!("skipped: npm is not here, so @grafana/schema could not be fetched");
        return;
    }
    let check = |folder: &Path| {
        let script = root().join("tests/clients/npm/dashboards.mjs");
        let output = Command::new("node").arg(script).arg(folder).arg(&modules).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (fits, said) = check(&root().join("dashboards"));
    assert!(fits && said.contains("panels are as @grafana/schema"), "{said}");
    // And what Grafana does not know is found.
    let spoiled = tempfile::tempdir().unwrap();
    let text = read("dashboards/reliability.json").replacen("\"lineWidth\"", "\"lineWith\"", 1);
    std::fs::write(spoiled.path().join("reliability.json"), text).unwrap();
    let (fits, said) = check(spoiled.path());
    assert!(!fits && said.starts_with("1 faults") && said.contains("lineWith"), "{said}");
}

/// What a person looks for first stands first.
#[test]
fn firing_alerts_stand_on_top_of_every_dashboard_and_cost_and_bound_next_on_the_first() {
    for (name, dashboard) in dashboards() {
        let panels = dashboard["panels"].as_array().unwrap();
        let first = &panels[0];
        assert_eq!((&first["title"], &first["gridPos"]["y"]), (&"Firing alerts".into(), &0.into()), "{name}");
        assert!(
            first["targets"][0]["expr"].as_str().unwrap().contains("ALERTS{alertstate=\"firing\""),
            "{name}"
        );
        let titles: Vec<&str> = panels[1..3].iter().filter_map(|panel| panel["title"].as_str()).collect();
        if name == "fleet" {
            assert_eq!(titles, ["Cost per 1M tokens", "Bound per 1M tokens"]);
        }
    }
}

#[test]
fn good_is_green_errors_are_red_numbers_that_are_codes_have_words_and_batches_have_names() {
    let mut colored = BTreeMap::new();
    for (name, dashboard) in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            for one in panel["fieldConfig"]["overrides"].as_array().unwrap() {
                let color = one["properties"][0]["value"]["fixedColor"].as_str().unwrap().to_owned();
                let matcher = one["matcher"]["options"].as_str().unwrap().to_owned();
                let before = colored.insert(matcher.clone(), color.clone());
                assert!(before.is_none_or(|before| before == color), "{name}: two colors for {matcher}");
            }
            for target in panel["targets"].as_array().unwrap() {
                let (expr, legend) =
                    (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap());
                let code = ["durability_level", "nats_connected", "ternfleet_leader"]
                    .iter()
                    .any(|c| expr.contains(c));
                assert!(
                    !code || panel["fieldConfig"]["defaults"]["mappings"].is_array(),
                    "{name}: {}",
                    panel["title"]
                );
                assert!(
                    !expr.contains("ternfleet_batch_") || legend == "{{name}}",
                    "{name}: {}",
                    panel["title"]
                );
            }
        }
    }
    for (matcher, color) in
        [("/^good$/", "green"), ("/^error$/", "red"), ("/^lost$/", "red"), ("failed", "red")]
    {
        assert_eq!(colored.get(matcher).map(String::as_str), Some(color), "{matcher}: {colored:?}");
    }
}

#[test]
fn panels_lie_side_by_side() {
    for (name, dashboard) in dashboards() {
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(place("x") + place("w") <= 24, "{name}: {} sticks out", panel["title"]);
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    assert!(taken.insert((x, y)), "{name}: {} lies on another", panel["title"]);
                }
            }
        }
    }
}

#[test]
fn every_alert_has_a_test() {
    let tests = read("dashboards/rules/tests/alerts.yml");
    let rules = read("dashboards/rules/alerts.yml");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 12);
    for alert in alerts {
        assert!(tests.contains(&format!("alertname: {alert}")), "{alert} has no test of promtool");
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

/// A runbook that names a command of yesterday costs the reader a quarter of an hour at the worst moment.
#[test]
fn the_commands_of_the_runbook_exist_with_their_flags() {
    let runbook = read("docs/runbook.md");
    let commands: BTreeSet<&str> =
        runbook.split('`').skip(1).step_by(2).filter(|text| text.starts_with("ternfleet ")).collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for command in commands {
        let is_name = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        let words = command.split(' ').skip(1).take_while(|word| !word.starts_with('-')).take_while(is_name);
        let help = run(&words.chain(["--help"]).collect::<Vec<_>>()).unwrap();
        assert_eq!(help.code, Some(0), "`{command}`: {}", help.stderr);
        for flag in command.split(' ').filter(|word| word.starts_with("--")) {
            assert!(help.stdout.contains(flag), "`{command}` has no {flag}: {}", help.stdout);
        }
    }
}

#[test]
fn the_table_of_metrics_in_the_docs_is_the_one_in_the_code() {
    let mut page = String::from(
        "# Metrics\n\nThis page is generated from the code. Labels have fixed sets of values, except `pod`, `class`, `batch`, `name` and `gen_ai_request_model`, which name live objects. \
         Every series without one of these labels exists from the start, with the value 0.\n\n## Coordinator\n\nThese metrics are exposed at `/metrics` of a coordinator. Rented pods are behind NAT, \
         so the figures of every worker are included as `ternfleet_pod_…`, from its heartbeats. \
         A standby exposes the same names; its `ternfleet_leader` is 0, and it has no pods and no batches.\n\n\
         | name | kind | labels | help |\n|---|---|---|---|\n",
    );
    for metric in Metrics::default().described() {
        let labels = metric.labels.join(", ");
        page.push_str(&format!("| `{}` | {} | {labels} | {} |\n", metric.name, metric.kind, metric.help));
    }
    page.push_str(
        "\n## Worker\n\nThese metrics are exposed at `/metrics` of a worker that can be reached (`--http`). \
         They include histograms of its steps that are too large for a heartbeat.\n\n| name | kind | help |\n|---|---|---|\n",
    );
    for (name, kind, help) in ternfleet_worker::metrics::Metrics::new().table() {
        page.push_str(&format!("| `{name}` | {kind} | {help} |\n"));
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
