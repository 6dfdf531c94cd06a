//! Functions that a model may call: what a request offers, what a chat's history has of calls, what an answer calls.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ChatMessage;

/// A chat with tools, or with calls in its history.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    pub messages: Vec<ChatMessage>,
    /// What may be called; `None` where nothing may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Tools>,
}

/// A call in a chat's history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastCall {
    /// By which its answer names it.
    pub id: String,
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}

/// What may be called, and whether it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    /// At least one; names are unique.
    pub functions: Vec<Function>,
    pub choice: ToolChoice,
    /// Several calls in one answer.
    pub parallel: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments, as text; without one it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<String>,
}

/// Whether a call must come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// One at least.
    Required,
    /// One, of this function.
    Function(String),
}

/// A call that an answer makes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub name: String,
    /// A JSON object, as text; the beginning of one, where the answer was cut.
    pub arguments: String,
}

/// A part of a call, as it comes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallPiece {
    /// The number of the call in its answer.
    pub call: u32,
    /// With its first part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arguments: String,
}

impl Tools {
    /// The functions that the choice leaves.
    pub fn callable(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(|one| match &self.choice {
            ToolChoice::Function(name) => one.name == *name,
            ToolChoice::Auto | ToolChoice::Required => true,
        })
    }

    /// The tools as chat templates show them to the model: a JSON array of OpenAI's form.
    pub fn shown(&self) -> String {
        let one = |function: &Function| {
            let mut shown = json!({ "name": function.name });
            if let Some(description) = &function.description {
                shown["description"] = description.as_str().into();
            }
            let parameters = function.parameters.as_deref().and_then(|text| serde_json::from_str(text).ok());
            if let Some(parameters) = parameters {
                let parameters: Value = parameters;
                shown["parameters"] = parameters;
            }
            json!({ "type": "function", "function": shown })
        };
        Value::Array(self.functions.iter().map(one).collect()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_shown_in_openais_form_with_their_keys_in_order() {
        let functions = vec![
            Function {
                name: "f".into(),
                description: Some("does \"it\"".into()),
                parameters: Some(r#"{"type":"object","properties":{"z":{},"a":{}}}"#.into()),
            },
            Function { name: "g".into(), description: None, parameters: None },
        ];
        let mut tools = Tools { functions, choice: ToolChoice::Auto, parallel: true };
        assert_eq!(
            tools.shown(),
            r#"[{"type":"function","function":{"name":"f","description":"does \"it\"","parameters":{"type":"object","properties":{"z":{},"a":{}}}}},{"type":"function","function":{"name":"g"}}]"#
        );
        assert_eq!(tools.callable().count(), 2);
        tools.choice = ToolChoice::Function("g".into());
        assert_eq!(tools.callable().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["g"]);
    }
}
