//! One sequence's place in a grammar: tokens go in, what may or must come next comes out.
//!
//! Everything here depends on the constraint and the tokens so far, and on nothing else: a matcher that is fed the tokens
//! of an interrupted run stands where that run stood. Fuel is the one exception: automata that others of the same
//! constraint have built already cost nothing, so a grammar at the edge of its limits may pass on one machine and end in
//! [`DeadEnd::TooComplex`] on another; it never gives another token.

use llguidance::TokenParser;
use llguidance::api::StopReason;
use std::collections::VecDeque;

use super::mask::Mask;

/// Why a constrained sequence cannot continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DeadEnd {
    /// No token leads further.
    #[error("no token of this model's vocabulary can follow")]
    NoToken,
    /// Finding the next token takes more work or memory than is allowed.
    #[error("computing the next token exceeds the limits of work or memory")]
    TooComplex,
    /// A token that the grammar does not take: kept output of another grammar or version.
    #[error("the output so far does not match the grammar")]
    Foreign,
    /// The grammar cannot be compiled for this model, though it was taken.
    #[error("it cannot be compiled for this model")]
    Uncompiled,
}

/// One sequence's place in a grammar. A clone stands at the same place, and shares the automata.
#[derive(Clone)]
pub struct Matcher {
    parser: TokenParser,
    n_vocab: usize,
    /// Ends an output where nothing else may follow.
    end: u32,
    /// All tokens so far, those that had to come included.
    taken: Vec<u32>,
    /// Only the end may follow, or nothing.
    complete: bool,
    ended: bool,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matcher({} taken)", self.taken.len())
    }
}

impl Matcher {
    /// A matcher at the start, and the tokens that must come first, which it has taken.
    pub(super) fn new(mut parser: TokenParser, end: u32) -> Result<(Matcher, VecDeque<u32>), DeadEnd> {
        let n_vocab = parser.token_env.tok_trie().vocab_size();
        parser.start_without_prompt();
        let mut matcher = Matcher { parser, n_vocab, end, taken: Vec::new(), complete: false, ended: false };
        let forced = matcher.guarded(Matcher::look_ahead)?;
        Ok((matcher, forced.into()))
    }

    /// Takes the tokens of an interrupted run, of which `forced` must come first; answers those that must come next.
    pub(super) fn follow(
        mut self,
        mut forced: VecDeque<u32>,
        output: &[u32],
    ) -> Result<(Matcher, VecDeque<u32>), DeadEnd> {
        for &token in output {
            match forced.pop_front() {
                Some(only) if only != token => return Err(DeadEnd::Foreign),
                Some(_) => {}
                None => forced = self.take(token)?.into(),
            }
        }
        Ok((self, forced))
    }

    /// Takes a token that was drawn, and those that must come next, which are returned; the last may be the end.
    pub fn take(&mut self, token: u32) -> Result<Vec<u32>, DeadEnd> {
        self.guarded(|matcher| {
            let parser = &mut matcher.parser;
            let fits = !matcher.complete && parser.validate_token(token).unwrap_or(false);
            if !fits && (matcher.complete || !matcher.ends_with(token)) {
                return Err(matcher.why(DeadEnd::Foreign));
            }
            matcher.consume(token)?;
            matcher.look_ahead()
        })
    }

    /// What may come next.
    pub fn mask(&mut self) -> Result<Mask, DeadEnd> {
        if self.complete {
            return Ok(Mask::one(self.end, self.n_vocab));
        }
        self.guarded(|matcher| match matcher.parser.compute_mask() {
            Ok(set) => Ok(Mask::new(&set)),
            Err(_) => Err(matcher.why(DeadEnd::NoToken)),
        })
    }

    /// All tokens so far, those included that must come next.
    pub fn taken(&self) -> &[u32] {
        &self.taken
    }

    fn ends_with(&self, token: u32) -> bool {
        self.parser.token_env.tok_trie().eos_tokens().contains(&token)
    }

    fn consume(&mut self, token: u32) -> Result<(), DeadEnd> {
        self.taken.push(token);
        self.parser.consume_token(token).map_err(|_| self.why(DeadEnd::Foreign))?;
        self.ended = self.ends_with(token);
        self.complete = self.ended || self.parser.check_stop().map_err(|_| self.why(DeadEnd::TooComplex))?;
        Ok(())
    }

    /// Finds and takes the tokens that must come next. They are those of the canonical writing of the bytes that must come
    /// next, less any that the text after them might join; so they are found once, where they begin, and not on the way.
    fn look_ahead(&mut self) -> Result<Vec<u32>, DeadEnd> {
        let mut forced = Vec::new();
        while !self.complete {
            let found = self.parser.compute_ff_tokens();
            if found.is_empty() {
                return Ok(forced);
            }
            for token in found {
                self.consume(token)?;
                forced.push(token);
            }
        }
        if !self.ended {
            self.ended = true;
            self.taken.push(self.end);
            forced.push(self.end);
        }
        Ok(forced)
    }

    /// The kind of the parser's error, `otherwise` if it does not say.
    fn why(&self, otherwise: DeadEnd) -> DeadEnd {
        match self.parser.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => DeadEnd::TooComplex,
            StopReason::NoExtension | StopReason::NoExtensionBias => DeadEnd::NoToken,
            _ => otherwise,
        }
    }

    /// A panic of the parser, which looks at hostile grammars, ends this sequence alone.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Matcher) -> Result<T, DeadEnd>) -> Result<T, DeadEnd> {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(self)));
        outcome.unwrap_or(Err(DeadEnd::TooComplex))
    }
}
