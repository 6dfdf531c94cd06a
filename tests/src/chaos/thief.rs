//! Somebody with a stolen worker's key, beside all other faults: tells every lie that the key lets through, without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ternfleet_proto::bus::{Bus, Publish};
use ternfleet_proto::message::{BatchList, BatchView, PodView, Reply};
use ternfleet_proto::table::{self, ApiVerb};
use ternfleet_proto::{JobKey, TenantId, WorkerId, codec};

use crate::cluster::Cluster;
use crate::hostile;

/// In whose name the callers ask.
pub(super) const TENANT: &str = "acme";
const NAME: &str = "stolen";
const BETWEEN: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(2);
/// Jobs of a batch that it meddles with in one round.
const JOBS_A_ROUND: u32 = 4;

#[derive(Debug)]
pub(super) struct Thief {
    stop: Arc<AtomicBool>,
    forged: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Thief {
    /// Begins while every server answers.
    pub(super) fn start(site: &Cluster) -> anyhow::Result<Thief> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (bus, eyes) = runtime.block_on(async {
            let bus = site.bus(&site.user("worker", NAME)?).await?;
            // The ids of batches are no secret that anything rests on.
            let eyes = site.bus(&site.user("tenant", TENANT)?).await?;
            anyhow::Ok((bus, eyes))
        })?;
        let (stop, forged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let lies = Lies {
            me: NAME.parse().context("the thief's name")?,
            tenant: TENANT.parse().context("the callers' name")?,
            bus,
            eyes,
            forged: Arc::clone(&forged),
        };
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                for round in 0u32.. {
                    if until.load(Ordering::Relaxed) {
                        break;
                    }
                    lies.tell(round).await;
                    tokio::time::sleep(BETWEEN).await;
                }
                tokio::join!(lies.bus.close(), lies.eyes.close());
            });
        });
        Ok(Thief { stop, forged, thread: Some(thread) })
    }

    /// Ends it; answers how many messages were forged.
    pub(super) fn stop(mut self) -> u64 {
        self.end();
        self.forged.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.end();
    }
}

struct Lies {
    me: WorkerId,
    tenant: TenantId,
    bus: Arc<dyn Bus>,
    eyes: Arc<dyn Bus>,
    forged: Arc<AtomicU64>,
}

impl Lies {
    async fn ask<A: DeserializeOwned>(&self, verb: ApiVerb, question: &impl Serialize) -> Option<A> {
        let subject = table::api_of(verb, &self.tenant);
        let answer = self.eyes.request(&subject, codec::encode(question), PATIENCE).await.ok()?;
        codec::decode::<Reply<A>>(&answer).ok()?.ok()
    }

    async fn publish(&self, (subject, payload): (String, Bytes)) {
        let sent = self.bus.publish(&subject, payload, Publish::default());
        if matches!(tokio::time::timeout(PATIENCE, sent).await, Ok(Ok(_))) {
            self.forged.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn tell(&self, round: u32) {
        let list = BatchList { tenant: self.tenant.clone(), after: None, limit: 4 };
        let (Some(pods), Some(batches)) = (
            self.ask::<Vec<PodView>>(ApiVerb::Pods, &()).await,
            self.ask::<Vec<BatchView>>(ApiVerb::BatchList, &list).await,
        ) else {
            return;
        };
        let jobs: Vec<JobKey> = batches
            .iter()
            .filter(|batch| !batch.state.is_terminal())
            .flat_map(|batch| {
                let (id, lines) = (batch.id.clone(), batch.total.max(1));
                let index = move |n| (round * JOBS_A_ROUND + n) % lines;
                (0..JOBS_A_ROUND).map(move |n| JobKey { batch: id.clone(), index: index(n) })
            })
            .collect();
        let others: Vec<&PodView> = pods.iter().filter(|pod| pod.heartbeat.worker != self.me).collect();
        if let Some(victim) = others.get(round as usize % others.len().max(1)) {
            let beat = hostile::lies(&self.me, &victim.heartbeat, jobs.iter().cloned());
            if self.bus.send(&table::heartbeat(&self.me), codec::encode(&beat)).await.is_ok() {
                self.forged.fetch_add(1, Ordering::Relaxed);
            }
        }
        for job in jobs {
            let rewritten = hostile::rewrite(&*self.bus, &job);
            if matches!(tokio::time::timeout(PATIENCE, rewritten).await, Ok(true)) {
                self.forged.fetch_add(1, Ordering::Relaxed);
            }
            self.publish(hostile::forged_answer(&self.me, &self.tenant, job.clone())).await;
            // Claims over all jobs alike would only say once more what the rewritten ones say.
            if job.index.is_multiple_of(3) {
                self.publish(hostile::forged_checkpoint(&self.me, job)).await;
            }
        }
    }
}
