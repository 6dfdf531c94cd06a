//! The API's objects, as far as they are used. Unknown fields and unknown words in answers are tolerated, since the
//! provider adds some; a request holds only fields that the provider documents.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::provider::{
    Availability, Bill, CloudError, Compute, Hardware, Mount, Offer, Order, Place, PodId, PublicPort, Rented,
    Status, Tier,
};
use crate::time::from_rfc3339;

/// Request of `POST /v2/pods`. Exactly one of `gpu` and `cpu`.
#[derive(Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateBody {
    pub name: String,
    pub image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud: Option<CloudTier>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data_center_ids: Vec<String>,
    pub disk: u32,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// The older way to say what runs: one line, split as a shell splits it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<MountsBody>,
}

impl std::fmt::Debug for CreateBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateBody").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuBody {
    pub id: String,
    pub count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_vcpu_count_per_gpu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ram_per_gpu: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuBody {
    pub id: String,
    pub vcpu_count: u32,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MountsBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<PersistentMount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<NetworkMount>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PersistentMount {
    pub size: u32,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkMount {
    pub volume_id: String,
    pub path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CloudTier {
    Secure,
    Community,
}

/// Request of `POST /v2/pods/{id}/action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ActionBody {
    pub action: ActionKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ActionKind {
    Start,
    Stop,
    Restart,
    Terminate,
}

impl CreateBody {
    pub fn of(order: &Order) -> CreateBody {
        let (gpu, cpu, cloud) = match &order.compute {
            Compute::Gpu { id, count, vcpus_min, memory_gb_min } => {
                let gpu = GpuBody {
                    id: id.clone(),
                    count: *count,
                    min_vcpu_count_per_gpu: *vcpus_min,
                    min_ram_per_gpu: *memory_gb_min,
                };
                let cloud = match order.tier {
                    Tier::Secure => CloudTier::Secure,
                    Tier::Community => CloudTier::Community,
                };
                (Some(gpu), None, Some(cloud))
            }
            // CPU pods are of the secure cloud, which is the default.
            Compute::Cpu { id, vcpus } => (None, Some(CpuBody { id: id.clone(), vcpu_count: *vcpus }), None),
        };
        let mounts = order.mount.as_ref().map(|mount| match mount {
            Mount::Network { volume, path } => MountsBody {
                persistent: None,
                network: vec![NetworkMount { volume_id: volume.clone(), path: path.clone() }],
            },
            Mount::Persistent { gb, path } => MountsBody {
                persistent: Some(PersistentMount { size: *gb, path: path.clone() }),
                network: Vec::new(),
            },
        });
        CreateBody {
            name: order.name.clone(),
            image: order.image.clone(),
            gpu,
            cpu,
            cloud,
            data_center_ids: order.data_centers.clone(),
            disk: order.disk_gb,
            env: order.env.iter().cloned().collect(),
            entrypoint: order.entrypoint.clone(),
            cmd: order.command.clone(),
            args: None,
            registry: order.registry.clone(),
            ports: order.ports.clone(),
            mounts,
        }
    }

    /// The same order for a server that does not know `entrypoint` and `cmd` yet: an image without an entry point of its
    /// own runs what `args` says. `None` when there is nothing to say.
    pub fn with_args(mut self) -> Option<CreateBody> {
        let words: Vec<String> = self.entrypoint.drain(..).chain(self.cmd.drain(..)).collect();
        self.args = Some(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
        (!words.is_empty()).then_some(self)
    }
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// An RFC 9457 problem.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ErrorBody {
    pub title: String,
    pub detail: String,
    pub errors: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum PodStatus {
    Provisioning,
    Starting,
    Running,
    Exited,
    Error,
    Terminated,
    Other(String),
}

impl From<String> for PodStatus {
    fn from(word: String) -> Self {
        match word.as_str() {
            "PROVISIONING" => PodStatus::Provisioning,
            "STARTING" => PodStatus::Starting,
            "RUNNING" => PodStatus::Running,
            "EXITED" => PodStatus::Exited,
            "ERROR" => PodStatus::Error,
            "TERMINATED" => PodStatus::Terminated,
            _ => PodStatus::Other(word),
        }
    }
}

/// A pod, as far as it is used.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodBody {
    pub id: String,
    pub name: String,
    pub status: PodStatus,
    #[serde(default)]
    pub gpu: Option<ComputeBody>,
    #[serde(default)]
    pub cpu: Option<ComputeBody>,
    #[serde(default)]
    pub data_center_id: Option<String>,
    /// USD per hour; 0 once it has exited.
    #[serde(default)]
    pub cost: f64,
    #[serde(default)]
    pub created_at: Option<String>,
    #[serde(default)]
    pub started_at: Option<String>,
    /// Null until the pod runs.
    #[serde(default)]
    pub runtime: Option<PodRuntimeBody>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct PodRuntimeBody {
    #[serde(default)]
    pub ports: Option<Vec<RuntimePortBody>>,
}

/// `public` and `ip` are null for a while.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RuntimePortBody {
    #[serde(default)]
    pub private: Option<u16>,
    #[serde(default)]
    pub public: Option<u16>,
    #[serde(default)]
    pub ip: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComputeBody {
    pub id: String,
    #[serde(default)]
    pub vcpu_count: Option<u32>,
    #[serde(default)]
    pub memory: Option<u32>,
}

impl PodBody {
    pub fn rented(self) -> Rented {
        let compute = self.gpu.or(self.cpu);
        let port = |port: RuntimePortBody| {
            Some(PublicPort { private: port.private?, public: port.public?, ip: port.ip? })
        };
        let ports = self.runtime.and_then(|runtime| runtime.ports).unwrap_or_default();
        Rented {
            id: PodId(self.id),
            name: self.name,
            status: match self.status {
                PodStatus::Provisioning => Status::Provisioning,
                PodStatus::Starting => Status::Starting,
                PodStatus::Running => Status::Running,
                PodStatus::Exited => Status::Exited,
                PodStatus::Error => Status::Error,
                PodStatus::Terminated => Status::Terminated,
                PodStatus::Other(word) => Status::Other(word),
            },
            price_usd_micro_per_hour: (self.cost > 0.0).then(|| usd_micro(self.cost)),
            data_center: self.data_center_id,
            vcpus: compute.as_ref().and_then(|compute| compute.vcpu_count),
            memory_gb: compute.as_ref().and_then(|compute| compute.memory),
            created_at_ms: self.created_at.as_deref().and_then(from_rfc3339),
            started_at_ms: self.started_at.as_deref().and_then(from_rfc3339),
            ports: ports.into_iter().filter_map(port).collect(),
        }
    }
}

/// A page of pods. Where a cursor is in it is not documented, so all usual places are looked at.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ListPods {
    pub pods: Vec<PodBody>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

impl ListPods {
    /// The cursor to the next page, when there is one.
    pub fn cursor(&self) -> Option<String> {
        let names = ["nextCursor", "next_cursor", "cursor", "next", "nextPageToken", "endCursor"];
        let inside = ["pagination", "page", "pageInfo", "meta", "metadata"];
        let nested = inside.iter().filter_map(|name| self.rest.get(*name)?.as_object());
        std::iter::once(&self.rest)
            .chain(nested)
            .find_map(|object| names.iter().find_map(|name| object.get(*name)?.as_str()))
            .filter(|cursor| !cursor.is_empty())
            .map(str::to_owned)
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ListGpus {
    pub gpus: Vec<GpuType>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuType {
    pub id: String,
    #[serde(default)]
    pub secure: bool,
    #[serde(default)]
    pub community: bool,
    pub price: GpuPrice,
    #[serde(default)]
    pub max_count: GpuCounts,
    #[serde(default)]
    pub availability: Option<Level>,
    #[serde(default)]
    pub data_centers: Vec<CenterBody>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct GpuPrice {
    pub secure: f64,
    pub community: f64,
}

/// The largest number of GPUs in one pod.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct GpuCounts {
    pub secure: u32,
    pub community: u32,
}

impl Default for GpuCounts {
    fn default() -> Self {
        Self { secure: 8, community: 8 }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct CenterBody {
    pub id: String,
    #[serde(default)]
    pub availability: Option<Level>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Level {
    None,
    Low,
    Medium,
    High,
    Other(String),
}

impl From<String> for Level {
    fn from(word: String) -> Self {
        match word.as_str() {
            "NONE" => Level::None,
            "LOW" => Level::Low,
            "MEDIUM" => Level::Medium,
            "HIGH" => Level::High,
            _ => Level::Other(word),
        }
    }
}

impl GpuType {
    /// `None` when the tier does not have it.
    pub fn offer(self, tier: Tier) -> Option<Offer> {
        let (there, price, count_max) = match tier {
            Tier::Secure => (self.secure, self.price.secure, self.max_count.secure),
            Tier::Community => (self.community, self.price.community, self.max_count.community),
        };
        (there && price > 0.0).then(|| Offer {
            hardware: Hardware::Gpu { id: self.id, count_max },
            tier,
            unit_price_usd_micro_per_hour: usd_micro(price),
            availability: availability(self.availability.as_ref()),
            places: places(self.data_centers),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ListCpus {
    pub cpus: Vec<CpuType>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuType {
    pub id: String,
    pub vcpu: VcpuRange,
    pub price: CpuPrice,
    #[serde(default)]
    pub availability: Option<Level>,
    #[serde(default)]
    pub data_centers: Vec<CenterBody>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct VcpuRange {
    pub min: u32,
    pub max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuPrice {
    pub secure_per_vcpu: f64,
}

impl CpuType {
    pub fn offer(self) -> Offer {
        Offer {
            hardware: Hardware::Cpu { id: self.id, vcpus_min: self.vcpu.min, vcpus_max: self.vcpu.max },
            tier: Tier::Secure,
            unit_price_usd_micro_per_hour: usd_micro(self.price.secure_per_vcpu),
            availability: availability(self.availability.as_ref()),
            places: places(self.data_centers),
        }
    }
}

/// One event of a pod's log.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct LogLine {
    #[serde(default)]
    pub source: String,
    pub line: String,
}

/// The lines of a stream of server-sent events, those of the host marked as such. What is no log line is left out.
pub(super) fn log_lines(stream: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stream);
    let events = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let told = events.filter_map(|data| serde_json::from_str::<LogLine>(data.trim()).ok());
    told.map(|told| {
        let line = told.line.trim_end();
        if told.source == "system" { format!("[host] {line}") } else { line.to_owned() }
    })
    .collect()
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ListPodBilling {
    pub records: Vec<PodBillingRecord>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodBillingRecord {
    pub pod_id: String,
    pub start_time: String,
    pub end_time: String,
    pub total_amount: f64,
}

impl PodBillingRecord {
    pub fn bill(self) -> Result<Bill, CloudError> {
        let time = |text: &str| {
            from_rfc3339(text)
                .ok_or_else(|| CloudError::Protocol(format!("{text:?} in the bill is not a time")))
        };
        Ok(Bill {
            from_ms: time(&self.start_time)?,
            to_ms: time(&self.end_time)?,
            pod: PodId(self.pod_id),
            amount_usd_micro: usd_micro(self.total_amount),
        })
    }
}

fn availability(level: Option<&Level>) -> Availability {
    match level {
        Some(Level::None) => Availability::None,
        Some(Level::Low) => Availability::Low,
        Some(Level::Medium) => Availability::Medium,
        Some(Level::High) => Availability::High,
        Some(Level::Other(_)) | None => Availability::Unknown,
    }
}

fn places(centers: Vec<CenterBody>) -> Vec<Place> {
    let place = |center: CenterBody| Place {
        availability: availability(center.availability.as_ref()),
        data_center: center.id,
    };
    centers.into_iter().map(place).collect()
}

fn usd_micro(dollars: f64) -> i64 {
    (dollars * 1e6).round() as i64
}
