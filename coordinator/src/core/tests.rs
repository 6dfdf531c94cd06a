//! Rules of the core, one by one, and random lives under faults.

mod audits;
mod budgets;
mod cache;
mod engines;
mod hosts;
mod rooms;
mod stalls;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use ternfleet_proto::message::{BatchOptions, BatchState, RefusalCode, WebhookState};
use ternfleet_proto::{Epoch, JobKey, TenantId, TimeMs, UsdMicro, WorkerId};

use super::*;
use world::{World, epoch_zero, good_lines, line, task, tenant};

#[test]
fn a_batch_runs_to_its_end() {
    let mut world = World::new(1);
    world.add_worker("a", "host-a", 340_000);
    let slot = world.submit("in", "t", 500, BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    assert_eq!(world.state(slot), BatchState::Completed);
}

#[test]
fn constrained_work_names_its_arithmetic_wherever_its_request_lies() {
    use ternfleet_proto::message::Input;
    let mut world = World::new(4);
    world.add_worker("a", "host-a", 340_000);
    let large = Task { constrained: true, input: Input::Object("job-1".into()), ..task(0) };
    let small = Task { constrained: true, ..task(1) };
    let lines = [large, small, task(2)].map(|task| Content::Good(Arc::new(task)));
    world.submit_content("in", "t", lines.to_vec(), BatchOptions::default());
    world.perform_all();
    world.beat(0);
    for _ in 0..2 {
        world.tell(Event::Turn);
        world.perform_all();
    }
    let named =
        |work: &ternfleet_proto::message::Work| (work.job.index, work.numerics.contains("+llguidance-"));
    let mut found: Vec<(u32, bool)> = world.work.values().map(|(_, work)| named(work)).collect();
    found.sort_unstable();
    assert_eq!(found, [(0, true), (1, true), (2, false)]);
}

#[test]
fn an_answer_that_was_never_assigned_commits_nothing() {
    let mut world = World::new(2);
    let slot = world.submit_content("in", "t", good_lines(3), BatchOptions::default());
    world.perform_all();
    let id = world.core.batch(slot).unwrap().record.id.clone();
    let job = JobKey { batch: id, index: 0 };
    let worker = "liar".parse().unwrap();
    let mut answer = Answer {
        tag: world::KEY.sign(&job, epoch_zero().next(), &worker),
        job,
        epoch: epoch_zero(),
        attempt: ternfleet_proto::Attempt(1),
        worker,
        verdict: Verdict::Good { ids_digest: 1 },
        fault: None,
        prompt_tokens: 1,
        completion_tokens: 1,
        repeated_tokens: 0,
        engine_us: 0,
        cached_tokens: 0,
        model: None,
        rejected: None,
        nondeterministic: false,
        finished_at: TimeMs(0),
    };
    world.tell(Event::Answer { sequence: 1, answer: Box::new(answer.clone()) });
    assert_eq!(world.core.counts.forged_answers, 1);
    assert_eq!(world.core.counts.committed, [0, 0]);
    answer.epoch = epoch_zero().next();
    world.tell(Event::Answer { sequence: 2, answer: Box::new(answer.clone()) });
    assert_eq!(world.core.counts.committed, [1, 0]);
    answer.verdict = Verdict::Good { ids_digest: 2 };
    world.tell(Event::Answer { sequence: 3, answer: Box::new(answer) });
    assert_eq!((world.core.counts.duplicate_answers, world.core.counts.divergent_answers), (1, 1));
}

#[test]
fn a_job_that_kills_its_workers_on_two_hosts_is_poison_and_the_rest_goes_on() {
    let mut world = World::new(3);
    world.add_worker("a", "host-a", 1);
    world.add_worker("b", "host-b", 1);
    world.poisonous.push(3);
    let slot = world.submit_content("in", "t", good_lines(40), BatchOptions::default());
    world.run_to_the_end();
    world.check(slot);
    assert_eq!(world.dead.len(), 1);
    assert_eq!(world.dead[0].index, 3);
    let log = &world.dead_logs[0];
    assert!(log.len() >= 3, "every attempt is told: {log:?}");
    assert!(log.iter().all(|failed| failed.worker.is_some() && failed.reason.contains("lost")), "{log:?}");
    let totals = world.core.batch(slot).unwrap().record.totals;
    assert_eq!((totals.completed, totals.failed), (39, 1));
    assert!(world.core.counts.failed_attempts >= 3, "{:?}", world.core.counts);
}

#[test]
fn a_job_larger_than_what_a_worker_holds_in_reserve_runs_beside_many_small_ones() {
    let mut world = World::new(7);
    world.add_worker("a", "host-a", 340_000);
    world.submit_content("small", "t", good_lines(4000), BatchOptions::default());
    let large = Content::Good(Arc::new(Task { tokens_estimate: 3000, ..task(0) }));
    let large = world.submit_content("large", "t", vec![large], BatchOptions::default());
    for _ in 0..100 {
        world.run_quietly();
    }
    assert_eq!(world.state(large), BatchState::Completed);
    let small = world.records.values().find(|record| !record.state.is_terminal());
    assert!(small.is_some(), "the small ones were there all the time");
}

#[test]
fn a_webhook_is_called_once_the_batch_has_ended_and_again_by_the_next_leader_until_it_is_settled() {
    let mut world = World::new(5);
    world.add_worker("a", "host-a", 340_000);
    let options =
        BatchOptions { webhook_url: Some("https://hooks.example.com/".into()), ..BatchOptions::default() };
    let slot = world.submit_content("in", "t", good_lines(10), options);
    let id = world.core.batch(slot).unwrap().record.id.clone();
    assert_eq!(world.called, []);
    world.run_to_the_end();
    assert_eq!(world.called, std::slice::from_ref(&id));
    world.tell(Event::Lead(Lead { revision: ternfleet_proto::LeaderRevision(99), term: 9 }));
    world.perform_all();
    assert_eq!(world.called, [id.clone(), id.clone()], "the call is not settled");
    world.tell(Event::Notified { batch: id.clone(), outcome: Ok(()) });
    world.perform_all();
    assert_eq!(world.records[id.as_str()].webhook, Some(WebhookState::Delivered));
    world.tell(Event::Lead(Lead { revision: ternfleet_proto::LeaderRevision(100), term: 10 }));
    world.perform_all();
    assert_eq!(world.called.len(), 2);
}

#[test]
fn a_batch_that_an_earlier_leader_may_have_moved_jobs_of_is_fenced_after_its_end() {
    let mut world = World::new(6);
    world.add_worker("a", "host-a", 340_000);
    let id = |world: &World, slot| world.core.batch(slot).unwrap().record.id.clone();
    let quiet = world.submit_content("quiet", "t", good_lines(4), BatchOptions::default());
    let quiet = id(&world, quiet);
    world.run_to_the_end();
    let open = world.submit_content("open", "t", good_lines(4), BatchOptions::default());
    let open = id(&world, open);
    world.perform_all();
    world.restart_coordinator();
    world.run_to_the_end();
    world.perform_all();
    assert_eq!(world.forgotten, [(quiet, false), (open, true)]);
}

#[test]
fn what_an_earlier_leader_has_stored_after_the_next_one_began_is_not_forgotten() {
    let mut world = World::new(6);
    let slot = world.submit_content("in", "t", good_lines(4), BatchOptions::default());
    let known = world.core.batch(slot).unwrap().record.clone();
    world.restart_coordinator();
    let slot = world.core.find(&known.id).unwrap();
    let options = |world: &World| world.core.batch(slot).unwrap().record.options.clone();
    let raised =
        BatchOptions { priority: 5, budget_usd_micro: Some(UsdMicro(1_000)), ..known.options.clone() };
    world.tell(Event::BatchKnown(Box::new(BatchRecord { options: raised.clone(), ..known.clone() })));
    assert_eq!(options(&world), raised);
    // What this leader has changed itself is newer than anything of an earlier one.
    world.tell(Event::BatchKnown(Box::new(known.clone())));
    assert_eq!(options(&world), raised);
    let ended =
        BatchRecord { ending: Some(Ending::Cancelled), state: BatchState::Cancelling, ..known.clone() };
    assert!(known.misses(&ended, known.leader) && !ended.misses(&known, known.leader));
    world.tell(Event::BatchKnown(Box::new(ended)));
    world.perform_all();
    world.run_to_the_end();
    assert_eq!(world.state(slot), BatchState::Cancelled);
}

/// A leader that was paused hears of the answer under a later one, while the worker that it had chosen is paused, too.
#[test]
fn a_batch_is_fenced_whose_last_answer_came_from_another_worker_than_the_one_that_has_the_job() {
    let mut world = World::new(6);
    world.add_worker("a", "host-a", 340_000);
    let slot = world.submit_content("in", "t", good_lines(1), BatchOptions::default());
    while world.workers[0].running.is_empty() {
        world.beat(0);
        world.tell(Event::Turn);
        world.perform_all();
        world.pull(0);
    }
    let (work, worker) = (world.workers[0].running[0].clone(), "b-0".parse::<WorkerId>().unwrap());
    world.finish(0);
    let answer = world.results.last_mut().unwrap();
    answer.epoch = Epoch((2 << EPOCH_TERM_SHIFT) | 1);
    answer.tag = world::KEY.sign(&work.job, answer.epoch, &worker);
    answer.worker = worker;
    world.tell_results(usize::MAX);
    world.perform_all();
    assert_eq!(world.state(slot), BatchState::Completed);
    assert_eq!(world.forgotten, [(work.job.batch, true)]);
}

#[test]
fn an_expired_batch_answers_what_has_not_run() {
    let mut world = World::new(6);
    let options = BatchOptions { completion_window_ms: Some(3_000), ..BatchOptions::default() };
    let slot = world.submit("in", "t", 2_500, options);
    world.run_to_the_end();
    world.check(slot);
    assert_eq!(world.state(slot), BatchState::Expired);
}

#[test]
fn a_batch_pauses_when_its_budget_is_spent_and_goes_on_with_more() {
    let mut world = World::new(7);
    world.add_worker("a", "host-a", 3_600_000_000);
    let budget = UsdMicro(2_000_000);
    let options = BatchOptions { budget_usd_micro: Some(budget), ..BatchOptions::default() };
    let slot = world.submit_content("in", "t", good_lines(2_000), options);
    for _ in 0..200 {
        world.run_quietly();
    }
    assert_eq!(world.state(slot), BatchState::PausedBudget);
    let batch = world.core.batch(slot).unwrap();
    assert!(batch.totals.cost_usd_micro <= budget, "{}", batch.totals.cost_usd_micro);
    assert!(batch.totals.completed > 0);
    let change = Change { budget_usd_micro: Some(UsdMicro(i64::MAX / 4)), ..Change::default() };
    world.tell(Event::Change { batch: slot, change });
    world.run_to_the_end();
    world.check(slot);
    assert_eq!(world.state(slot), BatchState::Completed);
}

/// A worker of 100 tokens a second at this price makes a token for 10 micro-dollars, so a job is estimated at 200.
const TEN_A_TOKEN: i64 = 3_600_000;

fn budget(usd_micro: i64) -> BatchOptions {
    BatchOptions { budget_usd_micro: Some(UsdMicro(usd_micro)), ..BatchOptions::default() }
}

#[test]
fn a_batch_whose_budget_was_all_in_flight_goes_on_as_answers_come() {
    let mut world = World::new(13);
    world.add_worker("a", "host-a", TEN_A_TOKEN);
    // Fewer jobs at a time than the worker has room for.
    let slot = world.submit_content("in", "t", good_lines(6), budget(700));
    for _ in 0..100 {
        world.run_quietly();
    }
    world.check(slot);
    assert_eq!(world.state(slot), BatchState::Completed);
}

#[test]
fn a_batch_goes_on_when_a_worker_of_its_model_comes_after_others() {
    let mut world = World::new(14);
    world.add_worker("a", "host-a", 1);
    let mut other = task(0);
    other.line = ternfleet_proto::message::Line { model: Some("late".to_owned()), ..line(0) };
    let slot = world.submit_content("in", "t", vec![Content::Good(Arc::new(other))], BatchOptions::default());
    for _ in 0..20 {
        world.run_quietly();
    }
    assert_eq!(world.state(slot), BatchState::InProgress);
    world.add_worker("b", "host-b", 1);
    world.workers[1].model = "late".to_owned();
    for _ in 0..20 {
        world.run_quietly();
    }
    world.check(slot);
    assert_eq!(world.state(slot), BatchState::Completed);
}

#[test]
fn a_batch_that_can_pay_only_the_cheap_worker_runs_there_and_holds_up_nobody() {
    let mut world = World::new(15);
    world.add_worker("dear", "host-d", 100 * TEN_A_TOKEN);
    world.add_worker("cheap", "host-c", TEN_A_TOKEN);
    let poor = world.submit_content("poor", "t", good_lines(20), budget(3_000));
    let rich = world.submit_content("rich", "u", good_lines(200), BatchOptions::default());
    let poor_id = world.core.batch(poor).unwrap().record.id.clone();
    for _ in 0..300 {
        world.run_quietly();
        let dear = &world.workers[0].running;
        assert!(dear.iter().all(|work| work.job.batch != poor_id), "a job for 20,000 of 3,000 micro-dollars");
    }
    for slot in [poor, rich] {
        world.check(slot);
        assert_eq!(world.state(slot), BatchState::Completed);
    }
    assert!(world.workers[0].decoded > 0, "the dear worker idled beside a batch that can pay it");
}

#[test]
fn a_batch_too_poor_for_every_worker_pauses_although_nothing_of_it_runs() {
    let mut world = World::new(16);
    world.add_worker("dear", "host-d", 100 * TEN_A_TOKEN);
    world.add_worker("cheap", "host-c", TEN_A_TOKEN);
    // The first line waits for a model that nobody serves; the second could run, for more money than there is.
    let mut first = task(0);
    first.line = ternfleet_proto::message::Line { model: Some("nobody's".to_owned()), ..line(0) };
    let mut content = good_lines(2);
    content[0] = Content::Good(Arc::new(first));
    let slot = world.submit_content("in", "t", content, budget(199));
    for _ in 0..20 {
        world.run_quietly();
    }
    assert_eq!(world.state(slot), BatchState::PausedBudget);
    world.tell(Event::Change {
        batch: slot,
        change: Change { budget_usd_micro: Some(UsdMicro(200)), ..Change::default() },
    });
    for _ in 0..20 {
        world.run_quietly();
    }
    assert_eq!(world.core.batch(slot).unwrap().totals.completed, 1);
}

#[test]
fn a_cancelled_batch_answers_every_line_and_keeps_what_is_done() {
    let mut world = World::new(8);
    world.add_worker("a", "host-a", 1);
    let slot = world.submit("in", "t", 5_000, BatchOptions::default());
    for _ in 0..10 {
        world.run_quietly();
    }
    let done = world.core.batch(slot).unwrap().totals.completed;
    assert!(done > 0);
    world.tell(Event::Cancel { batch: slot });
    world.run_to_the_end();
    world.check(slot);
    assert_eq!(world.state(slot), BatchState::Cancelled);
    assert!(world.core.batch(slot).unwrap().record.totals.completed >= done);
}

#[test]
fn ten_short_lines_behind_a_long_batch_finish_long_before_it() {
    let mut world = World::new(9);
    world.add_worker("a", "host-a", 1);
    let long = world.submit_content("long", "t", good_lines(3_000), BatchOptions::default());
    for _ in 0..10 {
        world.run_quietly();
    }
    let short = world.submit_content("short", "t", good_lines(10), BatchOptions::default());
    let before = world.core.batch(long).unwrap().totals.completed;
    while !world.state(short).is_terminal() {
        world.run_quietly();
    }
    let after = world.core.batch(long).unwrap().totals.completed;
    assert!(after - before <= 60, "{} jobs of the long batch went first", after - before);
    assert!(!world.state(long).is_terminal());
}

#[test]
fn a_tenant_over_its_quota_is_told_when_to_come_back() {
    let mut world = World::new(10);
    let slot = world.submit_content("in", "default", good_lines(10), BatchOptions::default());
    world.perform_all();
    let record = world.core.batch(slot).unwrap().record.clone();
    let create = ternfleet_proto::message::BatchCreate {
        tenant: tenant(),
        idempotency_key: "next".to_owned(),
        input_object: "next".to_owned(),
        name: None,
        endpoint: None,
        options: BatchOptions::default(),
        metadata: Default::default(),
        traceparent: None,
        work: None,
    };
    let durability = record.durability;
    let fits = super::BatchFacts {
        input_bytes: 1000,
        stored_bytes: 1000,
        results_after: 0,
        durability,
        replicas: 1,
    };
    assert_eq!(world.core.admit(&create, &fits), Ok(()));
    for over in [
        super::BatchFacts { input_bytes: u64::MAX / 8, ..fits },
        super::BatchFacts { stored_bytes: u64::MAX / 8, ..fits },
    ] {
        let refused = world.core.admit(&create, &over).unwrap_err();
        assert_eq!(refused.code, RefusalCode::Busy);
        assert!(refused.retry_after_ms.is_some());
    }
}

#[test]
fn a_job_whose_model_nobody_serves_waits_and_does_not_hold_up_the_others() {
    let mut world = World::new(11);
    world.add_worker("a", "host-a", 1);
    let mut content = good_lines(20);
    let mut other = task(20);
    other.line = ternfleet_proto::message::Line { model: Some("nobody's".to_owned()), ..line(20) };
    content.insert(0, Content::Good(Arc::new(other)));
    let options = BatchOptions { completion_window_ms: Some(60_000), ..BatchOptions::default() };
    let slot = world.submit_content("in", "t", content, options);
    for _ in 0..30 {
        world.run_quietly();
    }
    let view = world.core.batch_view(world.now, slot).unwrap();
    assert_eq!(view.completed, 20);
    assert!(view.reason.unwrap().contains("nobody's"));
    world.run_to_the_end();
    world.check(slot);
    assert_eq!(world.state(slot), BatchState::Expired);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Crashes of workers and of the coordinator, silence, late and reordered actions: nothing is lost or doubled.
    #[test]
    fn no_line_is_lost_or_answered_twice_whatever_dies(seed in any::<u64>(), lines in 1u32..400) {
        let mut world = World::new(seed);
        for (n, host) in ["h1", "h1", "h2", "h3"].into_iter().enumerate() {
            world.add_worker(&format!("w{n}"), host, 100_000 * (n as i64 + 1));
        }
        let one = world.submit("one", "t", lines, BatchOptions::default());
        let budget = BatchOptions { budget_usd_micro: Some(UsdMicro(50)), completion_window_ms: Some(120_000), ..BatchOptions::default() };
        let two = world.submit("two", "u", lines / 2 + 1, budget);
        // A restarted coordinator numbers its batches again.
        let ids = [one, two].map(|slot| world.core.batch(slot).unwrap().record.id.clone());
        for _ in 0..1_500 {
            let n = world.dice.below(4) as usize;
            match world.dice.below(20) {
                0..=3 => world.beat(n),
                4..=7 => world.pull(n),
                8..=9 => world.finish(n),
                10..=13 => { world.perform_one(); }
                14 => { let count = world.dice.below(5) as usize; world.tell_results(count); }
                15..=16 => { world.now = world.now.plus(Duration::from_millis(150)); world.tell(Event::Tick); }
                17 => world.tell(Event::Turn),
                18 if world.dice.chance(20) => world.crash(n),
                19 if world.dice.chance(5) => world.restart_coordinator(),
                19 if world.dice.chance(3) => { world.workers[n].up = !world.workers[n].up; }
                _ => {}
            }
        }
        for worker in &mut world.workers {
            worker.up = true;
        }
        world.run_to_the_end();
        for id in ids {
            world.check(world.core.find(&id).unwrap());
        }
    }
}

#[test]
fn a_completion_whose_worker_is_lost_goes_to_another() {
    let mut world = World::new(1);
    world.add_worker("a", "a", 340_000);
    world.run_quietly();
    let ternfleet_proto::message::Input::Inline(generation) = task(0).input else {
        panic!("a task of another kind")
    };
    let create = ternfleet_proto::message::JobCreate {
        tenant: tenant(),
        batch: "cmpl-1".parse().unwrap(),
        line: line(0),
        generation,
        deadline: ternfleet_proto::TimeMs(u64::MAX),
        traceparent: None,
        again: false,
        wait_for_model: false,
    };
    world.tell(Event::JobCreated(Box::new(create.clone())));
    world.tell(Event::Turn);
    world.perform_all();
    world.pull(0);
    assert_eq!(world.workers[0].running.len(), 1);
    world.crash(0);
    let answered = |world: &World| world.results.iter().any(|answer| answer.job.batch == create.batch);
    for _ in 0..200 {
        world.run_quietly();
    }
    assert!(answered(&world), "nobody was given it after its worker was lost");

    // The next leader, who has never heard of it, finds the answer when it is asked.
    world.restart_coordinator();
    assert!(world.core.find(&create.batch).is_none());
    world.tell(Event::JobCreated(Box::new(ternfleet_proto::message::JobCreate {
        again: true,
        ..create.clone()
    })));
    let told = |action: &Action| matches!(action, Action::Announce { key, .. } if key.batch == create.batch);
    assert!(world.actions.iter().any(told), "{:?}", world.actions);
}

/// Workers say their tags to the coordinator; who looks at the fleet needs none, and sees of others' jobs nothing.
#[test]
fn a_view_of_the_pods_has_no_tags_and_a_tenant_sees_its_own_jobs_alone() {
    let mut world = World::new(16);
    world.add_worker("a", "host-a", 340_000);
    for name in ["t", "u"] {
        world.submit_content(name, name, good_lines(2), BatchOptions::default());
    }
    while world.workers[0].running.len() < 4 {
        world.beat(0);
        world.tell(Event::Turn);
        world.perform_all();
        world.pull(0);
    }
    world.beat(0);
    let running = |viewer: Option<&TenantId>| world.core.pod_views(viewer)[0].heartbeat.running.clone();
    assert_eq!(running(None).len(), 4);
    assert!(running(None).iter().all(|running| running.tag.is_none()));
    let (tenant, nobody): (TenantId, TenantId) = ("t".parse().unwrap(), "v".parse().unwrap());
    let own: BTreeSet<_> = running(Some(&tenant)).into_iter().map(|running| running.job.batch).collect();
    let of_tenant = |record: &&BatchRecord| record.tenant == tenant;
    assert_eq!(own, world.records.values().filter(of_tenant).map(|record| record.id.clone()).collect());
    assert_eq!(running(Some(&nobody)), []);
}
