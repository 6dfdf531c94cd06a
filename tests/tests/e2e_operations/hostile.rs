//! A worker's key in wrong hands, on a real secured server: it lies about everything that it can say.

use std::time::Duration;

use nix::sys::signal::Signal;
use ternfleet_proto::bus::{Bus, Publish};
use ternfleet_proto::message::{PodView, Reply};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{JobKey, TenantId, UsdMicro, WorkerId, codec};
use ternfleet_tests::cluster::Cluster;
use ternfleet_tests::hostile;
use ternfleet_tests::program::wait_for;

use crate::fleet::{as_tenant, coordinator, prompts, wait_for_pods, worker};

const JOBS: usize = 40;

async fn pods(bus: &dyn Bus, tenant: &TenantId) -> Vec<PodView> {
    let subject = table::api_of(ApiVerb::Pods, tenant);
    let answer = bus.request(&subject, codec::encode(&()), Duration::from_secs(10)).await.unwrap();
    codec::decode::<Reply<Vec<PodView>>>(&answer).unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_workers_key_pins_no_job_spends_no_money_and_shuts_nobody_out() {
    let cluster = Cluster::start(1).unwrap();
    let _coordinator = coordinator(&cluster, "c-1", &[]);
    let token = cluster.nats(&["token"]).unwrap();
    let mut honest = ["pod-1", "pod-2"].map(|pod| Some(worker(&cluster, pod, token.trim(), &[])));
    wait_for_pods(&cluster, "acme", 2);
    let tenant: TenantId = "acme".parse().unwrap();
    let client = cluster.bus(&cluster.user("tenant", "acme").unwrap()).await.unwrap();
    let victim = pods(&*client, &tenant).await.remove(0).heartbeat;

    // A dollar of budget; the jobs cost less than a cent.
    let input = prompts(&cluster, "in.jsonl", JOBS, 60);
    let submitted = as_tenant(&cluster, "acme", &["submit", &input, "--detach", "--budget", "1", "--anyway"]);
    let batch = submitted.stdout.trim().to_owned();
    assert!(batch.starts_with("batch_"), "{submitted:?}");

    let me: WorkerId = "stolen".parse().unwrap();
    let thief = cluster.bus(&cluster.user("worker", "stolen").unwrap()).await.unwrap();
    for index in [3, 7, 11, 38, 39] {
        let job = JobKey { batch: batch.parse().unwrap(), index };
        let answer = hostile::forged_answer(&me, &tenant, job.clone());
        for (subject, payload) in [hostile::forged_checkpoint(&me, job), answer] {
            thief.publish(&subject, payload, Publish::default()).await.unwrap();
        }
    }
    // What others have written it can read, and so write back with other ids under their own names and tags.
    let rewriting = tokio::spawn({
        let (thief, batch) =
            (cluster.bus(&cluster.user("worker", "stolen").unwrap()).await.unwrap(), batch.clone());
        async move {
            loop {
                for index in 0..JOBS as u32 {
                    hostile::rewrite(&*thief, &JobKey { batch: batch.parse().unwrap(), index }).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let lying = tokio::spawn({
        let (me, victim, batch) = (me.clone(), victim.clone(), batch.clone());
        async move {
            loop {
                let jobs = (0..JOBS as u32).map(|index| JobKey { batch: batch.parse().unwrap(), index });
                let beat = codec::encode(&hostile::lies(&me, &victim, jobs));
                let _ = thief.send(&table::heartbeat(&me), beat).await;
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        }
    });

    // A worker dies, and its jobs go on elsewhere from what counts of their checkpoints.
    let ended = |at_least: u64| {
        let done = as_tenant(&cluster, "acme", &["status", &batch, "--json"]).json()?;
        Ok((done["request_counts"]["completed"].as_u64() >= Some(at_least)).then_some(()))
    };
    tokio::task::block_in_place(|| wait_for(Duration::from_secs(60), || ended(4))).unwrap();
    let other = usize::from(victim.pod.starts_with("pod-1"));
    honest[other].take().unwrap().signal(Signal::SIGKILL).unwrap();

    let status = || as_tenant(&cluster, "acme", &["status", &batch, "--json"]).json();
    let ended = tokio::task::block_in_place(|| {
        wait_for(Duration::from_secs(120), || {
            let status = status()?;
            Ok((status["status"] == "completed").then_some(status))
        })
    });
    let ended = ended.unwrap_or_else(|error| panic!("{error:#}: {:?}", status()));
    assert_eq!(ended["request_counts"]["completed"], JOBS, "{ended}");
    assert_eq!(ended["request_counts"]["failed"], 0, "{ended}");
    let cost = ended["ternfleet"]["cost_usd_micro"].as_i64().unwrap();
    assert!(cost < 50_000, "{cost} micro-dollars: {ended}");

    let seen = pods(&*client, &tenant).await;
    for honest in seen.iter().filter(|pod| pod.heartbeat.worker != me) {
        let beat = &honest.heartbeat;
        assert_eq!(beat.price_usd_micro_per_hour, UsdMicro(340_000), "{beat:?}");
        assert!(honest.cost_usd_micro < UsdMicro(50_000), "{honest:?}");
    }
    for pod in seen.iter().filter(|pod| pod.heartbeat.worker == me) {
        assert!(pod.heartbeat.pod != victim.pod && pod.heartbeat.host != victim.host, "{:?}", pod.heartbeat);
    }
    // The victim's host is as good as ever: it answers another batch beside the liar.
    let again =
        tokio::task::block_in_place(|| as_tenant(&cluster, "acme", &["submit", &input, "--out", "-"]));
    let lines = again.json_lines().unwrap();
    assert_eq!((again.code, lines.len()), (Some(0), JOBS), "{}", again.stderr);
    let by_victim = lines.iter().filter(|line| line["ternfleet"]["worker"] == victim.worker.as_str()).count();
    assert!(by_victim > 0, "the victim's host got nothing: {}", lines[0]);
    lying.abort();
    rewriting.abort();
    let texts = |lines: Vec<serde_json::Value>| -> std::collections::BTreeMap<String, String> {
        let text = |line: &serde_json::Value| {
            line["response"]["body"]["choices"][0]["text"].as_str().unwrap().to_owned()
        };
        lines.iter().map(|line| (line["custom_id"].as_str().unwrap().to_owned(), text(line))).collect()
    };
    let disturbed = as_tenant(&cluster, "acme", &["results", &batch, "--out", "-"]);
    assert_eq!(texts(disturbed.json_lines().unwrap()), texts(lines), "a forged checkpoint was gone on from");
}
