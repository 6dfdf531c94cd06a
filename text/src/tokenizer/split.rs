//! Cutting text into the pieces that are merged each on their own, by the model's regex.

use fancy_regex::Regex;

use crate::Error;

/// A split by a regex: its matches are pieces, and so is what lies between them.
#[derive(Debug)]
pub(super) struct Split(Regex);

/// Whether `pattern` is a regex that can be run here; the fault otherwise.
pub(crate) fn check(pattern: &str) -> Result<(), String> {
    Split::new(pattern).map(|_| ())
}

impl Split {
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        Regex::new(pattern).map(Self).map_err(|fault| format!("it is no regex: {fault}"))
    }

    /// Calls `visit` with each piece in order. A text on which the regex engine gives up is refused: cutting
    /// the rest in another way would give other ids than the model learnt.
    pub(super) fn each<'t>(
        &self,
        text: &'t str,
        mut visit: impl FnMut(&'t str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut end = 0;
        for found in self.0.find_iter(text) {
            let found = found.map_err(|fault| {
                Error::Text(format!("splitting it gives up after byte {end} ({fault}); is there a very long run of one character?"))
            })?;
            if end < found.start() {
                visit(&text[end..found.start()])?;
            }
            if found.start() < found.end() {
                visit(found.as_str())?;
            }
            end = found.end();
        }
        if end < text.len() {
            visit(&text[end..])?;
        }
        Ok(())
    }
}
