//! The program as a person runs it: `ternfleet` with arguments, and whole local fleets in folders that go away.
//!
//! The binary is the one that was built beside the tests (`make test` builds it first), or the one that
//! `TERNFLEET_TEST_BINARY` names.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

/// The small model that ships.
pub const STORYTELLER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/storyteller/storyteller.gguf");
const READY_WITHIN: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);

/// Where the binary is.
///
/// # Errors
/// When it was not built.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("TERNFLEET_TEST_BINARY") {
        return Ok(PathBuf::from(named));
    }
    // target/<profile>/deps/<this test>, or target/<profile>/<this program>
    let this = std::env::current_exe()?;
    let folders = this.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("ternfleet")).find(|binary| binary.is_file());
    found.with_context(|| {
        format!(
            "no ternfleet beside {}: `make test` builds it, or `cargo build -p ternfleet`",
            this.display()
        )
    })
}

/// A command that sees nothing of this shell's own settings of Ternfleet.
///
/// # Errors
/// As [`binary`].
pub fn command(arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(binary()?);
    for (name, _) in std::env::vars() {
        if name.starts_with("TERNFLEET_") && name != "TERNFLEET_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// What a command that ended has said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started, or what it says is no text.
    pub fn of(command: &mut Command) -> anyhow::Result<Ended> {
        let output = command.output()?;
        Ok(Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Standard output as one JSON value.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {self:?}"))
    }

    /// Standard output as JSON lines.
    ///
    /// # Errors
    /// When a line is none.
    pub fn json_lines(&self) -> anyhow::Result<Vec<Value>> {
        json_lines(&self.stdout)
    }
}

/// Runs to the end.
///
/// # Errors
/// When it cannot be started.
pub fn run(arguments: &[&str]) -> anyhow::Result<Ended> {
    Ended::of(&mut command(arguments)?)
}

/// Parses each line.
///
/// # Errors
/// When a line is no JSON.
pub fn json_lines(text: &str) -> anyhow::Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}

/// What `addresses.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Addresses {
    pub nats: String,
    pub http: String,
    #[serde(default)]
    pub prometheus: Option<String>,
    pub pid: u32,
}

/// A running `ternfleet up`. Killed when dropped, and its children with it.
#[derive(Debug)]
pub struct LocalFleet {
    pub dir: PathBuf,
    pub addresses: Addresses,
    up: Child,
    _folder: Option<TempDir>,
}

impl LocalFleet {
    /// Starts one in a new folder and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start(arguments: &[&str]) -> anyhow::Result<LocalFleet> {
        let folder = tempfile::tempdir()?;
        let mut fleet = Self::start_in(folder.path(), arguments)?;
        fleet._folder = Some(folder);
        Ok(fleet)
    }

    /// Starts one whose model calls functions: the storyteller with a manifest that says so.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start_with_tools(arguments: &[&str]) -> anyhow::Result<LocalFleet> {
        let folder = tempfile::tempdir()?;
        let model = model_with_tools(folder.path())?;
        let mut fleet = Self::start_in(folder.path(), &[arguments, &["--model", &model]].concat())?;
        fleet._folder = Some(folder);
        Ok(fleet)
    }

    /// Starts one in `dir`, which stays.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start_in(dir: &Path, arguments: &[&str]) -> anyhow::Result<LocalFleet> {
        Self::start_by(&mut up_command(dir, arguments)?, dir)
    }

    /// Starts one by a command of [`up_command`] for `dir`.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start_by(command: &mut Command, dir: &Path) -> anyhow::Result<LocalFleet> {
        let mut up = command.spawn()?;
        let began = Instant::now();
        loop {
            if let Ok(text) = std::fs::read(dir.join("addresses.json")) {
                let addresses = serde_json::from_slice(&text)?;
                return Ok(LocalFleet { dir: dir.to_owned(), addresses, up, _folder: None });
            }
            let ended = up.try_wait()?;
            if ended.is_some() || began.elapsed() > READY_WITHIN {
                let _ = up.kill();
                let said = std::fs::read_to_string(dir.join("up.log")).unwrap_or_default();
                bail!(
                    "the fleet is not ready after {:?} (ended: {ended:?}); it said: {said}",
                    began.elapsed()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Runs a command against this fleet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        run(&[arguments, &["--nats", &self.addresses.nats]].concat())
    }

    /// Starts a command against this fleet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> anyhow::Result<Child> {
        Ok(command(&[arguments, &["--nats", &self.addresses.nats]].concat())?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?)
    }

    /// A file in the fleet's folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.dir.join(name);
        std::fs::File::create(&path)?.write_all(text.as_bytes())?;
        Ok(path.display().to_string())
    }

    /// The processes by part, as they are now.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn processes(&self) -> anyhow::Result<BTreeMap<String, i32>> {
        Ok(serde_json::from_slice(&std::fs::read(self.dir.join("processes.json"))?)?)
    }

    /// Waits until a batch has at least so many answers; answers its object.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_for_answers(&self, batch: &str, count: u64) -> anyhow::Result<Value> {
        wait_for(Duration::from_secs(120), || {
            let status = self.run(&["status", batch, "--json"])?.json()?;
            let counts = &status["request_counts"];
            let answered = counts["completed"].as_u64().unwrap_or(0) + counts["failed"].as_u64().unwrap_or(0);
            Ok((answered >= count).then_some(status))
        })
    }

    /// Of `up` itself.
    pub fn pid(&self) -> u32 {
        self.up.id()
    }

    /// Sends `up` itself a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.up.id())?), signal)?)
    }

    /// Waits for the end of `up`.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        wait_for(within, || Ok(self.up.try_wait()?))
    }
}

impl Drop for LocalFleet {
    fn drop(&mut self) {
        // The kernel ends the children with it.
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

/// Tools, calls and their answers, as briefly as a context of 512 tokens wants it.
const TOOLS_TEMPLATE: &str = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{% for m in messages %}\
    {{ m.role | capitalize }}: {{ m.content | trim }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} \
    {{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|eot_id|>{% endfor %}Assistant: ";

/// The storyteller in `dir`, with a manifest that names a form of calls and a template that shows them. It was trained for
/// neither: what it says is held to the form, and means nothing.
fn model_with_tools(dir: &Path) -> anyhow::Result<String> {
    let shipped = Path::new(STORYTELLER);
    let folder = dir.join("model");
    std::fs::create_dir_all(&folder)?;
    let model = folder.join("storyteller.gguf");
    std::fs::copy(shipped, &model)?;
    let manifest = std::fs::read_to_string(shipped.with_file_name("manifest.toml"))?;
    let (before, after) = manifest.split_once("[chat]").context("the storyteller chats")?;
    let (_, sampling) = after.split_once("[sampling]").context("the storyteller has defaults")?;
    let tools = format!("[chat]\ntemplate = '''{TOOLS_TEMPLATE}'''\n\n[tools]\nformat = \"hermes\"\n");
    std::fs::write(folder.join("manifest.toml"), format!("{before}{tools}\n[sampling]{sampling}"))?;
    Ok(model.display().to_string())
}

/// `ternfleet up` in `dir`, on free ports, with a short calibration; what it says goes to `dir/up.log`.
///
/// # Errors
/// As [`binary`].
pub fn up_command(dir: &Path, arguments: &[&str]) -> anyhow::Result<Command> {
    std::fs::create_dir_all(dir)?;
    let log = std::fs::File::options().create(true).append(true).open(dir.join("up.log"))?;
    let folder = dir.display().to_string();
    let mut command =
        command(&[&["up", "--dir", &folder, "--nats-port", "0", "--http-port", "0"], arguments].concat())?;
    if !arguments.contains(&"--model") {
        command.args(["--model", STORYTELLER]);
    }
    command.env("TERNFLEET_CALIBRATE_MS", "200").stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// Asks until there is an answer.
///
/// # Errors
/// When asking fails, or there is no answer in time.
pub fn wait_for<T>(
    within: Duration,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(began.elapsed() < within, "waited for {within:?} in vain");
        std::thread::sleep(POLL);
    }
}

/// Whether a process is there and not merely waiting to be reaped.
pub fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may hold any character.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A process that is killed when the test is done with it.
#[derive(Debug)]
pub struct Service(Child);

impl Service {
    /// Starts a command; what it says goes to the file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(arguments: &[&str], log: &Path) -> anyhow::Result<Service> {
        Self::start_command(command(arguments)?, log)
    }

    /// Starts a command of [`command`]; what it says goes to the file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_command(mut command: Command, log: &Path) -> anyhow::Result<Service> {
        let log = std::fs::File::create(log)?;
        Ok(Service(command.stdout(log.try_clone()?).stderr(log).spawn()?))
    }

    /// Starts another program than ours.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_program(program: &Path, arguments: &[&str], log: &Path) -> anyhow::Result<Service> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        Self::start_command(command, log)
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), signal)?)
    }
}

impl Service {
    /// False once it has ended by itself.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
