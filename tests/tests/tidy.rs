//! Style rules that no compiler checks: dependencies between crates, places of names, length of files, links, and language.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

#[path = "tidy/words.rs"]
mod words;

const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of the repository with one of the endings, but nothing that was built or fetched.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                let skipped = ["target", "ternfleet-data", "node_modules", ".git", "out", "__pycache__"];
                if !skipped.contains(&name.as_str()) {
                    walk(&path, endings, found);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), endings, &mut found);
    found.sort();
    assert!(!found.is_empty());
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Lines of Rust that are no comments, with their numbers.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn report(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} fault(s):\n{}", faults.len(), faults.join("\n"));
}

/// Direct dependencies by package, development ones left out, as cargo sees them.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let normal =
                package["dependencies"].as_array().unwrap().iter().filter(|dep| dep["kind"] != "dev");
            let names = normal.map(|dep| dep["name"].as_str().unwrap().to_owned()).collect();
            (package["name"].as_str().unwrap().to_owned(), names)
        })
        .collect()
}

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let all = dependencies();
    let forbidden: [(&str, &[&str]); 6] = [
        ("ternfleet-text", &["ternfleet-engine", "ternfleet-proto", "tokio", "async-nats"]),
        ("ternfleet-engine", &["ternfleet-proto", "tokio", "async-nats", "rmp-serde"]),
        (
            "ternfleet-proto",
            &["ternfleet-engine", "ternfleet-text", "ternfleet-worker", "ternfleet-coordinator"],
        ),
        ("ternfleet-cloud", &["ternfleet-proto", "ternfleet-engine", "ternfleet-text", "async-nats"]),
        ("ternfleet-worker", &["ternfleet-coordinator", "async-nats"]),
        ("ternfleet-coordinator", &["ternfleet-engine", "ternfleet-worker", "async-nats"]),
    ];
    let mut faults = Vec::new();
    for (package, not_allowed) in forbidden {
        let used = all.get(package).unwrap_or_else(|| panic!("{package} does not exist: correct this table"));
        faults.extend(
            not_allowed
                .iter()
                .filter(|name| used.contains(**name))
                .map(|name| format!("{package} uses {name}")),
        );
    }
    let importers = all.iter().filter(|(_, used)| used.contains("ternfleet-tests")).map(|(name, _)| name);
    faults.extend(importers.map(|name| format!("{name} uses ternfleet-tests")));
    report(faults);
}

#[test]
fn nats_is_named_in_one_folder_and_subjects_are_built_in_one_table() {
    let mut faults = Vec::new();
    for path in files(&[".rs"]) {
        let name = relative(&path);
        if name == "tests/tests/tidy.rs" {
            continue;
        }
        let text = read(&path);
        for (number, line) in code_lines(&text) {
            if line.contains("async_nats::") && !name.starts_with("proto/src/nats") {
                faults.push(format!("{name}:{number} names async_nats"));
            }
            let builds = line.contains("format!(\"tf.");
            if builds && !name.starts_with("proto/src/table") && !name.contains("test") {
                faults.push(format!("{name}:{number} builds a subject outside of the table"));
            }
        }
    }
    report(faults);
}

#[test]
fn no_source_file_holds_two_ideas() {
    let long = files(&[".rs", ".py", ".sh"]).into_iter().filter_map(|path| {
        let lines = read(&path).lines().count();
        (lines > LINES_MAX).then(|| format!("{} has {lines} lines: find the seam", relative(&path)))
    });
    report(long.collect());
}

/// Modules of a folder by name, each with the modules beside it that its files import.
fn imports(folder: &str, absolute: &str) -> BTreeMap<String, BTreeSet<String>> {
    let base = root().join(folder);
    let mut texts: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for path in files(&[".rs"]).into_iter().filter(|path| path.starts_with(&base)) {
        let inner = path.strip_prefix(&base).unwrap().with_extension("");
        let parts: Vec<String> = inner.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if parts.iter().all(|part| part != "tests") {
            texts.entry(parts[0].clone()).or_default().push((parts.len(), read(&path)));
        }
    }
    let of = |name: &str, all: &[(usize, String)]| {
        let mut found = BTreeSet::new();
        for (depth, text) in all {
            let code: String = code_lines(text).map(|(_, line)| format!("{line}\n")).collect();
            for used in code.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
                let used: String = used.split_whitespace().collect();
                let beside = "super::".repeat(*depth);
                let Some(rest) = used.strip_prefix(&beside).or_else(|| used.strip_prefix(absolute)) else {
                    continue;
                };
                let heads =
                    rest.trim_start_matches('{').split(',').filter_map(|part| part.split("::").next());
                let known = |head: &&str| texts.contains_key(*head) && *head != name;
                found.extend(heads.filter(known).map(str::to_owned));
            }
        }
        found
    };
    texts.iter().map(|(name, all)| (name.clone(), of(name, all))).collect()
}

#[test]
fn files_of_the_core_import_in_no_circles_and_commands_do_not_import_their_list() {
    let mut left = imports("coordinator/src/core", "crate::core::");
    assert!(left.len() > 15 && left.values().any(|used| used.len() > 3), "{left:?}");
    // Whoever imports nobody that is left is in no circle.
    while let Some((free, _)) = left.iter().find(|(_, used)| used.iter().all(|name| !left.contains_key(name)))
    {
        let free = free.clone();
        left.remove(&free);
    }
    let mut faults: Vec<String> =
        left.keys().map(|name| format!("core/{name} stands in a circle, or imports one")).collect();
    let commands = imports("cli/src", "crate::");
    let of_the_list = commands
        .iter()
        .filter(|(name, used)| !["main", "help"].contains(&name.as_str()) && used.contains("args"));
    faults.extend(of_the_list.map(|(name, _)| format!("cli/{name} imports the list of commands")));
    report(faults);
}

#[test]
fn every_source_file_says_what_it_is() {
    // A module of unit tests says it by its name and its place.
    let silent = files(&[".rs"])
        .into_iter()
        .filter(|path| !path.ends_with("tests.rs") && !read(path).starts_with("//!"));
    report(silent.map(|path| format!("{} does not open with //!", relative(&path))).collect());
}

#[test]
fn nothing_is_left_open_and_nothing_speaks_of_another_place() {
    // Put together here, so that this file does not find itself.
    let open: Vec<String> =
        [("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("to", "do!("), ("unimple", "mented!(")]
            .map(|(a, b)| format!("{a}{b}"))
            .into();
    let places: Vec<String> =
        [("/wo", "rk/"), ("/ro", "ot/"), ("/fa", "rm/")].map(|(a, b)| format!("{a}{b}")).into();
    let mut faults = Vec::new();
    for path in files(&[".rs", ".py", ".sh", ".md", ".toml", ".yml", ".yaml", ".conf"]) {
        let text = read(&path);
        let is_word = |line: &str, word: &str| {
            let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
            line.match_indices(word).any(|(at, _)| {
                !line[..at].ends_with(inside)
                    && (word.ends_with('(') || !line[at + word.len()..].starts_with(inside))
            })
        };
        let is_code =
            path.extension().is_some_and(|ending| ["rs", "py", "sh"].iter().any(|code| ending == *code));
        for (at, line) in text.lines().enumerate() {
            let left = is_code && open.iter().any(|word| is_word(line, word));
            if left || places.iter().any(|place| line.contains(place.as_str())) {
                faults.push(format!("{}:{} {}", relative(&path), at + 1, line.trim()));
            }
        }
    }
    report(faults);
}

#[test]
fn every_dependency_is_accounted_for_in_the_architecture() {
    let ours = dependencies();
    let architecture = read(&root().join("ARCHITECTURE.md"));
    let rows: Vec<&str> = architecture.lines().filter(|line| line.starts_with('|')).collect();
    let named: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split(','))
        .map(|name| name.trim().trim_matches('`'))
        .collect();
    let used: BTreeSet<&String> = ours.values().flatten().filter(|name| !ours.contains_key(*name)).collect();
    report(
        used.into_iter()
            .filter(|name| !named.contains(name.as_str()))
            .map(|name| format!("{name} has no row under Dependencies in ARCHITECTURE.md"))
            .collect(),
    );
}

#[test]
fn links_between_documents_resolve() {
    let mut faults = Vec::new();
    for path in files(&[".md"]) {
        let text = read(&path);
        for (number, target) in links(&text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target.as_str(), ""));
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let is_page = to.extension().is_some_and(|ending| ending == "md");
            if !to.exists() {
                faults.push(format!("{}:{number} links to {target}, which is not there", relative(&path)));
            } else if is_page && !anchor.is_empty() && !anchors(&read(&to)).contains(anchor) {
                faults.push(format!("{}:{number} links to {target}: no such heading", relative(&path)));
            }
        }
    }
    report(faults);
}

/// What headings are linked by, as GitHub and mdBook make it of their text.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let title = line.trim_start_matches('#');
        if in_code || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let lower = title.trim().to_lowercase();
        let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        // A heading that is there twice is numbered.
        let mut name = anchor.clone();
        let mut again = 0;
        while found.contains(&name) {
            again += 1;
            name = format!("{anchor}-{again}");
        }
        found.insert(name);
    }
    found
}

#[test]
fn every_page_is_listed_in_the_summary_of_the_site() {
    let docs = root().join("docs");
    let listed = links(&read(&docs.join("SUMMARY.md"))).into_iter().map(|(_, target)| docs.join(target));
    let listed: BTreeSet<PathBuf> = listed.collect();
    let pages = files(&[".md"]).into_iter().filter(|path| path.starts_with(&docs));
    let missing = pages.filter(|path| !path.ends_with("SUMMARY.md") && !listed.contains(path));
    report(missing.map(|path| format!("{} is not in docs/SUMMARY.md", relative(&path))).collect());
}

/// Targets of `[text](target)` outside of code blocks, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (start, _) in line.match_indices("](") {
            let rest = &line[start + 2..];
            if let Some(end) = rest.find(')') {
                found.push((at + 1, rest[..end].trim().to_owned()));
            }
        }
    }
    found
}

/// A promise is worth what its test is worth, so the tests that the page names must be there.
#[test]
fn every_test_that_the_promises_name_exists() {
    let page = read(&root().join("docs/reliability/README.md"));
    let rows = page.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | "));
    let named: Vec<&str> = cells.flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 40, "only {} tests are named", named.len());
    let sources: Vec<String> = files(&[".rs"]).iter().map(|path| read(path)).collect();
    let is_there = |name: &str| {
        let definition = format!("fn {name}()");
        let folder = root().join("tests/tests").join(name);
        folder.is_dir() || sources.iter().any(|text| text.contains(&definition))
    };
    report(named.into_iter().filter(|name| !is_there(name)).map(|name| format!("no test {name}")).collect());
}
