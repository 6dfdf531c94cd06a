use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
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

fn view(pods: usize, batches: Vec<BatchView>) -> View {
    let pods = (0..pods).map(|at| pod(&format!("pod-{at}"))).collect();
    let mut view = View {
        address: "127.0.0.1:4222".into(),
        tenant: "default".into(),
        snapshot: None,
        fault: None,
        rates: VecDeque::new(),
        scroll: 0,
        shows_ended: true,
        colours: true,
    };
    view.hear(Ok(Snapshot { pods, batches, ..Snapshot::default() }));
    view
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
        " 50%",
        "12:30",
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

#[test]
fn scrolling_stops_at_both_ends_and_ended_batches_can_be_hidden() {
    let mut view =
        view(1, vec![batch("x", BatchState::Completed, 100), batch("y", BatchState::InProgress, 1)]);
    assert!(!view.obey(Order::Scroll(-3)));
    assert_eq!(view.scroll, 0);
    view.obey(Order::Scroll(10));
    assert_eq!(view.scroll, 1);
    view.obey(Order::ToggleEnded);
    assert_eq!(view.batches().len(), 1);
    assert!(view.obey(Order::Quit));
}

#[test]
fn engines_of_one_pod_share_its_price() {
    let snapshot = Snapshot { at: TimeMs(0), pods: vec![pod("a"), pod("a")], batches: Vec::new() };
    assert_eq!(snapshot.totals().usd_micro_per_hour, UsdMicro(340_000));
}

#[test]
fn a_coordinator_that_went_silent_is_said_and_the_last_picture_stays() {
    let mut view = view(1, Vec::new());
    view.hear(Err(anyhow::anyhow!("no coordinator answers at x")));
    let text = drawn(&view, 130, 30);
    assert!(text.contains("! no coordinator answers at x") && text.contains("pod-0"), "{text}");
}

#[test]
fn keys_mean_what_the_foot_line_says() {
    let key = |code, modifiers| order(KeyEvent::new(code, modifiers));
    assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Some(Order::Quit));
    assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Order::Quit));
    assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
    assert_eq!(key(KeyCode::Down, KeyModifiers::NONE), Some(Order::Scroll(1)));
}
