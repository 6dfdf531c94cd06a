//! This tokenizer against the model's own `tokenizer.json`, on a text with everything that tokenizers get wrong.

use std::path::Path;

use super::Tokenizer;
use crate::Error;

const SAMPLE: &str = include_str!("sample.txt");

/// A line of which the two make other ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The text.
    pub text: String,
    /// What this tokenizer makes of it.
    pub ours: Vec<u32>,
    /// What `tokenizer.json` makes of it.
    pub theirs: Vec<u32>,
}

/// Compares ids line by line, without control tokens; how many lines were compared, and those that differ.
pub fn compare(ours: &Tokenizer, tokenizer_json: &Path) -> Result<(usize, Vec<Difference>), Error> {
    let theirs = tokenizers::Tokenizer::from_file(tokenizer_json)
        .map_err(|fault| Error::Vocabulary(format!("{}: {fault}", tokenizer_json.display())))?;
    let mut differences = Vec::new();
    // A line with its end is another text than one without.
    let texts = SAMPLE.lines().chain(SAMPLE.split_inclusive('\n')).chain([SAMPLE]);
    let mut n_texts = 0;
    for text in texts {
        n_texts += 1;
        let encoding = theirs.encode(text, false).map_err(|fault| Error::Text(fault.to_string()))?;
        let (ours, theirs) = (ours.encode_literal(text)?, encoding.get_ids().to_vec());
        if ours != theirs {
            differences.push(Difference { text: text.to_owned(), ours, theirs });
        }
    }
    Ok((n_texts, differences))
}
