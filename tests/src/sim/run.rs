//! Running seeds: one, or many; and making a failing one smaller.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::scenario::{Fault, Scenario};
use super::world::{Tally, World};

/// A seed that broke something, with the fewest faults that still do.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub broken: String,
    /// The faults that are needed, by number, with their times in milliseconds.
    pub faults: Vec<(usize, u64, Fault)>,
}

impl Failure {
    /// The command that shows it again.
    pub fn replay(&self) -> String {
        let numbers: Vec<String> = self.faults.iter().map(|(number, _, _)| number.to_string()).collect();
        let kept = if numbers.is_empty() { "none".to_owned() } else { numbers.join(",") };
        format!("cargo run -p ternfleet-tests --bin sim -- --seeds 1 --from {} --faults {kept}", self.seed)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.broken)?;
        for (number, at_ms, fault) in &self.faults {
            writeln!(f, "  fault {number} at {at_ms} ms: {fault:?}")?;
        }
        write!(f, "replay: {}", self.replay())
    }
}

/// Runs one seed, with these faults only if given.
///
/// # Errors
/// What broke, unshrunk.
pub fn run_scenario(scenario: Scenario) -> Result<Tally, String> {
    // A panic of a core is a broken promise like any other, and shrinks like any other.
    let outcome = catch_unwind(AssertUnwindSafe(|| World::new(scenario).run()));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

/// Runs one seed; a failure is made smaller.
///
/// # Errors
/// The failure with the fewest faults found.
pub fn run_seed(seed: u64) -> Result<Tally, Box<Failure>> {
    run_scenario(Scenario::of(seed)).map_err(|broken| Box::new(shrink(seed, broken)))
}

/// Leaves out one fault after the other for as long as something still breaks.
fn shrink(seed: u64, broken: String) -> Failure {
    let whole = Scenario::of(seed);
    let mut numbers: Vec<usize> = whole.faults.iter().map(|(number, _, _)| *number).collect();
    let mut broken = broken;
    let mut at = 0;
    while at < numbers.len() {
        let mut fewer = numbers.clone();
        fewer.remove(at);
        match run_scenario(whole.clone().keeping(&fewer)) {
            Ok(_) => at += 1,
            Err(still) => {
                broken = still;
                numbers = fewer;
            }
        }
    }
    Failure { seed, broken, faults: whole.keeping(&numbers).faults }
}
