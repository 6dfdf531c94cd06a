mod quotes;

use super::*;

fn report_fleet() -> Fleet {
    Fleet::parse(include_str!("../../../deploy/fleets/report.toml")).unwrap()
}

#[test]
fn the_report_fleet_costs_what_it_costs_by_hand() {
    let reports = simulate(&report_fleet(), &Options::default());
    let ours = &reports[0];
    // By hand (docs/routing/report-by-hand.md). All is done at $0.34 × 10⁶ / (3600 × 20.79) = $4.5428 a million by
    // two RTX 4090, save what they cannot do within the first hour: 200,000 − 2 × 20.79 × 3480 s = 55,302 tokens. The
    // next by κ are RTX 4090 at $0.74: $9.887 a million. One of them gives 72,349 tokens in the hour: enough.
    let (cheap, next) = (0.34e12 / (3600.0 * 20.79), 0.74e12 / (3600.0 * 20.79));
    let dear_tokens = 200_000.0 - 2.0 * 20.79 * 3480.0;
    let boots: f64 = (2.0 * 0.34 + 0.74) * 1e6 / 3600.0 * 120.0;
    let by_hand: f64 = ((800_000.0 - dear_tokens) * cheap + dear_tokens * next) / 1e6 + boots;
    assert!((by_hand - 3_977_116.0).abs() < 1.0, "{by_hand}");
    assert!((ours.bound_usd_micro as f64 - by_hand).abs() < 2.0, "{ours:?} {by_hand}");
    let ratio = ours.cost_usd_micro as f64 / by_hand;
    assert!((1.0..1.02).contains(&ratio), "{ratio} {ours:?}");
    assert_eq!((ours.missed_deadlines, ours.budget_violations), (0, 0));
}

#[test]
fn on_the_report_fleet_ours_is_the_cheapest_of_those_that_keep_the_deadlines() {
    let reports = simulate(&report_fleet(), &Options::default());
    let ours = reports[0].cost_usd_micro;
    for other in reports.iter().skip(1).filter(|report| report.missed_deadlines == 0) {
        assert!(ours <= other.cost_usd_micro, "{reports:#?}");
    }
}

#[test]
fn a_run_can_be_repeated_to_the_bit() {
    let fleet = random_fleet(&Generator::default(), 5);
    let options = Options { seed: 9, ..Options::default() };
    assert_eq!(simulate(&fleet, &options), simulate(&fleet, &options));
}

#[test]
fn all_that_is_billed_belongs_to_a_batch_or_is_idle() {
    for seed in 0..20 {
        let mut fleet = random_fleet(&Generator::default(), seed);
        fleet.batches.iter_mut().enumerate().for_each(|(n, batch)| batch.arrives_s = n as f64 * 4000.0);
        for run in simulate_runs(&fleet, &Options { seed, ..Options::default() }) {
            assert!(run.idle_usd_micro <= run.report.cost_usd_micro);
            assert!(run.timeline.windows(2).all(|two| two[0].cost_usd_micro <= two[1].cost_usd_micro));
        }
    }
}

#[test]
fn no_budget_is_ever_passed() {
    let generator = Generator { budgets: true, loss_per_hour_max: 1.0, ..Generator::default() };
    let options = Options { policies: vec![Policy::Ours], ..Options::default() };
    for seed in 0..60 {
        let report = &simulate(&random_fleet(&generator, seed), &Options { seed, ..options.clone() })[0];
        assert_eq!(report.budget_violations, 0, "seed {seed}: {report:?}");
    }
}

#[test]
fn the_work_of_lost_pods_is_done_by_others_and_little_is_wasted() {
    let mut fleet = random_fleet(&Generator { slack: 3.0, ..Generator::default() }, 3);
    fleet.pods.iter_mut().for_each(|pod| pod.loss_per_hour = 0.5);
    let runs = simulate_runs(&fleet, &Options { policies: vec![Policy::Ours], ..Options::default() });
    assert!(runs[0].losses > 0);
    assert_eq!(runs[0].report.missed_deadlines, 0);
    assert!(runs[0].report.wasted_tokens_ratio <= 0.02, "{:?}", runs[0].report);
}

#[test]
fn a_trace_takes_pods_away_and_the_deadline_still_holds() {
    let trace =
        Trace::parse("[[events]]\nat_s = 1200\nclass = \"rtx4090\"\nkind = \"lose\"\nvalue = 2\n").unwrap();
    let options = Options { policies: vec![Policy::Ours], trace, ..Options::default() };
    let runs = simulate_runs(&report_fleet(), &options);
    assert_eq!(runs[0].losses, 2);
    assert_eq!(runs[0].report.missed_deadlines, 0, "{:?}", runs[0].report);
}

#[test]
fn a_fleet_file_with_faults_names_them_all() {
    let text = "[[pods]]\nclass = \"a\"\ncount = 1\nprice_usd_per_hour = -1\nrate_tok_s = \
                0\n[[batches]]\nname = \"b\"\ntokens = nan\n";
    let fault = Fleet::parse(text).unwrap_err().to_string();
    for part in ["a.price_usd_per_hour", "a.rate_tok_s", "b.tokens"] {
        assert!(fault.contains(part), "{fault}");
    }
    assert!(Fleet::parse("pods = 3").unwrap_err().to_string().contains("the fleet file is invalid"));
}

#[test]
fn an_empty_fleet_misses_what_it_is_asked_and_costs_nothing() {
    let mut fleet = report_fleet();
    fleet.pods.clear();
    for report in simulate(&fleet, &Options::default()) {
        assert_eq!((report.cost_usd_micro, report.missed_deadlines), (0, 2), "{report:?}");
    }
}

#[test]
fn random_fleets_stay_near_the_bound_and_keep_their_deadlines() {
    let fleets = std::env::var("TERNFLEET_TEST_FLEETS").ok().and_then(|count| count.parse().ok());
    // With graphics cards, classes differ a thousandfold in speed.
    for (slack, gpus, limit) in [(2.0, false, 1.10), (1.2, false, 1.25), (2.0, true, 1.10)] {
        let generator = Generator { slack, gpus, ..Generator::default() };
        let fleets = fleets.unwrap_or(24);
        let options = StudyOptions { fleets, first_seed: 1, generator, policies: vec![Policy::Ours] };
        let ours = &study(&options)[0];
        let table = render_markdown(std::slice::from_ref(ours));
        println!("slack {slack}, graphics cards {gpus}, {fleets} fleets\n{table}");
        assert!(ours.mean_ratio() <= limit, "slack {slack}, {gpus}: {table}");
        assert!(ours.missed_ratio() <= 0.05, "slack {slack}, {gpus}: {table}");
    }
}

#[test]
fn a_plot_is_well_formed_and_shows_every_policy() {
    let runs = simulate_runs(&report_fleet(), &Options::default());
    let svg = plot_svg("fleet <report>", &runs);
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains("&lt;report&gt;"));
    assert!(Policy::ALL.iter().all(|policy| svg.contains(policy.as_str())));
}
