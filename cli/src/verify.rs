//! Checking answers without their fleet: lines against a manifest, and lines run again. Called by `commands/verify.rs`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use ternfleet_proto::Digest;

pub(crate) mod again;
pub(crate) mod lines;

/// What is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    /// Line of the input, from 1; none where it is the whole.
    pub(crate) line: Option<u32>,
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The manifest does not hold in itself.
    Manifest,
    /// Somebody else signed it.
    Key,
    /// A line that cannot be read.
    Form,
    /// A line that is not what was signed.
    Changed,
    /// A signed line is not there.
    Missing,
    /// A line that was not signed.
    Added,
    /// A line that stands before one that it should follow.
    Order,
    /// The input is not the one that was signed.
    Input,
    /// Another model, or other arithmetic.
    Model,
    /// The same request with another seed.
    Seed,
    /// Another prompt, sampling, limit or constraint.
    Request,
    /// The tokens that were generated here are others.
    Tokens,
    /// The tokens are the same, and what the line says of them is not.
    Text,
    /// It could not be run.
    Failed,
}

impl Fault {
    pub(crate) fn of_all(kind: Kind, message: String) -> Fault {
        Fault { line: None, kind, message }
    }

    pub(crate) fn of_line(line: u32, kind: Kind, message: String) -> Fault {
        Fault { line: Some(line), kind, message }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// How many of the lines to run, as `1%` or `100%`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Share(f64);

impl Default for Share {
    fn default() -> Share {
        Share(1.0)
    }
}

impl Share {
    /// Whether a line with this draw, evenly distributed over all numbers, is one of the share.
    pub(crate) fn holds(self, draw: u64) -> bool {
        (draw as f64) < self.0 * (u64::MAX as f64)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
        number
            .filter(|percent| *percent > 0.0 && *percent <= 100.0)
            .map(|percent| Share(percent / 100.0))
            .ok_or_else(|| format!("{text:?} is no share: give a percentage such as 1% or 100%"))
    }
}

/// As much of an output line as its check takes.
#[derive(Debug, Deserialize)]
pub(crate) struct OutputLine {
    pub(crate) id: String,
    pub(crate) response: Option<Response>,
    pub(crate) error: Option<Value>,
    pub(crate) ternfleet: Facts,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Response {
    pub(crate) body: Value,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Facts {
    pub(crate) line: u32,
    pub(crate) proof: Option<Proof>,
}

/// The evidence of an answer, as its line shows it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Proof {
    pub(crate) request: Digest,
    pub(crate) seed: Option<u64>,
    pub(crate) answer: Digest,
}

impl OutputLine {
    /// Reads a line of results.
    pub(crate) fn parse(text: &str) -> Result<OutputLine, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage() {
        assert_eq!("1%".parse(), Ok(Share(0.01)));
        assert!("100%".parse::<Share>().unwrap().holds(u64::MAX - (1 << 12)));
        for wrong in ["1", "0%", "101%", "x%", "%"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
