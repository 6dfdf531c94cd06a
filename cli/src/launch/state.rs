//! The state file of a launched fleet, and the folder of all of them.
//!
//! `FLEETS/NAME/state.json` is written whole, and on disk before anything is ordered that could cost money.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use ternfleet_proto::message::{BatchView, Quote};
use ternfleet_proto::{BatchId, TenantId, TimeMs, UsdMicro};

use super::bill::{self, PodBill};
use super::rent::Rent;
use crate::connection::{Connection, USUAL_FOLDER};
use crate::lock::{Claim, Lock};
use crate::output::{Existing, WholeFile, write_secret};

/// Names the folder of all launched fleets.
pub(crate) const VARIABLE: &str = "TERNFLEET_STATE_DIR";
const FILE: &str = "state.json";

/// Where a fleet runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Place {
    /// Processes on this machine
    Local,
    /// Pods on RunPod
    Runpod,
    /// A coordinator that is already running
    #[value(skip)]
    Elsewhere,
}

impl Place {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Place::Local => "local",
            Place::Runpod => "runpod",
            Place::Elsewhere => "elsewhere",
        }
    }
}

/// How to reach a coordinator that somebody else runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Elsewhere {
    pub(crate) nats: String,
    pub(crate) credentials_file: Option<PathBuf>,
    pub(crate) root_certificates: Option<PathBuf>,
    pub(crate) tenant: TenantId,
}

impl Elsewhere {
    pub(crate) fn connection(&self) -> Connection {
        let mut connection = Connection::local(self.nats.clone());
        connection.nats_credentials_file.clone_from(&self.credentials_file);
        connection.nats_root_certificates.clone_from(&self.root_certificates);
        connection.tenant.clone_from(&self.tenant);
        connection
    }
}

/// What is known of a fleet that this machine has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Begins the name of every pod.
    pub(crate) name: String,
    pub(crate) at: Place,
    pub(crate) began_at: TimeMs,
    pub(crate) prompts: PathBuf,
    /// What the requests of `prompts` were made from, if it was a table.
    #[serde(default)]
    pub(crate) table: Option<PathBuf>,
    /// Of the batch.
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) out: PathBuf,
    /// The file at `out` may be replaced: somebody said so, or it is this launch's own.
    #[serde(default)]
    pub(crate) replaces_out: bool,
    /// A file, or a name of the catalogue.
    pub(crate) model: PathBuf,
    /// Of the batch: asked for twice, there is one.
    pub(crate) key: String,
    pub(crate) deadline: Option<TimeMs>,
    pub(crate) budget_usd_micro: Option<UsdMicro>,
    pub(crate) pods_max: u32,
    pub(crate) price_usd_per_hour: f64,
    /// What was quoted before anything was ordered.
    pub(crate) quote: Option<Quote>,
    /// A coordinator that somebody else runs.
    #[serde(default)]
    pub(crate) elsewhere: Option<Elsewhere>,
    pub(crate) batch: Option<BatchId>,
    /// The batch as it ended, once its results are in `out`.
    pub(crate) fetched: Option<Box<BatchView>>,
    /// What may be rented, at RunPod.
    #[serde(default)]
    pub(crate) rent: Option<Rent>,
    /// Everything is given back.
    pub(crate) ended_at: Option<TimeMs>,
    /// By pod.
    #[serde(default)]
    pub(crate) bill: BTreeMap<String, PodBill>,
}

/// How far a fleet is, in the order of its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Starting,
    Working,
    /// The results are here, and not everything is given back.
    Returning,
    Ended,
}

impl Phase {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Working => "working",
            Phase::Returning => "returning",
            Phase::Ended => "ended",
        }
    }
}

impl State {
    /// The bill beside the quote, for people.
    pub(crate) fn bill_page(&self) -> String {
        bill::page(&self.bill, self.quote.as_ref())
    }

    pub(crate) fn phase(&self) -> Phase {
        match (&self.batch, &self.fetched, self.ended_at) {
            (_, _, Some(_)) => Phase::Ended,
            (_, Some(_), None) => Phase::Returning,
            (Some(_), None, None) => Phase::Working,
            (None, None, None) => Phase::Starting,
        }
    }
}

/// All fleets that this machine has begun.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    root: PathBuf,
}

impl Folders {
    /// `TERNFLEET_STATE_DIR`, else the user's folder of states.
    pub(crate) fn find() -> anyhow::Result<Folders> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(root) = variable(VARIABLE) {
            return Ok(Folders { root: std::path::absolute(root)? });
        }
        let state = variable("XDG_STATE_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| variable("HOME").map(|home| home.join(".local/state")));
        let state = state.with_context(|| {
            format!("neither HOME nor {VARIABLE} is set: set {VARIABLE} to a folder for the state of fleets")
        })?;
        Ok(Folders { root: state.join("ternfleet/fleets") })
    }

    pub(crate) fn folder(&self, name: &str) -> Folder {
        Folder { root: self.root.join(name) }
    }

    /// Every fleet, oldest first.
    pub(crate) fn all(&self) -> anyhow::Result<Vec<State>> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(reason) if reason.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(reason) => {
                return Err(reason).with_context(|| format!("cannot read {}", self.root.display()));
            }
        };
        let mut all = Vec::new();
        for entry in entries {
            let folder = Folder { root: entry?.path() };
            if folder.file().is_file() {
                all.push(folder.read()?);
            }
        }
        all.sort_by(|a, b| (a.began_at, &a.name).cmp(&(b.began_at, &b.name)));
        Ok(all)
    }

    /// Those that have not ended.
    pub(crate) fn open(&self) -> anyhow::Result<Vec<State>> {
        Ok(self.all()?.into_iter().filter(|state| state.ended_at.is_none()).collect())
    }

    /// The fleet named, or the one that has not ended.
    pub(crate) fn choose(&self, name: Option<&str>) -> anyhow::Result<State> {
        if let Some(name) = name {
            let found = self.all()?.into_iter().find(|state| state.name == name);
            return found.with_context(|| {
                format!(
                    "no fleet {name} was launched from this machine: see `ternfleet \
                                          fleets`"
                )
            });
        }
        let mut open = self.open()?;
        match (open.pop(), open.is_empty()) {
            (Some(state), true) => Ok(state),
            (None, _) => bail!(
                "no fleet runs in {USUAL_FOLDER}, and no launched fleet is open: see `ternfleet fleets`"
            ),
            (Some(last), false) => {
                open.push(last);
                let names: Vec<&str> = open.iter().map(|state| state.name.as_str()).collect();
                bail!("more than one fleet is open: pass one of {}", names.join(", "))
            }
        }
    }
}

/// The folder of one fleet.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    fn file(&self) -> PathBuf {
        self.root.join(FILE)
    }

    pub(crate) fn read(&self) -> anyhow::Result<State> {
        let path = self.file();
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} cannot be parsed", path.display()))
    }

    pub(crate) fn write(&self, state: &State) -> anyhow::Result<()> {
        write_secret(&self.file(), &format!("{}\n", serde_json::to_string_pretty(state)?))?;
        // The name, too: a file that is not found after a power cut has kept nothing.
        let sync = |folder: &Path| std::fs::File::open(folder).and_then(|folder| folder.sync_all());
        let parent = self.root.parent().unwrap_or(&self.root);
        sync(&self.root)
            .and_then(|()| sync(parent))
            .with_context(|| format!("cannot write {}", self.root.display()))
    }

    /// Begins the file of the results. One that came up since the launch began is kept, unless it may be replaced; then
    /// they go beside it.
    pub(crate) fn begin_out(&self, state: &mut State) -> anyhow::Result<WholeFile> {
        if !state.replaces_out {
            if state.out.exists() {
                let free = free_beside(&state.out);
                eprintln!("{} has appeared and is kept", state.out.display());
                state.out = free;
            }
            // From now on the file there is this launch's own, also for a command that goes on after this one.
            state.replaces_out = true;
            self.write(state)?;
        }
        WholeFile::create(&state.out, Existing::Replaced)
    }

    /// One command at a time works on a fleet.
    pub(crate) fn lock(&self) -> anyhow::Result<Lock> {
        std::fs::create_dir_all(&self.root)
            .with_context(|| format!("cannot make {}", self.root.display()))?;
        match Claim::ask(&self.root.join("lock"))? {
            Claim::Held(lock) => Ok(lock),
            Claim::Taken(owner) => {
                bail!(
                    "another `ternfleet` (process {owner}) is working on this fleet: {}",
                    self.root.display()
                )
            }
        }
    }

    /// Who works on it now.
    pub(crate) fn worked_on_by(&self) -> Option<i32> {
        Claim::holder(&self.root.join("lock"))
    }
}

/// `answers.jsonl` is followed by `answers.1.jsonl`.
fn free_beside(path: &Path) -> PathBuf {
    let (stem, ending) = (path.file_stem().unwrap_or_default(), path.extension().unwrap_or_default());
    let (stem, ending) = (stem.to_string_lossy(), ending.to_string_lossy());
    let name = |number: u32| match ending.is_empty() {
        true => format!("{stem}.{number}"),
        false => format!("{stem}.{number}.{ending}"),
    };
    (1..).map(|number| path.with_file_name(name(number))).find(|path| !path.exists()).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn state(name: &str) -> State {
        State {
            name: name.to_owned(),
            at: Place::Local,
            began_at: TimeMs(1),
            prompts: "/tmp/in.jsonl".into(),
            table: None,
            metadata: BTreeMap::new(),
            out: "/tmp/out.jsonl".into(),
            replaces_out: false,
            model: "storyteller".into(),
            key: "00".to_owned(),
            deadline: None,
            budget_usd_micro: None,
            pods_max: 1,
            price_usd_per_hour: 0.34,
            quote: None,
            elsewhere: None,
            batch: None,
            fetched: None,
            rent: None,
            ended_at: None,
            bill: BTreeMap::new(),
        }
    }

    #[test]
    fn the_one_open_fleet_is_chosen_and_of_several_one_must_be_named() {
        let folder = tempfile::tempdir().unwrap();
        let folders = Folders { root: folder.path().join("fleets") };
        assert!(folders.choose(None).unwrap_err().to_string().contains("no launched fleet is open"));
        let put = |name: &str, ended_at| {
            folders.folder(name).write(&State { ended_at, ..state(name) }).unwrap();
        };
        put("tf-a", None);
        put("tf-b", Some(TimeMs(9)));
        assert_eq!(folders.choose(None).unwrap().name, "tf-a");
        assert_eq!(folders.choose(Some("tf-b")).unwrap().phase(), Phase::Ended);
        put("tf-c", None);
        let refused = folders.choose(None).unwrap_err().to_string();
        assert!(refused.contains("tf-a, tf-c"), "{refused}");
        assert!(folders.choose(Some("tf-d")).is_err());
    }

    #[test]
    fn a_file_that_came_up_since_the_launch_began_is_kept_and_its_own_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folders { root: root.path().to_owned() }.folder("tf-a");
        let out = root.path().join("out.jsonl");
        let mut launched = State { out: out.clone(), ..state("tf-a") };
        std::fs::create_dir_all(folder.path()).unwrap();
        std::fs::write(&out, "precious").unwrap();
        let mut first = folder.begin_out(&mut launched).unwrap();
        first.line("answer").unwrap();
        first.publish().unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "precious");
        assert_eq!(launched.out, root.path().join("out.1.jsonl"));
        // The command was killed before it wrote down that the results are here: the next one writes them again.
        let mut again = folder.read().unwrap();
        folder.begin_out(&mut again).unwrap().publish().unwrap();
        assert_eq!((again.out.clone(), again.replaces_out), (launched.out, true));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_fleet_is_worked_on_by_one_command() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folders { root: folder.path().to_owned() }.folder("tf-a");
        let held = folder.lock().unwrap();
        assert!(folder.lock().unwrap_err().to_string().contains(&std::process::id().to_string()));
        assert_eq!(folder.worked_on_by(), i32::try_from(std::process::id()).ok());
        drop(held);
        assert_eq!(folder.worked_on_by(), None);
    }
}
