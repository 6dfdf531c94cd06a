//! A span of time as people read it: at most seven characters, in the notation that flags take (`90s`, `45m`, `2h`, `1d`).

use std::time::Duration;

const MINUTE_S: u64 = 60;
const HOUR_S: u64 = 3_600;
const DAY_S: u64 = 86_400;

/// `7s`, `12m 30s`, `3h 00m`, `2d 05h`, `120d`, `>1 year`.
pub fn short(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..MINUTE_S => format!("{seconds}s"),
        MINUTE_S..HOUR_S => format!("{}m {:02}s", seconds / MINUTE_S, seconds % MINUTE_S),
        HOUR_S..DAY_S => format!("{}h {:02}m", seconds / HOUR_S, seconds % HOUR_S / MINUTE_S),
        _ => match seconds / DAY_S {
            days @ 0..100 => format!("{days}d {:02}h", seconds % DAY_S / HOUR_S),
            days @ 100..=365 => format!("{days}d"),
            _ => ">1 year".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_short_and_bounded_whatever_their_length() {
        let spans = [
            (0, "0s"),
            (7, "7s"),
            (60, "1m 00s"),
            (750, "12m 30s"),
            (10_800, "3h 00m"),
            (86_399, "23h 59m"),
            (190_800, "2d 05h"),
            (120 * DAY_S, "120d"),
            (365 * DAY_S, "365d"),
            (366 * DAY_S, ">1 year"),
            // An estimate that a vanishing rate once made: 3160234167025:54:59.
            (3_160_234_167_025 * HOUR_S, ">1 year"),
            (u64::MAX, ">1 year"),
        ];
        for (seconds, text) in spans {
            assert_eq!(short(Duration::from_secs(seconds)), text);
            assert!(text.chars().count() <= 7, "{text}");
        }
    }
}
