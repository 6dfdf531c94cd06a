use proptest::prelude::*;

use super::*;

const HOUR_MS: u64 = 3_600_000;

fn pod(name: &str, rate_tok_s: f64, price_usd: f64) -> Pod {
    Pod {
        name: name.to_owned(),
        class: PodClass(0),
        rate_mean_tok_s: rate_tok_s,
        rate_sd_tok_s: 0.0,
        price_usd_micro_per_hour: UsdMicro::from_dollars(price_usd),
        boot_s: 120.0,
        loss_per_hour: 0.0,
        restart_s: 60.0,
        checkpoint_tokens: 32,
        state: PodState::Offered,
    }
}

fn batch(name: &str, tokens: f64, hours: Option<f64>) -> Batch {
    Batch {
        name: name.to_owned(),
        tokens_left: tokens,
        tokens_sd: 0.0,
        deadline: hours.map(|hours| TimeMs((hours * HOUR_MS as f64) as u64)),
        budget_left: None,
        classes: ClassSet::ALL,
    }
}

fn report_fleet() -> Vec<Pod> {
    vec![pod("rtx4090", 20.79, 0.34), pod("a100", 30.0, 1.19), pod("b200", 52.67, 2.50)]
}

fn problem(pods: Vec<Pod>, batches: Vec<Batch>) -> Problem {
    Problem { pods, batches, ..Problem::default() }
}

fn started(plan: &Plan) -> Vec<&str> {
    plan.wanted().collect()
}

#[test]
fn kappa_equals_the_figures_of_the_report() {
    let shown: Vec<String> =
        report_fleet().iter().map(|pod| UsdMicro(pod.kappa().round() as i64).to_string()).collect();
    assert_eq!(shown, ["$4.54", "$11.02", "$13.18"]);
}

#[test]
fn losses_slow_a_pod_by_what_they_cost_in_time() {
    let mut lossy = pod("lossy", 20.0, 1.0);
    (lossy.loss_per_hour, lossy.restart_s, lossy.checkpoint_tokens) = (0.5, 120.0, 32);
    // 20 / (1 + 0.5/3600 · (120 + 32/40)) = 20 / 1.0167778
    assert!((lossy.effective_rate_tok_s() - 19.669_98).abs() < 1e-4);
}

#[test]
fn without_a_deadline_the_cheapest_pod_takes_everything() {
    let plan = plan(&problem(report_fleet(), vec![batch("b", 1e6, None)]), None);
    assert_eq!(started(&plan), ["rtx4090"]);
    assert!(plan.all_kept());
}

#[test]
fn a_tight_deadline_brings_in_the_dear_ones_by_kappa() {
    // One hour of the cheapest gives 20.79 × 3480 s = 72,349 tokens; the next by κ is the A100.
    let names = |tokens| {
        let plan = plan(&problem(report_fleet(), vec![batch("b", tokens, Some(1.0))]), None);
        (started(&plan).iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), plan.batches[0].verdict)
    };
    assert_eq!(names(70_000.0).0, ["rtx4090"]);
    assert_eq!(names(150_000.0).0, ["a100", "rtx4090"]);
    assert_eq!(names(300_000.0).0, ["a100", "b200", "rtx4090"]);
    assert_eq!(names(400_000.0).1, Verdict::Missed(Limit::Capacity));
}

#[test]
fn the_limit_that_binds_is_named() {
    let verdict = |problem: &Problem| plan(problem, None).batches[0].verdict;
    let mut asked = problem(report_fleet(), vec![batch("b", 70_000.0, Some(1.0))]);
    assert_eq!(verdict(&asked), Verdict::Kept);
    asked.batches[0].budget_left = Some(UsdMicro::from_dollars(0.10));
    assert_eq!(verdict(&asked), Verdict::Missed(Limit::Budget));
    asked.batches[0].budget_left = None;
    asked.batches[0].deadline = Some(TimeMs(60_000));
    assert_eq!(verdict(&asked), Verdict::Missed(Limit::Deadline));
    asked.batches[0].deadline = Some(TimeMs(HOUR_MS));
    asked.batches[0].tokens_left = 150_000.0;
    asked.limits.pods_max = Some(1);
    assert_eq!(verdict(&asked), Verdict::Missed(Limit::FleetLimit));
    asked.pods.clear();
    assert_eq!(verdict(&asked), Verdict::Missed(Limit::Capacity));
}

#[test]
fn a_pod_that_runs_is_preferred_to_a_boot_and_one_that_nobody_needs_is_given_back() {
    let mut pods = vec![pod("new", 20.0, 0.34), pod("old", 20.0, 0.35), pod("spare", 20.0, 3.0)];
    (pods[1].state, pods[2].state) = (PodState::Running, PodState::Running);
    let plan = plan(&problem(pods, vec![batch("b", 10_000.0, Some(1.0))]), None);
    let steps: Vec<_> = plan.pods.iter().map(|pod| (pod.name.as_str(), pod.step)).collect();
    assert_eq!(steps, [("old", Step::Keep), ("spare", Step::GiveBack)]);
}

#[test]
fn equal_pods_that_run_already_all_work_since_it_costs_nothing() {
    let mut pods = vec![pod("one", 20.0, 0.34), pod("two", 20.0, 0.34)];
    pods.iter_mut().for_each(|pod| pod.state = PodState::Running);
    let plan = plan(&problem(pods, vec![batch("b", 40_000.0, None)]), None);
    assert_eq!(started(&plan), ["one", "two"]);
    assert_eq!(plan.batches[0].finish_p50, TimeMs(1_000_000));
}

#[test]
fn a_batch_runs_only_on_its_classes() {
    let mut pods = report_fleet();
    pods[2].class = PodClass(5);
    let mut batch = batch("b", 10_000.0, Some(1.0));
    batch.classes = ClassSet::of(&[PodClass(5)]);
    assert_eq!(started(&plan(&problem(pods, vec![batch]), None)), ["b200"]);
}

#[test]
fn a_batch_that_no_pod_may_run_is_missed_and_changes_nothing_for_the_others() {
    let alone = problem(report_fleet(), vec![batch("b", 150_000.0, Some(1.0))]);
    let mut both = alone.clone();
    let mut stuck = batch("a", 1e9, Some(0.5));
    stuck.classes = ClassSet::of(&[PodClass(9)]);
    both.batches.insert(0, stuck);
    let (alone, both) = (plan(&alone, None), plan(&both, None));
    assert_eq!((&both.pods, both.cost_usd_micro), (&alone.pods, alone.cost_usd_micro));
    assert_eq!(both.batches[0].verdict, Verdict::Missed(Limit::Capacity));
    assert_eq!(both.batches[1], alone.batches[0]);
}

#[test]
fn spread_of_the_speeds_brings_a_margin() {
    let mut asked =
        problem(vec![pod("a", 20.0, 0.3), pod("b", 20.0, 0.3)], vec![batch("b", 65_000.0, Some(1.0))]);
    assert_eq!(started(&plan(&asked, None)).len(), 1);
    asked.pods.iter_mut().for_each(|pod| pod.rate_sd_tok_s = 2.0);
    assert_eq!(started(&plan(&asked, None)).len(), 2);
}

#[test]
fn a_normal_quantile_is_the_one_of_the_tables() {
    for (probability, quantile) in [(0.5, 0.0), (0.95, 1.644_854), (0.975, 1.959_964), (0.05, -1.644_854)] {
        assert!((normal_quantile(probability) - quantile).abs() < 1e-4, "{probability}");
    }
}

#[test]
fn ten_thousand_pods_and_a_hundred_batches_are_planned() {
    let pods = (0..10_000u32)
        .map(|n| {
            let mut pod = pod(
                &format!("pod-{n:05}"),
                15.0 + f64::from(n * 7 % 400) / 10.0,
                0.2 + f64::from(n * 13 % 97) / 40.0,
            );
            pod.rate_sd_tok_s = 0.5;
            pod.loss_per_hour = 0.05;
            if n % 3 == 0 {
                pod.state = PodState::Running;
            }
            pod
        })
        .collect();
    let batches = (0..100u32)
        .map(|n| batch(&format!("b{n}"), 4e6 + f64::from(n) * 1e4, Some(1.0 + f64::from(n) * 0.2)));
    let asked = problem(pods, batches.collect());
    let first = plan(&asked, None);
    assert!(first.all_kept());
    // How fast is measured by the example `routing_speed`, on a quiet machine.
    assert_eq!(plan(&asked, Some(&first)).batches.len(), 100);
}

prop_compose! {
    fn any_pod()(
        rate in 5.0..80.0f64, price in 0.1..4.0f64, boot_s in 10.0..300.0f64, sd in 0.0..0.1f64,
        loss in 0.0..0.5f64, state in 0u8..4,
    ) -> Pod {
        let mut pod = pod("", rate, price);
        (pod.boot_s, pod.rate_sd_tok_s, pod.loss_per_hour) = (boot_s, sd * rate, loss);
        pod.state = match state {
            0 => PodState::Running,
            1 => PodState::Booting { ready_at: TimeMs((boot_s * 500.0) as u64) },
            _ => PodState::Offered,
        };
        pod
    }
}

prop_compose! {
    fn any_problem(most: usize)(
        mut pods in prop::collection::vec(any_pod(), 1..most),
        needs in prop::collection::vec((1e3..5e5f64, prop::option::of(0.2..6.0f64), prop::option::of(0.05..8.0f64)), 1..4),
    ) -> Problem {
        for (n, pod) in pods.iter_mut().enumerate() {
            pod.name = format!("p{n:03}");
        }
        let batches = needs.into_iter().enumerate().map(|(n, (tokens, hours, budget))| {
            let mut batch = batch(&format!("b{n}"), tokens, hours);
            batch.budget_left = budget.map(UsdMicro::from_dollars);
            batch
        });
        problem(pods, batches.collect())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn scaling_all_prices_and_budgets_changes_no_choice(asked in any_problem(20), factor in 2i64..50) {
        let mut scaled = asked.clone();
        scaled.pods.iter_mut().for_each(|pod| pod.price_usd_micro_per_hour.0 *= factor);
        scaled.batches.iter_mut().for_each(|b| if let Some(budget) = &mut b.budget_left { budget.0 *= factor });
        let (here, there) = (plan(&asked, None), plan(&scaled, None));
        prop_assert_eq!(started(&here), started(&there));
        let verdicts = |plan: &Plan| plan.batches.iter().map(|b| b.verdict).collect::<Vec<_>>();
        prop_assert_eq!(verdicts(&here), verdicts(&there));
    }

    #[test]
    fn the_order_of_pods_and_batches_does_not_matter(asked in any_problem(20), turn in 0usize..20) {
        let mut turned = asked.clone();
        let by = turn % turned.pods.len();
        turned.pods.rotate_left(by);
        turned.batches.reverse();
        let (here, mut there) = (plan(&asked, None), plan(&turned, None));
        there.batches.reverse();
        prop_assert_eq!(started(&here), started(&there));
        for (a, b) in here.batches.iter().zip(&there.batches) {
            prop_assert_eq!(a.verdict, b.verdict);
            prop_assert!((a.cost_usd_micro.0 - b.cost_usd_micro.0).abs() <= 1);
        }
    }

    #[test]
    fn a_dominated_pod_is_never_started_while_the_dominating_one_is_free(asked in any_problem(20)) {
        let plan = plan(&asked, None);
        let wanted: Vec<&str> = started(&plan);
        let free = |pod: &&Pod| pod.state == PodState::Offered && !wanted.contains(&pod.name.as_str());
        for new in plan.pods.iter().filter(|pod| pod.step == Step::Start) {
            let used = asked.pods.iter().find(|pod| pod.name == new.name).expect("because plans name pods of the problem");
            for other in asked.pods.iter().filter(free) {
                let dominates = other.effective_rate_tok_s() > used.effective_rate_tok_s()
                    && other.price_usd_micro_per_hour < used.price_usd_micro_per_hour
                    && other.boot_s < used.boot_s
                    && other.rate_sd_tok_s <= used.rate_sd_tok_s
                    && other.loss_per_hour <= used.loss_per_hour;
                prop_assert!(!dominates, "{} was started, {} was free", used.name, other.name);
            }
        }
    }

    #[test]
    fn planning_is_idempotent(asked in any_problem(20)) {
        let first = plan(&asked, None);
        let second = plan(&asked, Some(&first));
        let third = plan(&asked, Some(&second));
        prop_assert_eq!(started(&second), started(&third));
    }

    #[test]
    fn a_kept_batch_stays_within_budget_and_deadline(asked in any_problem(20)) {
        let plan = plan(&asked, None);
        for (batch, planned) in asked.batches.iter().zip(&plan.batches) {
            if planned.verdict == Verdict::Kept {
                if let Some(budget) = batch.budget_left {
                    prop_assert!(planned.cost_usd_micro.0 <= budget.0 + budget.0 / 25 + 2, "{:?} {:?}", planned, budget);
                }
                if let Some(deadline) = batch.deadline {
                    prop_assert!(planned.finish_p50 <= deadline);
                }
            }
        }
    }

    #[test]
    fn no_plan_is_cheaper_than_the_relaxed_problem(asked in any_problem(20)) {
        let mut asked = asked;
        asked.batches.iter_mut().for_each(|batch| batch.budget_left = None);
        let plan = plan(&asked, None);
        if plan.batches.iter().all(|batch| !matches!(batch.verdict, Verdict::Missed(_))) {
            let bound = lower_bound(&asked);
            prop_assert!(plan.cost_usd_micro >= bound.relaxed_usd_micro, "{:?} {:?}", plan.cost_usd_micro, bound);
        }
    }

    #[test]
    fn more_budget_never_finishes_later(asked in any_problem(12), more in 1.0..4.0f64) {
        let mut richer = asked.clone();
        richer.batches.truncate(1);
        let mut poorer = richer.clone();
        let Some(budget) = poorer.batches[0].budget_left else { return Ok(()) };
        richer.batches[0].budget_left = Some(UsdMicro((budget.0 as f64 * more) as i64));
        poorer.batches[0].budget_left = Some(budget);
        let (rich, poor) = (plan(&richer, None), plan(&poorer, None));
        if !matches!(poor.batches[0].verdict, Verdict::Missed(_)) {
            prop_assert!(rich.batches[0].finish_p50 <= poor.batches[0].finish_p50);
        }
    }

    #[test]
    fn a_small_change_of_speed_does_not_swap_pods(asked in any_problem(20), change in 0.995..1.005f64) {
        let first = plan(&asked, None);
        prop_assume!(first.all_kept());
        let mut later = asked;
        // What was started boots now; all speeds are measured a little differently.
        for pod in &mut later.pods {
            pod.rate_mean_tok_s *= change;
            if first.pods.iter().any(|planned| planned.name == pod.name && planned.step == Step::Start) {
                pod.state = PodState::Booting { ready_at: TimeMs((pod.boot_s * 1000.0) as u64) };
            }
        }
        let before = started(&first);
        let mut alone = later.clone();
        alone.pods.retain(|pod| before.contains(&pod.name.as_str()));
        prop_assume!(plan(&alone, None).all_kept());
        let second = plan(&later, Some(&first));
        let new = started(&second).iter().filter(|name| !before.contains(name)).count();
        prop_assert!(new <= 1, "{:?} became {:?}", before, started(&second));
    }
}
