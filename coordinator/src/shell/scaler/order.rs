//! From an intent to an order: what runs in the pod, on what, and what it is told.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use ternfleet_cloud::{Mount, Order, start};
use ternfleet_proto::TimeMs;
use ternfleet_proto::access::JoinToken;

use super::provider::Rental;
use crate::options::{ClassEngine, ClassOptions, PodOptions, ProviderKind, resolved};
use crate::scale::Intent;

/// Names of the API's fields, and the keys of ours that fill them.
const FIELDS: [(&str, &str); 6] = [
    ("minVcpuCountPerGpu", "vcpus_per_gpu_min"),
    ("minRamPerGpu", "memory_gb_per_gpu_min"),
    ("dataCenterIds", "data_centers"),
    ("vcpuCount", "vcpus"),
    ("registry", "scale.pod.registry"),
    ("mounts", "volumes or persistent_gb"),
];

/// A refusal that names a field of the API, with the key of the configuration that filled it.
pub(super) fn in_our_words(why: &str) -> String {
    match FIELDS.iter().find(|(field, _)| why.contains(field)) {
        Some((_, key)) => format!("{why} (set by {key})"),
        None => why.to_owned(),
    }
}

impl Rental {
    /// What to order for an intent.
    ///
    /// # Errors
    /// When a value of the environment cannot be read.
    pub(super) fn order(&self, now: TimeMs, intent: &Intent) -> anyhow::Result<Order> {
        let class = self.class(&intent.class).with_context(|| {
            format!("the class {:?} of {} is no longer configured", intent.class, intent.name)
        })?;
        let pod = &self.options.pod;
        let image = class.image.as_deref().unwrap_or(&pod.image);
        let (entrypoint, command) = match image {
            // A server's image has no worker: it is fetched, and starts the server.
            _ if class.engine == ClassEngine::Openai => start::command(&["pod"]),
            "" if pod.cmd.is_empty() && pod.entrypoint.is_empty() => start::command(&["pod"]),
            _ => (pod.entrypoint.clone(), pod.cmd.clone()),
        };
        Ok(Order {
            name: intent.name.clone(),
            compute: class.compute(),
            tier: class.tier(),
            data_centers: intent.data_center.iter().cloned().collect(),
            image: if image.is_empty() { start::STOCK_IMAGE } else { image }.to_owned(),
            disk_gb: class.disk_gb(pod),
            env: self.environment(now, intent, class)?,
            entrypoint,
            command,
            registry: pod.registry.clone(),
            ports: pod.ports.clone(),
            mount: mount(class, pod, intent.data_center.as_deref()),
        })
    }

    /// What the pod is told. What is configured by hand wins.
    fn environment(
        &self,
        now: TimeMs,
        intent: &Intent,
        class: &ClassOptions,
    ) -> anyhow::Result<Vec<(String, String)>> {
        let (pod, runpod) = (&self.options.pod, self.options.provider == ProviderKind::Runpod);
        let ms = |seconds: f64| ((seconds * 1000.0).round() as u64).to_string();
        let mut env = BTreeMap::new();
        let mut put = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                env.insert(name.to_owned(), value);
            }
        };
        put("TERNFLEET_POD", Some(intent.name.clone()));
        put("TERNFLEET_POD_CLASS", Some(intent.class.clone()));
        let price = intent.price_usd_micro_per_hour.dollars();
        put("TERNFLEET_PRICE_USD_PER_HOUR", Some(format!("{price:.6}")));
        put("TERNFLEET_DEAD_MAN_MS", Some(ms(self.options.lease_s)));
        put("TERNFLEET_START_LIMIT_MS", Some(ms(self.options.ready_limit_s)));
        put("TERNFLEET_END_MYSELF", Some(if runpod { "runpod" } else { "exit" }.to_owned()));
        if let Some(issuer) = &self.issuer {
            let life = Duration::from_secs_f64(self.options.ready_limit_s);
            let token = JoinToken::for_order(issuer, &intent.name, now, life)
                .context("no join token can be created for this order")?;
            // Without its key it opens nothing at NATS, so it may travel where the address is plain HTTP.
            put("TERNFLEET_DIST_TOKEN", pod.dist_url.is_some().then(|| token.credentials().token()));
            put("TERNFLEET_NATS_JOIN_TOKEN", Some(token.line()));
        }
        if runpod {
            put("TERNFLEET_RUNPOD_BASE", self.options.runpod.base.clone());
            let ours = class.engine == ClassEngine::Ternfleet;
            put("TERNFLEET_MODEL", class.model(pod).filter(|_| ours).map(str::to_owned));
            // A class with a model of its own fetches it from that model's own address.
            let of_pod = |url: &Option<String>| url.clone().filter(|_| class.model.is_none());
            put("TERNFLEET_MODEL_URL", of_pod(&pod.model_url));
            put("TERNFLEET_MODEL_SHA256", of_pod(&pod.model_sha256));
            put("TERNFLEET_MANIFEST_URL", of_pod(&pod.manifest_url));
            put("TERNFLEET_POD_DIR", Some(pod.mount_path.clone()));
            put("TERNFLEET_DIST_URL", pod.dist_url.clone());
            put("TERNFLEET_BINARY_URL", pod.program());
            put("TERNFLEET_BINARY_SHA256", pod.binary_sha256.clone().or_else(|| self.own_sha256.clone()));
        }
        if class.engine == ClassEngine::Openai {
            put("TERNFLEET_ENGINE", Some("openai".to_owned()));
            put("TERNFLEET_UPSTREAM", Some("http://127.0.0.1:8000/v1".to_owned()));
            put("TERNFLEET_UPSTREAM_MODEL", class.model.clone());
            put("TERNFLEET_UPSTREAM_COMMAND", class.command.clone());
            put("TERNFLEET_UPSTREAM_START_S", Some((self.options.ready_limit_s as u64).to_string()));
        }
        for (name, value) in pod.env.iter().chain(&class.env) {
            let value = resolved(value).with_context(|| format!("scale.pod.env.{name}"))?;
            env.insert(name.clone(), value);
        }
        Ok(env.into_iter().collect())
    }
}

fn mount(class: &ClassOptions, pod: &PodOptions, data_center: Option<&str>) -> Option<Mount> {
    let path = pod.mount_path.clone();
    match class.persistent_gb {
        Some(gb) => Some(Mount::Persistent { gb, path }),
        None => {
            class.volume(pod, data_center).map(|volume| Mount::Network { volume: volume.to_owned(), path })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Options, ScaleOptions};
    use crate::shell::scaler::provider::rental;
    use ternfleet_proto::UsdMicro;

    fn intent(class: &str, data_center: Option<&str>) -> Intent {
        Intent {
            name: format!("ternfleet-{class}-0"),
            class: class.to_owned(),
            data_center: data_center.map(str::to_owned),
            price_usd_micro_per_hour: UsdMicro(2_500_000),
            written_at: TimeMs(0),
            provider_id: None,
            ending: None,
        }
    }

    #[test]
    fn an_order_carries_what_the_worker_needs_and_secrets_only_by_reference() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "hush\n").unwrap();
        let path = secret.path().display();
        let text = format!(
            "provider = \"runpod\"\n[runpod]\nbase = \"http://127.0.0.1:1\"\nkey_file = \"{path}\"\n\
             [[classes]]\nname = \"b200\"\ngpu = \"NVIDIA B200\"\nrate_tok_s = 50.0\n\
             volumes = [{{ data_center = \"US-KS-2\", id = \"vol_1\" }}]\n\
             [pod]\nmodel = \"storyteller\"\nregistry = \"reg_abc\"\nports = [\"8080/http\"]\n\
             binary_url = \"https://x.example/ternfleet\"\nbinary_sha256 = \"{}\"\n\
             [pod.env]\nTERNFLEET_NATS_TOKEN = \"file:{path}\"\n",
            "ab".repeat(32)
        );
        let options = Options { scale: toml::from_str::<ScaleOptions>(&text).unwrap(), ..Options::default() };
        let rental = rental(&options, None).unwrap().unwrap();
        let order = rental.order(TimeMs(0), &intent("b200", Some("US-KS-2"))).unwrap();
        let value =
            |name: &str| order.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(value("TERNFLEET_POD"), Some("ternfleet-b200-0"));
        assert_eq!(value("TERNFLEET_DEAD_MAN_MS"), Some("300000"));
        assert_eq!(value("TERNFLEET_START_LIMIT_MS"), Some("900000"));
        assert_eq!(value("TERNFLEET_END_MYSELF"), Some("runpod"));
        assert_eq!(value("TERNFLEET_RUNPOD_BASE"), Some("http://127.0.0.1:1"));
        assert_eq!(value("TERNFLEET_NATS_TOKEN"), Some("hush"));
        assert_eq!(value("TERNFLEET_MODEL"), Some("storyteller"));
        assert_eq!(value("TERNFLEET_BINARY_URL"), Some("https://x.example/ternfleet"));
        assert!(!format!("{order:?}").contains("hush"));
        assert_eq!(order.data_centers, ["US-KS-2"]);
        let (volume, path) = ("vol_1".to_owned(), "/models".to_owned());
        assert_eq!(order.mount, Some(Mount::Network { volume, path }));
        assert_eq!((order.image.as_str(), order.disk_gb), (start::STOCK_IMAGE, 6));
        assert_eq!(
            (order.entrypoint.join(" ").as_str(), order.command.last().unwrap().as_str()),
            ("/bin/sh -c", "pod")
        );
        assert_eq!(
            (order.registry.as_deref(), order.ports.join(" ").as_str()),
            (Some("reg_abc"), "8080/http")
        );
        assert_eq!(rental.order(TimeMs(0), &intent("b200", None)).unwrap().mount, None);
    }

    #[test]
    fn a_class_with_a_server_brings_the_worker_that_starts_it() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "hush\n").unwrap();
        let path = secret.path().display();
        let text = format!(
            "provider = \"runpod\"\n[runpod]\nbase = \"http://127.0.0.1:1\"\nkey_file = \"{path}\"\n\
             [[classes]]\nname = \"gpu\"\ngpu = \"NVIDIA B200\"\nrate_tok_s = 9000.0\nengine = \"openai\"\n\
             image = \"vllm/vllm-openai:v1\"\nmodel = \"org/m\"\ncommand = \"vllm serve org/m\"\n\
             [pod]\nmodel = \"storyteller\"\ndist_url = \"https://head.example\"\n"
        );
        let scale = toml::from_str::<ScaleOptions>(&text).unwrap();
        assert_eq!(scale.faults(), [""; 0]);
        let options = Options { scale, ..Options::default() };
        let rental = rental(&options, None).unwrap().unwrap();
        let order = rental.order(TimeMs(0), &intent("gpu", None)).unwrap();
        let value =
            |name: &str| order.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(
            (order.image.as_str(), order.command.last().unwrap().as_str()),
            ("vllm/vllm-openai:v1", "pod")
        );
        assert_eq!((value("TERNFLEET_ENGINE"), value("TERNFLEET_MODEL")), (Some("openai"), None));
        assert_eq!(value("TERNFLEET_UPSTREAM_MODEL"), Some("org/m"));
        assert_eq!(value("TERNFLEET_UPSTREAM_COMMAND"), Some("vllm serve org/m"));
    }

    #[test]
    fn a_refusal_names_the_key_that_caused_it() {
        let why = in_our_words("the provider rejects the request: unknown field $.gpu.minVcpuCountPerGpu");
        assert!(why.ends_with("(set by vcpus_per_gpu_min)"), "{why}");
        assert_eq!(in_our_words("no"), "no");
    }
}
