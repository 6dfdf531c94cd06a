//! A file of prompts through real processes: what `submit`, `results`, `status`, `batches`, `cancel` and `pods` promise.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use ternfleet_proto::nats;
use ternfleet_tests::program::{LocalFleet, command, json_lines, run, wait_for};

/// Lines as OpenAI's Batch API has them.
fn batch_lines(count: usize, max_tokens: usize) -> String {
    let line = |n: usize| {
        json!({
            "custom_id": format!("job-{n}"),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": format!("Once upon a time there were {n}"), "max_tokens": max_tokens, "seed": n},
        })
    };
    (0..count).map(|n| format!("{}\n", line(n))).collect()
}

fn custom_ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["custom_id"].as_str().unwrap_or("null")).collect()
}

#[test]
fn a_file_of_prompts_comes_back_as_text_with_its_price() {
    let fleet = LocalFleet::start(&["--workers", "2", "--price-usd-per-hour", "0.34"]).unwrap();
    let input = fleet.write("in.jsonl", &batch_lines(12, 24)).unwrap();
    let out = fleet.dir.join("out.jsonl").display().to_string();

    let ended = fleet
        .run(&["submit", &input, "--out", &out, "--name", "first light", "--model", "storyteller", "--json"])
        .unwrap();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("tok/s"), "{}", ended.stderr);
    let batch = ended.json().unwrap();
    assert_eq!(batch["status"], "completed");
    assert_eq!(batch["ternfleet"]["name"], "first light");
    assert_eq!(batch["request_counts"], json!({"total": 12, "completed": 12, "failed": 0}));
    assert!(batch["ternfleet"]["cost_usd_micro"].is_i64(), "{batch}");

    let lines = json_lines(&std::fs::read_to_string(&out).unwrap()).unwrap();
    let expected: Vec<String> = (0..12).map(|n| format!("job-{n}")).collect();
    assert_eq!(custom_ids(&lines), expected, "in the order of the input");
    for line in &lines {
        assert!(line["error"].is_null() && line["id"].is_string(), "{line}");
        assert_eq!(line["response"]["status_code"], 200);
        assert!(line["response"]["request_id"].is_string(), "{line}");
        let body = &line["response"]["body"];
        assert!(!body["choices"][0]["text"].as_str().unwrap().is_empty(), "{line}");
        assert_eq!(body["model"], "storyteller");
        assert!(body["usage"]["prompt_tokens"].as_u64().unwrap() > 0, "{line}");
        assert!((1..=24).contains(&body["usage"]["completion_tokens"].as_u64().unwrap()), "{line}");
    }

    let pods = fleet.run(&["pods", "--json"]).unwrap().json().unwrap();
    let pods = pods.as_array().unwrap();
    assert_eq!(pods.len(), 2, "{pods:?}");
    for pod in pods {
        assert_eq!(pod["heartbeat"]["price_usd_micro_per_hour"], 340_000, "{pod}");
        assert!(pod["rate_tok_s"].as_f64().unwrap() > 0.0, "{pod}");
        assert!(pod["usd_micro_per_million_tokens"].as_i64().unwrap() > 0, "{pod}");
    }
    let table = fleet.run(&["pods"]).unwrap().stdout;
    assert!(table.contains("local-1") && table.contains("$ per 1M tokens"), "{table}");

    let id = batch["id"].as_str().unwrap();
    let listed = fleet.run(&["batches", "--json"]).unwrap().json().unwrap();
    assert_eq!(listed[0]["id"], id);
    assert_eq!(fleet.run(&["status", id, "--json"]).unwrap().json().unwrap()["status"], "completed");
    assert!(fleet.run(&["status", id]).unwrap().stdout.contains("completed"));

    // The same again, whole and as they landed.
    let again = fleet.dir.join("again.jsonl").display().to_string();
    assert_eq!(fleet.run(&["results", id, "--out", &again]).unwrap().code, Some(0));
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&out).unwrap());
    let refused = fleet.run(&["results", id, "--out", &again]).unwrap();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(fleet.run(&["results", id, "--out", &again, "--force"]).unwrap().code, Some(0));
    let over_its_input = fleet.run(&["submit", &input, "--out", &input]).unwrap();
    assert_eq!(over_its_input.code, Some(1), "{over_its_input:?}");

    // By its name and by the beginning of its id; and an ended batch is not changed.
    for name in ["first light", &id[.."batch_".len() + 8], &id["batch_".len().."batch_".len() + 8]] {
        let found = fleet.run(&["status", name, "--json"]).unwrap();
        assert_eq!(found.json().unwrap()["id"], id, "{name}");
    }
    for change in [&["cancel", id][..], &["batch", "set", "first light", "--budget", "1"]] {
        let refused = fleet.run(change).unwrap();
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("has already ended (completed)"), "{refused:?}");
    }
    let landed = fleet.run(&["results", id]).unwrap();
    assert_eq!(landed.json_lines().unwrap().len(), 12);
    let table = fleet.run(&["results", id, "--format", "csv"]).unwrap().stdout;
    assert!(table.starts_with("custom_id,line,choice,text,") && table.contains("\njob-11,12,0,"), "{table}");
    let read = fleet.dir.join("read.txt").display().to_string();
    assert_eq!(fleet.run(&["results", id, "--format", "text", "--out", &read]).unwrap().code, Some(0));
    let read = std::fs::read_to_string(&read).unwrap();
    let names: Vec<&str> = read.lines().filter_map(|line| line.strip_prefix("== ")).collect();
    assert!(names.len() == 12 && names[3].starts_with("job-3"), "{read}");
    let listed = fleet.run(&["batches"]).unwrap().stdout;
    assert!(listed.contains("created (UTC)") && listed.contains(&id[.."batch_".len() + 8]), "{listed}");
    let off = fleet.run(&["scale", "show"]).unwrap();
    assert!(off.code == Some(1) && off.stderr.contains("ternfleet up --scale 0..2"), "{off:?}");

    let absent = fleet.run(&["status", "batch_none"]).unwrap();
    assert_eq!((absent.code, absent.stdout.as_str()), (Some(1), ""));
    assert!(absent.stderr.starts_with("error: "), "{}", absent.stderr);

    a_table_comes_back_with_its_answers(&fleet);
}

/// CSV in, Parquet out, that in again and JSONL out; and the first result once more, by another process.
fn a_table_comes_back_with_its_answers(fleet: &LocalFleet) {
    let csv = "key,text\n007,Once upon a time\n008,\"A king, and\nhis \"\"crown\"\"\"\n009\n";
    let table = fleet.write("tales.csv", csv).unwrap();
    let path = |name: &str| fleet.dir.join(name).display().to_string();
    let (parquet, last, again) = (path("answers.parquet"), path("last.jsonl"), path("again.csv"));
    let asked = ["--id", "key", "--max-tokens", "6", "--temperature", "0"];
    let first =
        [&["submit", &table, "--prompt", "{{ text }}", "--out", &parquet, "--json"], &asked[..]].concat();
    let first = fleet.run(&first).unwrap();
    assert_eq!(first.code, Some(0), "{first:?}");
    assert!(first.stderr.contains("3 rows, 1 of them without a request"), "{first:?}");

    let unasked = fleet.run(&["submit", &parquet, "--out", &last]).unwrap();
    let columns = "key, text, answer, finish_reason, prompt_tokens, completion_tokens, cost_usd_micro, error";
    assert!(unasked.code == Some(1) && unasked.stderr.contains(columns), "{unasked:?}");
    let second = ["submit", &parquet, "--prompt", "{{ answer }}", "--prefix", "second_", "--out", &last];
    assert_eq!(fleet.run(&[&second[..], &asked].concat()).unwrap().code, Some(0));
    let rows = json_lines(&std::fs::read_to_string(&last).unwrap()).unwrap();
    assert_eq!((rows.len(), &rows[0]["key"]), (3, &json!("007")));
    assert_eq!(rows[1]["text"], "A king, and\nhis \"crown\"");
    for row in &rows[..2] {
        assert!(!row["answer"].as_str().unwrap().is_empty() && row["error"].is_null(), "{row}");
        assert!(row["completion_tokens"].is_u64() && row["second_answer"].is_string(), "{row}");
    }
    assert!(rows[2]["error"].as_str().unwrap().contains("1 fields"), "{}", rows[2]);
    assert_eq!(rows[2]["second_error"], "column \"answer\" is null");

    let batch = first.json().unwrap();
    let (id, cost) = (batch["id"].as_str().unwrap(), &batch["ternfleet"]["cost_usd_micro"]);
    let parts: i64 = rows.iter().filter_map(|row| row["cost_usd_micro"].as_i64()).sum();
    assert_eq!(json!(parts), *cost, "{batch}");
    assert_eq!(fleet.run(&["results", id, "--table", &table, "--out", &again]).unwrap().code, Some(0));
    let again = std::fs::read_to_string(&again).unwrap();
    assert!(
        again.starts_with("key,text,answer,") && again.contains(rows[0]["answer"].as_str().unwrap()),
        "{again}"
    );
}

#[test]
fn a_bad_line_is_one_error_line_and_nothing_else_suffers() {
    let fleet = LocalFleet::start(&["--workers", "1"]).unwrap();
    let lines = [
        r#"{"prompt": "A fox", "max_tokens": 4}"#,
        r#"{"custom_id": "broken", "method": "POST", "#,
        r#"{"custom_id": "nowhere", "method": "POST", "url": "/v1/images", "body": {"prompt": "A fox"}}"#,
        r#"{"custom_id": "odd", "method": "POST", "url": "/v1/completions", "body": {"prompt": "A fox", "colour": "red"}}"#,
        r#"{"custom_id": "hot", "method": "POST", "url": "/v1/completions", "body": {"prompt": "A fox", "temperature": 99}}"#,
        r#"{"custom_id": "tools", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "A"}], "tools": [{"type": "function", "function": {"name": "f"}}]}}"#,
        r#"{"custom_id": "good", "method": "POST", "url": "/v1/completions", "body": {"prompt": "A fox", "max_tokens": 4}}"#,
    ];
    let input = fleet.write("in.jsonl", &format!("{}\n", lines.join("\n"))).unwrap();
    let out = fleet.dir.join("out.jsonl");
    let ended = fleet.run(&["submit", &input, "--out", &out.display().to_string()]).unwrap();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let lines = json_lines(&std::fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(custom_ids(&lines), ["line-1", "null", "nowhere", "odd", "hot", "tools", "good"]);
    let failed: Vec<bool> = lines.iter().map(|line| line["error"]["code"].is_string()).collect();
    assert_eq!(failed, [false, true, true, true, true, true, false]);
    assert!(lines[1].to_string().contains("\"line\":2"), "the line number is told: {}", lines[1]);
    assert!(lines[3]["error"]["message"].as_str().unwrap().contains("colour"), "{}", lines[3]);
    let tools = lines[5]["error"]["message"].as_str().unwrap();
    assert!(
        tools.contains("`tools`") && tools.contains("manifest"),
        "the storyteller calls nothing: {tools}"
    );
}

/// Kinds and lines of the faults that `verify` finds.
fn faults(arguments: &[&str]) -> Vec<(String, Option<u64>, String)> {
    let ended = run(&[&["verify", "--json"][..], arguments].concat()).unwrap();
    let found = ended.json().unwrap();
    let faults = found["faults"].as_array().unwrap().iter();
    let read = |fault: &Value| {
        let text = |name: &str| fault[name].as_str().unwrap().to_owned();
        (text("kind"), fault["line"].as_u64(), text("message"))
    };
    let faults: Vec<_> = faults.map(read).collect();
    assert_eq!(ended.code, Some(i32::from(!faults.is_empty())), "{ended:?}");
    faults
}

#[test]
fn whoever_has_answers_and_manifest_finds_every_forgery() {
    let fleet = LocalFleet::start(&["--workers", "1"]).unwrap();
    let lines = [
        r#"{"prompt": "A fox", "max_tokens": 12, "temperature": 0}"#,
        r#"{"prompt": "A fox", "max_tokens": 12, "seed": 7}"#,
        r#"{"prompt": "A fox", "max_tokens": 12, "n": 2, "logprobs": 1, "echo": true}"#,
        r#"{"prompt": "A fox", "max_tokens": 12, "colour": "red"}"#,
        r#"{"messages": [{"role": "user", "content": "A fox"}], "max_tokens": 30, "stop": ["."]}"#,
        r#"{"input": "A fox", "max_output_tokens": 8}"#,
        r#"{"prompt": "A fox", "max_tokens": 12, "structured_outputs": {"choice": ["red", "blue"]}}"#,
    ];
    let file = |name: &str| fleet.dir.join(name).display().to_string();
    let input = fleet.write("in.jsonl", &format!("{}\n", lines.join("\n"))).unwrap();
    let (out, proof) = (file("out.jsonl"), file("proof.jsonl"));
    assert_eq!(fleet.run(&["submit", &input, "--name", "tales"]).unwrap().code, Some(2));
    let got = fleet.run(&["results", "tales", "--out", &out, "--proof", &proof]).unwrap();
    assert_eq!(got.code, Some(2), "{got:?}");
    let key = fleet.run(&["key", "proof"]).unwrap().stdout.trim().to_owned();

    let whole = ["--manifest", &proof, "--key", &key, "--input", &input];
    let checked = run(&[&["verify", "--json", &out][..], &whole[..]].concat()).unwrap();
    let found = checked.json().unwrap();
    assert_eq!((checked.code, &found["compared_lines"]), (Some(0), &json!(7)), "{checked:?}");
    assert_eq!((&found["again"]["lines"], &found["again"]["same"]), (&json!(6), &json!(6)), "{found}");
    let alone = run(&["verify", "--manifest", &proof]).unwrap();
    assert!(alone.code == Some(0) && alone.stdout.contains(&key), "{alone:?}");
    let one = run(&["verify", &out, "--input", &input, "--line", "2"]).unwrap();
    assert!(one.code == Some(0) && one.stdout.contains("1 of 1 lines gave the same bits here"), "{one:?}");

    let text = std::fs::read_to_string(&out).unwrap();
    let rows: Vec<&str> = text.lines().collect();
    let forged = |rows: &[String]| fleet.write("forged.jsonl", &(rows.join("\n") + "\n")).unwrap();
    let with = |places: &[usize]| forged(&places.iter().map(|&at| rows[at].to_owned()).collect::<Vec<_>>());
    let kinds = |path: &str, more: &[&str]| -> Vec<(String, Option<u64>)> {
        let all = [&[path, "--manifest", &proof][..], more].concat();
        faults(&all).into_iter().map(|(kind, line, _)| (kind, line)).collect()
    };
    let fault = |kind: &str, line: u64| (kind.to_owned(), Some(line));
    assert_eq!(kinds(&with(&[0, 1, 2, 3, 5, 6]), &[]), [fault("missing", 5)]);
    assert_eq!(kinds(&with(&[0, 2, 1, 3, 4, 5, 6]), &[]), [fault("order", 2)]);
    let mut changed: Vec<String> = rows.iter().map(|&row| row.to_owned()).collect();
    changed[1] = changed[1].replace("A fox", "A fix").replacen("\"text\":\"", "\"text\":\"!", 1);
    assert_eq!(kinds(&forged(&changed), &[]), [fault("changed", 2)]);
    let other_key = "00".repeat(32);
    assert_eq!(kinds(&out, &["--key", &other_key]), [("key".to_owned(), None)]);
    let reseeded = fleet.write("reseeded.jsonl", &(lines.join("\n") + "\n").replace("7}", "8}")).unwrap();
    let found = kinds(&out, &["--input", &reseeded]);
    assert_eq!(found, [("input".to_owned(), None), fault("seed", 2)]);
    let asked = fleet.write("asked.jsonl", &(lines.join("\n") + "\n").replacen("A fox", "A dog", 1)).unwrap();
    assert_eq!(kinds(&out, &["--input", &asked]), [("input".to_owned(), None), fault("request", 1)]);
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/storyteller");
    let other = fleet.dir.join("other.gguf");
    let model = [&std::fs::read(format!("{shipped}/storyteller.gguf")).unwrap()[..], b"x"].concat();
    std::fs::write(&other, model).unwrap();
    let found = kinds(&out, &["--input", &input, "--model", &other.display().to_string()]);
    assert_eq!(found, [("model".to_owned(), None)]);

    // Without a manifest, the lines' own evidence is what they are held to.
    assert_eq!(faults(&[&forged(&changed), "--input", &input])[0].0, "text");
    let mut row: Value = serde_json::from_str(rows[1]).unwrap();
    let said = row["response"]["body"]["choices"][0]["text"].as_str().unwrap().to_owned();
    let begin: String = said.chars().take(said.chars().count() / 2).collect();
    row["response"]["body"]["choices"][0]["text"] = json!(begin.clone() + "@@");
    row["ternfleet"]["proof"]["answer"] = json!("00".repeat(32));
    let found = faults(&[&forged(&[row.to_string()]), "--input", &input]);
    let (kind, line, message) = &found[0];
    assert_eq!((kind.as_str(), *line), ("tokens", Some(2)));
    assert!(message.contains("differs first") && message.contains("@@\""), "{message}");

    // What leaves nothing to chance is known when it is asked for again, and its proof holds. A quote knows it, too.
    let quote: Value =
        serde_json::from_str(&fleet.run(&["quote", &input, "--json"]).unwrap().stdout).unwrap();
    assert_eq!(quote["cached_lines"], 2, "{quote}");
    assert_eq!(fleet.run(&["submit", &input, "--name", "again"]).unwrap().code, Some(2));
    let (out, proof) = (file("again.jsonl"), file("again-proof.jsonl"));
    assert_eq!(fleet.run(&["results", "again", "--out", &out, "--proof", &proof]).unwrap().code, Some(2));
    let answers = json_lines(&std::fs::read_to_string(&out).unwrap()).unwrap();
    let cached: Vec<bool> = answers.iter().map(|answer| answer["ternfleet"]["cached"] == true).collect();
    assert_eq!(cached, [true, true, false, false, false, false, false]);
    assert_eq!(answers[1]["response"]["body"]["choices"][0]["text"], json!(said));
    assert_eq!(faults(&[&out, "--manifest", &proof, "--input", &input]), []);

    // As `nats micro stats` asks.
    let options = nats::ConnectOptions { url: fleet.addresses.nats.clone(), ..Default::default() };
    let asked = async {
        let bus = nats::connect(&options).await.unwrap();
        bus.request("$SRV.STATS.ternfleet", Default::default(), Duration::from_secs(5)).await.unwrap()
    };
    let stats = tokio::runtime::Runtime::new().unwrap().block_on(asked);
    let stats: Value = serde_json::from_slice(&stats).unwrap();
    let created = stats["endpoints"].as_array().unwrap().iter().find(|one| one["name"] == "batch_create");
    let count = |name: &str| created.unwrap()[name].as_u64().unwrap();
    let average = count("processing_time") / count("num_requests");
    assert!(count("num_requests") >= 2 && average > 0, "{stats}");
    assert_eq!((count("num_errors"), count("average_processing_time")), (0, average));
}

/// Every call of a message's `tool_calls` or a response's `output`: name and arguments.
fn called(items: &Value) -> Vec<(String, Value)> {
    let items = items.as_array().map_or(&[][..], Vec::as_slice).iter();
    let calls = items.filter(|item| item["type"] != "message");
    let parts = calls.map(|item| if item["function"].is_object() { &item["function"] } else { item });
    let read = |part: &Value| serde_json::from_str(part["arguments"].as_str().unwrap()).unwrap();
    parts.map(|part| (part["name"].as_str().unwrap().to_owned(), read(part))).collect()
}

#[test]
fn calls_of_functions_and_responses_come_back_from_a_batch() {
    let fleet = LocalFleet::start_with_tools(&["--workers", "1"]).unwrap();
    let weather = json!({
        "type": "object", "additionalProperties": false, "required": ["place", "days"],
        "properties": {"place": {"enum": ["Oslo", "Rome", "Cairo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    });
    let wrapped = |name: &str, schema: &Value| json!({"type": "function", "function": {"name": name, "description": "<|eot_id|>", "parameters": schema}});
    let tools = json!([wrapped("weather", &weather), {"type": "function", "function": {"name": "now"}}]);
    let flat = json!([{"type": "function", "name": "weather", "parameters": weather}]);
    let named = json!({"type": "function", "function": {"name": "weather"}});
    let question = json!([{"role": "user", "content": "Will it rain?"}]);
    let history = json!([
        question[0],
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"place\": \"Oslo\", \"days\": 2}"}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
    ]);
    let items = json!([
        {"role": "user", "content": "Will it rain?"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Rain."},
    ]);
    let mut lines = String::new();
    let mut add = |id: String, url: &str, body: Value| {
        lines += &format!("{}\n", json!({"custom_id": id, "method": "POST", "url": url, "body": body}));
    };
    let (chat, responses) = ("/v1/chat/completions", "/v1/responses");
    let ask = |messages: &Value, choice: Value, seed: usize| json!({"messages": messages, "tools": tools, "tool_choice": choice, "temperature": 1, "max_tokens": 120, "seed": seed});
    for seed in 0..8 {
        add(format!("named-{seed}"), chat, ask(&question, named.clone(), seed));
        let mut one = ask(&question, json!("required"), seed);
        one["parallel_tool_calls"] = json!(false);
        add(format!("required-{seed}"), chat, one);
        add(format!("auto-{seed}"), chat, ask(&history, json!("auto"), seed));
        let body = json!({"input": items, "tools": flat, "tool_choice": "required", "temperature": 1, "max_output_tokens": 120,
            "parallel_tool_calls": false, "instructions": "Be short.", "seed": seed});
        add(format!("response-{seed}"), responses, body);
    }
    add("none".into(), chat, ask(&question, json!("none"), 1));
    add("plain".into(), responses, json!({"input": "Once", "max_output_tokens": 8}));
    add(
        "shape".into(),
        responses,
        json!({"input": "Once", "max_output_tokens": 60, "text": {"format":
        {"type": "json_schema", "name": "w", "schema": weather}}}),
    );
    add("bad".into(), chat, ask(&question, json!({"type": "function", "function": {"name": "rain"}}), 1));
    let input = fleet.write("in.jsonl", &lines).unwrap();
    let file = |name: &str| fleet.dir.join(name).display().to_string();
    let ended = fleet.run(&["submit", &input, "--out", &file("out.jsonl")]).unwrap();
    assert_eq!(ended.code, Some(2), "one line names a function that there is none of: {ended:?}");
    let answers = json_lines(&std::fs::read_to_string(file("out.jsonl")).unwrap()).unwrap();
    assert_eq!(answers.len(), 36);
    let settings = |id: &str| {
        let line = answers.iter().find(|answer| answer["custom_id"] == id).unwrap();
        let body = &line["response"]["body"];
        let tools = body["tools"].as_array().unwrap().iter().map(|tool| tool["name"].clone());
        let rest = ["tool_choice", "parallel_tool_calls", "max_output_tokens", "instructions"];
        (tools.collect::<Vec<_>>(), rest.map(|name| body[name].clone()))
    };
    assert_eq!(
        settings("response-3"),
        (vec![json!("weather")], [json!("required"), json!(false), json!(120), json!("Be short.")]),
        "a response repeats its own settings"
    );
    assert_eq!(settings("plain"), (vec![], [json!("auto"), json!(true), json!(8), Value::Null]));
    let valid = |(name, arguments): &(String, Value)| match name.as_str() {
        "now" => *arguments == json!({}),
        "weather" => {
            arguments.as_object().unwrap().len() == 2
                && ["Oslo", "Rome", "Cairo"].contains(&arguments["place"].as_str().unwrap())
                && (1..=9).contains(&arguments["days"].as_u64().unwrap())
        }
        _ => false,
    };
    for answer in &answers {
        let id = answer["custom_id"].as_str().unwrap();
        let body = &answer["response"]["body"];
        let choice = &body["choices"][0];
        let message = &choice["message"];
        match id.split('-').next().unwrap() {
            "bad" => {
                assert!(answer["error"]["message"].as_str().unwrap().contains("`tool_choice` names \"rain\""))
            }
            "named" | "required" => {
                assert_eq!(
                    (&choice["finish_reason"], &message["content"]),
                    (&json!("tool_calls"), &Value::Null),
                    "{answer}"
                );
                let calls = called(&message["tool_calls"]);
                assert!(calls.len() == 1 && valid(&calls[0]), "{answer}");
                assert!(id.starts_with("required") || calls[0].0 == "weather", "{answer}");
                assert!(message["tool_calls"][0]["id"].as_str().unwrap().starts_with("call_"), "{answer}");
            }
            // Free text, or calls that are whole where they are not cut.
            "auto" if choice["finish_reason"] == "tool_calls" => {
                assert!(called(&message["tool_calls"]).iter().all(valid), "{answer}");
            }
            "auto" | "none" => assert!(message["content"].is_string(), "{answer}"),
            "response" => {
                let calls = called(&body["output"]);
                assert!(calls.len() == 1 && valid(&calls[0]) && body["status"] == "completed", "{answer}");
            }
            "plain" => assert_eq!(body["status"], "incomplete", "{answer}"),
            "shape" => {
                let text = body["output"][0]["content"][0]["text"].as_str().unwrap();
                assert!(valid(&("weather".into(), serde_json::from_str(text).unwrap())), "{answer}");
            }
            other => panic!("{other}"),
        }
    }
    // The same bits however often: tools belong to what a seed decides.
    let again = fleet.run(&["submit", &input, "--out", &file("again.jsonl")]).unwrap();
    assert_eq!(again.code, Some(2), "{again:?}");
    let again = json_lines(&std::fs::read_to_string(file("again.jsonl")).unwrap()).unwrap();
    let said = |answer: &Value| {
        let body = &answer["response"]["body"];
        let calls: Vec<_> =
            [&body["choices"][0]["message"]["tool_calls"], &body["output"]].map(called).concat();
        (answer["custom_id"].to_string(), body["choices"][0]["message"]["content"].to_string(), calls)
    };
    let seeded =
        |answers: &[Value]| answers.iter().map(said).filter(|one| one.0.contains('-')).collect::<Vec<_>>();
    assert_eq!(seeded(&answers), seeded(&again));
}

#[test]
fn results_stream_as_they_land_and_a_detached_batch_is_found_again() {
    let fleet = LocalFleet::start(&["--workers", "2"]).unwrap();
    let input = fleet.write("in.jsonl", &batch_lines(10, 12)).unwrap();

    let streamed = fleet.run(&["submit", &input, "--out", "-"]).unwrap();
    assert_eq!(streamed.code, Some(0), "{streamed:?}");
    let lines = streamed.json_lines().unwrap();
    assert_eq!(custom_ids(&lines).into_iter().collect::<BTreeSet<_>>().len(), 10, "each line once");

    let detached = fleet.run(&["submit", &input, "--detach"]).unwrap();
    assert_eq!(detached.code, Some(0), "{detached:?}");
    let id = detached.stdout.trim();
    assert!(id.starts_with("batch_") && !id.contains(char::is_whitespace), "{id}");
    let waited = fleet.run(&["results", id, "--wait", "--out", "-"]).unwrap();
    assert_eq!(waited.code, Some(0), "{waited:?}");
    let again = waited.json_lines().unwrap();
    assert_eq!(again.len(), 10);

    // Seeds are given, so the texts are the same whoever generated them, and in whatever company.
    let texts = |lines: &[Value]| -> BTreeSet<String> {
        lines
            .iter()
            .map(|line| format!("{} {}", line["custom_id"], line["response"]["body"]["choices"][0]["text"]))
            .collect()
    };
    assert_eq!(texts(&lines), texts(&again));

    let long = fleet.write("long.jsonl", &batch_lines(200, 200)).unwrap();
    let id = fleet.run(&["submit", &long, "--detach"]).unwrap().stdout.trim().to_owned();
    let cancelled = fleet.run(&["cancel", &id, "--json"]).unwrap();
    assert_eq!(cancelled.code, Some(0), "{cancelled:?}");
    let ended = fleet.run(&["results", &id, "--wait", "--out", "-"]).unwrap();
    assert_eq!(ended.code, Some(2), "cancelled lines are error lines: {}", ended.stderr);
    assert_eq!(ended.json_lines().unwrap().len(), 200, "every line ends as one answer");
    assert_eq!(fleet.run(&["status", &id, "--json"]).unwrap().json().unwrap()["status"], "cancelled");
    let newest = fleet.run(&["batches", "--limit", "1"]).unwrap();
    assert!(newest.stdout.lines().count() == 2 && newest.stdout.contains("cancelled"), "{newest:?}");
    assert!(newest.stderr.contains("1 of 3 batches; --limit 3 lists all"), "{newest:?}");
}

#[test]
fn an_interrupted_submit_leaves_its_batch_running_and_says_how_to_go_on() {
    let fleet = LocalFleet::start(&["--workers", "1"]).unwrap();
    let input = fleet.write("in.jsonl", &batch_lines(60, 200)).unwrap();
    let out = fleet.dir.join("out.jsonl");
    let waiting = fleet.spawn(&["submit", &input, "--out", &out.display().to_string()]).unwrap();
    let id = wait_for(Duration::from_secs(30), || {
        let batches = fleet.run(&["batches", "--json"])?.json()?;
        Ok(batches[0]["id"].as_str().map(str::to_owned))
    })
    .unwrap();
    fleet.wait_for_answers(&id, 1).unwrap();
    kill(Pid::from_raw(i32::try_from(waiting.id()).unwrap()), Signal::SIGINT).unwrap();
    let ended = waiting.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains(&format!("ternfleet cancel {id}")), "{said}");
    assert!(!out.exists(), "a file appears whole or not at all");
    let results = fleet.run(&["results", &id, "--wait", "--out", &out.display().to_string()]).unwrap();
    assert_eq!(results.code, Some(0), "{results:?}");
    assert_eq!(json_lines(&std::fs::read_to_string(&out).unwrap()).unwrap().len(), 60);
}

#[test]
fn a_pipe_goes_in_and_a_pipe_comes_out() {
    let fleet = LocalFleet::start(&["--workers", "1"]).unwrap();
    let input = fleet.write("in.jsonl", &batch_lines(3, 4)).unwrap();
    let output = command(&["submit", "-", "--out", "-", "--nats", &fleet.addresses.nats])
        .unwrap()
        .stdin(std::fs::File::open(&input).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(json_lines(&String::from_utf8(output.stdout).unwrap()).unwrap().len(), 3);
    let nothing = fleet.write("empty.jsonl", "").unwrap();
    let ended = fleet.run(&["submit", &nothing]).unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("is empty"), "{}", ended.stderr);
    let ended = fleet.run(&["submit", "-"]).unwrap();
    assert!(ended.stderr.contains("standard input is empty"), "{}", ended.stderr);
    let blank = fleet.write("blank.jsonl", "\n \n").unwrap();
    let ended = fleet.run(&["submit", &blank]).unwrap();
    assert!(ended.code == Some(1) && ended.stderr.contains("every line is blank"), "{ended:?}");
}

#[test]
fn what_cannot_be_done_is_said_with_what_to_do() {
    let missing = run(&["submit", "no-such-file.jsonl"]).unwrap();
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("no-such-file.jsonl"), "{}", missing.stderr);

    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.jsonl");
    std::fs::write(&input, batch_lines(1, 1)).unwrap();
    let input = input.display().to_string();
    // Port 1 is nobody's.
    let unreachable = run(&["submit", &input, "--nats", "127.0.0.1:1"]).unwrap();
    assert_eq!((unreachable.code, unreachable.stdout.as_str()), (Some(1), ""));
    assert!(unreachable.stderr.contains("ternfleet up"), "{}", unreachable.stderr);

    let usage = run(&["submit", &input, "--no-such-flag"]).unwrap();
    assert_eq!(usage.code, Some(64), "a wrong command line is not `some error lines`");
    let nowhere = run(&["submit", &input, "--out", "/no/such/folder/out.jsonl"]).unwrap();
    assert_eq!(nowhere.code, Some(1), "found out before anything is sent");
}

/// Batches of all sizes, one after the other: what each was quoted, and what it was billed.
#[test]
fn twenty_real_batches_are_billed_what_they_were_quoted() {
    // Dear, so that micro-dollars are fine enough.
    let fleet = LocalFleet::start(&["--workers", "2", "--price-usd-per-hour", "36,72"]).unwrap();
    let mut told = Vec::new();
    for n in 0..26usize {
        let (count, max_tokens) = (3 + n * 17 % 46, 16 + n * 29 % 90);
        let input = fleet.write("in.jsonl", &batch_lines(count, max_tokens)).unwrap();
        let ended = fleet.run(&["submit", &input, "--json"]).unwrap();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let batch = ended.json().unwrap();
        let number = |pointer: &str| batch.pointer(pointer).and_then(Value::as_f64).unwrap_or_default();
        let bill = number("/ternfleet/cost_usd_micro");
        let (p50, p95) =
            (number("/ternfleet/quote/bill_p50_usd_micro"), number("/ternfleet/quote/bill_p95_usd_micro"));
        assert!(bill > 0.0 && p50 > 0.0 && p95 >= p50, "{batch}");
        told.push((bill / p50, bill <= p95, format!("{count} × {max_tokens}: {bill} of {p50} to {p95}")));
    }
    // The first ones teach how long outputs turn out and how fast these pods are.
    let mut told = told.split_off(6);
    told.iter().for_each(|(ratio, _, text)| println!("{ratio:.2}  {text}"));
    told.sort_by(|a, b| a.0.total_cmp(&b.0));
    let within = told.iter().filter(|(_, within, _)| *within).count();
    let median = told[told.len() / 2].0;
    println!("{within} of {} within p95; bill over p50: median {median:.3}", told.len());
    // A quiet machine shows nine in ten within p95 and a median within 15 %. Here other tests may run beside the fleet, so
    // only gross errors fail; the simulator's quotes are held to the real bounds.
    assert!(within >= 14, "{within} within p95: {told:#?}");
    assert!((0.6..=1.6).contains(&median), "median {median}: {told:#?}");
    // The fleet compares them itself.
    let (_, metrics) = ternfleet_tests::http::get_blocking(&fleet.addresses.http, "/metrics");
    let line = |name: &str| metrics.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    let count = line("ternfleet_quote_error_ratio_count").unwrap();
    assert!(count.ends_with(" 26") || count.ends_with(" 25"), "{count}");
    assert!(line("ternfleet_quotes_checked_total{bill=\"within_p95\"}").is_some());
}
