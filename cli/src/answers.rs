//! Answers in the forms that `results --format` offers: OpenAI's output lines, a table for spreadsheets, texts to read.
//! Each form is made from the output line, so that stored files and answers that just came look the same.

use std::fmt::Write;

use anyhow::Context;
use clap::ValueEnum;
use serde_json::Value;

use crate::report::printable;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// OpenAI's output lines, one JSON object a line
    #[default]
    Jsonl,
    /// A table with a head line: custom_id, line, choice, text, finish_reason, tokens, error
    Csv,
    /// The texts, each below its custom_id
    Text,
}

const COLUMNS: &str =
    "custom_id,line,choice,text,finish_reason,prompt_tokens,completion_tokens,error_code,error_message\n";

/// One text of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) finish: String,
}

impl Format {
    /// What stands before the first answer.
    pub(crate) fn head(self) -> &'static str {
        match self {
            Format::Jsonl | Format::Text => "",
            Format::Csv => COLUMNS,
        }
    }

    /// An output line in this form, with its line end.
    pub(crate) fn answer(self, line: &str) -> anyhow::Result<String> {
        if self == Format::Jsonl {
            return Ok(format!("{line}\n"));
        }
        let answer: Value = serde_json::from_str(line).context("a line of the results cannot be parsed")?;
        Ok(if self == Format::Csv { rows(&answer) } else { paragraph(&answer) })
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The texts of a response body, whichever endpoint it is of.
pub(crate) fn choices(body: &Value) -> Vec<Choice> {
    if body["object"] == "response" {
        let contents = list(&body["output"]).iter().flat_map(|item| list(&item["content"]));
        let text = contents.map(|content| text_of(&content["text"])).collect();
        let finish = if body["status"] == "incomplete" { "length" } else { "stop" };
        return vec![Choice { text, finish: finish.to_owned() }];
    }
    let choice = |choice: &Value| {
        let (message, finish) = (&choice["message"], text_of(&choice["finish_reason"]).to_owned());
        let text = match choice.get("text").unwrap_or(&message["content"]) {
            // Calls of functions in place of a text.
            Value::Null if !message["tool_calls"].is_null() => message["tool_calls"].to_string(),
            text => text_of(text).to_owned(),
        };
        Choice { text, finish }
    };
    list(&body["choices"]).iter().map(choice).collect()
}

/// One row a choice.
fn rows(answer: &Value) -> String {
    let (body, error) = (&answer["response"]["body"], &answer["error"]);
    let usage = |of: [&str; 2]| of.iter().find_map(|name| body["usage"][*name].as_u64()).unwrap_or(0);
    let mut choices = choices(body);
    if choices.is_empty() {
        choices.push(Choice::default());
    }
    let row = |(number, choice): (usize, &Choice)| {
        let cells = [
            cell(text_of(&answer["custom_id"])),
            answer["ternfleet"]["line"].to_string(),
            number.to_string(),
            cell(&choice.text),
            choice.finish.clone(),
            usage(["prompt_tokens", "input_tokens"]).to_string(),
            usage(["completion_tokens", "output_tokens"]).to_string(),
            cell(text_of(&error["code"])),
            cell(text_of(&error["message"])),
        ];
        cells.join(",") + "\n"
    };
    choices.iter().enumerate().map(row).collect()
}

/// Quoted where RFC 4180 asks for it.
fn cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

fn paragraph(answer: &Value) -> String {
    let name = match answer["custom_id"].as_str() {
        Some(name) => printable(name),
        None => format!("line {}", answer["ternfleet"]["line"]),
    };
    let error = &answer["error"];
    if !error.is_null() {
        return format!(
            "== {name}: error\n{}: {}\n\n",
            text_of(&error["code"]),
            readable(text_of(&error["message"]))
        );
    }
    let choices = choices(&answer["response"]["body"]);
    let mut text = String::new();
    for (number, choice) in choices.iter().enumerate() {
        let number = if choices.len() > 1 { format!(", choice {}", number + 1) } else { String::new() };
        let cut = if choice.finish == "length" { " (cut off at the token limit)" } else { "" };
        // Writing into a string does not fail.
        let _ = write!(text, "== {name}{number}{cut}\n{}\n\n", readable(&choice.text));
    }
    text
}

/// A text with its lines, that cannot steer a terminal.
fn readable(text: &str) -> String {
    text.trim_end().split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(name: Value, body: Value, error: Value) -> String {
        json!({
            "custom_id": name, "response": { "status_code": 200, "body": body }, "error": error,
            "ternfleet": { "index": 6, "line": 7 },
        })
        .to_string()
    }

    fn completion() -> String {
        let body = json!({
            "object": "text_completion",
            "choices": [{ "index": 0, "text": "A \"fox\",\nrunning\u{1b}[2J", "finish_reason": "length" }],
            "usage": { "prompt_tokens": 3, "completion_tokens": 4 },
        });
        line(json!("a,b"), body, json!(null))
    }

    #[test]
    fn a_table_quotes_what_would_break_it() {
        let row = Format::Csv.answer(&completion()).unwrap();
        assert_eq!(row, "\"a,b\",7,0,\"A \"\"fox\"\",\nrunning\u{1b}[2J\",length,3,4,,\n");
        assert_eq!(Format::Csv.head().split(',').count(), 9);
    }

    #[test]
    fn texts_stand_below_their_names_and_cannot_steer_the_terminal() {
        let text = Format::Text.answer(&completion()).unwrap();
        assert_eq!(text, "== a,b (cut off at the token limit)\nA \"fox\",\nrunning\u{FFFD}[2J\n\n");
    }

    #[test]
    fn every_endpoint_and_several_choices_are_understood() {
        let chat = json!({
            "object": "chat.completion",
            "choices": [
                { "message": { "content": "one" }, "finish_reason": "stop" },
                { "message": { "content": "two" }, "finish_reason": "stop" },
            ],
        });
        let text = Format::Text.answer(&line(json!("c"), chat, json!(null))).unwrap();
        assert_eq!(text, "== c, choice 1\none\n\n== c, choice 2\ntwo\n\n");
        let response = json!({
            "object": "response", "status": "completed", "usage": { "input_tokens": 5, "output_tokens": 6 },
            "output": [{ "type": "message", "content": [{ "type": "output_text", "text": "three" }] }],
        });
        let row = Format::Csv.answer(&line(json!("r"), response, json!(null))).unwrap();
        assert_eq!(row, "r,7,0,three,stop,5,6,,\n");
    }

    #[test]
    fn an_error_line_says_its_code_and_its_message() {
        let failed =
            line(json!(null), json!(null), json!({ "code": "invalid_request", "message": "no, not so" }));
        assert_eq!(
            Format::Text.answer(&failed).unwrap(),
            "== line 7: error\ninvalid_request: no, not so\n\n"
        );
        assert_eq!(Format::Csv.answer(&failed).unwrap(), ",7,0,,,0,0,invalid_request,\"no, not so\"\n");
        assert_eq!(Format::Jsonl.answer(&failed).unwrap(), failed.clone() + "\n");
    }
}
