//! Starting the parts of a local fleet in order, watching over them, and ending them in the reverse order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::sync::mpsc;

use ternfleet_engine::host::Topology;
use ternfleet_proto::message::WorkerState;

use super::data_dir::DataDir;
use super::keeper::{Keeper, News, Part};
use super::ports::Ports;
use super::prometheus::Prometheus;
use super::{nats_server, probe, rented, shares, watch};
use crate::addresses::Addresses;
use crate::client::Fleet;
use crate::connection::Connection;
use crate::report;
use crate::stop::Stops;

const NATS: &str = "nats-server";
const COORDINATOR: &str = "coordinator";
/// A part that ended this often before the fleet was ready will not come up.
const DEATHS_BEFORE_READY: u32 = 3;
const POLL: Duration = Duration::from_millis(100);
/// After this long without readiness, say what is missing.
const SAY_AFTER: Duration = Duration::from_secs(15);
/// Workers checkpoint and hand their jobs back within 4 s.
const WORKER_GRACE: Duration = Duration::from_millis(4500);
const COORDINATOR_GRACE: Duration = Duration::from_millis(2000);
const NATS_GRACE: Duration = Duration::from_millis(2000);

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) workers: usize,
    pub(crate) model: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) nats_port: Option<u16>,
    pub(crate) http_port: Option<u16>,
    /// Price of each worker in dollars an hour; the last one holds for the rest.
    pub(crate) prices_usd_per_hour: Vec<f64>,
    /// Threads of each worker; empty divides the machine. The last one holds for the rest.
    pub(crate) threads: Vec<usize>,
    pub(crate) slots: Option<u32>,
    /// Run a Prometheus beside the fleet.
    pub(crate) prometheus: bool,
    /// Pods that the coordinator rents on this machine as the work asks for them, beside the workers.
    pub(crate) scale: Option<rented::Range>,
    /// End by itself when nobody has asked anything, and nothing was to be done, for so long.
    pub(crate) unheard_limit: Option<Duration>,
    /// What a rented head and its pods may cost together; it ends when that is spent.
    pub(crate) budget: Option<watch::LaunchBudget>,
    /// NATS asks everybody who they are, and may be reached from elsewhere.
    pub(crate) secured: Option<Secured>,
}

/// A secured NATS and its coordinator, whose configuration is written already.
#[derive(Debug, Clone)]
pub(crate) struct Secured {
    pub(crate) nats_server: PathBuf,
    pub(crate) nats_config: PathBuf,
    /// By which the server greets.
    pub(crate) server_name: String,
    pub(crate) monitor_port: u16,
    pub(crate) coordinator_config: PathBuf,
    /// The user as which the fleet itself connects, for monitoring.
    pub(crate) connection: Connection,
}

/// Why a fleet has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A signal asked for it.
    Asked,
    /// By itself.
    Done(watch::Why),
}

/// Runs the fleet until a signal asks for its end, or it has been forgotten; `ready` is called with its addresses once it can take work.
pub(crate) async fn run(
    plan: Plan,
    ready: impl FnOnce(&Addresses, &DataDir) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    let stops = Stops::listen()?;
    let dir = Rc::new(DataDir::open(&plan.dir)?);
    let program = match &plan.secured {
        Some(secured) => secured.nats_server.clone(),
        None => nats_server::find()?,
    };
    let monitor_port = plan.secured.as_ref().map(|secured| secured.monitor_port);
    let ports = Rc::new(Ports::choose(&dir, plan.nats_port, monitor_port, plan.http_port)?);
    let prometheus = plan.prometheus.then(|| Prometheus::find(&ports.numbers())).transpose()?;
    let (sender, news) = mpsc::unbounded_channel();
    let mut running = Running {
        dir,
        stops,
        news,
        sender,
        keepers: Vec::new(),
        pids: BTreeMap::new(),
        deaths: Some(BTreeMap::new()),
    };
    let outcome = running.go(&plan, program, prometheus, ports, ready).await;
    running.dir.forget_addresses();
    running.end().await;
    outcome
}

struct Running {
    dir: Rc<DataDir>,
    stops: Stops,
    news: mpsc::UnboundedReceiver<News>,
    sender: mpsc::UnboundedSender<News>,
    /// In the order of their start.
    keepers: Vec<Keeper>,
    pids: BTreeMap<String, u32>,
    /// How often each part ended; counted until the fleet is ready.
    deaths: Option<BTreeMap<String, u32>>,
}

impl Running {
    async fn go(
        &mut self,
        plan: &Plan,
        program: PathBuf,
        prometheus: Option<Prometheus>,
        ports: Rc<Ports>,
        ready: impl FnOnce(&Addresses, &DataDir) -> anyhow::Result<()>,
    ) -> anyhow::Result<Ended> {
        let server_name = match &plan.secured {
            Some(secured) => secured.server_name.clone(),
            None => format!("ternfleet-{}", std::process::id()),
        };
        let config = plan.secured.as_ref().map(|secured| secured.nats_config.clone());
        self.start(nats_part(program, &self.dir, &ports, &server_name, config));
        let greeted = ports.clone();
        let answers = async move {
            while probe::nats_server_name(greeted.nats.number()).await.as_deref()
                != Some(server_name.as_str())
            {
                tokio::time::sleep(POLL).await;
            }
        };
        if self.until(answers).await?.is_none() {
            return Ok(Ended::Asked);
        }
        ports.nats.fix();

        let topology = Topology::read();
        let config = match (&plan.secured, plan.scale) {
            (Some(secured), _) => Some(secured.coordinator_config.clone()),
            (None, Some(range)) => Some(self.configure_renting(plan, range, &ports, &topology)?),
            (None, None) => None,
        };
        let nats = plan.secured.as_ref().map(|secured| secured.connection.address().url().to_owned());
        self.start(coordinator_part(&ports, nats, config));
        for (worker, share) in shares::shares(plan.workers, &topology).into_iter().enumerate() {
            self.start(worker_part(plan, &ports, worker, share));
        }
        if self.until(all_ready(ports.clone(), plan.workers)).await?.is_none() {
            return Ok(Ended::Asked);
        }
        ports.http.fix();
        ports.remember(&self.dir)?;
        let mut addresses = addresses(&ports);
        if let Some(prometheus) = prometheus {
            addresses.prometheus = Some(prometheus.address());
            self.start(prometheus.part(&self.dir, ports.http.number()));
            if self.until(answers_ready(prometheus.port)).await?.is_none() {
                return Ok(Ended::Asked);
            }
        }
        self.deaths = None;

        self.dir.write_addresses(&addresses)?;
        ready(&addresses, &self.dir)?;
        let done = match plan.unheard_limit {
            None => self.until(std::future::pending()).await?,
            Some(limit) => {
                let secured = plan.secured.as_ref().map(|secured| secured.connection.clone());
                let connection = secured.unwrap_or_else(|| Connection::local(addresses.nats));
                let ports = watch::Ports { monitor: ports.monitor.number(), http: ports.http.number() };
                self.until(watch::end_of(ports, connection, limit, plan.budget.clone())).await?
            }
        };
        Ok(done.map_or(Ended::Asked, Ended::Done))
    }

    /// Writes what the coordinator is told about renting; answers the file's path.
    fn configure_renting(
        &self,
        plan: &Plan,
        range: rented::Range,
        ports: &Ports,
        topology: &Topology,
    ) -> anyhow::Result<PathBuf> {
        let rented = rented::Rented {
            range,
            nats: addresses(ports).nats,
            model: &plan.model,
            price_usd_per_hour: plan.prices_usd_per_hour.last().copied().unwrap_or_default(),
            threads: plan.threads.last().copied(),
            slots: plan.slots,
            shares: shares::shares(range.max as usize, topology),
        };
        let root = self.dir.root().canonicalize()?;
        self.dir.write_whole("coordinator.toml", &rented.configuration(&root)?)?;
        Ok(root.join("coordinator.toml"))
    }

    fn start(&mut self, part: Part) {
        self.keepers.push(Keeper::start(part, self.dir.clone(), self.sender.clone()));
    }

    /// Waits for `done`, minding the parts meanwhile; `None` when a signal came first.
    async fn until<T>(&mut self, done: impl Future<Output = T>) -> anyhow::Result<Option<T>> {
        tokio::pin!(done);
        loop {
            tokio::select! {
                value = &mut done => return Ok(Some(value)),
                () = self.stops.next() => return Ok(None),
                Some(news) = self.news.recv() => self.note(news)?,
            }
        }
    }

    fn note(&mut self, news: News) -> anyhow::Result<()> {
        match news {
            News::Started { name, pid } => {
                self.pids.insert(name, pid);
            }
            News::Ended { name, status } => {
                self.pids.remove(&name);
                eprintln!("{name} exited ({status}); restarting it");
                if let Some(deaths) = &mut self.deaths {
                    let count = deaths.entry(name.clone()).or_insert(0);
                    *count += 1;
                    if *count >= DEATHS_BEFORE_READY {
                        let (log, tail) = (self.dir.log(&name), self.dir.log_tail(&name));
                        bail!("{name} does not start; last lines of {}:\n  {tail}", log.display());
                    }
                }
            }
        }
        self.dir.write_whole("processes.json", &serde_json::to_string(&self.pids)?)
    }

    /// Ends workers first, so that they can hand back their jobs, and NATS last. A signal now ends all at once.
    async fn end(&mut self) {
        let mut keepers = std::mem::take(&mut self.keepers);
        if keepers.is_empty() {
            return;
        }
        eprintln!("draining; a second signal exits at once");
        let mut workers = keepers.split_off(keepers.len().min(2));
        let root = self.dir.root().to_owned();
        let in_order = async {
            workers.iter().for_each(Keeper::stop);
            for worker in &mut workers {
                worker.ended().await;
            }
            // The coordinator goes before the pods that it rents, lest it rents new ones; NATS goes last.
            for keeper in keepers.iter_mut().skip(1).rev() {
                keeper.stop();
                keeper.ended().await;
            }
            if let Err(error) = rented::end(&root).await {
                eprintln!("{error:#}");
            }
            if let Some(nats) = keepers.first_mut() {
                nats.stop();
                nats.ended().await;
            }
        };
        tokio::select! {
            () = in_order => return,
            () = self.stops.next() => {}
        }
        for keeper in workers.iter().chain(&keepers) {
            keeper.insist();
        }
        for keeper in workers.iter_mut().chain(&mut keepers) {
            keeper.ended().await;
        }
        if let Err(error) = rented::end(&root).await {
            eprintln!("{error:#}");
        }
    }
}

fn addresses(ports: &Ports) -> Addresses {
    Addresses {
        nats: format!("nats://127.0.0.1:{}", ports.nats.number()),
        http: format!("http://127.0.0.1:{}", ports.http.number()),
        prometheus: None,
        nats_monitoring: Some(format!("http://127.0.0.1:{}", ports.monitor.number())),
        pid: std::process::id(),
    }
}

/// Resolves when the coordinator says that it is ready and has seen every worker ready.
async fn all_ready(ports: Rc<Ports>, workers: usize) {
    let began = Instant::now();
    let mut said = false;
    let mut fleet: Option<Fleet> = None;
    loop {
        let http = probe::http_status(ports.http.number(), "/readyz").await;
        let mut seen = 0;
        if http == Some(200) && workers > 0 {
            if fleet.is_none() {
                let connection = Connection::local(addresses(&ports).nats);
                fleet = Fleet::connect_as_part(&connection).await.ok();
            }
            if let Some(fleet) = &fleet {
                let pods = report::pods(fleet, Vec::new()).await.unwrap_or_default();
                seen =
                    pods.iter().filter(|pod| pod.live && pod.heartbeat.state == WorkerState::Ready).count();
            }
        }
        if http == Some(200) && seen >= workers {
            return;
        }
        if began.elapsed() > SAY_AFTER && !said {
            said = true;
            eprintln!("still starting: {seen} of {workers} workers are ready; logs are in the data folder");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Resolves when Prometheus has its rules and its old data loaded.
async fn answers_ready(port: u16) {
    while probe::http_status(port, "/-/ready").await != Some(200) {
        tokio::time::sleep(POLL).await;
    }
}

/// The nats-server: with the configuration given, or one of its own making.
fn nats_part(
    program: PathBuf,
    dir: &Rc<DataDir>,
    ports: &Rc<Ports>,
    server_name: &str,
    config: Option<PathBuf>,
) -> Part {
    let (dir, ports, name) = (dir.clone(), ports.clone(), server_name.to_owned());
    let command = move || {
        if let Some(config) = &config {
            let words = [program.display().to_string(), "--config".to_owned(), config.display().to_string()];
            return Ok(words.into());
        }
        let port = ports.confirm(&ports.nats)?;
        let monitor_port = ports.confirm(&ports.monitor)?;
        nats_server::configure(&dir, &nats_server::Settings { name: name.clone(), port, monitor_port })?;
        let config = dir.nats_config();
        Ok(vec![program.display().to_string(), "--config".to_owned(), config.display().to_string()])
    };
    Part { name: NATS.to_owned(), command: Box::new(command), cpus: Vec::new(), grace: NATS_GRACE }
}

fn coordinator_part(ports: &Rc<Ports>, nats: Option<String>, config: Option<PathBuf>) -> Part {
    let ports = ports.clone();
    let command = move || {
        let http = format!("127.0.0.1:{}", ports.confirm(&ports.http)?);
        let monitoring = format!("http://127.0.0.1:{}", ports.monitor.number());
        let nats = nats.clone().unwrap_or_else(|| addresses(&ports).nats);
        let mut words =
            vec!["coordinator", "--nats", &nats, "--http", &http, "--nats-monitoring-url", &monitoring];
        let config = config.as_ref().map(|path| path.display().to_string());
        if let Some(config) = &config {
            words.extend(["--config", config]);
        }
        this_program(&words)
    };
    Part {
        name: COORDINATOR.to_owned(),
        command: Box::new(command),
        cpus: Vec::new(),
        grace: COORDINATOR_GRACE,
    }
}

fn worker_part(plan: &Plan, ports: &Rc<Ports>, worker: usize, share: shares::Share) -> Part {
    let number = worker + 1;
    let threads = nth_or_last(&plan.threads, worker).copied().unwrap_or(share.threads);
    let price = nth_or_last(&plan.prices_usd_per_hour, worker).copied().unwrap_or_default();
    let mut arguments: Vec<String> = vec!["worker".into(), "--nats".into(), addresses(ports).nats];
    let mut flag = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    flag("model", plan.model.display().to_string());
    flag("threads", threads.to_string());
    flag("price-usd-per-hour", price.to_string());
    flag("pod-class", "local".to_owned());
    flag("pod", format!("local-{number}"));
    if let Some(slots) = plan.slots {
        flag("slots", slots.to_string());
    }
    let command = move || this_program(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    Part {
        name: format!("worker-{number}"),
        command: Box::new(command),
        cpus: share.cpus,
        grace: WORKER_GRACE,
    }
}

fn this_program(arguments: &[&str]) -> anyhow::Result<Vec<String>> {
    let program = std::env::current_exe()?.display().to_string();
    Ok(std::iter::once(program).chain(arguments.iter().map(|&argument| argument.to_owned())).collect())
}

fn nth_or_last<T>(values: &[T], index: usize) -> Option<&T> {
    values.get(index).or(values.last())
}
