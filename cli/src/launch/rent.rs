//! What a launch may rent at RunPod: classes with the provider's own prices, the head's size, and where pods fetch
//! their files from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use ternfleet_cloud::runpod::Runpod;
use ternfleet_cloud::{Availability, Hardware, Provider, Tier, start};
use ternfleet_coordinator::simulate::PodSpec;
use ternfleet_coordinator::{ClassOptions, ProviderKind, ScaleOptions, resolved};
use ternfleet_proto::UsdMicro;

use super::bundle::{MANIFEST_NAME, MODEL_NAME, ServedModel};
use crate::fetch::sha256_of;
use crate::local::nats_server;
use crate::models::{self, Store};
use crate::span;

/// The classes and limits that ship.
const EXAMPLE: &str = include_str!("../../../deploy/fleets/runpod.toml");
/// Speeds in it are those of a model of so many bytes.
const EXAMPLE_MODEL_BYTES: f64 = 1.19e9;
/// A head is small: a few messages a second.
const HEAD_VCPUS: u32 = 2;
/// Results that nobody fetches are kept for so long.
const KEPT_S: u64 = 6 * 3600;
const TICK_MS: u64 = 1_000;
/// Variables that the head sets in every order.
const FILLED_IN: [&str; 2] = ["TERNFLEET_NATS", "TERNFLEET_NATS_CA_PEM"];

/// Kept in the state file; the key is not in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rent {
    /// Another address than RunPod's own.
    pub(crate) base: Option<String>,
    pub(crate) key_file: Option<PathBuf>,
    /// Where `ternfleet`, `nats-server` and a model of one's own lie, as pods reach them; without a slash at its end.
    pub(crate) files: String,
    pub(crate) binary_sha256: String,
    pub(crate) nats_server_sha256: String,
    /// In place of the stock image.
    pub(crate) image: Option<String>,
    pub(crate) head_cpu: String,
    pub(crate) head_vcpus: u32,
    pub(crate) head_price_usd_micro_per_hour: UsdMicro,
    pub(crate) unheard_limit_s: u64,
    /// Workers fetch their files from the head.
    #[serde(default)]
    pub(crate) from_head: bool,
    pub(crate) scale: ScaleOptions,
}

/// What a person may choose.
#[derive(Debug)]
pub(crate) struct Wishes<'a> {
    pub(crate) base: Option<&'a str>,
    pub(crate) key_file: Option<&'a Path>,
    pub(crate) files: &'a str,
    pub(crate) from_head: bool,
    pub(crate) image: Option<&'a str>,
    /// Classes and limits in place of those that ship.
    pub(crate) fleet: Option<&'a Path>,
    pub(crate) classes: &'a [String],
    pub(crate) pods_max: u32,
    /// After an order without an answer the client waits so long before it looks for the pod.
    pub(crate) settle: Option<Duration>,
    /// How long results that nobody fetches are kept; six hours unless given.
    pub(crate) keep: Option<Duration>,
    pub(crate) model: &'a Path,
    /// The static binary that pods run; this program unless given.
    pub(crate) binary: Option<&'a Path>,
}

#[derive(Deserialize)]
struct File {
    scale: ScaleOptions,
}

/// Classes and limits of a file, or those that ship.
fn scale_of(file: Option<&Path>) -> anyhow::Result<ScaleOptions> {
    let Some(path) = file else {
        let File { mut scale } = toml::from_str(EXAMPLE).context("the included classes cannot be parsed")?;
        // The values in capitals are filled in, and nothing else binds the fleet than what is asked for.
        (scale.usd_per_hour_max, scale.usd_per_day_max) = (0.0, 0.0);
        scale.pod.env = BTreeMap::new();
        // The provider may place pods anywhere: the files come from elsewhere.
        scale.classes.iter_mut().for_each(|class| class.data_centers.clear());
        return Ok(scale);
    };
    let said = || format!("{} cannot be used", path.display());
    let text = std::fs::read_to_string(path).with_context(said)?;
    let File { mut scale } = toml::from_str(&text).with_context(said)?;
    // The head tells where NATS is. What names variables and files means those of this machine.
    let own = |name: &String| FILLED_IN.contains(&name.as_str());
    scale.pod.env.retain(|name, _| !own(name));
    for (name, value) in &mut scale.pod.env {
        *value = resolved(value).with_context(|| format!("scale.pod.env.{name}")).with_context(said)?;
    }
    Ok(scale)
}

impl Rent {
    /// From the environment or a file; never from a command line.
    pub(crate) fn key(&self) -> anyhow::Result<String> {
        key(self.key_file.as_deref())
    }

    pub(crate) fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.files)
    }

    /// The head, for people.
    pub(crate) fn head_words(&self) -> String {
        let kept = span::short(Duration::from_secs(self.unheard_limit_s));
        format!("a pod of {} vCPUs ({}), which keeps results for {kept}", self.head_vcpus, self.head_cpu)
    }

    /// What could be rented, for the quote.
    pub(crate) fn market(&self) -> Vec<PodSpec> {
        let spec = |class: &ClassOptions| {
            let count = class.pods_max.min(self.scale.pods_max);
            PodSpec {
                boot_s: class.boot_s,
                loss_per_hour: class.loss_per_hour,
                rate_spread: class.rate_spread,
                ..PodSpec::new(&class.name, count, class.price_usd_per_hour, class.rate_tok_s)
            }
        };
        self.scale.classes.iter().map(spec).collect()
    }

    /// Reads the provider's prices, and chooses the classes that may be rented.
    pub(crate) async fn choose(wishes: &Wishes<'_>, provider: &Runpod) -> anyhow::Result<Rent> {
        let offers = provider.offers().await.context("the provider's prices cannot be read")?;
        let mut scale = scale_of(wishes.fleet)?;
        let known: Vec<String> = scale.classes.iter().map(|class| class.name.clone()).collect();
        if let Some(name) = wishes.classes.iter().find(|name| !known.contains(name)) {
            bail!("no class {name:?}; known classes are {}", known.join(", "));
        }
        let (model, bytes) = Model::find(wishes.model)?;
        scale.classes.retain(|class| wishes.classes.is_empty() || wishes.classes.contains(&class.name));
        let mut missing = Vec::new();
        scale.classes.retain_mut(|class| {
            let (compute, tier) = (class.compute(), class.tier());
            let offer = offers.iter().find(|offer| offer.is_of(&compute, tier));
            let there = offer.filter(|offer| offer.availability != Availability::None);
            match there.map(|offer| offer.price_of(&compute)) {
                Some(Ok(price)) => {
                    class.price_usd_per_hour = UsdMicro(price).dollars();
                    class.rate_tok_s = (class.rate_tok_s * EXAMPLE_MODEL_BYTES / bytes as f64).min(2_000.0);
                    true
                }
                Some(Err(why)) => {
                    missing.push(format!("{}: {why}", class.name));
                    false
                }
                None => {
                    missing.push(format!("{}: no capacity", class.name));
                    false
                }
            }
        });
        if scale.classes.is_empty() {
            bail!("no class can be rented now: {}", missing.join("; "));
        }
        let cpu = offers.iter().filter_map(|offer| match &offer.hardware {
            Hardware::Cpu { id, vcpus_min, .. }
                if offer.tier == Tier::Secure && offer.availability != Availability::None =>
            {
                let vcpus = HEAD_VCPUS.max(*vcpus_min);
                Some((offer.unit_price_usd_micro_per_hour * i64::from(vcpus), id.clone(), vcpus))
            }
            _ => None,
        });
        let (price, head_cpu, head_vcpus) =
            cpu.min().context("the provider has no capacity for the CPU pod of the head")?;
        let head_price_usd_micro_per_hour = UsdMicro(price);

        let binary = match wishes.binary {
            Some(path) => path.to_owned(),
            None => std::env::current_exe().context("the path of this program is not known")?,
        };
        let files = wishes.files.trim_end_matches('/').to_owned();
        let mut rent = Rent {
            base: wishes.base.map(str::to_owned),
            key_file: wishes.key_file.map(std::path::absolute).transpose()?,
            binary_sha256: sha256_of(&binary)?,
            nats_server_sha256: sha256_of(&nats_server::find()?)?,
            image: wishes.image.map(str::to_owned),
            head_cpu,
            head_vcpus,
            head_price_usd_micro_per_hour,
            unheard_limit_s: KEPT_S,
            from_head: wishes.from_head,
            scale,
            files,
        };
        rent.limit(wishes);
        rent.pods(&model, wishes);
        let faults = rent.scale.faults();
        if !faults.is_empty() {
            bail!("this order is not possible:\n  {}", faults.join("\n  "));
        }
        Ok(rent)
    }

    /// What workers may cost of a budget for everything: what the head may cost until it ends itself is set aside.
    pub(crate) fn for_workers(&self, budget: UsdMicro) -> UsdMicro {
        let aside = self.head_price_usd_micro_per_hour.over(Duration::from_secs(self.unheard_limit_s));
        UsdMicro((budget - aside).0.max(budget.0 / 2))
    }

    /// A model of one's own, and where pods fetch it.
    pub(crate) fn own_model(&self) -> Option<ServedModel> {
        let sha256 = self.scale.pod.model_sha256.clone().filter(|_| self.scale.pod.model.is_empty())?;
        let (url, manifest_url) = (self.file(MODEL_NAME), self.file(MANIFEST_NAME));
        Some(ServedModel { url, sha256, manifest_url })
    }

    /// Limits of this launch, and how long the head keeps results; the budget is divided when a head is ordered.
    fn limit(&mut self, wishes: &Wishes<'_>) {
        let scale = &mut self.scale;
        scale.provider = ProviderKind::Runpod;
        scale.pods_min = 0;
        scale.pods_max = wishes.pods_max;
        scale.tick_ms = scale.tick_ms.min(TICK_MS);
        scale.reconcile_s = 0;
        scale.runpod.base.clone_from(&self.base);
        if let Some(settle) = wishes.settle {
            scale.runpod.settle_ms = settle.as_millis() as u64;
        }
        if let Some(keep) = wishes.keep {
            self.unheard_limit_s = keep.as_secs().max(1);
        }
    }

    fn pods(&mut self, model: &Model, wishes: &Wishes<'_>) {
        let (binary, model_file) = (self.file("ternfleet"), self.file(MODEL_NAME));
        let manifest = self.file(MANIFEST_NAME);
        let pod = &mut self.scale.pod;
        if let Some(image) = wishes.image {
            // Its own entry point is not known: it is started as the stock image is.
            image.clone_into(&mut pod.image);
            (pod.entrypoint, pod.cmd) = start::command(&["pod"]);
        }
        pod.binary_url = Some(binary);
        pod.binary_sha256 = Some(self.binary_sha256.clone());
        pod.model = String::new();
        match model {
            Model::Named(name) => pod.model.clone_from(name),
            Model::File { sha256 } => {
                pod.model_url = Some(model_file);
                pod.model_sha256 = Some(sha256.clone());
                pod.manifest_url = Some(manifest);
            }
        }
    }
}

/// From the file named, else from `RUNPOD_API_KEY`.
pub(crate) fn key(file: Option<&Path>) -> anyhow::Result<String> {
    let text = match file {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => std::env::var("RUNPOD_API_KEY")
            .context("RUNPOD_API_KEY is not set: set it, or pass a file with the key with --key-file")?,
    };
    let key = text.trim().to_owned();
    if key.is_empty() {
        bail!("the API key of RunPod is empty");
    }
    Ok(key)
}

/// Which model pods run.
enum Model {
    /// Pods fetch it from where its manifest says.
    Named(String),
    /// A file of one's own, which lies with the other files.
    File { sha256: String },
}

impl Model {
    fn find(model: &Path) -> anyhow::Result<(Model, u64)> {
        if model.is_file() {
            let bytes = std::fs::metadata(model)?.len().max(1);
            return Ok((Model::File { sha256: sha256_of(model)? }, bytes));
        }
        let name = model.display().to_string();
        let known = models::named(&name, &Store::find(None)?)?;
        let source = known.manifest.source.as_ref().filter(|source| source.url.is_some());
        let Some(source) = source else {
            bail!("{name} has no download address: pass its file with --model")
        };
        Ok((Model::Named(known.name().to_owned()), source.bytes.unwrap_or(EXAMPLE_MODEL_BYTES as u64)))
    }
}
