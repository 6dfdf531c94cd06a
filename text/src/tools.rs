//! How a model calls functions: the form of its calls, and the calls read out of its output as it comes.
//!
//! A manifest names the form. The grammar of `constraint/calls.rs` holds the output to it, so that what is read here is
//! known to the byte: an open tag, one line of JSON with the function's name and its arguments, a close tag.

/// The form of a model's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>`, a line `{"name": …, "arguments": …}`, `</tool_call>`: Hermes 2, Qwen 2.5 and 3, and models made from them.
    Hermes,
}

/// What stands between the open tag and a function's name.
pub(crate) const BEFORE_NAME: &str = "\n{\"name\": \"";
/// What stands between the name and the arguments.
pub(crate) const BEFORE_ARGUMENTS: &str = "\", \"arguments\": ";
/// What stands between the arguments and the close tag.
pub(crate) const AFTER_ARGUMENTS: &str = "}\n";
/// What stands between two calls.
pub(crate) const BETWEEN_CALLS: &str = "\n";

impl ToolFormat {
    /// Every form, in the order in which messages name them.
    pub const ALL: [ToolFormat; 1] = [ToolFormat::Hermes];

    /// The form that manifests call so.
    pub fn named(name: &str) -> Option<ToolFormat> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hermes => "hermes",
        }
    }

    /// The tag before a call.
    pub fn open(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
        }
    }

    /// The tag after a call.
    pub fn close(self) -> &'static str {
        match self {
            Self::Hermes => "</tool_call>",
        }
    }
}

/// Part of an output with calls, in the order of its coming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text that is no call.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of the arguments of the call that began last, as JSON text.
    Arguments(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    Head,
    Arguments,
    /// After a call: another one may follow, and white space.
    Between,
}

/// Reads calls out of a text that comes in pieces.
#[derive(Debug, Clone)]
pub struct CallReader {
    format: ToolFormat,
    state: State,
    /// What came and is not certain yet.
    held: String,
    /// Of the call that is being read.
    arguments: String,
}

impl CallReader {
    /// A reader that has seen nothing.
    pub fn new(format: ToolFormat) -> CallReader {
        CallReader { format, state: State::Text, held: String::new(), arguments: String::new() }
    }

    /// Takes more text and returns what is certain by now. The white space between a text and the call after it belongs to
    /// neither.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// Ends the text; a call that it cuts keeps the arguments that came.
    pub fn finish(mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Text if !held.is_empty() => vec![Part::Text(held)],
            // A brace that was held back may be the last one of the arguments or the one behind them.
            State::Arguments if !held.is_empty() && !is_whole(&self.arguments) => {
                let own = held.strip_suffix('\n').unwrap_or(&held);
                vec![Part::Arguments(own.to_owned())]
            }
            _ => Vec::new(),
        }
    }

    /// Reads as far as the next tag or part of a call; false where more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Text => match self.held.find(self.format.open()) {
                Some(at) => {
                    let text = self.held[..at].trim_end();
                    if !text.is_empty() {
                        parts.push(Part::Text(text.to_owned()));
                    }
                    self.enter(State::Head, at + self.format.open().len())
                }
                None => {
                    let certain = self.held[..certain(&self.held, self.format.open())].trim_end().len();
                    self.say(certain, Part::Text, parts)
                }
            },
            State::Head => match self.held.find(BEFORE_ARGUMENTS) {
                Some(at) => {
                    let name = self.held[..at].strip_prefix(BEFORE_NAME).unwrap_or_default();
                    parts.push(Part::Call(name.to_owned()));
                    self.arguments.clear();
                    self.enter(State::Arguments, at + BEFORE_ARGUMENTS.len())
                }
                None => false,
            },
            State::Arguments => {
                // JSON has no line break between its parts or in its texts as the grammar has them, so this is its end.
                let end = format!("{AFTER_ARGUMENTS}{}", self.format.close());
                match self.held.find(&end) {
                    Some(at) => {
                        self.say(at, Part::Arguments, parts);
                        self.enter(State::Between, end.len())
                    }
                    None => self.say(certain(&self.held, &end), Part::Arguments, parts),
                }
            }
            State::Between => match self.held.find(self.format.open()) {
                Some(at) => self.enter(State::Head, at + self.format.open().len()),
                None => false,
            },
        }
    }

    /// Goes on behind so many bytes.
    fn enter(&mut self, state: State, from: usize) -> bool {
        self.held.drain(..from);
        self.state = state;
        true
    }

    /// Tells the first so many bytes; there is nothing to be read after them yet.
    fn say(&mut self, bytes: usize, part: fn(String) -> Part, parts: &mut Vec<Part>) -> bool {
        if bytes > 0 {
            let rest = self.held.split_off(bytes);
            let text = std::mem::replace(&mut self.held, rest);
            if self.state == State::Arguments {
                self.arguments.push_str(&text);
            }
            parts.push(part(text));
        }
        false
    }
}

fn is_whole(json: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok()
}

/// Bytes of `text` that cannot be the beginning of `tag`.
fn certain(text: &str, tag: &str) -> usize {
    let longest = (tag.len() - 1).min(text.len());
    let begins = |&n: &usize| tag.is_char_boundary(n) && text.ends_with(&tag[..n]);
    text.len() - (1..=longest).rev().find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, and calls with their arguments, of an output that comes in pieces of so many characters.
    fn read(output: &str, piece: usize) -> (String, Vec<(String, String)>) {
        let mut reader = CallReader::new(ToolFormat::Hermes);
        let characters: Vec<char> = output.chars().collect();
        let mut parts: Vec<Part> = characters
            .chunks(piece)
            .flat_map(|piece| reader.push(&piece.iter().collect::<String>()))
            .collect();
        parts.extend(reader.finish());
        let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
        for part in parts {
            match part {
                Part::Text(more) => text.push_str(&more),
                Part::Call(name) => calls.push((name, String::new())),
                Part::Arguments(more) => calls.last_mut().unwrap().1.push_str(&more),
            }
        }
        (text, calls)
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn calls_are_read_the_same_however_the_output_is_cut() {
        let two = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": {\"b\": 1}}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
        let calls = vec![call("add", "{\"a\": {\"b\": 1}}"), call("f", "{}")];
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(read(two, piece), (String::new(), calls.clone()), "{piece}");
            assert_eq!(
                read(&format!("Let me see. \n\n{two}"), piece),
                ("Let me see.".to_owned(), calls.clone())
            );
        }
    }

    #[test]
    fn a_text_without_calls_is_kept_to_the_byte() {
        for text in ["", "a <tool", "a < b\n\n", "<tool_calls>", " <tool_call", "größe </tool_call>\n"] {
            for piece in [1, 4, 100] {
                assert_eq!(read(text, piece), (text.to_owned(), vec![]), "{text:?} by {piece}");
            }
        }
    }

    #[test]
    fn a_call_that_is_cut_keeps_what_came_of_its_arguments() {
        let whole = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": {\"b\": 1}}}\n</tool_call>";
        for end in 0..whole.len() {
            let (text, calls) = read(&whole[..end], 3);
            // Until the tag is whole it may be text.
            assert_eq!(text.is_empty(), end == 0 || end >= "<tool_call>".len(), "{end}");
            for (name, arguments) in calls {
                assert_eq!(name, "add");
                assert!("{\"a\": {\"b\": 1}}".starts_with(&arguments), "{end}: {arguments}");
            }
        }
    }
}
