use proptest::prelude::*;

use super::*;
use crate::plan::ClassSet;

const HOUR_MS: u64 = 3_600_000;

fn class(name: &str, price_usd: f64, rate_tok_s: f64, centers: &[&str]) -> Class {
    Class {
        starting_max: None,
        models: Vec::new(),
        name: name.to_owned(),
        price_usd_micro_per_hour: UsdMicro::from_dollars(price_usd),
        rate_tok_s,
        rate_sd_tok_s: 0.0,
        boot_s: 120.0,
        loss_per_hour: 0.0,
        pods_max: 4,
        data_centers: centers.iter().map(|place| (*place).to_owned()).collect(),
    }
}

fn settings() -> Settings {
    Settings {
        fleet: "tf".to_owned(),
        classes: vec![class("cheap", 0.34, 20.0, &["US-KS-2", "EU-RO-1"]), class("dear", 2.50, 50.0, &[])],
        ..Settings::default()
    }
}

fn seen(tokens: f64, hours: f64) -> Seen {
    let batch = Batch {
        name: "b".to_owned(),
        tokens_left: tokens,
        tokens_sd: 0.0,
        deadline: Some(TimeMs((hours * HOUR_MS as f64) as u64)),
        budget_left: None,
        classes: ClassSet::ALL,
    };
    Seen {
        pods: Some(Vec::new()),
        needs: if tokens > 0.0 { vec![batch.into()] } else { Vec::new() },
        ..Seen::default()
    }
}

/// Performs the acts on a provider and an intents store that never fail.
fn perform(acts: &[Act], intents: &mut Intents, seen: &mut Seen) {
    let listed = seen.pods.as_mut().unwrap();
    let rent = |intent: &Intent, listed: &mut Vec<SeenPod>| {
        if !listed.iter().any(|pod| pod.name == intent.name) {
            listed.push(SeenPod {
                id: format!("id-{}", intent.name),
                name: intent.name.clone(),
                computes: true,
                price_usd_micro_per_hour: Some(intent.price_usd_micro_per_hour),
                data_center: intent.data_center.clone(),
            });
        }
    };
    for act in acts {
        match act {
            Act::Write(intent) => {
                intents.insert(intent.name.clone(), intent.clone());
                rent(intent, listed);
                seen.next_number += 1;
            }
            Act::Order(name) => rent(&intents[name], listed),
            Act::Adopt { name, id, .. } => intents.get_mut(name).unwrap().provider_id = Some(id.clone()),
            Act::End { name, id, why } => {
                if let Some(intent) = intents
                    .get_mut(name)
                    .filter(|intent| *why != Why::Orphan || intent.provider_id.as_ref() == Some(id))
                {
                    intent.ending = Some(*why);
                }
                listed.retain(|pod| pod.id != *id);
            }
            Act::Close { name, .. } => {
                intents.remove(name);
            }
        }
    }
}

fn written(acts: &[Act]) -> Vec<&Intent> {
    acts.iter().filter_map(|act| if let Act::Write(intent) = act { Some(intent) } else { None }).collect()
}

#[test]
fn the_fleet_goes_from_none_to_what_is_needed_and_back() {
    let (mut intents, mut now_seen) = (Intents::new(), seen(130_000.0, 1.0));
    let first = decide(&settings(), &intents, &now_seen, None);
    // Two cheap pods do 130,000 tokens in an hour; a third costs a boot, less than 2 %, and all end a third sooner.
    assert_eq!(written(&first.acts).len(), 3, "{:?}", first.acts);
    assert!(written(&first.acts).iter().all(|intent| intent.class == "cheap"));
    perform(&first.acts, &mut intents, &mut now_seen);
    let second = decide(&settings(), &intents, &now_seen, Some(&first.plan));
    assert!(second.acts.iter().all(|act| matches!(act, Act::Adopt { .. })), "{:?}", second.acts);
    perform(&second.acts, &mut intents, &mut now_seen);
    assert_eq!(decide(&settings(), &intents, &now_seen, Some(&second.plan)).acts, []);
    now_seen.needs.clear();
    for _ in 0..2 {
        let done = decide(&settings(), &intents, &now_seen, None);
        perform(&done.acts, &mut intents, &mut now_seen);
    }
    assert!(intents.is_empty() && now_seen.pods.unwrap().is_empty());
}

/// Two classes, each for a model of its own.
fn two_models() -> Settings {
    let mut settings = settings();
    settings.classes[0].models = vec!["small".to_owned()];
    settings.classes[1].models = vec!["large".to_owned(), "digest-of-large".to_owned()];
    settings
}

#[test]
fn nothing_is_rented_for_a_model_that_no_class_serves_and_nothing_is_called_in_time() {
    let mut asked = seen(10_000.0, 9.0);
    asked.needs[0].model = Some("lagre".to_owned());
    let decision = decide(&two_models(), &Intents::new(), &asked, None);
    assert_eq!(decision.acts, []);
    assert!(!decision.plan.all_kept(), "{:?}", decision.plan);
}

#[test]
fn a_batch_is_given_pods_of_the_classes_that_serve_its_model_alone() {
    let settings = two_models();
    for (model, class) in [("small", "cheap"), ("large", "dear"), ("digest-of-large", "dear")] {
        let mut asked = seen(10_000.0, 9.0);
        asked.needs[0].model = Some(model.to_owned());
        let decision = decide(&settings, &Intents::new(), &asked, None);
        let rented = written(&decision.acts);
        assert!(
            !rented.is_empty() && rented.iter().all(|intent| intent.class == class),
            "{model}: {rented:?}"
        );
        let kinds = [("cheap", "small"), ("dear", "large")];
        let wanted = kinds.map(|(one, model)| {
            let pods = if one == class { rented.len() as u32 } else { 0 };
            ((one.to_owned(), model.to_owned()), pods)
        });
        assert_eq!(decision.wanted, wanted.into());
    }
    // A worker that runs already and serves another model is no help.
    let mut asked = seen(10_000.0, 9.0);
    asked.needs[0].model = Some("small".to_owned());
    let worker = SeenWorker {
        pod: "by-hand".to_owned(),
        class: "hand".to_owned(),
        rate_mean_tok_s: 1e6,
        live: true,
        models: vec!["large".to_owned()],
        ..SeenWorker::default()
    };
    asked.workers.push(worker.clone());
    assert_eq!(written(&decide(&settings, &Intents::new(), &asked, None).acts).len(), 1);
    asked.workers[0].models = vec!["small".to_owned()];
    assert_eq!(decide(&settings, &Intents::new(), &asked, None).acts, [], "it does the work");
}

#[test]
fn new_pods_are_spread_over_data_centres_and_avoid_those_without_room() {
    let asked = seen(260_000.0, 1.0);
    let decision = decide(&settings(), &Intents::new(), &asked, None);
    let places: Vec<_> = written(&decision.acts).iter().map(|i| i.data_center.clone().unwrap()).collect();
    assert_eq!(places.iter().filter(|place| *place == "US-KS-2").count(), 2, "{places:?}");
    assert_eq!(places.iter().filter(|place| *place == "EU-RO-1").count(), 2, "{places:?}");
    let mut refusing = settings();
    refusing.refused.push(Refused { class: "cheap".to_owned(), data_center: Some("US-KS-2".to_owned()) });
    let decision = decide(&refusing, &Intents::new(), &asked, None);
    assert!(written(&decision.acts).iter().all(|i| i.data_center.as_deref() != Some("US-KS-2")));
}

#[test]
fn a_pod_without_an_intent_is_ended_and_foreign_pods_are_left_alone() {
    let mut asked = seen(0.0, 1.0);
    let pod = |name: &str| SeenPod {
        id: format!("id-{name}"),
        name: name.to_owned(),
        computes: true,
        price_usd_micro_per_hour: None,
        data_center: None,
    };
    asked.pods = Some(vec![pod("tf-cheap-9"), pod("tfother-1"), pod("somebody")]);
    let acts = decide(&settings(), &Intents::new(), &asked, None).acts;
    assert_eq!(acts, [Act::End { name: "tf-cheap-9".into(), id: "id-tf-cheap-9".into(), why: Why::Orphan }]);
}

#[test]
fn while_the_list_cannot_be_read_nothing_is_ordered_or_reaped() {
    let mut blind = seen(130_000.0, 1.0);
    blind.pods = None;
    assert_eq!(decide(&settings(), &Intents::new(), &blind, None).acts, []);
    let mut halted = seen(130_000.0, 1.0);
    halted.halted = true;
    assert_eq!(decide(&settings(), &Intents::new(), &halted, None).acts, []);
}

#[test]
fn a_written_intent_whose_order_was_lost_is_ordered_again_and_a_pod_that_came_is_adopted() {
    let (mut intents, mut asked) = (Intents::new(), seen(60_000.0, 1.0));
    let first = decide(&settings(), &intents, &asked, None);
    let intent = written(&first.acts)[0].clone();
    intents.insert(intent.name.clone(), intent.clone());
    asked.next_number = 1;
    let again = decide(&settings(), &intents, &asked, Some(&first.plan)).acts;
    assert_eq!(again, [Act::Order(intent.name.clone())], "the coordinator died between writing and ordering");
    perform(&again, &mut intents, &mut asked);
    let acts = decide(&settings(), &intents, &asked, Some(&first.plan)).acts;
    assert!(matches!(&acts[..], [Act::Adopt { .. }]), "{acts:?}");
}

#[test]
fn pods_that_never_come_never_get_ready_fall_silent_stop_or_vanish_are_let_go() {
    let intent = Intent {
        name: "tf-cheap-0".to_owned(),
        class: "cheap".to_owned(),
        data_center: None,
        price_usd_micro_per_hour: UsdMicro(340_000),
        written_at: TimeMs(0),
        provider_id: Some("id".to_owned()),
        ending: None,
    };
    let listed = SeenPod {
        id: "id".to_owned(),
        name: intent.name.clone(),
        computes: true,
        price_usd_micro_per_hour: None,
        data_center: None,
    };
    let worker = |heard_ms: u64| SeenWorker {
        pod: intent.name.clone(),
        rate_mean_tok_s: 20.0,
        rate_sd_tok_s: 0.0,
        silent: TimeMs(2 * HOUR_MS).since(TimeMs(heard_ms)),
        live: true,
        ..SeenWorker::default()
    };
    let late = TimeMs(2 * HOUR_MS);
    let why = |intent: &Intent, pods: Vec<SeenPod>, workers: Vec<SeenWorker>| {
        let intents = Intents::from([(intent.name.clone(), intent.clone())]);
        let asked = Seen { now: late, pods: Some(pods), workers, next_number: 1, ..seen(1e6, 9.0) };
        decide(&settings(), &intents, &asked, None).acts.into_iter().find_map(|act| match act {
            Act::End { why, .. } | Act::Close { why, .. } => Some(why),
            _ => None,
        })
    };
    let stopped = SeenPod { computes: false, ..listed.clone() };
    let unanswered = Intent { provider_id: None, ..intent.clone() };
    assert_eq!(why(&intent, vec![listed.clone()], vec![worker(late.0 - 500)]), None);
    assert_eq!(why(&intent, vec![listed.clone()], vec![]), Some(Why::NeverReady));
    assert_eq!(why(&intent, vec![listed.clone()], vec![worker(late.0 - 120_000)]), Some(Why::Silent));
    assert_eq!(why(&intent, vec![stopped], vec![worker(late.0)]), Some(Why::Stopped));
    let dead = SeenWorker { live: false, ..worker(late.0 - 5_000) };
    assert_eq!(why(&intent, vec![], vec![dead]), Some(Why::Vanished));
    assert_eq!(why(&intent, vec![], vec![]), Some(Why::Vanished));
    // A list that lags is no death: the pod was made a moment ago, or its worker is there.
    let young = Intent { written_at: TimeMs(late.0 - 10_000), ..intent.clone() };
    assert_eq!(why(&young, vec![], vec![]), None);
    assert_eq!(why(&intent, vec![], vec![worker(late.0)]), None);
    assert_eq!(why(&unanswered, vec![], vec![]), Some(Why::NeverCame));
}

#[test]
fn a_pod_that_was_rented_a_moment_ago_may_be_listed_late() {
    let fleet = Settings { pods_max: 1, ..settings() };
    let (mut intents, mut asked) = (Intents::new(), seen(60_000.0, 1.0));
    perform(&decide(&fleet, &intents, &asked, None).acts, &mut intents, &mut asked);
    let name = intents.keys().next().unwrap().clone();
    intents.get_mut(&name).unwrap().provider_id = Some(format!("id-{name}"));
    asked.pods = Some(Vec::new());
    let mut after = |seconds: u64, shown: bool| {
        asked.now = TimeMs(seconds * 1000);
        asked.shown = shown.then(|| name.clone()).into_iter().collect();
        let acts = decide(&fleet, &intents, &asked, None).acts;
        acts.into_iter().find_map(|act| match act {
            Act::Close { why, .. } => Some(why),
            Act::Write(_) => panic!("rented twice"),
            _ => None,
        })
    };
    assert_eq!(after(5, false), None, "the list lags");
    assert_eq!(after(70, false), Some(Why::Vanished), "and not for so long");
    assert_eq!(after(5, true), Some(Why::Vanished), "a list has held it already");
}

#[test]
fn the_least_number_of_pods_runs_without_work_and_the_cheapest_of_them() {
    let asked = seen(0.0, 1.0);
    let fleet = Settings { pods_min: 2, ..settings() };
    let decision = decide(&fleet, &Intents::new(), &asked, None);
    let classes: Vec<_> = written(&decision.acts).iter().map(|intent| intent.class.as_str()).collect();
    assert_eq!(classes, ["cheap", "cheap"]);
}

#[test]
fn a_worker_that_nobody_rented_does_its_share_and_is_never_ended() {
    let mut asked = seen(60_000.0, 1.0);
    asked.workers.push(SeenWorker {
        pod: "by-hand".to_owned(),
        class: "local".to_owned(),
        price_usd_micro_per_hour: UsdMicro(340_000),
        rate_mean_tok_s: 20.0,
        live: true,
        ..SeenWorker::default()
    });
    assert_eq!(decide(&settings(), &Intents::new(), &asked, None).acts, [], "it does the work alone");
    let Prospect { problem, kinds, .. } = market(&settings(), &Intents::new(), &asked);
    assert_eq!(kinds.iter().map(|kind| kind.class.as_str()).collect::<Vec<_>>(), ["cheap", "dear", "local"]);
    assert!(problem.pods.iter().any(|pod| pod.name == "by-hand"));
    asked.needs[0].batch.tokens_left = 130_000.0;
    assert!(!written(&decide(&settings(), &Intents::new(), &asked, None).acts).is_empty());
}

#[test]
fn a_pod_without_work_waits_for_the_idle_limit_and_no_longer() {
    let patient = Settings { idle_limit_s: 60.0, ..settings() };
    let (mut intents, mut asked) = (Intents::new(), seen(60_000.0, 1.0));
    let first = decide(&patient, &intents, &asked, None);
    perform(&first.acts, &mut intents, &mut asked);
    let name = intents.keys().next().unwrap().clone();
    asked.needs.clear();
    asked.now = TimeMs(200_000);
    asked.workers = intents
        .keys()
        .map(|pod| SeenWorker {
            pod: pod.clone(),
            rate_mean_tok_s: 20.0,
            live: true,
            idle: Some(Duration::from_secs(50)),
            ..SeenWorker::default()
        })
        .collect();
    let acts = decide(&patient, &intents, &asked, None).acts;
    assert!(acts.iter().all(|act| matches!(act, Act::Adopt { .. })), "{acts:?}");
    let none = Settings { pods_max: 0, ..patient.clone() };
    let acts = decide(&none, &intents, &asked, None).acts;
    assert!(
        acts.iter().any(|act| matches!(act, Act::End { why: Why::NotNeeded, .. })),
        "none may run: {acts:?}"
    );
    asked.now = TimeMs(211_000);
    asked.workers.iter_mut().for_each(|worker| worker.idle = Some(Duration::from_secs(61)));
    let acts = decide(&patient, &intents, &asked, None).acts;
    assert!(
        acts.iter()
            .any(|act| matches!(act, Act::End { name: ended, why: Why::NotNeeded, .. } if *ended == name))
    );
}

#[test]
fn silence_says_nothing_while_no_heartbeat_can_be_heard() {
    let (mut intents, mut asked) = (Intents::new(), seen(60_000.0, 3.0));
    let first = decide(&settings(), &intents, &asked, None);
    perform(&first.acts, &mut intents, &mut asked);
    asked.now = TimeMs(HOUR_MS);
    asked.deaf = true;
    let acts = decide(&settings(), &intents, &asked, Some(&first.plan)).acts;
    assert!(!acts.iter().any(|act| matches!(act, Act::End { .. })), "{acts:?}");
}

/// The provider may take its time to end a pod, or fail to.
#[test]
fn a_pod_that_leaves_counts_for_every_limit_until_it_is_gone() {
    let mut settings = settings();
    settings.classes.truncate(1);
    settings.pods_max = 2;
    let (mut intents, mut now_seen) = (Intents::new(), seen(1e6, 1.0));
    for _ in 0..2 {
        let decision = decide(&settings, &intents, &now_seen, None);
        perform(&decision.acts, &mut intents, &mut now_seen);
    }
    assert_eq!(intents.len(), 2);
    let leaves = intents.keys().next().unwrap().clone();
    intents.get_mut(&leaves).unwrap().ending = Some(Why::Silent);
    let decision = decide(&settings, &intents, &now_seen, None);
    assert!(written(&decision.acts).is_empty(), "{:?}", decision.acts);
    now_seen.pods.as_mut().unwrap().retain(|pod| pod.name != leaves);
    let decision = decide(&settings, &intents, &now_seen, None);
    assert_eq!(written(&decision.acts).len(), 1, "{:?}", decision.acts);
}

#[test]
fn the_daily_limit_ends_the_dearest_pods_first() {
    let (mut intents, mut asked) = (Intents::new(), seen(400_000.0, 1.0));
    let first = decide(&settings(), &intents, &asked, None);
    perform(&first.acts, &mut intents, &mut asked);
    let second = decide(&settings(), &intents, &asked, Some(&first.plan));
    perform(&second.acts, &mut intents, &mut asked);
    let fleet = Settings { usd_micro_per_day_max: Some(UsdMicro::from_dollars(10.0)), ..settings() };
    asked.spent_today = UsdMicro::from_dollars(9.8);
    let acts = decide(&fleet, &intents, &asked, None).acts;
    let ended: Vec<_> = acts
        .iter()
        .filter_map(
            |act| if let Act::End { name, why: Why::Limit, .. } = act { Some(name.as_str()) } else { None },
        )
        .collect();
    assert!(!ended.is_empty() && ended.iter().all(|name| name.contains("dear")), "{acts:?}");
}

prop_compose! {
    fn any_fleet()(
        prices in prop::collection::vec((0.1..4.0f64, 5.0..60.0f64, 1u32..6), 1..5),
        per_hour in prop::option::of(0.1..10.0f64),
        per_day in prop::option::of(0.1..20.0f64),
        pods_min in 0usize..3,
        pods_max in 3usize..10,
    ) -> Settings {
        let classes = prices.into_iter().enumerate().map(|(n, (price, rate, most))| {
            Class { pods_max: most, ..class(&format!("c{n}"), price, rate, &["A", "B", "C"]) }
        });
        Settings {
            fleet: "tf".to_owned(),
            classes: classes.collect(),
            usd_micro_per_hour_max: per_hour.map(UsdMicro::from_dollars),
            usd_micro_per_day_max: per_day.map(UsdMicro::from_dollars),
            pods_min,
            pods_max,
            ..Settings::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Orders and answers get lost at random, the coordinator forgets its plan, pods vanish: limits hold at every
    /// step, and when all is quiet and no work is left, nothing runs beyond the least number.
    #[test]
    fn limits_hold_at_every_step_and_nothing_is_left_over(
        fleet in any_fleet(), tokens in 1e3..1e6f64, spent in 0.0..5.0f64,
        faults in prop::collection::vec(0u8..6, 12),
    ) {
        let (mut intents, mut now_seen) = (Intents::new(), seen(tokens, 2.0));
        now_seen.spent_today = UsdMicro::from_dollars(spent);
        let mut plan: Option<Plan> = None;
        for fault in faults {
            let decision = decide(&fleet, &intents, &now_seen, plan.as_ref());
            let mut acts = decision.acts.clone();
            match fault {
                // Nothing was done at all.
                0 => acts.clear(),
                // Only the first was.
                1 => acts.truncate(1),
                // The intent was written, the order lost.
                2 => {
                    for intent in written(&acts) {
                        intents.insert(intent.name.clone(), intent.clone());
                        now_seen.next_number += 1;
                    }
                    acts.clear();
                }
                // A pod vanishes.
                3 => { now_seen.pods.as_mut().unwrap().pop(); }
                _ => {}
            }
            perform(&acts, &mut intents, &mut now_seen);
            plan = if fault == 4 { None } else { Some(decision.plan) };
            now_seen.now = now_seen.now.plus(std::time::Duration::from_secs(30));

            let listed = now_seen.pods.as_ref().unwrap();
            let price = |pod: &SeenPod| pod.price_usd_micro_per_hour.unwrap();
            let per_hour: UsdMicro = listed.iter().map(price).sum();
            prop_assert!(fleet.usd_micro_per_hour_max.is_none_or(|limit| per_hour <= limit));
            prop_assert!(listed.len() <= fleet.pods_max);
            let mut names: Vec<&str> = listed.iter().map(|pod| pod.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            prop_assert_eq!(names.len(), listed.len());
        }
        now_seen.needs.clear();
        for _ in 0..4 {
            let decision = decide(&fleet, &intents, &now_seen, None);
            perform(&decision.acts, &mut intents, &mut now_seen);
            now_seen.now = now_seen.now.plus(std::time::Duration::from_secs(700));
            for pod in now_seen.pods.as_ref().unwrap() {
                now_seen.workers.retain(|worker| worker.pod != pod.name);
                now_seen.workers.push(SeenWorker {
                    pod: pod.name.clone(), rate_mean_tok_s: 20.0, rate_sd_tok_s: 0.1,
                    live: true, ..SeenWorker::default()
                });
            }
        }
        prop_assert!(now_seen.pods.unwrap().len() <= fleet.pods_min);
    }
}
