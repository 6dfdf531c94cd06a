//! JSON that stands on a line of its own: in files, in results, in server-sent events.

use serde_json::Value;

/// Line breaks of Unicode that JSON allows inside a string, and that many readers split lines on (Python's
/// `splitlines`, and with it several clients' readers of events).
const LINE_BREAKS: [(char, &str); 3] =
    [('\u{85}', "\\u0085"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];

/// The value as one line, whoever splits it.
pub fn json_line(value: &Value) -> String {
    one_line(value.to_string())
}

/// JSON as one line, whoever splits it: every line break of Unicode is escaped.
pub fn one_line(text: String) -> String {
    if !text.contains(LINE_BREAKS.map(|(character, _)| character)) {
        return text;
    }
    // Outside of strings JSON holds none of them, so that each one may be written as an escape.
    LINE_BREAKS.iter().fold(text, |text, (character, escape)| text.replace(*character, escape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reader_finds_a_line_break_inside_of_a_line() {
        let all: String = (0..=0x2100).filter_map(char::from_u32).collect();
        let value = serde_json::json!({ "text": all, "k\u{2028}": "\u{85}" });
        let line = json_line(&value);
        // What Python's `str.splitlines` splits on.
        let breaks = "\n\r\u{b}\u{c}\u{1c}\u{1d}\u{1e}\u{85}\u{2028}\u{2029}";
        assert!(!line.contains(|character| breaks.contains(character)), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
    }
}
