//! Text to ids and back, for a real model or for the instant engine, whose tokens are bytes.

use std::fmt;
use std::sync::{Arc, OnceLock};

use ternfleet_proto::message::{ChatMessage, Conversation, Failure, FailureCode, Prompt, Tools};
use ternfleet_text::chat::{Call, Extras};
use ternfleet_text::constraint::{Compiler, Constraint, Grammar};
use ternfleet_text::{Message, Role, Stream, Tokenizer, ToolFormat};

/// How prompts become ids and ids become text.
pub enum Language {
    Model(Box<Words>),
    /// One token a byte.
    Bytes,
}

/// A model's tokenizer, and the compiler of constraints over its vocabulary, made when the first one comes.
#[derive(Debug)]
pub struct Words {
    tokenizer: Arc<Tokenizer>,
    compiler: OnceLock<Option<Arc<Compiler>>>,
    tools: Option<ToolFormat>,
    /// The tags around calls, where they are control tokens, which have no text otherwise.
    tags: Vec<u32>,
}

impl std::ops::Deref for Words {
    type Target = Tokenizer;

    fn deref(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

impl fmt::Debug for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model(_) => "Language::Model",
            Self::Bytes => "Language::Bytes",
        })
    }
}

impl Language {
    /// The language of a model, and the form of its calls.
    pub fn of(tokenizer: Tokenizer, tools: Option<ToolFormat>) -> Language {
        let texts = tools.iter().flat_map(|format| [format.open(), format.close()]);
        let tags = texts.filter_map(|text| tokenizer.control_token(text)).collect();
        let (tokenizer, compiler) = (Arc::new(tokenizer), OnceLock::new());
        Language::Model(Box::new(Words { tokenizer, compiler, tools, tags }))
    }

    /// How the model calls functions; the failure says that it calls none.
    pub fn tools(&self) -> Result<ToolFormat, Failure> {
        let format = match self {
            Self::Model(words) => words.tools,
            Self::Bytes => None,
        };
        let without = || {
            invalid(
                "`tools` are not supported by this model: its manifest does not describe function calls"
                    .into(),
            )
        };
        format.ok_or_else(without)
    }

    /// The constraint of a grammar over this vocabulary. The first one takes some hundred milliseconds.
    pub fn constraint(&self, grammar: Grammar) -> Result<Arc<Constraint>, Failure> {
        let compiler = match self {
            Self::Bytes => None,
            Self::Model(words) => words
                .compiler
                .get_or_init(|| Compiler::new(Arc::clone(&words.tokenizer)).map(Arc::new))
                .as_ref(),
        };
        let without_end = || invalid("this model has no end-of-text token, which constraints need".into());
        Ok(compiler.ok_or_else(without_end)?.constraint(grammar))
    }

    /// The ids of a prompt; the failure says what to change.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, Failure> {
        match (self, prompt) {
            (_, Prompt::Tokens(ids)) => Ok(ids.clone()),
            (Self::Model(words), Prompt::Text(text)) => {
                words.encode(text, words.adds_bos()).map_err(|fault| invalid(fault.to_string()))
            }
            (Self::Model(words), Prompt::Chat(messages)) => encode_chat(words, messages, None),
            // Calls in the history want a template that knows them, as tools do.
            (Self::Model(words), Prompt::Conversation(Conversation { messages, tools })) => {
                self.tools()?;
                encode_chat(words, messages, tools.as_ref())
            }
            (Self::Bytes, Prompt::Conversation(_)) => self.tools().map(|_| Vec::new()),
            // Whoever runs several prompts encodes each.
            (_, Prompt::Several(several)) => {
                let each: Result<Vec<_>, _> =
                    several.prompts.iter().map(|prompt| self.encode(prompt)).collect();
                Ok(each?.concat())
            }
            (Self::Bytes, Prompt::Text(text)) => Ok(text.bytes().map(u32::from).collect()),
            (Self::Bytes, Prompt::Chat(messages)) => {
                Ok(messages.iter().flat_map(|message| message.content.bytes()).map(u32::from).collect())
            }
        }
    }

    /// Ids that end a generation.
    pub fn stop_ids(&self) -> &[u32] {
        match self {
            Self::Model(words) => words.stop_ids(),
            Self::Bytes => &[],
        }
    }

    /// The text of one token by itself; what is no whole character becomes U+FFFD in it, and the bytes come besides.
    pub fn token(&self, id: u32) -> (String, Option<Vec<u8>>) {
        let byte = [id as u8];
        let bytes = match self {
            Self::Model(words) => words.token_bytes(id),
            Self::Bytes => &byte,
        };
        match std::str::from_utf8(bytes) {
            Ok(text) => (text.to_owned(), None),
            Err(_) => (String::from_utf8_lossy(bytes).into_owned(), Some(bytes.to_vec())),
        }
    }

    /// The text of many.
    pub fn decode(&self, ids: &[u32]) -> String {
        match self {
            Self::Model(words) => words.decode(ids),
            Self::Bytes => ids.iter().map(|&id| byte_text(id)).collect(),
        }
    }

    /// The text that is certain after one more id.
    pub(crate) fn push(&self, stream: &mut Stream, id: u32) -> String {
        match self {
            Self::Model(words) if words.tags.contains(&id) => stream.push_shown(words, id),
            Self::Model(words) => stream.push(words, id),
            Self::Bytes => byte_text(id),
        }
    }
}

/// The ids of a chat as a tokenizer's template writes it.
pub fn encode_chat(
    tokenizer: &Tokenizer,
    messages: &[ChatMessage],
    tools: Option<&Tools>,
) -> Result<Vec<u32>, Failure> {
    let messages: Vec<Message> = messages.iter().map(message).collect::<Result<_, _>>()?;
    let tools = tools.map(Tools::shown);
    let extras = Extras { tools: tools.as_deref(), thinking: None };
    tokenizer.encode_chat_with(&messages, &extras).map_err(|fault| invalid(fault.to_string()))
}

fn message(said: &ChatMessage) -> Result<Message, Failure> {
    let role = Role::parse(&said.role)
        .ok_or_else(|| invalid(format!("role {:?}: use system, user, assistant or tool", said.role)))?;
    let calls = said.calls.iter().map(|call| Call {
        id: call.id.clone(),
        name: call.name.clone(),
        arguments: call.arguments.clone(),
    });
    Ok(Message { calls: calls.collect(), call_id: said.call_id.clone(), ..Message::new(role, &said.content) })
}

fn byte_text(id: u32) -> String {
    char::from_u32(id).filter(char::is_ascii).unwrap_or(char::REPLACEMENT_CHARACTER).to_string()
}

fn invalid(message: String) -> Failure {
    Failure { code: FailureCode::InvalidRequest, message }
}
