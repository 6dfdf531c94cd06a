//! The text of one generation as its ids come: whole characters, stop strings, calls of functions, what is reported for
//! each token.
//!
//! A resumed job feeds the kept ids through first; its state is then the one that the first run had there, so text and
//! end are the same as without the interruption.

use ternfleet_engine::TokenLogprob;
use ternfleet_proto::message::{Call, CallPiece, Finish, TokenLogprobs};
use ternfleet_text::tools::{CallReader, Part};
use ternfleet_text::{StopMatcher, Stream, ToolFormat};

use crate::language::Language;

/// Text state of one generation.
#[derive(Debug)]
pub struct Transcript {
    stream: Stream,
    matcher: StopMatcher,
    /// Where functions may be called.
    reader: Option<CallReader>,
    text: String,
    calls: Vec<Call>,
    stopped: bool,
    /// Text put before the output, when the caller asked for an echo of the prompt.
    echo: String,
}

/// What is certain after some more ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    pub text: String,
    /// Parts of calls, after the text.
    pub calls: Vec<CallPiece>,
}

impl Said {
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.calls.is_empty()
    }
}

/// All of it, at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    pub text: String,
    pub calls: Vec<Call>,
    pub finish: Finish,
    /// What had been held back of it.
    pub tail: Said,
}

impl Transcript {
    /// The transcript of an output that `stops` end, with calls in it if a form of theirs is given.
    pub fn new(stops: &[String], echo: String, tools: Option<ToolFormat>) -> Transcript {
        Transcript {
            stream: Stream::new(),
            matcher: StopMatcher::new(stops.iter().cloned()),
            reader: tools.map(CallReader::new),
            text: String::new(),
            calls: Vec::new(),
            stopped: false,
            echo,
        }
    }

    /// Takes the next id and returns what is certain by now. After a stop string nothing more is taken.
    pub fn push(&mut self, language: &Language, id: u32) -> Said {
        if self.stopped || language.stop_ids().contains(&id) {
            return Said::default();
        }
        let piece = language.push(&mut self.stream, id);
        let step = self.matcher.push(&piece);
        self.stopped = step.stopped;
        let parts = self.reader.as_mut().map(|reader| reader.push(&step.text));
        self.take(parts.unwrap_or_else(|| vec![Part::Text(step.text)]))
    }

    /// Adds to text and calls.
    fn take(&mut self, parts: Vec<Part>) -> Said {
        let mut said = Said::default();
        for part in parts {
            match part {
                Part::Text(text) => {
                    self.text.push_str(&text);
                    said.text.push_str(&text);
                }
                Part::Call(name) => {
                    let call = self.calls.len() as u32;
                    said.calls.push(CallPiece { call, name: Some(name.clone()), arguments: String::new() });
                    self.calls.push(Call { name, arguments: String::new() });
                }
                Part::Arguments(more) => {
                    let Some(last) = self.calls.last_mut() else { continue };
                    last.arguments.push_str(&more);
                    let call = self.calls.len() as u32 - 1;
                    match said.calls.last_mut().filter(|piece| piece.call == call) {
                        Some(piece) => piece.arguments.push_str(&more),
                        None => said.calls.push(CallPiece { call, name: None, arguments: more }),
                    }
                }
            }
        }
        said
    }

    /// Text before the output.
    pub fn echo(&self) -> &str {
        &self.echo
    }

    /// All text of the ids so far has been said.
    pub fn is_whole(&self) -> bool {
        self.stream.is_whole() && self.matcher.is_whole() && self.reader.is_none()
    }

    /// A stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The end. `by_model` says how the engine ended.
    pub fn finish(mut self, by_model: Finish) -> Whole {
        let mut held = String::new();
        if !self.stopped {
            let step = self.matcher.push(&std::mem::take(&mut self.stream).finish());
            self.stopped = step.stopped;
            held = step.text;
            if !self.stopped {
                held.push_str(&std::mem::replace(&mut self.matcher, StopMatcher::new([])).finish());
            }
        }
        let parts = match self.reader.take() {
            None => vec![Part::Text(held)],
            Some(mut reader) => {
                let mut parts = reader.push(&held);
                parts.extend(reader.finish());
                parts
            }
        };
        let tail = self.take(parts);
        let finish = if self.stopped { Finish::Stop } else { by_model };
        Whole { text: self.echo + &self.text, calls: self.calls, finish, tail }
    }
}

/// The log-probabilities of one token with the texts that callers read.
pub fn logprobs_of(language: &Language, id: u32, found: &TokenLogprob) -> TokenLogprobs {
    let mut top_bytes = Vec::new();
    let top = found.top.iter().zip(0..).map(|(&(id, logprob), place)| {
        let (text, bytes) = language.token(id);
        top_bytes.extend(bytes.map(|bytes| (place, bytes)));
        (id, text, logprob)
    });
    let top = top.collect();
    let (text, bytes) = language.token(id);
    TokenLogprobs { id, text, logprob: found.logprob, top, bytes, top_bytes }
}

/// The log-probabilities of a prompt's tokens; of the first there are none.
pub fn prompt_logprobs_of(language: &Language, prompt: &[u32], found: &[TokenLogprob]) -> Vec<TokenLogprobs> {
    let first = prompt.first().map(|&id| {
        let (text, bytes) = language.token(id);
        TokenLogprobs { id, text, bytes, ..TokenLogprobs::default() }
    });
    let rest = prompt.iter().skip(1).zip(found).map(|(&id, found)| logprobs_of(language, id, found));
    first.into_iter().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ids: &[u32], stops: &[&str]) -> (String, String, Finish) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut transcript = Transcript::new(&stops, String::new(), None);
        for &id in ids {
            transcript.push(&Language::Bytes, id);
        }
        let whole = transcript.finish(Finish::Length);
        (whole.text, whole.tail.text, whole.finish)
    }

    fn ids(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[test]
    fn a_stop_string_across_tokens_ends_the_text_before_it() {
        let (text, tail, finish) = run(&ids("one END two"), &["END"]);
        assert_eq!((text.as_str(), tail.as_str(), finish), ("one ", "", Finish::Stop));
    }

    #[test]
    fn text_held_back_for_a_stop_string_that_never_came_is_not_lost() {
        let (text, tail, finish) = run(&ids("one EN"), &["END"]);
        assert_eq!((text.as_str(), tail.as_str(), finish), ("one EN", "EN", Finish::Length));
    }

    #[test]
    fn an_echo_stands_before_the_output_and_not_in_the_tail() {
        let whole = Transcript::new(&[], "prompt ".to_owned(), None).finish(Finish::Length);
        assert_eq!((whole.text.as_str(), whole.tail), ("prompt ", Said::default()));
    }

    #[test]
    fn what_was_said_as_it_came_is_the_whole_with_its_calls() {
        let output = "Wait.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
        for end in [output.len(), output.len() - 20, 60, 40, 10, 6] {
            let mut transcript = Transcript::new(&[], String::new(), Some(ToolFormat::Hermes));
            let mut told = Said::default();
            let mut hear = |said: Said| {
                told.text.push_str(&said.text);
                told.calls.extend(said.calls);
            };
            ids(&output[..end]).into_iter().for_each(|id| hear(transcript.push(&Language::Bytes, id)));
            let whole = transcript.finish(Finish::Stop);
            hear(whole.tail.clone());
            assert_eq!(told.text, whole.text);
            for (number, call) in whole.calls.iter().enumerate() {
                let of_it = || told.calls.iter().filter(|piece| piece.call as usize == number);
                let arguments: String = of_it().map(|piece| piece.arguments.as_str()).collect();
                assert_eq!(
                    (of_it().next().unwrap().name.as_ref(), &arguments),
                    (Some(&call.name), &call.arguments)
                );
            }
            if end == output.len() {
                let calls: Vec<(&str, &str)> =
                    whole.calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
                assert_eq!(
                    (whole.text.as_str(), &calls[..]),
                    ("Wait.", &[("f", "{\"a\": 1}"), ("g", "{}")][..])
                );
            }
        }
    }
}
