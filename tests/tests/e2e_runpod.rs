//! Pods at a stand-in for RunPod that are real: containers in network namespaces, with the provider's API, keys, ports,
//! bills and faults.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

#[path = "e2e_runpod/examples.rs"]
mod examples;
#[path = "e2e_runpod/launch.rs"]
mod launch;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use ternfleet_cloud::http::Secret;
use ternfleet_cloud::runpod::{Options, Runpod};
use ternfleet_cloud::{CloudError, PodId, Provider, start};
use ternfleet_proto::TimeMs;
use ternfleet_tests::program::wait_for;
use ternfleet_tests::standin::{Fault, Image, StandIn};

const PATIENCE: Duration = Duration::from_secs(30);
const IMAGE: &str = "example/echo:1";

/// A stand-in, unless this machine cannot have one. In CI that is a failure.
fn stand_in(images: BTreeMap<String, Image>, files: BTreeMap<String, std::path::PathBuf>) -> Option<StandIn> {
    match StandIn::possible() {
        Ok(()) => Some(StandIn::start(images, files).unwrap()),
        Err(why) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{why}"),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// An image that runs as somebody else than root and says what it sees.
fn echo() -> BTreeMap<String, Image> {
    let image = Image {
        entrypoint: vec!["/bin/sh".to_owned(), "-c".to_owned()],
        cmd: vec!["echo default; sleep 600".to_owned()],
        user: (10_001, 10_001),
        env: vec![("COLOUR".to_owned(), "green".to_owned())],
        workdir: "/data".to_owned(),
        folders: vec![("/data".to_owned(), 10_001)],
        ..Image::default()
    };
    [(IMAGE.to_owned(), image)].into()
}

fn client(stand_in: &StandIn, key: &str) -> Runpod {
    let mut options = Options::new(Secret::new(key));
    options.base = stand_in.base();
    options.settle = Duration::from_millis(50);
    options.timeout = Duration::from_secs(10);
    Runpod::new(options).unwrap()
}

/// Posts an order as it stands; answers its status and body.
fn post(stand_in: &StandIn, key: &str, path: &str, body: &Value) -> (u16, Value) {
    let file = stand_in.folder().join("body.json");
    std::fs::write(&file, body.to_string()).unwrap();
    let output = std::process::Command::new("curl")
        .args(["--silent", "--request", "POST", "--header", &format!("Authorization: Bearer {key}")])
        .args(["--header", "Content-Type: application/json", "--write-out", "\n%{http_code}"])
        .arg("--data-binary")
        .arg(format!("@{}", file.display()))
        .arg(format!("{}{path}", stand_in.base()))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn order(name: &str, script: &str) -> Value {
    json!({
        "name": name, "image": IMAGE, "disk": 5, "cpu": {"id": "cpu5c", "vcpuCount": 2}, "cmd": [script],
        "env": {"SECRET": "hush"}, "ports": ["7000/tcp"],
        "mounts": {"network": [{"volumeId": "vol", "path": "/models"}]},
    })
}

fn wait_for_log(stand_in: &StandIn, name: &str, part: &str) -> String {
    let log = || Ok(Some(stand_in.log(name)).filter(|log| log.contains(part)));
    wait_for(PATIENCE, log).unwrap_or_else(|error| panic!("{error}: {}", stand_in.log(name)))
}

#[test]
fn a_pod_is_a_container_with_its_own_network_user_keys_and_bill() {
    let Some(stand_in) = stand_in(echo(), BTreeMap::new()) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let account = client(&stand_in, stand_in.key());

    // What the text forbids is refused, and nothing is rented.
    let (status, problem) = post(&stand_in, stand_in.key(), "/v2/pods", &json!({"name": "a", "bogus": 1}));
    assert_eq!((status, stand_in.alive().len()), (422, 0), "{problem}");
    assert!(problem["errors"].to_string().contains("'bogus' not allowed"), "{problem}");
    assert_eq!(post(&stand_in, "wrong", "/v2/pods", &json!({})).0, 401);

    let script = "id -u; pwd; echo $COLOUR $SECRET $RUNPOD_POD_ID; touch /models/x || echo unwritable; \
                  (while :; do printf pong | curl --silent telnet://$RUNPOD_PUBLIC_IP:1 >/dev/null 2>&1; sleep 1; done) & \
                  curl --silent --header \"Authorization: Bearer $RUNPOD_API_KEY\" $BASE/v2/pods/$RUNPOD_POD_ID; echo; \
                  curl --silent --output /dev/null --write-out 'list %{http_code}\\n' \
                    --header \"Authorization: Bearer $RUNPOD_API_KEY\" $BASE/v2/pods; echo done; sleep 600";
    let mut first = order("one", script);
    first["env"]["BASE"] = json!(stand_in.base());
    let (status, pod) = post(&stand_in, stand_in.key(), "/v2/pods", &first);
    assert_eq!(status, 201, "{pod}");
    let log = wait_for_log(&stand_in, "one", "done");
    let id = pod["id"].as_str().unwrap().to_owned();
    for part in ["10001\n/data\n", &format!("green hush {id}"), "unwritable", "\"name\":\"one\"", "list 403"]
    {
        assert!(log.contains(part), "{part:?} is not in {log}");
    }

    // Another machine reaches it by its public port alone, and each pod by its own address.
    let state = || stand_in.state();
    assert_eq!(state().pods[0].ports.len(), 1);
    let seen = runtime.block_on(account.list()).unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].price_usd_micro_per_hour, Some(80_000));

    // It ends itself with its own key, which opens nothing else.
    let own = client(&stand_in, &format!("rpa_pod_{id}"));
    assert!(matches!(runtime.block_on(own.list()), Err(CloudError::Forbidden(_))));
    post(&stand_in, stand_in.key(), "/v2/pods", &order("two", "sleep 600"));
    let two = stand_in.alive()[1].1.clone();
    assert!(matches!(runtime.block_on(own.terminate(&PodId(two.clone()))), Err(CloudError::Forbidden(_))));
    runtime.block_on(own.terminate(&PodId(id.clone()))).unwrap();
    assert_eq!(stand_in.alive(), [("two".to_owned(), two.clone())]);

    // Ended twice is ended once, and the bill is by the second to the micro-dollar.
    runtime.block_on(account.terminate(&PodId(id.clone()))).unwrap();
    runtime.block_on(account.terminate(&PodId(two))).unwrap();
    let bills = runtime.block_on(account.billing(0, TimeMs::now().0)).unwrap();
    let sum: i64 = bills.iter().map(|bill| bill.amount_usd_micro).sum();
    assert_eq!((bills.len(), sum), (2, stand_in.billed_usd_micro()));
    assert!(sum > 0);
    assert_eq!(state().faults, [""; 0], "every answer is what the text says");
}

#[test]
fn a_container_that_ends_starts_again_and_a_pod_can_vanish_stop_and_lose_its_cable() {
    let Some(stand_in) = stand_in(echo(), BTreeMap::new()) else { return };
    let (_, pod) = post(&stand_in, stand_in.key(), "/v2/pods", &order("short", "echo begun; exit 3"));
    wait_for(PATIENCE, || Ok((stand_in.log("short").matches("begun").count() >= 2).then_some(()))).unwrap();
    let path = format!("/v2/pods/{}/action", pod["id"].as_str().unwrap());
    assert_eq!(post(&stand_in, stand_in.key(), &path, &json!({"action": "start"})).0, 409);
    let (status, stopped) = post(&stand_in, stand_in.key(), &path, &json!({"action": "stop"}));
    assert_eq!((status, &stopped["status"], &stopped["cost"]), (200, &json!("EXITED"), &json!(0.0)));
    assert_eq!(post(&stand_in, stand_in.key(), &path, &json!({"action": "sing"})).0, 422);

    let script = format!(
        "while :; do curl --silent --max-time 1 --output /dev/null {}/files/x && echo reached || echo cut; sleep 0.2; done",
        stand_in.base().replace("127.0.0.1", "$RUNPOD_PUBLIC_IP")
    );
    post(&stand_in, stand_in.key(), "/v2/pods", &order("wired", &script));
    wait_for_log(&stand_in, "wired", "reached");
    stand_in.connect("wired", false).unwrap();
    wait_for_log(&stand_in, "wired", "cut");
    let before = stand_in.log("wired").matches("reached").count();
    stand_in.connect("wired", true).unwrap();
    wait_for(PATIENCE, || Ok((stand_in.log("wired").matches("reached").count() > before).then_some(())))
        .unwrap();
    stand_in.vanish("wired");
    assert_eq!(stand_in.alive().len(), 1);
    assert_eq!(stand_in.state().faults, [""; 0]);
}

#[test]
fn lists_have_pages_and_creations_fail_in_every_way_that_the_provider_knows() {
    let Some(stand_in) = stand_in(echo(), BTreeMap::new()) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let account = client(&stand_in, stand_in.key());
    for number in 0..7 {
        assert_eq!(
            post(&stand_in, stand_in.key(), "/v2/pods", &order(&format!("p{number}"), "sleep 600")).0,
            201
        );
    }
    assert_eq!(runtime.block_on(account.list()).unwrap().len(), 7, "three pages");
    stand_in.state().creations = [
        Some(Fault::Refuse(429)),
        Some(Fault::Refuse(402)),
        Some(Fault::DoneBut(503)),
        Some(Fault::DoneAndCut),
    ]
    .into();
    let create = |name: &str| post(&stand_in, stand_in.key(), "/v2/pods", &order(name, "sleep 600")).0;
    assert_eq!((create("x"), create("x"), create("x")), (429, 402, 503));
    create("y");
    let names: Vec<String> = stand_in.alive().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[7..], ["x", "y"], "what failed upstream was done all the same");
    stand_in.state().market.capacity = 9;
    assert_eq!(create("z"), 400);
    stand_in.state().market.balance_usd_micro = 0;
    assert_eq!(create("z"), 402);
    stand_in.state().creations = [Some(Fault::Mute)].into();
    stand_in.state().market.balance_usd_micro = 1_000_000;
    stand_in.state().market.capacity = 99;
    assert_eq!(create("mute"), 201);
    assert!(runtime.block_on(account.offers()).unwrap().len() >= 2);
    assert_eq!(stand_in.state().faults, [""; 0]);
}

/// `make runpod-acceptance` has run here before it costs anybody a dollar.
#[test]
fn the_acceptance_program_takes_every_step() {
    let images = [(start::STOCK_IMAGE.to_owned(), Image::default())].into();
    let Some(stand_in) = stand_in(images, BTreeMap::new()) else { return };
    let accepted = std::process::Command::new(env!("CARGO_BIN_EXE_runpod_acceptance"))
        .env("RUNPOD_API_KEY", stand_in.key())
        .env("TERNFLEET_RUNPOD_BASE", stand_in.base())
        .env("ACCEPTANCE_SECONDS", "4")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&accepted.stdout).into_owned();
    let faults = String::from_utf8_lossy(&accepted.stderr).into_owned();
    assert!(accepted.status.success(), "{said}\n{faults}");
    for step in [
        "GET /v2/catalog",
        "POST /v2/pods",
        "runs with a public port",
        "GET /v2/pods/{id}/logs",
        "entry point and command as sent: acceptance",
        "ended by its own key",
        "GET /v2/billing/pods",
        "micro-dollars",
        "is given back",
    ] {
        assert!(said.contains(step), "{step:?} is not in {said}");
    }
    assert!(!said.contains(stand_in.key()) && stand_in.alive().is_empty(), "{said}");
    assert_eq!(stand_in.state().faults, [""; 0]);
}

/// What a test leaves behind is nothing, even where it fails.
#[test]
fn nothing_of_the_network_is_left() {
    let Some(stand_in) = stand_in(echo(), BTreeMap::new()) else { return };
    post(&stand_in, stand_in.key(), "/v2/pods", &order("left", "sleep 600"));
    wait_for(PATIENCE, || Ok(stand_in.state().pods[0].started_at)).unwrap();
    let (folder, namespaces) = (stand_in.folder().to_owned(), stand_in.namespaces());
    assert!(namespaces.iter().all(|path| path.exists()) && namespaces.len() == 1);
    drop(stand_in);
    assert!(!namespaces.iter().any(|path| path.exists()));
    assert!(!Path::new(&folder).exists());
}
