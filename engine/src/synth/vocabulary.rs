//! A vocabulary for a model that knows no words: the 256 bytes, then words of two to four letters with all the
//! merges that make them, then control tokens. With 128,256 tokens it has the sizes, the control tokens and
//! the number of merges of Llama 3's, and is taken for it; smaller ones name their pre-tokenizer instead.

use crate::gguf::write::{Item, Plan};

/// Fewest tokens: the bytes, begin and end of text, end of turn.
pub(super) const LEAST: usize = 256 + 3;
/// Llama 3's number of tokens, and of control tokens among them.
const LLAMA3_TOKENS: usize = 128_256;
const LLAMA3_CONTROL: usize = 256;
/// Letters of the filler words; 32 + 32² + … reach past any vocabulary.
const LETTERS: [char; 32] = [
    'e', 't', 'a', 'o', 'i', 'n', 's', 'h', 'r', 'd', 'l', 'u', 'c', 'm', 'w', 'f', 'g', 'y', 'p', 'b', 'v',
    'k', 'j', 'x', 'q', 'z', 'Ġ', 'T', 'A', 'I', 'S', 'W',
];
/// This many four-letter words get all three merges, the others two: with 128,000 normal tokens there are
/// then 280,147 merges, as in Llama 3's vocabulary.
const WITH_ALL_MERGES: usize = 25_683;
const TEMPLATE: &str = "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}\
    {{ '<|eot_id|>' }}{% endfor %}{{ 'Assistant: ' }}";

/// Adds the tokenizer's keys to `plan`, in the official file's order.
pub(super) fn write(plan: &mut Plan, n_tokens: usize) {
    let control = control_tokens(n_tokens);
    let n_normal = n_tokens - control.len();
    let (mut tokens, merges) = normal_tokens(n_normal);
    tokens.extend(control);
    let types = (0..n_tokens).map(|id| if id < n_normal { 1 } else { 3 }).collect();
    plan.entry("tokenizer.ggml.model", Item::Text("gpt2".into()));
    if n_tokens != LLAMA3_TOKENS {
        plan.entry("tokenizer.ggml.pre", Item::Text("llama-bpe".into()));
    }
    plan.entry("tokenizer.ggml.tokens", Item::Texts(tokens));
    plan.entry("tokenizer.ggml.scores", Item::F32s(vec![0.0; n_tokens]));
    plan.entry("tokenizer.ggml.token_type", Item::I32s(types));
    plan.entry("tokenizer.ggml.merges", Item::Texts(merges));
    plan.entry("tokenizer.ggml.bos_token_id", Item::U32(n_normal as u32));
    plan.entry("tokenizer.ggml.eos_token_id", Item::U32(n_normal as u32 + 1));
    plan.entry("tokenizer.ggml.padding_token_id", Item::U32(n_normal as u32 + 1));
    plan.entry("tokenizer.chat_template", Item::Text(TEMPLATE.into()));
}

/// Llama 3's control tokens where the size is its own, else the three that matter.
fn control_tokens(n_tokens: usize) -> Vec<String> {
    let named = ["<|begin_of_text|>", "<|end_of_text|>"];
    if n_tokens != LLAMA3_TOKENS {
        return named.into_iter().chain(["<|eot_id|>"]).map(str::to_owned).collect();
    }
    let mut reserved = (0..).map(|number| format!("<|reserved_special_token_{number}|>"));
    (0..LLAMA3_CONTROL)
        .map(|place| match place {
            0 | 1 => named[place].to_owned(),
            6 => "<|start_header_id|>".to_owned(),
            7 => "<|end_header_id|>".to_owned(),
            9 => "<|eot_id|>".to_owned(),
            _ => reserved.next().expect("because the numbers do not end"),
        })
        .collect()
}

/// `n_normal` tokens and the merges that make them: every part of a word is a token before it.
fn normal_tokens(n_normal: usize) -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> = byte_alphabet().map(String::from).collect();
    let mut merges = Vec::new();
    let (mut n_letters, mut number) = (2u32, 0usize);
    let mut n_of_four = 0;
    while tokens.len() < n_normal {
        if number == LETTERS.len().pow(n_letters) {
            (n_letters, number) = (n_letters + 1, 0);
        }
        let word: Vec<char> = (0..n_letters)
            .rev()
            .map(|place| LETTERS[number / LETTERS.len().pow(place) % LETTERS.len()])
            .collect();
        let cuts = match n_letters {
            2 => 1..2,
            3 => 1..3,
            _ if n_of_four < WITH_ALL_MERGES => 1..4,
            _ => 2..4,
        };
        n_of_four += usize::from(n_letters == 4);
        for cut in cuts {
            let (left, right) = word.split_at(cut);
            merges.push(left.iter().chain([&' ']).chain(right).collect());
        }
        tokens.push(word.into_iter().collect());
        number += 1;
    }
    (tokens, merges)
}

/// GPT-2's byte-level alphabet, in the order in which vocabularies begin: visible characters first.
fn byte_alphabet() -> impl Iterator<Item = char> {
    let visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let n_others = (0..=255u8).filter(|byte| !visible(byte)).count() as u32;
    let others = (0x100..0x100 + n_others).filter_map(char::from_u32);
    (0..=255u8).filter(visible).map(char::from).chain(others)
}
