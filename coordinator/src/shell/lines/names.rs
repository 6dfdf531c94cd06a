//! Which lines repeat a name that an earlier line has. Memory is bounded whatever the number of lines: digests of names are
//! sorted in runs, runs that do not fit go to a scratch file, and the runs are merged at the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Names of a run: 32 MiB.
pub(super) const RUN_NAMES: usize = 1 << 20;
/// Bytes of a digest and a line, as they are in the file.
const ENTRY_BYTES: usize = 20;
const READ_BYTES: usize = 3_000 * ENTRY_BYTES;

/// By digest, then by line. Two names with the same 128 bits will not be met.
type Entry = (u128, u32);

#[derive(Debug)]
pub(super) struct Names {
    run: Vec<Entry>,
    run_names: usize,
    scratch: Option<PathBuf>,
    spilled: Option<Spilled>,
}

#[derive(Debug)]
struct Spilled {
    file: BufWriter<File>,
    /// Where each run ends, in bytes.
    ends: Vec<u64>,
}

impl Names {
    pub(super) fn new(run_names: usize, scratch: Option<&Path>) -> Names {
        Names { run: Vec::new(), run_names, scratch: scratch.map(Path::to_owned), spilled: None }
    }

    pub(super) fn add(&mut self, name: &str, line: u32) -> io::Result<()> {
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
        self.run.push((u128::from_le_bytes(digest), line));
        if self.run.len() >= self.run_names { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<()> {
        self.run.sort_unstable();
        let spilled = match &mut self.spilled {
            Some(spilled) => spilled,
            None => {
                let file = match &self.scratch {
                    Some(scratch) => tempfile::tempfile_in(scratch)?,
                    None => tempfile::tempfile()?,
                };
                self.spilled.insert(Spilled { file: BufWriter::new(file), ends: Vec::new() })
            }
        };
        for (digest, line) in &self.run {
            spilled.file.write_all(&digest.to_le_bytes())?;
            spilled.file.write_all(&line.to_le_bytes())?;
        }
        let before = spilled.ends.last().copied().unwrap_or(0);
        spilled.ends.push(before + (self.run.len() * ENTRY_BYTES) as u64);
        self.run.clear();
        Ok(())
    }

    /// The lines whose name an earlier line has, ascending.
    pub(super) fn repeated(mut self) -> io::Result<Vec<u32>> {
        let mut found = Repeated::default();
        if self.spilled.is_none() {
            self.run.sort_unstable();
            self.run.into_iter().for_each(|entry| found.take(entry));
        } else {
            self.spill()?;
            drop(std::mem::take(&mut self.run));
            if let Some(Spilled { file, ends }) = self.spilled {
                let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                merge(&file, &ends, &mut found)?;
            }
        }
        found.lines.sort_unstable();
        Ok(found.lines)
    }
}

/// Sees all entries in their order.
#[derive(Debug, Default)]
struct Repeated {
    last: Option<u128>,
    lines: Vec<u32>,
}

impl Repeated {
    fn take(&mut self, (digest, line): Entry) {
        if self.last.replace(digest) == Some(digest) {
            self.lines.push(line);
        }
    }
}

fn merge(file: &File, ends: &[u64], found: &mut Repeated) -> io::Result<()> {
    let begins = std::iter::once(0).chain(ends.iter().copied());
    let mut runs: Vec<Run<'_>> = begins.zip(ends).map(|(at, end)| Run::new(file, at, *end)).collect();
    let mut heads = BinaryHeap::new();
    for (place, run) in runs.iter_mut().enumerate() {
        heads.extend(run.next()?.map(|entry| Reverse((entry, place))));
    }
    while let Some(Reverse((entry, place))) = heads.pop() {
        found.take(entry);
        heads.extend(runs[place].next()?.map(|entry| Reverse((entry, place))));
    }
    Ok(())
}

struct Run<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl<'a> Run<'a> {
    fn new(file: &'a File, at: u64, end: u64) -> Run<'a> {
        Run { file, at, end, buffer: Vec::new(), used: 0 }
    }

    fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.used == self.buffer.len() {
            let bytes = ((self.end - self.at) as usize).min(READ_BYTES);
            self.buffer.resize(bytes, 0);
            self.file.read_exact_at(&mut self.buffer, self.at)?;
            self.at += bytes as u64;
            self.used = 0;
        }
        let rest = &self.buffer[self.used..];
        let Some((digest, rest)) = rest.split_first_chunk::<16>() else { return Ok(None) };
        let Some(line) = rest.first_chunk::<4>() else { return Ok(None) };
        self.used += ENTRY_BYTES;
        Ok(Some((u128::from_le_bytes(*digest), u32::from_le_bytes(*line))))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn repeated_names_are_found_across_runs_that_do_not_fit_into_memory() {
        for (lines, names, run_names) in
            [(0, 1, 8), (7, 3, 8), (8, 100, 8), (5_000, 3_000, 64), (5_000, 9, 1_000)]
        {
            let name = |line: u32| format!("name-{}", (u64::from(line) * 7_919) % names);
            let mut found = Names::new(run_names, None);
            let (mut seen, mut expected) = (HashSet::new(), Vec::new());
            for line in 0..lines {
                found.add(&name(line), line).unwrap();
                assert!(found.run.len() < run_names, "no more than a run is held");
                if !seen.insert(name(line)) {
                    expected.push(line);
                }
            }
            assert_eq!(found.repeated().unwrap(), expected, "{lines} lines, {names} names");
        }
    }
}
