//! Faults as they begin and end.

use std::sync::atomic::Ordering;

use ternfleet_proto::bus::Publish;
use ternfleet_proto::message::Checkpoint;
use ternfleet_proto::{codec, table};

use super::super::scenario::Fault;
use super::super::upstream::Misbehaviour;
use super::{World, ms};

impl World {
    /// Writes the last checkpoint of some job back with other ids, as somebody can who reads it and was not given the job.
    pub(super) fn forge(&mut self) {
        let jobs = self.network.check().claimed_jobs();
        if jobs.is_empty() {
            return;
        }
        let drawn = self.network.chance(|chance| chance.within(0, jobs.len() as u64 - 1));
        let subject = table::checkpoint(&jobs[drawn as usize]);
        self.network.bus.look(|net, now| {
            let Ok(Some(last)) = net.last_on_subject(now, table::CHECKPOINTS, &subject) else { return };
            let Ok(mut found) = codec::decode::<Checkpoint>(&last.payload) else { return };
            found.generated = vec![u32::MAX; found.generated.len() + 3];
            (found.attempt.0, found.epoch.0) = (found.attempt.0 + 4, found.epoch.0 + 1);
            let seal = &last.payload[last.payload.len().saturating_sub(16)..];
            let payload = [&codec::encode(&found)[..], seal].concat();
            // Where the stream is full, it has tried.
            let _ = net.publish(now, &subject, payload.into(), &Publish::default());
        });
    }

    pub(super) fn begin_faults(&mut self) {
        while let Some((_, at)) = self.to_come.pop_if(|(ms, _)| *ms <= self.now_ms) {
            let lasting_ms = self.begin(at);
            self.open.push((self.now_ms + lasting_ms, at));
        }
    }

    pub(super) fn end_faults(&mut self) {
        let over: Vec<usize> =
            self.open.extract_if(.., |(until, _)| *until <= self.now_ms).map(|(_, at)| at).collect();
        for at in over {
            self.end(self.scenario.faults[at].2);
        }
    }

    /// How long it lasts, in milliseconds.
    fn begin(&mut self, at: usize) -> u64 {
        let fault = self.scenario.faults[at].2;
        match fault {
            Fault::CrashWorker { place, back_after } => self.crash(self.worker(place), ms(back_after)),
            Fault::CrashCoordinator { place, back_after } => self.crash(place, ms(back_after)),
            Fault::DrainWorker { place, back_after } => {
                let now_ms = self.now_ms;
                let node = &mut self.nodes[self.scenario.coordinators + place];
                if let Some(process) = &node.process {
                    process.shutdown.cancel();
                    // It comes back once it has ended and this time is over; one that is paused ends later.
                    node.start_at_ms = None;
                    node.away_until_ms = now_ms + ms(back_after);
                }
                ms(back_after)
            }
            Fault::PauseWorker { place, lasting } => {
                let place = self.worker(place);
                self.nodes[place].paused += 1;
                ms(lasting)
            }
            Fault::PauseCoordinator { place, lasting } => {
                self.nodes[place].paused += 1;
                ms(lasting)
            }
            Fault::StopCoordinator { place, after_calls, lasting } => {
                self.nodes[place].stop_ms = ms(lasting);
                self.network.line(place, |line| line.stop_after = Some(after_calls));
                ms(lasting)
            }
            Fault::CutWorker { place, lasting } => {
                self.network.line(self.worker(place), |line| line.cut += 1);
                ms(lasting)
            }
            Fault::CutCoordinator { place, lasting } => {
                self.network.line(place, |line| line.cut += 1);
                ms(lasting)
            }
            Fault::SlowWorker { place, factor, lasting } => {
                let worker = self.worker(place);
                self.nodes[worker].slowed.push(factor);
                self.pace(place);
                ms(lasting)
            }
            Fault::ServerDown { lasting } => {
                self.network.bus.look(|net, _| net.restart());
                self.network.faults(|faults| faults.server_down += 1);
                ms(lasting)
            }
            Fault::PowerLoss { lasting, .. } => {
                self.lose_power(at);
                self.network.faults(|faults| faults.server_down += 1);
                ms(lasting)
            }
            Fault::FullStream { results, lasting } => {
                self.full_streams.push(full_stream(results));
                self.network.bus.set_no_room(full_stream(results), true);
                ms(lasting)
            }
            Fault::LoseRequests { one_in, lasting } => {
                self.network.faults(|faults| faults.lose_requests.push(one_in));
                ms(lasting)
            }
            Fault::LoseAnswers { one_in, lasting } => {
                self.network.faults(|faults| faults.lose_answers.push(one_in));
                ms(lasting)
            }
            Fault::DoubleMessages { lasting } => {
                self.network.faults(|faults| faults.doubling += 1);
                ms(lasting)
            }
            Fault::StepWorkersClock { place, by_ms } => self.step(self.worker(place), by_ms),
            Fault::StepCoordinatorsClock { place, by_ms } => self.step(place, by_ms),
            Fault::Provider { trouble, lasting } => {
                self.network.cloud().troubles.push(trouble);
                ms(lasting)
            }
            Fault::ModelServer { place, misbehaves, lasting } => {
                self.model_server(place, |wrong| wrong.push(misbehaves));
                ms(lasting)
            }
            Fault::BarrenPods { lasting } => {
                self.network.cloud().barren += 1;
                ms(lasting)
            }
            Fault::LosePod { place } => {
                self.network.cloud().lose(self.network.now_ms(), self.worker(place));
                0
            }
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::PauseWorker { place, .. } => {
                let place = self.worker(place);
                self.nodes[place].paused -= 1;
            }
            Fault::PauseCoordinator { place, .. } => self.nodes[place].paused -= 1,
            Fault::StopCoordinator { place, .. } => {
                self.network.line(place, |line| line.stop_after = None);
            }
            Fault::CutWorker { place, .. } => self.network.line(self.worker(place), |line| line.cut -= 1),
            Fault::CutCoordinator { place, .. } => self.network.line(place, |line| line.cut -= 1),
            Fault::SlowWorker { place, factor, .. } => {
                let worker = self.worker(place);
                forget_one(&mut self.nodes[worker].slowed, &factor);
                self.pace(place);
            }
            Fault::ServerDown { .. } | Fault::PowerLoss { .. } => {
                self.network.faults(|faults| faults.server_down -= 1);
            }
            Fault::FullStream { results, .. } => {
                let stream = full_stream(results);
                forget_one(&mut self.full_streams, &stream);
                self.network.bus.set_no_room(stream, self.full_streams.contains(&stream));
            }
            Fault::LoseRequests { one_in, .. } => {
                self.network.faults(|faults| forget_one(&mut faults.lose_requests, &one_in));
            }
            Fault::LoseAnswers { one_in, .. } => {
                self.network.faults(|faults| forget_one(&mut faults.lose_answers, &one_in));
            }
            Fault::DoubleMessages { .. } => self.network.faults(|faults| faults.doubling -= 1),
            Fault::Provider { trouble, .. } => forget_one(&mut self.network.cloud().troubles, &trouble),
            Fault::BarrenPods { .. } => self.network.cloud().barren -= 1,
            Fault::ModelServer { place, misbehaves, .. } => {
                self.model_server(place, |wrong| forget_one(wrong, &misbehaves));
            }
            Fault::CrashWorker { .. }
            | Fault::CrashCoordinator { .. }
            | Fault::DrainWorker { .. }
            | Fault::LosePod { .. }
            | Fault::StepWorkersClock { .. }
            | Fault::StepCoordinatorsClock { .. } => {}
        }
    }

    fn model_server(&self, place: usize, change: impl FnOnce(&mut Vec<Misbehaviour>)) {
        let pace = &self.nodes[self.worker(place)].pace;
        change(&mut pace.server.lock().expect("because no holder of this lock panics"));
    }

    fn crash(&mut self, place: usize, back_after_ms: u64) -> u64 {
        self.stop(place);
        self.nodes[place].start_at_ms = Some(self.now_ms + back_after_ms);
        back_after_ms
    }

    /// A worker's engine is as fast as the worst that slows it down lets it be.
    pub(super) fn pace(&self, place: usize) {
        let node = &self.nodes[self.worker(place)];
        let slowest = node.slowed.iter().copied().max().unwrap_or(1).max(1);
        let tok_s = (self.scenario.workers[place].rate_tok_s / slowest).max(1);
        node.pace.tok_s.store(tok_s, Ordering::Relaxed);
    }

    /// Remembers what is on the disk, for each loss of power that is so near that it will lose what comes after.
    pub(super) fn sync(&mut self) {
        for &(at_ms, at) in &self.to_come {
            let Fault::PowerLoss { unsynced, .. } = self.scenario.faults[at].2 else { continue };
            if self.now_ms + ms(unsynced) >= at_ms && self.disk.iter().all(|(of, _)| *of != at) {
                self.disk.push((at, self.network.bus.look(|net, _| net.unsynced())));
            }
        }
    }

    fn lose_power(&mut self, at: usize) {
        let Some((_, disk)) = self.disk.iter().find(|(of, _)| *of == at) else { return };
        let mut check = self.network.check();
        self.network.bus.look(|net, _| {
            net.lose_since(disk);
            check.power_lost(net);
        });
        drop(check);
        // A later loss has only this to go back to.
        self.disk.clear();
    }

    /// Steps the wall clock of a process, and of those that run in its place after it.
    fn step(&mut self, place: usize, by_ms: i64) -> u64 {
        let node = &mut self.nodes[place];
        node.skew_ms += by_ms;
        if let Some(process) = &node.process {
            process.clock.step(by_ms);
        }
        0
    }
}

fn full_stream(results: bool) -> &'static str {
    if results { table::RESULTS } else { table::CHECKPOINTS }
}

/// Of faults that last at the same time, one is over.
fn forget_one<T: PartialEq>(lasting: &mut Vec<T>, one: &T) {
    if let Some(at) = lasting.iter().position(|other| other == one) {
        lasting.remove(at);
    }
}
