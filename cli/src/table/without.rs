//! What is left without the feature `tables`: files of requests.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use tempfile::NamedTempFile;

use ternfleet_proto::message::BatchView;

use super::asked::Asked;
use super::{check_input, is_here};
use crate::answers::Format;
use crate::client::{Fleet, Patience};
use crate::follow;
use crate::output::{Existing, WholeFile};

const REFUSED: &str = "this program was built without tables: `make build` builds it with them, and only JSONL files of \
                       requests can be read and written here";
/// Beginnings of Parquet, Arrow, gzip and zstd.
const MARKS: [&[u8]; 5] = [b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"];
const ENDINGS: [&str; 8] = ["csv", "tsv", "parquet", "pq", "arrow", "ipc", "feather", "gz"];

#[derive(Debug)]
pub(crate) struct Input {
    requests: PathBuf,
    metadata: BTreeMap<String, String>,
    _kept: Option<NamedTempFile>,
}

/// There is none.
#[derive(Debug)]
pub(crate) struct Joined {}

#[derive(Debug)]
pub(crate) struct Results {
    draft: WholeFile,
    format: Format,
}

impl Input {
    pub(crate) async fn open(file: &Path, asked: &Asked) -> anyhow::Result<Input> {
        if asked.is_table() || has_ending(file) || !is_here(file) {
            bail!(REFUSED);
        }
        let mut kept = None;
        let mut path = file.to_owned();
        if file == Path::new("-") {
            let fault = "cannot write standard input to a temporary file";
            let mut spool = NamedTempFile::new().context(fault)?;
            std::io::copy(&mut std::io::stdin().lock(), &mut spool).context("cannot read standard input")?;
            spool.flush().context(fault)?;
            path = spool.path().to_owned();
            kept = Some(spool);
        }
        check_input(&path, file)?;
        let mut head = Vec::new();
        std::fs::File::open(&path)?.take(6).read_to_end(&mut head)?;
        if MARKS.iter().any(|mark| head.starts_with(mark)) {
            bail!(REFUSED);
        }
        Ok(Input { requests: path, metadata: BTreeMap::new(), _kept: kept })
    }

    pub(crate) fn requests(&self) -> &Path {
        &self.requests
    }

    pub(crate) fn keep(&self, _: &Path) -> anyhow::Result<PathBuf> {
        Ok(self.requests.clone())
    }

    pub(crate) fn note(&self) -> Option<&str> {
        None
    }

    pub(crate) fn joined(&self) -> Option<Arc<Joined>> {
        None
    }

    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl Joined {
    pub(crate) async fn of_batch(
        _: &Fleet,
        _: &BatchView,
        _: &Path,
        _: Option<&Path>,
    ) -> anyhow::Result<Joined> {
        bail!(REFUSED)
    }
}

impl Results {
    pub(crate) async fn create(
        out: &Path,
        existing: Existing,
        format: Option<Format>,
    ) -> anyhow::Result<Results> {
        if (format.is_none() && has_ending(out)) || !is_here(out) {
            bail!(REFUSED);
        }
        Ok(Results { draft: WholeFile::create(out, existing)?, format: format.unwrap_or_default() })
    }

    pub(crate) fn over(draft: WholeFile, _: &Path) -> Results {
        Results { draft, format: Format::Jsonl }
    }

    pub(crate) async fn write(
        self,
        fleet: &Fleet,
        batch: &BatchView,
        _: Option<Arc<Joined>>,
        patience: Patience,
    ) -> anyhow::Result<PathBuf> {
        follow::into_file(fleet, batch, self.draft, self.format, patience).await
    }
}

fn has_ending(file: &Path) -> bool {
    file.extension().is_some_and(|end| ENDINGS.iter().any(|known| end.eq_ignore_ascii_case(known)))
}
