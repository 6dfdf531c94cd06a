//! Thousands of workers in this process against a real nats-server and the program's own coordinator: heartbeats, queues,
//! claims, checkpoints, answers, and the death of every fifth of them in the same moment.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use ternfleet_proto::bus::Bus;
use ternfleet_proto::message::{FleetView, PodList, PodView, Prompt};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{JobKey, codec};

use super::process::{cpu_s, resident_mib};
use super::{peak_mib, quantile};
use crate::caller::{Client, prompts};
use crate::http;
use crate::instant::{InstantWorker, Manner, Seen};
use crate::program;
use crate::server::{NatsServer, free_port};

const CONNECTIONS: usize = 8;
const BATCHES: usize = 100;
/// Until then the fleet has settled, and what answered jobs have left behind is being removed.
const WARM: Duration = Duration::from_secs(70);
/// Completions a second, by which the hand-over is timed.
const SINGLES_A_SECOND: u64 = 50;

/// Who has which job, as the workers see it.
#[derive(Debug, Default)]
struct Jobs {
    pulled: HashMap<JobKey, (usize, Instant)>,
    held: BTreeMap<usize, BTreeSet<JobKey>>,
    answered: u64,
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
    let mut leader =
        Leader(program::command(&arguments)?.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?);
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

    let lines = (rate * (seconds as f64 + WARM.as_secs_f64() + 30.0)) as usize / BATCHES;
    for n in 0..BATCHES {
        client.submit(&format!("input-{n}"), prompts(lines)).await;
    }
    tokio::time::sleep(WARM).await;

    let stalls = Stalls::begin(&server).await?;
    let (pids, at) = ([leader.0.id(), server.pid().unwrap_or(0)], Instant::now());
    let own = std::process::id();
    let (before, answered) = (pids.map(cpu_s), lock(&jobs).answered);
    let (own_before, turns_before) = (cpu_s(own), turns(&address).await);
    let took = singles(&client, seconds, &jobs).await?;
    let (after, span) = (pids.map(cpu_s), at.elapsed().as_secs_f64());
    let answered = (lock(&jobs).answered - answered) as f64 / span;
    println!(
        "steady for {span:.0} s: {answered:.0} of {rate:.0} jobs/s answered; hand-over of {} completions p50 {:?}, p99 {:?}, \
         longest {:?}",
        took.len(),
        quantile(&took, 0.5),
        quantile(&took, 0.99),
        quantile(&took, 1.0)
    );
    for (place, name) in ["coordinator", "nats-server"].iter().enumerate() {
        println!(
            "{name}: {:.2} cores, {} MiB (at most {} MiB)",
            (after[place] - before[place]) / span,
            resident_mib(pids[place]),
            peak_mib(pids[place])
        );
    }
    println!("these workers: {:.2} cores", (cpu_s(own) - own_before) / span);
    println!("the leader's loop answered a ping within {:?} at most", stalls.end().await);
    let turns: Vec<String> = turns(&address)
        .await
        .into_iter()
        .map(|(bound, count)| format!("{} within {bound} s", count - turns_before.get(&bound).unwrap_or(&0)))
        .collect();
    println!("turns of the leader's loop: {}", turns.join(", "));
    if last {
        look(&client, &address).await?;
        lose(&server, &mut crowd, &jobs, workers / 5).await?;
    }
    ensure!(leader.0.try_wait()?.is_none(), "the coordinator has ended");
    Ok(())
}

struct Leader(std::process::Child);

impl Drop for Leader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Turns of the loop since the leader began, by how long they took at most.
async fn turns(address: &str) -> BTreeMap<String, u64> {
    let (_, text) = http::get(address, "/metrics").await;
    let bucket = |line: &str| {
        let (bound, count) =
            line.strip_prefix("ternfleet_loop_turn_seconds_bucket{le=\"")?.split_once("\"} ")?;
        Some((bound.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(bucket).collect()
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
    let takes = Duration::from_secs_f64((2.0 * workers as f64 / rate).max(1.0));
    let mut crowd = Vec::with_capacity(workers);
    for n in 0..workers {
        let (pulling, answering) = (Arc::clone(jobs), Arc::clone(jobs));
        let seen = move |job: &JobKey| {
            let mut jobs = lock(&pulling);
            jobs.pulled.insert(job.clone(), (n, Instant::now()));
            jobs.held.entry(n).or_default().insert(job.clone());
        };
        let answered = move |job: &JobKey| {
            let mut jobs = lock(&answering);
            jobs.answered += 1;
            jobs.pulled.remove(job);
            if let Some(held) = jobs.held.get_mut(&n) {
                held.remove(job);
            }
        };
        let manner = Manner {
            host: format!("host-{}", n / 4),
            slots: 2,
            // Ten tokens a job, two jobs at a time.
            rate_tok_s: 30.0 / takes.as_secs_f64(),
            takes,
            seen: Some(Seen(Arc::new(seen))),
            answered: Some(Seen(Arc::new(answered))),
            beats_every: Duration::from_secs(1),
            pulls_for: Duration::from_secs(5),
            checkpoints_every: Duration::from_secs(2),
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

/// Completions at a steady rate: from the question to a worker having each.
async fn singles(client: &Client, seconds: u64, jobs: &Shared) -> anyhow::Result<Vec<Duration>> {
    let mut waiting: Vec<(JobKey, Instant)> = Vec::new();
    let mut took = Vec::new();
    let mut asking = tokio::task::JoinSet::new();
    let mut ticker = tokio::time::interval(Duration::from_micros(1_000_000 / SINGLES_A_SECOND));
    for number in 0..SINGLES_A_SECOND * seconds {
        ticker.tick().await;
        // As large as a line of a batch: these workers take the same time for each job.
        let mut create = client.completion(number);
        create.generation.prompt = Prompt::Text(format!("prompt {number}"));
        create.generation.max_tokens = Some(16);
        waiting.push((JobKey { batch: create.batch.clone(), index: 0 }, Instant::now()));
        let client = client.clone();
        asking.spawn(async move { client.ask::<()>(ApiVerb::JobCreate, &create).await });
        while asking.try_join_next().is_some() {}
        arrived(&mut waiting, &mut took, jobs);
    }
    let until = Instant::now() + Duration::from_secs(30);
    while !waiting.is_empty() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
        arrived(&mut waiting, &mut took, jobs);
    }
    ensure!(waiting.is_empty(), "{} completions reached nobody", waiting.len());
    took.sort();
    Ok(took)
}

fn arrived(waiting: &mut Vec<(JobKey, Instant)>, took: &mut Vec<Duration>, jobs: &Shared) {
    let jobs = lock(jobs);
    waiting.retain(|(job, at)| match jobs.pulled.get(job) {
        Some((_, pulled)) => {
            took.push(pulled.saturating_duration_since(*at));
            false
        }
        None => true,
    });
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
    let stalls = Stalls::begin(server).await?;
    let dead = crowd.len() - count..crowd.len();
    crowd.truncate(dead.start);
    let killed = Instant::now();
    let lost: BTreeSet<JobKey> =
        lock(jobs).held.iter().filter(|(n, _)| dead.contains(n)).flat_map(|(_, held)| held.clone()).collect();
    let mut open = lost.clone();
    let mut ages = Vec::new();
    while !open.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let jobs = lock(jobs);
        open.retain(|job| {
            // Another has it, or has answered it already.
            let with_another = jobs.pulled.get(job).is_none_or(|(n, _)| !dead.contains(n));
            if with_another {
                ages.push(killed.elapsed());
            }
            !with_another
        });
        ensure!(killed.elapsed() < Duration::from_secs(300), "{} jobs are with nobody", open.len());
    }
    ages.sort();
    println!(
        "{count} workers lost with {} jobs: half of them with others after {:?}, all after {:?}; the leader's loop answered \
         a ping within {:?} at most",
        lost.len(),
        quantile(&ages, 0.5),
        quantile(&ages, 1.0),
        stalls.end().await
    );
    Ok(())
}

/// Asks the leader's loop again and again whether it is there.
struct Stalls {
    stop: tokio_util::sync::CancellationToken,
    asking: tokio::task::JoinHandle<Duration>,
}

impl Stalls {
    async fn begin(server: &NatsServer) -> anyhow::Result<Stalls> {
        let bus: Arc<dyn Bus> = server.bus().await?;
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone();
        let worker = "pinger".parse()?;
        let asking = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !stopped.is_cancelled() {
                let asked = Instant::now();
                let subject = table::ping(&worker);
                let _ = bus.request(&subject, bytes::Bytes::new(), Duration::from_secs(30)).await;
                longest = longest.max(asked.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            longest
        });
        Ok(Stalls { stop, asking })
    }

    async fn end(self) -> Duration {
        self.stop.cancel();
        self.asking.await.unwrap_or_default()
    }
}
