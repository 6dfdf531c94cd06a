//! A nats-server of its own for one test: a free port, a folder that goes away, no process left behind.
//!
//! It is found by `TERNFLEET_NATS_SERVER`, on PATH (2.14 or newer), or where `scripts/fetch-nats-server.sh` puts it.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use ternfleet_proto::Bus;
use ternfleet_proto::nats::{ConnectOptions, connect};
use ternfleet_proto::table::server_is_new_enough;

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running server. Killed when dropped, and by a watchdog when this process is killed first.
#[derive(Debug)]
pub struct NatsServer {
    binary: PathBuf,
    directory: TempDir,
    port: u16,
    monitor_port: u16,
    settings: String,
    running: Option<Watched>,
}

/// A process that is killed when this is dropped, and by a watchdog when this process is killed first.
#[derive(Debug)]
pub struct Watched {
    process: Child,
    watchdog: Child,
}

impl Watched {
    /// Sets a watchdog over a process.
    ///
    /// # Errors
    /// When there is no `sh`.
    pub fn new(process: Child) -> anyhow::Result<Watched> {
        // Its standard input closes when this process ends in whatever way, and `read` returns.
        let watchdog = Command::new("sh")
            .args(["-c", "read _; kill -9 \"$0\"", &process.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start sh")?;
        Ok(Watched { process, watchdog })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.id())?), signal)?)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn try_wait(&mut self) -> std::io::Result<Option<std::process::ExitStatus>> {
        self.process.try_wait()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // The watchdog goes first: it must not shoot at a number that somebody else got meanwhile.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl NatsServer {
    /// Starts a server with JetStream and waits until it answers.
    ///
    /// # Errors
    /// When no usable binary is found, or it does not come up in time.
    pub fn start() -> anyhow::Result<NatsServer> {
        Self::start_with("")
    }

    /// As [`NatsServer::start`], with more lines for the `jetstream` block of its configuration, such as
    /// `sync_interval: always`.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub fn start_with(jetstream_settings: &str) -> anyhow::Result<NatsServer> {
        let mut server = NatsServer {
            binary: find_binary()?,
            directory: tempfile::tempdir()?,
            port: free_port()?,
            monitor_port: free_port()?,
            settings: jetstream_settings.to_owned(),
            running: None,
        };
        server.restart()?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor_port)
    }

    /// Its data; survives [`NatsServer::kill`] and [`NatsServer::restart`].
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Watched::id)
    }

    /// A new connection.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn bus(&self) -> anyhow::Result<Arc<dyn Bus>> {
        let options = ConnectOptions { url: self.url(), name: "test".into(), ..ConnectOptions::default() };
        Ok(connect(&options).await?)
    }

    /// `kill -9`, and gone.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// SIGSTOP or SIGCONT.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.running.as_ref().context("the server is not running")?.signal(signal)
    }

    /// Starts it again on the same port and data.
    ///
    /// # Errors
    /// When it does not come up in time; the message holds the end of its log.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        let configuration = self.directory.path().join("nats.conf");
        let mut file = std::fs::File::create(&configuration)?;
        writeln!(file, "listen: 127.0.0.1:{}\nhttp: 127.0.0.1:{}", self.port, self.monitor_port)?;
        writeln!(file, "jetstream {{\n  store_dir: {:?}\n  {}\n}}", self.directory.path(), self.settings)?;
        let log = self.directory.path().join("nats.log");
        let server = Command::new(&self.binary)
            .arg("-c")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let mut server = Watched::new(server)?;
        let began = Instant::now();
        loop {
            if is_healthy(self.monitor_port) {
                self.running = Some(server);
                return Ok(());
            }
            let ended = server.try_wait()?;
            if ended.is_some() || began.elapsed() > READY_WITHIN {
                drop(server);
                bail!("nats-server did not come up: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The health page answers 200 once JetStream has recovered its streams.
pub fn is_healthy(monitor_port: u16) -> bool {
    use std::io::Read as _;
    let Ok(mut connection) = std::net::TcpStream::connect(("127.0.0.1", monitor_port)) else {
        return false;
    };
    let mut answer = String::new();
    connection.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").is_ok()
        && connection.read_to_string(&mut answer).is_ok()
        && answer.split_whitespace().nth(1) == Some("200")
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that was free a moment ago, and a different one at each call: what it is for may not have opened it yet. Below
/// the ports that the kernel gives to outgoing connections, and beside those that `ternfleet up` chooses, so that
/// nobody takes it in between, or while its server is dead.
///
/// # Errors
/// When the machine has none left.
pub fn free_port() -> std::io::Result<u16> {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 10_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        AtomicU16::new(
            ((u64::from(now) * 7919 + u64::from(std::process::id()) * 104_729) % u64::from(COUNT)) as u16,
        )
    });
    let mut taken = std::io::Error::from(std::io::ErrorKind::AddrInUse);
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => taken = error,
        }
    }
    Err(taken)
}

/// The server's program.
///
/// # Errors
/// When none is new enough.
pub fn find_binary() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("TERNFLEET_NATS_SERVER") {
        return Ok(PathBuf::from(named));
    }
    let on_path = std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|folder| folder.join("nats-server"))
        .find(|binary| binary.is_file());
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/nats-server");
    on_path
        .into_iter()
        .chain([fetched])
        .find(|binary| version(binary).is_some_and(|version| server_is_new_enough(&version)))
        .context(
            "no nats-server of 2.14 or newer: run scripts/fetch-nats-server.sh, or set TERNFLEET_NATS_SERVER",
        )
}

/// `nats-server: v2.15.1`
fn version(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().rsplit(' ').next().map(|version| version.trim_start_matches('v').to_owned())
}
