//! The body of `POST /v1/batches`, read field by field, so that a refusal names the field.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::fields::{Fault, Fields, shown};
use super::inert::pairs;
use super::{Endpoint, json_line, refused};
use crate::message::{BatchOptions, Failure};
use crate::{TimeMs, UsdMicro};

/// Requests of an inline batch.
const REQUESTS_MAX: usize = 10_000;
/// OpenAI's limits of `seconds` in `expires_after`.
const EXPIRES_AFTER_S: std::ops::RangeInclusive<u64> = 3_600..=2_592_000;

/// Where a new batch has its lines from.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchInput {
    /// A file that was uploaded.
    File(String),
    /// The lines themselves, as they would be in a file.
    Inline(Vec<u8>),
}

/// What is asked of a new batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchBody {
    pub input: BatchInput,
    pub endpoint: Endpoint,
    pub name: Option<String>,
    pub options: BatchOptions,
    pub metadata: BTreeMap<String, String>,
}

/// Reads the body of a creation.
///
/// # Errors
/// [`crate::message::FailureCode::InvalidRequest`] with a sentence that names the field.
pub fn parse_batch(bytes: &[u8]) -> Result<BatchBody, Failure> {
    let value = super::object_of(bytes)?;
    read(Fields::new(value)).map_err(refused)
}

fn read(mut fields: Fields) -> Result<BatchBody, Fault> {
    let input = input(&mut fields)?;
    let endpoint = endpoint(&mut fields)?;
    let window = fields.text("completion_window")?.ok_or("`completion_window` is missing: write \"24h\"")?;
    let metadata = pairs(&mut fields, "metadata")?;
    let output_expires_after_s = end_after(&mut fields, "output_expires_after")?;
    let (name, mut options) = match fields.object("ternfleet")? {
        Some(own) => own_fields(own).map_err(|fault| format!("`ternfleet`: {fault}"))?,
        None => (None, BatchOptions::default()),
    };
    fields.finish("a batch")?;
    options.completion_window_ms = Some(completion_window(&window)?.as_millis() as u64);
    options.output_expires_after_s = output_expires_after_s;
    Ok(BatchBody { input, endpoint, name, options, metadata })
}

fn input(fields: &mut Fields) -> Result<BatchInput, Fault> {
    match (fields.text("input_file_id")?, fields.take("requests")) {
        (Some(_), Some(_)) => Err("`requests` and `input_file_id` are both set: use one of them".into()),
        (Some(file), None) => Ok(BatchInput::File(file)),
        (None, None) => Err("`input_file_id` and `requests` are missing: use one of them".into()),
        (None, Some(Value::Array(requests))) => inline(requests),
        (None, Some(other)) => Err(format!("`requests` must be an array of requests, not {}", shown(&other))),
    }
}

/// The requests as lines of a file. What is wrong with one of them is told by its line, as in a file.
fn inline(requests: Vec<Value>) -> Result<BatchInput, Fault> {
    if requests.is_empty() {
        return Err("`requests` is empty".into());
    }
    if requests.len() > REQUESTS_MAX {
        return Err(format!(
            "`requests` has {} entries; at most {REQUESTS_MAX} are allowed: upload a file instead",
            requests.len()
        ));
    }
    let mut lines = Vec::new();
    for (at, request) in requests.iter().enumerate() {
        if !request.is_object() {
            return Err(format!("`requests[{at}]` must be an object, not {}", shown(request)));
        }
        lines.extend_from_slice(json_line(request).as_bytes());
        lines.push(b'\n');
    }
    Ok(BatchInput::Inline(lines))
}

fn endpoint(fields: &mut Fields) -> Result<Endpoint, Fault> {
    let name = fields.text("endpoint")?.ok_or("`endpoint` is missing")?;
    super::endpoint_of("endpoint", &name)
}

/// The `expires_after` of an upload, field by field as a form has them; `None` when there is none.
///
/// # Errors
/// As [`parse_batch`].
pub fn expires_after(given: Map<String, Value>) -> Result<Option<u64>, Failure> {
    if given.is_empty() {
        return Ok(None);
    }
    let mut fields = Fields::new(Map::from_iter([("expires_after".to_owned(), Value::Object(given))]));
    end_after(&mut fields, "expires_after").map_err(refused)
}

/// OpenAI's `{"anchor": "created_at", "seconds": …}`.
fn end_after(fields: &mut Fields, name: &str) -> Result<Option<u64>, Fault> {
    let Some(mut object) = fields.object(name)? else { return Ok(None) };
    match object.text("anchor")?.as_deref() {
        Some("created_at") => {}
        Some(other) => return Err(format!("`{name}.anchor` must be \"created_at\", not {other:?}")),
        None => return Err(format!("`{name}.anchor` is missing: it must be \"created_at\"")),
    }
    let seconds = object.integer("seconds", EXPIRES_AFTER_S).map_err(|fault| format!("`{name}`: {fault}"))?;
    object.finish(&format!("`{name}`"))?;
    seconds.map(Some).ok_or_else(|| format!("`{name}.seconds` is missing"))
}

/// The fields that OpenAI's API does not have.
fn own_fields(mut fields: Fields) -> Result<(Option<String>, BatchOptions), Fault> {
    let name = fields.text("name")?;
    let deadline = fields.integer("deadline", 0..=u64::MAX)?;
    let durability = match fields.take("durability") {
        None => None,
        Some(value) => Some(serde_json::from_value(value.clone()).map_err(|_| {
            format!("`durability` must be memory, stored, replicated or fsynced, not {}", shown(&value))
        })?),
    };
    let priority = match fields.take("priority") {
        None => 0,
        Some(value) => value
            .as_i64()
            .and_then(|priority| i8::try_from(priority).ok())
            .filter(|priority| (-10..=10).contains(priority))
            .ok_or_else(|| {
                format!("`priority` must be a whole number from -10 to 10, not {}", shown(&value))
            })?,
    };
    let options = BatchOptions {
        // Seconds since 1970, as OpenAI writes times.
        deadline: deadline.map(|seconds| TimeMs(seconds.saturating_mul(1000))),
        budget_usd_micro: fields
            .integer("budget_usd_micro", 0..=i64::MAX as u64)?
            .map(|budget| UsdMicro(budget as i64)),
        priority,
        durability,
        model: fields.text("model")?,
        webhook_url: fields.text("webhook_url")?,
        webhook_secret: fields.text("webhook_secret")?,
        accept_at_risk: fields.boolean("accept_at_risk")?.unwrap_or(false),
        wait_for_model: fields.boolean("wait_for_model")?.unwrap_or(false),
        ..BatchOptions::default()
    };
    fields.finish("`ternfleet`")?;
    Ok((name, options))
}

/// `24h`, `90m`, `3600s`, `2d`: between a minute and 7 days (checkpoints are kept for 8).
fn completion_window(text: &str) -> Result<Duration, Fault> {
    let unit_s = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => 0,
    };
    let count =
        text.get(..text.len().saturating_sub(1)).and_then(|digits| digits.parse::<u64>().ok()).unwrap_or(0);
    let seconds = count.saturating_mul(unit_s);
    if (60..=7 * 86_400).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    let shown = shown(&Value::String(text.to_owned()));
    Err(format!("`completion_window` {shown} is not supported: use \"24h\", or any time from 60s to 7d"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body(change: impl FnOnce(&mut Value)) -> Result<BatchBody, String> {
        let mut value =
            json!({ "input_file_id": "file-1", "endpoint": "/v1/completions", "completion_window": "24h" });
        change(&mut value);
        parse_batch(value.to_string().as_bytes()).map_err(|failure| failure.message)
    }

    #[test]
    fn a_batch_is_read_with_our_own_fields() {
        let read = body(|b| {
            b["metadata"] = json!({ "run": "7" });
            b["output_expires_after"] = json!({ "anchor": "created_at", "seconds": 3600 });
            b["ternfleet"] = json!({ "name": "tales", "deadline": 5, "priority": -3, "durability": "stored", "budget_usd_micro": 7 });
        })
        .unwrap();
        assert_eq!((read.input, read.endpoint), (BatchInput::File("file-1".into()), Endpoint::Completions));
        assert_eq!((read.name.as_deref(), read.metadata["run"].as_str()), (Some("tales"), "7"));
        let options = read.options;
        assert_eq!((options.deadline, options.priority), (Some(TimeMs(5000)), -3));
        assert_eq!(
            (options.completion_window_ms, options.output_expires_after_s),
            (Some(86_400_000), Some(3600))
        );
    }

    #[test]
    fn requests_become_lines() {
        let read = body(|b| {
            b["input_file_id"] = Value::Null;
            b["requests"] = json!([{ "prompt": "a\u{2028}b" }, { "prompt": "c" }]);
        });
        let BatchInput::Inline(lines) = read.unwrap().input else { panic!("inline lines") };
        assert_eq!(lines, b"{\"prompt\":\"a\\u2028b\"}\n{\"prompt\":\"c\"}\n");
    }

    #[test]
    fn each_refusal_names_its_field() {
        let set = |name: &'static str, value: Value| move |b: &mut Value| b[name] = value;
        let pairs: serde_json::Map<String, Value> = (0..17).map(|i| (i.to_string(), json!("v"))).collect();
        type Change = Box<dyn FnOnce(&mut Value)>;
        let table: Vec<(Change, &str)> = vec![
            (Box::new(set("endpoint", json!("/v1/embeddings"))), "`endpoint` must be \"/v1/completions\" or"),
            (Box::new(set("endpoint", json!(7))), "`endpoint` must be a string, not 7"),
            (Box::new(set("endpoint", Value::Null)), "`endpoint` is missing"),
            (Box::new(set("completion_window", json!("1s"))), "`completion_window` \"1s\" is not supported"),
            (Box::new(set("completion_window", json!("24"))), "`completion_window` \"24\" is not supported"),
            (Box::new(set("completion_window", json!("ä"))), "`completion_window` \"ä\" is not supported"),
            (Box::new(set("completion_window", Value::Null)), "`completion_window` is missing"),
            (Box::new(set("input_file_id", Value::Null)), "`input_file_id` and `requests` are missing"),
            (Box::new(set("requests", json!([{}]))), "`requests` and `input_file_id` are both set"),
            (Box::new(set("model", json!("m"))), "`model` is not a field of a batch"),
            (Box::new(set("metadata", json!({ "a": 1 }))), "`metadata[\"a\"]` must be a string, not 1"),
            (Box::new(set("metadata", json!({ "a": "v".repeat(513) }))), "longer than 512 characters"),
            (Box::new(set("metadata", json!({ "k".repeat(65): "v" }))), "longer than 64 characters"),
            (Box::new(set("metadata", Value::Object(pairs))), "`metadata` has 17 pairs"),
            (
                Box::new(set("output_expires_after", json!({ "anchor": "created_at", "seconds": 3599 }))),
                "`output_expires_after`: `seconds` must be a whole number from 3600 to 2592000, not 3599",
            ),
            (
                Box::new(set("output_expires_after", json!({ "seconds": 3600 }))),
                "`output_expires_after.anchor` is missing",
            ),
            (Box::new(set("ternfleet", json!({ "priority": 11 }))), "`ternfleet`: `priority` must be"),
            (Box::new(set("ternfleet", json!({ "color": 1 }))), "`ternfleet`: `color` is not a field"),
        ];
        for (change, expected) in table {
            let message = body(change).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let empty = |requests: Value| {
            body(|b| {
                b["input_file_id"] = Value::Null;
                b["requests"] = requests;
            })
            .unwrap_err()
        };
        assert_eq!(empty(json!([])), "`requests` is empty");
        assert_eq!(empty(json!([{}, 7])), "`requests[1]` must be an object, not 7");
        assert!(empty(json!(vec![json!({}); 10_001])).contains("`requests` has 10001 entries"));
        let message = parse_batch(b"[1").unwrap_err().message;
        assert!(message.contains("not JSON"), "{message}");
    }

    #[test]
    fn completion_windows_are_read_with_their_unit() {
        assert_eq!(completion_window("24h").unwrap(), Duration::from_secs(86_400));
        assert_eq!(completion_window("90m").unwrap(), Duration::from_secs(5_400));
        for bad in ["", "h", "24", "1s", "8d", "-1h", "ä"] {
            assert!(completion_window(bad).is_err(), "{bad}");
        }
    }
}
