//! SentencePiece vocabularies of the `llama` kind: words begin with `▁`, the pair with the highest score is joined first, and
//! what no token covers is written as bytes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::{Error, TokenType, Vocabulary};

/// Stands for a space.
const SPACE: char = '▁';

/// The tokens that text is made of.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// Tokens of text with their scores.
    ids: HashMap<String, (u32, f32)>,
    bytes: [Option<u32>; 256],
    /// Whether a text that begins with a word gets a space in front.
    space_prefix: bool,
}

/// A part of a text: neighbours by index, and what it covers.
#[derive(Debug, Clone, Copy)]
struct Part {
    previous: Option<usize>,
    next: Option<usize>,
    start: usize,
    /// 0 once it has been joined to the one before.
    len: usize,
}

/// A pair that could be joined.
#[derive(Debug, PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Eq for Pair {}

impl Ord for Pair {
    /// The highest score first, of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl SentencePiece {
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<Self, Error> {
        if vocabulary.scores.len() != vocabulary.tokens.len() {
            return Err(Error::Vocabulary(format!(
                "it has {} tokens, but {} scores",
                vocabulary.tokens.len(),
                vocabulary.scores.len()
            )));
        }
        let (mut ids, mut bytes) = (HashMap::new(), [None; 256]);
        let tokens = vocabulary.tokens.iter().zip(&vocabulary.token_types).zip(&vocabulary.scores);
        for (id, ((token, kind), &score)) in (0u32..).zip(tokens) {
            match kind {
                TokenType::Normal => {
                    ids.entry(token.clone()).or_insert((id, score));
                }
                TokenType::Byte => match byte_of(token) {
                    Some(byte) => bytes[usize::from(byte)] = Some(id),
                    None => {
                        return Err(Error::Vocabulary(format!(
                            "byte token {id} is '{}'",
                            token.escape_debug()
                        )));
                    }
                },
                _ => {}
            }
        }
        Ok(Self { ids, bytes, space_prefix: vocabulary.add_space_prefix.unwrap_or(true) })
    }

    /// What a token writes.
    pub(super) fn text_of(token: &str, kind: TokenType) -> Vec<u8> {
        match (kind, byte_of(token)) {
            (TokenType::Byte, Some(byte)) => vec![byte],
            _ => token.replace(SPACE, " ").into_bytes(),
        }
    }

    /// Appends the ids of `text`; `begins` if nothing but control tokens is before it.
    pub(super) fn encode(&self, text: &str, begins: bool, ids: &mut Vec<u32>) -> Result<(), Error> {
        if text.is_empty() {
            return Ok(());
        }
        let prefix = if begins && self.space_prefix { " " } else { "" };
        let text = format!("{prefix}{text}").replace(' ', "▁");
        let mut parts: Vec<Part> = Vec::new();
        for (start, character) in text.char_indices() {
            let index = parts.len();
            if let Some(last) = parts.last_mut() {
                last.next = Some(index);
            }
            let previous = index.checked_sub(1);
            parts.push(Part { previous, next: None, start, len: character.len_utf8() });
        }
        let mut pairs = BinaryHeap::new();
        let pair = |parts: &[Part], left: Option<usize>, right: Option<usize>| {
            let (left, right) = left.zip(right)?;
            let (start, len) = (parts[left].start, parts[left].len + parts[right].len);
            let &(_, score) = self.ids.get(&text[start..start + len])?;
            Some(Pair { score, left, right, len })
        };
        for index in 1..parts.len() {
            pairs.extend(pair(&parts, Some(index - 1), Some(index)));
        }
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            let (a, b) = (parts[left], parts[right]);
            // One of them may have been joined meanwhile.
            if a.len == 0 || b.len == 0 || a.len + b.len != len {
                continue;
            }
            parts[left].len = len;
            parts[left].next = b.next;
            parts[right].len = 0;
            if let Some(next) = b.next {
                parts[next].previous = Some(left);
            }
            pairs.extend(pair(&parts, a.previous, Some(left)));
            pairs.extend(pair(&parts, Some(left), b.next));
        }
        for part in parts.iter().filter(|part| part.len > 0) {
            let piece = &text[part.start..part.start + part.len];
            if let Some(&(id, _)) = self.ids.get(piece) {
                ids.push(id);
                continue;
            }
            for byte in piece.bytes() {
                let id = self.bytes[usize::from(byte)];
                let missing = || Error::Text(format!("the vocabulary has no token for the byte {byte:#04x}"));
                ids.push(id.ok_or_else(missing)?);
            }
        }
        Ok(())
    }
}

/// The byte that `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}
