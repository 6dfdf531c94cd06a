//! Guesses at a sequence's next tokens from what it said before: prompt lookup, for speculation at the tail of a batch.
//!
//! A guess costs extra columns of a step and never changes a token: the step draws the token of each position by itself,
//! and a guess counts only as far as it equals what was drawn. Here are the guesses and how many to make; `schedule` puts
//! them into a step and checks them.

mod costs;

pub(crate) use costs::Costs;

/// Tokens at the end that must have stood together before: the longest run that is found decides.
const RUN: std::ops::RangeInclusive<usize> = 2..=4;
/// Steps without a guess after guesses that all failed, at most: 2 to this power.
const MOST_DOUBLINGS: u32 = 5;
/// Weight of the newest guess in the share of right ones.
const SHARE: f64 = 0.125;

/// Guesses for one sequence; it guesses more after success and pauses after failure.
#[derive(Debug, Clone)]
pub(crate) struct Drafter {
    /// Tokens to guess next time.
    length: usize,
    /// Steps to leave out.
    pause: u32,
    /// Failures in a row.
    failures: u32,
    /// Share of guesses that were right, the latest weighing most.
    right: f64,
    /// The first guess of the last step, made or only thought of.
    first: Option<u32>,
}

impl Drafter {
    pub(crate) fn new() -> Drafter {
        Drafter { length: 2, pause: 0, failures: 0, right: 0.7, first: None }
    }

    /// Up to `most` tokens that may follow `tokens`, and of those as many as `worth` says, which is given the probability
    /// that a guess is right and how many there are.
    pub(crate) fn draft(
        &mut self,
        tokens: &[u32],
        most: usize,
        worth: impl FnOnce(f64, usize) -> usize,
    ) -> Vec<u32> {
        self.first = None;
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        let mut guesses = continuation(tokens, self.length.min(most));
        self.first = guesses.first().copied();
        if !guesses.is_empty() {
            guesses.truncate(worth(self.right, guesses.len()));
        }
        guesses
    }

    /// The probability that a guess is right.
    pub(crate) fn right(&self) -> f64 {
        self.right
    }

    /// Takes note of the token after the last one, and of how many of the guesses were right.
    pub(crate) fn learn(&mut self, next: u32, drafted: usize, accepted: usize) {
        // A guess that was not worth its column tells as much.
        if let Some(first) = self.first.take() {
            self.right += SHARE * (f64::from(u8::from(first == next)) - self.right);
        }
        if drafted == 0 {
            return;
        }
        if accepted == 0 {
            self.failures = (self.failures + 1).min(MOST_DOUBLINGS);
            (self.length, self.pause) = (1, 1 << self.failures);
        } else {
            self.failures = 0;
            self.length = if accepted == drafted { 2 * self.length } else { accepted };
        }
    }
}

/// What followed the last time that `tokens` ended as it ends now; a repetition continues forever.
fn continuation(tokens: &[u32], n_tokens: usize) -> Vec<u32> {
    let Some(last) = tokens.len().checked_sub(1).filter(|_| n_tokens > 0) else { return Vec::new() };
    let found = RUN.rev().filter(|&n| n <= last).find_map(|n| {
        let end = &tokens[tokens.len() - n..];
        tokens[..last].windows(n).rposition(|run| run == end).map(|at| at + n)
    });
    let Some(from) = found else { return Vec::new() };
    let period = tokens.len() - from;
    (0..n_tokens).map(|i| tokens[from + i % period]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_and_then_the_latest_run_is_continued() {
        assert_eq!(continuation(&[1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], 2), [4, 9], "1 2 3 before 2 3");
        assert_eq!(continuation(&[7, 8, 1, 7, 8, 2, 7, 8], 1), [2], "the latest of two");
        assert_eq!(continuation(&[1, 2, 3], 4), Vec::<u32>::new());
        assert_eq!(continuation(&[5, 9, 5], 4), Vec::<u32>::new(), "one token is no run");
        assert_eq!(continuation(&[], 4), Vec::<u32>::new());
        assert_eq!(continuation(&[1, 2, 1, 2], 0), Vec::<u32>::new());
    }

    #[test]
    fn a_repetition_goes_on() {
        assert_eq!(continuation(&[4, 4, 4], 5), [4; 5]);
        assert_eq!(continuation(&[1, 2, 3, 1, 2, 3, 1, 2], 5), [3, 1, 2, 3, 1]);
    }

    #[test]
    fn success_lengthens_guesses_and_failure_pauses_them() {
        let looping = [1, 2, 1, 2, 1, 2];
        let mut drafter = Drafter::new();
        let all = |_, most| most;
        let mut lengths = Vec::new();
        for _ in 0..3 {
            let n = drafter.draft(&looping, 7, all).len();
            drafter.learn(1, n, n);
            lengths.push(n);
        }
        assert_eq!(lengths, [2, 4, 7]);
        drafter.learn(1, 7, 3);
        assert_eq!(drafter.draft(&looping, 7, all).len(), 3);
        drafter.learn(9, 3, 0);
        drafter.learn(9, 0, 0);
        let pauses = (0..9).take_while(|_| drafter.draft(&looping, 7, all).is_empty()).count();
        assert_eq!(pauses, 2);
        drafter.learn(9, 1, 0);
        assert_eq!((0..9).take_while(|_| drafter.draft(&looping, 7, all).is_empty()).count(), 4);
    }

    #[test]
    fn a_guess_that_is_not_made_is_judged_all_the_same() {
        let mut drafter = Drafter::new();
        let before = drafter.right();
        assert!(drafter.draft(&[1, 2, 1, 2], 7, |_, _| 0).is_empty());
        drafter.learn(1, 0, 0);
        assert!(drafter.right() > before);
        for _ in 0..20 {
            drafter.draft(&[1, 2, 1, 2], 7, |_, _| 0);
            drafter.learn(3, 0, 0);
        }
        assert!(drafter.right() < 0.1);
    }
}
