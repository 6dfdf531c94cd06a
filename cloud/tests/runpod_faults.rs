//! The client against a server with faults: every answer of the provider's table, and creations whose answer is lost.

// Helpers of tests are not marked as tests, so the exception for tests does not reach them.
#![allow(clippy::unwrap_used)]

#[path = "runpod/mock.rs"]
mod mock;

use std::time::Duration;

use mock::{Fault, Mock, State};
use ternfleet_cloud::http::Secret;
use ternfleet_cloud::runpod::{Options, Runpod, end_this_pod};
use ternfleet_cloud::{CloudError, Compute, Order, PodId, Provider, Tier};

fn client(mock: &Mock) -> Runpod {
    let mut options = Options::new(Secret::new("rpa_top_secret"));
    options.base.clone_from(&mock.base);
    options.timeout = Duration::from_millis(400);
    options.settle = Duration::from_millis(20);
    options.wait_max = Duration::from_secs(1);
    Runpod::new(options).unwrap()
}

fn order(name: &str) -> Order {
    Order {
        name: name.to_owned(),
        compute: Compute::Gpu {
            id: "NVIDIA GeForce RTX 4090".to_owned(),
            count: 1,
            vcpus_min: Some(16),
            memory_gb_min: None,
        },
        tier: Tier::Community,
        data_centers: vec!["US-KS-2".to_owned()],
        image: "ternfleet:1".to_owned(),
        disk_gb: 10,
        env: vec![("NATS_PASSWORD".to_owned(), "hush".to_owned())],
        entrypoint: Vec::new(),
        command: Vec::new(),
        registry: None,
        ports: Vec::new(),
        mount: None,
    }
}

async fn create_with(creations: Vec<Fault>) -> (Mock, Result<ternfleet_cloud::Rented, CloudError>) {
    let mock = Mock::start(State { creations: creations.into(), ..State::default() }).await;
    let result = client(&mock).create(&order("tf-1")).await;
    (mock, result)
}

#[tokio::test]
async fn a_created_pod_is_answered_with_its_price_and_place() {
    let (mock, result) = create_with(vec![]).await;
    let pod = result.unwrap();
    assert_eq!((pod.name.as_str(), pod.price_usd_micro_per_hour), ("tf-1", Some(440_000)));
    assert_eq!(pod.data_center.as_deref(), Some("US-KS-2"));
    assert_eq!(mock.count("POST"), 1);
    assert!(mock.state.lock().unwrap().authorizations.iter().all(|sent| sent == "Bearer rpa_top_secret"));
}

#[tokio::test]
async fn every_answer_of_the_table_means_what_the_provider_says() {
    type Is = fn(&CloudError) -> bool;
    let table: [(u16, Is); 8] = [
        (400, |fault| matches!(fault, CloudError::NoCapacity(_))),
        (401, |fault| matches!(fault, CloudError::Unauthorized(_))),
        (402, |fault| matches!(fault, CloudError::NoBalance(_))),
        (403, |fault| matches!(fault, CloudError::Forbidden(_))),
        (404, |fault| matches!(fault, CloudError::NotFound(_))),
        (409, |fault| matches!(fault, CloudError::Conflict(_))),
        (413, |fault| matches!(fault, CloudError::Invalid(_))),
        (422, |fault| matches!(fault, CloudError::Invalid(_))),
    ];
    for (status, is) in table {
        let (mock, result) = create_with(vec![Fault::Answer(status, "because")]).await;
        let fault = result.unwrap_err();
        assert!(is(&fault), "{status}: {fault:?}");
        assert_eq!(mock.count("POST"), 1, "{status} is not tried again");
        assert_eq!(mock.alive("tf-1"), 0);
    }
}

#[tokio::test]
async fn a_request_to_wait_is_honoured_and_a_long_one_handed_on() {
    let (mock, result) = create_with(vec![Fault::RetryAfter(429, 1)]).await;
    result.unwrap();
    assert_eq!((mock.count("POST"), mock.alive("tf-1")), (2, 1));
    let (mock, result) = create_with(vec![Fault::RetryAfter(429, 300)]).await;
    assert_eq!(result.unwrap_err(), CloudError::RateLimited { retry_after: Duration::from_secs(300) });
    assert_eq!(mock.count("POST"), 1);
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_never_rents_twice() {
    for fault in [
        Fault::DoneButSilent,
        Fault::DoneBut(500),
        Fault::DoneBut(502),
        Fault::DoneBut(503),
        Fault::DoneBut(504),
        Fault::DoneBut(408),
        Fault::DoneWithNonsense,
        Fault::DoneTwiceAndCut,
        Fault::DoneLate,
    ] {
        let (mock, result) = create_with(vec![fault.clone()]).await;
        assert_eq!(result.unwrap().name, "tf-1", "{fault:?}");
        assert_eq!((mock.count("POST"), mock.alive("tf-1")), (1, 1), "{fault:?}");
    }
}

#[tokio::test]
async fn a_failure_that_rented_nothing_is_tried_again_after_looking() {
    let (mock, result) = create_with(vec![Fault::Answer(503, "later"), Fault::Answer(500, "oops")]).await;
    result.unwrap();
    assert_eq!((mock.count("POST"), mock.alive("tf-1")), (3, 1));
    assert_eq!(
        mock.count("GET"),
        1 + 2 * 3 + 1,
        "before, thrice after each failure, and once more at the end"
    );
}

#[tokio::test]
async fn while_the_list_cannot_be_read_nothing_more_is_ordered() {
    let broken = || Fault::Answer(500, "no list");
    let mock = Mock::start(State {
        creations: vec![Fault::DoneButSilent].into(),
        lists: vec![Fault::None, broken(), broken(), broken()].into(),
        ..State::default()
    })
    .await;
    let client = client(&mock);
    assert!(matches!(client.create(&order("tf-1")).await, Err(CloudError::Uncertain(_))));
    assert_eq!(mock.count("POST"), 1);
    // The same order again, later: the pod is found and not rented a second time.
    assert_eq!(client.create(&order("tf-1")).await.unwrap().name, "tf-1");
    assert_eq!((mock.count("POST"), mock.alive("tf-1")), (1, 1));
}

#[tokio::test]
async fn a_clear_refusal_after_a_lost_answer_still_looks_for_the_lost_pod() {
    let (mock, result) = create_with(vec![Fault::DoneLate, Fault::Answer(400, "no capacity")]).await;
    assert_eq!(result.unwrap().name, "tf-1");
    assert_eq!(mock.alive("tf-1"), 1);
}

#[tokio::test]
async fn a_list_is_read_to_its_last_page() {
    let pods = (0..7).map(|n| mock::pod(&format!("id{n}"), &serde_json::json!({"name": format!("n{n}")})));
    let state = State { pods: pods.collect(), page: Some(3), ..State::default() };
    let mock = Mock::start(state).await;
    assert_eq!(client(&mock).list().await.unwrap().len(), 7);
}

#[tokio::test]
async fn a_list_whose_pages_cannot_be_followed_is_no_list() {
    let pods = (0..7).map(|n| mock::pod(&format!("id{n}"), &serde_json::json!({"name": format!("n{n}")})));
    let state = State { pods: pods.collect(), page: Some(3), deaf_to_cursors: true, ..State::default() };
    let mock = Mock::start(state).await;
    assert!(matches!(client(&mock).list().await, Err(CloudError::Protocol(_))));
    assert!(client(&mock).create(&order("tf-1")).await.is_err());
    assert_eq!(mock.count("POST"), 0, "what may be rented already is not ordered");
}

#[tokio::test]
async fn ending_a_pod_twice_is_ending_it_once() {
    let (mock, result) = create_with(vec![]).await;
    let pod = result.unwrap();
    mock.state.lock().unwrap().deletions = vec![Fault::DoneBut(502), Fault::None].into();
    client(&mock).terminate(&pod.id).await.unwrap();
    client(&mock).terminate(&pod.id).await.unwrap();
    assert_eq!(mock.alive("tf-1"), 0);
}

#[tokio::test]
async fn a_refused_end_is_an_error_that_somebody_hears_of() {
    let mock =
        Mock::start(State { deletions: vec![Fault::Answer(403, "scoped key")].into(), ..State::default() })
            .await;
    let variable = |name: &str| match name {
        "RUNPOD_POD_ID" => Some("me".to_owned()),
        "RUNPOD_API_KEY" => Some("rpa_pod".to_owned()),
        _ => None,
    };
    let base = Some(mock.base.as_str());
    assert!(matches!(end_this_pod(base, variable).await, Err(CloudError::Forbidden(_))));
    end_this_pod(base, variable).await.unwrap();
    assert!(matches!(end_this_pod(base, |_| None).await, Err(CloudError::Invalid(_))));
}

#[tokio::test]
async fn an_order_refused_for_its_command_is_repeated_with_args_and_one_for_another_field_is_not() {
    let shell = || Order {
        entrypoint: vec!["/bin/sh".to_owned(), "-c".to_owned()],
        command: vec!["echo it's here".to_owned()],
        ..order("tf-1")
    };
    let refusals = vec![Fault::Answer(422, "unknown field: $.entrypoint")];
    let mock = Mock::start(State { creations: refusals.into(), ..State::default() }).await;
    client(&mock).create(&shell()).await.unwrap();
    let bodies = mock.state.lock().unwrap().bodies.clone();
    assert_eq!(bodies[0]["cmd"], serde_json::json!(["echo it's here"]));
    assert_eq!(bodies[1]["args"], r"/bin/sh -c 'echo it'\''s here'");
    assert!(bodies[1].get("cmd").is_none() && bodies[1].get("entrypoint").is_none());

    let refusals = vec![Fault::Answer(422, "unknown field: $.gpu.minVcpuCountPerGpu")];
    let mock = Mock::start(State { creations: refusals.into(), ..State::default() }).await;
    let refused = client(&mock).create(&shell()).await.unwrap_err();
    assert!(refused.to_string().contains("minVcpuCountPerGpu"), "{refused}");
    assert_eq!(mock.count("POST"), 1);
}

#[tokio::test]
async fn the_tail_of_a_log_is_read_from_a_stream_that_stays_open() {
    let mock = Mock::start(State::default()).await;
    let begun = std::time::Instant::now();
    let tail = client(&mock).log_tail(&PodId("p".to_owned()), 2).await.unwrap();
    assert_eq!(tail, ["[host] start container", "worker: no model"]);
    assert!(begun.elapsed() < Duration::from_secs(10));
    let missing = client(&mock).log_tail(&PodId("none".to_owned()), 2).await;
    assert!(matches!(missing, Err(CloudError::NotFound(_))));
}

#[tokio::test]
async fn a_server_that_is_not_there_changes_nothing() {
    let mut options = Options::new(Secret::new("k"));
    options.base = "http://127.0.0.1:9".to_owned();
    (options.settle, options.timeout) = (Duration::from_millis(5), Duration::from_millis(200));
    let client = Runpod::new(options).unwrap();
    assert!(matches!(client.list().await, Err(CloudError::Unreachable(_))));
    assert!(matches!(client.terminate(&PodId("x".to_owned())).await, Err(CloudError::Uncertain(_))));
}

#[test]
fn secrets_are_never_shown_and_never_sent_in_clear() {
    let options = Options::new(Secret::new("rpa_top_secret"));
    let client = Runpod::new(Options { base: "http://127.0.0.1:1".to_owned(), ..options.clone() }).unwrap();
    for shown in [format!("{options:?}"), format!("{client:?}"), format!("{:?}", order("x"))] {
        assert!(!shown.contains("rpa_top_secret") && !shown.contains("hush"), "{shown}");
    }
    for base in ["http://api.runpod.io", "https://user@host", "ftp://x", "https://", "https://host/path"] {
        assert!(Runpod::new(Options { base: base.to_owned(), ..options.clone() }).is_err(), "{base}");
    }
}
