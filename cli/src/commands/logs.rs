//! `ternfleet logs [PART]`: what the parts of a fleet on this machine have written, and what they write from now on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::stop::Stops;
use crate::{addresses, connection, stop};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Read at a time, from the end of a file.
const TAIL_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Process: coordinator, nats-server, worker-1, …, or a rented pod [default: all]
    #[arg(value_name = "PART")]
    part: Option<String>,
    /// Follow new lines until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Lines of each process to start with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: usize,
    /// Folder of the fleet
    #[arg(long, value_name = "DIR", default_value = connection::USUAL_FOLDER)]
    dir: PathBuf,
}

/// A log file, and how far it was read.
#[derive(Debug)]
struct Log {
    part: String,
    path: PathBuf,
    read_to: u64,
    /// The beginning of a line whose end is not written yet.
    begun: Vec<u8>,
}

impl Logs {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut logs = self.chosen()?;
        let width = logs.iter().map(|log| log.part.len()).max().unwrap_or(0);
        let named = if self.part.is_some() { None } else { Some(width) };
        for log in &mut logs {
            let lines = log.tail(self.lines)?;
            show(&log.part, &lines, named)?;
        }
        if !self.follow {
            return Ok(ExitCode::SUCCESS);
        }
        stop::block_on(async {
            let mut stops = Stops::listen()?;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = stops.next() => return Ok(ExitCode::SUCCESS),
                }
                // A pod that was rented meanwhile, or a log that was set aside.
                let found = if self.part.is_none() { self.found()? } else { Vec::new() };
                for new in found {
                    if !logs.iter().any(|log| log.path == new.path) {
                        logs.push(new);
                    }
                }
                for log in &mut logs {
                    let lines = log.more()?;
                    show(&log.part, &lines, named)?;
                }
            }
        })
    }

    /// All logs of the folder, by part.
    fn found(&self) -> anyhow::Result<Vec<Log>> {
        let mut found = BTreeMap::new();
        for folder in [self.dir.join("logs"), self.dir.join("pods")] {
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
                if path.extension().is_some_and(|ending| ending == "log")
                    && let Some(part) = path.file_stem().and_then(|name| name.to_str())
                {
                    found.insert(part.to_owned(), path.clone());
                }
            }
        }
        let log = |(part, path)| Log { part, path, read_to: 0, begun: Vec::new() };
        Ok(found.into_iter().map(log).collect())
    }

    fn chosen(&self) -> anyhow::Result<Vec<Log>> {
        let mut logs = self.found()?;
        if logs.is_empty() {
            let dir = self.dir.display();
            bail!("no logs in {dir}: `ternfleet up` writes them to the folder of its --dir");
        }
        if let Some(part) = &self.part {
            let names: Vec<String> = logs.iter().map(|log| log.part.clone()).collect();
            logs.retain(|log| log.part == *part);
            if logs.is_empty() {
                bail!("no process {part} in {}; known are: {}", self.dir.display(), names.join(", "));
            }
        }
        if self.follow && addresses::running(&self.dir).is_none() {
            eprintln!("the fleet in {} is not running", self.dir.display());
        }
        Ok(logs)
    }
}

impl Log {
    /// The last lines.
    fn tail(&mut self, lines: usize) -> anyhow::Result<Vec<String>> {
        self.read_to = self.length()?.saturating_sub(TAIL_BYTES);
        let cut = self.read_to > 0;
        let mut all = self.more()?;
        if cut && !all.is_empty() {
            // It begins in the middle of a line.
            all.remove(0);
        }
        Ok(all.split_off(all.len().saturating_sub(lines)))
    }

    /// The lines that were written since the last look.
    fn more(&mut self) -> anyhow::Result<Vec<String>> {
        if self.length()? < self.read_to {
            // It was set aside, and a new one begun.
            self.read_to = 0;
            self.begun.clear();
        }
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| fault(&self.path)),
        };
        file.seek(SeekFrom::Start(self.read_to)).with_context(|| fault(&self.path))?;
        self.read_to += file.read_to_end(&mut self.begun).with_context(|| fault(&self.path))? as u64;
        let whole = self.begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let text: Vec<u8> = self.begun.drain(..whole).collect();
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }

    fn length(&self) -> anyhow::Result<u64> {
        match std::fs::metadata(&self.path) {
            Ok(facts) => Ok(facts.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).with_context(|| fault(&self.path)),
        }
    }
}

fn fault(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

/// Lines on standard output, behind the part's name where several are shown.
fn show(part: &str, lines: &[String], width: Option<usize>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        match width {
            Some(width) => writeln!(out, "{part:width$}  {line}")?,
            None => writeln!(out, "{line}")?,
        }
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(dir: &Path, part: Option<&str>) -> Logs {
        Logs { part: part.map(str::to_owned), follow: false, lines: 20, dir: dir.to_owned() }
    }

    #[test]
    fn a_log_is_read_on_line_by_line_and_from_its_start_after_it_was_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("logs")).unwrap();
        let path = folder.path().join("logs/worker-1.log");
        std::fs::write(&path, "one\ntwo\nthree\nfou").unwrap();
        let mut log = logs(folder.path(), Some("worker-1")).chosen().unwrap().remove(0);
        assert_eq!(log.tail(2).unwrap(), ["two", "three"], "a line without an end is not shown yet");
        std::fs::write(&path, "one\ntwo\nthree\nfour\n").unwrap();
        assert_eq!(log.more().unwrap(), ["four"]);
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(log.more().unwrap(), ["new"]);
        std::fs::remove_file(&path).unwrap();
        assert!(log.more().unwrap().is_empty());
    }

    #[test]
    fn an_unknown_part_is_refused_with_those_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |part| logs(folder.path(), part).chosen().unwrap_err().to_string();
        assert!(refused(None).contains("ternfleet up"), "{}", refused(None));
        std::fs::create_dir(folder.path().join("logs")).unwrap();
        std::fs::write(folder.path().join("logs/coordinator.log"), "").unwrap();
        std::fs::create_dir(folder.path().join("pods")).unwrap();
        std::fs::write(folder.path().join("pods/rented-local-1.log"), "").unwrap();
        let text = refused(Some("worker-9"));
        assert!(text.ends_with("known are: coordinator, rented-local-1"), "{text}");
    }
}
