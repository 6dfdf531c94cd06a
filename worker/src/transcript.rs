//! The text of one generation as its ids come: whole characters, stop strings, what is reported for each token.
//!
//! A resumed job feeds the kept ids through first; its state is then the one that the first run had there, so text and
//! end are the same as without the interruption.

use ternfleet_engine::TokenLogprob;
use ternfleet_proto::message::{Finish, TokenLogprobs};
use ternfleet_text::{StopMatcher, Stream};

use crate::language::Language;

/// Text state of one generation.
#[derive(Debug)]
pub struct Transcript {
    stream: Stream,
    matcher: StopMatcher,
    text: String,
    stopped: bool,
    /// Text put before the output, when the caller asked for an echo of the prompt.
    echo: String,
}

impl Transcript {
    pub fn new(stops: &[String], echo: String) -> Transcript {
        Transcript {
            stream: Stream::new(),
            matcher: StopMatcher::new(stops.iter().cloned()),
            text: String::new(),
            stopped: false,
            echo,
        }
    }

    /// Takes the next id and returns the text that is certain by now. After a stop string nothing more is taken.
    pub fn push(&mut self, language: &Language, id: u32) -> String {
        if self.stopped || language.stop_ids().contains(&id) {
            return String::new();
        }
        let piece = language.push(&mut self.stream, id);
        let step = self.matcher.push(&piece);
        self.stopped = step.stopped;
        self.text.push_str(&step.text);
        step.text
    }

    /// Text before the output.
    pub fn echo(&self) -> &str {
        &self.echo
    }

    /// A stop string was found.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The whole text, the part of it that had been held back, and why it ended. `by_model` says how the engine ended.
    pub fn finish(self, by_model: Finish) -> (String, String, Finish) {
        let Transcript { stream, mut matcher, mut text, mut stopped, echo } = self;
        let mut tail = String::new();
        if !stopped {
            let step = matcher.push(&stream.finish());
            stopped = step.stopped;
            tail = step.text;
            if !stopped {
                tail.push_str(&matcher.finish());
            }
        }
        text.push_str(&tail);
        let finish = if stopped { Finish::Stop } else { by_model };
        (echo + &text, tail, finish)
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
        let mut transcript = Transcript::new(&stops, String::new());
        for &id in ids {
            transcript.push(&Language::Bytes, id);
        }
        transcript.finish(Finish::Length)
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
        let transcript = Transcript::new(&[], "prompt ".to_owned());
        assert_eq!(transcript.finish(Finish::Length), ("prompt ".to_owned(), String::new(), Finish::Length));
    }
}
