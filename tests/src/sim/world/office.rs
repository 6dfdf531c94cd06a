//! What a coordinator's shell keeps: the lease that makes it the leader, and the books it writes in order.

use std::time::Duration;

use ternfleet_coordinator::core::{Action, BatchRecord, Event, Lead};
use ternfleet_proto::bus::{BusError, Publish};
use ternfleet_proto::message::Event as Audit;
use ternfleet_proto::{LeaderRevision, TimeMs, codec, table};

use super::coordinators::{Duty, Role, WAIT_MS, stored_records};
use super::{Life, Occurrence, World};

const LEASE: Duration = Duration::from_secs(2);
const ASK_EVERY_MS: u64 = 400;
const LEADER: &str = "leader";
const TERM: &str = "term";

impl World {
    pub(super) fn ask_for_lease(&mut self, life: Life, asked_at: TimeMs) {
        let cut = self.coordinators[life.place].cut > 0;
        let value = codec::encode(&format!("c{}", life.place));
        let asked =
            self.attempt(cut, |net, now| net.kv_create(now, table::KV_CONTROL, LEADER, value, Some(LEASE)));
        match asked {
            Ok(revision) if self.now.since(asked_at) < LEASE => {
                let duty = Duty::CountTerm { revision, renewed_at: asked_at };
                self.at(2, Occurrence::CoordinatorDuty(life, duty));
            }
            _ => {
                let asked_at = TimeMs(self.now.0 + ASK_EVERY_MS);
                self.at(ASK_EVERY_MS, Occurrence::CoordinatorDuty(life, Duty::AskForLease { asked_at }));
            }
        }
    }

    pub(super) fn count_term(&mut self, life: Life, revision: u64, renewed_at: TimeMs) {
        let cut = self.coordinators[life.place].cut > 0;
        let counted = self.attempt(cut, |net, now| {
            let entry = net.kv_get(now, table::KV_CONTROL, TERM)?;
            let term =
                entry.as_ref().and_then(|entry| codec::decode::<u32>(&entry.value).ok()).unwrap_or(0) + 1;
            net.kv_set(now, table::KV_CONTROL, TERM, codec::encode(&term), None, None)?;
            Ok(term)
        });
        let Ok(term) = counted else { return self.depose(life) };
        self.tally.leaders += 1;
        let leader = LeaderRevision(revision);
        self.check.led(leader);
        // What the last leader stored in its last moments may not have been heard.
        for record in stored_records(&mut self.net, self.now) {
            self.coordinator_on(life, Event::BatchKnown(Box::new(record)));
        }
        let _ = self.attempt(cut, |net, _| net.purge(&table::work_stream(0), &table::work_all(0)));
        self.coordinators[life.place].role = Role::Leading { lease_revision: revision, renewed_at, leader };
        self.coordinator_on(life, Event::Lead(Lead { revision: leader, term }));
        self.turn(life);
        self.at(LEASE.as_millis() as u64 / 4, Occurrence::CoordinatorDuty(life, Duty::RenewLease));
    }

    pub(super) fn renew_lease(&mut self, life: Life) {
        let node = &self.coordinators[life.place];
        let Role::Leading { lease_revision, renewed_at, leader } = node.role else { return };
        let cut = node.cut > 0;
        let value = codec::encode(&format!("c{}", life.place));
        let renewed = self.attempt(cut, |net, now| {
            net.kv_set(now, table::KV_CONTROL, LEADER, value, Some(lease_revision), Some(LEASE))
        });
        let late = self.now.since(renewed_at) >= LEASE;
        match renewed {
            Ok(lease_revision) => {
                let role = Role::Leading { lease_revision, renewed_at: self.now, leader };
                self.coordinators[life.place].role = role;
            }
            Err(BusError::Unreachable(_)) if !late => {}
            Err(_) => return self.depose(life),
        }
        self.at(LEASE.as_millis() as u64 / 4, Occurrence::CoordinatorDuty(life, Duty::RenewLease));
    }

    /// The lease is lost: start again as a standby.
    fn depose(&mut self, life: Life) {
        self.coordinators[life.place].stop();
        self.at(500, Occurrence::StartCoordinator(life.place));
    }

    /// Writes the oldest entry; the next one follows only then.
    pub(super) fn keep_books(&mut self, life: Life, attempt: u32) {
        let cut = self.coordinators[life.place].cut > 0;
        let Some((leader, entry)) = self.coordinators[life.place].books.front().cloned() else { return };
        let done = match &entry {
            Action::Record(record) => {
                let record = BatchRecord { leader, ..(**record).clone() };
                self.store_record(life, cut, &record)
            }
            Action::Audit(what) => {
                let event = Audit { at: self.now, leader, what: what.clone() };
                let (subject, payload) = (table::event("simulated"), codec::encode(&event));
                self.attempt(cut, |net, now| net.publish(now, &subject, payload, &Publish::default()))
                    .map(drop)
            }
            _ => Ok(()),
        };
        let (wait, attempt) = match done {
            Err(BusError::Unreachable(_) | BusError::Full { .. }) => {
                (WAIT_MS * u64::from(attempt + 1).min(13), attempt + 1)
            }
            _ => {
                self.coordinators[life.place].books.pop_front();
                (self.latency(), 0)
            }
        };
        if !self.coordinators[life.place].books.is_empty() {
            self.at(wait, Occurrence::CoordinatorDuty(life, Duty::Book { attempt }));
        }
    }

    /// As the shell's books: by compare-and-set, and over nothing that a later leader has written.
    fn store_record(
        &mut self,
        life: Life,
        cut: bool,
        record: &BatchRecord,
    ) -> ternfleet_proto::bus::Result<()> {
        let id = record.id.clone();
        let value = codec::encode(record);
        let mut known = self.coordinators[life.place].revisions.remove(&id);
        let revision = loop {
            let revision = match known.take() {
                Some(revision) => revision,
                None => {
                    let found =
                        self.attempt(cut, |net, now| net.kv_get(now, table::KV_BATCHES, id.as_str()))?;
                    let Some(entry) = found else { return Ok(()) };
                    if entry.value == value {
                        break entry.revision;
                    }
                    let Ok(stored) = codec::decode::<BatchRecord>(&entry.value) else { return Ok(()) };
                    if record.gives_way_to(&stored) {
                        return Ok(());
                    }
                    entry.revision
                }
            };
            let stored = self.attempt(cut, |net, now| {
                net.kv_set(now, table::KV_BATCHES, id.as_str(), value.clone(), Some(revision), None)
            });
            match stored {
                Ok(next) => break next,
                Err(BusError::WrongLastSequence) => {}
                Err(other) => return Err(other),
            }
        };
        self.coordinators[life.place].revisions.insert(id.clone(), revision);
        self.check.recorded(record);
        self.follow(life, &id);
        Ok(())
    }
}
