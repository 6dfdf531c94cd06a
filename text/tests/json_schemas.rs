//! Public schemas, each with instances that it takes and instances that it does not: what is compiled, and whether
//! every instance is told apart, its properties in the order of the schema where its own is not taken. A third of the corpus
//! is in the repository; the whole is read where `TERNFLEET_JSON_SCHEMAS` names a file of the same form.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use ternfleet_text::constraint::Grammar;

/// Schemas of the corpus, one JSON object a line: `name`, `schema`, `tests` of `valid` and `data`.
fn corpus() -> String {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/json-schemas.jsonl");
    let path = std::env::var("TERNFLEET_JSON_SCHEMAS").unwrap_or_else(|_| sample.to_owned());
    std::fs::read_to_string(path).unwrap()
}

/// Names of properties in the order in which a schema has them, which is that of answers.
fn order(schema: &Value) -> Vec<String> {
    fn walk(schema: &Value, names: &mut Vec<String>) {
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            names.extend(properties.keys().cloned());
        }
        match schema {
            Value::Object(keywords) => keywords.values().for_each(|value| walk(value, names)),
            Value::Array(items) => items.iter().for_each(|value| walk(value, names)),
            _ => {}
        }
    }
    let mut names = Vec::new();
    walk(schema, &mut names);
    names
}

fn ordered(value: &Value, names: &[String]) -> Value {
    match value {
        Value::Object(object) => {
            let mut keys: Vec<&String> = object.keys().collect();
            keys.sort_by_key(|key| names.iter().position(|name| name == *key).unwrap_or(usize::MAX));
            keys.into_iter().map(|key| (key.clone(), ordered(&object[key], names))).collect()
        }
        Value::Array(items) => items.iter().map(|item| ordered(item, names)).collect(),
        other => other.clone(),
    }
}

#[derive(Debug, Default)]
struct Found {
    schemas: usize,
    refused: BTreeMap<String, Vec<String>>,
    instances: usize,
    wrong: Vec<String>,
    slowest: Duration,
}

#[test]
fn schemas_from_the_wild_are_compiled_or_refused_by_name_and_tell_their_instances_apart() {
    let mut found = Found::default();
    for line in corpus().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let name = row["name"].as_str().unwrap();
        found.schemas += 1;
        let begun = Instant::now();
        let recogniser = Grammar::JsonSchema(row["schema"].to_string()).recogniser();
        found.slowest = found.slowest.max(begun.elapsed());
        let recogniser = match recogniser {
            Ok(recogniser) => recogniser,
            Err(fault) => {
                let fault = fault.to_string();
                found.refused.entry(fault).or_default().push(name.to_owned());
                continue;
            }
        };
        for test in row["tests"].as_array().unwrap() {
            let (valid, data) = (test["valid"].as_bool().unwrap(), test["data"].to_string());
            found.instances += 1;
            let takes = recogniser.takes(&data)
                || recogniser.takes(&ordered(&test["data"], &order(&row["schema"])).to_string());
            if takes != valid {
                found.wrong.push(format!("{name}: {valid}: {data}"));
            }
        }
    }
    let refused: usize = found.refused.values().map(Vec::len).sum();
    for (fault, names) in &found.refused {
        println!("refused {}: {fault} ({})", names.len(), names[0]);
    }
    for wrong in &found.wrong {
        println!("wrong: {wrong}");
    }
    let compiled = found.schemas - refused;
    println!(
        "{compiled} of {} schemas compiled, {} of {} instances right, slowest compile {:?}",
        found.schemas,
        found.instances - found.wrong.len(),
        found.instances,
        found.slowest
    );
    assert!(found.schemas > 250 && compiled * 100 >= found.schemas * 92);
    assert!(found.wrong.len() * 100 <= found.instances);
}
