//! A model's manifest: what it is, where it comes from, how it splits text, how it chats, when it stops.
//!
//! `models/*/manifest.toml`, and found beside a model file under the same name. Unknown keys are refused and
//! all faults come at once: a manifest is written by hand, and a misspelt key must not be a silent default.

mod carried;
mod reader;

use std::path::Path;

pub use self::carried::CARRIED;
use self::reader::Reader;
use crate::Error;
use crate::tokenizer::Normalizer;
use crate::tokenizer::pre::{self, Pre};
use crate::tools::ToolFormat;

/// The name a manifest has beside its model file.
pub const FILE_NAME: &str = "manifest.toml";
/// A manifest is a page of text; anything longer is something else.
const MAX_BYTES: u64 = 1 << 20;

/// What is known about a model besides its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Short name, as `bitnet-b1.58-2B-4T`.
    pub name: String,
    /// One line about it.
    pub description: String,
    /// Its licence, as an SPDX expression or a name.
    pub licence: String,
    /// What of this manifest nobody could check against the model itself, in words.
    pub unverified: Option<String>,
    /// Why this engine does not run the model; `None` for one that it runs.
    pub not_runnable: Option<String>,
    /// Where the model file comes from.
    pub source: Option<Source>,
    /// The shape that the file must have.
    pub shape: Shape,
    /// How it splits text; `None` where the file has to tell, by the name of its pre-tokenizer.
    pub tokenizer: Option<TokenizerFacts>,
    /// How it chats; `None` for a model that only continues text.
    pub chat: Option<Chat>,
    /// How it calls functions; `None` for a model that calls none.
    pub tools: Option<ToolFormat>,
    /// Sampling defaults.
    pub sampling: Sampling,
}

/// The model file and how to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it can be fetched, `https://…`; `None` if it ships with this repository.
    pub url: Option<String>,
    /// Its file name.
    pub file: String,
    /// SHA-256 in lower-case hexadecimal; `None` if the file was not available during development.
    pub sha256: Option<String>,
    /// Its size.
    pub bytes: Option<u64>,
}

/// The shape that the model file must have; what is absent is not compared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shape {
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// Transformer blocks.
    pub n_layers: Option<u64>,
    /// Width of the residual stream.
    pub hidden: Option<u64>,
    /// Width inside the feed-forward part.
    pub ffn: Option<u64>,
    /// Query heads.
    pub n_heads: Option<u64>,
    /// Key and value heads.
    pub n_kv_heads: Option<u64>,
    /// Width of a head.
    pub head_dim: Option<u64>,
    /// Tokens in the vocabulary.
    pub vocab: Option<u64>,
    /// Longest sequence.
    pub context: Option<u64>,
    /// Base of the rotary frequencies.
    pub rope_theta: Option<f32>,
    /// Added to the mean square in every RMSNorm.
    pub rms_eps: Option<f32>,
}

/// How the model turns text into tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerFacts {
    /// Byte-level BPE or SentencePiece.
    pub kind: Kind,
    /// The names that a file may have for the split (`tokenizer.ggml.pre`); `None` if any will do.
    pub pre: Option<&'static [&'static str]>,
    /// The expressions whose matches are merged each on their own, each cutting what the one before left.
    pub splits: Vec<String>,
    /// What is done to text before.
    pub normalizer: Normalizer,
    /// Whether a piece that is a token is taken whole, without walking the merges.
    pub ignore_merges: bool,
    /// Id of the token that begins a text; `None` for a model without one.
    pub bos: Option<u32>,
    /// Whether it is put before a text.
    pub add_bos: bool,
    /// Id of the token that ends a text.
    pub eos: u32,
    /// Ids that end a generation.
    pub stop_ids: Vec<u32>,
}

/// Kinds of tokenizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Split by expressions, then merged by rank: `bpe`, or `llama3-bpe` for Llama 3's names.
    ByteLevel,
    /// Joined by score: `sentencepiece`.
    SentencePiece,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::ByteLevel => "bpe",
            Self::SentencePiece => "sentencepiece",
        })
    }
}

/// How the model chats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chat {
    /// A Jinja template over `messages` (`role`, `content`), `bos_token` and `eos_token`.
    pub template: String,
}

/// Sampling defaults; what is absent is the caller's to choose.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// Temperature, 0 for greedy.
    pub temperature: Option<f32>,
    /// Nucleus mass.
    pub top_p: Option<f32>,
    /// Candidates kept.
    pub top_k: Option<u32>,
    /// Subtracted from a token's score for each time that it was generated before.
    pub frequency_penalty: Option<f32>,
}

impl Manifest {
    /// Reads the manifest at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |reason| Error::Io { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(io)?.len();
        let origin = path.display().to_string();
        if size > MAX_BYTES {
            let faults = vec![format!("it has {size} bytes; a manifest has at most {MAX_BYTES}")];
            return Err(Error::Manifest { origin, faults });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(io)?, &origin)
    }

    /// Reads `manifest.toml` in the folder of `model_file`; `None` if there is no such file.
    pub fn beside(model_file: &Path) -> Result<Option<Self>, Error> {
        let path = model_file.with_file_name(FILE_NAME);
        match path.try_exists() {
            Ok(true) => Self::open(&path).map(Some),
            Ok(false) => Ok(None),
            Err(reason) => Err(Error::Io { path, reason }),
        }
    }

    /// Reads a manifest from `text`; `origin` names it in messages.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let table: toml::Table = text.parse().map_err(|fault: toml::de::Error| Error::Manifest {
            origin: origin.to_owned(),
            faults: vec![fault.to_string().trim_end().to_owned()],
        })?;
        let mut root = Reader::new(table);
        let manifest = read(&mut root);
        match (manifest, root.finish()) {
            (Some(manifest), faults) if faults.is_empty() => Ok(manifest),
            (_, faults) => Err(Error::Manifest { origin: origin.to_owned(), faults }),
        }
    }
}

/// Reads everything before judging anything: `None` only where a fault was noted.
fn read(root: &mut Reader) -> Option<Manifest> {
    let name = root.text("name");
    if let Some(name) = &name
        && !is_plain(name)
    {
        root.fault(
            "name",
            "it must consist of letters, digits and -._ and must not begin with a dot, because it is used \
             as a folder name",
        );
    }
    let description = root.text("description");
    let licence = root.text("licence");
    let unverified = root.optional_text("unverified");
    let not_runnable = root.optional_text("not_runnable");
    let source = root.section("source", |section| {
        let url = section.optional_text("url");
        let (file, sha256, bytes) =
            (section.text("file"), section.optional_text("sha256"), section.optional_count("bytes"));
        if let Some(digest) = &sha256
            && !(digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        {
            section.fault("sha256", "it must be 64 lower-case hexadecimal digits");
        }
        if let Some(url) = &url
            && !["https://", "http://"].iter().any(|scheme| url.starts_with(scheme))
        {
            section.fault("url", "it must begin with https://, or http:// in your own network");
        }
        if let Some(file) = &file
            && (file.is_empty() || file.contains(['/', '\\']) || file == "..")
        {
            section.fault("file", "it must be a file name without folders");
        }
        Some(Source { url, file: file?, sha256, bytes })
    });
    let shape = root.section("shape", |section| {
        Some(Shape {
            architecture: section.optional_text("architecture"),
            n_layers: section.optional_count("n_layers"),
            hidden: section.optional_count("hidden"),
            ffn: section.optional_count("ffn"),
            n_heads: section.optional_count("n_heads"),
            n_kv_heads: section.optional_count("n_kv_heads"),
            head_dim: section.optional_count("head_dim"),
            vocab: section.optional_count("vocab"),
            context: section.optional_count("context"),
            rope_theta: section.optional_float("rope_theta", 1.0..=1e12),
            rms_eps: section.optional_float("rms_eps", 0.0..=1.0),
        })
    });
    let tokenizer = root.section("tokenizer", read_tokenizer);
    let chat = root.section("chat", |section| {
        let template = section.text("template")?;
        if let Err(fault) = crate::chat::check(&template) {
            section.fault("template", &fault);
        }
        Some(Chat { template })
    });
    let tools = root.section("tools", |section| {
        let name = section.text("format")?;
        let format = ToolFormat::named(&name);
        if format.is_none() {
            let known = ToolFormat::ALL.map(ToolFormat::name).join(", ");
            section.fault("format", &format!("'{name}' is unknown; use one of: {known}"));
        }
        format
    });
    let sampling = root.section("sampling", |section| {
        let top_k = section.optional_id("top_k");
        Some(Sampling {
            temperature: section.optional_float("temperature", 0.0..=100.0),
            top_p: section.optional_float("top_p", 0.0..=1.0),
            top_k,
            frequency_penalty: section.optional_float("frequency_penalty", -2.0..=2.0),
        })
    });
    Some(Manifest {
        name: name?,
        description: description?,
        licence: licence?,
        unverified,
        not_runnable,
        source,
        shape: shape.unwrap_or_default(),
        tokenizer,
        chat,
        tools,
        sampling: sampling.unwrap_or_default(),
    })
}

/// Whether a model may be called so.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.bytes().all(plain)
}

fn read_tokenizer(section: &mut Reader) -> Option<TokenizerFacts> {
    let kind = section.text("kind");
    let (kind, of_kind) = match kind.as_deref() {
        Some("llama3-bpe") | None => (Kind::ByteLevel, Some("llama-bpe")),
        Some("bpe") => (Kind::ByteLevel, None),
        Some("sentencepiece") => (Kind::SentencePiece, None),
        Some(other) => {
            section
                .fault("kind", &format!("'{other}' is unknown; use 'llama3-bpe', 'bpe' or 'sentencepiece'"));
            (Kind::ByteLevel, None)
        }
    };
    let name = section.optional_text("pre").or(of_kind.map(str::to_owned));
    let pre = name.as_deref().and_then(pre::named);
    if let (Some(name), None) = (&name, pre) {
        section.fault("pre", &format!("'{name}' is unknown; known are {}", pre::names()));
    }
    let mut splits = section.texts("split");
    for split in splits.iter().flatten() {
        if let Err(fault) = crate::tokenizer::check_split(split) {
            section.fault("split", &fault);
        }
    }
    if splits.is_none() {
        splits = pre.map(Pre::splits);
    }
    if splits.is_none() && kind == Kind::ByteLevel {
        section.fault("split", "it is missing (text or a list of texts), and `pre` is not set");
    }
    let normalizer = match section.optional_text("normalizer").as_deref() {
        None => pre.map_or(Normalizer::None, |pre| pre.normalizer),
        Some("none") => Normalizer::None,
        Some("nfc") => Normalizer::Nfc,
        Some(other) => {
            section.fault("normalizer", &format!("'{other}' is unknown; use 'none' or 'nfc'"));
            Normalizer::None
        }
    };
    let stated = if section.has("ignore_merges") { section.flag("ignore_merges") } else { None };
    let ignore_merges = stated.or(pre.map(|pre| pre.ignore_merges)).unwrap_or(false);
    let (bos, add_bos, eos) = (section.optional_id("bos"), section.flag("add_bos"), section.id("eos"));
    if bos.is_none() && add_bos == Some(true) {
        section.fault("bos", "it is missing (a token id), but add_bos is true");
    }
    let stop_ids = section.ids("stop_ids");
    Some(TokenizerFacts {
        kind,
        pre: pre.map(|pre| pre.names),
        splits: splits.unwrap_or_default(),
        normalizer,
        ignore_merges,
        bos,
        add_bos: add_bos?,
        eos: eos?,
        stop_ids: stop_ids?,
    })
}

#[cfg(test)]
mod tests;
