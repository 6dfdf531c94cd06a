//! The scaler's decisions, performed on real processes of this machine: from none to two and back, over a death of
//! the coordinator in between.

use std::time::Duration;

use ternfleet_cloud::local::{Local, LocalClass, Options};
use ternfleet_cloud::{Compute, Order, PodId, Provider, Status, Tier};
use ternfleet_coordinator::plan::{Batch, ClassSet};
use ternfleet_coordinator::scale::{Act, Class, Intent, Intents, Seen, SeenPod, Settings, decide};
use ternfleet_proto::{TimeMs, UsdMicro};

const PRICE: UsdMicro = UsdMicro(340_000);

fn provider(folder: &std::path::Path) -> Local {
    Local::new(Options {
        program: "sleep".into(),
        arguments: vec!["600".to_owned()],
        classes: vec![LocalClass { name: "half".to_owned(), price_usd_micro_per_hour: PRICE.0, threads: 1 }],
        pods_max: 4,
        folder: folder.to_owned(),
        grace: Duration::from_secs(5),
    })
    .expect("because the folder is there")
}

fn settings() -> Settings {
    let class = Class {
        name: "half".to_owned(),
        price_usd_micro_per_hour: PRICE,
        rate_tok_s: 20.0,
        rate_sd_tok_s: 0.0,
        boot_s: 60.0,
        loss_per_hour: 0.0,
        pods_max: 2,
        data_centers: Vec::new(),
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
        batches: batches.to_vec(),
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
        command: Vec::new(),
        volume: None,
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
