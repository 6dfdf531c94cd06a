//! How large a job will be, before anybody has tokenized it.

use ternfleet_proto::message::{ChatMessage, Constraint, Conversation, Generation, Prompt};

/// Bytes of English that make a token, about.
const BYTES_PER_TOKEN: u64 = 4;
/// Reckoned for a request that names no limit.
const OUTPUT_TOKENS: u32 = 256;

/// Tokens in this many bytes of input lines.
pub fn tokens_of_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

fn message_bytes(message: &ChatMessage) -> u64 {
    let calls = message.calls.iter().map(|call| call.name.len() + call.arguments.len() + 48);
    (message.role.len() + message.content.len() + 16 + calls.sum::<usize>()) as u64
}

fn prompt_bytes(prompt: &Prompt) -> u64 {
    match prompt {
        Prompt::Text(text) => text.len() as u64,
        Prompt::Tokens(ids) => ids.len() as u64 * BYTES_PER_TOKEN,
        Prompt::Chat(messages) => messages.iter().map(message_bytes).sum(),
        Prompt::Conversation(Conversation { messages, tools }) => {
            let tools = tools.iter().flat_map(|tools| &tools.functions).map(|function| {
                let texts = [function.description.as_deref(), function.parameters.as_deref()];
                let texts: usize = texts.iter().flatten().map(|text| text.len()).sum();
                (function.name.len() + texts + 64) as u64
            });
            messages.iter().map(message_bytes).sum::<u64>() + tools.sum::<u64>()
        }
        Prompt::Several(several) => several.prompts.iter().map(prompt_bytes).sum(),
    }
}

/// Tokens of a prompt, estimated from its bytes.
pub fn prompt_tokens(prompt: &Prompt) -> u32 {
    u32::try_from(tokens_of_bytes(prompt_bytes(prompt))).unwrap_or(u32::MAX)
}

/// Prompt and expected output, in tokens.
pub fn tokens(generation: &Generation) -> u32 {
    let prompt = tokens_of_bytes(prompt_bytes(&generation.prompt));
    let each = generation.max_tokens.unwrap_or(OUTPUT_TOKENS);
    let output = each.saturating_mul(generation.prompt.choices());
    u32::try_from(prompt).unwrap_or(u32::MAX).saturating_add(output).max(1)
}

/// What the request occupies in memory, about.
pub fn bytes(generation: &Generation) -> u32 {
    let constraint = match &generation.constraint {
        None | Some(Constraint::JsonObject) => 0,
        Some(Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Lark(text)) => text.len(),
        Some(Constraint::Choice(texts)) => texts.iter().map(|text| text.len() + 8).sum(),
    };
    u32::try_from(prompt_bytes(&generation.prompt) + constraint as u64 + 400).unwrap_or(u32::MAX)
}
