//! A fleet file: pods that can be rented, and batches that want them, in TOML.

use serde::Deserialize;

/// What can be rented and what is to be done.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// For people; the simulator ignores it.
    #[serde(default)]
    pub name: String,
    pub pods: Vec<PodSpec>,
    #[serde(default)]
    pub batches: Vec<BatchSpec>,
    #[serde(default)]
    pub limits: LimitSpec,
}

/// Pods of one class.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    pub class: String,
    pub count: u32,
    pub price_usd_per_hour: f64,
    pub rate_tok_s: f64,
    /// Standard deviation of a pod's own speed around the class's, as a share.
    #[serde(default)]
    pub rate_spread: f64,
    /// Standard deviation of one tick's speed around the pod's own, as a share.
    #[serde(default)]
    pub rate_noise: f64,
    #[serde(default = "boot_s")]
    pub boot_s: f64,
    /// Losses without warning.
    #[serde(default)]
    pub loss_per_hour: f64,
    /// A lost pod's place is empty for so long.
    #[serde(default = "vacancy_s")]
    pub vacancy_s: f64,
    /// What a loss costs in time.
    #[serde(default = "restart_s")]
    pub restart_s: f64,
    /// Generated tokens between two checkpoints of one slot.
    #[serde(default = "checkpoint_tokens")]
    pub checkpoint_tokens: u32,
    #[serde(default = "slots")]
    pub slots: u32,
    /// Changes of the class's price for pods not yet rented.
    #[serde(default)]
    pub price_changes_per_hour: f64,
}

impl PodSpec {
    /// Pods of a class of which only price and speed are known.
    pub fn new(class: &str, count: u32, price_usd_per_hour: f64, rate_tok_s: f64) -> PodSpec {
        PodSpec {
            class: class.to_owned(),
            count,
            price_usd_per_hour,
            rate_tok_s,
            rate_spread: 0.0,
            rate_noise: 0.0,
            boot_s: boot_s(),
            loss_per_hour: 0.0,
            vacancy_s: vacancy_s(),
            restart_s: restart_s(),
            checkpoint_tokens: checkpoint_tokens(),
            slots: slots(),
            price_changes_per_hour: 0.0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSpec {
    pub name: String,
    pub tokens: f64,
    #[serde(default)]
    pub arrives_s: f64,
    /// Counted from the arrival.
    pub deadline_s: Option<f64>,
    pub budget_usd: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSpec {
    pub usd_per_hour: Option<f64>,
    pub pods_max: Option<usize>,
}

/// A fleet file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    #[error("the fleet file is invalid: {0}")]
    Syntax(String),
    #[error("the fleet file has {0}; correct it and try again")]
    Value(String),
}

fn boot_s() -> f64 {
    120.0
}

fn vacancy_s() -> f64 {
    900.0
}

fn restart_s() -> f64 {
    30.0
}

fn checkpoint_tokens() -> u32 {
    32
}

fn slots() -> u32 {
    16
}

/// More pods than this are not simulated.
const PODS_MAX: u64 = 100_000;
/// Classes are bits of a word.
const CLASSES_MAX: usize = 64;

impl Fleet {
    /// Reads and checks a fleet file; all faults of values are reported at once.
    pub fn parse(text: &str) -> Result<Fleet, FleetError> {
        let fleet: Fleet = toml::from_str(text).map_err(|fault| FleetError::Syntax(fault.to_string()))?;
        fleet.check()?;
        Ok(fleet)
    }

    pub fn check(&self) -> Result<(), FleetError> {
        let mut faults = Vec::new();
        let mut number = |what: &str, value: f64, least: f64| {
            if !(value.is_finite() && value >= least) {
                faults.push(format!("{what} = {value} (it must be a number of at least {least})"));
            }
        };
        for pod in &self.pods {
            number(&format!("{}.price_usd_per_hour", pod.class), pod.price_usd_per_hour, 0.0);
            number(&format!("{}.rate_tok_s", pod.class), pod.rate_tok_s, 1e-3);
            for (what, value) in [
                ("rate_spread", pod.rate_spread),
                ("rate_noise", pod.rate_noise),
                ("boot_s", pod.boot_s),
                ("loss_per_hour", pod.loss_per_hour),
                ("vacancy_s", pod.vacancy_s),
                ("restart_s", pod.restart_s),
                ("price_changes_per_hour", pod.price_changes_per_hour),
            ] {
                number(&format!("{}.{what}", pod.class), value, 0.0);
            }
        }
        for batch in &self.batches {
            number(&format!("{}.tokens", batch.name), batch.tokens, 0.0);
            number(&format!("{}.arrives_s", batch.name), batch.arrives_s, 0.0);
            number(&format!("{}.deadline_s", batch.name), batch.deadline_s.unwrap_or(0.0), 0.0);
            number(&format!("{}.budget_usd", batch.name), batch.budget_usd.unwrap_or(0.0), 0.0);
        }
        if self.pods.iter().map(|pod| u64::from(pod.count)).sum::<u64>() > PODS_MAX {
            faults.push(format!("more than {PODS_MAX} pods"));
        }
        if self.pods.len() > CLASSES_MAX {
            faults.push(format!("more than {CLASSES_MAX} classes"));
        }
        for (kind, names) in [
            ("pod classes", self.pods.iter().map(|pod| &pod.class).collect::<Vec<_>>()),
            ("batches", self.batches.iter().map(|batch| &batch.name).collect()),
        ] {
            let mut sorted = names.clone();
            sorted.sort_unstable();
            sorted.dedup();
            if sorted.len() != names.len() {
                faults.push(format!("two {kind} of one name"));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(FleetError::Value(faults.join("; "))) }
    }
}
