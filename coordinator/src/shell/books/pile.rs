//! What waits to be written into the books. Bounded by what there is: one record a batch, one sum a pod, whatever the time
//! that writing takes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ternfleet_proto::message::{BatchView, EventKind, PodSpent, Reply};
use ternfleet_proto::{BatchId, TimeMs};
use tokio::sync::Notify;

use super::{Entry, ReplyTo};
use crate::core::{Account, BatchRecord};

/// Pods whose spending one event tells.
const PODS_A_MESSAGE: usize = 1000;
/// Events that are written at a time.
const AUDITS_AT_A_TIME: usize = 256;
/// Events that wait; while NATS is away for long the oldest are given up.
const AUDITS_MAX: usize = 100_000;

/// What is to be written next.
#[derive(Debug)]
pub(crate) enum Next {
    Record(Box<BatchRecord>),
    Answer { batch: BatchId, reply: ReplyTo, answer: Box<Reply<BatchView>> },
    Account(Box<Account>),
    Audits(Vec<(TimeMs, EventKind)>),
}

#[derive(Debug, Default)]
struct Waiting {
    /// What callers wait for, and changes of batches with what is said about them, in their order.
    first: VecDeque<Next>,
    account: Option<Box<Account>>,
    /// What each pod has spent since it was last written.
    spent: BTreeMap<String, PodSpent>,
    spent_at: TimeMs,
    audits: VecDeque<(TimeMs, EventKind)>,
    /// The newest record of batches whose totals alone have changed.
    totals: BTreeMap<BatchId, Box<BatchRecord>>,
    closed: bool,
}

impl Waiting {
    fn put(&mut self, entry: Entry) {
        match entry {
            Entry::Record(record) => {
                // It has the same totals or later ones.
                self.totals.remove(&record.id);
                self.first.push_back(Next::Record(record));
            }
            Entry::Answer { batch, reply, answer } => {
                self.first.push_back(Next::Answer { batch, reply, answer });
            }
            Entry::Totals(record) => _ = self.totals.insert(record.id.clone(), record),
            Entry::Account(account) => self.account = Some(account),
            Entry::Audit(at, what @ EventKind::BatchChanged { .. }) => {
                self.first.push_back(Next::Audits(vec![(at, what)]));
            }
            Entry::Audit(at, EventKind::SpentByPods { pods }) => {
                self.spent_at = at;
                for spent in pods {
                    match self.spent.get_mut(&spent.pod) {
                        Some(before) => before.add(spent),
                        None => _ = self.spent.insert(spent.pod.clone(), spent),
                    }
                }
            }
            Entry::Audit(at, what) => {
                if self.audits.len() == AUDITS_MAX {
                    self.audits.pop_front();
                    tracing::warn!("an event is given up: too many wait to be stored");
                }
                self.audits.push_back((at, what));
            }
        }
    }

    fn next(&mut self) -> Option<Next> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        if let Some(account) = self.account.take() {
            return Some(Next::Account(account));
        }
        if !self.spent.is_empty() {
            let behind = self.spent.keys().nth(PODS_A_MESSAGE).cloned();
            let rest = behind.map(|pod| self.spent.split_off(&pod)).unwrap_or_default();
            let pods = std::mem::replace(&mut self.spent, rest).into_values().collect();
            return Some(Next::Audits(vec![(self.spent_at, EventKind::SpentByPods { pods })]));
        }
        if !self.audits.is_empty() {
            let count = self.audits.len().min(AUDITS_AT_A_TIME);
            return Some(Next::Audits(self.audits.drain(..count).collect()));
        }
        self.totals.pop_first().map(|(_, record)| Next::Record(record))
    }
}

/// The pile, as the loop and the writer share it.
#[derive(Debug, Default)]
pub(crate) struct Pile {
    waiting: Mutex<Waiting>,
    more: Notify,
}

impl Pile {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, entry: Entry) {
        self.lock().put(entry);
        self.more.notify_one();
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.more.notify_one();
    }

    /// The next, as soon as there is one; `None` when it is closed and empty.
    pub(super) async fn next(&self) -> Option<Next> {
        loop {
            {
                let mut waiting = self.lock();
                if let Some(next) = waiting.next() {
                    return Some(next);
                }
                if waiting.closed {
                    return None;
                }
            }
            self.more.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ternfleet_proto::message::{Refusal, RefusalCode};
    use ternfleet_proto::openai::Endpoint;
    use ternfleet_proto::table::ApiVerb;
    use ternfleet_proto::{TenantId, UsdMicro};

    use super::super::super::micro::Micro;
    use super::*;

    fn record(name: &str, cost: i64) -> Box<BatchRecord> {
        let id = name.parse().unwrap();
        let tenant = TenantId::default_tenant();
        let mut record = BatchRecord::single(TimeMs(0), id, tenant, Endpoint::Completions, TimeMs(9));
        record.totals.cost_usd_micro = UsdMicro(cost);
        record.into()
    }

    fn spent(pod: usize, from: u64) -> PodSpent {
        PodSpent {
            pod: format!("pod-{pod}"),
            from: TimeMs(from),
            to: TimeMs(from + 10),
            idle_usd_micro: UsdMicro(1),
            over_budget_usd_micro: UsdMicro::ZERO,
            by_batch: vec![("b".parse().unwrap(), UsdMicro(2))],
        }
    }

    #[test]
    fn what_a_caller_waits_for_is_written_before_the_money_of_ten_thousand_pods() {
        let mut waiting = Waiting::default();
        for turn in 0..5 {
            let pods = (0..10_000).map(|pod| spent(pod, turn * 10)).collect();
            waiting.put(Entry::Audit(TimeMs(turn), EventKind::SpentByPods { pods }));
            waiting.put(Entry::Totals(record("b", turn as i64)));
        }
        let micro = Arc::new(Micro::new("test", TimeMs(0)));
        let reply = ReplyTo::new("_INBOX.x".to_owned(), ApiVerb::BatchCancel, micro);
        let answer =
            Box::new(Err(Refusal { code: RefusalCode::Busy, message: String::new(), retry_after_ms: None }));
        waiting.put(Entry::Record(record("c", 0)));
        waiting.put(Entry::Answer { batch: "c".parse().unwrap(), reply, answer });
        assert!(matches!(waiting.next(), Some(Next::Record(record)) if record.id.as_str() == "c"));
        assert!(matches!(waiting.next(), Some(Next::Answer { .. })));
        // An outage of any length leaves one sum a pod and one record a batch.
        let (mut events, mut sums) = (0, Vec::new());
        while let Some(next) = waiting.next() {
            match next {
                Next::Audits(mut audits) => {
                    let Some((_, EventKind::SpentByPods { pods })) = audits.pop() else { panic!() };
                    events += 1;
                    sums.extend(pods);
                }
                Next::Record(last) => assert_eq!(last, record("b", 4)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((events, sums.len()), (10, 10_000));
        let of = |sum: &PodSpent| (sum.from, sum.to, sum.idle_usd_micro, sum.by_batch[0].1);
        assert!(sums.iter().all(|sum| of(sum) == (TimeMs(0), TimeMs(50), UsdMicro(5), UsdMicro(10))));
    }

    #[test]
    fn a_record_is_not_followed_by_older_totals() {
        let mut waiting = Waiting::default();
        waiting.put(Entry::Totals(record("b", 1)));
        waiting.put(Entry::Record(record("b", 2)));
        assert!(matches!(waiting.next(), Some(Next::Record(last)) if last == record("b", 2)));
        assert!(waiting.next().is_none());
    }
}
