//! Faults of jobs and faults of hosts, told apart by real workers with real engines.

use std::path::Path;
use std::time::Duration;

use ternfleet_engine::gguf;
use ternfleet_proto::message::{BatchState, FailureCode, Outcome, PodView};
use ternfleet_proto::table::ApiVerb;
use ternfleet_tests::caller::{Client, prompts};
use ternfleet_tests::program::STORYTELLER;
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
        slots: 2,
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
