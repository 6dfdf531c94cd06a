//! Coordinators and workers as processes of their own on a secured cluster.

use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use ternfleet_tests::cluster::Cluster;
use ternfleet_tests::program::{self, Ended, Service, wait_for};
use ternfleet_tests::server::free_port;

/// A coordinator that leads.
pub(crate) struct Coordinator(Service);

impl Coordinator {
    pub(crate) fn signal(&self, signal: Signal) {
        self.0.signal(signal).unwrap();
    }
}

pub(crate) fn coordinator(cluster: &Cluster, name: &str, more: &[&str]) -> Coordinator {
    let port = free_port().unwrap();
    let site = cluster.site();
    let setting = |key: &str, value: String| format!("{key}={value}");
    let mut arguments = vec![
        "coordinator".to_owned(),
        "--nats".to_owned(),
        cluster.url(),
        "--http".to_owned(),
        format!("127.0.0.1:{port}"),
        "--name".to_owned(),
        name.to_owned(),
        "--nats-monitoring-url".to_owned(),
        cluster.monitor_url(0),
    ];
    for (key, value) in [
        ("nats_credentials_file", cluster.coordinator_credentials().display().to_string()),
        ("nats_root_certificates", cluster.root_certificates().display().to_string()),
        ("issuer_file", site.join("coordinator/issuer.json").display().to_string()),
    ] {
        arguments.extend(["--set".to_owned(), setting(key, value)]);
    }
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let log = cluster.scratch(&format!("{name}.log"));
    let service = Service::start(&arguments, &log).unwrap();
    wait_for(Duration::from_secs(60), || Ok(is_ready(port).then_some(()))).unwrap_or_else(|error| {
        panic!("{name}: {error}: {}", std::fs::read_to_string(&log).unwrap_or_default())
    });
    Coordinator(service)
}

/// A worker with made-up letters for an engine; it joins with `token`.
pub(crate) fn worker(cluster: &Cluster, pod: &str, token: &str, more: &[&str]) -> Service {
    let url = cluster.url();
    let certificates = format!("nats_root_certificates={}", cluster.root_certificates().display());
    let token = format!("nats_join_token={token}");
    let base = [
        "worker",
        "--nats",
        &url,
        "--pod",
        pod,
        "--set",
        &certificates,
        "--set",
        &token,
        "--set",
        "engine=instant:30",
        "--set",
        "calibrate_ms=0",
        "--price-usd-per-hour",
        "0.34",
    ];
    Service::start(&[&base, more].concat(), &cluster.scratch(&format!("{pod}.log"))).unwrap()
}

/// Runs a caller's command with a tenant's credentials.
pub(crate) fn as_tenant(cluster: &Cluster, tenant: &str, arguments: &[&str]) -> Ended {
    program::run(&with_connection(cluster, tenant, arguments).iter().map(String::as_str).collect::<Vec<_>>())
        .unwrap()
}

pub(crate) fn with_connection(cluster: &Cluster, tenant: &str, arguments: &[&str]) -> Vec<String> {
    let credentials = cluster.user_file("tenant", tenant).unwrap();
    let mut all: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    all.extend(["--nats".to_owned(), cluster.url()]);
    all.extend(["--nats-credentials-file".to_owned(), credentials.display().to_string()]);
    all.extend(["--nats-root-certificates".to_owned(), cluster.root_certificates().display().to_string()]);
    all
}

/// A file of prompts.
pub(crate) fn prompts(cluster: &Cluster, name: &str, count: usize, max_tokens: usize) -> String {
    let line = |n: usize| json!({"custom_id": format!("job-{n}"), "prompt": "once upon a time", "max_tokens": max_tokens, "seed": n, "cache": false});
    let text: String = (0..count).map(|n| format!("{}\n", line(n))).collect();
    let path = cluster.scratch(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Waits until so many pods are live.
pub(crate) fn wait_for_pods(cluster: &Cluster, tenant: &str, count: usize) -> Vec<Value> {
    wait_for(Duration::from_secs(60), || {
        let ended = as_tenant(cluster, tenant, &["pods", "--json"]);
        let pods: Vec<Value> = match ended.json() {
            Ok(Value::Array(pods)) => pods,
            _ => ended.json_lines().unwrap_or_default(),
        };
        Ok((pods.len() >= count).then_some(pods))
    })
    .unwrap()
}

pub(crate) fn is_ready(port: u16) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = String::new();
    connection.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").is_ok()
        && connection.read_to_string(&mut answer).is_ok()
        && answer.split_whitespace().nth(1) == Some("200")
}
