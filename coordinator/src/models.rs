//! Which models this fleet serves or could serve, and the refusal of a request that names another.
//!
//! A request for a model that nobody serves would wait until its window ends, and pods would be rented that cannot run
//! it. So it is refused when it comes, with the names that are served. A fleet of which nothing is known refuses nothing.
//! Called by the API, for batches, quotes and single jobs alike.

use std::collections::BTreeSet;

use ternfleet_proto::message::{Refusal, RefusalCode};

/// Names in an error message.
const NAMES_MAX: usize = 10;
/// A name is close if this share of its characters at most has to be changed.
const CLOSE_RATIO: f64 = 0.4;

/// What can run requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Models {
    /// Models of the workers that are known.
    pub served: BTreeSet<String>,
    /// Digests of those models: a request may name one in place of the name.
    pub digests: BTreeSet<String>,
    /// Models of the classes of pods that may be rented.
    pub rentable: BTreeSet<String>,
    /// Something is not known yet: the workers have not been heard of, or a class whose pods may serve anything.
    pub open: bool,
}

impl Models {
    /// Refuses the first of `wanted` that nobody serves and no class can serve.
    ///
    /// # Errors
    /// [`RefusalCode::ModelNotFound`], with what is served.
    pub fn check<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Result<(), Refusal> {
        if self.open || (self.served.is_empty() && self.rentable.is_empty()) {
            return Ok(());
        }
        match wanted.into_iter().find(|model| !self.has(model)) {
            None => Ok(()),
            Some(model) => {
                let message = self.explain(model);
                Err(Refusal { code: RefusalCode::ModelNotFound, message, retry_after_ms: None })
            }
        }
    }

    fn has(&self, model: &str) -> bool {
        [&self.served, &self.rentable, &self.digests].into_iter().any(|names| names.contains(model))
    }

    fn explain(&self, model: &str) -> String {
        let known: BTreeSet<&str> = self.served.union(&self.rentable).map(String::as_str).collect();
        let mut text = format!("no worker serves the model {model:?}, and no class of pods can. ");
        let list = |names: &BTreeSet<String>| {
            let more = if names.len() > NAMES_MAX { ", …" } else { "" };
            names.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ") + more
        };
        text += &match self.served.is_empty() {
            true => "No worker is connected".to_owned(),
            false => format!("Served: {}", list(&self.served)),
        };
        let rentable: BTreeSet<String> = self.rentable.difference(&self.served).cloned().collect();
        if !rentable.is_empty() {
            text += &format!("; on rented pods: {}", list(&rentable));
        }
        text += ".";
        if let Some(close) = closest(model, &known) {
            text += &format!(" Did you mean {close:?}?");
        }
        text + " To wait for a worker that serves it, set wait_for_model (`submit --wait-for-model`)."
    }
}

/// The name that differs least, if it is close enough to be what was meant.
fn closest<'a>(wanted: &str, known: &BTreeSet<&'a str>) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let distance = |name: &str| {
        let name = name.to_lowercase();
        let part = wanted.len() >= 3 && (name.contains(&wanted) || wanted.contains(&name));
        if part { 1 } else { edits(&wanted, &name) }
    };
    let (least, name) = known.iter().map(|name| (distance(name), *name)).min()?;
    (least as f64 <= CLOSE_RATIO * wanted.chars().count().max(3) as f64).then_some(name)
}

/// Characters to insert, leave out or replace to make one of the other (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, have) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, want) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(have != *want);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(served: &[&str], rentable: &[&str]) -> Models {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Models { served: set(served), rentable: set(rentable), ..Models::default() }
    }

    #[test]
    fn a_model_that_nobody_can_serve_is_refused_with_those_that_are_and_the_closest() {
        let known = models(&["storyteller", "bonsai-1.7b"], &["bitnet-2b"]);
        assert_eq!(known.check(["storyteller", "bitnet-2b"]), Ok(()));
        let refused = known.check(["storyteller", "storytelr"]).unwrap_err();
        assert_eq!(refused.code, RefusalCode::ModelNotFound);
        for part in [
            "\"storytelr\"",
            "Served: bonsai-1.7b, storyteller",
            "rented pods: bitnet-2b",
            "mean \"storyteller\"",
            "--wait-for-model",
        ] {
            assert!(refused.message.contains(part), "{part}: {}", refused.message);
        }
        let far = known.check(["gpt-4o-mini"]).unwrap_err();
        assert!(!far.message.contains("Did you mean"), "{}", far.message);
        let shorter = known.check(["Bonsai"]).unwrap_err();
        assert!(shorter.message.contains("mean \"bonsai-1.7b\""), "{}", shorter.message);
    }

    #[test]
    fn a_fleet_of_which_nothing_is_known_refuses_nothing() {
        assert_eq!(models(&[], &[]).check(["any"]), Ok(()));
        assert_eq!(Models { open: true, ..models(&["a"], &[]) }.check(["any"]), Ok(()));
        let by_digest = Models { digests: ["blake3:00".to_owned()].into(), ..models(&["a"], &[]) };
        assert_eq!(by_digest.check(["blake3:00"]), Ok(()));
    }
}
