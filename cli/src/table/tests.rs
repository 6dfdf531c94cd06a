//! Tables of every format, from rows to requests and from answers to rows.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::cell;
use super::input::Joined;
use super::read::{Kind, Stored};
use super::results::join;
use super::write::Form;
use super::{Asked, Input};

const CSV: &str = "id,text,n\n7,a fine tale,1\n8,\"long, \"\"quoted\"\"\nand broken\",\n9,,3\n";

fn asked(prompt: &str) -> Asked {
    Asked { prompt: Some(prompt.to_owned()), ..Asked::default() }
}

fn file(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn lines(input: &Input) -> Vec<Value> {
    let text = std::fs::read_to_string(input.requests()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn rows(path: &Path) -> Vec<Value> {
    let table = Stored::look(path, &path.display().to_string(), true).unwrap().into_table(None).unwrap();
    let mut rows = Vec::new();
    for piece in table.pieces().unwrap() {
        let batch = piece.unwrap().rows;
        let schema = batch.schema();
        for row in 0..batch.num_rows() {
            let cells = schema.fields().iter().zip(batch.columns());
            let cells = cells.map(|(field, column)| (field.name().clone(), cell::value(field, column, row)));
            rows.push(Value::Object(cells.collect()));
        }
    }
    rows
}

/// An output line that repeats what it was asked, for the request of this index.
fn echo(index: usize, request: &Value, answer: &Value) -> String {
    let body = json!({
        "object": "chat.completion",
        "choices": [{ "message": { "content": answer }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 3, "completion_tokens": 4 },
    });
    let about = json!({ "index": index, "engine_us": 5 });
    json!({ "custom_id": request["custom_id"], "response": { "body": body }, "error": null, "ternfleet": about })
        .to_string()
}

fn written(joined: &Joined, answers: &[String], to: &Path) -> anyhow::Result<()> {
    let mut spool = tempfile::NamedTempFile::new()?;
    answers.iter().try_for_each(|line| writeln!(spool, "{line}"))?;
    join(
        Some(joined),
        "batch_1",
        true,
        100,
        5 * answers.len() as u128,
        spool.path(),
        Form::of(to),
        &mut std::fs::File::create(to)?,
    )
}

#[test]
fn every_format_goes_in_and_out_with_its_columns() {
    let folder = tempfile::tempdir().unwrap();
    let mut from = file(folder.path(), "a.csv", CSV);
    // Each format is read from what the one before has written.
    for (round, end) in ["parquet", "arrow", "jsonl", "csv"].into_iter().enumerate() {
        let asked = Asked {
            id_column: Some("id".to_owned()),
            prefix: format!("r{round}_"),
            ..asked("{% if text %}{{ text }} {{ n }}{% else %}{{ row['id'] }}{% endif %}")
        };
        let input = Input::read(&from, &asked).unwrap();
        let requests = lines(&input);
        assert_eq!(requests[0]["body"], json!({ "prompt": "a fine tale 1", "max_tokens": 256 }), "{end}");
        assert_eq!(requests[2]["body"]["prompt"], "9", "{end}");
        let answers: Vec<String> =
            requests.iter().enumerate().map(|(at, one)| echo(at, one, &one["body"]["prompt"])).collect();
        let to = folder.path().join(format!("b.{end}"));
        written(&input.joined().unwrap(), &answers, &to).unwrap();
        let (before, after) = (rows(&from), rows(&to));
        assert_eq!(after.len(), 3);
        for (row, own) in after.iter().zip(&before) {
            for (name, value) in own.as_object().unwrap() {
                // CSV has texts alone.
                let same = if end == "csv" { row[name] == cell::text(value) } else { row[name] == *value };
                assert!(same, "{end}: {name} of {row}");
            }
        }
        assert_eq!(after[2][format!("r{round}_answer")], "9");
        let costs = after.iter().map(|row| cell::text(&row[format!("r{round}_cost_usd_micro")]));
        assert_eq!(costs.map(|cost| cost.parse::<i64>().unwrap()).sum::<i64>(), 100);
        from = to;
    }
}

#[test]
fn a_row_that_fails_is_a_row_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let text = "{\"id\": \"a\", \"t\": \"x\"}\nno object\n\n{\"id\": \"b\"}\n{\"id\": \"a\", \"t\": \"y\"}\n\
                {\"id\": \"c\", \"t\": \"z\", \"deep\": {\"k\": [1]}}\n";
    let from = file(folder.path(), "a.jsonl", text);
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } } });
    let asked = Asked {
        id_column: Some("id".to_owned()),
        schema: Some(file(folder.path(), "schema.json", schema.to_string())),
        system: Some("You count.".to_owned()),
        ..asked("{{ t }}")
    };
    let input = Input::read(&from, &asked).unwrap();
    let requests = lines(&input);
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1]["url"], "/v1/chat/completions");
    assert_eq!(requests[1]["body"]["messages"][1], json!({ "role": "user", "content": "z" }));
    assert_eq!(requests[1]["body"]["response_format"]["json_schema"]["schema"], schema);
    assert_eq!(input.note().unwrap().split(": ").last().unwrap(), "5 rows, 3 of them without a request");
    let to = folder.path().join("b.jsonl");
    let answers = [echo(0, &requests[0], &json!("{\"n\": 4}")), echo(1, &requests[1], &json!("none"))];
    written(&input.joined().unwrap(), &answers, &to).unwrap();
    let rows = rows(&to);
    let error = |at: usize| rows[at]["error"].as_str().unwrap_or_default().to_owned();
    assert_eq!((rows[0]["n"].clone(), error(0)), (json!(4), String::new()));
    assert!(error(1).starts_with("line 2 is no JSON object"), "{}", error(1));
    assert_eq!(error(2), "column \"t\" is null");
    assert!(error(3).contains("the id \"a\""), "{}", error(3));
    assert!(error(4).contains("does not follow the schema"), "{}", error(4));
    assert_eq!(rows[4]["deep"], json!({ "k": [1] }));
    // Answers of another table are not written beside these rows.
    let strange = [echo(0, &json!({ "custom_id": "q" }), &json!("x"))];
    let refused = written(&input.joined().unwrap(), &strange, &to).unwrap_err().to_string();
    assert!(refused.contains("is not the table"), "{refused}");
}

#[test]
fn what_cannot_be_asked_is_said_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let from = file(folder.path(), "a.csv", CSV);
    let refused = |asked: &Asked| Input::read(&from, asked).unwrap_err().to_string();
    let missing = refused(&asked("{{ txt }}"));
    assert!(missing.contains("no column \"txt\"") && missing.contains("id, text, n"), "{missing}");
    assert!(refused(&Asked::default()).contains("--prompt"));
    let id = refused(&Asked { id_column: Some("key".to_owned()), ..asked("{{ text }}") });
    assert!(id.contains("--id") && id.contains("\"key\""), "{id}");
    let clash = file(folder.path(), "c.csv", "answer\nx\n");
    let clash = Input::read(&clash, &asked("{{ answer }}")).unwrap_err().to_string();
    assert!(clash.contains("--prefix"), "{clash}");
    let twice = file(folder.path(), "d.csv", "a,a\n1,2\n");
    assert!(Input::read(&twice, &asked("{{ a }}")).unwrap_err().to_string().contains("two columns"));
    assert!(refused(&asked("{{ text")).contains("--prompt: "));
    let ragged = file(folder.path(), "e.csv", "a,b\n1\n2,3\n");
    let input = Input::read(&ragged, &asked("{{ a }}")).unwrap();
    assert_eq!((lines(&input).len(), lines(&input)[0]["custom_id"].clone()), (1, json!("1")));
}

#[test]
fn packed_requests_are_unpacked_and_tables_are_read_to_their_limit() {
    let folder = tempfile::tempdir().unwrap();
    let requests = "{\"prompt\": \"one\"}\n{\"prompt\": \"two\"}\n";
    // Two members, as `cat` makes them.
    let packed = gzip(requests).repeat(2);
    for (name, content, times) in
        [("a", packed, 2), ("b", zstd::encode_all(requests.as_bytes(), 1).unwrap(), 1)]
    {
        let path = file(folder.path(), name, content);
        assert_eq!(Stored::look(&path, name, false).unwrap().kind, Kind::Jsonl);
        let input = Input::read(&path, &Asked::default()).unwrap();
        assert_eq!(std::fs::read_to_string(input.requests()).unwrap(), requests.repeat(times));
        let asked = Asked { limit: Some(1), ..asked("{{ prompt }}") };
        assert_eq!(lines(&Input::read(&path, &asked).unwrap()).len(), 1);
    }
    let cut = file(folder.path(), "c.gz", &gzip(requests)[..20]);
    assert!(Input::read(&cut, &Asked::default()).is_err());
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}
