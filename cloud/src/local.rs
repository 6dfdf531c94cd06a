//! Pods that are worker processes on this machine: scaling can be seen and tested for real, without a dollar.
//!
//! Each pod is one child process. A folder holds a small file for each, so that a coordinator that comes back finds
//! the processes of its former life: the file names the process id and when the kernel started it, which together
//! name a process forever.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use crate::provider::{
    Availability, Bill, CloudError, Compute, Hardware, Offer, Order, PodId, Provider, Rented, Status, Tier,
};

/// Of a pod's output, no more than this is looked at.
const TAIL_BYTES_MAX: usize = 64 << 10;

/// A class of local pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalClass {
    pub name: String,
    pub price_usd_micro_per_hour: i64,
    pub threads: u32,
}

/// What to start, and how much of it.
#[derive(Debug, Clone)]
pub struct Options {
    pub program: PathBuf,
    /// `{name}`, `{class}`, `{price}` (USD per hour), `{threads}` and `{cpus}` are filled in.
    pub arguments: Vec<String>,
    pub classes: Vec<LocalClass>,
    pub pods_max: usize,
    /// Holds one file a pod, and the pods' output.
    pub folder: PathBuf,
    /// Sets of CPUs, as `0,1`: a pod takes the first that no living pod has, and shares when there are too few.
    pub cpus: Vec<String>,
    /// From the polite signal to the hard one.
    pub grace: Duration,
}

/// The provider.
#[derive(Debug)]
pub struct Local {
    options: Options,
    /// Children of this life, by name: they must be waited for when they end.
    children: Mutex<BTreeMap<String, Child>>,
}

/// The file of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Card {
    name: String,
    class: String,
    price_usd_micro_per_hour: i64,
    process: u32,
    /// Field 22 of `/proc/<process>/stat`: ticks since boot.
    started_ticks: u64,
    created_at_ms: u64,
    ended_at_ms: Option<u64>,
    /// Which of the sets of CPUs it has.
    #[serde(default)]
    seat: usize,
}

impl Local {
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(options: Options) -> Result<Local, CloudError> {
        std::fs::create_dir_all(&options.folder)
            .map_err(|fault| CloudError::Invalid(format!("{}: {fault}", options.folder.display())))?;
        Ok(Local { options, children: Mutex::new(BTreeMap::new()) })
    }

    fn cards(&self) -> Result<Vec<Card>, CloudError> {
        let folder = &self.options.folder;
        let entries = std::fs::read_dir(folder)
            .map_err(|fault| CloudError::Unreachable(format!("{}: {fault}", folder.display())))?;
        let mut cards = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = std::fs::read_to_string(&path);
                let card = text.ok().and_then(|text| serde_json::from_str::<Card>(&text).ok());
                let unreadable =
                    || CloudError::Protocol(format!("{} is not the file of a pod", path.display()));
                cards.push(card.ok_or_else(unreadable)?);
            }
        }
        cards.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(cards)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.options.folder.join(format!("{name}.json"))
    }

    fn keep(&self, card: &Card) -> Result<(), CloudError> {
        let path = self.path(&card.name);
        let fresh = path.with_extension("new");
        let text = serde_json::to_string(card).map_err(|fault| CloudError::Invalid(fault.to_string()))?;
        std::fs::write(&fresh, text)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|fault| CloudError::Unreachable(format!("{}: {fault}", path.display())))
    }

    /// Notes the end of pods whose process is gone.
    async fn refresh(&self) -> Result<Vec<Card>, CloudError> {
        let mut children = self.children.lock().await;
        children.retain(|_, child| !matches!(child.try_wait(), Ok(Some(_))));
        let mut cards = self.cards()?;
        for card in &mut cards {
            if card.ended_at_ms.is_none() && started_ticks(card.process) != Some(card.started_ticks) {
                card.ended_at_ms = Some(now_ms());
                self.keep(card)?;
            }
        }
        Ok(cards)
    }

    fn class(&self, order: &Order) -> Result<&LocalClass, CloudError> {
        let (Compute::Cpu { id, .. } | Compute::Gpu { id, .. }) = &order.compute;
        self.options
            .classes
            .iter()
            .find(|class| class.name == *id)
            .ok_or_else(|| CloudError::Invalid(format!("no local class {id:?}")))
    }

    fn spawn(&self, order: &Order, class: &LocalClass, seat: usize) -> Result<Child, CloudError> {
        let sets = &self.options.cpus;
        let cpus = sets.get(seat % sets.len().max(1)).map_or("", String::as_str);
        let price = format!("{:.6}", class.price_usd_micro_per_hour as f64 / 1e6);
        let threads = class.threads.to_string();
        let fill = |argument: &String| {
            argument
                .replace("{name}", &order.name)
                .replace("{class}", &class.name)
                .replace("{price}", &price)
                .replace("{threads}", &threads)
                .replace("{cpus}", cpus)
        };
        let output = self.options.folder.join(format!("{}.log", order.name));
        let log = std::fs::File::create(&output)
            .map_err(|fault| CloudError::Unreachable(format!("{}: {fault}", output.display())))?;
        Command::new(&self.options.program)
            .args(self.options.arguments.iter().map(fill))
            .envs(order.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|fault| CloudError::Invalid(format!("{}: {fault}", self.options.program.display())))
    }
}

#[async_trait]
impl Provider for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    async fn offers(&self) -> Result<Vec<Offer>, CloudError> {
        let running = self.refresh().await?.iter().filter(|card| card.ended_at_ms.is_none()).count();
        let availability =
            if running < self.options.pods_max { Availability::High } else { Availability::None };
        let offer = |class: &LocalClass| Offer {
            hardware: Hardware::Whole { id: class.name.clone() },
            tier: Tier::Secure,
            unit_price_usd_micro_per_hour: class.price_usd_micro_per_hour,
            availability,
            places: Vec::new(),
        };
        Ok(self.options.classes.iter().map(offer).collect())
    }

    async fn create(&self, order: &Order) -> Result<Rented, CloudError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if order.name.is_empty() || !order.name.chars().all(fits) {
            return Err(CloudError::Invalid(format!("{:?} is not a valid name for a pod", order.name)));
        }
        let cards = self.refresh().await?;
        if let Some(card) = cards.iter().find(|card| card.name == order.name) {
            return Ok(card.rented());
        }
        if cards.iter().filter(|card| card.ended_at_ms.is_none()).count() >= self.options.pods_max {
            return Err(CloudError::NoCapacity(format!("{} local pods run already", self.options.pods_max)));
        }
        let class = self.class(order)?;
        let taken: Vec<usize> =
            cards.iter().filter(|card| card.ended_at_ms.is_none()).map(|card| card.seat).collect();
        let seat = (0..).find(|seat| !taken.contains(seat)).unwrap_or(0);
        let child = self.spawn(order, class, seat)?;
        let process =
            child.id().ok_or_else(|| CloudError::NoCapacity("the process ended at once".to_owned()))?;
        self.children.lock().await.insert(order.name.clone(), child);
        let card = Card {
            name: order.name.clone(),
            class: class.name.clone(),
            price_usd_micro_per_hour: class.price_usd_micro_per_hour,
            process,
            started_ticks: started_ticks(process).unwrap_or(0),
            created_at_ms: now_ms(),
            ended_at_ms: None,
            seat,
        };
        self.keep(&card)?;
        Ok(card.rented())
    }

    async fn list(&self) -> Result<Vec<Rented>, CloudError> {
        let cards = self.refresh().await?;
        Ok(cards.iter().filter(|card| card.ended_at_ms.is_none()).map(Card::rented).collect())
    }

    async fn terminate(&self, pod: &PodId) -> Result<(), CloudError> {
        let cards = self.refresh().await?;
        let Some(card) = cards.into_iter().find(|card| card.name == pod.0 && card.ended_at_ms.is_none())
        else {
            return Ok(());
        };
        signal(card.process, Signal::SIGTERM);
        let deadline = tokio::time::Instant::now() + self.options.grace;
        while self.is_alive(&card).await {
            if tokio::time::Instant::now() >= deadline {
                signal(card.process, Signal::SIGKILL);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.children.lock().await.remove(&card.name);
        self.keep(&Card { ended_at_ms: Some(now_ms()), ..card })
    }

    async fn log_tail(&self, pod: &PodId, lines: usize) -> Result<Vec<String>, CloudError> {
        let path = self.options.folder.join(format!("{}.log", pod.0));
        let bytes = std::fs::read(&path).map_err(|_| CloudError::NotFound(pod.0.clone()))?;
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES_MAX)..]).into_owned();
        let all: Vec<&str> = text.lines().collect();
        Ok(all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect())
    }

    async fn billing(&self, from_ms: u64, to_ms: u64) -> Result<Vec<Bill>, CloudError> {
        let now = now_ms();
        let bill = |card: &Card| {
            let (from, to) = (card.created_at_ms.max(from_ms), card.ended_at_ms.unwrap_or(now).min(to_ms));
            (to > from).then(|| Bill {
                pod: PodId(card.name.clone()),
                from_ms: from,
                to_ms: to,
                amount_usd_micro: i64::try_from(
                    i128::from(card.price_usd_micro_per_hour) * i128::from(to - from) / 3_600_000,
                )
                .unwrap_or(i64::MAX),
            })
        };
        Ok(self.refresh().await?.iter().filter_map(bill).collect())
    }
}

impl Local {
    /// Reaps a child of this life, so that it does not stay a zombie; asks the kernel about one of a former life.
    async fn is_alive(&self, card: &Card) -> bool {
        if let Some(child) = self.children.lock().await.get_mut(&card.name) {
            return matches!(child.try_wait(), Ok(None));
        }
        started_ticks(card.process) == Some(card.started_ticks)
    }
}

impl Card {
    fn rented(&self) -> Rented {
        Rented {
            id: PodId(self.name.clone()),
            name: self.name.clone(),
            status: if self.ended_at_ms.is_some() { Status::Terminated } else { Status::Running },
            price_usd_micro_per_hour: Some(self.price_usd_micro_per_hour),
            data_center: None,
            vcpus: None,
            memory_gb: None,
            created_at_ms: Some(self.created_at_ms),
            started_at_ms: Some(self.created_at_ms),
            ports: Vec::new(),
        }
    }
}

/// When the kernel started the process; `None` when it is gone or a zombie.
fn started_ticks(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat")).ok()?;
    // The name in parentheses may hold spaces, so count from its end.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A process that has just ended refuses the signal: the caller looks whether it lives.
fn signal(process: u32, signal: Signal) {
    if let Ok(process) = i32::try_from(process) {
        let _ = kill(Pid::from_raw(process), signal);
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(folder: &Path, pods_max: usize) -> Local {
        Local::new(Options {
            program: "sleep".into(),
            arguments: vec!["600".to_owned()],
            classes: vec![LocalClass {
                name: "half".to_owned(),
                price_usd_micro_per_hour: 340_000,
                threads: 1,
            }],
            pods_max,
            folder: folder.to_owned(),
            cpus: Vec::new(),
            grace: Duration::from_secs(2),
        })
        .unwrap()
    }

    fn order(name: &str) -> Order {
        Order {
            name: name.to_owned(),
            compute: Compute::Cpu { id: "half".to_owned(), vcpus: 1 },
            tier: Tier::Secure,
            data_centers: Vec::new(),
            image: String::new(),
            disk_gb: 1,
            env: vec![("KEY".to_owned(), "hush".to_owned())],
            entrypoint: Vec::new(),
            command: Vec::new(),
            registry: None,
            ports: Vec::new(),
            mount: None,
        }
    }

    #[tokio::test]
    async fn a_fleet_goes_from_none_to_two_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let local = provider(folder.path(), 2);
        assert_eq!(local.list().await.unwrap(), []);
        for name in ["one", "two"] {
            assert_eq!(local.create(&order(name)).await.unwrap().status, Status::Running);
        }
        assert_eq!(local.list().await.unwrap().len(), 2);
        assert!(matches!(local.create(&order("three")).await, Err(CloudError::NoCapacity(_))));
        for name in ["one", "two"] {
            local.terminate(&PodId(name.to_owned())).await.unwrap();
        }
        assert_eq!(local.list().await.unwrap(), []);
        assert_eq!(local.billing(0, u64::MAX).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn creating_twice_under_one_name_starts_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let local = provider(folder.path(), 5);
        let first = local.create(&order("same")).await.unwrap();
        assert_eq!(local.create(&order("same")).await.unwrap(), first);
        assert_eq!(local.list().await.unwrap().len(), 1);
        local.terminate(&first.id).await.unwrap();
        local.terminate(&first.id).await.unwrap();
    }

    #[tokio::test]
    async fn a_later_life_finds_and_ends_the_pods_of_a_former_one() {
        let folder = tempfile::tempdir().unwrap();
        let former = provider(folder.path(), 5);
        let pod = former.create(&order("orphan")).await.unwrap();
        // The former life is not dropped: its child would otherwise be a zombie that nobody waits for.
        let later = provider(folder.path(), 5);
        assert_eq!(later.list().await.unwrap(), std::slice::from_ref(&pod));
        later.terminate(&pod.id).await.unwrap();
        assert_eq!(later.list().await.unwrap(), []);
        assert_eq!(former.list().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_process_that_died_by_itself_is_listed_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut local = provider(folder.path(), 5);
        local.options.arguments = vec!["0".to_owned()];
        local.create(&order("short")).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !local.list().await.unwrap().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "still listed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[test]
    fn an_order_does_not_show_its_secrets() {
        assert!(!format!("{:?}", order("one")).contains("hush"));
    }
}
