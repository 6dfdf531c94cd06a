//! Tasks that serve one batch or one caller: reading its input, writing its output, telling whoever waits. If one of them
//! panics, the others continue, and its batch ends with an error instead of waiting forever.

use std::collections::HashMap;
use std::sync::Arc;

use ternfleet_proto::{JobKey, table};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};

use super::{Input, Service, reader, writer};
use crate::core::{BatchRecord, BatchSlot, Event, Outputs};

/// The running tasks, with what becomes of their batches if they panic.
#[derive(Debug, Default)]
pub(super) struct Errands {
    tasks: JoinSet<()>,
    if_lost: HashMap<Id, Event>,
}

impl Errands {
    /// For somebody who asks again, or does not wait.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// For a batch that could not go on without it.
    fn spawn_for_batch(&mut self, task: impl Future<Output = ()> + Send + 'static, if_lost: Event) {
        let id = self.tasks.spawn(task).id();
        self.if_lost.insert(id, if_lost);
    }

    /// Waits for the next end of a task; what has to become of its batch if it panicked. None without tasks. May be dropped
    /// and called again.
    pub(super) async fn next_end(&mut self) -> Option<Option<Event>> {
        Some(match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => {
                self.if_lost.remove(&id);
                None
            }
            Err(error) => {
                tracing::error!(%error, "a task for one batch or one caller panicked; the others continue");
                self.if_lost.remove(&error.id())
            }
        })
    }

    pub(super) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }
}

/// Said of a batch whose task panicked.
const BROKE: &str = "an error in the coordinator, which its log shows; the answers so far are kept";

impl Service {
    pub(super) fn command(&mut self, slot: BatchSlot, command: reader::Command) {
        let Some(batch) = self.core.batch(slot) else { return };
        let sender = self.readers.entry(slot).or_insert_with(|| {
            let (sender, commands) = mpsc::unbounded_channel();
            let source = reader::Source {
                slot,
                batch: batch.record.id.clone(),
                tenant: batch.record.tenant.clone(),
                object: batch.record.input_object.clone(),
                endpoint: batch.record.endpoint,
                model: batch.record.options.model.clone(),
                lines: batch.record.lines,
                lines_max: self.options.quotas.queued_lines_max,
                scratch: self.options.scratch_dir.clone(),
            };
            let reader = reader::serve(Arc::clone(&self.bus), source, commands, self.inbox.clone());
            let reason = format!("the input cannot be read: {BROKE}");
            self.errands.spawn_for_batch(reader, Event::InputLost { batch: slot, reason });
            sender
        });
        let _ = sender.send(command);
    }

    pub(super) fn write(&mut self, slot: BatchSlot) {
        let Some(batch) = self.core.batch(slot) else { return };
        let record = BatchRecord { totals: batch.totals, ..batch.record.clone() };
        let (bus, keys) = (Arc::clone(&self.bus), self.bus_facts.keys());
        let (scratch, inbox) = (self.options.scratch_dir.clone(), self.inbox.clone());
        let (clock, turns) = (self.clock.clone(), Arc::clone(&self.writers));
        let writer = async move {
            let _turn = turns.acquire().await;
            let outputs: Result<Outputs, String> = writer::write(bus, keys, record, scratch, clock).await;
            let _ = inbox.send(Input::Event(Event::Written { batch: slot, outputs })).await;
        };
        let outputs = Err(format!("the output could not be written: {BROKE}"));
        self.errands.spawn_for_batch(writer, Event::Written { batch: slot, outputs });
    }

    /// Tells whoever waits for a single job.
    pub(super) fn announce(&mut self, key: JobKey, sequence: u64) {
        let (bus, recent) = (Arc::clone(&self.bus), self.recent.clone());
        self.errands.spawn(async move {
            let payload = match recent.get(sequence) {
                Some(payload) => Some(payload),
                None => bus.message(table::RESULTS, sequence).await.ok().flatten().map(|m| m.payload),
            };
            if let Some(payload) = payload
                && let Err(error) = bus.send(&table::done(&key), payload).await
            {
                tracing::debug!(%error, %key, "not announced");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_whose_task_panics_ends_with_an_error_and_the_other_tasks_continue() {
        let lost = || Event::InputLost { batch: BatchSlot(7), reason: BROKE.to_owned() };
        let mut errands = Errands::default();
        errands.spawn_for_batch(async { panic!("as a test wants it") }, lost());
        errands.spawn(async { panic!("as a test wants it") });
        errands.spawn_for_batch(tokio::time::sleep(std::time::Duration::from_millis(20)), lost());
        let mut ends = Vec::new();
        while let Some(end) = errands.next_end().await {
            ends.extend(end);
        }
        assert!(matches!(ends[..], [Event::InputLost { batch: BatchSlot(7), .. }]), "{ends:?}");
        assert!(errands.if_lost.is_empty());
    }
}
