//! What screens ask for: the fleet's sums, which are taken at most once a second however many ask, and its workers page by
//! page.

use std::time::Duration;

use ternfleet_proto::message::{FleetView, PodList, PodView, Spent};
use ternfleet_proto::{MonoMs, Now, TenantId};

use super::account::RentedBefore;
use crate::core::{Core, Summary};

/// Of a page of workers: far below what NATS sends in one message by default, 1 MiB.
const PAGE_BYTES_MAX: usize = 256 << 10;
/// Sums are so old at most, and in a small fleet less.
const FRESH_FOR_MAX: Duration = Duration::from_secs(1);
const FRESH_FOR_A_WORKER: Duration = Duration::from_millis(1);

/// The sums as they were last taken.
#[derive(Debug, Default)]
pub(super) struct Overview {
    taken: Option<(MonoMs, Summary)>,
}

impl Overview {
    fn summary(&mut self, now: MonoMs, core: &Core) -> &Summary {
        let workers = core.fleet().workers.len() as u32;
        let fresh_for = (FRESH_FOR_A_WORKER * workers).min(FRESH_FOR_MAX);
        let fresh = |at: MonoMs| now.since(at) < fresh_for;
        let taken = match self.taken.take() {
            Some((at, summary)) if fresh(at) => (at, summary),
            _ => (now, core.summary()),
        };
        &self.taken.insert(taken).1
    }

    pub(super) fn fleet_view(
        &mut self,
        now: Now,
        core: &Core,
        viewer: Option<&TenantId>,
        rented_before: Option<RentedBefore>,
    ) -> FleetView {
        let (account, leased) = (core.account(), core.money().leased_total());
        let spent = rented_before.map(|before| Spent {
            since: account.since.unwrap_or(now.wall),
            total_usd_micro: account.unrented_usd_micro + before.total + leased,
            today_usd_micro: account.today(now.wall) + before.today + leased,
            rented_usd_micro: before.total + leased,
        });
        let (pods, next) = core.pod_page(viewer, None, PAGE_BYTES_MAX);
        let Summary { classes, models } = self.summary(now.mono, core).clone();
        let lost = account.lost.iter().cloned().collect();
        FleetView { pods, next, classes, models, tokens: core.counts.worker_tokens, lost, spent }
    }
}

/// The page that is asked for.
pub(super) fn pods(core: &Core, viewer: Option<&TenantId>, ask: Option<PodList>) -> Vec<PodView> {
    let after = ask.unwrap_or_default().after;
    core.pod_page(viewer, after.as_ref(), PAGE_BYTES_MAX).0
}
