//! What must hold of a run, read from the files that callers got and from the streams: accepted = committed + errored,
//! every line once and in its place, every text the one of the undisturbed run, every duplicate the same to the bit.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use serde_json::{Value, json};
use ternfleet_coordinator::core::BatchRecord;
use ternfleet_proto::bus::Replayed;
use ternfleet_proto::message::{JobResult, Outcome as Answer};
use ternfleet_proto::tag::AssignmentKey;
use ternfleet_proto::{UsdMicro, codec, table};

use super::Outcome;
use crate::cluster::Cluster;
use crate::program::json_lines;

/// Every so many lines one is no request.
const BAD_EVERY: usize = 20;
/// A batch's worth of complaints is enough.
const BROKEN_MAX: usize = 20;

/// Three pods cost less than half of this in the longest time that a batch may take.
const COST_MAX: UsdMicro = UsdMicro(200_000);

/// A file of stories to tell, of different lengths, with an occasional line that is not a request.
pub(super) fn input(lines: usize) -> String {
    let line = |n: usize| match n {
        n if n % BAD_EVERY == 7 => "{\"prompt\": \"no end".to_owned(),
        n if n % BAD_EVERY == 17 => {
            json!({"custom_id": format!("job-{n}"), "prompt": "too hot", "temperature": 99}).to_string()
        }
        n => json!({
            "custom_id": format!("job-{n}"),
            "prompt": format!("There was once a king who had {n} sons"),
            "max_tokens": 20 + (n * 37) % 200,
            "seed": n,
            "cache": false,
        })
        .to_string(),
    };
    (0..lines).map(|n| line(n) + "\n").collect()
}

/// Text, or the code of the error, line by line.
#[derive(Debug)]
pub(super) struct Expected {
    lines: Vec<Result<String, String>>,
}

impl Expected {
    pub(super) fn read(text: &str, lines: usize) -> anyhow::Result<Expected> {
        let found = json_lines(text)?;
        ensure!(found.len() == lines, "the undisturbed batch has {} of {lines} lines", found.len());
        let expected = Expected { lines: found.iter().map(told).collect() };
        let bad = expected.lines.iter().filter(|line| line.is_err()).count();
        let meant = (0..lines).filter(|n| matches!(n % BAD_EVERY, 7 | 17)).count();
        ensure!(bad == meant, "the undisturbed batch has {bad} error lines instead of {meant}");
        Ok(expected)
    }
}

fn told(line: &Value) -> Result<String, String> {
    match line["error"]["code"].as_str() {
        Some(code) => Err(code.to_owned()),
        None => Ok(line["response"]["body"]["choices"][0]["text"].as_str().unwrap_or_default().to_owned()),
    }
}

pub(super) fn files(files: &[PathBuf], expected: &Expected, outcome: &mut Outcome) {
    for file in files {
        let name = file.file_name().unwrap_or_default().display().to_string();
        let read =
            std::fs::read_to_string(file).map_err(anyhow::Error::from).and_then(|text| json_lines(&text));
        let lines = match read {
            Ok(lines) => lines,
            Err(error) => {
                outcome.broken.push(format!("{name} cannot be read: {error:#}"));
                continue;
            }
        };
        outcome.lines += lines.len() as u64;
        let mut broken = Vec::new();
        if lines.len() != expected.lines.len() {
            broken.push(format!("{name} has {} lines for {} jobs", lines.len(), expected.lines.len()));
        }
        for (at, (line, expected)) in lines.iter().zip(&expected.lines).enumerate() {
            let found = told(line);
            *(if found.is_ok() { &mut outcome.good } else { &mut outcome.bad }) += 1;
            if line["ternfleet"]["index"] != at {
                broken.push(format!("{name}: line {at} answers {}", line["ternfleet"]["index"]));
            } else if found != *expected {
                broken.push(format!("{name}: line {at} is {found:?}, undisturbed {expected:?}"));
            }
            outcome.moved +=
                u64::from(line["ternfleet"]["attempt"].as_u64().is_some_and(|attempt| attempt > 1));
        }
        outcome.broken.extend(broken.into_iter().take(BROKEN_MAX));
    }
}

/// Reads RESULTS from its beginning: every answer to one job must be the same, where what nobody signed is no answer. And
/// no batch may have been billed by the price that somebody claims who has a stolen key.
pub(super) async fn stored(site: &Cluster, outcome: &mut Outcome) -> anyhow::Result<()> {
    let bus = site.coordinator_bus().await?;
    let key = bus.kv_get(table::KV_CONTROL, "assignment_key").await?.context("no key of assignments")?;
    let key: AssignmentKey = codec::decode(&key.value)?;
    let mut replay = bus.replay(table::RESULTS, table::results_all(), 1).await?;
    let mut first: BTreeMap<String, JobResult> = BTreeMap::new();
    while let Some(item) = replay.next().await {
        let Replayed::Message(message) = item? else { break };
        let result: JobResult = codec::decode(&message.payload).with_context(|| message.subject.clone())?;
        if !key.verifies(result.tag, &result.job, result.epoch, &result.worker) {
            continue;
        }
        outcome.completion_tokens += u64::from(result.usage.completion_tokens);
        outcome.reprefilled_tokens += u64::from(result.usage.reprefilled_tokens);
        let Some(before) = first.get(&result.job.to_string()) else {
            first.insert(result.job.to_string(), result);
            continue;
        };
        outcome.duplicates += 1;
        if let (Answer::Text(one), Answer::Text(other)) = (&before.outcome, &result.outcome)
            && one.ids_digest != other.ids_digest
        {
            outcome.divergent += 1;
            outcome.broken.push(format!("{} was answered in two ways", result.job));
        }
    }
    for entry in bus.kv_entries(table::KV_BATCHES).await? {
        let Ok(record) = codec::decode::<BatchRecord>(&entry.value) else { continue };
        let cost = record.totals.cost_usd_micro;
        if cost > COST_MAX {
            outcome.broken.push(format!("M1: {} costs {cost}", record.id));
        }
    }
    bus.close().await;
    Ok(())
}
