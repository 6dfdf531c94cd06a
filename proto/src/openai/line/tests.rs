//! Good lines read as they should; each bad line gets the answer written beside it.

use super::*;
use crate::message::{ChatMessage, Conversation, OpenSampling, PastCall, Prompt, Sampling, ToolChoice};

fn job() -> JobKey {
    JobKey { batch: "batch_1".parse().unwrap(), index: 6 }
}

fn read_line(bytes: &[u8]) -> Result<(Line, Generation), (Line, Failure)> {
    let served = ModelDefaults { vocabulary_tokens: Some(1000), ..ModelDefaults::default() };
    parse_line(bytes, 7, &job(), &served)
}

fn good(text: &str) -> (Line, Generation) {
    read_line(text.as_bytes()).unwrap_or_else(|(_, failure)| panic!("{text}: {}", failure.message))
}

fn body(url: &str, body: &str) -> String {
    format!(r#"{{"custom_id":"a","method":"POST","url":"/v1/{url}","body":{body}}}"#)
}

#[test]
fn the_short_form_takes_openais_defaults() {
    let (line, generation) = good(r#"{"prompt":"Once"}"#);
    assert_eq!(line, Line::new(Some("line-7".into()), Endpoint::Completions, None));
    assert_eq!(generation.prompt, Prompt::Text("Once".into()));
    let open = OpenSampling { temperature: true, top_p: true, top_k: true, frequency_penalty: true };
    assert_eq!(
        (generation.max_tokens, generation.sampling),
        (Some(16), Sampling { open, ..Sampling::default() })
    );
    assert_eq!(generation.seed, job().seed());
    assert!(
        generation.stop.is_empty() && generation.logprobs.is_none() && !generation.echo && !generation.stream
    );
}

#[test]
fn the_batch_form_reads_every_parameter() {
    let text = body(
        "completions",
        r#"{"model":"m","prompt":[1,2,999],"max_tokens":7,"temperature":0,"top_p":0.5,"top_k":40,"min_p":0.1,
            "presence_penalty":-2,"frequency_penalty":1.5,"logit_bias":{"9":-100,"3":1},"seed":-1,"stop":["a","b"],
            "logprobs":5,"n":1,"best_of":1,"user":"u","stream":false,"suffix":null,"response_format":{"type":"text"}}"#,
    );
    let (line, generation) = good(&text.replace('\n', " "));
    assert_eq!((line.custom_id.as_deref(), line.model.as_deref()), (Some("a"), Some("m")));
    assert_eq!(generation.prompt, Prompt::Tokens(vec![1, 2, 999]));
    let sampling = Sampling {
        temperature: 0.0,
        top_p: 0.5,
        top_k: 40,
        min_p: 0.1,
        presence_penalty: -2.0,
        frequency_penalty: 1.5,
        logit_bias: vec![(3, 1.0), (9, -100.0)],
        open: OpenSampling::default(),
    };
    assert_eq!(generation.sampling, sampling);
    assert_eq!((generation.max_tokens, generation.seed, generation.logprobs), (Some(7), u64::MAX, Some(5)));
    assert_eq!(generation.stop, ["a", "b"]);
}

#[test]
fn chat_content_is_a_string_or_text_parts() {
    let text = body(
        "chat/completions",
        r#"{"messages":[{"role":"developer","content":"Be brief."},
            {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "max_completion_tokens":9,"logprobs":true,"top_logprobs":20}"#,
    );
    let (line, generation) = good(&text.replace('\n', " "));
    assert_eq!(line.endpoint, Endpoint::ChatCompletions);
    let said = |role: &str, content: &str| ChatMessage {
        role: role.into(),
        content: content.into(),
        ..ChatMessage::default()
    };
    assert_eq!(generation.prompt, Prompt::Chat(vec![said("system", "Be brief."), said("user", "ab")]));
    assert_eq!((generation.max_tokens, generation.logprobs), (Some(9), Some(20)));
}

#[test]
fn a_chat_without_a_limit_ends_with_the_context() {
    let (line, generation) = good(r#"{"messages":[{"role":"user","content":"hi"}],"custom_id":"x"}"#);
    assert_eq!((line.endpoint, line.custom_id.as_deref()), (Endpoint::ChatCompletions, Some("x")));
    assert_eq!(generation.max_tokens, None);
}

#[test]
fn line_endings_and_a_first_byte_order_mark_are_no_part_of_the_line() {
    good("{\"prompt\":\"a\"}\r\n");
    let marked = b"\xef\xbb\xbf{\"prompt\":\"a\"}";
    assert!(parse_line(marked, 1, &job(), &ModelDefaults::default()).is_ok());
    assert!(read_line(marked).is_err());
    assert!(is_blank(b" \t\r\n") && is_blank(b"\xef\xbb\xbf\n") && !is_blank(b"{}"));
}

#[test]
fn a_request_without_a_model_is_reported_under_the_served_ones_name() {
    let served = ModelDefaults { name: Some("storyteller".into()), ..ModelDefaults::default() };
    let (line, _) = parse_line(br#"{"prompt":"a"}"#, 1, &job(), &served).unwrap();
    assert_eq!(line.model.as_deref(), Some("storyteller"));
}

#[test]
fn every_bad_line_is_told_what_is_wrong_with_it() {
    let completion = |rest: &str| body("completions", &format!(r#"{{"prompt":"p",{rest}}}"#));
    let chat = |rest: &str| body("chat/completions", &format!("{{{rest}}}"));
    let user = r#""messages":[{"role":"user","content":"x"}]"#;
    let table: Vec<(String, &str)> = vec![
        (String::new(), "the line is empty"),
        ("   ".into(), "the line is empty"),
        ("{".into(), "the JSON is incomplete"),
        (r#"{"prompt":"Once upon"#.into(), "the JSON is incomplete"),
        ("not json".into(), "not JSON at column 2: expected ident"),
        (r#"{"prompt":"a"} {"prompt":"b"}"#.into(), "not JSON at column 16: trailing characters"),
        (r#"{"prompt":"a",}"#.into(), "not JSON at column 15: trailing comma"),
        (r#"{'prompt':'a'}"#.into(), "not JSON at column 2: key must be a string"),
        ("[]".into(), "a line must be a JSON object, not an array of 0"),
        ("42".into(), "a line must be a JSON object, not 42"),
        ("null".into(), "a line must be a JSON object, not null"),
        ("[".repeat(200_000), "not JSON at column 128: recursion limit exceeded"),
        ("{}".into(), "not a request: `body`, `prompt`, `messages` and `input` are missing"),
        (r#"{"promt":"a"}"#.into(), "not a request: `body`, `prompt`, `messages` and `input` are missing"),
        (r#"{"prompt":"a","custom_id":7}"#.into(), "`custom_id` must be a string, not 7"),
        (r#"{"prompt":"a","custom_id":""}"#.into(), "`custom_id` is empty"),
        (format!(r#"{{"prompt":"a","custom_id":"{}"}}"#, "x".repeat(513)), "`custom_id` is 513 bytes long"),
        (r#"{"prompt":"a","messages":[]}"#.into(), "`messages` is a field of /v1/chat/completions"),
        (r#"{"prompt":"a","temprature":1}"#.into(), "`temprature` is not a field of a completion request"),
        (r#"{"url":"/v1/completions","body":{"prompt":"a"}}"#.into(), "`method` is missing"),
        (
            r#"{"method":"GET","url":"/v1/completions","body":{}}"#.into(),
            "`method` must be \"POST\", not \"GET\"",
        ),
        (r#"{"method":"POST","body":{}}"#.into(), "`url` is missing"),
        (body("embeddings", "{}"), "not \"/v1/embeddings\""),
        (r#"{"method":"POST","url":"/v1/completions"}"#.into(), "`body` is missing"),
        (body("completions", "[1]"), "`body` must be an object, not an array of 1"),
        (
            r#"{"method":"POST","url":"/v1/completions","body":{"prompt":"a"},"retries":3}"#.into(),
            "`retries` is not a field of a batch line",
        ),
        (body("completions", "{}"), "`prompt` is missing"),
        (
            body("completions", r#"{"prompt":7}"#),
            "`prompt` must be a string, an array of token ids, or an array of these, not 7",
        ),
        (body("completions", r#"{"prompt":[]}"#), "`prompt` is an empty array"),
        (body("completions", r#"{"prompt":[[1],[]]}"#), "`prompt[1]` is an empty array"),
        (
            body("completions", r#"{"prompt":["a",[1000]]}"#),
            "`prompt[1][0]` is not a token id below 1000: 1000",
        ),
        (
            body("completions", &format!(r#"{{"prompt":[{}"a"],"n":16}}"#, r#""a","#.repeat(8))),
            "`prompt` has 9 prompts and `n` is 16: that makes 144 choices",
        ),
        (body("completions", r#"{"prompt":[1,"a"]}"#), "not an array of 2"),
        (body("completions", r#"{"prompt":[1,1000]}"#), "`prompt[1]` is not a token id below 1000: 1000"),
        (body("completions", r#"{"prompt":[1,-5]}"#), "`prompt[1]` is not a token id"),
        (completion(r#""model":1"#), "`model` must be a string, not 1"),
        (completion(r#""max_tokens":0"#), "`max_tokens` must be a whole number from 1 to 1000000, not 0"),
        (completion(r#""max_tokens":-1"#), "`max_tokens` must be a whole number"),
        (completion(r#""max_tokens":1.5"#), "`max_tokens` must be a whole number"),
        (
            completion(r#""max_tokens":"16""#),
            "`max_tokens` must be a whole number from 1 to 1000000, not \"16\"",
        ),
        (completion(r#""temperature":2.5"#), "`temperature` must be a number from 0 to 2, not 2.5"),
        (completion(r#""temperature":true"#), "`temperature` must be a number from 0 to 2, not true"),
        (completion(r#""top_p":0"#), "`top_p` must be above 0"),
        (completion(r#""top_p":1.01"#), "`top_p` must be a number from 0 to 1, not 1.01"),
        (completion(r#""min_p":2"#), "`min_p` must be a number from 0 to 1, not 2"),
        (completion(r#""presence_penalty":3"#), "`presence_penalty` must be a number from -2 to 2, not 3"),
        (
            completion(r#""frequency_penalty":-3"#),
            "`frequency_penalty` must be a number from -2 to 2, not -3",
        ),
        (completion(r#""logit_bias":[1]"#), "`logit_bias` must be an object"),
        (completion(r#""logit_bias":{"x":1}"#), "`logit_bias` has the key \"x\", which is not a token id"),
        (completion(r#""logit_bias":{"1000":1}"#), "`logit_bias` has the key \"1000\""),
        (
            completion(r#""logit_bias":{"1":101}"#),
            "`logit_bias[1]` must be a number from -100 to 100, not 101",
        ),
        (completion(r#""seed":1.5"#), "`seed` must be a 64-bit whole number, not 1.5"),
        (completion(r#""stop":7"#), "`stop` must be a string or an array of strings, not 7"),
        (completion(r#""stop":["a","b","c","d","e"]"#), "`stop` has 5 strings; at most 4 are allowed"),
        (completion(r#""stop":["a",""]"#), "`stop[1]` is empty"),
        (completion(r#""stop":[1]"#), "`stop[0]` must be a string, not 1"),
        (completion(r#""logprobs":6"#), "`logprobs` must be a whole number from 0 to 5, not 6"),
        (completion(r#""logprobs":true"#), "`logprobs` must be a whole number from 0 to 5, not true"),
        (completion(r#""n":17"#), "`n` must be a whole number from 1 to 16, not 17"),
        (completion(r#""best_of":3"#), "`best_of` is 3 and `n` is 1"),
        (chat(&format!(r#"{user},"echo":true"#)), "`echo` is not supported as true"),
        (completion(r#""metadata":{"a":1}"#), "`metadata[\"a\"]` must be a string, not 1"),
        (completion(r#""min_tokens":3"#), "`min_tokens` is not supported as 3"),
        (completion(r#""top_k":-2"#), "`top_k` must be a whole number"),
        (completion(r#""suffix":"s""#), "`suffix` is not supported"),
        (completion(r#""stream":true"#), "`stream` cannot be true in a batch"),
        (completion(r#""stream_options":{"include_usage":true}"#), "`stream_options` needs `stream`"),
        (completion(r#""store":true"#), "`store` is not supported"),
        (completion(r#""service_tier":"flex""#), "`service_tier` is not supported as \"flex\""),
        (completion(r#""response_format":{"type":"xml"}"#), "`response_format` \"xml\" is unknown"),
        (completion(r#""response_format":"text""#), "`response_format` must be an object"),
        (
            completion(r#""max_completion_tokens":5"#),
            "`max_completion_tokens` is not a field of a completion request",
        ),
        (chat(""), "`messages` is missing"),
        (chat(r#""messages":[]"#), "`messages` is empty"),
        (chat(r#""messages":"hi""#), "`messages` must be an array, not \"hi\""),
        (chat(r#""messages":["hi"]"#), "`messages[0]`: must be an object with `role` and `content`"),
        (chat(r#""messages":[{"content":"x"}]"#), "`messages[0]`: `role` is missing"),
        (
            chat(r#""messages":[{"role":"critic","content":"x"}]"#),
            "`messages[0]`: `role` \"critic\" is not supported",
        ),
        (chat(r#""messages":[{"role":"user"}]"#), "`messages[0]`: `content` is missing"),
        (
            chat(r#""messages":[{"role":"user","content":3}]"#),
            "`content` must be a string or text parts, not 3",
        ),
        (
            chat(r#""messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]"#),
            "a part of type \"image_url\" is not supported",
        ),
        (
            chat(r#""messages":[{"role":"user","content":"x","name":7}]"#),
            "`messages[0]`: `name` must be a string, not 7",
        ),
        (chat(&format!(r#"{user},"prompt":"x""#)), "`prompt` is a field of /v1/completions"),
        (chat(&format!(r#"{user},"tools":[{{}}]"#)), "`tools[0]`: `type` is missing"),
        (chat(&format!(r#"{user},"top_logprobs":3"#)), "`top_logprobs` needs `logprobs` to be true"),
        (
            chat(&format!(r#"{user},"logprobs":true,"top_logprobs":21"#)),
            "`top_logprobs` must be a whole number",
        ),
        (chat(&format!(r#"{user},"max_tokens":4,"max_completion_tokens":5"#)), "use one of them"),
    ];
    for (text, expected) in table {
        let shown: String = text.chars().take(200).collect();
        match read_line(text.as_bytes()) {
            Ok(_) => panic!("{shown} was taken"),
            Err((_, failure)) => {
                assert_eq!(failure.code, FailureCode::InvalidRequest);
                assert!(failure.message.starts_with("line 7: "), "{shown}: {}", failure.message);
                assert!(failure.message.contains(expected), "{shown}: {}", failure.message);
                assert!(failure.message.len() < 300, "{shown}: {}", failure.message);
            }
        }
    }
}

#[test]
fn bytes_that_are_no_text_are_told_where() {
    let (line, failure) = read_line(b"{\"prompt\":\"\xff\xfe\"}").unwrap_err();
    assert_eq!(line.custom_id, None);
    assert!(failure.message.contains("byte 12 is not UTF-8"), "{}", failure.message);
}

#[test]
fn a_line_of_200_megabytes_is_refused_without_being_parsed() {
    let (line, failure) = read_line(&vec![b'x'; 200 << 20]).unwrap_err();
    assert_eq!(line.custom_id, None);
    assert!(failure.message.contains("the line has 209715200 bytes"), "{}", failure.message);
    assert_eq!(line_too_long(7, 200 << 20).1, failure);
}

#[test]
fn a_bad_body_keeps_the_callers_id_and_a_line_that_cannot_be_read_has_none() {
    let (line, _) = read_line(body("chat/completions", "{}").as_bytes()).unwrap_err();
    assert_eq!((line.custom_id.as_deref(), line.endpoint), (Some("a"), Endpoint::ChatCompletions));
    assert_eq!(read_line(b"{").unwrap_err().0.custom_id, None);
    assert_eq!(read_line(br#"{"x":1}"#).unwrap_err().0.custom_id.as_deref(), Some("line-7"));
}

#[test]
fn an_array_of_one_prompt_is_the_prompt_and_of_several_are_several_choices() {
    let (text, ids) = (Prompt::Text("a".into()), Prompt::Tokens(vec![1, 2]));
    let prompt = |rest: &str| good(&body("completions", &format!(r#"{{"prompt":{rest}}}"#))).1.prompt;
    assert_eq!((prompt(r#"["a"]"#), prompt("[[1,2]]")), (text.clone(), ids.clone()));
    let several = prompt(r#"["a",[1,2]],"n":2,"best_of":2"#);
    assert_eq!((several.each(), several.n(), several.choices()), (&[text, ids][..], 2, 4));
    let chat = good(&body("chat/completions", r#"{"messages":[{"role":"user","content":"x"}],"n":3}"#)).1;
    assert_eq!(chat.prompt.choices(), 3);
}

#[test]
fn fields_that_ask_for_nothing_are_taken() {
    let nothing = r#""n":1,"user":"u","safety_identifier":"s","prompt_cache_key":"k","store":false,"service_tier":"auto",
        "metadata":{"a":"b"},"suffix":"","top_k":-1,"ignore_eos":false,"min_tokens":0,"repetition_penalty":1.0,
        "skip_special_tokens":true,"logit_bias":{},"stop":null,"seed":null"#;
    let (_, plain) = good(&body("completions", r#"{"prompt":"x"}"#));
    let (_, read) = good(&body("completions", &format!(r#"{{"prompt":"x",{nothing}}}"#)).replace('\n', " "));
    // `top_k` -1 asks for no limit, where a model may have one of its own.
    let open = OpenSampling { top_k: false, ..plain.sampling.open };
    assert_eq!(read, Generation { sampling: Sampling { open, ..plain.sampling.clone() }, ..plain });
    let messages = r#""messages":[{"role":"user","content":"x","name":"me"},
        {"role":"assistant","content":"y","refusal":null,"annotations":[],"audio":null,"function_call":null,"tool_calls":null},
        {"role":"user","content":"z"}],"modalities":["text"],"verbosity":"medium","reasoning_effort":"none","functions":[],
        "tools":[],"tool_choice":"none","parallel_tool_calls":true"#;
    good(&body("chat/completions", &format!("{{{messages}}}")).replace('\n', " "));
}

#[test]
fn a_prompt_may_be_echoed_and_scored_alone() {
    let (_, read) =
        good(&body("completions", r#"{"prompt":[[1,2]],"echo":true,"logprobs":1,"max_tokens":0}"#));
    assert_eq!((read.echo, read.logprobs, read.max_tokens), (true, Some(1), Some(0)));
}

#[test]
fn a_response_is_a_chat_by_another_name() {
    let text = body(
        "responses",
        r#"{"model":"m","instructions":"Be brief.","input":[{"role":"user","content":"a"},
            {"type":"message","id":"msg_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"b","annotations":[]}]},
            {"role":"user","content":[{"type":"input_text","text":"c"}]}],"max_output_tokens":9,"temperature":0,
            "text":{"format":{"type":"text"},"verbosity":"medium"},"include":["message.output_text.logprobs"],"top_logprobs":2,
            "store":false,"truncation":"disabled","tools":[],"tool_choice":"auto","parallel_tool_calls":true,"reasoning":{"effort":null}}"#,
    );
    let (line, generation) = good(&text.replace('\n', " "));
    assert_eq!(line.endpoint, Endpoint::Responses);
    let said = |role: &str, content: &str| ChatMessage {
        role: role.into(),
        content: content.into(),
        ..ChatMessage::default()
    };
    let wanted =
        vec![said("system", "Be brief."), said("user", "a"), said("assistant", "b"), said("user", "c")];
    assert_eq!(generation.prompt, Prompt::Chat(wanted));
    assert_eq!((generation.max_tokens, generation.logprobs), (Some(9), Some(2)));
    let short = good(r#"{"input":"a","custom_id":"x"}"#);
    assert_eq!(
        (short.0.endpoint, short.1.prompt),
        (Endpoint::Responses, Prompt::Chat(vec![said("user", "a")]))
    );
    let refused = |rest: &str, expected: &str| {
        let text = body("responses", &format!(r#"{{"input":"a",{rest}}}"#));
        let message = read_line(text.as_bytes()).unwrap_err().1.message;
        assert!(message.contains(expected), "{rest}: {message}");
    };
    refused(r#""store":true"#, "`store` cannot be true");
    refused(r#""background":true"#, "`background` cannot be true");
    refused(r#""previous_response_id":"resp_1""#, "`previous_response_id` is not supported");
    refused(
        r#""tools":[{"type":"web_search"}]"#,
        "`tools[0]`: a tool of type \"web_search\" is not \
                                                   supported",
    );
    refused(r#""text":{"format":{"type":"text"},"user":"me"}"#, "`user` is not a field of `text`");
    refused(r#""text":{"store":false}"#, "`store` is not a field of `text`");
    refused(r#""text":{"verbosity":"low"}"#, "`text.verbosity` \"low\" is not supported");
    refused(r#""max_tokens":3"#, "`max_tokens` is not a field of a request for a response");
    refused(
        r#""input":[{"type":"reasoning"}]"#,
        "`input[0]`: an item of type \"reasoning\" is not supported",
    );
    refused(
        r#""include":["file_search_call.results"]"#,
        "`include` \"file_search_call.results\" is not supported",
    );
    refused(r#""stream":true"#, "`stream` cannot be true in a batch");
}

fn call(id: &str, arguments: &str) -> PastCall {
    PastCall { id: id.into(), name: "f".into(), arguments: arguments.into() }
}

#[test]
fn calls_and_their_answers_are_read_from_chats_and_from_responses() {
    let said = |role: &str, content: &str| ChatMessage {
        role: role.into(),
        content: content.into(),
        ..ChatMessage::default()
    };
    let answer = |id: &str, text: &str| ChatMessage { call_id: Some(id.into()), ..said("tool", text) };
    let wanted = vec![
        said("user", "a"),
        ChatMessage {
            calls: vec![call("1", r#"{"z":1,"a":2}"#), call("2", "{}")],
            ..said("assistant", "one moment")
        },
        answer("1", "x"),
        answer("2", "yy"),
        ChatMessage { calls: vec![call("3", "{}")], ..said("assistant", "") },
        answer("3", "z"),
    ];
    let chat = r#"{"messages":[{"role":"user","content":"a"},
        {"role":"assistant","content":"one moment","tool_calls":[
            {"id":"1","type":"function","function":{"name":"f","arguments":"{\"z\":1,\"a\":2}"}},
            {"id":"2","type":"function","function":{"name":"f","arguments":""}}]},
        {"role":"tool","tool_call_id":"1","content":"x"},
        {"role":"tool","tool_call_id":"2","content":[{"type":"text","text":"y"},{"type":"text","text":"y"}]},
        {"role":"assistant","content":null,"tool_calls":[{"id":"3","type":"function","function":{"name":"f","arguments":"{}"}}]},
        {"role":"tool","tool_call_id":"3","content":"z"}]}"#;
    let response = r#"{"input":[{"role":"user","content":"a"},{"role":"assistant","content":"one moment"},
        {"type":"function_call","id":"fc_1","call_id":"1","name":"f","arguments":"{\"z\":1,\"a\":2}","status":"completed"},
        {"type":"function_call","call_id":"2","name":"f","arguments":"{}"},
        {"type":"function_call_output","call_id":"1","output":"x"},
        {"type":"function_call_output","call_id":"2","output":[{"type":"input_text","text":"yy"}]},
        {"type":"function_call","call_id":"3","name":"f","arguments":"{}"},
        {"type":"function_call_output","call_id":"3","output":"z"}]}"#;
    for (url, text) in [("chat/completions", chat), ("responses", response)] {
        let (_, read) = good(&body(url, &text.replace('\n', " ")));
        let conversation = Conversation { messages: wanted.clone(), tools: None };
        assert_eq!(read.prompt, Prompt::Conversation(conversation), "{url}");
        assert!(!read.is_constrained());
    }
    for (message, expected) in [
        (r#"{"role":"tool","content":"x"}"#, "`tool_call_id` is missing"),
        (r#"{"role":"tool","tool_call_id":"1"}"#, "`content` is missing"),
        (r#"{"role":"assistant"}"#, "`content` is missing"),
        (r#"{"role":"user","content":"a","tool_calls":[]}"#, "`tool_calls` is not a field of a message"),
        (
            r#"{"role":"assistant","tool_calls":[{"type":"function","function":{"name":"f","arguments":"{}"}}]}"#,
            "`tool_calls[0]`: `id` is missing",
        ),
        (
            r#"{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":"[]"}}]}"#,
            "`arguments` must be a JSON object in a string",
        ),
        (r#"{"role":"assistant","tool_calls":[{"id":"1","type":"custom"}]}"#, "a call of type \"custom\""),
    ] {
        let text = body("chat/completions", &format!(r#"{{"messages":[{message}]}}"#));
        let found = read_line(text.as_bytes()).unwrap_err().1.message;
        assert!(found.contains("`messages[0]`") && found.contains(expected), "{message}: {found}");
    }
}

#[test]
fn tools_make_a_constrained_request_and_stand_beside_json_alone() {
    let tools =
        r#""messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f"}}]"#;
    let (_, read) = good(&body("chat/completions", &format!("{{{tools}}}")));
    assert!(read.is_constrained() && read.constraint.is_none());
    assert_eq!(read.prompt.tools().unwrap().choice, ToolChoice::Auto);
    let (_, read) =
        good(&body("chat/completions", &format!(r#"{{{tools},"n":2,"tool_choice":"required"}}"#)));
    assert_eq!((read.prompt.choices(), &read.prompt.tools().unwrap().choice), (2, &ToolChoice::Required));
    let (_, read) = good(&body("chat/completions", &format!(r#"{{{tools},"tool_choice":"none"}}"#)));
    assert!(matches!(read.prompt, Prompt::Chat(_)) && !read.is_constrained());
    good(&body("chat/completions", &format!(r#"{{{tools},"response_format":{{"type":"json_object"}}}}"#)));
    let text = body("chat/completions", &format!(r#"{{{tools},"guided_regex":"a"}}"#));
    let found = read_line(text.as_bytes()).unwrap_err().1.message;
    assert!(found.contains("`tools` cannot be combined with a regular expression"), "{found}");
}

#[test]
fn a_line_for_a_response_carries_what_its_answer_repeats() {
    let asked = r#"{"input":"a","instructions":"Be short.","max_output_tokens":60,"tool_choice":"required",
        "tools":[{"type":"function","name":"f","parameters":{"type":"object"}}],"parallel_tool_calls":false}"#;
    let (line, _) = good(&body("responses", asked).replace('\n', " "));
    let settings: Value = serde_json::from_str(&line.settings).unwrap();
    assert_eq!(
        (&settings["instructions"], &settings["tools"][0]["name"]),
        (&"Be short.".into(), &"f".into())
    );
    assert_eq!((&settings["tool_choice"], &settings["max_output_tokens"]), (&"required".into(), &60.into()));
    assert_eq!(settings["parallel_tool_calls"], false);
    assert!(good(r#"{"prompt":"a"}"#).0.settings.is_empty());
    let text =
        body("responses", &format!(r#"{{"input":"a","instructions":{:?}}}"#, "x".repeat(SETTINGS_BYTES_MAX)));
    let found = read_line(text.as_bytes()).unwrap_err().1.message;
    assert!(found.contains("at most 131072 are allowed") && found.contains("`input`"), "{found}");
}
