//! What a pod costs while it runs, to the micro-dollar: every interval's cost goes to the batches whose tokens it
//! made, the rest is idle, and attributed + idle = billed exactly.

use std::time::Duration;

use ternfleet_proto::{MonoMs, UsdMicro};

use super::event::BatchSlot;

const MS_PER_HOUR: i128 = 3_600_000;

/// The running bill of one pod.
#[derive(Debug, Clone)]
pub struct Bill {
    price_usd_micro_per_hour: UsdMicro,
    accrued_to: MonoMs,
    /// What the rounding down has left over, in micro-dollars × milliseconds per hour.
    remainder: i128,
    pub billed: UsdMicro,
    pub attributed: UsdMicro,
    /// Everything that no batch pays for: boot and drain included.
    pub idle: UsdMicro,
    /// Of `idle`, before the first worker was heard of.
    pub boot: UsdMicro,
    /// Of `idle`, after the pod was told to end.
    pub drain: UsdMicro,
    /// Tokens made since the last accrual, by batch.
    tokens: Vec<(BatchSlot, u64)>,
}

/// One interval's cost, split.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    pub idle: UsdMicro,
    pub by_batch: Vec<(BatchSlot, UsdMicro)>,
}

impl Share {
    pub fn total(&self) -> UsdMicro {
        self.idle + self.by_batch.iter().map(|(_, cost)| *cost).sum()
    }
}

impl Bill {
    pub fn new(now: MonoMs, price_usd_micro_per_hour: UsdMicro) -> Self {
        Self {
            price_usd_micro_per_hour: UsdMicro(price_usd_micro_per_hour.0.max(0)),
            accrued_to: now,
            remainder: 0,
            billed: UsdMicro::ZERO,
            attributed: UsdMicro::ZERO,
            idle: UsdMicro::ZERO,
            boot: UsdMicro::ZERO,
            drain: UsdMicro::ZERO,
            tokens: Vec::new(),
        }
    }

    pub fn price(&self) -> UsdMicro {
        self.price_usd_micro_per_hour
    }

    /// The price from now on; the caller accrues first.
    pub fn set_price(&mut self, price_usd_micro_per_hour: UsdMicro) {
        self.price_usd_micro_per_hour = UsdMicro(price_usd_micro_per_hour.0.max(0));
    }

    /// The pod was paid for before it was known here: for so long it booted.
    pub fn backdate(&mut self, span: Duration) -> UsdMicro {
        let cost = self.price_usd_micro_per_hour.over(span);
        self.billed += cost;
        self.idle += cost;
        self.boot += cost;
        cost
    }

    /// The pod made tokens for this batch.
    pub fn made(&mut self, batch: BatchSlot, tokens: u64) {
        if tokens == 0 {
            return;
        }
        match self.tokens.iter_mut().find(|(b, _)| *b == batch) {
            Some((_, sum)) => *sum += tokens,
            None => self.tokens.push((batch, tokens)),
        }
    }

    /// Bills the time up to `now`. `busy_ratio` (0 to 1) of it goes to the batches in proportion to their tokens,
    /// never more than `room` allows each (its budget left); everything else is idle.
    pub fn accrue(
        &mut self,
        now: MonoMs,
        busy_ratio: f64,
        mut room: impl FnMut(BatchSlot) -> UsdMicro,
    ) -> Share {
        let span_ms = now.since(self.accrued_to).as_millis() as i128;
        self.accrued_to = self.accrued_to.max(now);
        let due = i128::from(self.price_usd_micro_per_hour.0) * span_ms + self.remainder;
        self.remainder = due % MS_PER_HOUR;
        let cost = i64::try_from(due / MS_PER_HOUR).unwrap_or(i64::MAX);
        let busy_ratio = if busy_ratio.is_finite() { busy_ratio.clamp(0.0, 1.0) } else { 1.0 };
        let mut busy_left = ((cost as f64 * busy_ratio) as i64).clamp(0, cost);
        let tokens = std::mem::take(&mut self.tokens);
        let mut tokens_left: u64 = tokens.iter().map(|(_, n)| *n).sum();
        let mut by_batch = Vec::new();
        let mut attributed = 0i64;
        for (batch, made) in tokens {
            // Each takes its part of what is left, so the parts add up without a rounding error.
            let part = (i128::from(busy_left) * i128::from(made) / i128::from(tokens_left.max(1))) as i64;
            busy_left -= part;
            tokens_left -= made;
            let part = part.min(room(batch).0.max(0));
            if part > 0 {
                attributed += part;
                by_batch.push((batch, UsdMicro(part)));
            }
        }
        let share = Share { idle: UsdMicro(cost - attributed), by_batch };
        self.billed += UsdMicro(cost);
        self.attributed += UsdMicro(attributed);
        self.idle += share.idle;
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn attributed_and_idle_add_up_to_billed(
            price in 0i64..100_000_000,
            steps in prop::collection::vec((0u64..100_000, 0.0f64..1.2, prop::collection::vec((0u32..4, 0u64..10_000), 0..5)), 1..50),
        ) {
            let mut bill = Bill::new(MonoMs(0), UsdMicro(price));
            let mut now = 0;
            for (span, busy, tokens) in steps {
                for (batch, made) in tokens {
                    bill.made(BatchSlot(batch), made);
                }
                now += span;
                let share = bill.accrue(MonoMs(now), busy, |b| UsdMicro(if b.0 == 3 { 5 } else { i64::MAX }));
                prop_assert!(share.by_batch.iter().all(|(b, cost)| b.0 != 3 || cost.0 <= 5));
                prop_assert_eq!(bill.attributed + bill.idle, bill.billed);
            }
            // The sum of many small intervals is the bill of the one long interval.
            prop_assert_eq!(bill.billed.0, (i128::from(price) * i128::from(now) / MS_PER_HOUR) as i64);
        }
    }

    #[test]
    fn an_hour_of_work_for_one_batch_costs_the_hourly_price() {
        let mut bill = Bill::new(MonoMs(0), UsdMicro(340_000));
        for second in 1..=3600 {
            bill.made(BatchSlot(1), 20);
            bill.accrue(MonoMs(second * 1000), 1.0, |_| UsdMicro(i64::MAX));
        }
        assert_eq!(bill.attributed, UsdMicro(340_000));
    }

    #[test]
    fn a_clock_that_goes_back_bills_nothing_twice() {
        let mut bill = Bill::new(MonoMs(10_000), UsdMicro(3_600_000));
        bill.accrue(MonoMs(20_000), 0.0, |_| UsdMicro(0));
        bill.accrue(MonoMs(15_000), 0.0, |_| UsdMicro(0));
        bill.accrue(MonoMs(20_000), 0.0, |_| UsdMicro(0));
        assert_eq!(bill.billed, UsdMicro(10_000));
    }
}
