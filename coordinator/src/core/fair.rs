//! Who is next: the tenant that has had the fewest tokens, and of its batches the one that has had the fewest, by priority
//! with ageing. It knows no jobs: the caller says what the next job of a batch would cost.

use std::collections::{BTreeMap, BTreeSet};

use ternfleet_proto::{MonoMs, TenantId};

use super::batch::Batch;
use super::event::BatchSlot;

/// A priority level that has waited this long is served as if it were one higher.
const AGEING_MS: u64 = 30_000;

/// What a batch, or a tenant, has to hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer<T = u32> {
    /// It leaves the order, and may join it again.
    Nothing,
    /// It has a job that has to wait. It keeps its turn, and is not asked again until all are asked again.
    Later,
    /// A job of so many tokens.
    Job(T),
    /// Nobody is to be asked now.
    Enough,
}

/// Keys by the tokens that each has had: whoever has had least is next. A newcomer counts as if it had had as much as the
/// one that is next, so that it makes up for nothing. What a key gives back leaves no trace.
#[derive(Debug)]
struct Shares<K> {
    /// Tokens and key of whoever takes part and is still to be asked.
    order: BTreeSet<(i64, K)>,
    /// Those that have to wait: they take part, and are not asked.
    aside: Vec<K>,
    /// Tokens of whoever takes part.
    members: BTreeMap<K, i64>,
    /// Tokens of those that have nothing to hand out now, as long as they have had more than whoever is next.
    left: BTreeMap<K, i64>,
    /// What the last one had had when nobody was left.
    last: i64,
}

impl<K: Copy + Ord> Shares<K> {
    fn new() -> Self {
        Self {
            order: BTreeSet::new(),
            aside: Vec::new(),
            members: BTreeMap::new(),
            left: BTreeMap::new(),
            last: 0,
        }
    }

    /// What whoever is next has had.
    fn least(&self) -> i64 {
        self.order.first().map_or(self.last, |(tokens, _)| *tokens)
    }

    fn join(&mut self, key: K) {
        if !self.members.contains_key(&key) {
            let had = self.left.remove(&key).unwrap_or(i64::MIN);
            self.insert(key, had.max(self.least()));
        }
    }

    fn insert(&mut self, key: K, tokens: i64) {
        self.members.insert(key, tokens);
        self.order.insert((tokens, key));
    }

    fn remove(&mut self, key: K) -> Option<i64> {
        let tokens = self.members.remove(&key)?;
        self.order.remove(&(tokens, key));
        if self.members.is_empty() {
            self.last = tokens;
        }
        Some(tokens)
    }

    /// The next key that has a job, and that job; keys without one leave. Does not pay.
    fn next<T>(&mut self, mut ask: impl FnMut(K) -> Offer<T>) -> Offer<(K, T)> {
        while let Some(&(tokens, key)) = self.order.first() {
            match ask(key) {
                Offer::Job(job) => return Offer::Job((key, job)),
                Offer::Enough => return Offer::Enough,
                Offer::Later => {
                    self.order.remove(&(tokens, key));
                    self.aside.push(key);
                }
                Offer::Nothing => {
                    self.remove(key);
                    self.left.insert(key, tokens);
                    if self.left.len() > 2 * self.members.len() + 64 {
                        let least = self.least();
                        self.left.retain(|_, tokens| *tokens > least);
                    }
                }
            }
        }
        if self.members.is_empty() { Offer::Nothing } else { Offer::Later }
    }

    /// All are asked again.
    fn come_back(&mut self) {
        for key in self.aside.drain(..) {
            if let Some(&tokens) = self.members.get(&key) {
                self.order.insert((tokens, key));
            }
        }
    }

    /// Adds to what a key has had; less than nothing is given back, and then it takes part again.
    fn pay(&mut self, key: K, tokens: i64) {
        let had = self.remove(key).or_else(|| self.left.remove(&key)).unwrap_or_else(|| self.least());
        self.insert(key, had + tokens);
    }
}

#[derive(Debug)]
struct Level {
    shares: Shares<BatchSlot>,
    served_at: MonoMs,
}

#[derive(Debug, Default)]
struct Tenant {
    /// By priority.
    levels: BTreeMap<i8, Level>,
}

impl Tenant {
    /// The next batch of this tenant and the tokens of its next job. Does not pay.
    fn candidate(
        &mut self,
        now: MonoMs,
        ask: &mut impl FnMut(BatchSlot) -> Offer,
    ) -> Offer<(i8, BatchSlot, u32)> {
        loop {
            let to_ask = self.levels.iter().filter(|(_, level)| !level.shares.order.is_empty());
            let next = to_ask.max_by_key(|(priority, level)| {
                let waited_ms = now.0.saturating_sub(level.served_at.0);
                (i64::from(**priority) + (waited_ms / AGEING_MS) as i64, **priority)
            });
            let Some((&priority, _)) = next else { break };
            let level = self.levels.get_mut(&priority).expect("because the key was just found");
            match level.shares.next(&mut *ask) {
                Offer::Job((batch, tokens)) => return Offer::Job((priority, batch, tokens)),
                Offer::Enough => return Offer::Enough,
                Offer::Nothing => drop(self.levels.remove(&priority)),
                Offer::Later => {}
            }
        }
        if self.levels.is_empty() { Offer::Nothing } else { Offer::Later }
    }
}

/// Two orders: of the jobs that somebody waits for, which go first, and of all other batches.
#[derive(Debug, Default)]
pub(super) struct Orders {
    interactive: Fair,
    patient: Fair,
}

impl Orders {
    pub(super) fn of(&mut self, interactive: bool) -> &mut Fair {
        if interactive { &mut self.interactive } else { &mut self.patient }
    }

    /// Those that had to wait are asked again.
    pub(super) fn come_back(&mut self) {
        self.interactive.come_back();
        self.patient.come_back();
    }

    /// The batch takes part if it has something to hand out.
    pub(super) fn join(&mut self, now: MonoMs, slot: BatchSlot, batch: &Batch) {
        if batch.runs() && batch.waiting() > 0 {
            let order = self.of(batch.is_interactive());
            order.join(now, &batch.record.tenant, batch.record.options.priority, slot);
        }
    }
}

/// The order of waiting batches.
#[derive(Debug)]
pub(super) struct Fair {
    tenants: Vec<Tenant>,
    slots: BTreeMap<TenantId, usize>,
    shares: Shares<usize>,
}

impl Default for Fair {
    fn default() -> Self {
        Self { tenants: Vec::new(), slots: BTreeMap::new(), shares: Shares::new() }
    }
}

impl Fair {
    /// The batch has jobs to hand out (again). Whoever takes part already keeps its place.
    pub(super) fn join(&mut self, now: MonoMs, tenant: &TenantId, priority: i8, batch: BatchSlot) {
        let slot = match self.slots.get(tenant) {
            Some(slot) => *slot,
            None => {
                self.tenants.push(Tenant::default());
                self.slots.insert(tenant.clone(), self.tenants.len() - 1);
                self.tenants.len() - 1
            }
        };
        self.level(now, slot, priority).shares.join(batch);
        self.shares.join(slot);
    }

    fn level(&mut self, now: MonoMs, tenant: usize, priority: i8) -> &mut Level {
        let levels = &mut self.tenants[tenant].levels;
        levels.entry(priority).or_insert_with(|| Level { shares: Shares::new(), served_at: now })
    }

    /// The batch whose next job is to be assigned now; it has paid for it. `ask` says what a batch has.
    pub(super) fn next(&mut self, now: MonoMs, mut ask: impl FnMut(BatchSlot) -> Offer) -> Option<BatchSlot> {
        let tenants = &mut self.tenants;
        let next = self.shares.next(|slot| tenants[slot].candidate(now, &mut ask));
        let Offer::Job((slot, (priority, batch, tokens))) = next else { return None };
        self.shares.pay(slot, i64::from(tokens));
        if let Some(level) = tenants[slot].levels.get_mut(&priority) {
            level.shares.pay(batch, i64::from(tokens));
            level.served_at = now;
        }
        Some(batch)
    }

    fn come_back(&mut self) {
        self.shares.come_back();
        let levels = self.tenants.iter_mut().flat_map(|tenant| tenant.levels.values_mut());
        levels.for_each(|level| level.shares.come_back());
    }

    /// The job could not be placed after all: its batch has it again, and keeps its turn. Otherwise a job that is larger
    /// than what workers hold in reserve would be overtaken without end.
    pub(super) fn refund(
        &mut self,
        now: MonoMs,
        tenant: &TenantId,
        priority: i8,
        batch: BatchSlot,
        tokens: u32,
    ) {
        if let Some(&slot) = self.slots.get(tenant) {
            self.shares.pay(slot, -i64::from(tokens));
            self.level(now, slot, priority).shares.pay(batch, -i64::from(tokens));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    #[test]
    fn two_tenants_get_the_same_number_of_tokens_whatever_the_size_of_their_jobs() {
        let mut fair = Fair::default();
        fair.join(MonoMs(0), &tenant("a"), 0, BatchSlot(0));
        fair.join(MonoMs(0), &tenant("b"), 0, BatchSlot(1));
        let size = |batch: BatchSlot| if batch.0 == 0 { 100 } else { 3000 };
        let mut tokens = [0u64; 2];
        for _ in 0..2000 {
            let batch = fair.next(MonoMs(0), |b| Offer::Job(size(b))).unwrap();
            tokens[batch.0 as usize] += u64::from(size(batch));
        }
        let difference = tokens[0].abs_diff(tokens[1]);
        assert!(difference <= 3000, "{tokens:?}");
    }

    #[test]
    fn a_short_batch_behind_a_long_one_is_through_after_a_few_jobs() {
        let mut fair = Fair::default();
        let who = tenant("a");
        fair.join(MonoMs(0), &who, 0, BatchSlot(0));
        for _ in 0..100 {
            fair.next(MonoMs(0), |_| Offer::Job(64)).unwrap();
        }
        fair.join(MonoMs(0), &who, 0, BatchSlot(1));
        let mut left = 10;
        let mut handed = 0;
        while left > 0 {
            let batch = fair
                .next(MonoMs(0), |b| if b.0 == 0 || left > 0 { Offer::Job(64) } else { Offer::Nothing })
                .unwrap();
            left -= u32::from(batch.0 == 1);
            handed += 1;
        }
        assert!(handed <= 40, "{handed} jobs until ten short ones were out");
    }

    #[test]
    fn a_higher_priority_goes_first_until_the_lower_one_has_aged() {
        let mut fair = Fair::default();
        let who = tenant("a");
        fair.join(MonoMs(0), &who, 0, BatchSlot(0));
        fair.join(MonoMs(0), &who, 1, BatchSlot(1));
        assert_eq!(fair.next(MonoMs(10), |_| Offer::Job(10)), Some(BatchSlot(1)));
        assert_eq!(fair.next(MonoMs(20), |_| Offer::Job(10)), Some(BatchSlot(1)));
        assert_eq!(
            fair.next(MonoMs(2 * AGEING_MS), |b| if b.0 == 0 { Offer::Job(10) } else { Offer::Nothing }),
            Some(BatchSlot(0))
        );
    }

    #[test]
    fn a_job_that_found_no_room_keeps_its_turn() {
        let mut fair = Fair::default();
        let who = [tenant("a"), tenant("b")];
        for (large, other) in [(&who[0], &who[0]), (&who[1], &who[0])] {
            fair.join(MonoMs(0), other, 0, BatchSlot(0));
            fair.join(MonoMs(0), large, 0, BatchSlot(1));
            let size = |batch: BatchSlot| Offer::Job(if batch.0 == 0 { 100 } else { 3000 });
            while fair.next(MonoMs(0), size) != Some(BatchSlot(1)) {}
            for left in [Offer::Nothing, Offer::Job(3000), Offer::Later, Offer::Nothing] {
                // What is drawn after it comes after it again, whether it was the last job of its batch or not.
                while fair.next(MonoMs(0), |batch| if batch.0 == 0 { Offer::Job(100) } else { left })
                    != Some(BatchSlot(0))
                {}
                fair.refund(MonoMs(0), other, 0, BatchSlot(0), 100);
                fair.refund(MonoMs(0), large, 0, BatchSlot(1), 3000);
                assert_eq!(fair.next(MonoMs(0), size), Some(BatchSlot(1)));
            }
            fair.next(MonoMs(0), |_| Offer::Nothing);
        }
    }

    #[test]
    fn what_found_no_room_earns_its_batch_and_its_tenant_no_second_turn() {
        for tenants in [1, 2] {
            let mut fair = Fair::default();
            let who = [tenant("a"), tenant(if tenants == 1 { "a" } else { "b" })];
            for (batch, owner) in (0..).zip(&who) {
                fair.join(MonoMs(0), owner, 0, BatchSlot(batch));
            }
            let mut handed = [0u32; 2];
            for _ in 0..200 {
                // Far more is drawn than finds room.
                let drawn: Vec<BatchSlot> =
                    (0..40).map(|_| fair.next(MonoMs(0), |_| Offer::Job(100)).unwrap()).collect();
                handed[drawn[0].0 as usize] += 1;
                for batch in drawn[1..].iter().rev() {
                    fair.refund(MonoMs(0), &who[batch.0 as usize], 0, *batch, 100);
                }
            }
            assert!(handed[0].abs_diff(handed[1]) <= 1, "of {tenants} tenants: {handed:?}");
        }
    }

    #[test]
    fn a_batch_whose_lines_are_read_bit_by_bit_gets_no_more_than_its_share() {
        let mut fair = Fair::default();
        let who = tenant("a");
        fair.join(MonoMs(0), &who, 0, BatchSlot(0));
        let mut handed = [0u32; 2];
        for round in 0..400 {
            // Half of the time it has nothing to hand out, and joins again.
            fair.join(MonoMs(0), &who, 0, BatchSlot(1));
            let size = |batch: BatchSlot| match batch.0 {
                0 => Offer::Job(100),
                _ if round / 8 % 2 == 0 => Offer::Job(300),
                _ => Offer::Nothing,
            };
            let batch = fair.next(MonoMs(0), size).unwrap();
            handed[batch.0 as usize] += 1;
        }
        assert!(handed[1] * 3 <= handed[0] && handed[1] * 12 >= handed[0], "{handed:?}");
    }

    #[test]
    fn one_that_has_to_wait_is_passed_over_once_and_keeps_its_turn() {
        let mut fair = Fair::default();
        let who = [tenant("a"), tenant("a"), tenant("b")];
        for (batch, owner) in (0..).zip(&who) {
            fair.join(MonoMs(0), owner, 0, BatchSlot(batch));
        }
        let mut asked = [0; 3];
        for _ in 0..20 {
            let next = fair.next(MonoMs(0), |batch| {
                asked[batch.0 as usize] += 1;
                if batch.0 == 2 { Offer::Job(10) } else { Offer::Later }
            });
            assert_eq!(next, Some(BatchSlot(2)));
        }
        assert_eq!(asked, [1, 1, 20]);
        fair.come_back();
        let turns: Vec<u32> = (0..20).map(|_| fair.next(MonoMs(0), |_| Offer::Job(10)).unwrap().0).collect();
        assert_eq!(turns.iter().filter(|batch| **batch == 2).count(), 0, "{turns:?}");
        assert_eq!(turns.iter().filter(|batch| **batch == 1).count(), 10, "{turns:?}");
    }

    #[test]
    fn nobody_waits_when_nothing_is_there() {
        let mut fair = Fair::default();
        fair.join(MonoMs(0), &tenant("a"), 0, BatchSlot(0));
        assert_eq!(fair.next(MonoMs(0), |_| Offer::Nothing), None);
        assert_eq!(fair.next(MonoMs(0), |_| Offer::Job(1)), None, "whoever had nothing takes no part");
    }
}
