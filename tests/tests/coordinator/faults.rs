//! Faults of jobs and faults of hosts, told apart by real workers with real engines.

use std::path::Path;
use std::time::Duration;

use ternfleet_engine::gguf;
use ternfleet_proto::message::{BatchState, FailureCode, Outcome, PodView};
use ternfleet_proto::table::ApiVerb;
use ternfleet_tests::caller::{Client, prompts};
use ternfleet_tests::instant::{InstantWorker, Manner};
use ternfleet_tests::program::{STORYTELLER, Service};
use ternfleet_tests::server::NatsServer;
use ternfleet_worker::Options;
use tokio_util::sync::CancellationToken;

use super::Coordinator;

/// The storyteller with weights of its last norm that are finite, and whose products are not.
fn overflowing(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("storyteller.gguf");
    let mut bytes = std::fs::read(STORYTELLER).unwrap();
    let norm = gguf::File::open(STORYTELLER).unwrap().tensor("output_norm.weight").unwrap().data.to_vec();
    let at = bytes.windows(norm.len()).position(|window| window == norm).unwrap();
    for weight in bytes[at..at + norm.len()].chunks_exact_mut(4) {
        weight.copy_from_slice(&3e38f32.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    std::fs::copy(Path::new(STORYTELLER).with_file_name("manifest.toml"), folder.join("manifest.toml"))
        .unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_that_overflow_fail_their_jobs_by_name_and_the_worker_lives() {
    let server = NatsServer::start().unwrap();
    let coordinator = Coordinator::start(server.bus().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        model: overflowing(folder.path()),
        calibrate_ms: 0,
        slots: Some(2),
        threads: Some(1),
        heartbeat_ms: 200,
        ..Options::default()
    };
    let stop = CancellationToken::new();
    let worker = tokio::spawn(ternfleet_worker::run(server.bus().await.unwrap(), options, stop.clone()));
    let client = Client::new(server.bus().await.unwrap());
    let view = client.submit("overflow", prompts(5)).await;
    let view = client.wait_end(&view.id).await;
    assert_eq!((view.state, view.completed, view.failed), (BatchState::Completed, 0, 5));
    for result in client.follow(&view.id).await {
        let Outcome::Failed(failure) = &result.outcome else { panic!("{result:?}") };
        assert_eq!(failure.code, FailureCode::NotFinite, "{failure:?}");
    }
    assert!(!worker.is_finished(), "{:?}", worker.await);
    let pods: Vec<PodView> = client.ask(ApiVerb::Pods, &()).await.unwrap();
    assert!(pods.len() == 1 && pods[0].live, "{pods:?}");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), worker).await.unwrap().unwrap().unwrap();
    coordinator.stop().await;
}

/// A batch on a real worker beside one of another host; then something goes wrong at the real one, which says `told`.
/// `too_long` of the 120 prompts fit into no context: the real one fails them, if it comes to them.
async fn host_at_fault(too_long: usize, harm: impl FnOnce(&Path, &Service), told: &str) {
    let server = NatsServer::start().unwrap();
    let options = ternfleet_coordinator::Options { audit_share: 0.0, ..Default::default() };
    let (options, address) = ternfleet_tests::http::options(options);
    let coordinator = Coordinator::start_with(server.bus().await.unwrap(), options);
    let folder = tempfile::tempdir().unwrap();
    let (model, log) = (folder.path().join("model.gguf"), folder.path().join("worker.log"));
    std::fs::copy(STORYTELLER, &model).unwrap();
    let (url, path) = (server.url(), model.display().to_string());
    let arguments = ["worker", "--nats", &url, "--model", &path, "--slots", "4", "--set", "calibrate_ms=0"];
    let mut worker = Service::start(&arguments, &log).unwrap();
    let client = Client::new(server.bus().await.unwrap());
    let line = |n: usize| {
        let more = if n % 8 == 7 && n / 8 < too_long { "once more ".repeat(20_000) } else { String::new() };
        format!(
            "{{\"custom_id\": \"c{n}\", \"prompt\": \"Once {n} {more}\", \"max_tokens\": 150, \"seed\": \
             {n}}}\n"
        )
    };
    let lines: String = (0..120).map(line).collect();
    let view = client.submit("in", lines.into_bytes()).await;
    client.wait(&view.id, "a first answer", |view| view.completed > 0).await;
    // Not so fast that nothing is left to the real one: it says what is wrong of jobs that run.
    let takes = Duration::from_millis(40);
    let manner =
        Manner { host: "other".to_owned(), slots: 4, rate_tok_s: 1_000.0, takes, ..Manner::default() };
    let _other = InstantWorker::start(server.bus().await.unwrap(), "other", manner).await;
    // The last healthy host would not be quarantined.
    loop {
        let pods: Vec<PodView> = client.ask(ApiVerb::Pods, &()).await.unwrap();
        if pods.iter().filter(|pod| pod.live).count() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    harm(&model, &worker);
    let view = client.wait_end(&view.id).await;
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    assert_eq!(view.completed + view.failed, 120, "{said}");
    assert!(view.failed as usize <= too_long, "{view:?}");
    assert!(said.contains(told), "{said}");
    // What the core counts is copied from time to time.
    let began = std::time::Instant::now();
    let metrics = loop {
        let (_, metrics) = ternfleet_tests::http::get(&address, "/metrics").await;
        let is_shut_out = metrics.contains("ternfleet_hosts_quarantined_total 1\n");
        if is_shut_out && metrics.contains("ternfleet_jobs{state=\"waiting\"} 0\n") {
            break metrics;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{metrics}\n{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for (name, wanted) in [("ternfleet_attempts_failed_total", "0"), ("ternfleet_jobs_dead_total", "0")] {
        assert!(metrics.contains(&format!("{name} {wanted}\n")), "{name}: {metrics}\n{said}");
    }
    let began = std::time::Instant::now();
    while worker.is_alive() {
        assert!(began.elapsed() < Duration::from_secs(10), "it goes on: {said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    coordinator.stop().await;
}

/// The program itself runs a model; while it does, the model's file goes away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_model_vanishes_says_so_its_host_is_quarantined_and_no_job_is_to_blame() {
    host_at_fault(0, |model, _| std::fs::remove_file(model).unwrap(), "no longer exists").await;
}

/// The same where the system gives it no more memory from then on (`prlimit` is in Debian's util-linux).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_refused_memory_says_so_its_host_is_quarantined_and_no_job_is_to_blame() {
    let harm = |_: &Path, worker: &Service| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", worker.id())).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
        let bytes = size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
        let limits = [format!("--pid={}", worker.id()), format!("--data={bytes}")];
        let limited = std::process::Command::new("prlimit").args(limits).status().unwrap();
        assert!(limited.success());
    };
    // To read a long prompt takes more memory than a heap has at hand.
    host_at_fault(15, harm, "out of memory").await;
}
