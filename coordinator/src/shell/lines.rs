//! Lines of an input object: cut out of a byte stream with bounded memory, and the index that finds them again.

mod names;

use std::borrow::Cow;
use std::path::Path;

use anyhow::Context;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use ternfleet_proto::openai::{LINE_BYTES_MAX, is_blank};
use ternfleet_proto::table::WORK_MESSAGE_BYTES_MAX;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use names::{Names, RUN_NAMES};

#[cfg(test)]
mod fuzz;

/// Some editors begin a file with it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// An offset is kept for every so many lines.
pub(crate) const INDEX_EVERY: u32 = 1000;

/// A request is an object if it is longer than a work message, and that is several times as much as its line when numbers of
/// one digit fill it.
pub(crate) const LONG_LINE_BYTES: u64 = WORK_MESSAGE_BYTES_MAX as u64 / 16;

/// Where the lines of an input begin, and which of them repeat a `custom_id`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LineIndex {
    /// Up to the last one that is not blank: what follows costs nothing.
    pub(crate) lines: u32,
    /// Byte offsets of lines 0, 1000, 2000, …
    pub(crate) offsets: Vec<u64>,
    /// Lines whose `custom_id` an earlier line has, ascending.
    pub(crate) repeated: Vec<u32>,
    /// Lines of at least [`LONG_LINE_BYTES`], ascending: only their requests may have become objects.
    pub(crate) long: Vec<u32>,
}

impl LineIndex {
    /// The nearest line at or before `line` whose offset is known, and that offset in bytes.
    pub(crate) fn before(&self, line: u32) -> (u32, u64) {
        let place = (line / INDEX_EVERY) as usize;
        let place = place.min(self.offsets.len().saturating_sub(1));
        (place as u32 * INDEX_EVERY, self.offsets.get(place).copied().unwrap_or(0))
    }

    /// Bytes of the stored form of an index of so many lines, at most.
    pub(crate) fn bytes_max(lines_max: u32) -> u64 {
        let lines = u64::from(lines_max);
        64 + 9 * lines.div_ceil(u64::from(INDEX_EVERY)) + 10 * lines
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

/// Counts lines, notes where they begin, and which repeat a `custom_id`. `None` for an input of more than `lines_max`
/// lines; memory stays within what an index of `lines_max` takes, whatever the input.
pub(crate) async fn scan(
    mut input: impl AsyncBufRead + Unpin,
    lines_max: u32,
    scratch: Option<&Path>,
) -> anyhow::Result<Option<LineIndex>> {
    let mut index = LineIndex::default();
    let mut names = Names::new(RUN_NAMES, scratch);
    let mut line = Vec::new();
    let (mut number, mut offset) = (0u32, 0u64);
    loop {
        if number == lines_max {
            if !is_blank_to_the_end(&mut input).await? {
                return Ok(None);
            }
            break;
        }
        let Some((raw, bytes)) = next_line(&mut input, &mut line, true).await? else { break };
        if number.is_multiple_of(INDEX_EVERY) {
            index.offsets.push(offset);
            // Other tasks share this thread.
            tokio::task::yield_now().await;
        }
        offset += bytes;
        if raw != RawLine::Text || !is_blank(&line) {
            index.lines = number + 1;
        }
        if bytes >= LONG_LINE_BYTES {
            index.long.push(number);
        }
        if let Some(id) = custom_id(&line) {
            names.add(&id, number).context("the scratch file")?;
        }
        number += 1;
    }
    index.offsets.truncate(index.lines.div_ceil(INDEX_EVERY) as usize);
    let repeated = ternfleet_proto::aside::run(move || names.repeated()).await;
    index.repeated = repeated.context("names cannot be compared")?.context("the scratch file")?;
    Ok(Some(index))
}

/// True if the input has a line that is not blank behind the first `lines_max`. Looks at bytes alone, so it is fast.
pub(crate) async fn is_longer(mut input: impl AsyncBufRead + Unpin, lines_max: u32) -> std::io::Result<bool> {
    let mut ends = 0u64;
    while ends < u64::from(lines_max) {
        let chunk = input.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(false);
        }
        let left = (u64::from(lines_max) - ends) as usize;
        let last =
            memchr::memchr_iter(b'\n', chunk).take(left).fold((0, None), |(n, _), at| (n + 1, Some(at)));
        ends += last.0;
        let used = match last.1 {
            Some(at) if ends == u64::from(lines_max) => at + 1,
            _ => chunk.len(),
        };
        input.consume(used);
        tokio::task::yield_now().await;
    }
    Ok(!is_blank_to_the_end(&mut input).await?)
}

async fn is_blank_to_the_end(input: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<bool> {
    loop {
        let chunk = input.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(true);
        }
        if !chunk.iter().all(u8::is_ascii_whitespace) {
            return Ok(false);
        }
        let used = chunk.len();
        input.consume(used);
        tokio::task::yield_now().await;
    }
}

/// The `custom_id` of a line, however its string is written; as everywhere, the last of several counts.
fn custom_id(line: &[u8]) -> Option<Cow<'_, str>> {
    struct Named<'a>(Option<&'a RawValue>);

    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    impl<'de: 'a, 'a> Deserialize<'de> for Named<'a> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Fields;
            impl<'de> Visitor<'de> for Fields {
                type Value = Option<&'de RawValue>;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a JSON object")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut found = None;
                    while let Some(Text(key)) = map.next_key()? {
                        if key == "custom_id" {
                            found = Some(map.next_value()?);
                        } else {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                    Ok(found)
                }
            }
            from.deserialize_map(Fields).map(Named)
        }
    }

    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
    let Named(raw) = serde_json::from_slice(line).ok()?;
    serde_json::from_str::<Text<'_>>(raw?.get()).ok().map(|Text(id)| id)
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

    #[tokio::test]
    async fn long_lines_are_noted() {
        let mut input = b"short\n".to_vec();
        input.resize(input.len() + LONG_LINE_BYTES as usize, b'x');
        input.extend_from_slice(b"\nshort\n");
        let index = scan(&input[..], 100, None).await.unwrap().unwrap();
        assert_eq!((index.lines, index.long), (3, vec![1]));
    }

    #[tokio::test]
    async fn a_custom_id_is_known_again_however_it_is_written() {
        let input = "\u{feff}{\"custom_id\": \"a\"}\n{\"custom_id\":\"\\u0061\"}\n{\"custom_id\": null}\n\
                     {\"custom_id\": null}\n{\"custom_id\": \"b\", \"custom_id\": \"a\"}\n{\"custom_id\": \"b\"}\n";
        let index = scan(input.as_bytes(), 100, None).await.unwrap().unwrap();
        assert_eq!((index.lines, index.repeated), (6, vec![1, 4]));
    }

    #[tokio::test]
    async fn newlines_alone_cost_nothing_and_too_many_lines_are_refused() {
        let mut blank = vec![b'\n'; 3 << 20];
        let index = scan(&blank[..], 1000, None).await.unwrap().unwrap();
        assert_eq!(index, LineIndex::default());
        assert!(!is_longer(&blank[..], 1000).await.unwrap());
        blank.push(b'x');
        assert_eq!(
            scan(&blank[..], 1000, None).await.unwrap(),
            None,
            "a line of content behind them counts them all"
        );
        assert!(is_longer(&blank[..], 1000).await.unwrap());
        let text = b"a\n\nb\n\n\n";
        assert_eq!(scan(&text[..], 3, None).await.unwrap().unwrap().lines, 3);
        assert_eq!(scan(&text[..], 2, None).await.unwrap(), None);
        let longer =
            async |max| is_longer(tokio::io::BufReader::with_capacity(2, &text[..]), max).await.unwrap();
        assert!(!longer(3).await && longer(2).await);
    }

    #[test]
    fn the_index_finds_the_nearest_line_before() {
        let index =
            LineIndex { lines: 2500, offsets: vec![0, 50_000, 99_000], repeated: vec![], long: vec![] };
        assert_eq!(index.before(0), (0, 0));
        assert_eq!(index.before(999), (0, 0));
        assert_eq!(index.before(2499), (2000, 99_000));
        assert_eq!(LineIndex::default().before(7), (0, 0));
    }
}
