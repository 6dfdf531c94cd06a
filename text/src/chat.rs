//! Chat: messages to the text and ids that a model was tuned on, by the Jinja template of its manifest.
//!
//! What a user writes never becomes a control token. Before rendering, a mark (a code point that is no
//! character and that no message contains) goes into each message wherever a control token could begin in it,
//! and before its first visible character, so that no token can straddle the template and the message.
//! Control tokens are then looked for in the rendered text, where only the template can have written them,
//! and the marks are taken out of what lies between. Trimming and capitalising in the template work as ever.

use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};

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
}

impl Role {
    /// The role with this name, as chat requests write it.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "system" => Some(Self::System),
            "user" => Some(Self::User),
            "assistant" => Some(Self::Assistant),
            _ => None,
        }
    }

    /// Its name, as a template sees it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
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
}

/// Whether `template` parses; the fault otherwise.
pub(crate) fn check(template: &str) -> Result<(), String> {
    environment().template_from_str(template).map(|_| ()).map_err(|fault| describe(&fault))
}

/// Renders `messages` and turns the result into ids, BOS first where the model wants it.
pub(crate) fn encode(tokenizer: &Tokenizer, template: &str, messages: &[Message]) -> Result<Vec<u32>, Error> {
    let mark = unused_mark(messages)?;
    let messages: Vec<_> = messages
        .iter()
        .map(|message| context! { role => message.role.name(), content => guard(tokenizer, mark, &message.content) })
        .collect();
    let environment = environment();
    let template =
        environment.template_from_str(template).map_err(|fault| Error::Template(describe(&fault)))?;
    let special = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
    let rendered = template
        .render(context! {
            messages,
            bos_token => special(tokenizer.bos()),
            eos_token => special(tokenizer.eos()),
            add_generation_prompt => true,
        })
        .map_err(|fault| Error::Template(describe(&fault)))?;
    let mut ids = tokenizer.encode_marked(&rendered, mark)?;
    if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    Ok(ids)
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // Templates in the wild refuse odd conversations by calling this.
    environment.add_function("raise_exception", |reason: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment
}

fn describe(fault: &minijinja::Error) -> String {
    fault.to_string()
}

/// A noncharacter that no message contains. Texts hold none of the 32 as a rule; a user who sends them all
/// is told so.
fn unused_mark(messages: &[Message]) -> Result<char, Error> {
    ('\u{fdd0}'..='\u{fdef}')
        .find(|&mark| messages.iter().all(|message| !message.content.contains(mark)))
        .ok_or_else(|| {
            Error::Text("the messages contain all 32 noncharacters U+FDD0 to U+FDEF; remove one".into())
        })
}

/// Puts `mark` before the first visible character, and after each character with which a control token begins.
fn guard(tokenizer: &Tokenizer, mark: char, content: &str) -> String {
    let mut guarded = String::with_capacity(content.len() + 16);
    let mut visible = false;
    for character in content.chars() {
        if !visible && !character.is_whitespace() {
            visible = true;
            guarded.push(mark);
        }
        guarded.push(character);
        if tokenizer.begins_special(character) {
            guarded.push(mark);
        }
    }
    guarded
}

#[cfg(test)]
mod tests;
