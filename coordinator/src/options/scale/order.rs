//! What an order needs: the class of pod, and how a pod is brought up. Each field is checked here as far as the provider's
//! published text tells, so that no order goes out that can only be refused.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use ternfleet_cloud::{Compute, Tier};
use ternfleet_text::Manifest;

/// The provider takes no more variables; some are ours.
const ENV_MAX: usize = 50 - 20;
/// Besides the model: the program, logs, and what the system writes.
const SPARE_GB: u64 = 5;
/// For a model whose size nobody has told.
const DISK_GB: u32 = 20;
const PERSISTENT_GB_MIN: u32 = 10;

/// What computes in the pods of a class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassEngine {
    /// Our own, on the CPU.
    #[default]
    Ternfleet,
    /// A server with OpenAI's API, which the pod starts by `command`.
    Openai,
}

/// A class of pods that may be rented. `gpu` or `cpu` names the provider's hardware; `local` needs neither.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassOptions {
    pub name: String,
    /// Until the provider tells its own.
    pub price_usd_per_hour: f64,
    /// Expected until a pod of the class is measured …
    pub rate_tok_s: f64,
    /// … give or take this share.
    pub rate_spread: f64,
    /// From the order to the first token, until it is measured.
    pub boot_s: f64,
    /// Losses without warning.
    pub loss_per_hour: f64,
    pub pods_max: u32,
    /// Where pods may be, spread over all of them; empty leaves it to the provider.
    pub data_centers: Vec<String>,
    pub gpu: Option<String>,
    pub gpu_count: u32,
    pub vcpus_per_gpu_min: Option<u32>,
    pub memory_gb_per_gpu_min: Option<u32>,
    pub cpu: Option<String>,
    pub vcpus: u32,
    /// The provider's cheaper cloud, where it has one. It has no network volumes.
    pub community: bool,
    /// What its pods serve, in place of the model of `scale.pod`. Only batches of this model count on the class. With
    /// neither named, what its first pod serves is taken for all.
    pub model: Option<String>,
    pub engine: ClassEngine,
    /// Starts the server of an `openai` class. It must listen on port 8000 of the pod itself.
    pub command: Option<String>,
    /// In place of the image of `scale.pod`.
    pub image: Option<String>,
    /// In place of the disk of `scale.pod`.
    pub disk_gb: Option<u32>,
    /// Network volumes of this class, before those of `scale.pod`.
    pub volumes: Vec<VolumeOptions>,
    /// Storage on the pod's own host, at `scale.pod.mount_path`; GPU pods only, at least 10.
    pub persistent_gb: Option<u32>,
    /// Laid over `scale.pod.env`.
    pub env: BTreeMap<String, String>,
    /// Of a local pod.
    pub threads: u32,
}

impl Default for ClassOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            price_usd_per_hour: 0.0,
            rate_tok_s: 0.0,
            rate_spread: 0.2,
            boot_s: 120.0,
            loss_per_hour: 0.05,
            pods_max: 8,
            data_centers: Vec::new(),
            gpu: None,
            gpu_count: 1,
            vcpus_per_gpu_min: None,
            memory_gb_per_gpu_min: None,
            cpu: None,
            vcpus: 16,
            community: false,
            model: None,
            engine: ClassEngine::Ternfleet,
            command: None,
            image: None,
            disk_gb: None,
            volumes: Vec::new(),
            persistent_gb: None,
            env: BTreeMap::new(),
            threads: 1,
        }
    }
}

/// A network volume. It can be mounted in its own data centre alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeOptions {
    pub data_center: String,
    pub id: String,
}

/// How a rented pod is brought up.
///
/// Without an image a stock one is taken, which fetches this program from `binary_url`, or from the coordinator at
/// `dist_url`, and runs `ternfleet pod`. The environment gets, besides `env`: name, class, price, lease, how to end itself,
/// the model, where to get the program, and a join token made for this one order (when the coordinator has `issuer_file`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodOptions {
    /// Empty takes a stock image.
    pub image: String,
    /// A name of `ternfleet model list`, which tells where the file is and what its digest is.
    pub model: String,
    /// A file to fetch in place of the model's own address; any model's, with `model_sha256`.
    pub model_url: Option<String>,
    pub model_sha256: Option<String>,
    /// Manifest of a model that `model list` does not know.
    pub manifest_url: Option<String>,
    /// Container disk; 0 takes what the model needs.
    pub disk_gb: u32,
    /// Values that begin with `env:` or `file:` are read from the coordinator's environment or from a file when a pod
    /// is ordered, so that no secret is here.
    pub env: BTreeMap<String, String>,
    /// Replaces the image's entry point when not empty.
    pub entrypoint: Vec<String>,
    /// Replaces the image's command when not empty.
    pub cmd: Vec<String>,
    /// The provider's credential for the image's private registry.
    pub registry: Option<String>,
    /// `8080/http`, `4222/tcp`.
    pub ports: Vec<String>,
    /// Network volumes that may hold the model, one a data centre.
    pub volumes: Vec<VolumeOptions>,
    /// Where a volume is mounted.
    pub mount_path: String,
    /// This program's static binary, for a stock image.
    pub binary_url: Option<String>,
    pub binary_sha256: Option<String>,
    /// The coordinator's own address as pods reach it (`https://…`): it gives them its own binary and what is in
    /// `dist_dir`.
    pub dist_url: Option<String>,
}

impl Default for PodOptions {
    fn default() -> Self {
        Self {
            image: String::new(),
            model: String::new(),
            model_url: None,
            model_sha256: None,
            manifest_url: None,
            disk_gb: 0,
            env: BTreeMap::new(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            registry: None,
            ports: Vec::new(),
            volumes: Vec::new(),
            mount_path: "/models".to_owned(),
            binary_url: None,
            binary_sha256: None,
            dist_url: None,
        }
    }
}

impl ClassOptions {
    /// What is ordered of the provider's hardware.
    pub fn compute(&self) -> Compute {
        match (&self.gpu, &self.cpu) {
            (Some(id), _) => Compute::Gpu {
                id: id.clone(),
                count: self.gpu_count,
                vcpus_min: self.vcpus_per_gpu_min,
                memory_gb_min: self.memory_gb_per_gpu_min,
            },
            (None, Some(id)) => Compute::Cpu { id: id.clone(), vcpus: self.vcpus },
            (None, None) => Compute::Cpu { id: self.name.clone(), vcpus: self.threads },
        }
    }

    /// The model that its pods serve, if that is known before one runs.
    pub fn model<'a>(&'a self, pod: &'a PodOptions) -> Option<&'a str> {
        self.model.as_deref().or(Some(pod.model.as_str())).filter(|model| !model.is_empty())
    }

    /// Whose hardware.
    pub fn tier(&self) -> Tier {
        if self.community { Tier::Community } else { Tier::Secure }
    }

    /// The volume that a pod of this class gets in a data centre.
    pub(crate) fn volume<'a>(&'a self, pod: &'a PodOptions, data_center: Option<&str>) -> Option<&'a str> {
        let place = data_center.filter(|_| !self.community && self.persistent_gb.is_none())?;
        let mut volumes = self.volumes.iter().chain(&pod.volumes);
        volumes.find(|volume| volume.data_center == place).map(|volume| volume.id.as_str())
    }

    /// Where pods may be: a class with volumes of its own goes where they are.
    pub(crate) fn places(&self) -> Vec<String> {
        if !self.data_centers.is_empty() {
            return self.data_centers.clone();
        }
        self.volumes.iter().map(|volume| volume.data_center.clone()).collect()
    }

    pub(crate) fn disk_gb(&self, pod: &PodOptions) -> u32 {
        self.disk_gb.unwrap_or_else(|| pod.disk_gb(self.model(pod).unwrap_or_default()))
    }

    /// What of this class no order could say.
    pub(super) fn order_faults(&self, pod: &PodOptions) -> Vec<String> {
        let mut faults = Vec::new();
        let mut require = |holds: bool, fault: &str| {
            if !holds {
                faults.push(fault.to_owned());
            }
        };
        require(self.gpu.is_some() != self.cpu.is_some(), "set exactly one of gpu and cpu");
        require(self.gpu_count > 0, "gpu_count is 0");
        let mounts_own = self.persistent_gb.is_some();
        if self.cpu.is_some() {
            let size = self.vcpus >= 2 && self.vcpus.is_power_of_two();
            require(size, "vcpus must be a power of two, at least 2");
            require(!self.community, "CPU pods exist only in the Secure Cloud: remove community");
            require(!mounts_own, "CPU pods have no storage on their host: remove persistent_gb");
            let asks = self.vcpus_per_gpu_min.is_some() || self.memory_gb_per_gpu_min.is_some();
            require(!asks, "vcpus_per_gpu_min and memory_gb_per_gpu_min apply only to GPU pods");
        }
        require(
            self.persistent_gb.is_none_or(|gb| gb >= PERSISTENT_GB_MIN),
            "persistent_gb must be at least 10",
        );
        require(!mounts_own || self.volumes.is_empty(), "set only one of volumes and persistent_gb");
        require(
            !self.community || self.volumes.is_empty(),
            "network volumes exist only in the Secure Cloud: remove volumes or community",
        );
        require(self.disk_gb != Some(0), "disk_gb is 0");
        let stands = |volume: &VolumeOptions| {
            self.data_centers.is_empty() || self.data_centers.contains(&volume.data_center)
        };
        require(self.volumes.iter().all(stands), "a volume is outside data_centers");
        if self.engine == ClassEngine::Openai {
            require(self.command.is_some(), "an openai class needs the command that starts its server");
            require(self.image.is_some(), "an openai class needs an image that has its server");
            require(self.model.is_some(), "an openai class names the model that its server serves");
            require(
                pod.program().is_some(),
                "the worker comes from scale.pod.binary_url (with binary_sha256) or scale.pod.dist_url",
            );
            return faults;
        }
        require(self.command.is_none(), "command is of openai classes: set engine = \"openai\"");
        let has_image = !self.image.as_deref().unwrap_or(&pod.image).is_empty();
        let carried = |model: &str| matches!(Manifest::carried(model), Ok(Some(_)));
        require(
            has_image || self.model.as_deref().is_none_or(carried),
            "without an image its model must be one of `ternfleet model list`",
        );
        require(
            has_image || pod.program().is_some(),
            "without an image, set scale.pod.binary_url (with binary_sha256) or scale.pod.dist_url",
        );
        require(
            has_image || self.model(pod).is_some() || pod.model_url.is_some(),
            "without an image, set the model of scale.pod, or model_url with model_sha256",
        );
        faults
    }
}

impl PodOptions {
    /// Where a stock image fetches the program from.
    pub(crate) fn program(&self) -> Option<String> {
        let own =
            || self.dist_url.as_ref().map(|dist| format!("{}/dist/ternfleet", dist.trim_end_matches('/')));
        self.binary_url.clone().or_else(own)
    }

    /// Container disk for the model.
    fn disk_gb(&self, model: &str) -> u32 {
        if self.disk_gb > 0 {
            return self.disk_gb;
        }
        let known = Manifest::carried(model).ok().flatten().and_then(|manifest| manifest.source?.bytes);
        known.map_or(DISK_GB, |bytes| {
            u32::try_from(bytes.div_ceil(1_000_000_000) + SPARE_GB).unwrap_or(DISK_GB)
        })
    }

    /// What of this no order could say; each begins with the key.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut require = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let digest = |sha256: &Option<String>| sha256.as_deref().is_none_or(is_sha256);
        let known = self.model.is_empty()
            || self.model_url.is_some()
            || matches!(Manifest::carried(&self.model), Ok(Some(_)));
        let names = || Manifest::carried_names().join(", ");
        require(known, format!("model {:?} is not known; known are {}", self.model, names()));
        require(
            digest(&self.model_sha256),
            "model_sha256 must be 64 lower-case hexadecimal \
                                             digits"
                .to_owned(),
        );
        require(
            digest(&self.binary_sha256),
            "binary_sha256 must be 64 lower-case hexadecimal \
                                              digits"
                .to_owned(),
        );
        require(
            self.binary_url.is_none() || self.binary_sha256.is_some(),
            "binary_sha256 is missing: the program cannot be verified without it".to_owned(),
        );
        require(
            self.model_url.is_none() || self.model_sha256.is_some() || !self.model.is_empty(),
            "model_sha256 is missing: the model cannot be verified without it".to_owned(),
        );
        for (key, url) in [
            ("model_url", &self.model_url),
            ("manifest_url", &self.manifest_url),
            ("binary_url", &self.binary_url),
            ("dist_url", &self.dist_url),
        ] {
            let usable = |url: &String| url.starts_with("https://") || url.starts_with("http://");
            require(url.as_ref().is_none_or(usable), format!("{key} must begin with https:// (or http://)"));
        }
        for port in &self.ports {
            let parts = port.split_once('/');
            let usable = parts.is_some_and(|(number, protocol)| {
                number.parse::<u32>().is_ok_and(|number| number > 0) && matches!(protocol, "tcp" | "http")
            });
            require(usable, format!("ports {port:?}: write 4222/tcp or 8080/http"));
        }
        require(self.mount_path.starts_with('/'), "mount_path must begin with /".to_owned());
        require(self.env.len() <= ENV_MAX, format!("env has more than {ENV_MAX} variables"));
        let volumes: std::collections::BTreeSet<&str> =
            self.volumes.iter().map(|volume| volume.data_center.as_str()).collect();
        require(volumes.len() == self.volumes.len(), "volumes has a data centre twice".to_owned());
        faults
    }
}

/// `env:NAME` and `file:PATH` are read now; everything else stands for itself.
///
/// # Errors
/// When there is no such variable or file.
pub fn resolved(value: &str) -> anyhow::Result<String> {
    if let Some(name) = value.strip_prefix("env:") {
        return std::env::var(name).with_context(|| format!("{name} is not set"));
    }
    match value.strip_prefix("file:") {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            Ok(text.trim_end().to_owned())
        }
        None => Ok(value.to_owned()),
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(text: &str) -> ClassOptions {
        toml::from_str(text).unwrap()
    }

    fn pod(text: &str) -> PodOptions {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_the_provider_would_refuse_is_refused_here() {
        let stock = pod("model = \"storyteller\"\ndist_url = \"https://head.example\"\n");
        assert_eq!(stock.faults(), [""; 0]);
        for (text, part) in [
            ("gpu = \"x\"\nmodel = \"gpt\"", "model list"),
            ("cpu = \"cpu5c\"\nvcpus = 12", "power of two"),
            ("cpu = \"cpu5c\"\ncommunity = true", "Secure Cloud"),
            ("cpu = \"cpu5c\"\npersistent_gb = 20", "have no storage"),
            ("cpu = \"cpu5c\"\nvcpus_per_gpu_min = 4", "only to GPU pods"),
            ("gpu = \"x\"\npersistent_gb = 5", "at least 10"),
            (
                "gpu = \"x\"\ncommunity = true\nvolumes = [{ data_center = \"A\", id = \"v\" }]",
                "only in the Secure Cloud",
            ),
            (
                "gpu = \"x\"\ndata_centers = [\"B\"]\nvolumes = [{ data_center = \"A\", id = \"v\" }]",
                "outside data_centers",
            ),
            ("gpu = \"x\"\ncpu = \"y\"", "exactly one"),
            ("gpu = \"x\"\ngpu_count = 0", "gpu_count"),
            ("gpu = \"x\"\nengine = \"openai\"\nmodel = \"m\"\nimage = \"i\"", "needs the command"),
            ("gpu = \"x\"\nengine = \"openai\"\nmodel = \"m\"\ncommand = \"c\"", "needs an image"),
            ("gpu = \"x\"\nengine = \"openai\"\nimage = \"i\"\ncommand = \"c\"", "names the model"),
            ("gpu = \"x\"\ncommand = \"c\"", "of openai classes"),
        ] {
            let faults = class(text).order_faults(&stock);
            assert!(faults.len() == 1 && faults[0].contains(part), "{text}: {faults:?}");
        }
        assert_eq!(class("gpu = \"x\"").order_faults(&PodOptions::default()).len(), 2);
        for (text, part) in [
            ("model = \"gpt\"", "known are storyteller"),
            ("binary_url = \"https://x/y\"", "binary_sha256 is missing"),
            ("model_url = \"https://x/y\"", "model_sha256 is missing"),
            ("model_sha256 = \"AB\"", "64 lower-case hexadecimal digits"),
            ("dist_url = \"head.example\"", "https://"),
            ("ports = [\"4222\"]", "4222/tcp"),
            ("mount_path = \"models\"", "mount_path"),
        ] {
            let faults = pod(text).faults();
            assert!(faults.len() == 1 && faults[0].contains(part), "{text}: {faults:?}");
        }
    }

    #[test]
    fn a_volume_goes_with_class_and_data_centre_and_a_disk_with_the_model() {
        let pod = pod("model = \"storyteller\"\nvolumes = [{ data_center = \"EU-RO-1\", id = \"shared\" }]");
        let secure = class("gpu = \"x\"\nvolumes = [{ data_center = \"US-KS-2\", id = \"own\" }]");
        assert_eq!(secure.volume(&pod, Some("US-KS-2")), Some("own"));
        assert_eq!(secure.volume(&pod, Some("EU-RO-1")), Some("shared"));
        assert_eq!(secure.volume(&pod, Some("EU-SE-1")), None);
        assert_eq!(secure.volume(&pod, None), None, "nobody knows where it will be");
        assert_eq!(secure.places(), ["US-KS-2"]);
        let community = class("gpu = \"x\"\ncommunity = true");
        assert_eq!(community.volume(&pod, Some("EU-RO-1")), None);
        assert_eq!(secure.disk_gb(&pod), 6);
        assert_eq!(secure.disk_gb(&PodOptions::default()), DISK_GB);
        assert_eq!(class("disk_gb = 50").disk_gb(&pod), 50);
        let other = class("model = \"bitnet-b1.58-2B-4T\"");
        assert_eq!(
            (other.model(&pod), secure.model(&pod)),
            (Some("bitnet-b1.58-2B-4T"), Some("storyteller"))
        );
        assert!(other.disk_gb(&pod) > secure.disk_gb(&pod), "its own model is larger");
        assert_eq!(secure.model(&PodOptions::default()), None);
    }
}
