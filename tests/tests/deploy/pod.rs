//! A rented pod as its provider starts it: the script of a stock image, `ternfleet pod`, and the end of a start that
//! fails, against a server that stands for the provider's API and for whoever serves the files.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ternfleet_cloud::start;
use ternfleet_tests::program::{self, STORYTELLER, wait_for};
use ternfleet_tests::server::{Watched, free_port};

use super::read;

/// Serves one folder, with ranges, and writes down what is deleted and with which key.
const SERVER: &str = r#"
import http.server, os, re, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = os.path.join(sys.argv[2], os.path.basename(self.path))
        if not os.path.isfile(path):
            return self.send_error(404)
        data = open(path, 'rb').read()
        asked = re.match(r'bytes=(\d+)-(\d*)$', self.headers.get('Range', ''))
        part = data
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            part = data[first:last + 1]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header('Content-Range', f'bytes {first}-{last}/{len(data)}')
        self.send_header('Content-Length', str(len(part)))
        self.end_headers()
        self.wfile.write(part)
    def do_DELETE(self):
        with open(os.path.join(sys.argv[2], 'deleted'), 'a') as file:
            file.write(self.path + ' ' + self.headers.get('Authorization', '') + '\n')
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"#;

struct Server {
    folder: tempfile::TempDir,
    url: String,
    _process: Watched,
}

impl Server {
    /// With the storyteller and its manifest.
    fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let models = Path::new(STORYTELLER).parent().unwrap();
        for name in ["storyteller.gguf", "manifest.toml"] {
            std::fs::copy(models.join(name), folder.path().join(name)).unwrap();
        }
        let port = free_port().unwrap();
        let process = Command::new("python3")
            .args(["-c", SERVER, &port.to_string()])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Watched::new(process).unwrap();
        wait_for(Duration::from_secs(20), || Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok()))
            .unwrap();
        Server { folder, url: format!("http://127.0.0.1:{port}"), _process: process }
    }

    /// Pods that were ended, each with the key that was shown.
    fn deleted(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("deleted")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// As the provider's variables are in a pod that ends itself here.
    fn rented(&self, command: &mut Command) {
        command
            .env("TERNFLEET_END_MYSELF", "runpod")
            .env("TERNFLEET_RUNPOD_BASE", &self.url)
            .env("RUNPOD_POD_ID", format!("pod{}", std::process::id()))
            .env("RUNPOD_API_KEY", "rpa_scoped");
    }

    fn ended_once(&self) -> bool {
        self.deleted() == [format!("/v2/pods/pod{} Bearer rpa_scoped", std::process::id())]
    }
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `ternfleet pod` up to the worker's configuration, in a pod of its own folders.
fn pod(home: &Path, settings: &[(&str, &str)]) -> Output {
    let mut command = program::command(&["pod", "--", "--print-config"]).unwrap();
    command.env("HOME", home).env("TMPDIR", home).envs(settings.iter().copied());
    command.output().unwrap()
}

#[test]
fn a_pod_starts_with_the_right_model_and_with_no_other() {
    let server = Server::start();
    let (home, mount) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let digest = sha256(Path::new(STORYTELLER));
    let url = format!("{}/storyteller.gguf", server.url);
    let manifest = format!("{}/manifest.toml", server.url);
    let dir = mount.path().to_str().unwrap();
    for (settings, fault) in [
        (vec![], "no model is set: use TERNFLEET_MODEL"),
        (vec![("TERNFLEET_MODEL", "gpt")], "known are storyteller"),
        (vec![("TERNFLEET_MODEL", "storyteller")], "set TERNFLEET_MODEL_URL, or mount the file"),
        (
            vec![("TERNFLEET_MODEL_SHA256", "0000"), ("TERNFLEET_MODEL_URL", url.as_str())],
            "64 lower-case hexadecimal",
        ),
        (
            vec![("TERNFLEET_MODEL_SHA256", &"0".repeat(64)), ("TERNFLEET_MODEL_URL", url.as_str())],
            "It was deleted",
        ),
    ] {
        let settings: Vec<_> = settings.into_iter().chain([("TERNFLEET_POD_DIR", dir)]).collect();
        let refused = pod(home.path(), &settings);
        assert!(!refused.status.success() && said(&refused).contains(fault), "{fault}: {}", said(&refused));
    }

    // By its name and an address; by an address with a digest and a manifest; by what is there already.
    let shipped = ("TERNFLEET_MODEL", "storyteller");
    let fetched = pod(home.path(), &[shipped, ("TERNFLEET_MODEL_URL", &url), ("TERNFLEET_POD_DIR", dir)]);
    let configuration = String::from_utf8_lossy(&fetched.stdout).into_owned();
    assert!(fetched.status.success(), "{}", said(&fetched));
    let file = mount.path().join(&digest[..16]).join("storyteller.gguf");
    assert!(configuration.contains(&format!("model = \"{}\"  # flag", file.display())), "{configuration}");
    assert!(configuration.contains("engines = \"auto\"  # flag"), "{configuration}");
    assert_eq!(sha256(&file), digest);
    assert!(file.with_file_name("manifest.toml").exists());
    let again = pod(home.path(), &[shipped, ("TERNFLEET_POD_DIR", dir)]);
    assert!(again.status.success(), "found, not fetched: {}", said(&again));
    let other = tempfile::tempdir().unwrap();
    let unnamed = [
        ("TERNFLEET_MODEL_URL", url.as_str()),
        ("TERNFLEET_MODEL_SHA256", &digest),
        ("TERNFLEET_MANIFEST_URL", &manifest),
        ("TERNFLEET_POD_DIR", other.path().to_str().unwrap()),
    ];
    assert!(pod(home.path(), &unnamed).status.success());
    // What is at its place and is something else is left alone, and not run.
    std::fs::write(&file, "something else").unwrap();
    let refused = pod(home.path(), &[shipped, ("TERNFLEET_POD_DIR", dir)]);
    assert!(!refused.status.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "something else");
}

/// As the image's own user, with a volume that belongs to root, as providers mount it.
#[test]
fn a_volume_that_cannot_be_written_is_passed_over() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let server = Server::start();
    let place = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(place.path(), 0o755);
    let (program, volume, home) =
        (place.path().join("ternfleet"), place.path().join("models"), place.path().join("home"));
    std::fs::copy(program::binary().unwrap(), &program).unwrap();
    open(&program, 0o755);
    for folder in [&volume, &home] {
        std::fs::create_dir(folder).unwrap();
    }
    open(&volume, 0o755);
    std::os::unix::fs::chown(&home, Some(10_001), Some(10_001)).unwrap();
    let start = || {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=10001",
            "--regid=10001",
            "--clear-groups",
            "--bounding-set=-all",
            "--no-new-privs",
        ]);
        command.arg(&program).args(["pod", "--", "--print-config"]).current_dir("/").env_clear();
        command.envs([("PATH", "/usr/bin:/bin"), ("TERNFLEET_MODEL", "storyteller")]);
        command.env("HOME", &home).env("TERNFLEET_POD_DIR", &volume);
        command.env("TERNFLEET_NATS_CA_PEM", "-----BEGIN CERTIFICATE-----");
        command.env("TERNFLEET_MODEL_URL", format!("{}/storyteller.gguf", server.url)).output().unwrap()
    };
    let started = start();
    assert!(started.status.success(), "{}", said(&started));
    let configuration = String::from_utf8_lossy(&started.stdout).into_owned();
    let own = home.join(".local/share/ternfleet/pod");
    for (key, file) in [
        ("model", "storyteller.gguf"),
        ("nats_root_certificates", "nats-ca.crt"),
        ("nats_pod_file", "pod.creds"),
    ] {
        let line = configuration.lines().find(|line| line.starts_with(&format!("{key} ="))).unwrap();
        assert!(line.contains(own.to_str().unwrap()) && line.contains(file), "{line}");
    }
    assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 0);
    // A volume that holds the model already is read, although it cannot be written.
    let kept = volume.join("storyteller.gguf");
    std::fs::copy(STORYTELLER, &kept).unwrap();
    std::fs::copy(Path::new(STORYTELLER).with_file_name("manifest.toml"), volume.join("manifest.toml"))
        .unwrap();
    std::fs::remove_dir_all(&own).unwrap();
    let configuration = String::from_utf8_lossy(&start().stdout).into_owned();
    assert!(configuration.contains(&format!("model = \"{}\"", kept.display())), "{configuration}");
}

/// The stock image's shell runs the script as the order has it: entry point, command, environment, nothing else.
fn stock(
    home: &Path,
    arguments: &[&str],
    settings: &[(&str, &str)],
    more: impl FnOnce(&mut Command),
) -> Output {
    let (entrypoint, command) = start::command(arguments);
    let mut shell = Command::new(&entrypoint[0]);
    shell.args(&entrypoint[1..]).args(&command).env_clear().stdin(Stdio::null());
    shell.env("PATH", "/usr/bin:/bin").env("HOME", home).envs(settings.iter().copied());
    more(&mut shell);
    shell.output().unwrap()
}

#[test]
fn a_stock_image_fetches_the_right_program_and_a_pod_that_cannot_start_ends_itself() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\necho \"runs $*\"\n";
    std::fs::write(server.folder.path().join("ternfleet"), script).unwrap();
    let digest = sha256(&server.folder.path().join("ternfleet"));
    let url = format!("{}/ternfleet", server.url);
    // Nothing may be put beside this machine's own programs, so the script is shown no such folder.
    let confined = start::SCRIPT.replace("/usr/local/bin /opt /var/tmp ", "");
    assert_ne!(confined, start::SCRIPT);
    let run = |sha256: &str, url: &str| {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &confined, "ternfleet-start", "pod", "--x"]).env_clear().stdin(Stdio::null());
        shell.env("PATH", "/usr/bin:/bin").env("HOME", home.path());
        shell.env("TERNFLEET_BINARY_URL", url).env("TERNFLEET_BINARY_SHA256", sha256);
        shell.env("TERNFLEET_START_LIMIT_MS", "3000");
        server.rented(&mut shell);
        shell.output().unwrap()
    };
    let started = run(&digest, &url);
    assert_eq!(String::from_utf8_lossy(&started.stdout), "runs pod --x\n", "{}", said(&started));
    assert_eq!(server.deleted(), [""; 0]);
    // A container that is started again does not fetch again.
    std::fs::remove_file(server.folder.path().join("ternfleet")).unwrap();
    assert_eq!(String::from_utf8_lossy(&run(&digest, &url).stdout), "runs pod --x\n");
    std::fs::remove_file(home.path().join("ternfleet")).unwrap();

    let late = run(&digest, &url);
    assert!(said(&late).contains("was not downloaded within 3 s"), "{}", said(&late));
    assert!(server.ended_once(), "{:?}", server.deleted());
    std::fs::remove_file(server.folder.path().join("deleted")).unwrap();
    std::fs::write(server.folder.path().join("ternfleet"), "another").unwrap();
    let wrong = run(&digest, &url);
    assert!(said(&wrong).contains("does not match TERNFLEET_BINARY_SHA256"), "{}", said(&wrong));
    assert!(server.ended_once(), "{:?}", server.deleted());
    assert!(!home.path().join("ternfleet.part").exists());
    // Without a pod to end, it just ends.
    let nothing = stock(home.path(), &["pod"], &[], |_| ());
    assert_eq!(nothing.status.code(), Some(1));
    assert!(said(&nothing).contains("TERNFLEET_BINARY_URL is not set"));
}

#[test]
fn a_start_that_fails_or_takes_too_long_ends_the_pod_by_the_api() {
    let server = Server::start();
    let home = tempfile::tempdir().unwrap();
    let start = |arguments: &[&str], settings: &[(&str, &str)]| {
        let mut command = program::command(arguments).unwrap();
        command.env("HOME", home.path()).env("TMPDIR", home.path()).envs(settings.iter().copied());
        server.rented(&mut command);
        command.output().unwrap()
    };
    let ended = |what: &str, output: &Output| {
        assert_eq!(output.status.code(), Some(1), "{what}: {}", said(output));
        assert!(server.ended_once(), "{what}: {:?}", server.deleted());
        std::fs::remove_file(server.folder.path().join("deleted")).unwrap();
    };
    ended("no model", &start(&["worker", "--model", "/nowhere.gguf"], &[]));
    ended("an unknown key", &start(&["worker", "--set", "colour=red"], &[]));
    ended("a pod without a model", &start(&["pod"], &[]));
    // A server that takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mark = home.path().join(format!("ternfleet-started-pod{}", std::process::id()));
    std::fs::remove_file(&mark).unwrap();
    let begun = std::time::Instant::now();
    let worker = ["worker", "--nats", &address, "--set", "engine=instant"];
    ended("nobody answers", &start(&worker, &[("TERNFLEET_START_LIMIT_MS", "2000")]));
    assert!(begun.elapsed() < Duration::from_secs(9), "the limit holds: {:?}", begun.elapsed());
    // Started again by a restart policy, it continues with the time of its first start.
    assert!(mark.exists(), "{}", mark.display());
    let begun = std::time::Instant::now();
    ended("started again", &start(&worker, &[("TERNFLEET_START_LIMIT_MS", "2000")]));
    assert!(begun.elapsed() < Duration::from_millis(1_900), "{:?}", begun.elapsed());
}

/// The order by hand runs what the coordinator's orders run.
#[test]
fn the_order_by_hand_is_one_that_the_api_takes_and_that_runs() {
    let order: serde_json::Value = serde_json::from_str(&read("deploy/runpod/pod.json")).unwrap();
    let (entrypoint, command) = start::command(&["pod"]);
    assert_eq!(order["entrypoint"], serde_json::json!(entrypoint));
    assert_eq!(order["cmd"], serde_json::json!(command));
    assert_eq!(order["image"], start::STOCK_IMAGE);
    assert!(order["gpu"].is_object() != order["cpu"].is_object(), "exactly one of gpu and cpu");
    assert!(order.to_string().len() < 16 << 10);
    // Every variable is one that somebody reads: the script, `ternfleet pod`, or the worker.
    let help = program::run(&["pod", "--help"]).unwrap().stdout;
    let worker = program::run(&["worker", "--print-config"]).unwrap().stdout;
    for name in order["env"].as_object().unwrap().keys() {
        let key = name.strip_prefix("TERNFLEET_").unwrap().to_lowercase();
        let known = start::SCRIPT.contains(name.as_str()) || help.contains(name.as_str());
        assert!(known || worker.contains(&format!("{key} ")), "nobody reads {name}");
    }
}
