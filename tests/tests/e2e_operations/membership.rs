//! Pods that join with a token, batches that run over the allowed path while servers die, keys that are shut out.

use std::time::Duration;

use ternfleet_proto::message::{CountTokens, Prompt, Reply};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{TenantId, codec};
use ternfleet_tests::cluster::Cluster;
use ternfleet_tests::program::{self, Ended, json_lines, wait_for};

use crate::fleet::{as_tenant, coordinator, prompts, wait_for_pods, with_connection, worker};

const JOBS: usize = 60;

#[test]
fn a_batch_survives_the_loss_of_any_one_server() {
    let mut cluster = Cluster::start(3).unwrap();
    let _coordinator = coordinator(&cluster, "c-1", &["--replicas", "3", "--strict-durability"]);
    let token = cluster.nats(&["token"]).unwrap();
    let _workers = ["pod-1", "pod-2"].map(|pod| worker(&cluster, pod, token.trim(), &[]));
    wait_for_pods(&cluster, "acme", 2);

    let input = prompts(&cluster, "in.jsonl", JOBS, 40);
    let output = cluster.scratch("out.jsonl").display().to_string();
    let arguments = with_connection(&cluster, "acme", &["submit", &input, "--out", &output]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut submit = program::command(&arguments).unwrap().spawn().unwrap();
    let batch = wait_for(Duration::from_secs(60), || {
        let batches = as_tenant(&cluster, "acme", &["batches", "--json"]).json()?;
        let done = batches[0]["request_counts"]["completed"].as_u64().unwrap_or(0);
        Ok((done >= 1).then(|| batches[0].clone()))
    })
    .unwrap();
    let done = batch["request_counts"]["completed"].as_u64().unwrap();
    assert!(done < JOBS as u64, "the batch must be long enough to be disturbed");
    let id = batch["id"].as_str().unwrap().to_owned();

    for victim in 0..3 {
        cluster.kill(victim);
        std::thread::sleep(Duration::from_millis(700));
        cluster.restart(victim).unwrap();
        cluster.wait(victim).unwrap();
    }
    let status = wait_for(Duration::from_secs(120), || Ok(submit.try_wait()?)).unwrap();
    assert_eq!(status.code(), Some(0), "submit waits through it all");
    let lines = json_lines(&std::fs::read_to_string(&output).unwrap()).unwrap();
    let mut ids: Vec<&str> = lines.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((lines.len(), ids.len()), (JOBS, JOBS), "each line once");
    assert!(lines.iter().all(|line| line["error"].is_null()));

    // Accepted meant: synced, on three servers.
    let status = as_tenant(&cluster, "acme", &["status", &id, "--json"]).json().unwrap();
    let said = status.to_string();
    assert!(said.contains("fsynced") && said.contains("\"replicas\":3"), "{said}");
    // And another tenant knows nothing of it.
    let foreign = as_tenant(&cluster, "rival", &["status", &id, "--json"]);
    assert_eq!(foreign.code, Some(1), "{foreign:?}");
    assert!(foreign.stderr.contains("no batch has the id"), "{foreign:?}");
}

/// What the fleet says to a tenant who asks for the tokens of a prompt.
fn counted(cluster: &Cluster, prompt: &str) -> Reply<Vec<Option<u32>>> {
    let tenant: TenantId = "acme".parse().unwrap();
    let prompts = vec![Prompt::Text(prompt.to_owned())];
    let ask = CountTokens { tenant: tenant.clone(), prompts, model: None };
    let answer = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let bus = cluster.bus(&cluster.user("tenant", "acme").unwrap()).await.unwrap();
        let subject = table::api_of(ApiVerb::Count, &tenant);
        bus.request(&subject, codec::encode(&ask), Duration::from_secs(5)).await.unwrap()
    });
    codec::decode(&answer).unwrap()
}

#[test]
fn a_pod_comes_back_without_a_token_and_is_shut_out_when_its_key_is_revoked() {
    let cluster = Cluster::start(1).unwrap();
    // Short lives, so that the test sees renewals.
    let coordinator = coordinator(&cluster, "c-1", &["--set", "worker_token_ms=6000"]);
    let expired = cluster.nats(&["token", "--life", "0s"]).unwrap();
    let pod_file = cluster.scratch("pod.creds");
    let kept = format!("nats_pod_file={}", pod_file.display());
    let mut late = worker(&cluster, "late", expired.trim(), &[]);
    let status = wait_for(Duration::from_secs(30), || Ok(late.try_wait()?)).unwrap();
    assert_eq!(status.code(), Some(1), "an expired token lets nobody in");
    let said = std::fs::read_to_string(cluster.scratch("late.log")).unwrap();
    assert!(said.contains("ternfleet nats token"), "{said}");

    let token = cluster.nats(&["token"]).unwrap();
    let first = worker(&cluster, "pod-1", token.trim(), &["--set", &kept]);
    wait_for_pods(&cluster, "acme", 1);
    // Longer than a token's life: it has been renewed, and the connection with it.
    let log = || std::fs::read_to_string(cluster.scratch("c-1.log")).unwrap();
    wait_for(
        Duration::from_secs(20),
        || Ok((log().matches("credentials issued").count() >= 3).then_some(())),
    )
    .unwrap();
    let input = prompts(&cluster, "in.jsonl", 6, 10);
    let answered = as_tenant(&cluster, "acme", &["submit", &input, "--out", "-"]);
    assert_eq!((answered.code, answered.json_lines().unwrap().len()), (Some(0), 6), "{answered:?}");

    // A launch comes in by the same credentials, and leaves the fleet as it is.
    let text = |path: std::path::PathBuf| path.display().to_string();
    let (out, url) = (text(cluster.scratch("launched.jsonl")), cluster.url());
    let credentials = text(cluster.user_file("tenant", "acme").unwrap());
    let authority = text(cluster.root_certificates());
    let mut launch = program::command(&[
        "launch",
        &input,
        "--head",
        &url,
        "--nats-credentials-file",
        &credentials,
        "--nats-root-certificates",
        &authority,
        "--out",
        &out,
        "--yes",
        "--anyway",
    ])
    .unwrap();
    launch.env("TERNFLEET_STATE_DIR", cluster.scratch("fleets"));
    let launched = Ended::of(&mut launch).unwrap();
    assert_eq!(launched.code, Some(0), "{launched:?}");
    assert_eq!(json_lines(&std::fs::read_to_string(&out).unwrap()).unwrap().len(), 6);
    assert_eq!(counted(&cluster, "four"), Ok(vec![Some(4)]), "by the worker, which counts bytes");
    drop(first);

    // A start with no token at all: what the pod kept is enough.
    let second = worker(&cluster, "pod-1", "", &["--set", &kept]);
    let issued = log().matches("credentials issued").count();
    wait_for(Duration::from_secs(20), || {
        Ok((log().matches("credentials issued").count() > issued).then_some(()))
    })
    .unwrap();
    drop(second);

    // Stolen: the pod's key is shut out, and so is the worker's.
    let text = std::fs::read_to_string(&pod_file).unwrap();
    let pod = ternfleet_proto::access::Credentials::parse(&text).unwrap();
    cluster.nats(&["revoke", &pod.public_key()]).unwrap();
    cluster.reload().unwrap();
    let refused = wait_for(Duration::from_secs(20), || {
        let mut stolen = worker(&cluster, "thief", "", &["--set", &kept]);
        let ended = wait_for(Duration::from_secs(5), || Ok(stolen.try_wait()?)).ok();
        Ok(ended)
    })
    .unwrap();
    assert_eq!(refused.code(), Some(1));
    drop(coordinator);
}

#[test]
fn an_ordered_pod_joins_with_the_token_of_its_order_once_and_nobody_after_it() {
    let cluster = Cluster::start(1).unwrap();
    let folder = cluster.scratch("pods");
    let text = |path: std::path::PathBuf| serde_json::Value::from(path.display().to_string()).to_string();
    let certificates = format!("nats_root_certificates={}", cluster.root_certificates().display());
    // What the worker says of its price and class counts for nothing.
    let arguments = serde_json::json!([
        "worker",
        "--nats",
        cluster.url(),
        "--pod",
        "{name}",
        "--pod-class",
        "dear",
        "--price-usd-per-hour",
        "99",
        "--set",
        certificates,
        "--set",
        "engine=instant:30",
        "--set",
        "calibrate_ms=0"
    ]);
    let config = format!(
        "[scale]\nprovider = \"local\"\nfleet = \"rented\"\npods_min = 1\npods_max = 1\ntick_ms = \
         300\nlease_s = 10\n\
         [[scale.classes]]\nname = \"own\"\nprice_usd_per_hour = 0.34\nrate_tok_s = 20.0\n\
         [scale.local]\nprogram = {}\narguments = {arguments}\nfolder = {}\n",
        text(program::binary().unwrap()),
        text(folder.clone()),
    );
    let path = cluster.scratch("scale.toml");
    std::fs::write(&path, config).unwrap();
    let _coordinator = coordinator(&cluster, "c-1", &["--config", path.to_str().unwrap()]);
    let pods = wait_for_pods(&cluster, "acme", 1);
    let shown = pods[0].to_string();
    assert!(shown.contains("\"rented-own-0\"") && shown.contains("\"own\""), "{shown}");
    assert!(
        shown.contains("340000") && !shown.contains("99000000") && !shown.contains("\"dear\""),
        "{shown}"
    );

    // A tenant asks in its own name, whatever the default is.
    let input = prompts(&cluster, "in.jsonl", 3, 10);
    let quoted = as_tenant(&cluster, "acme", &["quote", &input, "--json"]);
    assert!(quoted.json().is_ok(), "{quoted:?}");
    let looked = as_tenant(&cluster, "acme", &["doctor"]);
    assert!(looked.stdout.contains("leads, replied in"), "{looked:?}");

    // Somebody has read the pod's environment.
    let card = std::fs::read_to_string(folder.join("rented-own-0.json")).unwrap();
    let process = serde_json::from_str::<serde_json::Value>(&card).unwrap()["process"].as_i64().unwrap();
    let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap();
    let variables = String::from_utf8(environment).unwrap();
    let token = variables.split('\0').find_map(|one| one.strip_prefix("TERNFLEET_NATS_JOIN_TOKEN=")).unwrap();
    let mut thief = worker(&cluster, "rented-own-0", token, &[]);
    let status = wait_for(Duration::from_secs(30), || Ok(thief.try_wait()?)).unwrap();
    assert_eq!(status.code(), Some(1));
    let said = std::fs::read_to_string(cluster.scratch("rented-own-0.log")).unwrap();
    assert!(said.contains("has been used"), "{said}");
    let other = cluster.nats(&["user", "--role", "joiner", "--name", "order-rented-own-9"]).unwrap();
    std::fs::write(cluster.scratch("other.creds"), other).unwrap();
    let kept = format!("nats_pod_file={}", cluster.scratch("other.creds").display());
    let mut nobody = worker(&cluster, "never-ordered", "", &["--set", &kept]);
    let log = || std::fs::read_to_string(cluster.scratch("c-1.log")).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(nobody.is_alive(), "its order may be known in a moment, so it asks again");
    assert!(!log().contains("never-ordered"), "{}", log());
    drop(nobody);
    let process = nix::unistd::Pid::from_raw(i32::try_from(process).unwrap());
    let own = std::fs::read_to_string(folder.join("rented-own-0.log")).unwrap();
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM)
        .unwrap_or_else(|error| panic!("the pod itself is gone: {error}: {own}\n{}", log()));
}
