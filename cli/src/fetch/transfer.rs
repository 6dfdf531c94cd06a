//! Bringing the bytes: several connections with a chunk each, or one that reads it all.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::http::{Answer, Fault, Opened};
use super::meter::Meter;
use super::part::Part;
use super::{Wanted, http};

const BUFFER_BYTES: usize = 256 << 10;
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often a pause looks whether it is still of use.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How many failures in a row are tolerated, and for how long each is waited out.
#[derive(Debug)]
pub(super) struct Patience {
    borne: u32,
    most: u32,
}

impl Patience {
    pub(super) fn new(most: u32) -> Self {
        Self { borne: 0, most }
    }

    /// Something came: the count starts over.
    fn restore(&mut self) {
        self.borne = 0;
    }

    /// Waits before the next try; an error when it is enough. Twice as long each time, and never exactly as long as
    /// anybody else, unless the server named a time.
    pub(super) fn bear(
        &mut self,
        reason: &str,
        after: Option<Duration>,
        pointless: impl Fn() -> bool,
    ) -> anyhow::Result<()> {
        if self.borne == self.most {
            let tries =
                if self.most == 0 { "one try".to_owned() } else { format!("{} tries", self.most + 1) };
            bail!(
                "{reason}; gave up after {tries}. The downloaded part is kept: run the same command to \
                 continue"
            );
        }
        let doubled = PAUSE_MIN.saturating_mul(1 << self.borne.min(16)).min(PAUSE_MAX);
        let spread = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
        let pause = after.unwrap_or_else(|| doubled.mul_f64(0.75 + 0.5 * spread));
        self.borne += 1;
        let until = Instant::now() + pause;
        while Instant::now() < until && !pointless() {
            std::thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}

/// What the connections share.
struct Work<'a> {
    wanted: &'a Wanted<'a>,
    part: &'a Part,
    validator: Option<&'a str>,
    meter: &'a Meter,
    chunks: Mutex<VecDeque<(u64, Range<u64>)>>,
    connections: AtomicUsize,
    /// The first fault ends all of them.
    over: AtomicBool,
    fault: Mutex<Option<anyhow::Error>>,
}

/// How a chunk ended that did not fail for good.
enum Ended {
    Whole,
    /// The server asks for fewer connections, and this one is not the last.
    TooMany,
}

/// Fetches what `part` lacks.
pub(super) fn by_ranges(
    wanted: &Wanted<'_>,
    part: &Part,
    validator: Option<&str>,
    meter: &Meter,
) -> anyhow::Result<()> {
    let mut connections = wanted.connections;
    loop {
        let chunks: VecDeque<_> = part.missing().into();
        if chunks.is_empty() {
            return part.sync().context("cannot write the file to the disk");
        }
        one_round(wanted, part, validator, meter, chunks, connections)?;
        // A connection that was one too many may have given its chunk back after all others had ended.
        connections = 1;
    }
}

fn one_round(
    wanted: &Wanted<'_>,
    part: &Part,
    validator: Option<&str>,
    meter: &Meter,
    chunks: VecDeque<(u64, Range<u64>)>,
    connections: usize,
) -> anyhow::Result<()> {
    let connections = connections.min(chunks.len());
    let work = Work {
        wanted,
        part,
        validator,
        meter,
        chunks: Mutex::new(chunks),
        connections: AtomicUsize::new(connections),
        over: AtomicBool::new(false),
        fault: Mutex::new(None),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..connections).map(|_| scope.spawn(|| work.run())).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            meter.tick();
            std::thread::sleep(LOOK_EVERY);
        }
    });
    match work.fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}

impl Work<'_> {
    fn run(&self) {
        while let Some((chunk, range)) = self.next() {
            match self.bring(chunk, range.clone()) {
                Ok(Ended::Whole) => {}
                Ok(Ended::TooMany) => {
                    self.give_back(chunk, range);
                    return;
                }
                Err(fault) => {
                    let mut first = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(fault);
                    self.over.store(true, Ordering::Release);
                }
            }
        }
    }

    fn next(&self) -> Option<(u64, Range<u64>)> {
        if self.over.load(Ordering::Acquire) {
            return None;
        }
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn give_back(&self, chunk: u64, range: Range<u64>) {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).push_front((chunk, range));
    }

    /// Brings one chunk, with as many connections one after the other as it takes.
    fn bring(&self, chunk: u64, range: Range<u64>) -> anyhow::Result<Ended> {
        let mut patience = Patience::new(self.wanted.retries);
        let mut at = range.start;
        let mut buffer = vec![0; BUFFER_BYTES];
        while at < range.end {
            let before = at;
            let fault = match self.wanted.source.open(at..range.end, self.validator) {
                Ok(opened) => self.drain(opened, &mut at, range.end, &mut buffer)?,
                Err(fault) => Some(fault),
            };
            if at > before {
                patience.restore();
            }
            match fault {
                None => {}
                Some(Fault::Final(reason)) => bail!(reason),
                Some(Fault::Passing { reason, after, crowded }) => {
                    if crowded && self.leaves_another() {
                        self.meter.take_back(at - range.start);
                        return Ok(Ended::TooMany);
                    }
                    if patience.borne > 0 {
                        self.meter.note(format_args!("{reason}; retrying"));
                    }
                    patience.bear(&reason, after, || self.over.load(Ordering::Acquire))?;
                    if self.over.load(Ordering::Acquire) {
                        return Ok(Ended::Whole); // It is not; but nobody asks any more.
                    }
                }
            }
        }
        self.part.done(chunk)?;
        Ok(Ended::Whole)
    }

    /// Takes one connection off the count, if that leaves one.
    fn leaves_another(&self) -> bool {
        let fewer = |n: usize| (n > 1).then(|| n - 1);
        self.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).is_ok()
    }

    /// Writes what comes to its place; `at` moves along.
    fn drain(
        &self,
        mut opened: Opened,
        at: &mut u64,
        end: u64,
        buffer: &mut [u8],
    ) -> anyhow::Result<Option<Fault>> {
        if let Answer::Whole { .. } = opened.answer {
            let source = self.wanted.source;
            anyhow::ensure!(
                self.validator.is_none(),
                "the file on {} changed during the download: run the command again to start from the \
                 beginning",
                source.host()
            );
            return Ok(Some(source.passing("it sends the whole file in place of a range".to_owned())));
        }
        while *at < end {
            if self.over.load(Ordering::Acquire) {
                return Ok(None);
            }
            let room = buffer.len().min(usize::try_from(end - *at).unwrap_or(usize::MAX));
            match opened.body.read(&mut buffer[..room]) {
                Ok(0) => {
                    return Ok(Some(self.wanted.source.passing("the connection ended too early".to_owned())));
                }
                Ok(n) => {
                    self.part.write_at(&buffer[..n], *at).context(
                        "cannot write to the disk (the downloaded part is kept: run the same command to \
                         continue)",
                    )?;
                    *at += n as u64;
                    self.meter.add(n as u64);
                }
                Err(reason) => return Ok(Some(self.wanted.source.passing(reason.to_string()))),
            }
        }
        Ok(None)
    }
}

/// Reads all of it from a server that knows no ranges; a failure starts over.
pub(super) fn in_one_piece(
    wanted: &Wanted<'_>,
    first: http::Opened,
    path: &Path,
    total: Option<u64>,
    meter: &Meter,
) -> anyhow::Result<()> {
    let fault = || format!("cannot write {}", path.display());
    let mut patience = Patience::new(wanted.retries);
    let mut opened = Ok(first);
    loop {
        let failed = match opened {
            Err(Fault::Final(reason)) => bail!(reason),
            Err(Fault::Passing { reason, after, .. }) => (reason, after),
            Ok(answer) => {
                let mut file = File::create(path).with_context(fault)?;
                meter.restart();
                match copy(answer.body, &mut file, wanted.bytes.or(total), meter).with_context(fault)? {
                    Ok(()) => return file.sync_all().with_context(fault),
                    Err(reason) => (format!("{}: {reason}", wanted.source.host()), None),
                }
            }
        };
        patience.bear(&failed.0, failed.1, || false)?;
        opened = wanted.source.open(0..u64::MAX, None);
    }
}

/// The outer error is the disk's, the inner one the network's.
fn copy(
    mut from: impl Read,
    to: &mut File,
    total: Option<u64>,
    meter: &Meter,
) -> std::io::Result<Result<(), String>> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = 0;
    loop {
        meter.tick();
        match from.read(&mut buffer) {
            Err(reason) => return Ok(Err(reason.to_string())),
            Ok(0) if total.is_some_and(|total| done < total) => {
                return Ok(Err("the connection ended too early".to_owned()));
            }
            Ok(0) => return Ok(Ok(())),
            Ok(n) => {
                to.write_all(&buffer[..n])?;
                done += n as u64;
                meter.add(n as u64);
                if total.is_some_and(|total| done > total) {
                    return Ok(Err("more bytes arrived than announced".to_owned()));
                }
            }
        }
    }
}
