//! Lines of an input object: cut out of a byte stream with bounded memory, and the index that finds them again.

use serde::{Deserialize, Serialize};
use ternfleet_proto::openai::LINE_BYTES_MAX;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// An offset is kept for every so many lines.
pub(crate) const INDEX_EVERY: u32 = 1000;

/// Where the lines of an input begin, and which of them repeat a `custom_id`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LineIndex {
    pub(crate) lines: u32,
    /// Byte offsets of lines 0, 1000, 2000, …
    pub(crate) offsets: Vec<u64>,
    /// Lines whose `custom_id` an earlier line has, ascending.
    pub(crate) repeated: Vec<u32>,
}

impl LineIndex {
    /// The nearest line at or before `line` whose offset is known, and that offset in bytes.
    pub(crate) fn before(&self, line: u32) -> (u32, u64) {
        let place = (line / INDEX_EVERY) as usize;
        let place = place.min(self.offsets.len().saturating_sub(1));
        (place as u32 * INDEX_EVERY, self.offsets.get(place).copied().unwrap_or(0))
    }
}

/// One line without its newline.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RawLine {
    /// In the buffer that was passed in.
    Text,
    /// More bytes than anybody should hold in memory; they were skipped.
    TooLong { bytes: u64 },
}

/// Reads the next line into `line` (cleared first); `None` at the end of the input. `wanted` false skips the text.
pub(crate) async fn next_line(
    input: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    wanted: bool,
) -> std::io::Result<Option<(RawLine, u64)>> {
    line.clear();
    let mut bytes = 0u64;
    loop {
        let chunk = input.fill_buf().await?;
        if chunk.is_empty() {
            return Ok((bytes > 0).then(|| (judged(line, bytes), bytes)));
        }
        let newline = memchr::memchr(b'\n', chunk);
        let text = &chunk[..newline.unwrap_or(chunk.len())];
        if wanted && line.len() <= LINE_BYTES_MAX {
            let room = (LINE_BYTES_MAX + 1 - line.len()).min(text.len());
            line.extend_from_slice(&text[..room]);
        }
        let used = text.len() + usize::from(newline.is_some());
        bytes += used as u64;
        input.consume(used);
        if newline.is_some() {
            return Ok(Some((judged(line, bytes), bytes)));
        }
    }
}

fn judged(line: &mut Vec<u8>, bytes: u64) -> RawLine {
    if line.len() > LINE_BYTES_MAX {
        line.clear();
        line.shrink_to(1 << 20);
        RawLine::TooLong { bytes }
    } else {
        RawLine::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(input: &[u8]) -> Vec<(RawLine, Vec<u8>)> {
        let mut reader = tokio::io::BufReader::with_capacity(7, input);
        let mut line = Vec::new();
        let mut lines = Vec::new();
        while let Some((raw, _)) = next_line(&mut reader, &mut line, true).await.unwrap() {
            lines.push((raw, line.clone()));
        }
        lines
    }

    #[tokio::test]
    async fn lines_are_cut_at_newlines_and_a_last_one_needs_none() {
        let lines = all(b"one\n\ntwo is longer than the buffer\r\nthree").await;
        let texts: Vec<&[u8]> = lines.iter().map(|(_, text)| text.as_slice()).collect();
        assert_eq!(texts, [&b"one"[..], b"", b"two is longer than the buffer\r", b"three"]);
        assert_eq!(all(b"").await, []);
        assert_eq!(all(b"\n").await.len(), 1);
    }

    #[tokio::test]
    async fn a_huge_line_is_skipped_without_being_held() {
        let mut input = vec![b'x'; LINE_BYTES_MAX + 5];
        input.extend_from_slice(b"\nnext\n");
        let mut reader = tokio::io::BufReader::with_capacity(1 << 16, &input[..]);
        let mut line = Vec::new();
        let (raw, _) = next_line(&mut reader, &mut line, true).await.unwrap().unwrap();
        assert_eq!(raw, RawLine::TooLong { bytes: LINE_BYTES_MAX as u64 + 6 });
        assert!(line.capacity() <= 2 << 20);
        next_line(&mut reader, &mut line, true).await.unwrap().unwrap();
        assert_eq!(line, b"next");
    }

    #[test]
    fn the_index_finds_the_nearest_line_before() {
        let index = LineIndex { lines: 2500, offsets: vec![0, 50_000, 99_000], repeated: vec![] };
        assert_eq!(index.before(0), (0, 0));
        assert_eq!(index.before(999), (0, 0));
        assert_eq!(index.before(2499), (2000, 99_000));
        assert_eq!(LineIndex::default().before(7), (0, 0));
    }
}
