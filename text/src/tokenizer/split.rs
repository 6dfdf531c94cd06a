//! Cutting text into the pieces that are merged each on their own, by the model's expressions.

use std::borrow::Cow;

use fancy_regex::Regex;
use tokenizers::{NormalizedString, Normalizer as _};

use crate::Error;

/// What is done to text before it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalizer {
    /// Nothing.
    #[default]
    None,
    /// Unicode's composed form: a letter and its accent become one character.
    Nfc,
}

impl Normalizer {
    pub(super) fn apply(self, text: &str) -> Result<Cow<'_, str>, Error> {
        // Nothing composes below U+0300.
        if self == Self::None || text.chars().all(|character| character < '\u{300}') {
            return Ok(Cow::Borrowed(text));
        }
        let mut normalized = NormalizedString::from(text);
        let normalizer = tokenizers::normalizers::unicode::NFC;
        normalizer.normalize(&mut normalized).map_err(|fault| Error::Text(fault.to_string()))?;
        Ok(Cow::Owned(normalized.get().to_owned()))
    }
}

/// A split by expressions, each of which cuts what the one before left: its matches are pieces, and so is what lies
/// between them.
#[derive(Debug)]
pub(super) struct Split(Vec<Regex>);

/// Whether `pattern` is a regex that can be run here; the fault otherwise.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    Split::new([pattern]).map(|_| ())
}

impl Split {
    pub(super) fn new<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Result<Self, String> {
        let regex = |pattern: &str| {
            Regex::new(pattern).map_err(|fault| {
                format!(
                    "it is not a valid regular \
                                                                                 expression: {fault}"
                )
            })
        };
        patterns.into_iter().map(regex).collect::<Result<_, _>>().map(Self)
    }

    /// Calls `visit` with each piece in order. A text on which the regex engine gives up is refused: cutting
    /// the rest in another way would give other ids than the model learnt.
    pub(super) fn each<'t>(
        &self,
        text: &'t str,
        mut visit: impl FnMut(&'t str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        cut(&self.0, text, &mut visit)
    }
}

fn cut<'t>(
    regexes: &[Regex],
    text: &'t str,
    visit: &mut dyn FnMut(&'t str) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some((regex, rest)) = regexes.split_first() else { return visit(text) };
    let mut end = 0;
    for found in regex.find_iter(text) {
        let found = found.map_err(|fault| {
            Error::Text(format!(
                "splitting stopped after byte {end} ({fault}); it may have a very long run of one character"
            ))
        })?;
        if end < found.start() {
            cut(rest, &text[end..found.start()], visit)?;
        }
        if found.start() < found.end() {
            cut(rest, &text[found.start()..found.end()], visit)?;
        }
        end = found.end();
    }
    if end < text.len() {
        cut(rest, &text[end..], visit)?;
    }
    Ok(())
}
