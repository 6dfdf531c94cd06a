//! A streamed answer: what its caller has been told, and what is still to be said.
//!
//! Chunks of tokens are hints: they may be lost, doubled by a resumed job, or come late. The committed answer mends each of
//! these.

use serde_json::{Value, json};

use super::logprobs::{chat_logprobs, completion_logprobs};
use super::output::{body_id, finish_reason, model_name, usage};
use super::single::{Single, effort, single_body};
use super::{Endpoint, json_line, responses};
use crate::id::JobKey;
use crate::message::{Generated, JobResult, Outcome, TokenChunk, TokenLogprobs};

/// One server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spoken {
    /// Named by the endpoints that name their events.
    pub event: Option<String>,
    pub data: String,
}

/// What the caller has read so far.
#[derive(Debug)]
pub struct Told {
    single: Single,
    job: JobKey,
    begun: bool,
    /// Events so far, of the endpoint that counts them.
    events: u64,
    choices: Vec<Choice>,
}

#[derive(Debug, Clone, Default)]
struct Choice {
    tokens: u32,
    text: String,
    chars: usize,
}

/// Some tokens of one choice.
struct Piece<'a> {
    choice: usize,
    text: &'a str,
    prompt_logprobs: &'a [TokenLogprobs],
    logprobs: &'a [TokenLogprobs],
}

impl Told {
    pub fn new(single: Single, job: JobKey) -> Told {
        let choices = vec![Choice::default(); single.generation.prompt.choices() as usize];
        Told { single, job, begun: false, events: 0, choices }
    }

    /// What is said of a chunk that continues exactly where the caller stands; others are left to the ending.
    pub fn accept(&mut self, chunk: &TokenChunk) -> Vec<Spoken> {
        let place = chunk.choice as usize;
        let Some(choice) = self.choices.get_mut(place).filter(|choice| choice.tokens == chunk.position)
        else {
            return Vec::new();
        };
        choice.tokens += chunk.count;
        if self.single.line.model.is_none() {
            self.single.line.model.clone_from(&chunk.model);
        }
        let mut spoken = self.begin();
        spoken.push(self.piece(&Piece {
            choice: place,
            text: &chunk.text,
            prompt_logprobs: &chunk.prompt_logprobs,
            logprobs: &chunk.logprobs,
        }));
        spoken
    }

    /// What is still to be said once the answer is committed: the rest of each text, the reasons, the usage. Nothing, if the
    /// job failed.
    pub fn ending(&mut self, result: &JobResult) -> Vec<Spoken> {
        let Outcome::Text(generated) = &result.outcome else { return Vec::new() };
        if self.single.line.model.is_none() {
            self.single.line.model.clone_from(&result.line.model);
        }
        let mut spoken = self.begin();
        if self.single.line.endpoint == Endpoint::Responses {
            spoken.extend(self.rest(0, generated));
            let whole = single_body(result, &self.single);
            let events = responses::closing(result, &whole);
            spoken.extend(events.into_iter().map(|event| self.numbered(event)));
            return spoken;
        }
        for (place, one) in generated.choices().enumerate().take(self.choices.len()) {
            spoken.extend(self.rest(place, one));
        }
        for (place, one) in generated.choices().enumerate().take(self.choices.len()) {
            spoken.push(self.last(place, one));
        }
        if self.single.include_usage {
            let mut last = self.chunk(Vec::new());
            last["usage"] = usage(&result.usage);
            last["ternfleet"] = effort(result);
            spoken.push(said(&last));
        }
        spoken
    }

    /// The role of each choice, for chat; nothing for completions.
    fn begin(&mut self) -> Vec<Spoken> {
        if std::mem::replace(&mut self.begun, true) || self.single.line.endpoint == Endpoint::Completions {
            return Vec::new();
        }
        if self.single.line.endpoint == Endpoint::Responses {
            let Single { line, created_at, settings, .. } = &self.single;
            let events = responses::opening(line, &self.job, created_at.0 / 1000, settings);
            return events.into_iter().map(|event| self.numbered(event)).collect();
        }
        let role = |index| {
            let delta = json!({ "role": "assistant", "content": "", "refusal": null });
            let choice = json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null });
            said(&self.chunk(vec![choice]))
        };
        (0..self.choices.len()).map(role).collect()
    }

    /// True where a stream ends with `[DONE]`.
    pub fn says_done(&self) -> bool {
        self.single.line.endpoint != Endpoint::Responses
    }

    /// An event of the endpoint that names and counts its events.
    fn numbered(&mut self, mut event: Value) -> Spoken {
        event["sequence_number"] = self.events.into();
        self.events += 1;
        let named = event["type"].as_str().map(str::to_owned);
        Spoken { event: named, data: json_line(&event) }
    }

    fn rest(&mut self, place: usize, one: &Generated) -> Option<Spoken> {
        let told = &self.choices[place];
        let text = one.text.strip_prefix(told.text.as_str()).unwrap_or_default();
        let logprobs = one.logprobs.get(told.tokens as usize..).unwrap_or_default();
        let prompt_logprobs = if told.tokens == 0 { one.prompt_logprobs.as_slice() } else { &[] };
        let untold = !text.is_empty() || !logprobs.is_empty() || !prompt_logprobs.is_empty();
        untold.then(|| self.piece(&Piece { choice: place, text, prompt_logprobs, logprobs }))
    }

    fn piece(&mut self, piece: &Piece<'_>) -> Spoken {
        let offset = self.choices[piece.choice].chars;
        let told = &mut self.choices[piece.choice];
        told.text.push_str(piece.text);
        told.chars += piece.text.chars().count();
        let choice = match self.single.line.endpoint {
            Endpoint::Completions => {
                let logprobs = completion_logprobs(piece.prompt_logprobs, piece.logprobs, piece.text, offset);
                json!({ "index": piece.choice, "text": piece.text, "logprobs": logprobs, "finish_reason": null })
            }
            Endpoint::Responses => {
                let delta = responses::delta(&self.job, piece.text, piece.logprobs);
                return self.numbered(delta);
            }
            Endpoint::ChatCompletions => {
                let (delta, logprobs) = (json!({ "content": piece.text }), chat_logprobs(piece.logprobs));
                json!({ "index": piece.choice, "delta": delta, "logprobs": logprobs, "finish_reason": null })
            }
        };
        said(&self.chunk(vec![choice]))
    }

    /// The end of one choice, with its reason.
    fn last(&self, place: usize, one: &Generated) -> Spoken {
        let reason = finish_reason(one.finish);
        let choice = match self.single.line.endpoint {
            Endpoint::Completions => {
                json!({ "index": place, "text": "", "logprobs": null, "finish_reason": reason })
            }
            Endpoint::ChatCompletions | Endpoint::Responses => {
                json!({ "index": place, "delta": {}, "logprobs": null, "finish_reason": reason })
            }
        };
        said(&self.chunk(vec![choice]))
    }

    /// A chunk; where usage was asked for, each but the last says that it has none.
    fn chunk(&self, choices: Vec<Value>) -> Value {
        let object = match self.single.line.endpoint {
            Endpoint::Completions => "text_completion",
            Endpoint::ChatCompletions | Endpoint::Responses => "chat.completion.chunk",
        };
        let mut chunk = json!({
            "id": body_id(self.single.line.endpoint, &self.job),
            "object": object,
            "created": self.single.created_at.0 / 1000,
            "model": model_name(&self.single.line),
            "choices": choices,
        });
        if self.single.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

fn said(value: &Value) -> Spoken {
    Spoken { event: None, data: json_line(value) }
}

#[cfg(test)]
mod tests {
    use super::super::parse_single;
    use super::*;
    use crate::id::{Attempt, Epoch, TenantId, TimeMs};
    use crate::message::{Finish, Timing, Usage};
    use crate::tag::AssignmentTag;

    fn job() -> JobKey {
        JobKey { batch: "cmpl-1".parse().unwrap(), index: 0 }
    }

    fn told(endpoint: Endpoint, body: &str) -> Told {
        Told::new(parse_single(endpoint, body.as_bytes(), &job()).unwrap(), job())
    }

    fn chunk(choice: u32, position: u32, count: u32, text: &str) -> TokenChunk {
        TokenChunk {
            job: job(),
            epoch: Epoch(1),
            position,
            count,
            text: text.into(),
            logprobs: Vec::new(),
            choice,
            prompt_logprobs: Vec::new(),
            model: Some("storyteller".into()),
        }
    }

    fn result(endpoint: Endpoint, texts: &[&str]) -> JobResult {
        let one = |text: &&str| Generated {
            text: (*text).to_owned(),
            finish: Finish::Length,
            ..Generated::default()
        };
        let mut choices = texts.iter().map(one);
        let mut first = choices.next().unwrap();
        first.more = choices.collect();
        JobResult {
            job: job(),
            tenant: TenantId::default_tenant(),
            epoch: Epoch(1),
            attempt: Attempt(1),
            worker: "w".parse().unwrap(),
            tag: AssignmentTag(0),
            line: crate::message::Line { custom_id: None, endpoint, model: Some("storyteller".into()) },
            outcome: Outcome::Text(first),
            usage: Usage { prompt_tokens: 3, completion_tokens: 4, ..Usage::default() },
            timing: Timing::default(),
            finished_at: TimeMs(5),
            traceparent: None,
        }
    }

    fn values(spoken: &[Spoken]) -> Vec<Value> {
        spoken.iter().map(|spoken| serde_json::from_str(&spoken.data).unwrap()).collect()
    }

    fn text_of(chunks: &[Value], index: usize) -> String {
        let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
        choices
            .filter(|choice| choice["index"] == index)
            .map(|choice| choice["text"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn a_stream_shows_no_gap_and_no_repeat() {
        let mut told = told(Endpoint::Completions, r#"{"prompt":"x","stream":true}"#);
        let mut spoken = told.accept(&chunk(0, 0, 2, "Once upon"));
        assert!(told.accept(&chunk(0, 0, 2, "Once upon")).is_empty(), "a repeat after resumption");
        assert!(told.accept(&chunk(0, 5, 1, " lived")).is_empty(), "a gap waits for the committed text");
        spoken.extend(told.accept(&chunk(0, 2, 1, " a")));
        spoken.extend(told.ending(&result(Endpoint::Completions, &["Once upon a time"])));
        let chunks = values(&spoken);
        assert_eq!(text_of(&chunks, 0), "Once upon a time");
        assert!(chunks.iter().all(|chunk| chunk["model"] == "storyteller" && chunk.get("usage").is_none()));
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
    }

    #[test]
    fn each_choice_is_told_by_its_index_and_ends_with_its_reason() {
        let mut told = told(Endpoint::Completions, r#"{"prompt":["x","y"],"n":2,"stream":true}"#);
        let mut spoken = told.accept(&chunk(3, 0, 1, "d"));
        spoken.extend(told.accept(&chunk(1, 0, 1, "b")));
        spoken.extend(told.accept(&chunk(3, 1, 1, "dd")));
        assert!(told.accept(&chunk(4, 0, 1, "e")).is_empty(), "there is no such choice");
        spoken.extend(told.ending(&result(Endpoint::Completions, &["a", "b", "c", "ddd"])));
        let chunks = values(&spoken);
        for (index, text) in ["a", "b", "c", "ddd"].into_iter().enumerate() {
            assert_eq!(text_of(&chunks, index), text);
        }
        let ends = chunks.iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "length");
        assert_eq!(ends.count(), 4);
    }

    #[test]
    fn usage_is_null_in_all_chunks_but_the_last() {
        let body = r#"{"messages":[{"role":"user","content":"x"}],"stream":true,"stream_options":{"include_usage":true}}"#;
        let mut told = told(Endpoint::ChatCompletions, body);
        let mut spoken = told.accept(&chunk(0, 0, 1, "a\u{2028}"));
        assert!(spoken.iter().all(|spoken| !spoken.data.contains('\u{2028}')));
        spoken.extend(told.ending(&result(Endpoint::ChatCompletions, &["a\u{2028}b"])));
        let chunks = values(&spoken);
        let (last, others) = chunks.split_last().unwrap();
        assert!(
            others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()),
            "{others:?}"
        );
        assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(7)));
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    }

    #[test]
    fn a_response_is_told_in_named_and_numbered_events() {
        let body = r#"{"input":"x","instructions":"Be brief.","stream":true,"temperature":0}"#;
        let mut told = told(Endpoint::Responses, body);
        let mut spoken = told.accept(&chunk(0, 0, 1, "a"));
        spoken.extend(told.ending(&result(Endpoint::Responses, &["ab"])));
        assert!(!told.says_done());
        let events = values(&spoken);
        let kinds: Vec<&str> = spoken.iter().map(|spoken| spoken.event.as_deref().unwrap()).collect();
        let expected = [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ];
        assert_eq!(kinds, expected);
        assert!(events.iter().enumerate().all(|(at, event)| event["sequence_number"] == at), "{events:?}");
        assert_eq!((&events[4]["delta"], &events[5]["delta"]), (&json!("a"), &json!("b")));
        let response = &events[9]["response"];
        assert_eq!(response["output"][0]["content"][0]["text"], "ab");
        assert_eq!((&response["instructions"], &response["temperature"]), (&json!("Be brief."), &json!(0)));
        assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    }
}
