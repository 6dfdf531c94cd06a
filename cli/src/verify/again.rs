//! Lines run again on this machine, by the same functions that a worker uses, many at once: the tokens must be the same.
//!
//! A thread of its own reads and tokenizes, so that the engine never waits for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use ternfleet_engine::{Engine, Event, Head, Options, SequenceId, Speculation, StopReason};
use ternfleet_proto::message::{Finish, Generated, Generation, Line};
use ternfleet_proto::openai::{ModelDefaults, parse_line};
use ternfleet_proto::proof::{FileDigest, Manifest};
use ternfleet_proto::{BatchId, Digest, JobKey};
use ternfleet_text::Sampling;
use ternfleet_text::constraint;
use ternfleet_worker::core::Kept;
use ternfleet_worker::language::Language;
use ternfleet_worker::request::{Prepared, prepare};
use ternfleet_worker::transcript::{Transcript, Whole};

use super::{Fault, Kind, OutputLine, Proof, Share};
use crate::answers;
use crate::model_file::{ModelFile, threads};

/// Characters of a text that a fault shows.
const SHOWN_CHARS: usize = 24;

/// What to run, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice<'a> {
    pub(crate) results: &'a Path,
    pub(crate) input: &'a Path,
    pub(crate) manifest: Option<&'a Manifest>,
    pub(crate) model: Option<&'a Path>,
    /// These lines alone, if there are any.
    pub(crate) lines: &'a [u32],
    pub(crate) share: Share,
    pub(crate) head: Head,
    pub(crate) threads: Option<usize>,
    /// Lines at once.
    pub(crate) batch: usize,
}

/// What was run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Again {
    pub(crate) lines: u64,
    pub(crate) same: u64,
    /// Lines of engines that gave no evidence, which cannot be run again.
    pub(crate) unproved: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// Of the engine's steps, without its loading.
    pub(crate) engine_s: f64,
}

impl Again {
    pub(crate) fn in_words(&self) -> String {
        let Again { lines, same, unproved, prompt_tokens, completion_tokens, engine_s } = self;
        let rate = *completion_tokens as f64 / engine_s.max(1e-9);
        let without = match unproved {
            0 => String::new(),
            some => format!("; {some} lines have no evidence and were left out"),
        };
        format!(
            "{same} of {lines} lines gave the same bits here; {prompt_tokens} tokens in, {completion_tokens} out, \
             {rate:.0} tok/s{without}"
        )
    }
}

/// The model that runs here.
struct Here {
    language: Language,
    sampling: Sampling,
    name: String,
    digest: String,
    numerics: &'static str,
    context: usize,
}

/// A line that is ready to run.
struct Ready {
    number: u32,
    proof: Proof,
    body: Value,
    prepared: Prepared,
}

/// Runs the chosen lines.
pub(crate) fn run(choice: &Choice<'_>) -> anyhow::Result<(Again, Vec<Fault>)> {
    let mut faults = Vec::new();
    if let Some(signed) = choice.manifest.and_then(|manifest| manifest.statement.input.as_ref()) {
        let found = digest_of(choice.input)?;
        if found != *signed {
            let message = format!("{} is not the input that was signed", choice.input.display());
            faults.push(Fault::of_all(Kind::Input, message));
        }
    }
    let file = ModelFile::open(choice.model)?;
    let manifest = file.manifest()?;
    let options = Options {
        threads: Some(threads(choice.threads)),
        max_sequences: choice.batch,
        head: choice.head,
        prefix_cache: true,
        speculation: Speculation::TAIL,
        ..Options::default()
    };
    let mut engine = file.load(&options)?;
    let here = Here {
        language: Language::of(file.tokenizer()?, manifest.as_ref().and_then(|manifest| manifest.tools)),
        sampling: manifest.map_or_else(Default::default, |manifest| manifest.sampling),
        name: file.name()?,
        digest: ternfleet_worker::digest_of_file(&file.path)?,
        numerics: engine.info().numerics,
        context: engine.info().max_context,
    };
    if let Some(fault) = choice.manifest.and_then(|manifest| here.differs(manifest)) {
        faults.push(fault);
        return Ok((Again::default(), faults));
    }
    let mut again = Again::default();
    let (sender, ready) = sync_channel(2 * choice.batch);
    std::thread::scope(|scope| {
        let preparing = scope.spawn(|| {
            let mut source = Source::open(choice, &here)?;
            source.send_all(sender)?;
            anyhow::Ok((source.unproved, source.asked_for))
        });
        drive(&mut engine, &here, &ready, choice.batch, &mut again, &mut faults)?;
        drop(ready);
        let (unproved, left) =
            preparing.join().map_err(|_| anyhow::anyhow!("the reading thread panicked"))??;
        again.unproved = unproved;
        let without =
            |line| Fault::of_line(line, Kind::Failed, "it has no answer that can be run again".to_owned());
        faults.extend(left.into_iter().map(without));
        anyhow::Ok(())
    })?;
    faults.sort_by_key(|fault| fault.line);
    Ok((again, faults))
}

impl Here {
    /// The batch ran on something else.
    fn differs(&self, manifest: &Manifest) -> Option<Fault> {
        let ran = &manifest.statement.models;
        let same_model = |digest: &str| digest == self.digest;
        if ran.is_empty() || ran.iter().any(|ran| same_model(&ran.digest) && self.computes(&ran.numerics)) {
            return None;
        }
        let told = match ran.iter().find(|ran| same_model(&ran.digest)) {
            Some(ran) => format!(
                "the batch ran with the arithmetic {}, and this engine computes {}: choose another --head",
                ran.numerics, self.numerics
            ),
            None => format!(
                "the batch ran on {} ({}), and this is {} ({}): name its model with --model",
                ran[0].name, ran[0].digest, self.name, self.digest
            ),
        };
        Some(Fault::of_all(Kind::Model, told))
    }

    fn computes(&self, numerics: &str) -> bool {
        numerics == self.numerics || numerics == constraint::numerics(self.numerics)
    }

    /// The digest of a request, as a worker here would have computed it.
    fn request(&self, generation: &Generation, prepared: &Prepared) -> Digest {
        let numerics = match generation.is_constrained() {
            true => constraint::numerics(self.numerics),
            false => self.numerics.to_owned(),
        };
        prepared.asked.request(&self.digest, &numerics)
    }
}

/// Results and input, read side by side.
struct Source<'a> {
    choice: &'a Choice<'a>,
    here: &'a Here,
    results: Lines<BufReader<File>>,
    input: Lines<BufReader<File>>,
    /// Lines of the input read so far.
    read: u32,
    lot: u64,
    unproved: u64,
    /// Lines that were named and have not come yet.
    asked_for: BTreeSet<u32>,
}

type Prepares = Result<Box<Ready>, Fault>;

impl<'a> Source<'a> {
    fn open(choice: &'a Choice<'a>, here: &'a Here) -> anyhow::Result<Source<'a>> {
        let open = |path: &Path| {
            let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
            anyhow::Ok(BufReader::with_capacity(1 << 18, file).lines())
        };
        let mut lot = [0; 8];
        getrandom::fill(&mut lot).context("the system gives no random numbers")?;
        let (results, input) = (open(choice.results)?, open(choice.input)?);
        let asked_for = choice.lines.iter().copied().collect();
        let lot = u64::from_le_bytes(lot);
        Ok(Source { choice, here, results, input, read: 0, lot, unproved: 0, asked_for })
    }

    /// Prepares every chosen line. Ends early when nobody listens any more.
    fn send_all(&mut self, to: SyncSender<Prepares>) -> anyhow::Result<()> {
        while let Some(text) = self.results.next() {
            let text = text.context("the results cannot be read")?;
            let parsed = OutputLine::parse(&text).map_err(anyhow::Error::msg);
            let parsed = parsed
                .with_context(|| format!("a line of {} is no output line", self.choice.results.display()))?;
            let number = parsed.ternfleet.line;
            let Some(body) = parsed.response.map(|response| response.body).filter(|_| self.chooses(number))
            else {
                continue;
            };
            let Some(proof) = parsed.ternfleet.proof else {
                self.unproved += 1;
                continue;
            };
            self.asked_for.remove(&number);
            let prepared = match self.input_line(number)? {
                Some(asked) => self.prepare(number, &asked, &parsed.id, proof, body),
                None => {
                    let message = "the input has no such line, or the results are not in its order";
                    Err(Fault::of_line(number, Kind::Input, message.to_owned()))
                }
            };
            if to.send(prepared).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn chooses(&self, number: u32) -> bool {
        match self.choice.lines {
            [] => {
                let drawn = Digest::of_parts(&[&self.lot.to_le_bytes(), &number.to_le_bytes()]).short();
                self.choice.share.holds(drawn)
            }
            lines => lines.contains(&number),
        }
    }

    /// This line of the input; lines come in ascending order.
    fn input_line(&mut self, number: u32) -> anyhow::Result<Option<String>> {
        while self.read < number {
            let Some(text) = self.input.next() else { return Ok(None) };
            let text = text.context("the input cannot be read")?;
            self.read += 1;
            if self.read == number {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    fn prepare(&self, number: u32, asked: &str, id: &str, proof: Proof, body: Value) -> Prepares {
        let fault = |kind, message: String| Fault::of_line(number, kind, message);
        let here = self.here;
        let batch = self.batch(id).map_err(|message| fault(Kind::Form, message))?;
        let job = JobKey { batch, index: number - 1 };
        let name = self.choice.manifest.and_then(|manifest| manifest.statement.model.clone());
        let defaults = ModelDefaults { name, ..ModelDefaults::default() };
        let parsed = parse_line(asked.as_bytes(), u64::from(number), &job, &defaults);
        let (_, generation): (Line, Generation) =
            parsed.map_err(|(_, failure)| fault(Kind::Input, failure.message))?;
        let prepared = prepare(&generation, Kept::default(), &here.language, &here.sampling, here.context);
        let prepared = prepared.map_err(|failure| fault(Kind::Failed, failure.message))?;
        if prepared.asked.seed != proof.seed {
            let shown = |seed: Option<u64>| seed.map_or("none".to_owned(), |seed| seed.to_string());
            let message = format!(
                "another seed: the answer was made with {}, and the input asks for {}",
                shown(proof.seed),
                shown(prepared.asked.seed)
            );
            return Err(fault(Kind::Seed, message));
        }
        if here.request(&generation, &prepared) != proof.request {
            let message =
                "another request: model, prompt, sampling, limits or constraint are not those that were run";
            return Err(fault(Kind::Request, message.to_owned()));
        }
        Ok(Box::new(Ready { number, proof, body, prepared }))
    }

    /// The batch of a line, from its `id`.
    fn batch(&self, id: &str) -> Result<BatchId, String> {
        if let Some(manifest) = self.choice.manifest {
            return Ok(manifest.statement.batch.clone());
        }
        let name = id.strip_prefix("batch_req_").and_then(|rest| rest.rsplit_once('_'));
        let batch = name.and_then(|(batch, _)| format!("batch_{batch}").parse().ok());
        batch.ok_or_else(|| format!("its id {id:?} does not name a batch"))
    }
}

/// A line that runs.
struct Running {
    number: u32,
    proof: Proof,
    body: Value,
    outputs: Vec<Output>,
    open: usize,
}

/// One of its choices.
struct Output {
    transcript: Transcript,
    ids: Vec<u32>,
    /// Nothing is to be generated.
    scores_only: bool,
    finish: Finish,
}

/// Runs what comes until nothing more does.
fn drive(
    engine: &mut Engine,
    here: &Here,
    ready: &Receiver<Prepares>,
    batch: usize,
    again: &mut Again,
    faults: &mut Vec<Fault>,
) -> anyhow::Result<()> {
    let mut running: BTreeMap<u32, Running> = BTreeMap::new();
    let mut places: HashMap<SequenceId, (u32, usize)> = HashMap::new();
    let mut events = Vec::new();
    let mut more = true;
    let mut spent = Duration::ZERO;
    loop {
        while more && places.len() < 2 * batch {
            let next = match running.is_empty() {
                true => ready.recv().ok(),
                false => match ready.try_recv() {
                    Ok(next) => Some(next),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => None,
                },
            };
            match next {
                None => more = false,
                Some(Err(fault)) => faults.push(fault),
                Some(Ok(line)) => {
                    again.lines += 1;
                    again.prompt_tokens += u64::from(line.prepared.prompt_tokens);
                    begin(engine, *line, &mut running, &mut places)?;
                }
            }
        }
        if running.is_empty() {
            break;
        }
        let begun = Instant::now();
        engine.step(&mut events);
        spent += begun.elapsed();
        for event in events.drain(..) {
            match event {
                Event::Prompt { .. } => {}
                Event::Token { sequence, token, .. } => {
                    let Some(&(number, choice)) = places.get(&sequence) else { continue };
                    let Some(output) = running.get_mut(&number).map(|line| &mut line.outputs[choice]) else {
                        continue;
                    };
                    if output.scores_only || output.transcript.stopped() {
                        continue;
                    }
                    output.transcript.push(&here.language, token);
                    output.ids.push(token);
                    if output.transcript.stopped() {
                        engine.cancel(sequence);
                    }
                }
                Event::Finished { sequence, reason, .. } => {
                    let Some((number, choice)) = places.remove(&sequence) else { continue };
                    let Some(line) = running.get_mut(&number) else { continue };
                    line.outputs[choice].finish = match reason {
                        StopReason::Length | StopReason::Context => Finish::Length,
                        _ => Finish::Stop,
                    };
                    line.open -= 1;
                    if line.open == 0
                        && let Some(line) = running.remove(&number)
                    {
                        judge(here, line, again, faults);
                    }
                }
            }
        }
    }
    again.engine_s = spent.as_secs_f64();
    Ok(())
}

fn begin(
    engine: &mut Engine,
    line: Ready,
    running: &mut BTreeMap<u32, Running>,
    places: &mut HashMap<SequenceId, (u32, usize)>,
) -> anyhow::Result<()> {
    let Ready { number, proof, body, prepared } = line;
    let mut outputs = Vec::new();
    for (place, choice) in prepared.choices.into_iter().enumerate() {
        let (transcript, scores_only) = (choice.transcript, choice.scores_only);
        outputs.push(Output { transcript, ids: Vec::new(), scores_only, finish: Finish::Stop });
        let sequence = engine.submit(choice.request).with_context(|| format!("line {number}"))?;
        places.insert(sequence, (number, place));
    }
    let open = outputs.len();
    running.insert(number, Running { number, proof, body, outputs, open });
    Ok(())
}

/// Compares what was generated here with what the results say.
fn judge(here: &Here, line: Running, again: &mut Again, faults: &mut Vec<Fault>) {
    let Running { number, proof, body, outputs, .. } = line;
    let ids: Vec<Vec<u32>> = outputs.iter().map(|output| output.ids.clone()).collect();
    again.completion_tokens += ids.iter().map(|ids| ids.len() as u64).sum::<u64>();
    let echoes: Vec<String> = outputs.iter().map(|output| output.transcript.echo().to_owned()).collect();
    let wholes: Vec<Whole> =
        outputs.into_iter().map(|output| output.transcript.finish(output.finish)).collect();
    let said = answers::choices(&body);
    let told = said.iter().map(|choice| choice.text.as_str());
    let texts = wholes.iter().map(|whole| whole.text.as_str());
    // A message that holds calls has them in place of a text.
    let same_text = wholes.iter().any(|whole| !whole.calls.is_empty()) || told.eq(texts);
    if Generated::answer_digest(&ids) == proof.answer {
        if same_text {
            again.same += 1;
        } else {
            let message = "the tokens are the same, and the text is not theirs: it was changed".to_owned();
            faults.push(Fault::of_line(number, Kind::Text, message));
        }
        return;
    }
    let said: Vec<(String, &str)> =
        echoes.into_iter().zip(said.iter().map(|choice| choice.text.as_str())).collect();
    let message = first_difference(here, &ids, &said)
        .unwrap_or_else(|| "other tokens were generated here, with the same text".to_owned());
    faults.push(Fault::of_line(number, Kind::Tokens, message));
}

/// The first token that leads away from the recorded text.
fn first_difference(here: &Here, ids: &[Vec<u32>], said: &[(String, &str)]) -> Option<String> {
    let differs = |(choice, (ids, (echo, text))): (usize, (&Vec<u32>, &(String, &str)))| {
        let told = text.strip_prefix(echo.as_str()).unwrap_or(text);
        // The last character may need another token to be whole.
        let text_of = |n: usize| here.language.decode(&ids[..n]);
        let fits = |n: &usize| told.starts_with(text_of(*n).trim_end_matches(char::REPLACEMENT_CHARACTER));
        let n_same = (1..=ids.len()).take_while(fits).count();
        let of_choice = if choice == 0 { String::new() } else { format!(" of choice {choice}") };
        let rest: String =
            told.get(text_of(n_same).len()..).unwrap_or_default().chars().take(SHOWN_CHARS).collect();
        match ids.get(n_same) {
            Some(&id) => Some(format!(
                "token {}{of_choice} differs first: here it is {id} ({:?}), the results continue with {rest:?}",
                n_same + 1,
                here.language.token(id).0
            )),
            None if !rest.is_empty() => Some(format!(
                "token {}{of_choice} differs first: here the answer ends, the results continue with {rest:?}",
                n_same + 1
            )),
            None => None,
        }
    };
    ids.iter().zip(said).enumerate().find_map(differs)
}

/// The digest of a file.
fn digest_of(path: &Path) -> anyhow::Result<FileDigest> {
    let said = || format!("{} cannot be read", path.display());
    let mut file = File::open(path).with_context(said)?;
    let mut hasher = blake3::Hasher::new();
    let bytes = std::io::copy(&mut file, &mut hasher).with_context(said)?;
    Ok(FileDigest { bytes, blake3: Digest(*hasher.finalize().as_bytes()) })
}
