//! Counts the prompts of some lines of a batch file with the real tokenizer, spread evenly over the file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use ternfleet_coordinator::quote::SampledLine;
use ternfleet_proto::message::{Generation, Prompt};
use ternfleet_proto::openai::{LINE_BYTES_MAX, ModelDefaults, is_blank, parse_line};
use ternfleet_proto::{BatchId, JobKey};
use ternfleet_text::{Message, Role, Tokenizer};

/// What was found in the file.
#[derive(Debug)]
pub(super) struct Counted {
    /// Lines with a request that can be run, as far as the sample tells.
    pub(super) lines: u64,
    pub(super) sample: Vec<SampledLine>,
    /// Lines of the sample that would be error lines.
    pub(super) bad: usize,
}

/// Reads the file twice: once to count its lines, once for the sample.
pub(super) fn count(path: &Path, most: usize, tokenizer: &Tokenizer) -> anyhow::Result<Counted> {
    let mut lines: u64 = 0;
    each_line(path, |bytes| lines += u64::from(!is_blank(bytes)))?;
    let batch: BatchId = "quote".parse().context("the name of a quote is an id")?;
    let (mut sample, mut bad) = (Vec::new(), 0);
    let (mut number, mut taken): (u64, u64) = (0, 0);
    each_line(path, |bytes| {
        if is_blank(bytes) {
            return;
        }
        // The n-th of `most` stands at n / most of the file: evenly spread, and the same at every call.
        let due = taken * lines / (most as u64).min(lines.max(1));
        if number >= due && taken < most as u64 {
            let job = JobKey { batch: batch.clone(), index: number as u32 };
            match parse_line(bytes, number + 1, &job, &ModelDefaults::default()) {
                Ok((_, generation)) => sample.push(sampled(&generation, tokenizer)),
                Err(_) => bad += 1,
            }
            taken += 1;
        }
        number += 1;
    })?;
    let good = sample.len() as u64;
    let share = if taken > 0 { good as f64 / taken as f64 } else { 0.0 };
    Ok(Counted { lines: (lines as f64 * share).round() as u64, sample, bad })
}

fn sampled(generation: &Generation, tokenizer: &Tokenizer) -> SampledLine {
    let counted = match &generation.prompt {
        Prompt::Tokens(ids) => Some(ids.len()),
        Prompt::Text(text) => tokenizer.encode(text, true).ok().map(|ids| ids.len()),
        Prompt::Chat(messages) => {
            let known: Option<Vec<Message>> = messages
                .iter()
                .map(|said| Some(Message { role: Role::parse(&said.role)?, content: said.content.clone() }))
                .collect();
            known.and_then(|messages| tokenizer.encode_chat(&messages).ok()).map(|ids| ids.len())
        }
    };
    // A prompt that the tokenizer refuses will be an error line and costs nothing.
    SampledLine {
        prompt_tokens: counted.unwrap_or(0) as u32,
        max_tokens: if counted.is_some() { generation.max_tokens } else { Some(0) },
    }
}

/// Calls for every line without its end. Longer lines than are ever read are cut.
fn each_line(path: &Path, mut call: impl FnMut(&[u8])) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let read =
            reader.by_ref().take(limit).read_until(b'\n', &mut line).context("the file cannot be read")?;
        if read == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && read as u64 == limit {
            reader.skip_until(b'\n').context("the file cannot be read")?;
        }
        call(line.strip_suffix(b"\n").unwrap_or(&line));
    }
}
