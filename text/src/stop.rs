//! Stop strings across token borders: text goes out only when it can no longer be the start of one.

/// Finds the first stop string in a stream of text.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// A suffix of what was pushed that begins some stop string, or nothing.
    held: String,
    stopped: bool,
}

/// What a push gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Text that is certain, without any stop string.
    pub text: String,
    /// Whether a stop string was found; nothing comes after it.
    pub stopped: bool,
}

impl StopMatcher {
    /// A matcher for `stops`; empty strings among them are left out, since they would stop everything.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes more text. The result does not depend on how the text is cut into pieces: of all stop strings
    /// the one that *ends* first counts (the longest of those that end there), as if text came by character.
    pub fn push(&mut self, text: &str) -> Step {
        if self.stopped {
            return Step { text: String::new(), stopped: true };
        }
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min();
        if let Some((_, start)) = found {
            self.stopped = true;
            self.held.truncate(start);
            return Step { text: std::mem::take(&mut self.held), stopped: true };
        }
        let certain = self.held.len() - self.longest_beginning();
        let after = self.held.split_off(certain);
        Step { text: std::mem::replace(&mut self.held, after), stopped: false }
    }

    /// True if nothing is held back.
    pub fn is_whole(&self) -> bool {
        self.held.is_empty()
    }

    /// Ends the stream and returns what was held back.
    pub fn finish(self) -> String {
        self.held
    }

    /// Length of the longest suffix of `held` with which a stop string begins.
    fn longest_beginning(&self) -> usize {
        let longest = self.stops.iter().map(|stop| stop.len() - 1).max().unwrap_or(0).min(self.held.len());
        let from = self.held.len() - longest;
        (from..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| self.stops.iter().any(|stop| stop.starts_with(&self.held[start..])))
            .map_or(0, |start| self.held.len() - start)
    }
}

#[cfg(test)]
mod tests;
