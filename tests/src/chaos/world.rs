//! A fleet of real processes, callers that submit batches all the while, and faults one after the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::check::{self, Expected};
use super::cluster::Servers;
use super::faults::{Fault, Places, draw};
use super::processes::{Part, WallClock};
use super::proxy::{Line, Proxy};
use super::thief::{TENANT, Thief};
use crate::program::{self, LocalFleet, STORYTELLER, wait_for};
use crate::sim::Chance;

/// Faults may begin while fewer than so many others last.
const FAULTS_AT_ONCE: usize = 3;
/// Batches under way at a time.
const BATCHES_AT_ONCE: usize = 3;
/// After every fault is repaired, everything must end within this time.
const END_WITHIN: Duration = Duration::from_secs(240);
const SLOTS: usize = 4;

/// A run: who takes part, and for how long things go wrong.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// 1, or 3 for a cluster with three replicas.
    pub servers: usize,
    pub workers: usize,
    pub coordinators: usize,
    pub lasting: Duration,
    pub lines_a_batch: usize,
    /// Pause between faults, drawn between these.
    pub pause_ms: (u64, u64),
    /// Put each server's store on a small tmpfs, where root may mount one, and fill it sometimes.
    pub small_disks: bool,
    /// Sometimes stop a process for longer than the ack wait.
    pub long_stops: bool,
    /// Step wall clocks, where libfaketime is installed.
    pub step_clocks: bool,
    /// The last worker asks another fleet, which no fault reaches, in place of an engine of its own.
    pub upstream: bool,
}

/// What came of a run; the promises are kept when `broken` is empty.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub faults: BTreeMap<&'static str, u64>,
    pub batches: u64,
    /// Batches whose creation was refused because nobody could be reached: nothing was accepted.
    pub refused: u64,
    pub lines: u64,
    pub good: u64,
    pub bad: u64,
    /// Answers in RESULTS that came after the committed one, and those of them that differ.
    pub duplicates: u64,
    pub divergent: u64,
    pub reprefilled_tokens: u64,
    pub completion_tokens: u64,
    /// Jobs that took more than one attempt.
    pub moved: u64,
    pub run_s: f64,
    /// From the last repair to the last batch's end.
    pub settled_s: f64,
    pub small_disks: bool,
    /// Wall clocks can be stepped: libfaketime is installed.
    pub clocks: bool,
    /// What the owner of a stolen worker's key has sent.
    pub forged: u64,
    pub broken: Vec<String>,
}

/// One caller: `ternfleet submit … --out FILE`, which waits through everything.
struct Caller {
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

struct World {
    folder: PathBuf,
    servers: Servers,
    workers: Vec<(Part, Vec<Proxy>)>,
    coordinators: Vec<(Part, Vec<Proxy>)>,
    callers: Vec<Caller>,
    /// How callers reach the fleet.
    connection: Vec<String>,
    begun: u64,
    outcome: Outcome,
    _upstream: Option<LocalFleet>,
}

/// Runs the plan in a folder of its own.
///
/// # Errors
/// When the fleet cannot even be started, or its results cannot be read: what is broken is in the outcome.
pub fn run(plan: &Plan, folder: &Path) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let mut world = World::start(plan, folder)?;
    let expected = world.calm_run(plan)?;
    let thief = Thief::start(&world.servers.site)?;
    let mut chance = Chance::new(plan.seed);
    let storm = Instant::now();
    let mut lasting: Vec<(Instant, Fault)> = Vec::new();
    let mut next = Instant::now();
    while storm.elapsed() < plan.lasting {
        let now = Instant::now();
        for (_, fault) in lasting.extract_if(.., |(until, _)| *until <= now) {
            world.repair(fault)?;
        }
        world.look_after_callers(BATCHES_AT_ONCE)?;
        world.raise_the_dead()?;
        if now >= next && lasting.len() < FAULTS_AT_ONCE {
            let fault = draw(&mut chance, world.places(plan));
            if !lasting.iter().any(|(_, other)| same_part(*other, fault)) && world.begin(fault) {
                *world.outcome.faults.entry(fault.name()).or_default() += 1;
                lasting.push((now + Duration::from_millis(fault.lasts_ms()), fault));
            }
            next = now + Duration::from_millis(chance.within(plan.pause_ms.0, plan.pause_ms.1));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for (_, fault) in lasting {
        world.repair(fault)?;
    }
    let repaired = Instant::now();
    while !world.callers.is_empty() && repaired.elapsed() < END_WITHIN {
        world.look_after_callers(0)?;
        world.raise_the_dead()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    world.outcome.settled_s = repaired.elapsed().as_secs_f64();
    for caller in &mut world.callers {
        let _ = caller.child.kill();
        let name = caller.out.display();
        world.outcome.broken.push(format!("L1: {name} had not ended {END_WITHIN:?} after the last repair"));
    }
    let files = world.finished();
    world.outcome.forged = thief.stop();
    let (site, outcome) = (&world.servers.site, &mut world.outcome);
    check::files(&files, &expected, outcome);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(check::stored(site, outcome)).context("what is stored cannot be read")?;
    outcome.run_s = began.elapsed().as_secs_f64();
    Ok(world.outcome)
}

fn same_part(one: Fault, other: Fault) -> bool {
    let part = |fault: Fault| match fault {
        Fault::KillWorker { place, .. }
        | Fault::StopWorker { place, .. }
        | Fault::DrainWorker { place, .. }
        | Fault::CutWorker { place, .. }
        | Fault::StepWorker { place, .. }
        | Fault::SilenceWorker { place, .. } => (1, place),
        Fault::KillCoordinator { place, .. }
        | Fault::StopCoordinator { place, .. }
        | Fault::StepCoordinator { place, .. }
        | Fault::CutCoordinator { place, .. } => (2, place),
        Fault::KillServer { place, .. } | Fault::StopServer { place, .. } | Fault::FillDisk { place, .. } => {
            (3, place)
        }
        Fault::KillAll { .. } => (0, 0),
    };
    let (one, other) = (part(one), part(other));
    one == other || one.0 == 0 || other.0 == 0
}

impl World {
    fn start(plan: &Plan, folder: &Path) -> anyhow::Result<World> {
        let servers = Servers::start(plan.servers, folder, plan.small_disks)?;
        let caller = servers.site.user_file("tenant", TENANT)?;
        let connection = [
            ("--nats", servers.site.url()),
            ("--nats-credentials-file", caller.display().to_string()),
            ("--nats-root-certificates", servers.site.root_certificates().display().to_string()),
        ];
        let connection = connection.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
        let mut world = World {
            folder: folder.to_owned(),
            connection: connection.collect(),
            servers,
            workers: Vec::new(),
            coordinators: Vec::new(),
            callers: Vec::new(),
            begun: 0,
            outcome: Outcome::default(),
            _upstream: None,
        };
        world.outcome.small_disks = world.servers.small_disks();
        let site = &world.servers.site;
        let file = |path: PathBuf| path.display().to_string();
        let [keys, issuer] = [site.coordinator_credentials(), site.site().join("coordinator/issuer.json")];
        let settings =
            [format!("nats_credentials_file={}", file(keys)), format!("issuer_file={}", file(issuer))];
        let (replicas, monitor) = (plan.servers.to_string(), site.monitor_url(0));
        for place in 0..plan.coordinators {
            let name = format!("c{place}");
            let coordinator = ["coordinator", "--name", &name, "--replicas", &replicas];
            let connection =
                ["--nats-monitoring-url", &monitor, "--set", &settings[0], "--set", &settings[1]];
            let part = world.part(&name, &[&coordinator[..], &connection].concat(), plan.step_clocks)?;
            world.coordinators.push(part);
        }
        let token = format!("nats_join_token={}", world.servers.site.nats(&["token"])?.trim());
        let upstream = match plan.upstream {
            true => Some(LocalFleet::start_in(&folder.join("upstream"), &["--workers", "1"])?),
            false => None,
        };
        let address =
            upstream.as_ref().map(|fleet| format!("{}/v1", fleet.addresses.http.trim_end_matches('/')));
        world._upstream = upstream;
        for place in 0..plan.workers {
            let (name, slots) = (format!("w{place}"), SLOTS.to_string());
            let served = address.as_deref().filter(|_| place + 1 == plan.workers);
            let engine = match served {
                Some(address) => ["--engine", "openai", "--upstream", address],
                None => ["--model", STORYTELLER, "--threads", "1"],
            };
            let worker = [&["worker", "--slots", &slots, "--pod", &name][..], &engine].concat();
            let more = ["--price-usd-per-hour", "0.34", "--set", &token];
            let part = world.part(&name, &[&worker[..], &more].concat(), plan.step_clocks)?;
            world.workers.push(part);
        }
        let parts = world.workers.iter().chain(&world.coordinators);
        world.outcome.clocks = parts.into_iter().all(|(part, _)| part.clock().is_some());
        Ok(world)
    }

    /// A part with a proxy to each server and, if it can be had, a wall clock of its own.
    fn part(&self, name: &str, arguments: &[&str], step_clocks: bool) -> anyhow::Result<(Part, Vec<Proxy>)> {
        let proxies: Vec<Proxy> = (0..self.servers.count())
            .map(|place| Proxy::to(self.servers.port(place)))
            .collect::<std::io::Result<_>>()?;
        let urls: Vec<String> =
            proxies.iter().map(|proxy| format!("tls://127.0.0.1:{}", proxy.port())).collect();
        let certificates = self.servers.site.root_certificates();
        let mut command = vec![program::binary()?.display().to_string()];
        command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        command.extend(["--nats".to_owned(), urls.join(",")]);
        command.extend(["--set".to_owned(), format!("nats_root_certificates={}", certificates.display())]);
        let log = self.folder.join(format!("{name}.log"));
        let clock = match step_clocks {
            true => WallClock::new(self.folder.join(format!("{name}.clock")))?,
            false => None,
        };
        Ok((Part::start(command, log, clock)?, proxies))
    }

    fn places(&self, plan: &Plan) -> Places {
        Places {
            workers: self.workers.len(),
            coordinators: self.coordinators.len(),
            servers: self.servers.count(),
            small_disks: self.servers.small_disks(),
            clocks: self.outcome.clocks,
            long_stops: plan.long_stops,
        }
    }

    /// One batch while nothing is wrong: its answers are what every later batch must bring.
    fn calm_run(&mut self, plan: &Plan) -> anyhow::Result<Expected> {
        let input = check::input(plan.lines_a_batch);
        std::fs::write(self.folder.join("in.jsonl"), &input)?;
        self.submit()?;
        wait_for(Duration::from_secs(180), || {
            Ok(matches!(self.callers[0].child.try_wait(), Ok(Some(_))).then_some(()))
        })
        .context("the undisturbed batch does not end")?;
        let caller = self.callers.remove(0);
        let text = std::fs::read_to_string(&caller.out).with_context(|| {
            let log = std::fs::read_to_string(&caller.log).unwrap_or_default();
            format!("the undisturbed batch has no results; its caller said: {log}")
        })?;
        Expected::read(&text, plan.lines_a_batch)
    }

    fn submit(&mut self) -> anyhow::Result<()> {
        let out = self.folder.join(format!("out-{}.jsonl", self.begun));
        let log = self.folder.join(format!("out-{}.log", self.begun));
        self.begun += 1;
        let (input, target) = (self.folder.join("in.jsonl"), out.display().to_string());
        let input = input.display().to_string();
        let mut command = program::command(&["submit", &input, "--out", &target])?;
        command.args(&self.connection);
        let said = std::fs::File::create(&log)?;
        let child = command.stdout(Stdio::null()).stderr(said).spawn()?;
        self.callers.push(Caller { child, out, log });
        Ok(())
    }

    /// Callers that have ended are looked at; new ones come while there are fewer than `wanted`.
    fn look_after_callers(&mut self, wanted: usize) -> anyhow::Result<()> {
        let mut ended = Vec::new();
        for (at, caller) in self.callers.iter_mut().enumerate() {
            if let Some(status) = caller.child.try_wait()? {
                ended.push((at, status));
            }
        }
        for (at, status) in ended.into_iter().rev() {
            let caller = self.callers.remove(at);
            let said = std::fs::read_to_string(&caller.log).unwrap_or_default();
            match status.code() {
                // Some lines are error lines, on purpose.
                Some(2) => self.outcome.batches += 1,
                _ if !said.contains(" accepted, ") => {
                    self.outcome.refused += 1;
                    std::thread::sleep(Duration::from_millis(200));
                }
                code => {
                    let tail: Vec<&str> = said.lines().rev().take(3).collect();
                    let broken = format!("an accepted batch ended its caller with {code:?}: {tail:?}");
                    self.outcome.broken.push(broken);
                }
            }
        }
        if self.callers.len() < wanted {
            self.submit()?;
        }
        Ok(())
    }

    /// Output files of the callers that came to an end.
    fn finished(&self) -> Vec<PathBuf> {
        let files = (1..self.begun).map(|number| self.folder.join(format!("out-{number}.jsonl")));
        files.filter(|file| file.is_file()).collect()
    }

    /// False when it cannot be done here.
    fn begin(&mut self, fault: Fault) -> bool {
        match fault {
            Fault::KillWorker { place, .. } => self.workers[place].0.kill(),
            Fault::StopWorker { place, .. } => self.workers[place].0.signal(Signal::SIGSTOP),
            Fault::DrainWorker { place, .. } => self.workers[place].0.drain(),
            Fault::CutWorker { place, .. } => set(&self.workers[place].1, Line::Cut),
            Fault::SilenceWorker { place, .. } => set(&self.workers[place].1, Line::Silent),
            Fault::KillCoordinator { place, .. } => self.coordinators[place].0.kill(),
            Fault::StopCoordinator { place, .. } => self.coordinators[place].0.signal(Signal::SIGSTOP),
            Fault::CutCoordinator { place, .. } => set(&self.coordinators[place].1, Line::Cut),
            Fault::KillServer { place, .. } => self.servers.part(place).kill(),
            Fault::StopServer { place, .. } => self.servers.part(place).signal(Signal::SIGSTOP),
            Fault::FillDisk { place, .. } => return self.servers.fill_disk(place),
            Fault::StepWorker { place, off_s, .. } => return step(&self.workers[place].0, off_s),
            Fault::StepCoordinator { place, off_s, .. } => return step(&self.coordinators[place].0, off_s),
            Fault::KillAll { .. } => {
                let parts = self.workers.iter_mut().chain(&mut self.coordinators);
                parts.for_each(|(part, _)| part.kill());
                (0..self.servers.count()).for_each(|place| self.servers.part(place).kill());
            }
        }
        true
    }

    fn repair(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::KillWorker { place, .. } => self.workers[place].0.start_again(),
            Fault::DrainWorker { place, .. } => {
                let part = &mut self.workers[place].0;
                // It was given its time; a worker that has not gone by now is restarted the hard way.
                let gone = wait_for(Duration::from_secs(6), || Ok((!part.is_draining()).then_some(())));
                if gone.is_err() {
                    self.outcome.broken.push("a worker did not drain in time".to_owned());
                    part.kill();
                }
                part.start_again()
            }
            Fault::StopWorker { place, .. } => {
                self.workers[place].0.signal(Signal::SIGCONT);
                Ok(())
            }
            Fault::CutWorker { place, .. } | Fault::SilenceWorker { place, .. } => {
                set(&self.workers[place].1, Line::Open);
                Ok(())
            }
            Fault::KillCoordinator { place, .. } => self.coordinators[place].0.start_again(),
            Fault::StopCoordinator { place, .. } => {
                self.coordinators[place].0.signal(Signal::SIGCONT);
                Ok(())
            }
            Fault::CutCoordinator { place, .. } => {
                set(&self.coordinators[place].1, Line::Open);
                Ok(())
            }
            Fault::KillServer { place, .. } => self.servers.part(place).start_again(),
            Fault::StopServer { place, .. } => {
                self.servers.part(place).signal(Signal::SIGCONT);
                Ok(())
            }
            Fault::FillDisk { place, .. } => self.servers.free_disk(place),
            Fault::StepWorker { place, .. } => {
                step(&self.workers[place].0, 0);
                Ok(())
            }
            Fault::StepCoordinator { place, .. } => {
                step(&self.coordinators[place].0, 0);
                Ok(())
            }
            Fault::KillAll { .. } => {
                // In any order: workers and coordinators find no server at first, and keep trying or are restarted.
                let parts = self.workers.iter_mut().chain(&mut self.coordinators);
                for (part, _) in parts {
                    part.start_again()?;
                }
                (0..self.servers.count()).try_for_each(|place| self.servers.part(place).start_again())
            }
        }
    }

    /// A process that ended by itself (a coordinator whose first connection found nobody) is started again, as the
    /// supervisor of any deployment does it.
    fn raise_the_dead(&mut self) -> anyhow::Result<()> {
        let mut parts = self.workers.iter_mut().chain(&mut self.coordinators);
        parts.try_for_each(|(part, _)| part.start_if_ended())
    }
}

/// False where its clock cannot be stepped.
fn step(part: &Part, off_s: i64) -> bool {
    part.clock().is_some_and(|clock| clock.step_to(off_s).is_ok())
}

fn set(proxies: &[Proxy], line: Line) {
    proxies.iter().for_each(|proxy| proxy.set(line));
}
