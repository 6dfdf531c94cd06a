//! Thousands of workers in this process against a real nats-server and the program's own coordinator: heartbeats, queues,
//! claims, checkpoints, answers, and the death of every fifth of them in the same moment.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::StreamExt as _;
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{FleetView, PodList, PodView, Prompt};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{JobKey, codec};

use super::process::{cpu_s, machine_s, resident_mib};
use super::{peak_mib, quantile};
use crate::caller::{Client, prompts};
use crate::http;
use crate::instant::{InstantWorker, Manner, Seen};
use crate::program;
use crate::server::{NatsServer, free_port};

const CONNECTIONS: usize = 8;
const BATCHES: usize = 100;
/// Of each worker.
const SLOTS: usize = 2;
/// Until then the fleet has settled, and what answered jobs have left behind is being removed.
const WARM: Duration = Duration::from_secs(70);
/// Completions a second, by which the hand-over is timed.
const SINGLES_A_SECOND: u64 = 50;

/// What the way of a job costs beside the work itself: hand-over, claim, answer.
const WAY: Duration = Duration::from_millis(150);

/// Who has which job, as the workers see it.
#[derive(Debug, Default)]
struct Jobs {
    held: HashMap<JobKey, usize>,
    answered: u64,
    /// Messages that came again to a worker that had the job.
    again: u64,
    slots: HashMap<usize, Slots>,
    /// Completions that are with nobody, by when they were asked for.
    asked: HashMap<JobKey, Instant>,
    /// Since the steady part began.
    hand_overs: Option<Vec<HandOver>>,
}

/// Of one worker.
#[derive(Debug, Default)]
struct Slots {
    /// Jobs that are here, whether they run or wait.
    jobs: usize,
    /// Since when slots have been empty, once for each that was full before.
    empty: VecDeque<Instant>,
}

impl Slots {
    /// Since when the slot of this job has been empty, unless it was so from the beginning, or the job has to wait here.
    fn come(&mut self) -> Option<Instant> {
        self.jobs += 1;
        self.empty.pop_front()
    }

    fn go(&mut self) {
        self.jobs = self.jobs.saturating_sub(1);
        if self.jobs < SLOTS {
            self.empty.push_back(Instant::now());
        }
    }
}

/// From the moment when a worker had room, or the job was asked for, whichever was later, until the worker had the job.
#[derive(Debug, Clone, Copy)]
struct HandOver {
    /// A completion; a line of a batch otherwise, of which some always wait.
    single: bool,
    took: Duration,
    /// The part of it after the job's message was stored.
    on_bus: Duration,
}

impl Jobs {
    fn come(&mut self, worker: usize, job: &JobKey, stored_ago: Duration) {
        match self.held.insert(job.clone(), worker) {
            Some(before) if before == worker => {
                self.again += 1;
                return;
            }
            // It was taken from there.
            Some(before) => self.slots.entry(before).or_default().go(),
            None => {}
        }
        let now = Instant::now();
        let room = self.slots.entry(worker).or_default().come();
        let asked = self.asked.remove(job);
        // A worker that had room from the beginning was waited for by nobody.
        let ready = room.max(asked);
        if let (Some(hand_overs), Some(ready)) = (&mut self.hand_overs, ready) {
            let took = now.saturating_duration_since(ready);
            hand_overs.push(HandOver { single: asked.is_some(), took, on_bus: stored_ago.min(took) });
        }
    }

    /// What has moved to another worker, or was answered before, makes no room here.
    fn go(&mut self, worker: usize, job: &JobKey) {
        if self.held.get(job) == Some(&worker) {
            self.held.remove(job);
            self.answered += 1;
            self.slots.entry(worker).or_default().go();
        }
    }
}

type Shared = Arc<Mutex<Jobs>>;

fn lock(jobs: &Shared) -> MutexGuard<'_, Jobs> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many workers for so many seconds of steady work, once for each rate in jobs a second; after the last, what screens
/// ask for and the loss of every fifth worker.
///
/// # Errors
/// When the fleet does not work.
pub async fn fleet(workers: usize, seconds: u64, rates: &[u64]) -> anyhow::Result<()> {
    for (place, rate) in rates.iter().enumerate() {
        at_rate(workers, seconds, *rate as f64, place + 1 == rates.len()).await?;
    }
    Ok(())
}

/// `rate` is what all workers together take, as long as there is enough.
async fn at_rate(workers: usize, seconds: u64, rate: f64, last: bool) -> anyhow::Result<()> {
    let server = NatsServer::start()?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let arguments = ["coordinator", "--nats", &server.url(), "--name", "leader", "--http", &address];
    let mut command = program::command(&arguments)?;
    // Many completions run at a time where each takes long: more than a tenant may have by default.
    command.env("TERNFLEET_QUOTAS__COMPLETIONS_MAX", "100000");
    let mut leader = Leader(command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?);
    let client = Client::new(server.bus().await?);
    http::wait_ready(&address).await;

    let jobs = Shared::default();
    let began = Instant::now();
    let mut crowd = crowd(&server, workers, rate, &jobs).await?;
    while crowd.iter().any(|worker| !worker.is_pulling()) {
        ensure!(began.elapsed() < Duration::from_secs(600), "not every worker got its queues");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{workers} workers have their queues after {:.1} s", began.elapsed().as_secs_f64());

    let lines = (rate * (seconds as f64 + WARM.as_secs_f64() + 60.0)) as usize / BATCHES;
    for n in 0..BATCHES {
        client.submit(&format!("input-{n}"), prompts(lines)).await;
    }
    tokio::time::sleep(WARM).await;

    let stalls = Stalls::begin(&server).await?;
    let (pids, at) = ([leader.0.id(), server.pid().unwrap_or(0), std::process::id()], Instant::now());
    let (before, all_before, answered) = (pids.map(cpu_s), machine_s(), lock(&jobs).answered);
    let (turns_before, hands_before) =
        (counted(&address, "loop_turn").await, counted(&address, "hand_over").await);
    lock(&jobs).hand_overs = Some(Vec::new());
    singles(&client, seconds, &jobs).await?;
    let hand_overs = lock(&jobs).hand_overs.take().unwrap_or_default();
    let (after, all_after, span) = (pids.map(cpu_s), machine_s(), at.elapsed().as_secs_f64());
    let answered = (lock(&jobs).answered - answered) as f64 / span;
    let (again, held) = {
        let jobs = lock(&jobs);
        (jobs.again, jobs.held.len())
    };
    println!(
        "steady for {span:.0} s: {answered:.0} of {rate:.0} jobs/s answered; {again} messages came again since the \
         beginning; {held} jobs are with workers"
    );
    for (single, name) in [(false, "lines of batches"), (true, "completions")] {
        tell(name, hand_overs.iter().filter(|one| one.single == single));
    }
    let cores = |place: usize| (after[place] - before[place]) / span;
    for (place, name) in ["coordinator", "nats-server"].iter().enumerate() {
        println!(
            "{name}: {:.2} cores, {} MiB (at most {} MiB)",
            cores(place),
            resident_mib(pids[place]),
            peak_mib(pids[place])
        );
    }
    println!(
        "these workers: {:.2} cores; all processes together {:.2} of {}",
        cores(2),
        (all_after - all_before) / span,
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    let pings = stalls.end().await;
    println!(
        "the leader's loop answered a ping within {:.1?} (p50), {:.1?} (p99), {:.1?} at most",
        quantile(&pings, 0.5),
        quantile(&pings, 0.99),
        quantile(&pings, 1.0)
    );
    println!("turns of the leader's loop: {}", within(&turns_before, &counted(&address, "loop_turn").await));
    println!(
        "the loop's own part of hand-overs: {}",
        within(&hands_before, &counted(&address, "hand_over").await)
    );
    if last {
        look(&client, &address).await?;
        lose(&server, &mut crowd, &jobs, workers / 5).await?;
    }
    ensure!(leader.0.try_wait()?.is_none(), "the coordinator has ended");
    Ok(())
}

/// How long hand-overs took: all of it, and what of it was before and after the message was stored.
fn tell<'a>(name: &str, hand_overs: impl Iterator<Item = &'a HandOver>) {
    let hand_overs: Vec<&HandOver> = hand_overs.collect();
    let part = |of: fn(&HandOver) -> Duration| {
        let mut part: Vec<Duration> = hand_overs.iter().map(|one| of(one)).collect();
        part.sort();
        let [half, most, longest] = [0.5, 0.99, 1.0].map(|share| quantile(&part, share));
        format!("{half:.1?} (p50), {most:.1?} (p99), {longest:.1?} at most")
    };
    println!("hand-over of {} {name}: {}", hand_overs.len(), part(|one| one.took));
    println!("  until its message was stored: {}", part(|one| one.took - one.on_bus));
    println!("  from there to the worker: {}", part(|one| one.on_bus));
}

struct Leader(std::process::Child);

impl Drop for Leader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the leader has counted in a histogram since it began, by how long each took at most.
async fn counted(address: &str, histogram: &str) -> BTreeMap<String, u64> {
    let (_, text) = http::get(address, "/metrics").await;
    let begins = format!("ternfleet_{histogram}_seconds_bucket{{le=\"");
    let bucket = |line: &str| {
        let (bound, count) = line.strip_prefix(&begins)?.split_once("\"} ")?;
        Some((bound.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(bucket).collect()
}

/// How many were counted in between, by how long each took at most.
fn within(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> String {
    let count = |(bound, count): (&String, &u64)| {
        format!("{} within {bound} s", count - before.get(bound).unwrap_or(&0))
    };
    after.iter().map(count).collect::<Vec<_>>().join(", ")
}

async fn crowd(
    server: &NatsServer,
    workers: usize,
    rate: f64,
    jobs: &Shared,
) -> anyhow::Result<Vec<InstantWorker>> {
    let mut buses = Vec::new();
    for _ in 0..CONNECTIONS {
        buses.push(server.bus().await?);
    }
    let takes = Duration::from_secs_f64(2.0 * workers as f64 / rate).saturating_sub(WAY).max(WAY);
    let mut crowd = Vec::with_capacity(workers);
    for n in 0..workers {
        let (pulling, answering) = (Arc::clone(jobs), Arc::clone(jobs));
        let seen = move |job: &JobKey, stored_ago| lock(&pulling).come(n, job, stored_ago);
        let answered = move |job: &JobKey, _| lock(&answering).go(n, job);
        let manner = Manner {
            host: format!("host-{}", n / 4),
            slots: SLOTS as u32,
            // Ten tokens a job, two jobs at a time.
            rate_tok_s: 30.0 / takes.as_secs_f64(),
            takes,
            varies: true,
            seen: Some(Seen(Arc::new(seen))),
            answered: Some(Seen(Arc::new(answered))),
            beats_every: Duration::from_secs(1),
            pulls_for: Duration::from_secs(5),
            // One for most jobs: with 20,000 that run, one every two seconds would be 10,000 a second.
            checkpoints_every: (takes / 2).max(Duration::from_secs(2)),
            ..Manner::default()
        };
        let bus = Arc::clone(&buses[n % CONNECTIONS]);
        crowd.push(InstantWorker::start(bus, &format!("w-{n:05}"), manner).await);
        // So that they do not all beat in the same moment.
        if n % 20 == 19 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    Ok(crowd)
}

/// Completions at a steady rate, until a worker has each.
async fn singles(client: &Client, seconds: u64, jobs: &Shared) -> anyhow::Result<()> {
    let mut asking = tokio::task::JoinSet::new();
    let mut ticker = tokio::time::interval(Duration::from_micros(1_000_000 / SINGLES_A_SECOND));
    for number in 0..SINGLES_A_SECOND * seconds {
        ticker.tick().await;
        // As large as a line of a batch: these workers take the same time for each job.
        let mut create = client.completion(number);
        create.generation.prompt = Prompt::Text(format!("prompt {number}"));
        create.generation.max_tokens = Some(16);
        lock(jobs).asked.insert(JobKey { batch: create.batch.clone(), index: 0 }, Instant::now());
        let client = client.clone();
        asking.spawn(async move { client.ask::<()>(ApiVerb::JobCreate, &create).await });
        while asking.try_join_next().is_some() {}
    }
    let until = Instant::now() + Duration::from_secs(30);
    while !lock(jobs).asked.is_empty() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let asked = lock(jobs).asked.len();
    ensure!(asked == 0, "{asked} completions reached nobody");
    Ok(())
}

/// What screens ask for: how long it takes, and how large it is.
async fn look(client: &Client, address: &str) -> anyhow::Result<()> {
    let ask = async |verb: ApiVerb, question: Vec<u8>| {
        let began = Instant::now();
        let answer = client.bus.request(&table::api(verb), question.into(), Duration::from_secs(5)).await;
        anyhow::Ok((answer?, began.elapsed()))
    };
    let (answer, span) = ask(ApiVerb::Fleet, codec::encode(&()).to_vec()).await?;
    let view: ternfleet_proto::message::Reply<FleetView> = codec::decode(&answer)?;
    let view = view.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
    println!("fleet: {span:?}, {} KiB, {} workers in all", answer.len() >> 10, view.workers());
    let (mut after, mut pages, mut largest, mut longest) = (None, 0, 0, Duration::ZERO);
    let began = Instant::now();
    loop {
        let (answer, span) = ask(ApiVerb::Pods, codec::encode(&PodList { after }).to_vec()).await?;
        (largest, longest) = (largest.max(answer.len()), longest.max(span));
        let page: ternfleet_proto::message::Reply<Vec<PodView>> = codec::decode(&answer)?;
        let page = page.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
        let Some(last) = page.last() else { break };
        after = Some(last.heartbeat.worker.clone());
        pages += 1;
    }
    println!(
        "pods: {pages} pages in {:?}, at most {} KiB and {longest:?} each",
        began.elapsed(),
        largest >> 10
    );
    for path in ["/v1/models", "/api/overview"] {
        let began = Instant::now();
        let (status, body) = http::get(address, path).await;
        println!("{path}: {status} after {:?}, {} KiB", began.elapsed(), body.len() >> 10);
    }
    Ok(())
}

/// Kills so many workers at once, and waits until others have each of their jobs.
async fn lose(
    server: &NatsServer,
    crowd: &mut Vec<InstantWorker>,
    jobs: &Shared,
    count: usize,
) -> anyhow::Result<()> {
    let sent = Sent::begin(server).await?;
    // An answer that is not confirmed when its worker is killed was sent after this, so it is known.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let stalls = Stalls::begin(server).await?;
    let dead = crowd.len() - count..crowd.len();
    crowd.truncate(dead.start);
    let killed = Instant::now();
    let with_dead =
        |jobs: &Jobs, job: &JobKey| jobs.held.get(job).is_some_and(|worker| dead.contains(worker));
    let mut open: BTreeSet<JobKey> = {
        let jobs = lock(jobs);
        jobs.held.keys().filter(|job| with_dead(&jobs, job)).cloned().collect()
    };
    let mut ages = Vec::new();
    let mut unheard = 0;
    while !open.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (jobs, sent) = (lock(jobs), sent.jobs());
        open.retain(|job| {
            if !with_dead(&jobs, job) {
                ages.push(killed.elapsed());
                return false;
            }
            // The worker died between its answer and the word that the answer is stored: nobody gets this job again.
            let answered = sent.contains(job);
            unheard += usize::from(answered);
            !answered
        });
        ensure!(killed.elapsed() < Duration::from_secs(300), "{} jobs are with nobody", open.len());
    }
    ages.sort();
    println!(
        "{count} workers lost: half of their {} jobs with others after {:.1?}, all after {:.1?}; {unheard} more were \
         answered in that moment; the leader's loop answered a ping within {:.1?} at most",
        ages.len(),
        quantile(&ages, 0.5),
        quantile(&ages, 1.0),
        quantile(&stalls.end().await, 1.0)
    );
    Ok(())
}

/// Answers that were sent to the server, whoever heard that they are stored.
struct Sent {
    jobs: Arc<Mutex<HashSet<JobKey>>>,
    listening: tokio::task::JoinHandle<()>,
}

impl Sent {
    async fn begin(server: &NatsServer) -> anyhow::Result<Sent> {
        let bus: Arc<dyn Bus> = server.bus().await?;
        let mut answers = bus.subscribe(table::results_all()).await?;
        let jobs = Arc::new(Mutex::new(HashSet::new()));
        let heard = Arc::clone(&jobs);
        let listening = tokio::spawn(async move {
            while let Some(note) = answers.next().await {
                if let Some((_, job, _)) = table::parse_result_subject(&note.subject) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).insert(job);
                }
            }
            drop(bus);
        });
        Ok(Sent { jobs, listening })
    }

    fn jobs(&self) -> MutexGuard<'_, HashSet<JobKey>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Asks the leader's loop again and again whether it is there.
struct Stalls {
    stop: tokio_util::sync::CancellationToken,
    asking: tokio::task::JoinHandle<Vec<Duration>>,
}

impl Stalls {
    async fn begin(server: &NatsServer) -> anyhow::Result<Stalls> {
        let bus: Arc<dyn Bus> = server.bus().await?;
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone();
        let worker = "pinger".parse()?;
        let asking = tokio::spawn(async move {
            let mut took = Vec::new();
            while !stopped.is_cancelled() {
                let asked = Instant::now();
                let subject = table::ping(&worker);
                let _ = bus.request(&subject, bytes::Bytes::new(), Duration::from_secs(30)).await;
                took.push(asked.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            took
        });
        Ok(Stalls { stop, asking })
    }

    /// How long each answer took, the shortest first.
    async fn end(self) -> Vec<Duration> {
        self.stop.cancel();
        let mut took = self.asking.await.unwrap_or_default();
        took.sort();
        took
    }
}
