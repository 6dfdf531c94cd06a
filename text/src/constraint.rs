//! Output that must belong to a language: JSON of a schema, a regular expression, a choice of texts, a grammar, calls of
//! functions.
//!
//! [`Grammar`] is what a caller asks for, and [`Grammar::check`] says without a model whether it can be had; so requests
//! are refused when they are made. [`Compiler`] belongs to one vocabulary: it compiles a grammar once for all who ask for
//! it, into a [`Constraint`], of which each sequence takes a [`Matcher`]. The matching is the crate `llguidance`'s; here
//! are its limits, the schemas that it understands, and what may be said about the rest.

mod calls;
mod compiler;
mod limits;
mod mask;
mod matcher;
mod schema;
mod vocabulary;

pub use calls::{Callable, Calls};
pub use compiler::{Compiler, Constraint, Recogniser};
pub use limits::{MAX_CHOICES, MAX_DEPTH, MAX_FUNCTIONS, MAX_GRAMMAR_BYTES, MAX_SCHEMA_BYTES};
pub use mask::Mask;
pub use matcher::{DeadEnd, Matcher};

/// Names the arithmetic of constraints: the same grammar and tokens give the same mask. It changes with the crate.
pub const VERSION: &str = "llguidance-1.9.1";

/// The numerics id of constrained work on an engine with this one. Work without constraints keeps the engine's own.
pub fn numerics(engine: &str) -> String {
    format!("{engine}+{VERSION}")
}

/// A language that an output must belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grammar {
    /// JSON that this schema takes, without white space between its parts; properties in the schema's order.
    JsonSchema(String),
    /// Any JSON object.
    JsonObject,
    /// A whole match of this regular expression.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in Lark's syntax, whose first rule is `start`.
    Lark(String),
    /// Calls of functions, in the form in which the model writes them.
    Calls(Calls),
}

/// Why a grammar is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A limit of this program.
    #[error("{what} is {found}{}; at most {most} is allowed", at(path))]
    TooMuch {
        /// What is limited, with its unit.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// The limit.
        most: usize,
        /// Where in the schema; empty for all of it.
        path: String,
    },
    /// A keyword of JSON Schema that cannot be kept to.
    #[error("the keyword `{keyword}`{} is not supported{}", at(path), reason(why))]
    Unsupported {
        /// Its name.
        keyword: String,
        /// Where in the schema.
        path: String,
        /// More about it; may be empty.
        why: String,
    },
    /// It contradicts itself or the rules of its language.
    #[error("{reason}{}", at(path))]
    Invalid {
        /// What is wrong.
        reason: String,
        /// Where in the schema; empty for all of it.
        path: String,
    },
    /// Compiling it takes more work or memory than is allowed.
    #[error("it is too complex: {0}")]
    TooComplex(String),
    /// A text that ends the output is in every output, so none could be whole.
    #[error("the stop text {stop:?} contradicts it: {reason}")]
    Stop {
        /// The text.
        stop: String,
        /// Where it must occur.
        reason: String,
    },
}

fn at(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" at {path}") }
}

fn reason(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {why}") }
}

impl Fault {
    /// The same of a part of what was asked for: its place is told with the part's.
    pub(crate) fn within(mut self, part: &str) -> Fault {
        if let Fault::TooMuch { path, .. } | Fault::Unsupported { path, .. } | Fault::Invalid { path, .. } =
            &mut self
        {
            *path = format!("{part}{}{path}", if path.is_empty() { "" } else { ", " });
        }
        self
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Fault {
        Fault::Invalid { reason: reason.into(), path: String::new() }
    }
}

impl Grammar {
    /// Whether outputs can be held to this grammar, by any model. Takes some milliseconds for a large schema: not for an
    /// async task of its own accord.
    pub fn check(&self) -> Result<(), Fault> {
        self.recogniser().map(drop)
    }

    /// What says which texts belong to it, without a model.
    pub fn recogniser(&self) -> Result<Recogniser, Fault> {
        Recogniser::new(self)
    }

    /// Whether one of `stops` must cut every output short.
    pub fn check_stops(&self, stops: &[String]) -> Result<(), Fault> {
        compiler::check_stops(self, stops)
    }
}

#[cfg(test)]
mod tests;
