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

/// A kind of pod that can be rented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub compute: Compute,
    pub tier: Tier,
    pub price_usd_micro_per_hour: i64,
    pub availability: Availability,
    /// Where it is offered; empty when the provider does not say.
    pub places: Vec<Place>,
}

/// A pod to be rented. The intent is written down by the caller *before*, under `name`.
#[derive(Clone, PartialEq, Eq)]
pub struct Order {
    /// Unique for ever: by it a pod is found again whose creation was not answered.
    pub name: String,
    pub compute: Compute,
    pub tier: Tier,
    /// A preference, most wanted first; empty leaves it to the provider.
    pub data_centers: Vec<String>,
    pub image: String,
    pub disk_gb: u32,
    /// Values may be secrets and are never shown.
    pub env: Vec<(String, String)>,
    /// Replaces the image's command when not empty.
    pub command: Vec<String>,
    /// A network volume and where it is mounted.
    pub volume: Option<(String, String)>,
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
            .field("volume", &self.volume)
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
    #[error("the provider refuses the request: {0}")]
    Invalid(String),
    /// Stop everything: the key is missing or wrong.
    #[error("the provider does not accept the key: {0}")]
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
    #[error("the provider refuses for now: {0}")]
    Conflict(String),
    /// The provider cannot be reached or answers with its own failure; nothing was changed.
    #[error("the provider does not answer: {0}")]
    Unreachable(String),
    /// The answer is not what the provider's documents say.
    #[error("the provider's answer is not understood: {0}")]
    Protocol(String),
}

/// A provider of pods.
#[async_trait]
pub trait Provider: Send + Sync {
    /// As it stands in configuration and metrics.
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

    /// What was billed in a span of time, milliseconds since 1970.
    async fn billing(&self, from_ms: u64, to_ms: u64) -> Result<Vec<Bill>, CloudError>;
}
