//! Pods that the coordinator of `up` rents on this machine: its configuration, and their end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::join_all;
use serde_json::json;
use ternfleet_cloud::Provider;
use ternfleet_cloud::local::{Local, Options};

use ternfleet_coordinator::simulate::PodSpec;
use ternfleet_engine::host::Topology;
use ternfleet_proto::message::{ScaleDials, ScaleView};
use ternfleet_proto::table::ApiVerb;

use super::shares::{Share, shares};
use crate::client::{Fleet, Patience};
use crate::model_file::name_of;

/// Pods are looked at, and planned for, this often.
const TICK_MS: u64 = 1_000;
/// A pod whose coordinator is gone ends itself after so long: nothing outlives a killed fleet for longer.
const LEASE_S: u64 = 10;
/// Without work a pod stays for so long.
const IDLE_S: u64 = 15;
const DRAIN_S: u64 = 5;
/// From its start to the first token, until it is measured.
const BOOT_S: u64 = 3;
/// Between two looks at what is rented still.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Pods hand back their jobs and are ended within this time, or the rest is ended without the coordinator.
const RETURN_WITHIN: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_millis(4_500);
/// Bytes of weights that a thread reads in a second, several sequences at once: a guess until a pod is measured.
const BYTES_PER_THREAD_S: f64 = 4e9;

/// From so many to so many pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

/// `0..2`, or `2` for at most two.
pub(crate) fn parse_range(text: &str) -> Result<Range, String> {
    let (min, max) = text.split_once("..").unwrap_or(("0", text));
    match (min.parse(), max.trim_start_matches('=').parse()) {
        (Ok(min), Ok(max)) if min <= max && (1..=256).contains(&max) => Ok(Range { min, max }),
        _ => Err(format!("{text:?} is not a range of pods: write MIN..MAX, such as 0..2")),
    }
}

/// What the pods run, and how many there may be.
#[derive(Debug)]
pub(crate) struct Rented<'a> {
    pub(crate) range: Range,
    pub(crate) nats: String,
    pub(crate) model: &'a Path,
    pub(crate) price_usd_per_hour: f64,
    pub(crate) threads: Option<usize>,
    pub(crate) slots: Option<u32>,
    pub(crate) shares: Vec<Share>,
}

/// The folder of the pods' cards and logs.
pub(crate) fn folder(root: &Path) -> PathBuf {
    root.join("pods")
}

impl Rented<'_> {
    /// The coordinator's configuration, as TOML: a string of JSON is one of TOML.
    pub(crate) fn configuration(&self, root: &Path) -> anyhow::Result<String> {
        let program = std::env::current_exe().context("the path of this program is not known")?;
        let program = program.display().to_string();
        let model =
            self.model.canonicalize().with_context(|| format!("no model at {}", self.model.display()))?;
        let name = name_of(&model)?;
        let Guess { threads, rate_tok_s: rate } = guess(&model, self.threads, &self.shares);
        let list = |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let cpus: Vec<String> = self.shares.iter().map(|share| list(&share.cpus)).collect();
        let model = model.display().to_string();
        let mut arguments: Vec<&str> = vec![
            "attached", "--cpus", "{cpus}", "--", &program, "worker", "--nats", &self.nats, "--model", &model,
        ];
        arguments.extend(["--threads", "{threads}", "--price-usd-per-hour", "{price}"]);
        arguments.extend(["--pod-class", "{class}", "--pod", "{name}"]);
        let slots = self.slots.map(|slots| slots.to_string());
        if let Some(slots) = &slots {
            arguments.extend(["--slots", slots]);
        }
        let folder = folder(root).display().to_string();
        let Range { min, max } = self.range;
        Ok(format!(
            "[scale]\nprovider = \"local\"\nfleet = \"rented\"\npods_min = {min}\npods_max = {max}\n\
             tick_ms = {TICK_MS}\nlease_s = {LEASE_S}\nidle_limit_s = {IDLE_S}\ndrain_limit_s = {DRAIN_S}\n\
             ready_limit_s = 120\nreconcile_s = 60\n\n\
             [[scale.classes]]\nname = \"local\"\nmodel = {name}\nprice_usd_per_hour = \
             {price:.6}\nrate_tok_s = {rate:.1}\n\
             boot_s = {BOOT_S}\nloss_per_hour = 0.0\npods_max = {max}\nthreads = {threads}\n\n\
             [scale.local]\nprogram = {program}\narguments = {arguments}\nfolder = {folder}\ncpus = {cpus}\n",
            name = json!(name),
            price = self.price_usd_per_hour,
            program = json!(program),
            arguments = json!(arguments),
            folder = json!(folder),
            cpus = json!(cpus),
        ))
    }
}

/// What a pod of this machine is taken for until one is measured.
struct Guess {
    threads: usize,
    rate_tok_s: f64,
}

fn guess(model: &Path, threads: Option<usize>, shares: &[Share]) -> Guess {
    let bytes = std::fs::metadata(model).map_or(1, |facts| facts.len().max(1));
    let threads = threads.or(shares.first().map(|share| share.threads)).unwrap_or(1);
    let rate_tok_s = (BYTES_PER_THREAD_S * threads as f64 / bytes as f64).clamp(2.0, 1_000.0);
    Guess { threads, rate_tok_s }
}

/// The class of up to `count` pods of this machine as a market offers it, before any has been measured.
pub(crate) fn guessed_class(model: &Path, count: u32, price_usd_per_hour: f64) -> PodSpec {
    let guess = guess(model, None, &shares(count as usize, &Topology::read()));
    PodSpec { boot_s: BOOT_S as f64, ..PodSpec::new("local", count, price_usd_per_hour, guess.rate_tok_s) }
}

/// The pods that a fleet in the folder `root` has rented; nothing can be ordered from it.
pub(crate) fn provider(root: &Path) -> anyhow::Result<Local> {
    let options = Options {
        program: PathBuf::new(),
        arguments: Vec::new(),
        classes: Vec::new(),
        pods_max: 0,
        folder: folder(root),
        cpus: Vec::new(),
        grace: GRACE,
    };
    Ok(Local::new(options)?)
}

/// Has the coordinator give back every pod, and waits until it has: workers hand back their jobs, and each pod's meter
/// is read to its end.
pub(crate) async fn return_all(fleet: &Fleet) -> anyhow::Result<()> {
    let began = Instant::now();
    let none = ScaleDials { pods_min: Some(0), pods_max: Some(0), ..ScaleDials::default() };
    let mut view: ScaleView = fleet.ask(ApiVerb::ScaleSet, &none, Patience::Short).await?;
    while !view.pods.is_empty() {
        if began.elapsed() > RETURN_WITHIN {
            bail!("{} pod(s) were not returned within {} s", view.pods.len(), RETURN_WITHIN.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
        view = fleet.ask(ApiVerb::ScaleShow, &ScaleDials::default(), Patience::Short).await?;
    }
    Ok(())
}

/// Ends every pod that is left, side by side; the coordinator is gone, so nobody rents new ones.
pub(crate) async fn end(root: &Path) -> anyhow::Result<()> {
    if !folder(root).exists() {
        return Ok(());
    }
    let local = provider(root)?;
    let pods = local.list().await?;
    let ended = join_all(pods.iter().map(|pod| local.terminate(&pod.id))).await;
    match ended.into_iter().find_map(Result::err) {
        None => Ok(()),
        Some(fault) => bail!("a rented pod may still run: {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_people_write_them() {
        assert_eq!(parse_range("0..2"), Ok(Range { min: 0, max: 2 }));
        assert_eq!(parse_range("1..=3"), Ok(Range { min: 1, max: 3 }));
        assert_eq!(parse_range("4"), Ok(Range { min: 0, max: 4 }));
        for wrong in ["", "3..1", "0..0", "a..b", "0..1000"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }
}
