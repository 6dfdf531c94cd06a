//! What the worker says about itself, and the coordinator's orders.

use ternfleet_proto::Now;
use ternfleet_proto::message::{Control, Order, Running, WorkerState};

use super::event::{Action, Note};
use super::slot::Phase;
use super::{Core, Queues};

impl Core {
    /// Follows an order, unless a deposed leader gave it.
    pub(super) fn obey(&mut self, now: Now, control: Control, actions: &mut Vec<Action>) {
        if control.leader < self.leader.revision {
            return actions.push(Action::Note(Note::StaleLeader { what: "control" }));
        }
        if control.leader > self.leader.revision {
            self.leader = super::Leader { revision: control.leader, first_work: None };
        }
        match control.order {
            Order::Revoke { job, epoch } => self.revoke(&job, epoch, actions),
            Order::Cancel { batch } => self.cancel(batch, actions),
            Order::Drain => self.drain(now, actions),
            Order::Assigned { shard, interactive, batch } => {
                let stream = ternfleet_proto::table::work_stream(shard);
                let queues = Some(Queues { stream, interactive, batch });
                if self.queues != queues {
                    self.queues = queues;
                }
            }
            Order::Identify => self.heartbeat(now, actions),
        }
    }

    pub(super) fn heartbeat_if_due(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.heartbeat_at.is_none_or(|at| now.since(at) >= self.config.heartbeat_every) {
            self.heartbeat(now, actions);
        }
    }

    pub(super) fn heartbeat(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.state == WorkerState::Gone && self.exited {
            return;
        }
        self.heartbeat_at = Some(now.mono);
        let mut beat = self.config.profile.clone();
        beat.state = self.state;
        beat.slots = self.config.slots as u32;
        beat.slots_in_use = self.slots_in_use() as u32;
        beat.kv_pages = self.config.kv_pages as u32;
        beat.kv_pages_free = self.pages_free() as u32;
        beat.checkpoint_age_ms = self.checkpoint_age(now).as_millis() as u64;
        beat.prefill_tok_s = self.prefill_rate.mean();
        beat.decode_tok_s = self.decode_rate.mean();
        beat.counters = self.counters;
        beat.counters.throttled_ms = self.host.throttled_ms;
        beat.leader_seen = self.leader.revision;
        beat.needs_queues = self.queues.is_none();
        beat.at = now.wall;
        beat.mono = now.mono;
        beat.running = self
            .slots
            .values()
            .filter(|slot| !matches!(slot.phase, Phase::Ending))
            .map(|slot| Running {
                job: slot.work.job.clone(),
                epoch: slot.work.epoch,
                tag: Some(slot.work.tag),
                generated: slot.ids.len() as u32,
                engine_us: slot.engine_us(),
            })
            .collect();
        actions.push(Action::SendHeartbeat(Box::new(beat)));
    }
}
