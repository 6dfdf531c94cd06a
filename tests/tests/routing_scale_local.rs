//! The scaler's decisions, performed: on real processes of this machine, from none to two and back over a death of the
//! coordinator in between, and on a server that answers as RunPod does.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

#[allow(dead_code)] // The provider's own tests use the rest of it.
#[path = "../../cloud/tests/runpod/mock.rs"]
mod mock;

use std::time::Duration;

use ternfleet_cloud::local::{self, Local, LocalClass};
use ternfleet_cloud::{Compute, Order, PodId, Provider, Status, Tier};
use ternfleet_coordinator::plan::{Batch, ClassSet};
use ternfleet_coordinator::scale::{Act, Class, Intent, Intents, Seen, SeenPod, Settings, decide};
use ternfleet_coordinator::{ClassOptions, Options, ProviderKind, RunpodOptions};
use ternfleet_proto::message::{Event, EventKind, Reply, ScaleDials, ScalePodState, ScaleView, StartFailed};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{TimeMs, UsdMicro, codec};
use ternfleet_tests::program::{LocalFleet, is_running, wait_for};
use ternfleet_tests::server::NatsServer;

const PRICE: UsdMicro = UsdMicro(340_000);

fn provider(folder: &std::path::Path) -> Local {
    Local::new(local::Options {
        program: "sleep".into(),
        arguments: vec!["600".to_owned()],
        classes: vec![LocalClass { name: "half".to_owned(), price_usd_micro_per_hour: PRICE.0, threads: 1 }],
        pods_max: 4,
        folder: folder.to_owned(),
        cpus: Vec::new(),
        grace: Duration::from_secs(5),
    })
    .expect("because the folder is there")
}

fn settings() -> Settings {
    let class = Class {
        models: Vec::new(),
        name: "half".to_owned(),
        price_usd_micro_per_hour: PRICE,
        rate_tok_s: 20.0,
        rate_sd_tok_s: 0.0,
        boot_s: 60.0,
        loss_per_hour: 0.0,
        pods_max: 2,
        data_centers: Vec::new(),
        starting_max: None,
    };
    Settings { fleet: "tf".to_owned(), classes: vec![class], ..Settings::default() }
}

async fn look(local: &Local, batches: &[Batch], next_number: u64) -> Seen {
    let pods = local.list().await.expect("because the folder can be read");
    let seen = |pod: ternfleet_cloud::Rented| SeenPod {
        id: pod.id.0,
        name: pod.name,
        computes: pod.status == Status::Running,
        price_usd_micro_per_hour: pod.price_usd_micro_per_hour.map(UsdMicro),
        data_center: pod.data_center,
    };
    Seen {
        now: TimeMs(1_000),
        pods: Some(pods.into_iter().map(seen).collect()),
        needs: batches.iter().cloned().map(Into::into).collect(),
        next_number,
        ..Seen::default()
    }
}

async fn order(local: &Local, intent: &Intent) {
    let order = Order {
        name: intent.name.clone(),
        compute: Compute::Cpu { id: intent.class.clone(), vcpus: 1 },
        tier: Tier::Secure,
        data_centers: Vec::new(),
        image: String::new(),
        disk_gb: 1,
        env: Vec::new(),
        entrypoint: Vec::new(),
        command: Vec::new(),
        registry: None,
        ports: Vec::new(),
        mount: None,
    };
    local.create(&order).await.expect("because there is room");
}

async fn perform(acts: &[Act], local: &Local, intents: &mut Intents) {
    for act in acts {
        match act {
            Act::Write(intent) => {
                intents.insert(intent.name.clone(), intent.clone());
                order(local, intent).await;
            }
            Act::Order(name) => order(local, &intents[name]).await,
            Act::Adopt { name, id, .. } => {
                intents.get_mut(name).expect("because it is written").provider_id = Some(id.clone());
            }
            Act::End { name, id, why } => {
                if let Some(intent) = intents.get_mut(name) {
                    intent.ending = Some(*why);
                }
                local.terminate(&PodId(id.clone())).await.expect("because it is ours");
            }
            Act::Close { name, .. } => {
                intents.remove(name);
            }
        }
    }
}

#[tokio::test]
async fn local_pods_go_from_none_to_two_and_back_over_a_death_of_the_coordinator() {
    let folder = tempfile::tempdir().expect("because there is room for a folder");
    let work = vec![Batch {
        name: "work".to_owned(),
        tokens_left: 120_000.0,
        tokens_sd: 0.0,
        deadline: Some(TimeMs(3_600_000)),
        budget_left: None,
        classes: ClassSet::ALL,
    }];
    let former = provider(folder.path());
    let mut intents = Intents::new();
    let first = decide(&settings(), &intents, &look(&former, &work, 0).await, None);
    perform(&first.acts, &former, &mut intents).await;
    assert_eq!(former.list().await.expect("a list").len(), 2);

    // The coordinator is gone; the next one knows the intents, and finds the processes.
    let later = provider(folder.path());
    for _ in 0..2 {
        let decision = decide(&settings(), &intents, &look(&later, &work, 2).await, None);
        assert!(decision.acts.iter().all(|act| matches!(act, Act::Adopt { .. })), "{:?}", decision.acts);
        perform(&decision.acts, &later, &mut intents).await;
    }
    assert_eq!(later.list().await.expect("a list").len(), 2);

    // The work is done: everything is given back, and nothing is left over.
    for _ in 0..2 {
        let decision = decide(&settings(), &intents, &look(&later, &[], 2).await, None);
        perform(&decision.acts, &later, &mut intents).await;
    }
    assert!(later.list().await.expect("a list").is_empty() && intents.is_empty());
    let billed = later.billing(0, u64::MAX).await.expect("bills");
    assert_eq!(billed.len(), 2);
    // The former life's children have ended, so that none of them outlives the test.
    assert!(former.list().await.expect("a list").is_empty());
}

/// The same by a person's hands: `up --scale`, a batch with a deadline that one pod cannot keep, a coordinator that
/// is killed in between, and a fleet that is empty again at the end.
#[test]
fn up_rents_pods_for_a_deadline_adopts_them_after_a_crash_and_gives_them_back() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let fleet = LocalFleet::start(&["--scale", "0..2", "--threads", "1"]).expect("a fleet");
    let show = || -> serde_json::Value {
        let shown = fleet.run(&["scale", "show", "--json"]).expect("because the program runs");
        shown.json().unwrap_or_else(|error| panic!("{error:#}"))
    };
    let pods = || show()["pods"].as_array().expect("a list").clone();
    let ids = |pods: &[serde_json::Value]| -> Vec<String> {
        pods.iter().map(|pod| pod["provider_id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(pods().len(), 0);
    let refused = fleet.run(&["scale", "set", "--min", "3"]).expect("because the program runs");
    assert!(refused.stderr.contains("is above the maximum of"), "{}", refused.stderr);
    fleet.run(&["scale", "set", "--idle", "2s"]).expect("because the program runs").json().ok();

    let lines: String =
        (0..2000).map(|n| format!("{{\"prompt\": \"Tale {n}.\", \"max_tokens\": 250}}\n")).collect();
    let input = fleet.write("in.jsonl", &lines).expect("because there is room");
    let detached = ["submit", &input, "--deadline", "70s", "--anyway", "--detach"];
    let id = fleet.run(&detached).expect("because the program runs").stdout.trim().to_owned();
    let both = wait_for(PATIENCE, || {
        let pods = pods();
        let up = |pod: &serde_json::Value| matches!(pod["state"].as_str(), Some("working" | "idle"));
        Ok((pods.iter().filter(|pod| up(pod)).count() == 2).then_some(pods))
    })
    .expect("two pods");

    let spent = || -> i64 {
        let said = fleet.run(&["top", "--json"]).and_then(|ended| ended.json()).expect("totals");
        said["totals"]["spent_usd_micro"].as_i64().unwrap_or_default()
    };
    let before = spent();
    assert!(before > 0, "two pods are paid for");
    let coordinator = fleet.processes().expect("a list")["coordinator"];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(coordinator), nix::sys::signal::Signal::SIGKILL)
        .expect("because it runs");
    wait_for(PATIENCE, || Ok((fleet.processes()?.get("coordinator") != Some(&coordinator)).then_some(())))
        .expect("another coordinator");
    fleet.wait_for_answers(&id, 5).expect("answers");
    assert_eq!(ids(&pods()), ids(&both), "the next coordinator adopts what runs and rents nothing beside it");
    assert!(spent() >= before, "what was spent does not shrink with its coordinator");
    let planned = fleet.run(&["scale", "plan", "--max", "0"]).expect("because the program runs");
    assert!(planned.stdout.contains("return "), "{planned:?}");
    assert_eq!(pods().len(), 2, "a plan changes nothing");

    fleet.run(&["cancel", &id]).expect("because the program runs");
    wait_for(PATIENCE, || Ok(pods().is_empty().then_some(()))).expect("an empty fleet");
    let status = fleet.run(&["status", &id, "--json"]).and_then(|ended| ended.json()).expect("a batch");
    assert!(status["ternfleet"]["quote"]["cost_p50_usd_micro"].as_i64() > Some(0), "{status}");
    assert!(show()["spent_usd_micro"].as_i64() > Some(0), "boot and idleness are money, too");
    assert_eq!(show()["spent_usd_micro"].as_i64(), Some(spent()), "one ledger, with or without pods");
    for card in std::fs::read_dir(fleet.dir.join("pods")).expect("a folder").flatten() {
        let text = std::fs::read_to_string(card.path()).unwrap_or_default();
        if let Ok(card) = serde_json::from_str::<serde_json::Value>(&text) {
            let process = card["process"].as_i64().expect("a process") as i32;
            assert!(!is_running(process), "{card}");
        }
    }
}

/// The coordinator's own scaler against a server that answers as RunPod is documented to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_runpod_the_next_place_is_tried_a_lost_answer_rents_once_orphans_end_and_others_stay() {
    let server = NatsServer::start().expect("a server");
    let other = |name: &str, id: &str| {
        let body = serde_json::json!({"name": name, "image": "i", "disk": 1, "gpu": {"id": "g", "count": 1}});
        mock::pod(id, &body)
    };
    let provider = mock::Mock::start(mock::State {
        pods: vec![other("ternfleet-cheap-99", "orphan"), other("somebody-else", "foreign")],
        creations: [mock::Fault::Answer(400, "no room"), mock::Fault::DoneBut(504)].into(),
        ..mock::State::default()
    })
    .await;
    let key = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(key.path(), "rpa_secret").expect("because there is room");
    let class = ClassOptions {
        name: "cheap".to_owned(),
        gpu: Some("NVIDIA GeForce RTX 4090".to_owned()),
        price_usd_per_hour: 0.34,
        rate_tok_s: 20.0,
        data_centers: vec!["US-KS-2".to_owned(), "EU-RO-1".to_owned()],
        ..ClassOptions::default()
    };
    let mut options = Options::default();
    options.scale.provider = ProviderKind::Runpod;
    options.scale.pods_min = 1;
    options.scale.tick_ms = 200;
    options.scale.classes = vec![class];
    options.scale.pod.image = "ghcr.io/example/ternfleet".to_owned();
    options.scale.runpod = RunpodOptions {
        base: Some(provider.base.clone()),
        key_file: Some(key.path().to_owned()),
        settle_ms: 50,
        ..RunpodOptions::default()
    };
    let start = async || {
        let stop = tokio_util::sync::CancellationToken::new();
        let bus = server.bus().await.expect("a connection");
        (stop.clone(), tokio::spawn(ternfleet_coordinator::run(bus, options.clone(), stop)))
    };
    let ours = || -> Vec<String> {
        let state = provider.state.lock().expect("because nobody panicked");
        let names = state.pods.iter().filter_map(|pod| pod["name"].as_str().map(str::to_owned));
        names.filter(|name| name.starts_with("ternfleet-")).collect()
    };
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(tokio::time::Instant::now() < deadline, "{what}: {:?}", ours());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };

    let (stop, task) = start().await;
    until("one pod, and no orphan", &|| {
        ours().len() == 1 && !ours().contains(&"ternfleet-cheap-99".to_owned())
    })
    .await;
    let pod = ours();
    stop.cancel();
    task.await.expect("because it does not panic").expect("a good end");
    {
        let state = provider.state.lock().expect("because nobody panicked");
        let places: Vec<_> = state.bodies.iter().map(|body| body["dataCenterIds"][0].clone()).collect();
        assert_eq!(
            places,
            ["US-KS-2", "EU-RO-1"],
            "no room in the first place, so the second; never a third order"
        );
        assert_eq!(state.bodies[1]["env"]["TERNFLEET_POD"], pod[0].as_str());
        assert_eq!(state.bodies[1]["env"]["TERNFLEET_END_MYSELF"], "runpod");
    }

    // Another coordinator adopts the pod, and gives it back when it is told to.
    let (stop, task) = start().await;
    let bus = server.bus().await.expect("a connection");
    let ask = async |verb: ApiVerb, dials: &ScaleDials| -> ScaleView {
        loop {
            let asked = bus.request(&table::api(verb), codec::encode(dials), Duration::from_secs(5)).await;
            if let Ok(answer) = asked
                && let Ok(Ok(view)) = codec::decode::<Reply<ScaleView>>(&answer)
            {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let shown = ask(ApiVerb::ScaleShow, &ScaleDials::default()).await;
    assert_eq!(shown.pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>(), pod);
    assert_eq!(shown.pods[0].state, ScalePodState::Booting);
    assert_eq!(
        shown.pods[0].price_usd_micro_per_hour,
        UsdMicro(440_000),
        "the provider's answer to this order"
    );
    assert_eq!(
        provider.state.lock().expect("because nobody panicked").bodies.len(),
        2,
        "nothing is rented again"
    );
    let none = ScaleDials { pods_min: Some(0), pods_max: Some(0), ..ScaleDials::default() };
    ask(ApiVerb::ScaleSet, &none).await;
    until("nothing of ours", &|| ours().is_empty()).await;
    assert_eq!(provider.alive("somebody-else"), 1, "pods with other names are never touched");
    // What it cost is known after its intent has gone, too.
    let returned = async || {
        let event = bus.last_on_subject(table::EVENTS, &table::event("pod")).await.ok()??;
        match codec::decode::<Event>(&event.payload).ok()?.what {
            EventKind::PodReturned { billed_usd_micro, .. } => Some(billed_usd_micro),
            _ => None,
        }
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let billed = loop {
        match returned().await {
            Some(billed) => break billed,
            None => assert!(tokio::time::Instant::now() < deadline, "no return in the log"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(billed > UsdMicro::ZERO, "returned … billed=$0.00");
    stop.cancel();
    task.await.expect("because it does not panic").expect("a good end");
}

/// A class whose pods vanish before anybody hears of them is not fed with money.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_whose_pods_die_before_their_first_heartbeat_rests_and_says_why() {
    let server = NatsServer::start().expect("a server");
    let provider = mock::Mock::start(mock::State::default()).await;
    let key = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(key.path(), "rpa_secret").expect("because there is room");
    let mut options = Options::default();
    options.scale.provider = ProviderKind::Runpod;
    options.scale.pods_min = 1;
    options.scale.tick_ms = 100;
    // A pod that no list shows has vanished after this long.
    options.scale.order_limit_s = 2.0;
    options.scale.classes = vec![ClassOptions {
        name: "dies".to_owned(),
        gpu: Some("g".to_owned()),
        rate_tok_s: 20.0,
        ..ClassOptions::default()
    }];
    options.scale.pod.image = "i".to_owned();
    options.scale.runpod = RunpodOptions {
        base: Some(provider.base.clone()),
        key_file: Some(key.path().to_owned()),
        settle_ms: 50,
        ..RunpodOptions::default()
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let bus = server.bus().await.expect("a connection");
    let task = tokio::spawn(ternfleet_coordinator::run(bus.clone(), options, stop.clone()));
    let show = async || -> Option<ScaleView> {
        let subject = table::api(ApiVerb::ScaleShow);
        let asked =
            bus.request(&subject, codec::encode(&ScaleDials::default()), Duration::from_secs(5)).await;
        codec::decode::<Reply<ScaleView>>(&asked.ok()?).ok()?.ok()
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
    // Whoever boots is taken away: the second one has said why it fails, the first one nothing.
    let class = loop {
        assert!(tokio::time::Instant::now() < deadline, "the class does not rest");
        let second = {
            let mut state = provider.state.lock().expect("because nobody panicked");
            if state.bodies.len() < 2 {
                state.pods.clear();
            }
            state.pods.first().map(|pod| pod["name"].as_str().unwrap_or_default().to_owned())
        };
        if let Some(pod) = second {
            let log = vec!["a".to_owned(), "disk \u{1b}[2Jfull".to_owned()];
            let said = StartFailed { pod, why: "the model did not come".to_owned(), log };
            bus.send(&table::start_failed(&said.pod), codec::encode(&said)).await.expect("a connection");
        }
        let view = show().await;
        match view.and_then(|view| view.classes.into_iter().next()) {
            Some(class) if class.refused.as_ref().is_some_and(|why| why.contains("in a row")) => break class,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    let failed = class.failed.expect("how it failed");
    assert!(failed.why.contains("the model did not come"), "{failed:?}");
    assert_eq!(failed.log, ["a", "disk [2Jfull"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(provider.count("POST"), 2, "it rests");
    assert_eq!(provider.state.lock().expect("because nobody panicked").pods.len(), 0, "nothing is left");
    stop.cancel();
    task.await.expect("because it does not panic").expect("a good end");
}
