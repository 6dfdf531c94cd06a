//! Ageing out: what an ended batch left behind goes after a while, its record a while later. The leader does it.
//!
//! First go input, output and error files and the answers in RESULTS; the record stays as a tombstone, so that a late
//! duplicate finds a batch that has ended, and a repeated creation the same batch. The tombstone carries its own time to
//! live, which the server keeps. Every step may be repeated: a leader that dies between two leaves the rest to the next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ternfleet_proto::bus::{Bus, BusError};
use ternfleet_proto::clock::StepWatch;
use ternfleet_proto::{Clock, LeaderRevision, MonoMs, Now, TenantId, TimeMs, codec, table};
use tokio::sync::mpsc;

use super::Input;
use crate::Retention;
use crate::core::{BatchRecord, Event};
use crate::files::{self, FileRecord};

const SWEEP_EVERY_MAX: Duration = Duration::from_secs(3600);
const SWEEP_EVERY_MIN: Duration = Duration::from_secs(1);
/// Nothing of a batch runs for longer beyond its deadline, however wrong the clocks are: no duplicate comes later.
const LATE_MAX: Duration = Duration::from_secs(86_400);

/// After a step forward, the wall clock is not believed for so long.
const DOUBT_FOR: Duration = Duration::from_secs(86_400);

/// What date it is, for removing things: a step forward of the wall clock counts only after a day, in which a person may
/// have seen it.
#[derive(Debug, Default)]
struct Doubt {
    watch: StepWatch,
    ahead_ms: i64,
    until: MonoMs,
}

impl Doubt {
    fn date(&mut self, now: Now) -> TimeMs {
        if let Some(by_ms) = self.watch.look(now) {
            self.ahead_ms = (self.ahead_ms + by_ms).max(0);
            self.until = now.mono.plus(DOUBT_FOR);
        }
        if now.mono >= self.until {
            self.ahead_ms = 0;
        }
        TimeMs(now.wall.0.saturating_sub(self.ahead_ms.unsigned_abs()))
    }
}

/// Sweeps again and again, for as long as this coordinator leads.
pub(crate) async fn keep_sweeping(
    bus: Arc<dyn Bus>,
    leader: LeaderRevision,
    retention: Retention,
    clock: Clock,
    inbox: mpsc::Sender<Input>,
) {
    let every = match retention.files_ms {
        0 => SWEEP_EVERY_MAX,
        files_ms => Duration::from_millis(files_ms / 10).clamp(SWEEP_EVERY_MIN, SWEEP_EVERY_MAX),
    };
    let mut doubt = Doubt::default();
    doubt.date(clock.now());
    loop {
        tokio::time::sleep(every).await;
        let date = doubt.date(clock.now());
        match sweep(&bus, leader, &retention, date, &inbox).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "deleted files and answers of old batches"),
            Err(error) => tracing::warn!(%error, "old batches could not be deleted; retrying later"),
        }
        match expire(&*bus, date).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "deleted expired files"),
            Err(error) => tracing::warn!(%error, "expired files could not be deleted; retrying later"),
        }
        if inbox.is_closed() {
            return;
        }
    }
}

/// One look at all records; answers how many batches were cleared.
async fn sweep(
    bus: &Arc<dyn Bus>,
    leader: LeaderRevision,
    retention: &Retention,
    now: TimeMs,
    inbox: &mpsc::Sender<Input>,
) -> Result<usize, BusError> {
    let mut old = Vec::new();
    let mut in_use: BTreeSet<(TenantId, String)> = BTreeSet::new();
    for entry in bus.kv_entries(table::KV_BATCHES).await? {
        // What cannot be read was made by a newer coordinator: it is left alone, and keeps nothing of others.
        let Ok(record) = codec::decode::<BatchRecord>(&entry.value) else { continue };
        if is_due(&record, now, retention) {
            old.push((record, entry.revision));
        } else if record.aged_out_at.is_none() {
            in_use.insert((record.tenant, record.input_object));
        }
    }
    let mut cleared = 0;
    for (record, revision) in old {
        let shared = in_use.contains(&(record.tenant.clone(), record.input_object.clone()));
        clear(bus, &record, shared, now).await?;
        let record = tombstone(record, leader, now);
        let life = life_of(&record, now, retention);
        let stored = bus
            .kv_update(table::KV_BATCHES, record.id.as_str(), codec::encode(&record), revision, Some(life))
            .await;
        match stored {
            Ok(_) => {
                cleared += 1;
                let event = Input::Event(Event::AgedOut(Box::new(record)));
                if inbox.send(event).await.is_err() {
                    break;
                }
            }
            // Somebody has written meanwhile: the next sweep sees what.
            Err(BusError::WrongLastSequence) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(cleared)
}

fn is_due(record: &BatchRecord, now: TimeMs, retention: &Retention) -> bool {
    let ended = record.ended_at.filter(|_| record.state.is_terminal() && record.aged_out_at.is_none());
    retention.files_ms > 0 && ended.is_some_and(|at| at.0.saturating_add(retention.files_ms) <= now.0)
}

/// How long the tombstone stays.
fn life_of(record: &BatchRecord, now: TimeMs, retention: &Retention) -> Duration {
    let ended = record.ended_at.unwrap_or(now);
    let until = ended.0.saturating_add(retention.records_ms).max(record.expires_at.plus(LATE_MAX).0);
    Duration::from_millis(until.saturating_sub(now.0))
}

fn tombstone(record: BatchRecord, leader: LeaderRevision, now: TimeMs) -> BatchRecord {
    let (output_object, error_object, answers_object, proof_object) = (None, None, None, None);
    BatchRecord {
        leader,
        aged_out_at: Some(now),
        output_object,
        error_object,
        answers_object,
        proof_object,
        ..record
    }
}

/// Removes the files whose callers gave them an end; answers how many. An input waits for the batches that read it.
async fn expire(bus: &dyn Bus, now: TimeMs) -> Result<usize, BusError> {
    let due = |record: &FileRecord| record.deleted_at.is_none() && record.is_expired(now);
    let entries = bus.kv_entries(table::KV_FILES).await?;
    let due: Vec<String> = entries
        .into_iter()
        .filter(|entry| FileRecord::parse(&entry.value).as_ref().is_some_and(due))
        .map(|entry| entry.key)
        .collect();
    if due.is_empty() {
        return Ok(0);
    }
    let records = bus.kv_entries(table::KV_BATCHES).await?;
    let in_use: BTreeSet<String> = records
        .iter()
        .filter_map(|entry| codec::decode::<BatchRecord>(&entry.value).ok())
        .filter(|record| !record.state.is_terminal())
        .map(|record| table::file_key(&record.tenant, &record.input_object))
        .collect();
    let mut removed = 0;
    for key in due.into_iter().filter(|key| !in_use.contains(key)) {
        if let Some((tenant, name)) = table::parse_file_key(&key) {
            files::remove(bus, &tenant, name, None, now).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes files and answers; an input that another batch still names stays.
async fn clear(
    bus: &Arc<dyn Bus>,
    record: &BatchRecord,
    input_is_shared: bool,
    now: TimeMs,
) -> Result<(), BusError> {
    let input = (!input_is_shared).then_some(&record.input_object);
    let outputs = [&record.output_object, &record.error_object, &record.proof_object];
    for name in input.into_iter().chain(outputs.into_iter().flatten()) {
        files::remove(&**bus, &record.tenant, name, None, now).await?;
    }
    if let Some(answers) = &record.answers_object {
        match bus.object_delete(table::LEDGER, answers).await {
            Ok(()) | Err(BusError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    bus.purge(table::RESULTS, &table::results_of(&record.tenant, &record.id)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ternfleet_proto::message::BatchState;

    fn ended(at: u64) -> BatchRecord {
        let tenant = TenantId::default_tenant();
        let id = "batch_x".parse().unwrap();
        let endpoint = ternfleet_proto::openai::Endpoint::Completions;
        let mut record = BatchRecord::single(TimeMs(0), id, tenant, endpoint, TimeMs(10_000));
        (record.state, record.ended_at) = (BatchState::Completed, Some(TimeMs(at)));
        record
    }

    #[test]
    fn only_what_has_ended_long_enough_ago_is_due_and_only_once() {
        let retention = Retention { files_ms: 1_000, records_ms: 5_000 };
        assert!(!is_due(&ended(500), TimeMs(1_499), &retention));
        assert!(is_due(&ended(500), TimeMs(1_500), &retention));
        let running = BatchRecord { state: BatchState::InProgress, ..ended(500) };
        assert!(!is_due(&running, TimeMs(9_000), &retention));
        assert!(!is_due(&tombstone(ended(500), LeaderRevision(1), TimeMs(9_000)), TimeMs(9_000), &retention));
    }

    #[test]
    fn a_step_forward_removes_nothing_for_a_day() {
        let at = |hours: u64, ahead: u64| Now {
            mono: MonoMs(hours * 3_600_000),
            wall: TimeMs((hours + ahead) * 3_600_000 + 1_000),
        };
        let mut doubt = Doubt::default();
        let dates =
            [at(0, 0), at(1, 8_000), at(24, 8_000), at(26, 8_000)].map(|now| doubt.date(now).0 / 3_600_000);
        assert_eq!(dates, [0, 1, 24, 8_026]);
    }

    #[test]
    fn a_tombstone_outlives_every_late_answer() {
        let retention = Retention { files_ms: 1_000, records_ms: 5_000 };
        let late = LATE_MAX.as_millis() as u64;
        assert_eq!(life_of(&ended(500), TimeMs(2_000), &retention).as_millis() as u64, 10_000 + late - 2_000);
        let long = Retention { records_ms: 10 * late, ..retention };
        assert_eq!(life_of(&ended(500), TimeMs(2_000), &long).as_millis() as u64, 10 * late + 500 - 2_000);
    }
}
