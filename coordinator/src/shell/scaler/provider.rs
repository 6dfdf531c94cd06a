//! From configuration to a provider, and from an intent to an order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ternfleet_cloud::http::Secret;
use ternfleet_cloud::{Availability, Compute, Offer, Order, Provider, Tier, local, runpod};
use ternfleet_proto::UsdMicro;
use ternfleet_proto::message::ScaleDials;

use crate::options::{ClassOptions, ProviderKind, ScaleOptions};
use crate::scale::{Class, Intent, Settings};

/// The provider, and how its pods are chosen and brought up.
#[derive(Clone)]
pub(crate) struct Rental {
    pub(super) provider: Arc<dyn Provider>,
    pub(super) options: ScaleOptions,
    /// The provider's own prices, by class.
    prices: BTreeMap<String, UsdMicro>,
}

/// `None` when nothing is to be rented.
pub(crate) fn rental(options: &ScaleOptions) -> anyhow::Result<Option<Rental>> {
    let faults = options.faults();
    if !faults.is_empty() {
        bail!("the configuration of `scale` cannot be used:\n  {}", faults.join("\n  "));
    }
    let provider: Arc<dyn Provider> = match options.provider {
        ProviderKind::None => return Ok(None),
        ProviderKind::Local => Arc::new(local_provider(options)?),
        ProviderKind::Runpod => Arc::new(runpod_provider(options)?),
    };
    Ok(Some(Rental { provider, options: options.clone(), prices: BTreeMap::new() }))
}

fn local_provider(options: &ScaleOptions) -> anyhow::Result<local::Local> {
    let class = |class: &ClassOptions| local::LocalClass {
        name: class.name.clone(),
        price_usd_micro_per_hour: UsdMicro::from_dollars(class.price_usd_per_hour).0,
        threads: class.threads,
    };
    let settings = local::Options {
        program: options.local.program.clone(),
        arguments: options.local.arguments.clone(),
        classes: options.classes.iter().map(class).collect(),
        pods_max: options.classes.iter().map(|class| class.pods_max as usize).sum(),
        folder: options.local.folder.clone(),
        cpus: options.local.cpus.clone(),
        grace: Duration::from_millis(options.local.grace_ms),
    };
    local::Local::new(settings).context("local pods cannot be started")
}

fn runpod_provider(options: &ScaleOptions) -> anyhow::Result<runpod::Runpod> {
    let key = match &options.runpod.key_file {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => std::env::var("RUNPOD_API_KEY").context(
            "RUNPOD_API_KEY is not set and scale.runpod.key_file names no file: RunPod asks for a key",
        )?,
    };
    let mut settings = runpod::Options::new(Secret::new(key.trim()));
    if let Some(base) = &options.runpod.base {
        settings.base.clone_from(base);
    }
    settings.timeout = Duration::from_secs(options.runpod.timeout_s.max(1));
    settings.settle = Duration::from_millis(options.runpod.settle_ms);
    Ok(runpod::Runpod::new(settings)?)
}

impl Rental {
    pub(super) fn class(&self, name: &str) -> Option<&ClassOptions> {
        self.options.classes.iter().find(|class| class.name == name)
    }

    /// The scaler's settings under these dials.
    pub(super) fn settings(&self, dials: &ScaleDials) -> Settings {
        let options = &self.options;
        let limit = |dial: Option<UsdMicro>, configured: f64| {
            let limit = dial.unwrap_or(UsdMicro::from_dollars(configured));
            (limit > UsdMicro::ZERO).then_some(limit)
        };
        let chosen = |class: &&ClassOptions| {
            let wanted = dials.classes.as_deref().unwrap_or(&[]);
            wanted.is_empty() || wanted.contains(&class.name)
        };
        Settings {
            fleet: options.fleet.clone(),
            pods_min: dials.pods_min.unwrap_or(options.pods_min) as usize,
            pods_max: dials.pods_max.unwrap_or(options.pods_max) as usize,
            classes: options.classes.iter().filter(chosen).map(|class| self.planned(class)).collect(),
            usd_micro_per_hour_max: limit(dials.usd_micro_per_hour_max, options.usd_per_hour_max),
            usd_micro_per_day_max: limit(dials.usd_micro_per_day_max, options.usd_per_day_max),
            lease_s: options.lease_s,
            ready_limit_s: options.ready_limit_s,
            silence_limit_s: options.silence_limit_s,
            idle_limit_s: dials.idle_limit_ms.map_or(options.idle_limit_s, |ms| ms as f64 / 1000.0),
            order_limit_s: options.order_limit_s,
            epsilon: options.epsilon,
            replan_s: options.tick_ms as f64 / 1000.0,
            refused: Vec::new(),
        }
    }

    fn planned(&self, class: &ClassOptions) -> Class {
        let configured = UsdMicro::from_dollars(class.price_usd_per_hour);
        Class {
            name: class.name.clone(),
            price_usd_micro_per_hour: self.prices.get(&class.name).copied().unwrap_or(configured),
            rate_tok_s: class.rate_tok_s,
            rate_sd_tok_s: class.rate_spread * class.rate_tok_s,
            boot_s: class.boot_s,
            loss_per_hour: class.loss_per_hour,
            pods_max: class.pods_max,
            data_centers: class.data_centers.clone(),
        }
    }

    /// Takes prices over; answers the classes that cannot be had now, and why.
    pub(super) fn take_offers(&mut self, offers: &[Offer]) -> Vec<(String, String)> {
        let mut missing = Vec::new();
        for class in &self.options.classes {
            let offer = offers.iter().find(|offer| is_of(offer, class));
            if let Some(offer) = offer.filter(|offer| offer.price_usd_micro_per_hour > 0) {
                self.prices.insert(class.name.clone(), UsdMicro(offer.price_usd_micro_per_hour));
            }
            match offer {
                None => missing.push((class.name.clone(), "the provider does not offer it".to_owned())),
                // Local pods are counted here: that all of them run now says nothing about a minute later.
                Some(offer)
                    if offer.availability == Availability::None
                        && self.options.provider == ProviderKind::Runpod =>
                {
                    missing.push((class.name.clone(), "the provider has none free".to_owned()));
                }
                Some(_) => {}
            }
        }
        missing
    }

    /// What to order for an intent.
    ///
    /// # Errors
    /// When a value of the environment cannot be read.
    pub(super) fn order(&self, intent: &Intent) -> anyhow::Result<Order> {
        let class = self.class(&intent.class).with_context(|| {
            format!("the class {:?} of {} is not configured any more", intent.class, intent.name)
        })?;
        let pod = &self.options.pod;
        let price = format!("{:.6}", intent.price_usd_micro_per_hour.dollars());
        let lease_ms = (self.options.lease_s * 1000.0).round() as u64;
        let end = if self.options.provider == ProviderKind::Runpod { "runpod" } else { "exit" };
        let mut env = vec![
            ("TERNFLEET_POD".to_owned(), intent.name.clone()),
            ("TERNFLEET_POD_CLASS".to_owned(), intent.class.clone()),
            ("TERNFLEET_PRICE_USD_PER_HOUR".to_owned(), price),
            ("TERNFLEET_DEAD_MAN_MS".to_owned(), lease_ms.to_string()),
            ("TERNFLEET_END_MYSELF".to_owned(), end.to_owned()),
        ];
        for (name, value) in &pod.env {
            let value = resolved(value).with_context(|| format!("scale.pod.env.{name}"))?;
            env.push((name.clone(), value));
        }
        Ok(Order {
            name: intent.name.clone(),
            compute: compute(class),
            tier: if class.community { Tier::Community } else { Tier::Secure },
            data_centers: intent.data_center.iter().cloned().collect(),
            image: pod.image.clone(),
            disk_gb: pod.disk_gb.max(1),
            env,
            command: pod.command.clone(),
            volume: pod.volume_id.clone().zip(pod.volume_path.clone()),
        })
    }
}

/// `env:NAME` and `file:PATH` are read now; everything else stands for itself.
fn resolved(value: &str) -> anyhow::Result<String> {
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

fn compute(class: &ClassOptions) -> Compute {
    match (&class.gpu, &class.cpu) {
        (Some(id), _) => Compute::Gpu {
            id: id.clone(),
            count: class.gpu_count,
            vcpus_min: class.vcpus_per_gpu_min,
            memory_gb_min: class.memory_gb_per_gpu_min,
        },
        (None, Some(id)) => Compute::Cpu { id: id.clone(), vcpus: class.vcpus },
        (None, None) => Compute::Cpu { id: class.name.clone(), vcpus: class.threads },
    }
}

fn is_of(offer: &Offer, class: &ClassOptions) -> bool {
    let tier = if class.community { Tier::Community } else { Tier::Secure };
    match (&offer.compute, compute(class)) {
        (Compute::Gpu { id, .. }, Compute::Gpu { id: wanted, .. }) => *id == wanted && offer.tier == tier,
        (Compute::Cpu { id, .. }, Compute::Cpu { id: wanted, .. }) => *id == wanted,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ternfleet_proto::TimeMs;

    #[test]
    fn an_order_carries_what_the_worker_needs_and_secrets_only_by_reference() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "hush\n").unwrap();
        let mut options = ScaleOptions { provider: ProviderKind::Runpod, ..ScaleOptions::default() };
        options.classes = vec![ClassOptions {
            name: "b200".to_owned(),
            gpu: Some("NVIDIA B200".to_owned()),
            rate_tok_s: 50.0,
            ..ClassOptions::default()
        }];
        options.pod.image = "ternfleet".to_owned();
        options
            .pod
            .env
            .insert("TERNFLEET_NATS_TOKEN".to_owned(), format!("file:{}", secret.path().display()));
        options.runpod.base = Some("http://127.0.0.1:1".to_owned());
        options.runpod.key_file = Some(secret.path().to_owned());
        let rental = rental(&options).unwrap().unwrap();
        let intent = Intent {
            name: "ternfleet-b200-0".to_owned(),
            class: "b200".to_owned(),
            data_center: Some("US-KS-2".to_owned()),
            price_usd_micro_per_hour: UsdMicro(2_500_000),
            written_at: TimeMs(0),
            provider_id: None,
            ending: None,
            ending_at: None,
        };
        let order = rental.order(&intent).unwrap();
        let value =
            |name: &str| order.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(value("TERNFLEET_POD"), Some("ternfleet-b200-0"));
        assert_eq!(value("TERNFLEET_DEAD_MAN_MS"), Some("300000"));
        assert_eq!(value("TERNFLEET_END_MYSELF"), Some("runpod"));
        assert_eq!(value("TERNFLEET_NATS_TOKEN"), Some("hush"));
        assert!(!format!("{order:?}").contains("hush"));
        assert_eq!(order.data_centers, ["US-KS-2"]);
    }
}
