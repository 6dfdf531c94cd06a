//! Tokens that are found in text as a whole: the longest at the leftmost place, as in Hugging Face's crate.

use std::collections::{BTreeMap, HashMap};

/// A set of such tokens.
#[derive(Debug, Default)]
pub(super) struct Specials {
    ids: HashMap<String, u32>,
    texts: BTreeMap<u32, String>,
    /// Their lengths in bytes, longest first.
    lengths: Vec<usize>,
    /// Their first characters, sorted.
    firsts: Vec<char>,
    /// The tokens without their case, what these begin with, and all of their other characters, sorted.
    folded: Vec<String>,
    folded_firsts: Vec<char>,
    folded_others: Vec<char>,
}

/// A text without its case: whatever changes that leaves this alone.
fn folded(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase)
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Special(u32),
    Text(&'a str),
}

impl Specials {
    /// The set of these tokens; empty ones can never be found and are left out of the search.
    pub(super) fn new(tokens: impl IntoIterator<Item = (u32, String)>) -> Self {
        let mut set = Self::default();
        for (id, text) in tokens {
            if let Some(first) = text.chars().next() {
                set.firsts.push(first);
                let folded: String = folded(&text).collect();
                set.folded_firsts.extend(folded.chars().next());
                set.folded_others.extend(folded.chars().skip(1));
                set.folded.push(folded);
                set.lengths.push(text.len());
                // Of two tokens with one text the first is found.
                set.ids.entry(text.clone()).or_insert(id);
            }
            set.texts.insert(id, text);
        }
        for characters in [&mut set.firsts, &mut set.folded_firsts, &mut set.folded_others] {
            characters.sort_unstable();
            characters.dedup();
        }
        set.lengths.sort_unstable_by(|a, b| b.cmp(a));
        set.lengths.dedup();
        set
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(&id).map(String::as_str)
    }

    fn begins_with(&self, character: char) -> bool {
        self.firsts.binary_search(&character).is_ok()
    }

    /// The id of the token with this text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// Whether a token has `character` behind its first one, in whatever case.
    pub(super) fn continues_with(&self, character: char) -> bool {
        let mut buffer = [0; 4];
        folded(character.encode_utf8(&mut buffer)).any(|one| self.folded_others.binary_search(&one).is_ok())
    }

    /// Whether `text` begins with one of the tokens, or one of them begins with `text`, in whatever case.
    pub(super) fn may_begin(&self, text: &str) -> bool {
        let first = folded(text).next();
        if first.is_none_or(|first| self.folded_firsts.binary_search(&first).is_err()) {
            return false;
        }
        self.folded.iter().any(|token| folded(text).zip(token.chars()).all(|(one, other)| one == other))
    }

    /// Cuts `text` at the tokens in it. Texts between them are never empty.
    pub(super) fn pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        let mut at = 0;
        while let Some(offset) = text[at..].find(|character| self.begins_with(character)) {
            at += offset;
            match self.longest_at(&text[at..]) {
                Some((length, id)) => {
                    if start < at {
                        pieces.push(Piece::Text(&text[start..at]));
                    }
                    pieces.push(Piece::Special(id));
                    at += length;
                    start = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        if start < text.len() {
            pieces.push(Piece::Text(&text[start..]));
        }
        pieces
    }

    fn longest_at(&self, text: &str) -> Option<(usize, u32)> {
        self.lengths.iter().find_map(|&length| {
            let candidate = text.get(..length)?;
            self.ids.get(candidate).map(|&id| (length, id))
        })
    }
}
