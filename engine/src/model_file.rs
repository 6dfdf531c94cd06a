//! What a model file holds, told to a person: `ternfleet model inspect` prints the [`Report`].
//!
//! Plain data with a `Display`; nothing here decides whether a model can run, it only says what was found.
//! A file that is no whole model still gets a report, with the reasons under `faults`.

mod report;

use std::path::Path;

use ternfleet_text::{Manifest, Tokenizer};

use crate::gguf::{self, File, Hyper, Kind};

pub use self::report::{KindTotal, Report, TensorFacts, TokenizerFacts};

/// Reads the file at `path`, and the manifest beside it if there is one. An error means that it is no GGUF
/// that can be read at all; everything else is in the report.
pub fn inspect(path: &Path) -> Result<Report, gguf::Error> {
    let file = File::open(path)?;
    let (manifest, fault) = match Manifest::beside(path) {
        Ok(manifest) => (manifest, None),
        Err(fault) => (None, Some(fault.to_string())),
    };
    let mut report = examine(path, &file, manifest.as_ref());
    report.faults.extend(fault);
    Ok(report)
}

/// The report on an open file; `path` is what it is called, and is not read.
pub fn examine(path: &Path, file: &File, manifest: Option<&Manifest>) -> Report {
    let mut faults = Vec::new();
    let hyper = Hyper::read(file).map_err(|fault| faults.push(fault.to_string())).ok();
    if hyper.is_some() {
        match gguf::check_model(file) {
            Ok(layout) => faults.extend(faulty_rows(&layout)),
            Err(fault) => faults.push(fault.to_string()),
        }
    }
    let tokenizer = inspect_tokenizer(file, manifest, &mut faults);
    Report {
        path: path.to_owned(),
        bytes: file.len_bytes(),
        n_entries: file.entries().len(),
        alignment: file.alignment(),
        architecture: file
            .metadata("general.architecture")
            .and_then(|value| value.as_str())
            .map(str::to_owned),
        tensors: file.tensors().map(|tensor| TensorFacts::new(&tensor)).collect(),
        tokenizer,
        disagreements: manifest
            .map_or(Vec::new(), |manifest| disagreements(path, file, hyper.as_ref(), manifest)),
        manifest: manifest.map(|manifest| manifest.name.clone()),
        hyper,
        faults,
    }
}

/// Ternary tensors with a row that cannot be taken.
fn faulty_rows(layout: &gguf::Layout<'_>) -> Vec<String> {
    let faults = layout.ternary().filter_map(|tensor| {
        let fault = gguf::ternary::check(&tensor).err()?;
        Some(format!("tensor '{}': {fault}; the file is damaged or in another layout", tensor.name))
    });
    faults.collect()
}

fn inspect_tokenizer(
    file: &File,
    manifest: Option<&Manifest>,
    faults: &mut Vec<String>,
) -> Option<TokenizerFacts> {
    file.metadata("tokenizer.ggml.tokens")?;
    let vocabulary = match gguf::vocabulary(file) {
        Ok(vocabulary) => vocabulary,
        Err(fault) => {
            faults.push(fault.to_string());
            return None;
        }
    };
    let prepared = Tokenizer::from_parts(&vocabulary, manifest);
    Some(TokenizerFacts {
        n_tokens: vocabulary.tokens.len(),
        n_merges: vocabulary.merges.len(),
        pre: vocabulary.pre,
        bos: vocabulary.bos,
        eos: vocabulary.eos,
        add_bos: vocabulary.add_bos,
        usable: match prepared {
            Ok(prepared) => Ok((prepared.tokenizer.stop_ids().to_vec(), prepared.note)),
            Err(fault) => Err(fault.to_string()),
        },
    })
}

/// What the file says otherwise than its manifest. The digest is not computed: that reads the whole file.
fn disagreements(path: &Path, file: &File, hyper: Option<&Hyper>, manifest: &Manifest) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, file: Option<String>, manifest: Option<String>| {
        if let (Some(file), Some(manifest)) = (file, manifest)
            && file != manifest
        {
            found.push(format!("{what}: the file says {file}, but the manifest says {manifest}"));
        }
    };
    let shape = &manifest.shape;
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let real = |value: Option<f32>| value.map(|value| value.to_string());
    if let Some(source) = &manifest.source {
        compare("bytes", Some(file.len_bytes().to_string()), number(source.bytes));
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        compare("file name", name, Some(source.file.clone()));
    }
    if let Some(hyper) = hyper {
        compare("architecture", Some(hyper.architecture.clone()), shape.architecture.clone());
        for (what, file, manifest) in [
            ("n_layers", hyper.n_layers, shape.n_layers),
            ("hidden", hyper.hidden, shape.hidden),
            ("ffn", hyper.ffn, shape.ffn),
            ("n_heads", hyper.n_heads, shape.n_heads),
            ("n_kv_heads", hyper.n_kv_heads, shape.n_kv_heads),
            ("head_dim", hyper.head_dim, shape.head_dim),
            ("vocab", hyper.vocab, shape.vocab),
            ("context", hyper.context, shape.context),
        ] {
            compare(what, Some(file.to_string()), number(manifest));
        }
        compare("rope_theta", Some(hyper.rope_theta.to_string()), real(shape.rope_theta));
        compare("rms_eps", Some(hyper.rms_eps.to_string()), real(shape.rms_eps));
        if let Some(facts) = &manifest.tokenizer {
            compare("bos", hyper.bos.map(|id| id.to_string()), facts.bos.map(|id| id.to_string()));
            compare("eos", hyper.eos.map(|id| id.to_string()), Some(facts.eos.to_string()));
        }
    }
    found
}

/// Kinds in the order in which they are summed up.
fn kinds(tensors: &[TensorFacts]) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for tensor in tensors {
        if !kinds.contains(&tensor.kind) {
            kinds.push(tensor.kind);
        }
    }
    kinds
}
