//! A moment as a date and a time of day, in UTC.

use ternfleet_cloud::time::to_rfc3339;
use ternfleet_proto::TimeMs;

/// `2026-11-29 20:31`.
pub(crate) fn utc(at: TimeMs) -> String {
    let text = to_rfc3339(at.0);
    text[..text.len() - ":05Z".len()].replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (951_868_800, "2000-03-01 00:00"),
            (1_709_164_800, "2024-02-29 00:00"),
            (1_767_225_599, "2025-12-31 23:59"),
            (4_107_542_400, "2100-03-01 00:00"),
        ] {
            assert_eq!(utc(TimeMs(seconds * 1000)), text);
        }
    }
}
