//! The files that ship for RunPod, as they stand, addresses and the model apart: a coordinator with
//! `deploy/fleets/runpod.toml` rents pods that do a batch, and the order `deploy/runpod/pod.json` becomes a worker. With
//! `deploy/fleets/gpu.toml` it rents the card first; the pod has none here, says so and ends itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};
use ternfleet_cloud::start::STOCK_IMAGE;
use ternfleet_proto::bus::Replayed;
use ternfleet_proto::message::{Event, EventKind};
use ternfleet_proto::nats::{self, ConnectOptions};
use ternfleet_proto::{codec, table};
use ternfleet_tests::program::{self, Ended, STORYTELLER, Service, json_lines, wait_for};
use ternfleet_tests::server::{Watched, find_binary, free_port, is_healthy};
use ternfleet_tests::standin::{Fault, Image, LAST_WORD, StandIn};

use crate::launch::{pod_files, stripped_binary};
use crate::{post, stand_in};

const PATIENCE: Duration = Duration::from_secs(120);
/// A pod that is not ready by then has failed.
const READY_LIMIT_S: u32 = 25;

/// A secured nats-server on this machine that pods reach, as `ternfleet nats init` sets it up.
struct Site {
    folder: tempfile::TempDir,
    url: String,
    _server: Watched,
}

impl Site {
    fn start(provider: &StandIn) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let ports = [free_port().unwrap(), free_port().unwrap(), free_port().unwrap()];
        let host = provider.gateway();
        let node = format!("a={host}:{}:{}:{}", ports[0], ports[1], ports[2]);
        let (site, tls, store) =
            (folder.path().join("site"), folder.path().join("site/servers/a"), folder.path().join("js"));
        let text = |path: &Path| path.display().to_string();
        let words = [
            "nats",
            "init",
            "--dir",
            &text(&site),
            "--tls-dir",
            &text(&tls),
            "--store-dir",
            &text(&store),
            "--node",
            &node,
        ];
        let made = program::run(&words).unwrap();
        assert_eq!(made.code, Some(0), "{made:?}");
        let server = Command::new(find_binary().unwrap())
            .arg("-c")
            .arg(tls.join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("nats.log")).unwrap())
            .spawn()
            .unwrap();
        let server = Watched::new(server).unwrap();
        wait_for(PATIENCE, || Ok(is_healthy(ports[2]).then_some(()))).unwrap();
        Site { folder, url: format!("tls://{host}:{}", ports[0]), _server: server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("site").join(name)
    }

    /// The pods whose failures the audit log has, with their last lines.
    fn pod_failures(&self) -> Vec<(String, Vec<String>)> {
        let connect = ConnectOptions {
            url: self.url.clone(),
            credentials_file: Some(self.path("coordinator/coordinator.creds")),
            root_certificates: Some(self.path("coordinator/ca.crt")),
            ..ConnectOptions::default()
        };
        let read = async {
            let bus = nats::connect(&connect).await.unwrap();
            let mut log = bus.replay(table::EVENTS, table::events_all(), 1).await.unwrap();
            let mut failed = Vec::new();
            while let Some(Replayed::Message(message)) = log.next().await.transpose().unwrap() {
                let event: Event = codec::decode(&message.payload).unwrap();
                if let EventKind::PodFailed { pod, log, .. } = event.what {
                    assert_eq!(message.subject, table::event("pod"));
                    failed.push((pod, log));
                }
            }
            failed
        };
        tokio::runtime::Runtime::new().unwrap().block_on(read)
    }

    /// A command in the operator's own name.
    fn run(&self, arguments: &[&str]) -> Ended {
        let (credentials, authority) =
            (self.path("coordinator/coordinator.creds"), self.path("coordinator/ca.crt"));
        let (credentials, authority) = (credentials.display().to_string(), authority.display().to_string());
        let who = [
            "--nats",
            &self.url,
            "--nats-credentials-file",
            &credentials,
            "--nats-root-certificates",
            &authority,
        ];
        program::run(&[arguments, &who].concat()).unwrap()
    }
}

fn shipped(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

#[test]
fn the_shipped_fleet_and_order_give_pods_that_work() {
    let binary_folder = tempfile::tempdir().unwrap();
    let binary = stripped_binary(binary_folder.path());
    std::fs::write(binary_folder.path().join("ternfleet.cdx.json"), "{}").unwrap();
    let target = |name: &str| {
        let image = Image::of_dockerfile(&shipped("deploy/Dockerfile"), name, binary_folder.path()).unwrap();
        (format!("example.com/ternfleet-{name}:1"), image)
    };
    let images = [(STOCK_IMAGE.to_owned(), Image::default()), target("pod"), target("fleet")].into();
    let mut files = pod_files(&binary);
    files.insert("ternfleet-gpu".to_owned(), binary.clone());
    let Some(provider) = stand_in(images, files) else { return };
    let site = Site::start(&provider);
    let digest = |path: &Path| {
        let output = Command::new("sha256sum").arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()[..64].to_owned()
    };
    let (binary_sha256, model_sha256) = (digest(&binary), digest(Path::new(STORYTELLER)));

    let model = format!(
        "model_url = \"{}\"\nmodel_sha256 = \"{model_sha256}\"\nmanifest_url = \"{}\"\n",
        provider.file("model.gguf"),
        provider.file("manifest.toml"),
    );
    let log = site.folder.path().join("coordinator.log");
    let coordinator = |fleet: &str| {
        let config = shipped(&format!("deploy/fleets/{fleet}"))
            .replace("model = \"bitnet-b1.58-2B-4T\"\n", &model)
            .replace("https://FILES.EXAMPLE/ternfleet", &provider.file("ternfleet"))
            .replace(&"0".repeat(64), &binary_sha256)
            .replace("tls://NATS.EXAMPLE:4222", &site.url)
            .replace(
                "file:coordinator/ca.crt",
                &format!("file:{}", site.path("coordinator/ca.crt").display()),
            );
        // The provider's address, and shorter times: addresses and patience of the test.
        let config = config
            .replace("[scale]\n", "[scale]\ntick_ms = 500\n")
            .replace("ready_limit_s = 900", &format!("ready_limit_s = {READY_LIMIT_S}"))
            + &format!("\n[scale.runpod]\nbase = \"{}\"\nsettle_ms = 200\n", provider.base());
        let file = site.path(fleet);
        std::fs::write(&file, config).unwrap();
        let words = ["coordinator", "--config", &file.display().to_string(), "--nats", &site.url];
        let mut command = program::command(&words).unwrap();
        command
            .env("RUNPOD_API_KEY", provider.key())
            .env("TERNFLEET_NATS_CREDENTIALS_FILE", site.path("coordinator/coordinator.creds"))
            .env("TERNFLEET_ISSUER_FILE", site.path("coordinator/issuer.json"))
            .env("TERNFLEET_NATS_ROOT_CERTIFICATES", site.path("coordinator/ca.crt"));
        Service::start_command(command, &log).unwrap()
    };
    let running = coordinator("runpod.toml");
    let said = || {
        let pods: Vec<String> = provider.state().pods.iter().map(|pod| pod.name.clone()).collect();
        let logs: Vec<String> = pods.iter().map(|pod| format!("== {pod}\n{}", provider.log(pod))).collect();
        format!("{}\n{}", std::fs::read_to_string(&log).unwrap_or_default(), logs.join("\n"))
    };

    // The order that a person sends by hand.
    let token = || program::run(&["nats", "token", "--dir", &site.path("").display().to_string()]).unwrap();
    let mut order: Value = serde_json::from_str(&shipped("deploy/runpod/pod.json")).unwrap();
    let env = order["env"].as_object_mut().unwrap();
    env.remove("TERNFLEET_MODEL");
    for (name, value) in [
        ("TERNFLEET_BINARY_URL", provider.file("ternfleet")),
        ("TERNFLEET_BINARY_SHA256", binary_sha256.clone()),
        ("TERNFLEET_MODEL_URL", provider.file("model.gguf")),
        ("TERNFLEET_MODEL_SHA256", model_sha256),
        ("TERNFLEET_MANIFEST_URL", provider.file("manifest.toml")),
        ("TERNFLEET_NATS", site.url.clone()),
        ("TERNFLEET_NATS_CA_PEM", std::fs::read_to_string(site.path("coordinator/ca.crt")).unwrap()),
        ("TERNFLEET_NATS_JOIN_TOKEN", token().stdout.trim().to_owned()),
        ("TERNFLEET_RUNPOD_BASE", provider.base()),
    ] {
        env.insert(name.to_owned(), json!(value));
    }
    // Of another fleet by its name: the coordinator leaves it alone.
    order["name"] = json!("by-hand");
    order["env"]["TERNFLEET_POD"] = json!("by-hand");
    assert_eq!(post(&provider, provider.key(), "/v2/pods", &order).0, 201);

    // The same with images of one's own, which say themselves what they start.
    order["name"] = json!("by-image");
    order["image"] = json!("example.com/ternfleet-pod:1");
    let fields = order.as_object_mut().unwrap();
    fields.remove("entrypoint");
    fields.remove("cmd");
    let env = fields["env"].as_object_mut().unwrap();
    env.remove("TERNFLEET_BINARY_URL");
    env.remove("TERNFLEET_BINARY_SHA256");
    env.insert("TERNFLEET_POD".to_owned(), json!("by-image"));
    env.insert("TERNFLEET_NATS_JOIN_TOKEN".to_owned(), json!(token().stdout.trim()));
    assert_eq!(post(&provider, provider.key(), "/v2/pods", &order).0, 201);
    order["name"] = json!("version");
    order["image"] = json!("example.com/ternfleet-fleet:1");
    order["cmd"] = json!(["--version"]);
    assert_eq!(post(&provider, provider.key(), "/v2/pods", &order).0, 201);

    let pods = || {
        site.run(&["pods", "--json"])
            .json()
            .ok()
            .and_then(|pods| pods.as_array().cloned())
            .unwrap_or_default()
    };
    for name in ["by-hand", "by-image"] {
        let is_ready = |pod: &Value| pod["heartbeat"]["pod"] == name && pod["heartbeat"]["state"] == "ready";
        wait_for(PATIENCE, || Ok(pods().iter().any(is_ready).then_some(())))
            .unwrap_or_else(|error| panic!("{name}: {error}: {}", said()));
        provider.vanish(name);
    }
    let version = format!("ternfleet {}", env!("CARGO_PKG_VERSION"));
    wait_for(PATIENCE, || Ok(provider.log("version").contains(&version).then_some(())))
        .unwrap_or_else(|error| panic!("{error}: {}", provider.log("version")));
    provider.vanish("version");

    // The first pod that is rented dies at once, and so often that another one takes its place.
    provider.state().creations = [Some(Fault::Doomed)].into();
    site.run(&["scale", "set", "--max", "1"]);

    let input = site.path("in.jsonl");
    let lines: String =
        (0..12).map(|n| format!("{{\"prompt\": \"Tale {n}.\", \"max_tokens\": 24}}\n")).collect();
    std::fs::write(&input, lines).unwrap();
    let out = site.path("out.jsonl");
    let (input, out) = (input.display().to_string(), out.display().to_string());
    let ended = site.run(&["submit", &input, "--out", &out, "--anyway"]);
    assert_eq!(ended.code, Some(0), "{ended:?}: {}", said());
    assert_eq!(json_lines(&std::fs::read_to_string(&out).unwrap()).unwrap().len(), 12);
    assert!(
        provider.alive().iter().any(|(name, _)| name.starts_with("ternfleet-")),
        "rented pods did it: {}",
        said()
    );

    // What it wrote last is told wherever somebody looks.
    let shown = [site.run(&["scale", "show"]).stdout, site.run(&["doctor"]).stdout];
    assert!(shown.iter().all(|text| text.contains(LAST_WORD)), "{shown:?}: {}", said());
    let failed = site.pod_failures();
    let tells = |(_, log): &(String, Vec<String>)| log.iter().any(|line| line.contains(LAST_WORD));
    assert!(failed.iter().any(tells), "{failed:?}: {}", said());

    let rent_nothing = || {
        site.run(&["scale", "set", "--max", "0"]);
        wait_for(PATIENCE, || Ok(provider.alive().is_empty().then_some(())))
            .unwrap_or_else(|error| panic!("{error}: {}", said()));
    };
    rent_nothing();

    // The card is the cheapest. This program cannot open it, and the pod's last words say which one can.
    drop(running);
    let n_before = provider.state().pods.len();
    let _running = coordinator("gpu.toml");
    site.run(&["scale", "set", "--max", "1"]);
    let ended = site.run(&["submit", &input, "--detach", "--anyway"]);
    assert_eq!(ended.code, Some(0), "{ended:?}: {}", said());
    let of_card = || {
        let state = provider.state();
        let mut pods = state.pods[n_before..].iter();
        pods.find(|pod| pod.order["env"]["TERNFLEET_DEVICE"] == "cuda" && pod.ended_at.is_some())
            .map(|pod| std::fs::read_to_string(&pod.log).unwrap_or_default())
    };
    let last = wait_for(PATIENCE, || Ok(of_card())).unwrap_or_else(|error| panic!("{error}: {}", said()));
    assert!(last.contains("use the program ternfleet-gpu"), "{last}");
    assert!(provider.state().fetched.iter().any(|file| file.ends_with("ternfleet-gpu")), "{}", said());
    rent_nothing();
    assert_eq!(provider.state().faults, [""; 0]);
}
