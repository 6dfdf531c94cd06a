//! The trait, and what is said across it.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

/// A provider's own id of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub String);

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    Secure,
    Community,
}

/// How likely a creation succeeds. Not a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Availability {
    None,
    Unknown,
    Low,
    Medium,
    High,
}

/// What computes in a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compute {
    Gpu {
        id: String,
        count: u32,
        /// The least number of vCPUs a GPU; `None` takes what comes.
        vcpus_min: Option<u32>,
        memory_gb_min: Option<u32>,
    },
    Cpu {
        id: String,
        vcpus: u32,
    },
}

/// A data centre and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub data_center: String,
    pub availability: Availability,
}

/// What a provider sells by the unit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hardware {
    /// A unit is one GPU.
    Gpu { id: String, count_max: u32 },
    /// A unit is one vCPU.
    Cpu { id: String, vcpus_min: u32, vcpus_max: u32 },
    /// A unit is the whole pod.
    Whole { id: String },
}

/// A kind of pod that can be rented. Its price is that of one unit: what a pod costs follows from the size that is
/// ordered, by [`Offer::price_of`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub hardware: Hardware,
    pub tier: Tier,
    pub unit_price_usd_micro_per_hour: i64,
    pub availability: Availability,
    /// Where it is offered; empty when the provider does not say.
    pub places: Vec<Place>,
}

impl Offer {
    /// Is this the hardware that `wanted` names, in this tier, whatever the size?
    pub fn is_of(&self, wanted: &Compute, tier: Tier) -> bool {
        self.tier == tier
            && match (&self.hardware, wanted) {
                (Hardware::Gpu { id, .. }, Compute::Gpu { id: wanted, .. })
                | (Hardware::Cpu { id, .. } | Hardware::Whole { id }, Compute::Cpu { id: wanted, .. }) => {
                    id == wanted
                }
                _ => false,
            }
    }

    /// What an hour of `wanted` costs, in micro-dollars: the unit price times the size ordered.
    ///
    /// # Errors
    /// When the size is not for sale; the text says which sizes are.
    pub fn price_of(&self, wanted: &Compute) -> Result<i64, String> {
        let units = match (&self.hardware, wanted) {
            (Hardware::Gpu { count_max, .. }, Compute::Gpu { count, .. }) => {
                if *count == 0 || count > count_max {
                    return Err(format!("{count} GPUs were ordered, but a pod has 1 to {count_max}"));
                }
                *count
            }
            (Hardware::Cpu { vcpus_min, vcpus_max, .. }, Compute::Cpu { vcpus, .. }) => {
                if !(vcpus_min..=vcpus_max).contains(&vcpus) || !vcpus.is_power_of_two() {
                    return Err(format!(
                        "{vcpus} vCPUs were ordered, but a pod has a power of two from {vcpus_min} to \
                         {vcpus_max}"
                    ));
                }
                *vcpus
            }
            (Hardware::Whole { .. }, Compute::Cpu { .. }) => 1,
            _ => return Err("this is different hardware".to_owned()),
        };
        Ok(self.unit_price_usd_micro_per_hour.saturating_mul(i64::from(units)))
    }
}

/// Storage mounted into a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A network volume of the provider's, in the pod's own data centre.
    Network { volume: String, path: String },
    /// On the pod's host, gone with it.
    Persistent { gb: u32, path: String },
}

/// A port of a pod that can be reached from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicPort {
    /// Inside the pod.
    pub private: u16,
    pub public: u16,
    pub ip: String,
}

/// A pod to be rented. The intent is written down by the caller *before*, under `name`.
#[derive(Clone, PartialEq, Eq)]
pub struct Order {
    /// Unique forever: by it a pod is found again whose creation was not answered.
    pub name: String,
    pub compute: Compute,
    pub tier: Tier,
    /// A preference, most wanted first; empty leaves it to the provider.
    pub data_centers: Vec<String>,
    pub image: String,
    pub disk_gb: u32,
    /// Values may be secrets and are never shown.
    pub env: Vec<(String, String)>,
    /// Replaces the image's entry point when not empty.
    pub entrypoint: Vec<String>,
    /// Replaces the image's command when not empty.
    pub command: Vec<String>,
    /// A credential of the provider's for a private registry.
    pub registry: Option<String>,
    /// Ports to be reached from elsewhere: `4222/tcp`, `8080/http`.
    pub ports: Vec<String>,
    pub mount: Option<Mount>,
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Order")
            .field("name", &self.name)
            .field("compute", &self.compute)
            .field("tier", &self.tier)
            .field("data_centers", &self.data_centers)
            .field("image", &self.image)
            .field("disk_gb", &self.disk_gb)
            .field("env (values hidden)", &names)
            .field("mount", &self.mount)
            .finish_non_exhaustive()
    }
}

/// Where a rented pod stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Provisioning,
    Starting,
    Running,
    /// Stopped: computes no more, may still pay for its disk.
    Exited,
    Error,
    /// Gone for good.
    Terminated,
    /// A word that this version does not know; counted as alive and paid for.
    Other(String),
}

impl Status {
    /// May still cost money.
    pub fn is_alive(&self) -> bool {
        !matches!(self, Status::Terminated)
    }
}

/// A pod that is rented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rented {
    pub id: PodId,
    pub name: String,
    pub status: Status,
    /// `None` while the provider reports nothing (a stopped pod): keep the price that was known.
    pub price_usd_micro_per_hour: Option<i64>,
    /// Where it landed; a preference may not have been met.
    pub data_center: Option<String>,
    pub vcpus: Option<u32>,
    pub memory_gb: Option<u32>,
    /// Milliseconds since 1970.
    pub created_at_ms: Option<u64>,
    pub started_at_ms: Option<u64>,
    /// Those whose public side is known yet.
    pub ports: Vec<PublicPort>,
}

/// What the provider billed for a pod in a span of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    pub pod: PodId,
    pub from_ms: u64,
    pub to_ms: u64,
    pub amount_usd_micro: i64,
}

/// What went wrong, by what the caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// Try the next candidate. The provider does not tell a broken rule from missing capacity: if every candidate
    /// ends like this, the order itself is at fault.
    #[error("the provider cannot place this pod: {0}")]
    NoCapacity(String),
    /// Stop everything: no candidate will succeed.
    #[error("the provider's account has no balance: {0}")]
    NoBalance(String),
    /// Skip this candidate.
    #[error("the provider does not allow this: {0}")]
    Forbidden(String),
    /// Never try this again: the request itself is wrong.
    #[error("the provider rejects the request: {0}")]
    Invalid(String),
    /// Stop everything: the key is missing or wrong.
    #[error("the provider rejects the key: {0}")]
    Unauthorized(String),
    /// Come back later.
    #[error("the provider asks to wait {} s", retry_after.as_secs())]
    RateLimited { retry_after: Duration },
    /// It may or may not have happened. Look for the pod by its name; until that succeeds, order nothing in its
    /// place.
    #[error("it is not known whether the provider did it: {0}")]
    Uncertain(String),
    /// The pod is not there (any more).
    #[error("{0} does not exist")]
    NotFound(String),
    /// Not possible in the pod's present state.
    #[error("the provider rejects the request for now: {0}")]
    Conflict(String),
    /// The provider cannot be reached or answers with its own failure; nothing was changed.
    #[error("the provider does not reply: {0}")]
    Unreachable(String),
    /// The answer is not what the provider's documents say.
    #[error("the provider's reply cannot be parsed: {0}")]
    Protocol(String),
}

/// A provider of pods.
#[async_trait]
pub trait Provider: Send + Sync {
    /// As it is in configuration and metrics.
    fn name(&self) -> &'static str;

    /// What can be rented now, with prices.
    async fn offers(&self) -> Result<Vec<Offer>, CloudError>;

    /// Rents one pod, or finds the one that an earlier call of the same name rented. Never rents twice under one
    /// name, whatever answers are lost.
    async fn create(&self, order: &Order) -> Result<Rented, CloudError>;

    /// Every pod of the account, whole: a list that could not be read to its end is an error.
    async fn list(&self) -> Result<Vec<Rented>, CloudError>;

    /// Ends a pod for good. A pod that is not there counts as ended.
    async fn terminate(&self, pod: &PodId) -> Result<(), CloudError>;

    /// The last lines that a pod has written, oldest first, `lines` at most. Of a pod that is gone there are none.
    async fn log_tail(&self, pod: &PodId, lines: usize) -> Result<Vec<String>, CloudError>;

    /// What was billed in a span of time, milliseconds since 1970.
    async fn billing(&self, from_ms: u64, to_ms: u64) -> Result<Vec<Bill>, CloudError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(hardware: Hardware, unit: i64) -> Offer {
        let (tier, availability, places) = (Tier::Secure, Availability::High, Vec::new());
        Offer { hardware, tier, unit_price_usd_micro_per_hour: unit, availability, places }
    }

    #[test]
    fn a_pod_costs_the_unit_price_times_the_size_ordered() {
        let cpu = offer(Hardware::Cpu { id: "cpu5c".to_owned(), vcpus_min: 2, vcpus_max: 32 }, 40_000);
        let vcpus = |vcpus| Compute::Cpu { id: "cpu5c".to_owned(), vcpus };
        assert_eq!(cpu.price_of(&vcpus(16)), Ok(640_000));
        assert_eq!(cpu.price_of(&vcpus(2)), Ok(80_000));
        assert!(cpu.price_of(&vcpus(64)).unwrap_err().contains("from 2 to 32"));
        assert!(cpu.price_of(&vcpus(12)).unwrap_err().contains("power of two"));
        let gpu = offer(Hardware::Gpu { id: "B200".to_owned(), count_max: 8 }, 5_980_000);
        let gpus =
            |count| Compute::Gpu { id: "B200".to_owned(), count, vcpus_min: None, memory_gb_min: None };
        assert_eq!(gpu.price_of(&gpus(3)), Ok(17_940_000));
        assert!(gpu.price_of(&gpus(9)).is_err());
        assert!(gpu.is_of(&gpus(9), Tier::Secure) && !gpu.is_of(&gpus(1), Tier::Community));
    }
}
