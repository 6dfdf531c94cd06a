//! Fleets in simulation, seed by seed: faults of every kind, invariants after every step, an end when faults stop.

use std::time::Duration;

use ternfleet_tests::sim::{CompletionPlan, Fault, Lie, Scenario, Trouble, run_scenario, run_seed};

/// Runs a range of seeds on this thread; the ranges run side by side as tests of their own.
fn seeds(from: u64, count: u64) {
    let failures: Vec<String> = (from..from + count)
        .filter_map(|seed| run_seed(seed).err())
        .map(|failure| failure.to_string())
        .collect();
    assert!(failures.is_empty(), "{} of {count} seeds failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn seeds_1_to_100_keep_every_invariant() {
    seeds(1, 100);
}

#[test]
fn seeds_101_to_200_keep_every_invariant() {
    seeds(101, 100);
}

#[test]
fn seeds_201_to_300_keep_every_invariant() {
    seeds(201, 100);
}

#[test]
fn the_first_100_seeds_of_this_commit_keep_every_invariant() {
    fresh_seeds(0);
}

#[test]
fn the_second_100_seeds_of_this_commit_keep_every_invariant() {
    fresh_seeds(1);
}

#[test]
fn the_third_100_seeds_of_this_commit_keep_every_invariant() {
    fresh_seeds(2);
}

/// Fixed seeds find what was found already: each commit tries others. `SIM_SEED` names the first one.
fn fresh_seeds(part: u64) {
    let first = first_fresh_seed();
    println!("300 fresh seeds from {first}: SIM_SEED={first} tries them again");
    seeds(first + part * 100, 100);
}

fn first_fresh_seed() -> u64 {
    if let Some(named) = std::env::var("SIM_SEED").ok().filter(|named| !named.is_empty()) {
        return named.parse().unwrap_or_else(|_| panic!("SIM_SEED must be a number, not {named:?}"));
    }
    let mut git = std::process::Command::new("git");
    git.args(["rev-parse", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let hash = git.output().ok().filter(|answer| answer.status.success());
    let hash = hash.and_then(|answer| String::from_utf8(answer.stdout).ok()).unwrap_or_default();
    // Where there is no git, as in an unpacked archive, the seeds are always the same.
    hash.get(..10).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(1_000_000)
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let steps = |seed| {
        let tally = run_seed(seed).unwrap_or_else(|failure| panic!("{failure}"));
        (tally.steps, tally.good, tally.duplicates, tally.audits_agreed)
    };
    for seed in [3, 17, 42] {
        assert_eq!(steps(seed), steps(seed));
    }
}

/// Seeds that once broke something, with the faults that it took. Those up to 922,329 did so in a simulation that had its
/// own copies of the shells; with the shells that ship, other things happen at other times in them.
#[test]
fn seeds_that_failed_once_pass() {
    let run = |scenario: Scenario| {
        let seed = scenario.seed;
        let passed = run_scenario(scenario);
        assert!(passed.is_ok(), "seed {seed}: {passed:?}");
    };
    let again = |seed, faults: &[usize]| run(Scenario { rent: None, ..Scenario::of(seed).keeping(faults) });
    // A paused leader's record was overtaken and not repeated: a batch stayed `finalizing`.
    again(849, &[2, 4, 3]);
    // A worker that had been paused heard of its line's return before its cut, and never pulled again: the simulation told
    // it, where the shell looks.
    again(1937, &[6, 4, 8]);
    // A worker had reported a fault to an earlier leader, and the next one gave it the job again and again: it drops what
    // it has answered. Later leaders go on from savepoints.
    again(9_000_346, &[4, 3, 2, 6, 8, 1, 5, 14, 9, 10, 12, 13, 11]);
    again(170_037_830_708, &[4, 0]);
    // A standby listed the batches, and then asked where RESULTS ended: it never heard the answers to a batch that was
    // created and begun between the two.
    run(Scenario::of(678_598_492_214).keeping(&[1, 5]));
    // A leader was stopped between writing a pod down and ordering it. Its successor ordered the pod and gave it back; then
    // the first one woke and ordered it again.
    run(Scenario::of(9_500_019).keeping(&[8, 3, 5, 0]));
    // The same, but between its look at the lease and the provider: the documented limit, of which the checker did not know.
    run(Scenario::of(10_003_331).keeping(&[0]));
    // A worker asked a busy server what it can do, and took silence for inability.
    again(9_302_778, &[6, 0, 10, 9]);
    // A new leader could not list the batches whose answers its predecessor had not removed, and did not try again.
    again(9_000_096, &[0, 1]);
    // An audit had ended and its checkpoints were cleared away: a worker that had been paused claimed the job once more,
    // under its old epoch.
    for (seed, fault) in [(921_512, 2), (922_198, 1)] {
        again(seed, &[fault]);
    }
    // RESULTS was full, the job was handed to its own worker again, and then the first answer was stored: the checker did
    // not know that an audit's job was answered.
    again(922_329, &[0]);
    // The power failed, and an ack from before removed the message that had got its sequence.
    again(700_082, &[1]);
    // Told to drain while it was paused, a worker ended only after the simulation had meant to restart it.
    for (seed, faults) in [(921_754, [4, 1]), (913_165, [0, 1])] {
        again(seed, &faults);
    }
}

/// Half of all answers of the server are lost for a while: it is not known then what of the leader's writes was stored.
#[test]
fn what_a_fleet_costs_is_stored_again_after_writes_that_nobody_heard() {
    let faults = vec![(0, 2_000, Fault::LoseAnswers { one_in: 2, lasting: Duration::from_secs(20) })];
    let mut scenario =
        Scenario { coordinators: 1, completions: Vec::new(), rent: None, faults, ..Scenario::of(1) };
    scenario.workers.truncate(1);
    scenario.batches.truncate(1);
    (scenario.workers[0].rate_tok_s, scenario.workers[0].price_usd_micro_per_hour) = (20, 1_000_000);
    let batch = &mut scenario.batches[0];
    (batch.lines, batch.tokens_max) = (40, 60);
    (batch.window_ms, batch.budget_usd_micro, batch.cancel_at_ms, batch.killer) = (None, None, None, None);
    let tally = run_scenario(scenario).unwrap_or_else(|broken| panic!("{broken}"));
    assert!(tally.virtual_s > 40.0, "it lasts longer than the fault: {tally:?}");
    assert!(tally.ended_at.since(tally.account_stored_at) < Duration::from_secs(4), "{tally:?}");
}

/// In whole fleets under faults: whoever writes checkpoints of jobs that it was not given fences nobody, blames nobody and
/// changes no answer.
#[test]
fn checkpoints_of_somebody_who_was_not_given_the_job_count_for_nothing() {
    for seed in 1..=60 {
        let scenario = Scenario { forges: true, ..Scenario::of(seed) };
        run_scenario(scenario).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

/// In whole fleets under faults: wherever three pods can be asked, whoever answers wrongly is found out.
#[test]
fn a_lying_worker_is_found_out_and_shut_out() {
    let (mut runs, mut diverged, mut convicted, mut wrong) = (0, 0, 0, 0);
    for seed in 1..=120 {
        let mut scenario = Scenario { rent: None, ..Scenario::of(seed) };
        let pods: std::collections::BTreeSet<usize> =
            scenario.workers.iter().map(|worker| worker.pod).collect();
        if pods.len() < 3 {
            continue;
        }
        scenario.workers[0].lies = Some(Lie::AtTheEnd);
        let tally = run_scenario(scenario).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        runs += 1;
        diverged += u32::from(tally.audits_diverged > 0);
        convicted += u32::from(tally.quarantined_hosts > 0);
        wrong += u32::from(tally.wrong > 0);
    }
    assert!(runs >= 30, "only {runs} of the seeds have three pods");
    // Short batches may end before a third pod has spoken.
    assert!(diverged * 10 >= wrong * 6, "{diverged} of {wrong} fleets with wrong answers raised the alarm");
    assert!(convicted * 10 >= diverged * 6, "{convicted} of {diverged} alarms ended with a conviction");
}

/// In whole fleets under faults: who continues from a liar's checkpoint computes what is in it again. No honest worker gives a
/// wrong answer because of it, and none is convicted for one.
#[test]
fn honest_workers_that_continue_from_a_liars_checkpoints_answer_rightly() {
    let (mut rejected, mut wrong) = (0, 0);
    for seed in 1..=80 {
        let mut scenario = Scenario { rent: None, ..Scenario::of(seed) };
        if scenario.workers.len() < 2 {
            continue;
        }
        scenario.workers[0].lies = Some(Lie::AtTheBeginning);
        // It dies again and again, and leaves its checkpoints to the others.
        let crash = Fault::CrashWorker { place: 0, back_after: Duration::from_millis(1_500) };
        scenario.faults.extend((0..6).map(|number| (100 + number, 3_000 + 2_500 * number as u64, crash)));
        let tally = run_scenario(scenario).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        rejected += tally.rejected;
        wrong += tally.wrong;
    }
    assert!(
        rejected >= 50 && wrong > 0,
        "{rejected} checkpoints of the liar were continued from, {wrong} wrong answers"
    );
}

/// Whoever stops listening is not worked for: the fleet would need minutes for what these callers have asked for.
#[test]
fn an_http_caller_that_leaves_ends_its_completion() {
    for streamed in [false, true] {
        let leaves = |at_ms| CompletionPlan { at_ms, streamed, leaves_after_ms: Some(1_500) };
        let completions = (0..6).map(|number| leaves(10_000 + 10 * number)).collect();
        let mut scenario =
            Scenario { coordinators: 1, completions, rent: None, faults: Vec::new(), ..Scenario::of(5) };
        scenario.workers.truncate(1);
        scenario.batches.truncate(1);
        (scenario.workers[0].rate_tok_s, scenario.workers[0].slots) = (1, 6);
        let batch = &mut scenario.batches[0];
        (batch.at_ms, batch.lines, batch.tokens_max, batch.killer) = (0, 1, 1, None);
        (batch.window_ms, batch.budget_usd_micro, batch.cancel_at_ms) = (None, None, None);
        let tally = run_scenario(scenario).unwrap_or_else(|broken| panic!("{broken}"));
        assert!(tally.virtual_s < 40.0, "{tally:?}");
    }
}

/// Under every fault of the provider, of coordinators and of the network.
#[test]
fn seeds_with_rented_pods_give_every_pod_back() {
    let (mut runs, mut pods) = (0, 0);
    for seed in (301..=360).filter(|seed| Scenario::of(*seed).rent.is_some()) {
        let tally = run_seed(seed).unwrap_or_else(|failure| panic!("{failure}"));
        (runs, pods) = (runs + 1, pods + tally.pods);
    }
    assert!(runs >= 10 && pods > runs, "{pods} pods in {runs} runs");
    // Two leaders had ordered the same pod; the order of one was refused, and it struck out the intent of the other's.
    let failed_once = Scenario::of(9_301_050).keeping(&[13, 15, 5, 2]);
    run_scenario(failed_once).unwrap_or_else(|broken| panic!("{broken}"));
}

/// The task that rents panics at everything that the provider answers; when it answers well again, pods are rented.
#[test]
fn a_scaler_that_panics_is_started_again() {
    let seed = (301..).find(|seed| Scenario::of(*seed).rent.is_some()).unwrap();
    let panic = Fault::Provider { trouble: Trouble::Panic, lasting: Duration::from_secs(20) };
    let faults = vec![(0, 100, panic)];
    let tally =
        run_scenario(Scenario { faults, ..Scenario::of(seed) }).unwrap_or_else(|broken| panic!("{broken}"));
    assert!(tally.pods > 0 && tally.virtual_s > 20.0, "{tally:?}");
}
