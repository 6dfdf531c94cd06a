//! RunPod's REST API, version 2: <https://api.runpod.io>. A client of our own, held against the published OpenAPI
//! text by tests, since no crate speaks it.
//!
//! It follows the provider's table of answers to the letter. What it adds is certainty about creations: the API has
//! no idempotency key, so a pod is named after the caller's intent, and after any answer that was lost the pods are
//! listed by name before anything is tried again.

mod answers;
mod create;
mod wire;

use std::time::Duration;

use async_trait::async_trait;
use hyper::Method;

use crate::http::{HttpError, Secret, Server, encode};
use crate::provider::{Bill, CloudError, Offer, Order, PodId, Provider, Rented, Tier};
use crate::time::to_rfc3339;

pub use wire::{
    ActionBody, ActionKind, CloudTier, CpuBody, CreateBody, ErrorBody, GpuBody, Level, ListCpus, ListGpus,
    ListPodBilling, ListPods, LogLine, MountsBody, NetworkMount, PersistentMount, PodBillingRecord, PodBody,
    PodRuntimeBody, PodStatus, RuntimePortBody,
};

pub const BASE: &str = "https://api.runpod.io";

/// Settings of the client. The key comes by environment or file, never by a flag.
#[derive(Debug, Clone)]
pub struct Options {
    pub base: String,
    pub key: Secret,
    /// Of one request.
    pub timeout: Duration,
    /// How long to wait after a lost answer before the pods are listed: a creation needs a moment to show.
    pub settle: Duration,
    /// How often a creation is tried in all.
    pub tries: u32,
    /// A request to wait for longer is handed on to the caller.
    pub wait_max: Duration,
}

impl Options {
    pub fn new(key: Secret) -> Self {
        Self {
            base: BASE.to_owned(),
            key,
            timeout: Duration::from_secs(30),
            settle: Duration::from_secs(5),
            tries: 3,
            wait_max: Duration::from_secs(60),
        }
    }
}

/// The provider.
#[derive(Debug, Clone)]
pub struct Runpod {
    server: Server,
    options: Options,
}

/// Lines of a pod's log that the provider gives at most.
const LOG_LINES_MAX: usize = 5_000;
const LOG_BYTES_MAX: usize = 1 << 20;
/// A log without a new line for so long has come to its present end.
const LOG_QUIET: Duration = Duration::from_millis(1_500);
/// Pages that are read at most: a list that continues for longer is not understood.
const PAGES_MAX: usize = 1_000;

impl Runpod {
    pub fn new(options: Options) -> Result<Runpod, CloudError> {
        let server = Server::new(&options.base, Some(options.key.clone()), options.timeout)
            .map_err(|fault| CloudError::Invalid(fault.to_string()))?;
        Ok(Runpod { server, options })
    }

    /// A request that changes nothing: tried again when the server fails or asks to wait.
    async fn get(&self, path: &str) -> Result<bytes::Bytes, CloudError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let fault = match self.server.send(Method::GET, path, None).await {
                Ok(answer) if answer.status == 200 => return Ok(answer.body),
                Ok(answer) => answers::fault(&answer, path),
                Err(HttpError::Address(why)) => CloudError::Invalid(why),
                Err(lost) => CloudError::Unreachable(lost.to_string()),
            };
            let pause = match &fault {
                CloudError::RateLimited { retry_after } if *retry_after <= self.options.wait_max => {
                    *retry_after
                }
                CloudError::Unreachable(_) | CloudError::Uncertain(_) => self.options.settle,
                _ => return Err(fault),
            };
            if tries >= self.options.tries {
                // Reading changes nothing, so nothing is uncertain.
                return Err(match fault {
                    CloudError::Uncertain(why) => CloudError::Unreachable(why),
                    other => other,
                });
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn list_all(&self) -> Result<Vec<PodBody>, CloudError> {
        let mut pods: Vec<PodBody> = Vec::new();
        let mut path = "/v2/pods".to_owned();
        for _ in 0..PAGES_MAX {
            let page: ListPods = answers::decode(&self.get(&path).await?, "list of pods")?;
            let next = page.cursor();
            let before = pods.len();
            let new = page.pods.into_iter().filter(|pod| !pods.iter().any(|known| known.id == pod.id));
            let new: Vec<PodBody> = new.collect();
            pods.extend(new);
            match next {
                None => return Ok(pods),
                // The cursor led nowhere new. A list that may be cut short must not be taken for the whole: a pod
                // missing from it could be rented a second time.
                Some(_) if pods.len() == before => {
                    return Err(CloudError::Protocol(
                        "the list of pods has further pages that cannot be read".into(),
                    ));
                }
                Some(cursor) => path = format!("/v2/pods?cursor={}", encode(&cursor)),
            }
        }
        Err(CloudError::Protocol(format!("the list of pods has more than {PAGES_MAX} pages")))
    }
}

#[async_trait]
impl Provider for Runpod {
    fn name(&self) -> &'static str {
        "runpod"
    }

    async fn offers(&self) -> Result<Vec<Offer>, CloudError> {
        let mut offers = Vec::new();
        for (cloud, tier) in [("SECURE", Tier::Secure), ("COMMUNITY", Tier::Community)] {
            let path = format!("/v2/catalog/gpus?include=AVAILABILITY&product=POD&cloud={cloud}");
            let list: ListGpus = answers::decode(&self.get(&path).await?, "list of GPUs")?;
            offers.extend(list.gpus.into_iter().filter_map(|gpu| gpu.offer(tier)));
        }
        let list: ListCpus = answers::decode(
            &self.get("/v2/catalog/cpus?include=AVAILABILITY&product=POD").await?,
            "list of CPUs",
        )?;
        offers.extend(list.cpus.into_iter().map(wire::CpuType::offer));
        Ok(offers)
    }

    async fn create(&self, order: &Order) -> Result<Rented, CloudError> {
        self.create_once(order).await
    }

    async fn list(&self) -> Result<Vec<Rented>, CloudError> {
        Ok(self.list_all().await?.into_iter().map(PodBody::rented).collect())
    }

    async fn terminate(&self, pod: &PodId) -> Result<(), CloudError> {
        // Ending twice is ending once, so this may be tried again after a lost answer.
        let path = format!("/v2/pods/{}", encode(&pod.0));
        let mut tries = 0;
        loop {
            tries += 1;
            let fault = match self.server.send(Method::DELETE, &path, None).await {
                Ok(answer) if matches!(answer.status, 200 | 202 | 204 | 404) => return Ok(()),
                Ok(answer) => answers::fault(&answer, &path),
                Err(HttpError::Address(why)) => return Err(CloudError::Invalid(why)),
                Err(lost) => CloudError::Uncertain(lost.to_string()),
            };
            let pause = match &fault {
                CloudError::RateLimited { retry_after } if *retry_after <= self.options.wait_max => {
                    *retry_after
                }
                CloudError::Uncertain(_) => self.options.settle,
                _ => return Err(fault),
            };
            if tries >= self.options.tries {
                return Err(fault);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn log_tail(&self, pod: &PodId, lines: usize) -> Result<Vec<String>, CloudError> {
        // The stream stays open for lines to come, so it is read until it has been quiet for a moment.
        let path = format!("/v2/pods/{}/logs?tail={}", encode(&pod.0), lines.min(LOG_LINES_MAX));
        match self.server.listen(&path, LOG_BYTES_MAX, LOG_QUIET).await {
            Ok(answer) if answer.status == 200 => {
                let mut told = wire::log_lines(&answer.body);
                told.drain(..told.len().saturating_sub(lines));
                Ok(told)
            }
            Ok(answer) => Err(answers::fault(&answer, &path)),
            Err(HttpError::Address(why)) => Err(CloudError::Invalid(why)),
            Err(lost) => Err(CloudError::Unreachable(lost.to_string())),
        }
    }

    async fn billing(&self, from_ms: u64, to_ms: u64) -> Result<Vec<Bill>, CloudError> {
        let path = format!(
            "/v2/billing/pods?startTime={}&endTime={}&bucketSize=hour",
            encode(&to_rfc3339(from_ms)),
            encode(&to_rfc3339(to_ms))
        );
        let list: ListPodBilling = answers::decode(&self.get(&path).await?, "pod billing")?;
        list.records.into_iter().map(PodBillingRecord::bill).collect()
    }
}

/// Terminates the pod that this process runs in, by the variables that RunPod sets in every pod.
pub async fn end_this_pod(
    base: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(), CloudError> {
    let missing = |name: &str| CloudError::Invalid(format!("{name} is not set: this is not a RunPod pod"));
    let pod = variable("RUNPOD_POD_ID").ok_or_else(|| missing("RUNPOD_POD_ID"))?;
    let key = variable("RUNPOD_API_KEY").ok_or_else(|| missing("RUNPOD_API_KEY"))?;
    let mut options = Options::new(Secret::new(key));
    if let Some(base) = base {
        base.clone_into(&mut options.base);
    }
    Runpod::new(options)?.terminate(&PodId(pod)).await
}
