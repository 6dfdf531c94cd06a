//! Chat: messages to the text and ids that a model was tuned on, by the Jinja template of its manifest.
//!
//! What a user writes never becomes a control token. Before rendering, a mark (a code point that is no
//! character and that no message contains) goes into each message wherever a control token begins in it or could begin, in
//! whatever case, and before its first visible character if a token could continue there, so that none can straddle template and
//! message. Control tokens are then looked for in the rendered text, where only the template can have written them,
//! and the marks are taken out of what lies between.
//!
//! That holds for templates that print messages, cut them, trim them or change their case. One that takes characters out of
//! the middle of a message or puts others there (`replace`) could make a control token of what was none; templates are
//! trusted as far as that. In tools and in calls, which templates write as JSON, marks stand only where a control token
//! begins or could begin: templates compare what they find there (`'string'`) with texts of their own.

mod guard;
mod json;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};

use self::guard::Guard;
use crate::Error;
use crate::tokenizer::Tokenizer;

/// The template of BitNet b1.58-2B-4T; the one in its GGUF file is wrong.
pub const BITNET_2B_4T: &str = "{% for message in messages %}{{ message.role | capitalize }}: \
    {{ message.content | trim }}{{ '<|eot_id|>' }}{% endfor %}{{ 'Assistant: ' }}";

/// Instructions a template may spend: a page of text a message is far below, an endless loop far above.
const FUEL: u64 = 10_000_000;

/// Who speaks. A closed set: a role's name goes into the text beside control tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions that stand above the talk.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// What a tool answered.
    Tool,
}

/// What a chat may have besides its messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras<'a> {
    /// The tools that the model may call, as a JSON array; the order of keys is kept.
    pub tools: Option<&'a str>,
    /// Whether the model writes its reasoning first, for templates that read `enable_thinking`.
    pub thinking: Option<bool>,
}

impl Role {
    /// The role with this name, as chat requests write it.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "system" => Some(Self::System),
            "user" => Some(Self::User),
            "assistant" => Some(Self::Assistant),
            "tool" => Some(Self::Tool),
            _ => None,
        }
    }

    /// Its name, as a template sees it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// Calls that the assistant made.
    pub calls: Vec<Call>,
    /// The call that a tool answers.
    pub call_id: Option<String>,
}

/// A call of a function, in a chat's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// By which its answer names it.
    pub id: String,
    /// The function.
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}

impl Message {
    /// A message that is text alone.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into(), calls: Vec::new(), call_id: None }
    }
}

/// Whether `template` parses; the fault otherwise.
pub(crate) fn check(template: &str) -> Result<(), String> {
    environment().template_from_str(template).map(|_| ()).map_err(|fault| describe(&fault))
}

/// Renders `messages` and turns the result into ids, BOS first where the model wants it.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    template: &str,
    messages: &[Message],
    extras: &Extras<'_>,
) -> Result<Vec<u32>, Error> {
    let tools = extras.tools.map(json::read).transpose().map_err(Error::Template)?;
    let said = messages.iter().flat_map(|message| {
        let calls = message.calls.iter().map(|call| call.arguments.as_str());
        std::iter::once(message.content.as_str()).chain(calls)
    });
    let guard = Guard::new(tokenizer, said.chain(extras.tools))?;
    let messages: Vec<Value> =
        messages.iter().map(|message| shown(message, &guard)).collect::<Result<_, _>>()?;
    let tools = tools.map(|tools| json::shown(guard.json(tools)));
    let special = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
    let tokens = [special(tokenizer.bos()), special(tokenizer.eos())];
    let rendered = render(template, Value::from(messages), tools, extras.thinking, tokens)?;
    let mut ids = tokenizer.encode_marked(&rendered, guard.mark())?;
    if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    Ok(ids)
}

/// A message as templates see it. One without calls has no `tool_calls`.
fn shown(message: &Message, guard: &Guard<'_>) -> Result<Value, Error> {
    let content = guard.text(&message.content);
    let mut shown = vec![("role", Value::from(message.role.name())), ("content", Value::from(content))];
    if !message.calls.is_empty() {
        let calls = message.calls.iter().map(|call| {
            let arguments = json::read(&call.arguments).map_err(Error::Template)?;
            let arguments = json::shown(guard.json(arguments));
            let function = context! { name => guard.inside(&call.name), arguments };
            Ok(context! { id => guard.inside(&call.id), type => "function", function })
        });
        shown.push(("tool_calls", Value::from(calls.collect::<Result<Vec<Value>, Error>>()?)));
    }
    if let Some(id) = &message.call_id {
        shown.push(("tool_call_id", Value::from(guard.inside(id))));
    }
    Ok(Value::from_pairs(shown))
}

/// The text that a template makes of messages, with the assistant's turn begun.
fn render(
    template: &str,
    messages: Value,
    tools: Option<Value>,
    thinking: Option<bool>,
    tokens: [&str; 2],
) -> Result<String, Error> {
    let environment = environment();
    let template =
        environment.template_from_str(template).map_err(|fault| Error::Template(describe(&fault)))?;
    let thinking = thinking.map(|thinking| context! { enable_thinking => thinking });
    let all = context! {
        messages,
        tools => tools.unwrap_or(Value::from(())),
        bos_token => tokens[0],
        eos_token => tokens[1],
        add_generation_prompt => true,
        ..thinking.unwrap_or_else(|| context! {})
    };
    template.render(all).map_err(|fault| Error::Template(describe(&fault)))
}

/// Jinja as transformers sets it up: blocks take their line's end and indentation along, what is not defined is empty, texts
/// have Python's methods, and JSON is written as Python writes it.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    let blocks = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(blocks.expect("because these are two switches"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", json::write);
    // Templates in use refuse odd conversations by calling this.
    environment.add_function("raise_exception", |reason: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment
}

fn describe(fault: &minijinja::Error) -> String {
    fault.to_string()
}

#[cfg(test)]
mod tests;
