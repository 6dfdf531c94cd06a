//! A streamed answer: what its caller has been told, and what is still to be said.
//!
//! Chunks of tokens are hints: they may be lost, doubled by a resumed job, or come late. The committed answer corrects
//! each of these.

mod response;

use serde_json::{Value, json};

use super::logprobs::{chat_logprobs, completion_logprobs};
use super::output::{body_id, call_id, finish_reason, ids, model_name, usage};
use super::responses::{self, Place};
use super::single::{Single, effort};
use super::{Endpoint, json_line};
use crate::id::JobKey;
use crate::message::{Call, CallPiece, Generated, JobResult, Outcome, TokenChunk, TokenLogprobs};

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
    /// The item of the response that is being told.
    open: Option<Place>,
    choices: Vec<Choice>,
}

#[derive(Debug, Clone, Default)]
struct Choice {
    tokens: u32,
    text: String,
    chars: usize,
    calls: Vec<Call>,
    /// Of the text, where a response repeats them at its end.
    logprobs: Vec<TokenLogprobs>,
    /// Ids that were told.
    ids: usize,
    prompt_ids: bool,
}

/// Some tokens of one choice.
struct Piece<'a> {
    choice: usize,
    text: &'a str,
    prompt_logprobs: &'a [TokenLogprobs],
    logprobs: &'a [TokenLogprobs],
    calls: &'a [CallPiece],
    prompt_ids: &'a [u32],
    ids: &'a [u32],
}

impl Told {
    pub fn new(single: Single, job: JobKey) -> Told {
        let choices = vec![Choice::default(); single.generation.prompt.choices() as usize];
        Told { single, job, begun: false, events: 0, open: None, choices }
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
        spoken.extend(self.piece(&Piece {
            choice: place,
            text: &chunk.text,
            prompt_logprobs: &chunk.prompt_logprobs,
            logprobs: &chunk.logprobs,
            calls: &chunk.calls,
            prompt_ids: &chunk.prompt_ids,
            ids: &chunk.ids,
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
            spoken.extend(self.end_response(result, generated));
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

    fn rest(&mut self, place: usize, one: &Generated) -> Vec<Spoken> {
        let told = &self.choices[place];
        let text = one.text.strip_prefix(told.text.as_str()).unwrap_or_default();
        let logprobs = one.logprobs.get(told.tokens as usize..).unwrap_or_default();
        let prompt_logprobs = if told.tokens == 0 { one.prompt_logprobs.as_slice() } else { &[] };
        let calls: Vec<CallPiece> = one
            .calls
            .iter()
            .enumerate()
            .filter_map(|(number, call)| rest_of_call(number as u32, call, told.calls.get(number)))
            .collect();
        let prompt_ids = if told.prompt_ids { &[] } else { one.prompt_ids.as_slice() };
        let nothing = text.is_empty()
            && logprobs.is_empty()
            && prompt_logprobs.is_empty()
            && calls.is_empty()
            && prompt_ids.is_empty();
        if nothing {
            return Vec::new();
        }
        self.piece(&Piece {
            choice: place,
            text,
            prompt_logprobs,
            logprobs,
            calls: &calls,
            prompt_ids,
            ids: &[],
        })
    }

    fn piece(&mut self, piece: &Piece<'_>) -> Vec<Spoken> {
        // While a call may be beginning there is nothing to say.
        let silent = piece.text.is_empty() && (!piece.calls.is_empty() || self.offers_tools());
        let scored = !piece.logprobs.is_empty() || !piece.prompt_logprobs.is_empty() || !piece.ids.is_empty();
        if self.single.line.endpoint == Endpoint::Responses {
            return self.piece_of_response(piece, silent);
        }
        let mut spoken = Vec::new();
        if !silent || scored {
            spoken.push(self.text(piece));
        }
        for call in piece.calls {
            let first = self.take(piece.choice, call);
            spoken.push(self.call(piece.choice, call, first));
        }
        spoken
    }

    fn offers_tools(&self) -> bool {
        self.single.generation.prompt.tools().is_some()
    }

    fn text(&mut self, piece: &Piece<'_>) -> Spoken {
        let offset = self.choices[piece.choice].chars;
        let told = &mut self.choices[piece.choice];
        told.text.push_str(piece.text);
        told.chars += piece.text.chars().count();
        told.ids += piece.ids.len();
        told.prompt_ids |= !piece.prompt_ids.is_empty();
        let mut choice = match self.single.line.endpoint {
            Endpoint::Completions => {
                let logprobs = completion_logprobs(piece.prompt_logprobs, piece.logprobs, piece.text, offset);
                json!({ "index": piece.choice, "text": piece.text, "logprobs": logprobs, "finish_reason": null })
            }
            Endpoint::ChatCompletions | Endpoint::Responses => {
                let (delta, logprobs) = (json!({ "content": piece.text }), chat_logprobs(piece.logprobs));
                json!({ "index": piece.choice, "delta": delta, "logprobs": logprobs, "finish_reason": null })
            }
        };
        ids(&mut choice, piece.prompt_ids, piece.ids);
        said(&self.chunk(vec![choice]))
    }

    /// Notes a part of a call; true for the first one of its call.
    fn take(&mut self, choice: usize, piece: &CallPiece) -> bool {
        let calls = &mut self.choices[choice].calls;
        let first = piece.call as usize == calls.len();
        if first {
            calls.push(Call { name: piece.name.clone().unwrap_or_default(), arguments: String::new() });
        }
        if let Some(call) = calls.get_mut(piece.call as usize) {
            call.arguments.push_str(&piece.arguments);
        }
        first
    }

    fn call(&self, choice: usize, piece: &CallPiece, first: bool) -> Spoken {
        let mut call = json!({ "index": piece.call, "function": { "arguments": piece.arguments } });
        if first {
            call = json!({
                "index": piece.call, "id": call_id(&self.job, choice, piece.call as usize), "type": "function",
                "function": { "name": piece.name, "arguments": piece.arguments },
            });
        }
        let delta = json!({ "tool_calls": [call] });
        let choice = json!({ "index": choice, "delta": delta, "logprobs": null, "finish_reason": null });
        said(&self.chunk(vec![choice]))
    }

    /// The end of one choice, with its reason.
    fn last(&self, place: usize, one: &Generated) -> Spoken {
        let reason = finish_reason(one);
        let mut choice = match self.single.line.endpoint {
            Endpoint::Completions => {
                json!({ "index": place, "text": "", "logprobs": null, "finish_reason": reason })
            }
            Endpoint::ChatCompletions | Endpoint::Responses => {
                json!({ "index": place, "delta": {}, "logprobs": null, "finish_reason": reason })
            }
        };
        // What is left of the ids comes here, since the text of some of them has been told already.
        ids(&mut choice, &[], one.ids.get(self.choices[place].ids..).unwrap_or_default());
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

/// What is still to be said of a call; nothing, if all is told.
fn rest_of_call(number: u32, call: &Call, told: Option<&Call>) -> Option<CallPiece> {
    let Some(told) = told else {
        let (name, arguments) = (Some(call.name.clone()), call.arguments.clone());
        return Some(CallPiece { call: number, name, arguments });
    };
    let rest = call.arguments.strip_prefix(told.arguments.as_str()).filter(|rest| !rest.is_empty())?;
    Some(CallPiece { call: number, name: None, arguments: rest.to_owned() })
}

fn said(value: &Value) -> Spoken {
    Spoken { event: None, data: json_line(value) }
}

#[cfg(test)]
mod tests;
