use proptest::prelude::*;

use super::*;

/// Text before the stop (or all of it), and whether there was one, when `pieces` come one by one.
fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
    let mut matcher = StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()));
    let mut text = String::new();
    for piece in pieces {
        let step = matcher.push(piece);
        text.push_str(&step.text);
        if step.stopped {
            return (text, true);
        }
    }
    text.push_str(&matcher.finish());
    (text, false)
}

#[test]
fn a_stop_string_across_pieces_is_found_and_left_out() {
    assert_eq!(run(&["\n\nUser:"], &["Hi.", "\n", "\nUs", "er: x"]), ("Hi.".into(), true));
}

#[test]
fn text_that_only_began_like_a_stop_string_comes_out_at_once() {
    let mut matcher = StopMatcher::new(["abc".to_owned()]);
    assert_eq!(matcher.push("xab"), Step { text: "x".into(), stopped: false });
    assert_eq!(matcher.push("abd"), Step { text: "ababd".into(), stopped: false });
    assert_eq!(matcher.finish(), "");
}

#[test]
fn what_was_held_back_comes_out_at_the_end() {
    assert_eq!(run(&["END"], &["the E", "N"]), ("the EN".into(), false));
}

#[test]
fn nothing_comes_after_a_stop() {
    let mut matcher = StopMatcher::new(["x".to_owned()]);
    assert!(matcher.push("axb").stopped);
    assert_eq!(matcher.push("more"), Step { text: String::new(), stopped: true });
    assert_eq!(matcher.finish(), "");
}

#[test]
fn an_empty_stop_string_stops_nothing() {
    assert_eq!(run(&[""], &["text"]), ("text".into(), false));
}

#[test]
fn characters_are_never_cut() {
    assert_eq!(run(&["é!"], &["né", "e"]), ("née".into(), false));
}

/// The rule in its plainest form: characters one by one, and a stop as soon as the text ends with one.
fn oracle(stops: &[&str], text: &str) -> (String, bool) {
    let mut seen = String::new();
    for character in text.chars() {
        seen.push(character);
        let longest = stops
            .iter()
            .filter(|stop| !stop.is_empty() && seen.ends_with(**stop))
            .map(|stop| stop.len())
            .max();
        if let Some(length) = longest {
            seen.truncate(seen.len() - length);
            return (seen, true);
        }
    }
    (seen, false)
}

proptest! {
    #[test]
    fn the_result_does_not_depend_on_how_text_is_cut(
        stops in prop::collection::vec("[abé]{0,4}", 0..4),
        pieces in prop::collection::vec("[abcé]{0,5}", 0..6),
    ) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let slices: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(run(&stops, &slices), oracle(&stops, &pieces.concat()));
    }
}
