//! Renting: which provider, within which limits. Which classes of pods there are, and how a pod is brought up, is in
//! [`order`].

mod order;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use order::{ClassEngine, ClassOptions, PodOptions, VolumeOptions, resolved};

/// Where pods come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// Nothing is rented: workers are somebody else's business.
    #[default]
    None,
    /// Worker processes on the coordinator's machine.
    Local,
    Runpod,
}

/// The settings (`pods_min` to `idle_limit_s`) hold until `ternfleet scale set` changes them; what it set is kept by the
/// fleet and wins over these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScaleOptions {
    pub provider: ProviderKind,
    /// Begins the name of every rented pod. Pods of the account with other names are never touched.
    pub fleet: String,
    /// Names of pods are numbered from here, where no number is stored: a fleet that has lost its store repeats none.
    pub first_number: u64,
    pub pods_min: u32,
    pub pods_max: u32,
    /// Prices of all rented pods together; 0 is no limit.
    pub usd_per_hour_max: f64,
    /// Spent between two midnights, UTC; 0 is no limit.
    pub usd_per_day_max: f64,
    /// A pod without work is given back after so long.
    pub idle_limit_s: f64,
    /// A pod that hears of no coordinator for so long ends itself: what each may cost unattended.
    pub lease_s: f64,
    /// From the order to the first heartbeat.
    pub ready_limit_s: f64,
    /// Between two heartbeats.
    pub silence_limit_s: f64,
    /// From the written intent to the provider's list.
    pub order_limit_s: f64,
    /// A worker that was told to drain is ended after so long.
    pub drain_limit_s: f64,
    /// A place without room is tried again after so long.
    pub refusal_s: f64,
    /// A deadline may be missed with this probability.
    pub epsilon: f64,
    /// The fleet is looked at, and planned for, this often.
    pub tick_ms: u64,
    /// The bill is compared with the provider's this often; 0 never.
    pub reconcile_s: u64,
    pub classes: Vec<ClassOptions>,
    pub pod: PodOptions,
    pub local: LocalOptions,
    pub runpod: RunpodOptions,
}

impl Default for ScaleOptions {
    fn default() -> Self {
        Self {
            provider: ProviderKind::None,
            fleet: "ternfleet".to_owned(),
            first_number: 0,
            pods_min: 0,
            pods_max: 8,
            usd_per_hour_max: 0.0,
            usd_per_day_max: 0.0,
            idle_limit_s: 60.0,
            lease_s: 300.0,
            ready_limit_s: 900.0,
            silence_limit_s: 45.0,
            order_limit_s: 600.0,
            drain_limit_s: 10.0,
            refusal_s: 600.0,
            epsilon: 0.05,
            tick_ms: 5_000,
            reconcile_s: 3_600,
            classes: Vec::new(),
            pod: PodOptions::default(),
            local: LocalOptions::default(),
            runpod: RunpodOptions::default(),
        }
    }
}

/// Worker processes on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalOptions {
    pub program: PathBuf,
    /// `{name}`, `{class}`, `{price}`, `{threads}` and `{cpus}` are filled in.
    pub arguments: Vec<String>,
    /// Holds a small file for each pod, and the pods' output.
    pub folder: PathBuf,
    /// Sets of CPUs, as `0,1`; each pod takes one that no other has.
    pub cpus: Vec<String>,
    /// From the polite signal to the hard one.
    pub grace_ms: u64,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            program: PathBuf::new(),
            arguments: Vec::new(),
            folder: PathBuf::from("ternfleet-pods"),
            cpus: Vec::new(),
            grace_ms: 4_500,
        }
    }
}

/// RunPod's API. The key comes from `key_file` or from the variable `RUNPOD_API_KEY`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunpodOptions {
    /// Another address than RunPod's own, for a mock.
    pub base: Option<String>,
    pub key_file: Option<PathBuf>,
    /// Of one request.
    pub timeout_s: u64,
    /// After a creation without an answer, wait so long before its name is looked for.
    pub settle_ms: u64,
}

impl Default for RunpodOptions {
    fn default() -> Self {
        Self { base: None, key_file: None, timeout_s: 30, settle_ms: 5_000 }
    }
}

impl ScaleOptions {
    /// The models of the classes whose engine is ours and can do everything; `None` for a class that may serve any.
    pub(crate) fn able_classes(&self) -> Vec<Option<String>> {
        if self.provider == ProviderKind::None {
            return Vec::new();
        }
        let ours = self.classes.iter().filter(|class| class.engine == ClassEngine::Ternfleet);
        ours.map(|class| class.model(&self.pod).map(str::to_owned)).collect()
    }

    /// Every fault at once.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.provider == ProviderKind::None {
            return faults;
        }
        let plain = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        if !plain(&self.fleet) {
            faults.push(format!("scale.fleet {:?}: use letters, digits, - and _", self.fleet));
        }
        if self.classes.is_empty() {
            faults.push("scale.classes is empty: add at least one class of pods".to_owned());
        }
        for class in &self.classes {
            let name = &class.name;
            if !plain(name) || self.fleet.len() + name.len() > 40 {
                faults.push(format!(
                    "scale.classes: the name {name:?} must be short and contain only letters, digits, - and _"
                ));
            }
            if !(class.rate_tok_s > 0.0 && class.price_usd_per_hour >= 0.0 && class.boot_s >= 0.0) {
                faults.push(format!(
                    "scale.classes {name:?}: rate_tok_s must be positive, and price and boot must not be \
                     negative"
                ));
            }
            if self.provider == ProviderKind::Runpod {
                faults.extend(
                    class
                        .order_faults(&self.pod)
                        .into_iter()
                        .map(|fault| format!("scale.classes {name:?}: {fault}")),
                );
            }
        }
        if self.provider == ProviderKind::Runpod {
            faults.extend(self.pod.faults().into_iter().map(|fault| format!("scale.pod.{fault}")));
        }
        if self.pods_min > self.pods_max {
            faults.push(format!("scale.pods_min {} is above pods_max {}", self.pods_min, self.pods_max));
        }
        if self.provider == ProviderKind::Local && self.local.program.as_os_str().is_empty() {
            faults.push(
                "scale.local.program is missing: set it to the program that runs the \
                         worker"
                    .to_owned(),
            );
        }
        if self.tick_ms < 100 || self.lease_s < 10.0 {
            faults.push("scale.tick_ms must be at least 100 and scale.lease_s at least 10".to_owned());
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_renting_at_runpod_can_be_used() {
        #[derive(Deserialize)]
        struct File {
            scale: ScaleOptions,
        }
        let [cpus, servers, cards] = [
            include_str!("../../../deploy/fleets/runpod.toml"),
            include_str!("../../../deploy/fleets/vllm.toml"),
            include_str!("../../../deploy/fleets/gpu.toml"),
        ];
        for (text, able) in [(cpus, 3), (servers, 1), (cards, 3)] {
            let file: File = toml::from_str(text).unwrap();
            assert_eq!(file.scale.faults(), [""; 0]);
            assert_eq!((file.scale.classes.len(), file.scale.able_classes().len()), (3, able));
        }
    }

    #[test]
    fn every_fault_is_told_at_once_and_a_fleet_that_rents_nothing_has_none() {
        assert!(ScaleOptions::default().faults().is_empty());
        let wrong = ScaleOptions {
            provider: ProviderKind::Runpod,
            fleet: "a b".to_owned(),
            pods_min: 9,
            classes: vec![ClassOptions { name: "c".to_owned(), rate_tok_s: 1.0, ..ClassOptions::default() }],
            ..ScaleOptions::default()
        };
        assert_eq!(wrong.faults().len(), 5, "{:?}", wrong.faults());
    }
}
