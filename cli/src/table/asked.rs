//! The flags that make a table of a file: what is asked of each row.

#![cfg_attr(not(feature = "tables"), allow(dead_code))]

use std::path::PathBuf;

use clap::Args;

/// Maximum tokens of an answer where nothing else is said, as in the Python module.
const MAX_TOKENS: u32 = 256;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Tables")]
pub(crate) struct Asked {
    /// Template of the prompt over the columns, such as 'Classify: {{ text }}'; makes FILE a table
    #[arg(long, value_name = "TEMPLATE", group = "asks", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// JSON file with a list of chat messages whose texts are templates over the columns; makes FILE a table
    #[arg(long, value_name = "FILE", group = "asks")]
    pub(crate) messages: Option<PathBuf>,
    /// With --prompt: system message, a template too; the request is then a chat
    #[arg(
        long,
        value_name = "TEXT",
        requires = "prompt",
        conflicts_with = "messages",
        allow_hyphen_values = true
    )]
    pub(crate) system: Option<String>,
    /// File with a JSON schema that each answer follows; its properties become typed columns
    #[arg(long, value_name = "FILE", requires = "asks")]
    pub(crate) schema: Option<PathBuf>,
    /// Column whose values, which must differ, identify the rows [default: the number of the row, from 0]
    #[arg(long = "id", value_name = "COLUMN", requires = "asks")]
    pub(crate) id_column: Option<String>,
    /// Use only the first N rows
    #[arg(long, value_name = "N", requires = "asks", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Prefix of the names of new columns
    #[arg(long, value_name = "TEXT", requires = "asks", default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// Maximum tokens of each answer [default: 256]
    #[arg(long, value_name = "N", requires = "asks")]
    pub(crate) max_tokens: Option<u32>,
    /// Sampling temperature; 0 selects the most likely token each time
    #[arg(long, value_name = "T", requires = "asks")]
    pub(crate) temperature: Option<f64>,
    /// Seed of every row's sampling
    #[arg(long, value_name = "N", requires = "asks")]
    pub(crate) seed: Option<u64>,
    /// Text at which an answer stops; can be repeated
    #[arg(long, value_name = "TEXT", requires = "asks", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
}

impl Asked {
    /// Whether the file is a table, and not a file of requests.
    pub(crate) fn is_table(&self) -> bool {
        self.prompt.is_some() || self.messages.is_some()
    }

    /// The fields that every request has.
    pub(crate) fn body(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut body = serde_json::Map::new();
        body.insert("max_tokens".to_owned(), self.max_tokens.unwrap_or(MAX_TOKENS).into());
        let others = [
            ("temperature", self.temperature.map(Into::into)),
            ("seed", self.seed.map(Into::into)),
            ("stop", (!self.stop.is_empty()).then(|| self.stop.clone().into())),
        ];
        body.extend(others.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        body
    }
}
