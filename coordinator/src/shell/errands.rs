//! Tasks that serve one batch or one caller: reading its input, writing its output, telling whoever waits. If one of them
//! panics, the others continue.

use std::sync::Arc;

use ternfleet_proto::{JobKey, table};
use tokio::sync::mpsc;

use super::{Input, Service, reader, writer};
use crate::core::{BatchRecord, BatchSlot, Event, Outputs};

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
            self.errands.spawn(reader::serve(Arc::clone(&self.bus), source, commands, self.inbox.clone()));
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
        self.errands.spawn(async move {
            let _turn = turns.acquire().await;
            let outputs: Result<Outputs, String> = writer::write(bus, keys, record, scratch, clock).await;
            let _ = inbox.send(Input::Event(Event::Written { batch: slot, outputs })).await;
        });
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
