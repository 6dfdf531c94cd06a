//! One line of a batch file, from bytes to a checked request, or to a clear answer why not.

use serde_json::{Map, Value};

use super::fields::{Fault, Fields, clipped, shown};
use super::request::{Origin, request};
use super::{Endpoint, ModelDefaults};
use crate::id::JobKey;
use crate::message::{Failure, FailureCode, Generation, Line};
use crate::table;

/// Longest line that is read at all. A reader skips the rest of a longer one and answers with [`line_too_long`].
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Bytes of what a response repeats of its request: half of a work message.
const SETTINGS_BYTES_MAX: usize = table::WORK_MESSAGE_BYTES_MAX / 2;
const CUSTOM_ID_BYTES_MAX: usize = 512;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// True for lines without a job: nothing but white space.
pub fn is_blank(bytes: &[u8]) -> bool {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes).iter().all(u8::is_ascii_whitespace)
}

/// Reads one line, with or without its line ending. `line_number` counts from 1.
///
/// Two forms are known: OpenAI's batch line (`custom_id`, `method`, `url`, `body`), and the body's own fields alone,
/// with `custom_id` among them if wanted.
///
/// # Errors
/// The answer to give instead: what the output line repeats of the input (`custom_id` is `None` when the line could
/// not be read as far as that), and an [`FailureCode::InvalidRequest`] whose message begins with `line N: `.
pub fn parse_line(
    bytes: &[u8],
    line_number: u64,
    job: &JobKey,
    served: &ModelDefaults,
) -> Result<(Line, Generation), (Line, Failure)> {
    let mut line = Line::new(None, Endpoint::Completions, served.name.clone());
    match read(bytes, line_number, job, served, &mut line) {
        Ok(generation) => Ok((line, generation)),
        Err(fault) => Err((line, invalid(line_number, &fault))),
    }
}

/// The model that a line names, if it can be read that far. Reads nothing else of the line, so that a whole file can be
/// looked through.
pub fn model_named(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Line {
        model: Option<String>,
        body: Option<Body>,
    }
    #[derive(serde::Deserialize)]
    struct Body {
        model: Option<String>,
    }
    let line: Line = serde_json::from_slice(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)).ok()?;
    line.body.and_then(|body| body.model).or(line.model)
}

/// The answer to a line of more than [`LINE_BYTES_MAX`] bytes, which nobody should hold in memory to say so.
pub fn line_too_long(line_number: u64, bytes: u64) -> (Line, Failure) {
    let line = Line::new(None, Endpoint::Completions, None);
    let fault = format!("the line has {bytes} bytes; at most {LINE_BYTES_MAX} are allowed");
    (line, invalid(line_number, &fault))
}

fn invalid(line_number: u64, fault: &str) -> Failure {
    Failure { code: FailureCode::InvalidRequest, message: format!("line {line_number}: {fault}") }
}

fn read(
    bytes: &[u8],
    line_number: u64,
    job: &JobKey,
    served: &ModelDefaults,
    line: &mut Line,
) -> Result<Generation, Fault> {
    let mut fields = Fields::new(object(bytes, line_number)?);
    line.custom_id = Some(custom_id(&mut fields)?.unwrap_or_else(|| format!("line-{line_number}")));
    let body = if ["method", "url", "body"].iter().any(|name| fields.has(name)) {
        batch_form(fields, line)?
    } else {
        short_form(fields, line)?
    };
    let read = request(line.endpoint, body, job.seed(), served, Origin::Batch)?;
    line.model = read.model.or(line.model.take());
    line.settings = repeated(read.settings)?;
    Ok(read.generation)
}

/// What the answer repeats of a request for a response. It travels with the job and its result.
fn repeated(settings: Map<String, Value>) -> Result<String, Fault> {
    if settings.is_empty() {
        return Ok(String::new());
    }
    let text = Value::Object(settings).to_string();
    match text.len() > SETTINGS_BYTES_MAX {
        true => Err(format!(
            "`instructions`, `tools`, `metadata` and `text` have {} bytes together; each response repeats \
             them, and at most {SETTINGS_BYTES_MAX} are allowed in a batch: put long instructions into \
             `input`, as a system message",
            text.len()
        )),
        false => Ok(text),
    }
}

fn object(bytes: &[u8], line_number: u64) -> Result<Map<String, Value>, Fault> {
    if bytes.len() > LINE_BYTES_MAX {
        return Err(format!("the line has {} bytes; at most {LINE_BYTES_MAX} are allowed", bytes.len()));
    }
    // Editors on some systems put one at the start of a file; anywhere else it is an error like any other.
    let bytes = if line_number == 1 { bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes) } else { bytes };
    if is_blank(bytes) {
        return Err("the line is empty".into());
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|fault| format!("byte {} is not UTF-8: save the file as UTF-8", fault.valid_up_to() + 1))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(format!("a line must be a JSON object, not {}", shown(&other))),
        Err(fault) if fault.is_eof() => {
            Err("the JSON is incomplete: the file may be cut off, or an object may span several lines".into())
        }
        Err(fault) => Err(format!("not JSON at column {}: {}", fault.column(), plain(&fault))),
    }
}

/// serde_json's reason without its own position.
fn plain(fault: &serde_json::Error) -> String {
    let text = fault.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn custom_id(fields: &mut Fields) -> Result<Option<String>, Fault> {
    match fields.text("custom_id")? {
        Some(id) if id.is_empty() => Err("`custom_id` is empty".into()),
        Some(id) if id.len() > CUSTOM_ID_BYTES_MAX => {
            Err(format!("`custom_id` is {} bytes long; at most {CUSTOM_ID_BYTES_MAX} are allowed", id.len()))
        }
        id => Ok(id),
    }
}

fn batch_form(mut fields: Fields, line: &mut Line) -> Result<Map<String, Value>, Fault> {
    match fields.text("method")?.as_deref() {
        None => return Err("`method` is missing: it must be \"POST\"".into()),
        Some("POST") => {}
        Some(other) => return Err(format!("`method` must be \"POST\", not {:?}", clipped(other))),
    }
    let url = fields.text("url")?.ok_or_else(|| Fault::from("`url` is missing"))?;
    line.endpoint = super::endpoint_of("url", &url)?;
    let body = match fields.take("body") {
        None => return Err("`body` is missing".into()),
        Some(Value::Object(body)) => body,
        Some(other) => return Err(format!("`body` must be an object, not {}", shown(&other))),
    };
    fields.finish("a batch line")?;
    Ok(body)
}

/// The endpoint of a short line is told by what it asks with.
fn short_form(fields: Fields, line: &mut Line) -> Result<Map<String, Value>, Fault> {
    if !["prompt", "messages", "input"].iter().any(|name| fields.has(name)) {
        return Err("not a request: `body`, `prompt`, `messages` and `input` are missing".into());
    }
    if fields.has("messages") && !fields.has("prompt") {
        line.endpoint = Endpoint::ChatCompletions;
    } else if fields.has("input") && !fields.has("prompt") {
        line.endpoint = Endpoint::Responses;
    }
    Ok(fields.into_map())
}

#[cfg(test)]
mod tests;
