//! The report itself, and how it is printed.

use std::fmt;
use std::path::PathBuf;

use crate::gguf::{Hyper, Kind, Tensor};

/// What a model file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Metadata entries.
    pub n_entries: usize,
    /// Alignment of the tensor data, in bytes.
    pub alignment: u64,
    /// `general.architecture`, supported or not.
    pub architecture: Option<String>,
    /// The model's shape; `None` if it cannot be read (see `faults`).
    pub hyper: Option<Hyper>,
    /// All tensors, in the file's order.
    pub tensors: Vec<TensorFacts>,
    /// The tokenizer; `None` if the file has none.
    pub tokenizer: Option<TokenizerFacts>,
    /// The name in the manifest beside the file, if there is one.
    pub manifest: Option<String>,
    /// Where file and manifest say different things.
    pub disagreements: Vec<String>,
    /// Why this engine would not run the model, or not on text.
    pub faults: Vec<String>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorFacts {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Its dims in GGUF's order: (inputs, outputs) for a matrix.
    pub dims: Vec<u64>,
    /// Bytes of its data; 0 if the type's layout is not known.
    pub bytes: u64,
}

/// The tokenizer's part of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerFacts {
    /// Tokens.
    pub n_tokens: usize,
    /// Merges.
    pub n_merges: usize,
    /// `tokenizer.ggml.pre`.
    pub pre: Option<String>,
    /// Id of the token that begins a text.
    pub bos: Option<u32>,
    /// Id of the token that ends one.
    pub eos: Option<u32>,
    /// Whether the file wants BOS put before a text.
    pub add_bos: Option<bool>,
    /// Stop ids and what should be reported about the choice; or why text cannot be tokenized.
    pub usable: Result<(Vec<u32>, Option<String>), String>,
}

/// All tensors of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindTotal {
    /// The type.
    pub kind: Kind,
    /// How many tensors have it.
    pub n_tensors: usize,
    /// Their weights.
    pub n_weights: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl TensorFacts {
    pub(super) fn new(tensor: &Tensor<'_>) -> Self {
        Self {
            name: tensor.name.to_owned(),
            kind: tensor.kind,
            dims: tensor.dims.to_vec(),
            bytes: tensor.data.len() as u64,
        }
    }

    /// The number of weights.
    pub fn n_weights(&self) -> u64 {
        self.dims.iter().product()
    }
}

impl Report {
    /// Sums by type, in order of first appearance.
    pub fn totals(&self) -> Vec<KindTotal> {
        let total = |kind| {
            let of_kind = || self.tensors.iter().filter(move |tensor| tensor.kind == kind);
            KindTotal {
                kind,
                n_tensors: of_kind().count(),
                n_weights: of_kind().map(TensorFacts::n_weights).fold(0, u64::saturating_add),
                bytes: of_kind().map(|tensor| tensor.bytes).sum(),
            }
        };
        super::kinds(&self.tensors).into_iter().map(total).collect()
    }
}

/// A name out of an untrusted file, safe to print on a terminal.
fn printable(text: &str) -> String {
    text.escape_debug().to_string()
}

fn optional<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "absent".to_owned(), |value| value.to_string())
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let architecture = optional(self.architecture.as_deref().map(printable));
        writeln!(out, "{}", self.path.display())?;
        writeln!(
            out,
            "  GGUF 3, architecture {architecture}, {} bytes, {} metadata keys, {} tensors, alignment {}",
            self.bytes,
            self.n_entries,
            self.tensors.len(),
            self.alignment
        )?;
        if let Some(hyper) = &self.hyper {
            write_hyper(out, hyper)?;
        }
        writeln!(out, "\ntensors by type")?;
        for KindTotal { kind, n_tensors, n_weights, bytes } in self.totals() {
            writeln!(out, "  {kind:<8} {n_tensors:>5} tensors {n_weights:>15} weights {bytes:>13} bytes")?;
        }
        writeln!(out, "\ntensors")?;
        for tensor in &self.tensors {
            let name = printable(&tensor.name);
            let dims = format!("{:?}", tensor.dims);
            writeln!(out, "  {name:<32} {:<8} {dims:<16} {:>13} bytes", tensor.kind, tensor.bytes)?;
        }
        self.write_tokenizer(out)?;
        write_list(
            out,
            &format!("differences from the manifest ({})", optional(self.manifest.as_deref())),
            &self.disagreements,
        )?;
        write_list(out, "why this engine rejects it", &self.faults)
    }
}

impl Report {
    fn write_tokenizer(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(tokenizer) = &self.tokenizer else {
            return writeln!(out, "\ntokenizer\n  none in the file");
        };
        writeln!(
            out,
            "\ntokenizer\n  {} tokens, {} merges, pre-tokenizer {}, bos {}, eos {}, add_bos {}",
            tokenizer.n_tokens,
            tokenizer.n_merges,
            optional(tokenizer.pre.as_deref().map(printable)),
            optional(tokenizer.bos),
            optional(tokenizer.eos),
            optional(tokenizer.add_bos)
        )?;
        match &tokenizer.usable {
            Ok((stop_ids, note)) => {
                writeln!(out, "  usable; stops on {stop_ids:?}")?;
                note.iter().try_for_each(|note| writeln!(out, "  note: {note}"))
            }
            Err(reason) => writeln!(out, "  not usable: {reason}"),
        }
    }
}

fn write_hyper(out: &mut fmt::Formatter<'_>, hyper: &Hyper) -> fmt::Result {
    writeln!(out, "\nmodel '{}'", printable(&hyper.name))?;
    writeln!(out, "  layers {}, hidden {}, ffn {}", hyper.n_layers, hyper.hidden, hyper.ffn)?;
    writeln!(out, "  heads {}, KV heads {}, head width {}", hyper.n_heads, hyper.n_kv_heads, hyper.head_dim)?;
    writeln!(out, "  vocabulary {}, context {}", hyper.vocab, hyper.context)?;
    writeln!(out, "  rope theta {}, rms eps {:e}", hyper.rope_theta, hyper.rms_eps)?;
    writeln!(out, "  ternary weights {}", hyper.n_ternary_weights())
}

fn write_list(out: &mut fmt::Formatter<'_>, title: &str, lines: &[String]) -> fmt::Result {
    writeln!(out, "\n{title}")?;
    if lines.is_empty() {
        return writeln!(out, "  nothing");
    }
    lines.iter().try_for_each(|line| writeln!(out, "  - {line}"))
}
