//! A generation as a request of OpenAI's API, with vLLM's names for what OpenAI has none.

use serde_json::{Map, Value, json};
use ternfleet_proto::message::{
    ChatMessage, Constraint, Conversation, Generation, Prompt, ToolChoice, Tools,
};

/// Where requests of a kind go.
pub(super) const COMPLETIONS: &str = "/completions";
pub(super) const CHAT: &str = "/chat/completions";

/// A path and a body, for one of the prompts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) path: &'static str,
    pub(super) body: Value,
}

/// The request for all choices of one prompt. `with_ids` asks for token ids.
pub(super) fn asked(generation: &Generation, prompt: &Prompt, with_ids: bool) -> Asked {
    let mut body = Map::new();
    let path = match prompt {
        Prompt::Text(text) => {
            body.insert("prompt".into(), text.as_str().into());
            COMPLETIONS
        }
        Prompt::Tokens(ids) => {
            body.insert("prompt".into(), json!(ids));
            COMPLETIONS
        }
        Prompt::Chat(messages) => {
            body.insert("messages".into(), messages.iter().map(message).collect());
            CHAT
        }
        Prompt::Conversation(Conversation { messages, tools: offered }) => {
            body.insert("messages".into(), messages.iter().map(message).collect());
            if let Some(offered) = offered {
                tools(offered, &mut body);
            }
            CHAT
        }
        // Each of several prompts is asked for by itself.
        Prompt::Several(_) => COMPLETIONS,
    };
    if let Some(most) = generation.max_tokens {
        body.insert("max_tokens".into(), most.into());
    }
    if generation.prompt.n() > 1 {
        body.insert("n".into(), generation.prompt.n().into());
    }
    sampling(generation, &mut body);
    if !generation.stop.is_empty() {
        body.insert("stop".into(), json!(generation.stop));
    }
    match generation.logprobs {
        Some(top) if path == CHAT => {
            body.insert("logprobs".into(), true.into());
            body.insert("top_logprobs".into(), top.into());
        }
        Some(top) => {
            body.insert("logprobs".into(), top.into());
        }
        None => {}
    }
    if generation.echo {
        body.insert("echo".into(), true.into());
    }
    if let Some(constraint) = &generation.constraint {
        let (name, value) = held_to(constraint);
        body.insert(name.into(), value);
    }
    if with_ids {
        body.insert("return_token_ids".into(), true.into());
    }
    Asked { path, body: body.into() }
}

/// What a request leaves open stays open: the server has its model's own defaults.
fn sampling(generation: &Generation, body: &mut Map<String, Value>) {
    let asked = &generation.sampling;
    let mut set = |name: &str, value: Value, given: bool| {
        if given {
            body.insert(name.to_owned(), value);
        }
    };
    set("temperature", shortest(asked.temperature), !asked.open.temperature);
    set("top_p", shortest(asked.top_p), !asked.open.top_p);
    set("top_k", asked.top_k.into(), asked.top_k > 0);
    set("min_p", shortest(asked.min_p), asked.min_p > 0.0);
    set("presence_penalty", shortest(asked.presence_penalty), asked.presence_penalty != 0.0);
    set("frequency_penalty", shortest(asked.frequency_penalty), !asked.open.frequency_penalty);
    // The API's seeds are signed.
    set("seed", (generation.seed as i64).into(), true);
    let bias: Map<String, Value> =
        asked.logit_bias.iter().map(|(id, bias)| (id.to_string(), shortest(*bias))).collect();
    set("logit_bias", bias.into(), !asked.logit_bias.is_empty());
}

/// The number as its caller wrote it: 0.7, and not what a wider number makes of it.
fn shortest(value: f32) -> Value {
    serde_json::from_str(&value.to_string()).unwrap_or_else(|_| json!(value))
}

fn message(said: &ChatMessage) -> Value {
    let mut message = json!({ "role": said.role, "content": said.content });
    if !said.calls.is_empty() {
        let call = |call: &ternfleet_proto::message::PastCall| {
            json!({
                "id": call.id, "type": "function",
                "function": { "name": call.name, "arguments": call.arguments },
            })
        };
        message["tool_calls"] = said.calls.iter().map(call).collect();
    }
    if let Some(id) = &said.call_id {
        message["tool_call_id"] = id.as_str().into();
    }
    message
}

fn tools(offered: &Tools, body: &mut Map<String, Value>) {
    body.insert("tools".into(), serde_json::from_str(&offered.shown()).unwrap_or_default());
    let choice = match &offered.choice {
        ToolChoice::Auto => "auto".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Function(name) => json!({ "type": "function", "function": { "name": name } }),
    };
    body.insert("tool_choice".into(), choice);
    if !offered.parallel {
        body.insert("parallel_tool_calls".into(), false.into());
    }
}

/// The field that holds the answer to a form, and its value.
pub(super) fn held_to(constraint: &Constraint) -> (&'static str, Value) {
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|_| text.into());
    match constraint {
        Constraint::JsonSchema(schema) => {
            let wrapped = json!({ "name": "answer", "strict": true, "schema": parsed(schema) });
            ("response_format", json!({ "type": "json_schema", "json_schema": wrapped }))
        }
        Constraint::JsonObject => ("response_format", json!({ "type": "json_object" })),
        Constraint::Regex(text) => ("structured_outputs", json!({ "regex": text })),
        Constraint::Choice(texts) => ("structured_outputs", json!({ "choice": texts })),
        Constraint::Lark(text) => ("structured_outputs", json!({ "grammar": text })),
    }
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::message::{OpenSampling, Sampling};
    use ternfleet_proto::openai::{Endpoint, parse_single};

    use super::*;

    /// What this asks for is read by our own reader as the same generation.
    #[test]
    fn a_request_says_all_that_the_generation_says() {
        let job = ternfleet_proto::JobKey { batch: "b".parse().unwrap(), index: 0 };
        let chat = r#"{"model":"m","messages":[{"role":"user","content":"é"},{"role":"assistant","content":"",
            "tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},
            {"role":"tool","tool_call_id":"c","content":"4"}],
            "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"required",
            "parallel_tool_calls":false,"max_tokens":9,"n":2,"temperature":0.7,"top_k":5,"min_p":0.1,"seed":-5,
            "presence_penalty":0.5,"frequency_penalty":0,"logprobs":true,"top_logprobs":2,"logit_bias":{"7":-1.5},
            "return_token_ids":true}"#;
        let text = r#"{"model":"m","prompt":[1,2,3],"max_tokens":4,"stop":["x"],"logprobs":1,"top_p":0.5,
            "structured_outputs":{"regex":"a+"},"echo":true}"#;
        let schema = r#"{"model":"m","prompt":"a","response_format":{"type":"json_schema",
            "json_schema":{"name":"n","schema":{"type":"object","properties":{"z":{},"a":{}}}}}}"#;
        for (endpoint, body) in [
            (Endpoint::ChatCompletions, chat),
            (Endpoint::Completions, text),
            (Endpoint::Completions, schema),
        ] {
            let first = parse_single(endpoint, body.as_bytes(), &job).unwrap().generation;
            let prompt = &first.prompt.each()[0];
            let Asked { path, body } = asked(&first, prompt, first.token_ids);
            assert_eq!(path, endpoint.as_str().trim_start_matches("/v1"));
            let again = parse_single(endpoint, body.to_string().as_bytes(), &job).unwrap().generation;
            assert_eq!(again, first);
        }
    }

    #[test]
    fn what_the_caller_leaves_open_is_left_to_the_server() {
        let open = OpenSampling { temperature: true, top_p: true, top_k: true, frequency_penalty: true };
        let sampling = Sampling { open, ..Sampling::default() };
        let generation = Generation { prompt: Prompt::Text("a".into()), sampling, ..Generation::default() };
        let body = asked(&generation, &generation.prompt, false).body;
        let names: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(names, ["prompt", "seed"]);
    }
}
