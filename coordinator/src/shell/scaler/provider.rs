//! From configuration to a provider, and to the scaler's settings.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ternfleet_cloud::http::Secret;
use ternfleet_cloud::{Availability, Offer, Provider, local, runpod};
use ternfleet_proto::UsdMicro;
use ternfleet_proto::access::Issuer;
use ternfleet_proto::message::ScaleDials;

use crate::options::{ClassOptions, Options, ProviderKind, ScaleOptions};
use crate::scale::{Class, Settings};
use crate::shell::read_issuer;

/// The provider, and how its pods are chosen and brought up.
#[derive(Clone)]
pub(crate) struct Rental {
    pub(super) provider: Arc<dyn Provider>,
    pub(super) options: ScaleOptions,
    /// Makes a join token for each order.
    pub(super) issuer: Option<Arc<Issuer>>,
    /// Digest of this program, where pods fetch it from here.
    pub(super) own_sha256: Option<String>,
    /// The provider's own prices, by class.
    prices: BTreeMap<String, UsdMicro>,
}

/// `None` when nothing is to be rented. A provider that is given takes the place of the one that the options name.
pub(crate) fn rental(options: &Options, given: Option<Arc<dyn Provider>>) -> anyhow::Result<Option<Rental>> {
    let issuer_file = options.issuer_file.as_deref();
    let options = &options.scale;
    let faults = options.faults();
    if !faults.is_empty() {
        bail!("the configuration of `scale` cannot be used:\n  {}", faults.join("\n  "));
    }
    let provider: Arc<dyn Provider> = match (options.provider, given) {
        (ProviderKind::None, _) => return Ok(None),
        (_, Some(given)) => given,
        (ProviderKind::Local, None) => Arc::new(local_provider(options)?),
        (ProviderKind::Runpod, None) => Arc::new(runpod_provider(options)?),
    };
    let issuer = issuer_file.map(read_issuer).transpose()?.map(Arc::new);
    let serves = options.pod.dist_url.is_some() && options.pod.binary_url.is_none();
    let own_sha256 = serves.then(crate::dist::own_sha256).transpose()?;
    Ok(Some(Rental { provider, options: options.clone(), issuer, own_sha256, prices: BTreeMap::new() }))
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
        None => std::env::var("RUNPOD_API_KEY")
            .context("RunPod needs an API key: set RUNPOD_API_KEY or scale.runpod.key_file")?,
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

    /// The scaler's settings with these limits.
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
            data_centers: class.places(),
            starting_max: None,
            models: class.model(&self.options.pod).map(str::to_owned).into_iter().collect(),
        }
    }

    /// Takes prices over, each for the size that its class orders; answers the classes that cannot be had now, and why.
    pub(super) fn take_offers(&mut self, offers: &[Offer]) -> Vec<(String, String)> {
        let mut missing = Vec::new();
        for class in &self.options.classes {
            let (wanted, tier) = (class.compute(), class.tier());
            let Some(offer) = offers.iter().find(|offer| offer.is_of(&wanted, tier)) else {
                missing.push((class.name.clone(), "the provider does not offer it".to_owned()));
                continue;
            };
            match offer.price_of(&wanted) {
                Ok(price) if price > 0 => {
                    self.prices.insert(class.name.clone(), UsdMicro(price));
                }
                Ok(_) => {}
                Err(why) => missing.push((class.name.clone(), why)),
            }
            // Local pods are counted here: that all of them run now says nothing about a minute later.
            let rents = self.options.provider == ProviderKind::Runpod;
            if offer.availability == Availability::None && rents {
                missing.push((class.name.clone(), "the provider has no capacity".to_owned()));
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ternfleet_cloud::{Hardware, Tier};

    #[test]
    fn a_class_costs_what_its_size_costs() {
        let class = |name: &str, cpu: Option<&str>, vcpus, gpu_count| ClassOptions {
            name: name.to_owned(),
            cpu: cpu.map(str::to_owned),
            gpu: cpu.is_none().then(|| "NVIDIA B200".to_owned()),
            vcpus,
            gpu_count,
            rate_tok_s: 1.0,
            ..ClassOptions::default()
        };
        let key = tempfile::NamedTempFile::new().unwrap();
        let mut options = ScaleOptions { provider: ProviderKind::Runpod, ..ScaleOptions::default() };
        options.classes = vec![
            class("c16", Some("cpu5c"), 16, 1),
            class("g3", None, 16, 3),
            class("c64", Some("cpu5c"), 64, 1),
        ];
        options.pod.image = "ternfleet".to_owned();
        options.runpod.key_file = Some(key.path().to_owned());
        let options = Options { scale: options, ..Options::default() };
        let mut rental = rental(&options, None).unwrap().unwrap();
        let offer = |hardware, unit| Offer {
            hardware,
            tier: Tier::Secure,
            unit_price_usd_micro_per_hour: unit,
            availability: Availability::High,
            places: Vec::new(),
        };
        let missing = rental.take_offers(&[
            offer(Hardware::Cpu { id: "cpu5c".to_owned(), vcpus_min: 2, vcpus_max: 32 }, 30_000),
            offer(Hardware::Gpu { id: "NVIDIA B200".to_owned(), count_max: 8 }, 6_790_000),
        ]);
        let settings = rental.settings(&ScaleDials::default());
        let prices: Vec<i64> =
            settings.classes.iter().map(|class| class.price_usd_micro_per_hour.0).collect();
        assert_eq!(prices[..2], [480_000, 20_370_000]);
        assert_eq!(missing.len(), 1);
        assert!(missing[0].0 == "c64" && missing[0].1.contains("from 2 to 32"), "{missing:?}");
    }
}
