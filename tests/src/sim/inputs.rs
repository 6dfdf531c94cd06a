//! What the batches of a simulation consist of.

use std::fmt::Write;

use super::scenario::BatchPlan;

/// That a single completion asks for.
pub(super) const COMPLETION_TOKENS: u32 = 20;

/// How the prompt of a request begins that brings its worker down.
pub(super) const KILLER: [u8; 6] = *b"killer";

/// The batch's input: every eleventh line is blank, every seventh is no JSON, the rest are requests.
pub(super) fn lines(place: usize, plan: &BatchPlan) -> String {
    let mut text = String::new();
    for index in 0..plan.lines {
        if index % 7 == 6 && !is_blank(index) {
            text.push_str("{not JSON");
        } else if !is_blank(index) {
            let prompt = if plan.killer == Some(index) { "killer" } else { "tell me" };
            let seed = seed(place, index);
            let _ = write!(
                text,
                r#"{{"custom_id":"line-{index}","prompt":"{prompt} {index}","max_tokens":{},"seed":{seed}}}"#,
                plan.tokens_max
            );
        }
        text.push('\n');
    }
    text
}

/// Another one for each line of each batch.
pub(super) fn seed(place: usize, index: u32) -> u64 {
    (place as u64 + 1) << 32 | u64::from(index)
}

/// Of a single completion.
pub(super) fn completion_seed(number: usize) -> u64 {
    (1 << 40) + number as u64
}

fn is_blank(index: u32) -> bool {
    index % 11 == 10
}

/// Blank lines, which have no answer.
pub(super) fn blanks(lines: u32) -> u32 {
    (0..lines).filter(|index| is_blank(*index)).count() as u32
}
