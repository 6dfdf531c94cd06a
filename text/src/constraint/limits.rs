//! What a grammar may take: callers are not trusted, and none may use up the time or the memory of the others.

use std::time::Duration;

use llguidance::api::ParserLimits;

use super::Fault;

/// Bytes of a schema's text.
pub const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Bytes of a regular expression or a grammar.
pub const MAX_GRAMMAR_BYTES: usize = 64 << 10;
/// Texts of a choice.
pub const MAX_CHOICES: usize = 4096;
/// Functions that may be called.
pub const MAX_FUNCTIONS: usize = 128;
/// Schemas within schemas.
pub const MAX_DEPTH: usize = 64;
/// Schemas of a schema that are referred to: each may refer to the next.
pub(super) const MAX_REFERENCES: usize = 1024;
/// Schemas in a schema, those counted again that stand for several cases.
pub(super) const MAX_SCHEMAS: usize = 20_000;

/// Stack of the thread that compiles: recursion goes as deep as the schema.
pub(super) const STACK_BYTES: usize = 64 << 20;
/// Time to compile a grammar when it is asked for.
pub(super) const COMPILE: Duration = Duration::from_secs(5);
/// The same where it is used, which it is only after it was taken: a busy machine must not turn it down.
pub(super) const COMPILE_HERE: Duration = Duration::from_secs(60);
/// Compilers that may run on after their time.
pub(super) const LEFT_BEHIND: usize = 4;
/// Compiled grammars that a compiler keeps for whoever asks next.
pub(super) const KEPT: usize = 256;
/// Bytes of the texts of those.
pub(super) const KEPT_BYTES: usize = 16 << 20;

/// Refuses more of `what` than is allowed.
pub(super) fn at_most(what: &'static str, found: usize, most: usize) -> Result<(), Fault> {
    match found > most {
        true => Err(Fault::TooMuch { what, found, most, path: String::new() }),
        false => Ok(()),
    }
}

/// Work and memory of one grammar: about 20 ms to build it, 20 ms a mask, and 50 MB of automata.
pub(super) fn parser() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 50_000,
        max_grammar_size: 250_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}
