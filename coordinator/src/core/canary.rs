//! Canaries: what every worker's engine made of the same few prompts before it registered.
//!
//! Workers of one kind give the same bits, so they must say the same. A host that says something else than most hosts
//! of its kind gets no work, and what it has goes elsewhere, until it says as they do. Equal numbers cannot outvote each
//! other: then the alarm is all, or one stolen key could shut out the only other host. So the fleet never judges all of
//! its hosts odd. A worker without a canary is not judged.

use std::collections::{BTreeMap, BTreeSet};

use ternfleet_proto::message::{EventKind, Heartbeat};

use super::Core;
use super::event::{Action, WorkerSlot};
use crate::route::EngineKind;

/// Engine kind, and the scheme of its canary: the part before the `-`.
type Group = (EngineKind, String);

#[derive(Debug)]
struct Word {
    canary: String,
    hosts: BTreeSet<String>,
}

/// What hosts have said, and which of them stand out.
#[derive(Debug, Default)]
pub struct Canaries {
    /// Different words in the order in which they were first heard.
    words: BTreeMap<Group, Vec<Word>>,
    odd: BTreeSet<String>,
}

impl Canaries {
    /// Takes a host's word; true when it is a new one.
    fn hear(&mut self, kind: EngineKind, host: &str, canary: &str) -> bool {
        let Some((scheme, _)) = canary.split_once('-') else { return false };
        let words = self.words.entry((kind, scheme.to_owned())).or_default();
        if words.iter().any(|word| word.canary == canary && word.hosts.contains(host)) {
            return false;
        }
        words.iter_mut().for_each(|word| _ = word.hosts.remove(host));
        match words.iter_mut().find(|word| word.canary == canary) {
            Some(word) => _ = word.hosts.insert(host.to_owned()),
            None => words.push(Word { canary: canary.to_owned(), hosts: BTreeSet::from([host.to_owned()]) }),
        }
        words.retain(|word| !word.hosts.is_empty());
        self.odd = self.words.values().flat_map(|words| dissenters(words)).cloned().collect();
        true
    }

    /// It computes something else than the others of its kind.
    pub fn stands_out(&self, host: &str) -> bool {
        self.odd.contains(host)
    }

    pub fn odd_hosts(&self) -> impl Iterator<Item = &str> {
        self.odd.iter().map(String::as_str)
    }

    /// What most hosts of this kind say.
    fn expected(&self, kind: EngineKind, canary: &str) -> Option<&str> {
        let (scheme, _) = canary.split_once('-')?;
        let words = self.words.get(&(kind, scheme.to_owned()))?;
        most_said(words).map(|word| word.canary.as_str())
    }
}

fn most_said(words: &[Word]) -> Option<&Word> {
    // The last of equals is the greatest, so the earliest is asked last.
    words.iter().rev().max_by_key(|word| word.hosts.len())
}

fn dissenters(words: &[Word]) -> impl Iterator<Item = &String> {
    let most = words.iter().map(|word| word.hosts.len()).max().unwrap_or(0);
    let is_undecided = words.iter().filter(|word| word.hosts.len() == most).count() > 1;
    let odd = words.iter().filter(move |word| !is_undecided && word.hosts.len() < most);
    odd.flat_map(|word| &word.hosts)
}

impl Core {
    /// Compares the canary of a worker that comes with those of the others of its kind.
    pub(super) fn hear_canary(&mut self, slot: WorkerSlot, beat: &Heartbeat, actions: &mut Vec<Action>) {
        let Some(worker) = self.fleet.get(slot) else { return };
        let (kind, host) = (worker.kind, worker.host().to_owned());
        let before = self.fleet.canaries.odd.clone();
        if !self.fleet.canaries.hear(kind, &host, &beat.canary) {
            return;
        }
        if self.fleet.canaries.odd == before {
            let expected = self.fleet.canaries.expected(kind, &beat.canary).map(str::to_owned);
            if let Some(expected) = expected.filter(|expected| *expected != beat.canary)
                && !before.contains(&host)
            {
                self.counts.canaries_diverged += 1;
                self.report_divergence(beat, host, expected, actions);
            }
            return;
        }
        self.work_changed = true;
        let fresh: Vec<String> = self.fleet.canaries.odd.difference(&before).cloned().collect();
        for host in fresh {
            self.counts.canaries_diverged += 1;
            self.withdraw_from(&host, actions);
            // Workers of one host may have said different things, one after the other.
            let told =
                self.fleet.workers.values().filter(|worker| worker.host() == host).find_map(|worker| {
                    let expected = self.fleet.canaries.expected(worker.kind, &worker.beat.canary)?;
                    (expected != worker.beat.canary).then(|| (worker.beat.clone(), expected.to_owned()))
                });
            let Some((odd, expected)) = told else { continue };
            self.report_divergence(&odd, host, expected, actions);
        }
    }

    fn report_divergence(
        &mut self,
        beat: &Heartbeat,
        host: String,
        expected: String,
        actions: &mut Vec<Action>,
    ) {
        let (worker, said) = (beat.worker.clone(), beat.canary.clone());
        self.act(actions, Action::Audit(EventKind::CanaryDiverged { worker, host, said, expected }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: EngineKind = EngineKind(0);

    fn heard(words: &[(&str, &str)]) -> Canaries {
        let mut canaries = Canaries::default();
        words.iter().for_each(|(host, canary)| _ = canaries.hear(KIND, host, canary));
        canaries
    }

    fn odd(words: &[(&str, &str)]) -> Vec<String> {
        heard(words).odd_hosts().map(str::to_owned).collect()
    }

    #[test]
    fn whoever_differs_from_most_stands_out() {
        assert_eq!(odd(&[("a", "c1-x"), ("b", "c1-x"), ("c", "c1-x")]), Vec::<String>::new());
        assert_eq!(odd(&[("a", "c1-x"), ("b", "c1-x"), ("c", "c1-y")]), ["c"]);
    }

    #[test]
    fn equal_numbers_cannot_outvote_each_other() {
        assert_eq!(odd(&[("a", "c1-x"), ("b", "c1-y")]), Vec::<String>::new());
        assert_eq!(odd(&[("a", "c1-x"), ("b", "c1-y"), ("c", "c1-y")]), ["a"]);
        let even = [("a", "c1-x"), ("b", "c1-y"), ("c", "c1-y"), ("d", "c1-x")];
        assert_eq!(odd(&even), Vec::<String>::new());
    }

    #[test]
    fn a_host_that_says_as_the_others_do_is_in_again() {
        assert_eq!(odd(&[("a", "c1-x"), ("b", "c1-y"), ("b", "c1-x")]), Vec::<String>::new());
    }

    #[test]
    fn silence_other_schemes_and_other_kinds_are_not_compared() {
        assert_eq!(odd(&[("a", "c1-x"), ("b", ""), ("c", "c2-y")]), Vec::<String>::new());
        let mut canaries = heard(&[("a", "c1-x")]);
        canaries.hear(EngineKind(1), "b", "c1-y");
        assert!(!canaries.stands_out("b"));
    }
}
