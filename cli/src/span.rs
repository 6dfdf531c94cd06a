//! Spans of time as people write them on a command line, and as they read them.

use std::time::Duration;

pub(crate) use ternfleet_proto::span::short;

/// `90s`, `45m`, `2h`, `1d`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time span: write 90s, 45m, 2h or 1d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        'd' => 86_400.0,
        _ => return Err(wrong()),
    };
    let number: f64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let total = number * seconds;
    if total.is_finite() && (0.0..=1e9).contains(&total) {
        Ok(Duration::from_secs_f64(total))
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse("1.5m"), Ok(Duration::from_secs(90)));
        for text in ["", "2", "h", "-1h", "2 weeks", "nanh", "1e99d", "2é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
