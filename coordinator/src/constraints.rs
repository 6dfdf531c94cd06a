//! Whether answers can be held to what a request asks for: said when the request is taken in, before a worker has it.
//!
//! Compiling a large schema takes time, so that what was found is remembered: a thousand lines with one schema are checked
//! once. A reader remembers for its batch, the gateway for its callers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use ternfleet_proto::message::{Constraint, Failure, FailureCode, Function, Generation, ToolChoice, Tools};
use ternfleet_proto::{aside, codec};
use ternfleet_text::ToolFormat;
use ternfleet_text::constraint::{Callable, Calls, Grammar};

/// Constraints that are remembered.
const KNOWN_MAX: usize = 256;

/// What was found of constraints, together with the stop texts that may contradict them.
#[derive(Debug, Default)]
pub(crate) struct Constraints {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    found: HashMap<blake3::Hash, Option<String>>,
    order: VecDeque<blake3::Hash>,
}

impl Known {
    fn keep(&mut self, key: blake3::Hash, fault: Option<String>) {
        if self.found.insert(key, fault).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > KNOWN_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.found.remove(&oldest);
            }
        }
    }
}

impl Constraints {
    /// Refuses a request whose answers cannot be held to its constraint or its tools; the message says why, and where in a
    /// schema.
    pub(crate) async fn check(&self, generation: &Generation) -> Result<(), Failure> {
        if !generation.is_constrained() {
            return Ok(());
        }
        let (constraint, tools) = (generation.constraint.as_ref(), generation.prompt.tools());
        let key = key_of(constraint, tools, &generation.stop);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).found.get(&key).cloned();
        let fault = match known {
            Some(fault) => fault,
            None => {
                let (constraint, tools) = (constraint.cloned(), tools.cloned());
                let stops = generation.stop.clone();
                let check = move || fault_of(constraint.as_ref(), tools.as_ref(), &stops);
                let checked = aside::run(check).await;
                let fault = checked.unwrap_or_else(|_| Some("the constraint cannot be compiled".to_owned()));
                self.known.lock().unwrap_or_else(PoisonError::into_inner).keep(key, fault.clone());
                fault
            }
        };
        match fault {
            None => Ok(()),
            Some(message) => Err(Failure { code: FailureCode::InvalidRequest, message }),
        }
    }
}

/// What a finding is about. A schema's text is hashed without a copy.
fn key_of(constraint: Option<&Constraint>, tools: Option<&Tools>, stops: &[String]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut large = |text: &str| {
        hasher.update(text.as_bytes());
        text.len()
    };
    let rest = match constraint {
        Some(Constraint::JsonSchema(text)) => codec::encode(&("schema", large(text), tools, stops)),
        other => codec::encode(&(other, tools, stops)),
    };
    hasher.update(&rest);
    hasher.finalize()
}

fn fault_of(constraint: Option<&Constraint>, tools: Option<&Tools>, stops: &[String]) -> Option<String> {
    let shape = constraint.map(|constraint| match constraint.clone() {
        Constraint::JsonSchema(text) => ("the JSON schema", Grammar::JsonSchema(text)),
        Constraint::JsonObject => ("JSON", Grammar::JsonObject),
        Constraint::Regex(text) => ("the regular expression", Grammar::Regex(text)),
        Constraint::Choice(texts) => ("the choice of texts", Grammar::Choice(texts)),
        Constraint::Lark(text) => ("the grammar", Grammar::Lark(text)),
    });
    let (what, grammar) = match (tools, shape) {
        (None, None) => return None,
        (None, Some(shape)) => shape,
        (Some(tools), shape) => {
            ("the tools", Grammar::Calls(calls(tools, shape.map(|(_, grammar)| grammar))))
        }
    };
    let checked = grammar.check().and_then(|()| grammar.check_stops(stops));
    checked.err().map(|fault| format!("{what} cannot be applied: {fault}"))
}

/// How the model writes its calls is not known here; whether they can be had does not depend on it.
fn calls(tools: &Tools, text: Option<Grammar>) -> Calls {
    let function = |one: &Function| Callable { name: one.name.clone(), parameters: one.parameters.clone() };
    Calls {
        format: ToolFormat::Hermes,
        functions: tools.callable().map(function).collect(),
        must: tools.choice != ToolChoice::Auto,
        several: tools.parallel,
        text: text.map(Box::new),
    }
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::message::{Conversation, Prompt};

    use super::*;

    fn generation(constraint: Constraint, stop: &[&str]) -> Generation {
        let stop = stop.iter().map(|&text| text.to_owned()).collect();
        Generation { constraint: Some(constraint), stop, ..Generation::default() }
    }

    #[tokio::test]
    async fn a_fault_is_told_the_second_time_as_the_first_and_the_memory_is_bounded() {
        let constraints = Constraints::default();
        let bad = generation(Constraint::Regex("(".into()), &[]);
        let first = constraints.check(&bad).await.unwrap_err();
        assert!(first.message.starts_with("the regular expression cannot be applied: "), "{}", first.message);
        assert_eq!(constraints.check(&bad).await.unwrap_err(), first);
        constraints
            .check(&generation(Constraint::JsonSchema(r#"{"type":"object"}"#.into()), &[]))
            .await
            .unwrap();
        constraints.check(&Generation::default()).await.unwrap();
        let function = |parameters: &str| Function {
            name: "f".into(),
            description: None,
            parameters: Some(parameters.to_owned()),
        };
        for (parameters, good) in [(r#"{"type":"object"}"#, true), (r#"{"uniqueItems":true}"#, false)] {
            let functions = vec![function(parameters)];
            let tools = Some(Tools { functions, choice: ToolChoice::Required, parallel: true });
            let conversation = Conversation { messages: Vec::new(), tools };
            let asked = Generation { prompt: Prompt::Conversation(conversation), ..Generation::default() };
            let found = constraints.check(&asked).await;
            assert_eq!(found.is_ok(), good, "{found:?}");
            assert!(good || found.unwrap_err().message.contains("the parameters of \"f\""));
        }
        for n in 0..KNOWN_MAX + 10 {
            constraints.check(&generation(Constraint::Choice(vec![n.to_string()]), &[])).await.unwrap();
        }
        assert_eq!(constraints.known.lock().unwrap().found.len(), KNOWN_MAX);
    }
}
