//! A backup of a running fleet, restored into an empty server: every batch is there, and the fleet continues.

use std::time::Duration;

use ternfleet_tests::cluster::Cluster;
use ternfleet_tests::program::{self, wait_for};

use crate::fleet::{as_tenant, coordinator, prompts, wait_for_pods, worker};

/// Runs `backup` or `restore` with the coordinator's credentials.
fn with_truth(cluster: &Cluster, command: &str, dir: &str) -> program::Ended {
    let (url, credentials) = (cluster.url(), cluster.coordinator_credentials().display().to_string());
    let certificates = cluster.root_certificates().display().to_string();
    program::run(&[
        command,
        "--dir",
        dir,
        "--nats",
        &url,
        "--nats-credentials-file",
        &credentials,
        "--nats-root-certificates",
        &certificates,
    ])
    .unwrap()
}

#[test]
fn a_restored_fleet_has_every_batch_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup").display().to_string();
    let old = Cluster::start(1).unwrap();
    let input = prompts(&old, "in.jsonl", 12, 8);
    let (batch, before) = {
        let _coordinator = coordinator(&old, "c-1", &[]);
        let token = old.nats(&["token"]).unwrap();
        let _worker = worker(&old, "pod-1", token.trim(), &[]);
        wait_for_pods(&old, "acme", 1);
        let sent = as_tenant(&old, "acme", &["submit", &input, "--out", "-"]);
        assert_eq!(sent.code, Some(0), "{sent:?}");
        let batches = as_tenant(&old, "acme", &["batches", "--json"]).json().unwrap();
        let saved = with_truth(&old, "backup", &backup);
        assert_eq!(saved.code, Some(0), "{saved:?}");
        assert!(saved.stdout.contains("RESULTS") && saved.stdout.contains("OBJ_files_acme"), "{saved:?}");
        (batches[0]["id"].as_str().unwrap().to_owned(), sent.stdout)
    };
    drop(old);

    let new = Cluster::start(1).unwrap();
    let restored = with_truth(&new, "restore", &backup);
    assert_eq!(restored.code, Some(0), "{restored:?}");
    let again = with_truth(&new, "restore", &backup);
    assert!(again.stderr.contains("already exists"), "{again:?}");
    let _coordinator = coordinator(&new, "c-2", &[]);
    let after = as_tenant(&new, "acme", &["results", &batch, "--wait", "--out", "-"]);
    assert_eq!(after.code, Some(0), "{after:?}");
    assert_eq!(after.stdout, before, "the output to the letter");

    // The old fleet's folder went with it, and its prompts too.
    let input = prompts(&new, "in.jsonl", 12, 8);
    let token = new.nats(&["token"]).unwrap();
    let _worker = worker(&new, "pod-2", token.trim(), &[]);
    wait_for(Duration::from_secs(60), || {
        let sent = as_tenant(&new, "acme", &["submit", &input, "--out", "-"]);
        Ok((sent.code == Some(0)).then_some(()))
    })
    .unwrap();
}
