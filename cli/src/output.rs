//! What goes to standard output and into result files.
//!
//! Standard output carries data alone. A result file appears whole, by a rename, or not at all.

use std::fs::Permissions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use tempfile::NamedTempFile;
use ternfleet_proto::openai::one_line;

/// One line on standard output. An error, not a panic, when nobody reads it any more.
pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// One JSON value on one line of standard output.
pub(crate) fn say_json(value: &impl Serialize) -> anyhow::Result<()> {
    say(&one_line(serde_json::to_string(value).context("cannot be written as JSON")?))
}

/// Writes a file that its owner alone may read, whole, with the folders it needs.
pub(crate) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let fault = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(fault)?;
    // A temporary file is made with mode 0600, and a rename keeps it.
    let mut draft = tempfile::Builder::new().prefix(".ternfleet-").tempfile_in(folder).with_context(fault)?;
    draft.write_all(text.as_bytes()).with_context(fault)?;
    draft.as_file().sync_all().with_context(fault)?;
    draft.persist(path).with_context(fault)?;
    Ok(())
}

/// Where results go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `-`: standard output.
    Stdout,
    File(PathBuf),
}

impl std::str::FromStr for Target {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Target, Self::Err> {
        Ok(if text == "-" { Target::Stdout } else { Target::File(text.into()) })
    }
}

/// What happens to a file that stands where results are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Nothing is done, before any work begins.
    Refused,
    Replaced,
}

impl Existing {
    /// As the flag `--force` says.
    pub(crate) fn forced(force: bool) -> Existing {
        if force { Existing::Replaced } else { Existing::Refused }
    }
}

/// A file that is not there until it is complete.
#[derive(Debug)]
pub(crate) struct WholeFile {
    path: PathBuf,
    existing: Existing,
    draft: BufWriter<NamedTempFile>,
}

impl WholeFile {
    /// Begins a draft beside `path`, so that an impossible place is found out before any work is done.
    pub(crate) fn create(path: &Path, existing: Existing) -> anyhow::Result<WholeFile> {
        if path.is_dir() {
            bail!("{} is a folder: pass a file name", path.display());
        }
        if existing == Existing::Refused && path.exists() {
            bail!("{} exists: choose another file, or overwrite it with --force", path.display());
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            bail!("cannot write {}: there is no folder {}", path.display(), folder.display());
        }
        let draft = tempfile::Builder::new()
            .prefix(".ternfleet-")
            // The process's umask takes away what it does not give.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .with_context(|| format!("cannot write in the folder {}", folder.display()))?;
        Ok(WholeFile { path: path.to_owned(), existing, draft: BufWriter::new(draft) })
    }

    pub(crate) fn line(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.draft, "{line}").with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// A text that has its line ends.
    pub(crate) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        self.draft.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Where to write what is no text.
    pub(crate) fn writer(&mut self) -> &mut impl Write {
        &mut self.draft
    }

    /// Makes it appear. A file that came up meanwhile is replaced only if that is allowed.
    pub(crate) fn publish(self) -> anyhow::Result<PathBuf> {
        let fault = || format!("cannot write {}", self.path.display());
        let draft = self.draft.into_inner().map_err(|error| error.into_error()).with_context(fault)?;
        draft.as_file().sync_all().with_context(fault)?;
        match self.existing {
            Existing::Replaced => draft.persist(&self.path).with_context(fault)?,
            Existing::Refused => draft.persist_noclobber(&self.path).with_context(fault)?,
        };
        Ok(std::fs::canonicalize(&self.path).unwrap_or(self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_not_seen_before_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        std::fs::write(&path, "old\n").unwrap();
        let mut file = WholeFile::create(&path, Existing::Replaced).unwrap();
        file.line("new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old\n");
        file.publish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_there_is_replaced_only_where_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.jsonl");
        let mut early = WholeFile::create(&path, Existing::Refused).unwrap();
        std::fs::write(&path, "precious\n").unwrap();
        let refusal = WholeFile::create(&path, Existing::Refused).unwrap_err().to_string();
        assert!(refusal.contains("--force"), "{refusal}");
        // It came up after the work began.
        early.line("new").unwrap();
        assert!(early.publish().is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious\n");
    }

    #[test]
    fn an_abandoned_draft_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        drop(WholeFile::create(&folder.path().join("out.jsonl"), Existing::Refused).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_said_at_once() {
        assert!(WholeFile::create(Path::new("/nowhere/at/all/out.jsonl"), Existing::Replaced).is_err());
        assert!(WholeFile::create(Path::new("/"), Existing::Replaced).is_err());
    }
}
