//! `ternfleet verify`: checks the answers of a batch without its fleet, against the signed manifest and by running lines
//! again.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use ternfleet_engine::Head;
use ternfleet_proto::Digest;
use ternfleet_proto::proof::{Manifest, ManifestError};

use crate::output::{say, say_json};
use crate::verify::again::{self, Again, Choice};
use crate::verify::lines;
use crate::verify::{Fault, Kind, Share};

/// Faults that are printed one by one.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The answers, as `results --out` wrote them or as the output file of the batch
    #[arg(value_name = "RESULTS", required_unless_present = "manifest")]
    results: Option<PathBuf>,
    /// The batch's signed manifest: checks its signature and its tree, and the results against it
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Public key of the fleet that must have signed, as `ternfleet key proof` prints it
    #[arg(long, value_name = "HEX", requires = "manifest")]
    key: Option<Digest>,
    /// The batch's input: runs its lines again on this machine and compares
    #[arg(long, value_name = "FILE", requires = "results")]
    input: Option<PathBuf>,
    /// Model to run the lines with: its name or file [default: the storyteller]
    #[arg(long, value_name = "NAME|FILE", requires = "input")]
    model: Option<PathBuf>,
    /// Run this share of the lines, chosen at random
    #[arg(long, value_name = "1%", requires = "input", conflicts_with = "line")]
    sample: Option<Share>,
    /// Run this line of the input, from 1; may be given several times
    #[arg(long, value_name = "N", requires = "input", value_parser = clap::value_parser!(u32).range(1..))]
    line: Vec<u32>,
    /// Output head that the fleet used, where it was an approximation
    #[arg(long, value_name = "NAME", requires = "input", default_value_t = Head::Screened)]
    head: Head,
    /// Threads [default: the usable cores, at most 16]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Lines that run in parallel
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u8).range(1..=64))]
    batch: u8,
    /// Print one object on one line
    #[arg(long)]
    json: bool,
}

/// All that was found.
#[derive(Debug, Default)]
struct Found {
    signed_by: Option<Digest>,
    signed_lines: Option<u32>,
    compared: Option<u64>,
    again: Option<Again>,
    faults: Vec<Fault>,
}

impl Verify {
    /// Fails when anything is not as it should be.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut found = Found::default();
        let manifest = match &self.manifest {
            None => None,
            Some(path) => self.manifest(path, &mut found)?,
        };
        // What a broken manifest says about lines says nothing.
        if found.faults.is_empty() {
            self.results(manifest.as_ref(), &mut found)?;
        }
        if self.json {
            found.say_json()?
        } else {
            found.say()?
        }
        Ok(if found.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn manifest(&self, path: &Path, found: &mut Found) -> anyhow::Result<Option<Manifest>> {
        let manifest = match Manifest::read(open(path)?) {
            Ok(manifest) => manifest,
            Err(error @ (ManifestError::Io(_) | ManifestError::Form { .. })) => {
                return Err(error).with_context(|| format!("{} is no manifest", path.display()));
            }
            Err(error) => {
                found.faults.push(Fault::of_all(Kind::Manifest, error.to_string()));
                return Ok(None);
            }
        };
        let by = manifest.signature.public_key;
        found.signed_by = Some(by);
        found.signed_lines = Some(manifest.statement.leaves);
        if let Some(wanted) = self.key.filter(|wanted| *wanted != by) {
            let message = format!("the manifest is signed by {by}, and not by {wanted}");
            found.faults.push(Fault::of_all(Kind::Key, message));
        }
        Ok(Some(manifest))
    }

    fn results(&self, manifest: Option<&Manifest>, found: &mut Found) -> anyhow::Result<()> {
        let Some(results) = &self.results else { return Ok(()) };
        if manifest.is_none() && self.input.is_none() {
            bail!(
                "there is nothing to compare {} with: give the batch's --manifest, or its --input to run lines again",
                results.display()
            );
        }
        if let Some(manifest) = manifest {
            let compared = lines::compare(open(results)?, manifest)?;
            found.compared = Some(compared.lines);
            found.faults.extend(compared.faults);
        }
        if let Some(input) = &self.input {
            let again = Choice {
                results,
                input,
                manifest,
                model: self.model.as_deref(),
                lines: &self.line,
                share: self.sample.unwrap_or_default(),
                head: self.head,
                threads: self.threads.map(usize::from),
                batch: usize::from(self.batch),
            };
            let (again, faults) = again::run(&again)?;
            found.again = Some(again);
            found.faults.extend(faults);
        }
        Ok(())
    }
}

impl Found {
    fn say(&self) -> anyhow::Result<()> {
        if let (Some(by), Some(lines)) = (self.signed_by, self.signed_lines) {
            say(&format!("manifest  {lines} lines, signed by {by}"))?;
        }
        if let Some(lines) = self.compared {
            say(&format!("results   {lines} lines compared with the manifest"))?;
        }
        if let Some(again) = &self.again {
            say(&format!("again     {}", again.in_words()))?;
        }
        for fault in self.faults.iter().take(SHOWN) {
            say(&format!("WRONG     {fault}"))?;
        }
        match self.faults.len() {
            0 => say("ok"),
            faults if faults > SHOWN => say(&format!("WRONG     and {} more", faults - SHOWN)),
            _ => Ok(()),
        }
    }

    fn say_json(&self) -> anyhow::Result<()> {
        say_json(&json!({
            "signed_by": self.signed_by,
            "signed_lines": self.signed_lines,
            "compared_lines": self.compared,
            "again": self.again,
            "faults": self.faults,
        }))
    }
}

fn open(path: &Path) -> anyhow::Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(BufReader::with_capacity(1 << 18, file))
}
