//! Sending failed lines of a batch again, as a new input. Used by `ternfleet resubmit` and by the gateway.
//!
//! The lines go as they were written, in their order; one that had no `custom_id` gets the name it had in the old
//! batch (`line-N`), so that the new answers can be matched with the old file.

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;
use ternfleet_proto::message::{BatchView, FailureCode};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

/// As much of an error line as choosing takes.
#[derive(Deserialize)]
struct ErrorLine {
    error: ErrorCode,
    ternfleet: Place,
}

#[derive(Deserialize)]
struct ErrorCode {
    code: FailureCode,
}

#[derive(Deserialize)]
struct Place {
    index: u32,
}

/// Lines chosen to be sent again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// By index, in ascending order.
    pub lines: Vec<u32>,
    /// Failed ones that would fail again: they are no valid request.
    pub left_out: u32,
}

/// The lines of an error file that failed with one of these codes; where none is given, all that may succeed when they
/// are sent again.
///
/// # Errors
/// When the file cannot be read, or is no error file.
pub async fn failed_lines(
    errors: &mut (impl AsyncBufRead + Unpin),
    codes: &[FailureCode],
) -> io::Result<Chosen> {
    let mut chosen = Chosen::default();
    let mut lines = errors.lines();
    while let Some(line) = lines.next_line().await? {
        let line: ErrorLine = serde_json::from_str(&line)?;
        let code = line.error.code;
        if codes.contains(&code) || (codes.is_empty() && code != FailureCode::InvalidRequest) {
            chosen.lines.push(line.ternfleet.index);
        } else {
            chosen.left_out += u32::from(codes.is_empty());
        }
    }
    Ok(chosen)
}

/// Writes the chosen lines of the old input, one after the other; memory holds one line at a time.
///
/// # Errors
/// When either side cannot be read or written, or the input has too few lines.
pub async fn copy_lines(
    input: &mut (impl AsyncBufRead + Unpin),
    chosen: &[u32],
    output: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut wanted = chosen.iter().copied().peekable();
    let mut line = Vec::new();
    for index in 0u32.. {
        let Some(next) = wanted.peek() else { break };
        line.clear();
        if input.read_until(b'\n', &mut line).await? == 0 {
            let message = format!("the old input has no line {}: its file may have been replaced", next + 1);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        if index == *next {
            wanted.next();
            output.write_all(&named(line.trim_ascii(), index)).await?;
            output.write_all(b"\n").await?;
        }
    }
    output.flush().await
}

/// The line with the name it went by in the old batch. A line that is no JSON object goes as it is, and fails again.
fn named(line: &[u8], index: u32) -> Vec<u8> {
    let object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(line).ok();
    match object {
        Some(object) if !object.is_empty() && !object.contains_key("custom_id") => {
            let mut named = format!("{{\"custom_id\":\"line-{}\",", index + 1).into_bytes();
            named.extend_from_slice(&line[1..]);
            named
        }
        _ => line.to_owned(),
    }
}

/// What the new batch is called.
pub fn name(old: &BatchView) -> Option<String> {
    old.name.clone().map(|name| format!("{name} (again)"))
}

/// The caller's own pairs, and where the lines come from.
pub fn metadata(old: &BatchView) -> BTreeMap<String, String> {
    let mut metadata = old.metadata.clone();
    metadata.insert("resubmitted_from".to_owned(), old.id.to_string());
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_a_name_keeps_the_one_it_had() {
        assert_eq!(named(br#"{"prompt":"x"}"#, 6), br#"{"custom_id":"line-7","prompt":"x"}"#);
        for as_it_is in [&br#"{"custom_id":"a","prompt":"x"}"#[..], b"{}", b"[1]", b"{broken"] {
            assert_eq!(named(as_it_is, 0), as_it_is);
        }
    }

    #[tokio::test]
    async fn lines_that_are_no_request_are_left_out_unless_they_are_asked_for() {
        let line = |code: &str, index: u32| {
            format!(
                "{{\"error\":{{\"code\":\"{code}\",\"message\":\"m\"}},\"ternfleet\":{{\"index\":{index}}}}}\n"
            )
        };
        let file = line("invalid_request", 1) + &line("batch_expired", 2);
        let all = failed_lines(&mut file.as_bytes(), &[]).await.unwrap();
        assert_eq!(all, Chosen { lines: vec![2], left_out: 1 });
        let bad = failed_lines(&mut file.as_bytes(), &[FailureCode::InvalidRequest]).await.unwrap();
        assert_eq!(bad, Chosen { lines: vec![1], left_out: 0 });
        let mut copied = Vec::new();
        copy_lines(&mut &b"{\"a\":1}\n{\"b\":1}\n{\"c\":1}"[..], &all.lines, &mut copied).await.unwrap();
        assert_eq!(copied, b"{\"custom_id\":\"line-3\",\"c\":1}\n");
        assert!(copy_lines(&mut &b"one\n"[..], &[4], &mut copied).await.is_err());
    }
}
