use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::view::{List, Order};
use super::*;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ternfleet_proto::message::BatchState;

/// Out of JSON, so that fields with a default may come and go.
fn pod(name: &str) -> PodView {
    serde_json::from_value(json!({
        "heartbeat": {
            "worker": format!("{name}-w"), "pod": name, "host": "h", "pod_class": "cpu",
            "price_usd_micro_per_hour": 340_000, "state": "ready", "model": "storyteller", "model_digest": "d",
            "numerics": "n", "context_tokens": 512, "slots": 8, "slots_in_use": 3, "kv_pages": 1, "kv_pages_free": 1,
            "threads": 2, "isa": "avx512", "calibration": [], "prefill_tok_s": 0.0, "decode_tok_s": 0.0,
            "counters": {}, "leader_seen": 0, "version": "0", "started_at": 0, "at": 0, "running": [],
        },
        "live": true, "rate_tok_s": 20.79, "usd_micro_per_million_tokens": 4_542_793, "tokens": 12_345,
        "cost_usd_micro": 1_000, "busy_ratio": 0.5, "queued_jobs": 4,
    }))
    .unwrap()
}

fn batch(name: &str, state: BatchState, done: u32) -> BatchView {
    serde_json::from_value(json!({
        "id": "batch_1", "tenant": "default", "name": name, "state": state, "input_object": "i", "total": 100,
        "completed": done, "failed": 0, "total_is_final": true, "created_at": 0, "started_at": 0,
        "expires_at": 86_400_000, "options": {}, "metadata": {}, "prompt_tokens": 0, "completion_tokens": 0,
        "wasted_tokens": 0, "cost_usd_micro": 5_000, "rate_tok_s": 20.0, "finish_estimate": 750_000,
        "durability": "stored", "replicas": 1,
    }))
    .unwrap()
}

/// One that waits.
fn waiting(name: &str) -> BatchView {
    let stall = json!({
        "code": "no_workers", "reason": "no worker is connected", "advice": "start one with `ternfleet \
                                                                             worker`",
    });
    BatchView { stall: serde_json::from_value(stall).unwrap(), ..batch(name, BatchState::InProgress, 0) }
}

fn view(pods: usize, batches: Vec<BatchView>) -> View {
    let pods = (0..pods).map(|at| pod(&format!("pod-{at}"))).collect();
    let mut view = View::new("127.0.0.1:4222".into(), "default".into(), true);
    view.hear(Ok(Snapshot { pods, ..listed(batches) }));
    view
}

/// With the sums that the coordinator adds to a list.
fn listed(batches: Vec<BatchView>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for batch in &batches {
        *snapshot.counts.entry(batch.state).or_default() += 1;
        if !batch.state.is_terminal() {
            snapshot.open_lines += u64::from(batch.total - batch.completed - batch.failed);
        }
    }
    Snapshot { batches, ..snapshot }
}

fn lost(name: &str) -> LostPod {
    LostPod {
        pod: name.to_owned(),
        class: "spot".to_owned(),
        host: "h".to_owned(),
        model: "storyteller".to_owned(),
        price_usd_micro_per_hour: UsdMicro(340_000),
        at: TimeMs(1_000),
        why: "no heartbeat for 5 s".to_owned(),
        tokens: 88,
        cost_usd_micro: UsdMicro(1_230_000),
    }
}

fn drawn(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen::draw(frame, view)).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| row(y).trim_end().to_owned() + "\n").collect()
}

#[test]
fn the_screen_shows_pods_batches_queue_and_money() {
    let text = drawn(&view(2, vec![batch("tales", BatchState::InProgress, 50)]), 130, 30);
    for said in [
        "41.6 tok/s",
        "$0.6800 an hour",
        "$4.54",
        "50 jobs open",
        "8 queued",
        "pod-1",
        "tales",
        "50%",
        "12m 30s",
    ] {
        assert!(text.contains(said), "{said} is missing in\n{text}");
    }
}

#[test]
fn no_size_of_terminal_is_too_small_to_draw_on() {
    let view = view(40, (0..40).map(|at| batch(&format!("b{at}"), BatchState::Completed, 100)).collect());
    for (width, height) in [(1, 1), (5, 3), (20, 8), (80, 24), (300, 100)] {
        drawn(&view, width, height);
    }
}

#[test]
fn a_hostile_batch_name_cannot_steer_the_terminal() {
    let text = drawn(&view(1, vec![batch("a\u{1b}[2Jb", BatchState::InProgress, 1)]), 130, 30);
    assert!(!text.contains('\u{1b}'), "{text}");
}

/// Figures of the largest size that a fleet has.
fn large() -> View {
    let mut batch = batch("a batch with quite a long name", BatchState::InProgress, 0);
    (batch.total, batch.completed, batch.failed) = (9_999_999, 8_765_432, 123_456);
    (batch.cost_usd_micro, batch.rate_tok_s) = (UsdMicro(12_345_670_000), 123_456.7);
    batch.options.budget_usd_micro = Some(UsdMicro(99_999_990_000));
    let mut pod = pod("a-fleet-of-pods-eu-ro-1-0000000123");
    (pod.tokens, pod.rate_tok_s, pod.queued_jobs) = (9_876_543_210, 12_345.6, 4_321);
    let mut view = View::new("tls://nats.a-long-name.example.org:4222".into(), "default".into(), true);
    view.hear(Ok(Snapshot { pods: vec![pod; 40], ..listed(vec![batch; 40]) }));
    view
}

#[test]
fn no_figure_is_clipped_at_any_width() {
    let view = large();
    // What a clipped figure leaves is a number that is none of these.
    let whole = [
        "8888888/9999999",
        "$12345.67",
        "$99999.99",
        "123456.7",
        "123456",
        "12m 30s",
        "12345.6",
        "9876543210",
        "4321",
        "$0.3400",
        "$4.54",
        "3/8",
        "50%",
        "88%",
        "493824.0",
        "$13.60",
        "$0.0000",
        "0",
        "40",
    ];
    for width in [40, 60, 80, 100, 130, 200] {
        let text = drawn(&view, width, 30);
        let rows = text.lines().skip_while(|line| !line.starts_with("─ pods") && !line.starts_with(" pods"));
        let rows = rows.filter(|line| line.contains("a-fle") || line.contains("a bat"));
        let rows: Vec<&str> = rows.collect();
        assert!(rows.len() >= 2, "{text}");
        for word in rows.iter().flat_map(|row| row.split("  ")).map(str::trim) {
            let is_figure = word.starts_with(|c: char| c.is_ascii_digit() || c == '$');
            assert!(
                !is_figure || whole.contains(&word) || word == "1d 00h" || word == "0s",
                "{word:?} in\n{text}"
            );
        }
    }
    let text = drawn(&view, 80, 24);
    for said in ["8888888/9999999", "$12345.67", "12m 30s", "12345.6"] {
        assert!(text.contains(said), "{said} is missing in\n{text}");
    }
}

#[test]
fn the_screen_at_80_columns_is_this() {
    let mut view = view(2, vec![batch("tales", BatchState::InProgress, 50), waiting("poems")]);
    view.obey(Order::Move(0));
    let text = drawn(&view, 80, 24);
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/commands/top/screen-80x24.txt");
    let golden = std::fs::read_to_string(golden).unwrap();
    assert!(text == golden, "the screen is now\n{text}");
}

#[test]
fn a_batch_that_waits_says_why_and_what_to_do() {
    let text = drawn(&view(0, vec![batch("tales", BatchState::Completed, 100), waiting("poems")]), 80, 24);
    for said in [
        "1 open (1 waiting), 1 ended",
        "no workers",
        "poems waits: no worker is connected",
        "→ start one with `ternfleet worker`",
    ] {
        assert!(text.contains(said), "{said} is missing in\n{text}");
    }
}

#[test]
fn a_fleet_that_rents_on_demand_is_well_without_pods() {
    let mut view = view(0, Vec::new());
    let text = drawn(&view, 80, 24);
    assert!(
        text.contains("no pods: start one with `ternfleet worker`") && text.contains(" 0.0 tok/s"),
        "{text}"
    );
    let scale: ScaleView = serde_json::from_value(json!({
        "provider": "local", "fleet": "f", "pods_min": 0, "pods_max": 2, "classes": [], "usd_micro_per_hour_max": null,
        "usd_micro_per_day_max": null, "idle_limit_ms": 0, "spent_today_usd_micro": 0, "spent_usd_micro": 0, "halted": null,
        "pods": [], "acts": [], "batches": [], "regret_ratio": 0.0, "plan_usd_micro": 0, "bound_usd_micro": 0,
    }))
    .unwrap();
    view.hear(Ok(Snapshot { scale: Some(scale), ..Snapshot::default() }));
    let text = drawn(&view, 80, 24);
    assert!(text.contains("0 pods, rented on demand (at most 2)"), "{text}");
}

#[test]
fn a_selection_stops_at_both_ends_and_stays_with_its_row() {
    let named = |name: &str, state| {
        let id = format!("batch_{name}").parse().unwrap();
        BatchView { id, ..batch(name, state, 1) }
    };
    let batches = || {
        vec![
            named("x", BatchState::Completed),
            named("y", BatchState::InProgress),
            named("z", BatchState::InProgress),
        ]
    };
    let mut view = view(3, batches());
    assert_eq!(view.selected_row(List::Batches), None);
    view.obey(Order::Move(-3));
    assert_eq!(view.selected_row(List::Batches), Some(0));
    view.obey(Order::Move(10));
    assert_eq!(view.selected_row(List::Batches), Some(2));
    view.obey(Order::Move(-1));
    let name = |view: &View| view.batches()[view.selected_row(List::Batches).unwrap()].name.clone();
    assert_eq!(name(&view).as_deref(), Some("z"), "open ones first");
    let mut more = batches();
    more.insert(0, named("new", BatchState::InProgress));
    view.hear(Ok(listed(more)));
    assert_eq!((name(&view).as_deref(), view.selected_row(List::Batches)), (Some("z"), Some(2)));
    view.obey(Order::ToggleEnded);
    assert_eq!(view.batches().len(), 3);
    view.obey(Order::ChangeList);
    assert_eq!(view.list, List::Pods);
    view.obey(Order::Move(1));
    assert_eq!(view.selected_row(List::Pods), None, "the pods are gone");
    assert!(view.obey(Order::Quit));
}

#[test]
fn a_long_list_is_shown_at_the_page_of_the_selected_row() {
    let batches = (0..40).map(|n| BatchView {
        id: format!("batch_{n}").parse().unwrap(),
        ..batch(&format!("number {n}"), BatchState::InProgress, 1)
    });
    let mut view = view(1, batches.collect());
    assert!(drawn(&view, 80, 24).contains("number 0 "));
    view.obey(Order::Move(isize::MAX));
    let text = drawn(&view, 80, 24);
    assert!(text.contains("number 39 ") && !text.contains("number 0 "), "{text}");
    assert!(text.contains("40 open, 0 ended") && text.contains("to 40 of 40"), "{text}");
}

#[test]
fn a_lost_pod_is_shown_with_when_and_why_until_it_is_replaced() {
    let mut view = view(2, vec![batch("tales", BatchState::InProgress, 50)]);
    assert!(!drawn(&view, 80, 24).contains("lost"));
    let with = |lost| Snapshot {
        at: TimeMs(61_000),
        pods: vec![pod("pod-0")],
        lost,
        ..listed(vec![batch("tales", BatchState::InProgress, 50)])
    };
    view.hear(Ok(with(vec![lost("spot-6"), lost("spot-7")])));
    let text = drawn(&view, 80, 24);
    let row = text.lines().find(|line| line.contains("spot-7")).unwrap();
    for said in ["spot", "1m 00s ago", "no heartbeat for 5 s", "88", "$1.23"] {
        assert!(row.contains(said), "{said} is missing in\n{text}");
    }
    assert!(text.contains(" lost pods ") && text.contains("tales"), "{text}");
    view.obey(Order::ChangeList);
    view.obey(Order::ChangeList);
    view.obey(Order::Details);
    let text = drawn(&view, 80, 24);
    assert!(
        text.contains("spot-7, lost 1m 00s ago") && text.contains("pods --dismiss spot-7"),
        "the latest first:\n{text}"
    );
    view.hear(Ok(with(Vec::new())));
    assert_eq!(view.list, List::Pods);
    assert!(!drawn(&view, 80, 24).contains("lost"));
    for (width, height) in [(1, 1), (20, 8), (40, 12)] {
        view.hear(Ok(with(vec![lost("spot-7"); 9])));
        drawn(&view, width, height);
    }
}

#[test]
fn enter_shows_all_of_a_row_and_a_question_mark_the_keys() {
    let mut view = view(1, vec![waiting("poems")]);
    view.obey(Order::Details);
    let text = drawn(&view, 80, 24);
    assert!(
        text.contains("details; Esc closes") && text.contains("waiting   no worker is connected"),
        "{text}"
    );
    assert!(!view.obey(Order::Close), "it closes the details");
    view.obey(Order::Keys);
    let text = drawn(&view, 80, 24);
    for (key, does) in view::KEYS {
        assert!(text.contains(key) && text.contains(does), "{key} is missing in\n{text}");
    }
    view.obey(Order::Close);
    view.obey(Order::ChangeList);
    view.obey(Order::Details);
    let text = drawn(&view, 80, 24);
    assert!(text.contains("worker pod-0-w") && text.contains("2 threads, avx512"), "{text}");
    view.obey(Order::Close);
    assert!(view.obey(Order::Close), "nothing is left to close");
}

#[test]
fn engines_of_one_pod_share_its_price() {
    let snapshot = Snapshot { pods: vec![pod("a"), pod("a")], ..Snapshot::default() };
    assert_eq!(snapshot.totals().usd_micro_per_hour, UsdMicro(340_000));
}

#[test]
fn a_coordinator_that_went_silent_is_said_and_the_last_picture_stays() {
    let mut view = view(1, Vec::new());
    view.hear(Err(anyhow::anyhow!("no coordinator replies at x")));
    let text = drawn(&view, 130, 30);
    assert!(text.contains("! no coordinator replies at x") && text.contains("pod-0"), "{text}");
}

#[test]
fn keys_mean_what_their_list_says() {
    let key = |code, modifiers| order(KeyEvent::new(code, modifiers));
    assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Some(Order::Quit));
    assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Order::Quit));
    assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
    assert_eq!(key(KeyCode::Down, KeyModifiers::NONE), Some(Order::Move(1)));
    assert_eq!(key(KeyCode::Char('?'), KeyModifiers::NONE), Some(Order::Keys));
    assert_eq!(key(KeyCode::Enter, KeyModifiers::NONE), Some(Order::Details));
}
