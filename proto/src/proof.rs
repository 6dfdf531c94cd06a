//! The proof of a batch: a signed manifest over its output lines, which anybody can check without the fleet.
//!
//! A manifest is a JSONL file. Its first line is the [`Statement`], its second the [`Signature`] over the bytes of the
//! first. One [`Row`] for each answered line follows, in input order; the statement's root is that of the tree over them.
//! The coordinator writes manifests, `ternfleet verify` reads them; docs/proof.md explains both.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::id::{BatchId, TimeMs};

mod signature;
mod tree;

pub use signature::{Signature, SigningKey};
pub use tree::{File, Tree, leaf};

/// What manifests of this form begin with.
pub const FORMAT: &str = "ternfleet-proof-1";
/// A statement is a few hundred bytes long, and lists up to sixteen models.
const STATEMENT_BYTES_MAX: usize = 64 << 10;

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    pub format: String,
    /// Version of the coordinator.
    pub version: String,
    pub batch: BatchId,
    pub written_at: TimeMs,
    /// Model of the lines that name none, as the batch was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The files as a whole. The input is missing if it was deleted before the end.
    pub input: Option<FileDigest>,
    pub output: Option<FileDigest>,
    pub error: Option<FileDigest>,
    /// What generated the answers.
    pub models: Vec<Ran>,
    /// Good answers of engines that give no evidence: their text is signed, and cannot be computed again.
    #[serde(default)]
    pub unproved: u32,
    /// Lines with an answer.
    pub leaves: u32,
    pub root: Digest,
}

/// A file, by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    pub bytes: u64,
    pub blake3: Digest,
}

/// An engine with its model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ran {
    /// As answers name it.
    pub name: String,
    /// `blake3:` and the digest of the model file.
    pub digest: String,
    pub numerics: String,
    pub answers: u32,
}

/// One leaf of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Line of the input, from 1.
    pub line: u32,
    #[serde(flatten)]
    pub leaf: Leaf,
}

/// The digest of an output line, under the file that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leaf {
    Output(Digest),
    Error(Digest),
}

impl Leaf {
    pub fn new(line: u32, file: File, text: &[u8]) -> Leaf {
        let digest = leaf(line, file, text);
        match file {
            File::Output => Leaf::Output(digest),
            File::Error => Leaf::Error(digest),
        }
    }

    pub fn file(self) -> File {
        match self {
            Leaf::Output(_) => File::Output,
            Leaf::Error(_) => File::Error,
        }
    }

    pub fn digest(self) -> Digest {
        match self {
            Leaf::Output(digest) | Leaf::Error(digest) => digest,
        }
    }
}

/// A manifest that was read and holds: its signature is valid, and its rows have the signed root.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub statement: Statement,
    pub signature: Signature,
    pub rows: Vec<Row>,
}

/// Why a manifest does not hold.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("line {line} of the manifest cannot be parsed: {reason}")]
    Form { line: u64, reason: String },
    #[error("the signature is not that of the statement: one of them was changed")]
    Signature,
    #[error(
        "the tree over the lines has the root {found}, and {signed} is signed: a line of the manifest was changed"
    )]
    Root { signed: Digest, found: Digest },
    #[error("the manifest has {found} lines, and {signed} are signed: lines were added or left out")]
    Count { signed: u32, found: u64 },
}

impl Manifest {
    /// Reads a manifest and checks its signature and its tree. Whose signature it is, is for the caller to check.
    ///
    /// # Errors
    /// What does not hold.
    pub fn read(mut from: impl BufRead) -> Result<Manifest, ManifestError> {
        let mut line = String::new();
        let first = next(&mut from, &mut line, 1)?.to_owned();
        let statement: Statement = parsed(&first, 1)?;
        if statement.format != FORMAT {
            let reason = format!("its form is {:?}, and this program reads {FORMAT:?}", statement.format);
            return Err(ManifestError::Form { line: 1, reason });
        }
        let signature: Signature = parsed(next(&mut from, &mut line, 2)?, 2)?;
        if !signature.is_of(first.as_bytes()) {
            return Err(ManifestError::Signature);
        }
        let (mut rows, mut tree) = (Vec::new(), Tree::default());
        let mut number = 2;
        loop {
            number += 1;
            let text = next(&mut from, &mut line, number)?;
            if text.is_empty() {
                break;
            }
            let row: Row = parsed(text, number)?;
            tree.push(row.leaf.digest());
            rows.push(row);
        }
        if rows.len() as u64 != u64::from(statement.leaves) {
            return Err(ManifestError::Count { signed: statement.leaves, found: rows.len() as u64 });
        }
        if tree.root() != statement.root {
            return Err(ManifestError::Root { signed: statement.root, found: tree.root() });
        }
        Ok(Manifest { statement, signature, rows })
    }

    /// What is signed of a line.
    pub fn row(&self, line: u32) -> Option<&Row> {
        self.rows.binary_search_by_key(&line, |row| row.line).ok().map(|place| &self.rows[place])
    }
}

/// Writes statement and signature, which the rows follow.
///
/// # Errors
/// Those of the writer.
pub fn write_head(to: &mut impl Write, statement: &Statement, key: &SigningKey) -> std::io::Result<()> {
    let text = serde_json::to_string(statement).map_err(std::io::Error::other)?;
    let signature = serde_json::to_string(&key.sign(text.as_bytes())).map_err(std::io::Error::other)?;
    writeln!(to, "{text}\n{signature}")
}

/// Writes one row.
///
/// # Errors
/// Those of the writer.
pub fn write_row(to: &mut impl Write, row: &Row) -> std::io::Result<()> {
    let text = serde_json::to_string(row).map_err(std::io::Error::other)?;
    writeln!(to, "{text}")
}

fn next<'a>(from: &mut impl BufRead, line: &'a mut String, number: u64) -> Result<&'a str, ManifestError> {
    line.clear();
    let most = STATEMENT_BYTES_MAX as u64;
    std::io::Read::take(&mut *from, most).read_line(line)?;
    if line.len() as u64 == most {
        let reason = format!("it has more than {most} bytes");
        return Err(ManifestError::Form { line: number, reason });
    }
    Ok(line.trim_end_matches('\n'))
}

fn parsed<'a, T: Deserialize<'a>>(text: &'a str, line: u64) -> Result<T, ManifestError> {
    serde_json::from_str(text).map_err(|error| ManifestError::Form { line, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(key: &SigningKey) -> String {
        let rows: Vec<Row> = (1..=5)
            .map(|line| {
                let file = if line == 3 { File::Error } else { File::Output };
                Row { line, leaf: Leaf::new(line, file, format!("text {line}").as_bytes()) }
            })
            .collect();
        let mut tree = Tree::default();
        rows.iter().for_each(|row| tree.push(row.leaf.digest()));
        let statement = Statement {
            format: FORMAT.into(),
            version: "0".into(),
            batch: "batch_a".parse().unwrap(),
            written_at: TimeMs(5),
            model: None,
            input: None,
            output: Some(FileDigest { bytes: 3, blake3: Digest::of(b"abc") }),
            error: None,
            models: vec![Ran { name: "m".into(), digest: "d".into(), numerics: "n".into(), answers: 4 }],
            unproved: 0,
            leaves: 5,
            root: tree.root(),
        };
        let mut text = Vec::new();
        write_head(&mut text, &statement, key).unwrap();
        rows.iter().for_each(|row| write_row(&mut text, row).unwrap());
        String::from_utf8(text).unwrap()
    }

    fn read(text: &str) -> Result<Manifest, ManifestError> {
        Manifest::read(text.as_bytes())
    }

    #[test]
    fn a_manifest_is_read_back_and_every_change_of_it_is_named() {
        let key = SigningKey::from_seed([7; 32]);
        let text = manifest(&key);
        let found = read(&text).unwrap();
        assert_eq!((found.rows.len(), found.signature.public_key), (5, key.public()));
        assert_eq!(found.row(3).unwrap().leaf.file(), File::Error);
        assert!(found.row(6).is_none());

        let changed = text.replace("\"written_at\":5", "\"written_at\":6");
        assert!(matches!(read(&changed), Err(ManifestError::Signature)));
        let lines: Vec<&str> = text.lines().collect();
        let with = |rows: &[usize]| {
            let rows: Vec<&str> = [0, 1].iter().chain(rows).map(|&at| lines[at]).collect();
            read(&(rows.join("\n") + "\n"))
        };
        assert!(with(&[2, 3, 4, 5, 6]).is_ok());
        assert!(matches!(with(&[2, 3, 4, 5]), Err(ManifestError::Count { signed: 5, found: 4 })));
        assert!(matches!(with(&[2, 4, 3, 5, 6]), Err(ManifestError::Root { .. })));
        assert!(matches!(read("{}"), Err(ManifestError::Form { line: 1, .. })));
        let other = manifest(&SigningKey::from_seed([8; 32]));
        let forged = text.replacen(lines[1], other.lines().nth(1).unwrap(), 1);
        assert!(
            read(&forged).is_err_and(|error| matches!(error, ManifestError::Signature)) || forged == other
        );
    }
}
