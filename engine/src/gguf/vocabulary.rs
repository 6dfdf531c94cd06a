//! The tokenizer's part of a model file, as the plain data that crate `text` works on.

use ternfleet_text::{TokenType, Vocabulary};

use super::{Error, File};

/// Reads the vocabulary of the model in `file`. Whether it can be used, and how it splits text, is for
/// [`ternfleet_text::Tokenizer::from_parts`] to say.
pub fn vocabulary(file: &File) -> Result<Vocabulary, Error> {
    let missing = |key: &str| {
        Error::model(format!("metadata '{key}'"), "it is missing, so the file holds no tokenizer")
    };
    let strings = |key: &str| -> Result<Vec<String>, Error> {
        let strings = file.strings(key)?.ok_or_else(|| missing(key))?;
        Ok(strings.into_iter().map(str::to_owned).collect())
    };
    let id = |key: &str| -> Result<Option<u32>, Error> {
        file.unsigned(key)?
            .map(|id| {
                u32::try_from(id)
                    .map_err(|_| Error::model(format!("metadata '{key}'"), format!("{id} is not a token id")))
            })
            .transpose()
    };
    let text = |key: &str| Ok::<_, Error>(file.text(key)?.map(str::to_owned));
    let tokens = strings("tokenizer.ggml.tokens")?;
    let token_types = match file.integers("tokenizer.ggml.token_type")? {
        // A file without types has normal tokens only.
        None => vec![TokenType::Normal; tokens.len()],
        Some(types) => {
            types.into_iter().map(|id| TokenType::from_id(u32::try_from(id).unwrap_or(u32::MAX))).collect()
        }
    };
    let model = text("tokenizer.ggml.model")?;
    // SentencePiece has scores in their place.
    let merges =
        if model.as_deref() == Some("llama") { Vec::new() } else { strings("tokenizer.ggml.merges")? };
    Ok(Vocabulary {
        tokens,
        merges,
        scores: file.floats("tokenizer.ggml.scores")?.unwrap_or_default(),
        add_space_prefix: file.boolean("tokenizer.ggml.add_space_prefix")?,
        chat_template: text("tokenizer.chat_template")?,
        token_types,
        bos: id("tokenizer.ggml.bos_token_id")?,
        eos: id("tokenizer.ggml.eos_token_id")?,
        add_bos: file.boolean("tokenizer.ggml.add_bos_token")?,
        model,
        pre: text("tokenizer.ggml.pre")?,
    })
}
