//! A provider of pods in memory: what it rents, what that costs, and what can go wrong with it.

use std::time::Duration;

use async_trait::async_trait;
use ternfleet_cloud::{
    Availability, Bill as PodBill, CloudError, Compute, Hardware, Offer, Order, PodId, Provider, Rented,
    Status, Tier,
};
use ternfleet_coordinator::{ClassOptions, PodOptions, ProviderKind, ScaleOptions};
use ternfleet_proto::table;

use super::network::Network;
use super::scenario::Rent;

const CLASS: &str = "cpu";
const HARDWARE: &str = "cpu5c";
const VCPUS: u32 = 16;
/// Of the scaler, so that a simulation need not last an hour.
const TICK_MS: u64 = 1_000;

/// What the provider answers instead of doing what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The account is empty.
    NoBalance,
    NoRoom,
    Unreachable,
    /// It does it, and the answer is lost.
    AnswerLost,
    TooManyRequests,
    /// Code of ours that asks it meets something that it does not expect.
    Panic,
}

/// All pods there ever were, and what is wrong now.
#[derive(Debug, Default)]
pub(super) struct Cloud {
    rent: Option<Rent>,
    pods: Vec<Pod>,
    pub(super) troubles: Vec<Trouble>,
    /// Pods that are created now never come to work.
    pub(super) barren: u32,
}

/// What all pods there ever were have cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bill {
    pub(super) pods: usize,
    pub(super) price_usd_micro_per_hour: i64,
    pub(super) owed_usd_micro: i64,
}

#[derive(Debug)]
struct Pod {
    id: String,
    name: String,
    created_ms: u64,
    boots_at_ms: Option<u64>,
    ended_ms: Option<u64>,
    has_exited: bool,
    /// Where its worker runs.
    place: Option<usize>,
}

impl Cloud {
    pub(super) fn new(rent: Option<Rent>) -> Cloud {
        Cloud { rent, ..Cloud::default() }
    }

    fn alive(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| pod.ended_ms.is_none())
    }

    /// Those that are still paid for.
    pub(super) fn names_alive(&self) -> Vec<String> {
        self.alive().map(|pod| pod.name.clone()).collect()
    }

    /// Pods that have booted and run nowhere yet get places that are free; answers those.
    pub(super) fn boot(&mut self, now_ms: u64, places: impl Iterator<Item = usize>) -> Vec<usize> {
        let taken: Vec<usize> = self.alive().filter_map(|pod| pod.place).collect();
        let free = places.filter(|place| !taken.contains(place));
        let waiting = self.pods.iter_mut().filter(|pod| {
            pod.ended_ms.is_none() && pod.place.is_none() && pod.boots_at_ms.is_some_and(|at| at <= now_ms)
        });
        let mut booted = Vec::new();
        for (pod, place) in waiting.zip(free) {
            pod.place = Some(place);
            booted.push(place);
        }
        booted
    }

    /// Name and host of the pod whose worker runs here.
    pub(super) fn pod_at(&self, place: usize) -> Option<(String, String)> {
        let pod = self.alive().find(|pod| pod.place == Some(place) && !pod.has_exited)?;
        Some((pod.name.clone(), format!("host-{}", pod.id)))
    }

    /// The worker has left by itself.
    pub(super) fn exited(&mut self, place: usize) {
        let mut pods = self.pods.iter_mut();
        if let Some(pod) = pods.find(|pod| pod.place == Some(place) && pod.ended_ms.is_none()) {
            pod.has_exited = true;
        }
    }

    /// The provider takes a pod away without a word.
    pub(super) fn lose(&mut self, now_ms: u64, place: usize) {
        let mut pods = self.pods.iter_mut();
        if let Some(pod) = pods.find(|pod| pod.place == Some(place) && pod.ended_ms.is_none()) {
            pod.ended_ms = Some(now_ms);
        }
    }

    pub(super) fn bill(&self, now_ms: u64) -> Bill {
        let price = self.rent.as_ref().map_or(0, |rent| rent.price_usd_micro_per_hour);
        let ms: u64 = self.pods.iter().map(|pod| pod.ended_ms.unwrap_or(now_ms) - pod.created_ms).sum();
        Bill {
            pods: self.pods.len(),
            price_usd_micro_per_hour: price,
            owed_usd_micro: (i128::from(price) * i128::from(ms) / 3_600_000) as i64,
        }
    }

    fn rented(&self, pod: &Pod) -> Rented {
        Rented {
            id: PodId(pod.id.clone()),
            name: pod.name.clone(),
            status: if pod.has_exited { Status::Exited } else { Status::Running },
            price_usd_micro_per_hour: self.rent.as_ref().map(|rent| rent.price_usd_micro_per_hour),
            data_center: None,
            vcpus: Some(VCPUS),
            memory_gb: None,
            created_at_ms: Some(pod.created_ms),
            started_at_ms: None,
            ports: Vec::new(),
        }
    }
}

/// The scaler's settings for these pods.
pub(super) fn options(rent: &Rent) -> ScaleOptions {
    let class = ClassOptions {
        name: CLASS.to_owned(),
        price_usd_per_hour: rent.price_usd_micro_per_hour as f64 / 1e6,
        rate_tok_s: 100.0,
        boot_s: rent.boot_ms as f64 / 1e3,
        pods_max: rent.pods_max,
        cpu: Some(HARDWARE.to_owned()),
        vcpus: VCPUS,
        model: Some("model".to_owned()),
        ..ClassOptions::default()
    };
    ScaleOptions {
        provider: ProviderKind::Runpod,
        pods_max: rent.pods_max,
        idle_limit_s: 10.0,
        lease_s: 60.0,
        ready_limit_s: 30.0,
        silence_limit_s: 15.0,
        order_limit_s: 20.0,
        refusal_s: 10.0,
        tick_ms: TICK_MS,
        reconcile_s: 30,
        classes: vec![class],
        pod: PodOptions { image: "ternfleet".to_owned(), ..PodOptions::default() },
        ..ScaleOptions::default()
    }
}

/// A request takes less unless its sender is stopped.
const LATE_MS: u64 = 500;

/// The provider as one coordinator reaches it.
#[derive(Debug)]
pub(super) struct SimProvider(pub(super) Network);

impl SimProvider {
    async fn trouble(&self) -> Option<Trouble> {
        let ms = self.0.chance(|chance| chance.within(20, 400));
        tokio::time::sleep(Duration::from_millis(ms)).await;
        let trouble = self.0.cloud().troubles.last().copied();
        assert_ne!(trouble, Some(Trouble::Panic), "the simulated provider panics");
        trouble
    }

    /// What may be broken by an order, and the order. Before a late one the caller was stopped, after it had looked at its
    /// lease: then another may have ordered, and a surplus pod is the documented limit.
    fn rent(&self, order: &Order, is_late: bool) -> Rented {
        let key = format!("pod.{}", order.name);
        let intent = self.0.bus.look(|net, now| net.kv_get(now, table::KV_SCALE, &key).ok().flatten());
        let boots_at_ms = self.0.chance(|chance| chance.within(500, 1_500));
        let now_ms = self.0.now_ms();
        let mut cloud = self.0.cloud();
        let rent = cloud.rent.clone().expect("because only a fleet that rents has a scaler");
        let known = cloud.pods.iter().find(|pod| pod.name == order.name);
        let mut broken = None;
        if let Some(pod) = known {
            if pod.ended_ms.is_some() && !is_late {
                broken = Some(format!("S2: {} was ordered again after it had ended", order.name));
            }
            let rented = cloud.rented(pod);
            drop(cloud);
            broken.into_iter().for_each(|broken| self.0.check().fail(broken));
            return rented;
        }
        if intent.is_none() && !is_late {
            broken = Some(format!("S1: {} was ordered before it was written down", order.name));
        }
        let is_barren = cloud.barren > 0;
        let pod = Pod {
            id: format!("p{}", cloud.pods.len()),
            name: order.name.clone(),
            created_ms: now_ms,
            boots_at_ms: (!is_barren).then_some(now_ms + rent.boot_ms * boots_at_ms / 1_000),
            ended_ms: None,
            has_exited: false,
            place: None,
        };
        let rented = cloud.rented(&pod);
        cloud.pods.push(pod);
        let alive = cloud.alive().count();
        if alive > rent.pods_max as usize && !is_late {
            broken = Some(format!("S3: {alive} pods are rented, and {} may be", rent.pods_max));
        }
        drop(cloud);
        broken.into_iter().for_each(|broken| self.0.check().fail(broken));
        rented
    }
}

fn refused(trouble: Option<Trouble>) -> Result<(), CloudError> {
    Err(match trouble {
        None | Some(Trouble::AnswerLost | Trouble::Panic) => return Ok(()),
        Some(Trouble::NoBalance) => CloudError::NoBalance("402".to_owned()),
        Some(Trouble::NoRoom) => CloudError::NoCapacity("no instances".to_owned()),
        Some(Trouble::Unreachable) => CloudError::Unreachable("simulated".to_owned()),
        Some(Trouble::TooManyRequests) => CloudError::RateLimited { retry_after: Duration::from_secs(2) },
    })
}

/// The answer on its way back.
fn told<T>(trouble: Option<Trouble>, answer: T) -> Result<T, CloudError> {
    match trouble {
        Some(Trouble::AnswerLost) => Err(CloudError::Uncertain("503".to_owned())),
        _ => Ok(answer),
    }
}

/// Reading costs nothing and needs no room.
fn readable(trouble: Option<Trouble>) -> Result<(), CloudError> {
    match trouble {
        Some(Trouble::NoBalance | Trouble::NoRoom) => Ok(()),
        trouble => refused(trouble).and_then(|()| told(trouble, ())),
    }
}

#[async_trait]
impl Provider for SimProvider {
    fn name(&self) -> &'static str {
        "simulated"
    }

    async fn offers(&self) -> Result<Vec<Offer>, CloudError> {
        readable(self.trouble().await)?;
        let price = self.0.cloud().rent.as_ref().map_or(0, |rent| rent.price_usd_micro_per_hour);
        Ok(vec![Offer {
            hardware: Hardware::Whole { id: HARDWARE.to_owned() },
            tier: Tier::Secure,
            unit_price_usd_micro_per_hour: price,
            availability: Availability::High,
            places: Vec::new(),
        }])
    }

    async fn create(&self, order: &Order) -> Result<Rented, CloudError> {
        let sent_at_ms = self.0.now_ms();
        let trouble = self.trouble().await;
        refused(trouble)?;
        let took_ms = self.0.now_ms() - sent_at_ms;
        assert_eq!(order.compute, Compute::Cpu { id: HARDWARE.to_owned(), vcpus: VCPUS });
        told(trouble, self.rent(order, took_ms > LATE_MS))
    }

    async fn list(&self) -> Result<Vec<Rented>, CloudError> {
        readable(self.trouble().await)?;
        let cloud = self.0.cloud();
        Ok(cloud.alive().map(|pod| cloud.rented(pod)).collect())
    }

    async fn terminate(&self, pod: &PodId) -> Result<(), CloudError> {
        let trouble = self.trouble().await;
        readable(trouble.filter(|trouble| *trouble != Trouble::AnswerLost))?;
        let now_ms = self.0.now_ms();
        if let Some(pod) = self.0.cloud().pods.iter_mut().find(|known| known.id == pod.0) {
            pod.ended_ms.get_or_insert(now_ms);
        }
        told(trouble, ())
    }

    async fn log_tail(&self, _: &PodId, _: usize) -> Result<Vec<String>, CloudError> {
        readable(self.trouble().await)?;
        Ok(vec!["it does not start".to_owned()])
    }

    async fn billing(&self, from_ms: u64, to_ms: u64) -> Result<Vec<PodBill>, CloudError> {
        readable(self.trouble().await)?;
        let cloud = self.0.cloud();
        let price = cloud.rent.as_ref().map_or(0, |rent| rent.price_usd_micro_per_hour);
        let bill = |pod: &Pod| PodBill {
            pod: PodId(pod.id.clone()),
            from_ms,
            to_ms,
            amount_usd_micro: price * pod.ended_ms.unwrap_or(to_ms).saturating_sub(pod.created_ms) as i64
                / 3_600_000,
        };
        Ok(cloud.pods.iter().map(bill).collect())
    }
}
