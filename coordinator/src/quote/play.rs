//! One course of a batch, job by job: the router assigns jobs to engines, ahead of free slots too, and an engine runs as
//! fast as so many sequences run together. What is played is the end of a batch, or a small one as a whole.

use std::collections::VecDeque;

use super::engine::Engine;
use crate::route::WINDOW_S;

/// The coordinator looks for waiting jobs that an idle engine could begin about once in so long.
const REBALANCE_S: f64 = 1.0;

/// One line, by chance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Job {
    /// Of the batch that is asked about.
    pub(super) own: bool,
    pub(super) prompt_tokens: f64,
    pub(super) output_tokens: f64,
    /// What the router takes it for: prompt and limit.
    pub(super) size: f64,
}

/// An engine in the course of things.
#[derive(Debug, Clone)]
pub(super) struct Seat<'a> {
    pub(super) engine: &'a Engine,
    pub(super) price_per_s: f64,
    /// Place by the price of a token: the router's choice among equals.
    pub(super) rank: usize,
    pub(super) ready_s: f64,
    /// True speed over measured speed.
    pub(super) luck: f64,
    /// Of prompts, measured or by the decode speed.
    prefill_tok_s: f64,
    state: Running,
}

#[derive(Debug, Clone, Default)]
struct Running {
    at_s: f64,
    /// Tokens that each sequence has made since the beginning.
    progress: f64,
    /// Prompts still to be read, in seconds; nothing decodes meanwhile.
    reading_s: f64,
    /// Progress at which each running job ends.
    jobs: Vec<(f64, Job)>,
    /// Assigned beyond the slots.
    waiting: VecDeque<Job>,
    waiting_tokens: f64,
    own: usize,
    /// By the router's estimate.
    held_tokens: f64,
    /// When the next job ends.
    next_s: f64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Played {
    /// Engine time of the batch's own jobs, in units of money.
    pub(super) bill: f64,
    /// When its last job ended.
    pub(super) finish_s: f64,
}

impl<'a> Seat<'a> {
    /// Prompts are read at `reading_ratio` times the decode speed where the engine does not say.
    pub(super) fn new(
        engine: &'a Engine,
        price_per_s: f64,
        rank: usize,
        ready_s: f64,
        luck: f64,
        reading_ratio: f64,
    ) -> Self {
        let state = Running { next_s: f64::INFINITY, ..Running::default() };
        let prefill_tok_s = match engine.prefill_tok_s {
            measured if measured > 0.0 => measured,
            _ => engine.full_tok_s() * reading_ratio,
        };
        Seat { engine, price_per_s, rank, ready_s, luck, prefill_tok_s, state }
    }

    fn each_tok_s(&self) -> f64 {
        let n = self.state.jobs.len().max(1) as u32;
        self.engine.speed(n) * self.luck / f64::from(n)
    }

    /// Progress at which the next job ends; infinite where none runs.
    fn least_end(&self) -> f64 {
        self.state.jobs.iter().map(|(end, _)| *end).fold(f64::INFINITY, f64::min)
    }

    /// Its jobs have changed: when does the next one end now?
    fn look_ahead(&mut self) {
        let left_s = (self.least_end() - self.state.progress).max(0.0) / self.each_tok_s().max(1e-9);
        self.state.next_s = self.state.at_s + self.state.reading_s + left_s;
    }

    /// Runs up to this moment; answers what the own jobs used of it.
    fn advance(&mut self, to_s: f64) -> f64 {
        let each_tok_s = self.each_tok_s();
        let state = &mut self.state;
        let span_s = (to_s - state.at_s).max(0.0);
        state.at_s = state.at_s.max(to_s);
        if state.jobs.is_empty() {
            return 0.0;
        }
        let reading_s = span_s.min(state.reading_s);
        state.reading_s -= reading_s;
        let decoding_s = span_s - reading_s;
        state.progress += decoding_s * each_tok_s;
        decoding_s * self.price_per_s * state.own as f64 / state.jobs.len() as f64
    }

    fn has_slot(&self) -> bool {
        self.state.jobs.len() < self.engine.slots as usize
    }

    /// As the router: what fills the slots, and a window of work beyond.
    fn admits(&self, job: &Job) -> bool {
        self.has_slot() || self.state.waiting_tokens + job.size <= WINDOW_S * self.engine.rate_tok_s
    }

    /// Is assigned a job. It answers as [`Seat::begin`].
    fn take(&mut self, job: Job, now_s: f64) -> f64 {
        self.state.held_tokens += job.size;
        self.state.waiting_tokens += job.size;
        self.state.waiting.push_back(job);
        self.begin(now_s)
    }

    /// Begins what waits while there are slots; answers what reading the own prompts costs.
    fn begin(&mut self, now_s: f64) -> f64 {
        let mut own_s = 0.0;
        while self.has_slot() {
            let Some(job) = self.state.waiting.pop_front() else { break };
            let reading_s = job.prompt_tokens / (self.prefill_tok_s * self.luck).max(1e-9);
            let state = &mut self.state;
            state.at_s = state.at_s.max(now_s);
            state.waiting_tokens -= job.size;
            state.reading_s += reading_s;
            state.own += usize::from(job.own);
            state.jobs.push((state.progress + job.output_tokens.max(1.0), job));
            own_s += if job.own { reading_s } else { 0.0 };
        }
        self.look_ahead();
        own_s * self.price_per_s
    }

    /// When the next job ends: removes it, and those that end with it; how many own ones there were. Late in a long course
    /// a moment is too coarse for the last of its tokens, so what has ended is not asked of the progress.
    fn leave(&mut self) -> usize {
        let least = self.least_end();
        let state = &mut self.state;
        state.progress = state.progress.max(least);
        let (progress, before) = (state.progress * (1.0 + 1e-12) + 1e-9, state.own);
        let (held_tokens, own) = (&mut state.held_tokens, &mut state.own);
        state.jobs.retain(|(end, job)| {
            let ended = *end <= progress;
            if ended {
                *held_tokens -= job.size;
                *own -= usize::from(job.own);
            }
            !ended
        });
        before - state.own
    }

    /// The router's order: the window in which it would be through with one more job, then the price.
    fn turn(&self, typical_tokens: f64) -> (u64, usize) {
        let through_s = (self.state.held_tokens + typical_tokens) / self.engine.rate_tok_s.max(1e-9);
        ((through_s / WINDOW_S) as u64, self.rank)
    }
}

/// Plays these jobs, in their order. `None` if no engine ever takes one.
pub(super) fn play(seats: &mut [Seat<'_>], jobs: impl IntoIterator<Item = Job>) -> Option<Played> {
    let mut unassigned = jobs.into_iter().peekable();
    let mut played = Played::default();
    let mut now_s = seats.iter().map(|seat| seat.ready_s).fold(f64::INFINITY, f64::min);
    let mut rebalance_s = now_s + REBALANCE_S;
    if !now_s.is_finite() {
        return None;
    }
    loop {
        while let Some(job) = unassigned.peek().copied() {
            let taker = (0..seats.len())
                .filter(|&place| seats[place].ready_s <= now_s && seats[place].admits(&job))
                .min_by_key(|&place| seats[place].turn(job.size));
            let Some(taker) = taker else { break };
            played.bill += seats[taker].advance(now_s) + seats[taker].take(job, now_s);
            unassigned.next();
        }
        if now_s >= rebalance_s && unassigned.peek().is_none() {
            played.bill += rebalance(seats, now_s);
            rebalance_s = now_s + REBALANCE_S;
        }
        let ends = seats.iter().map(|seat| seat.state.next_s);
        let readies = seats.iter().map(|seat| seat.ready_s).filter(|ready_s| *ready_s > now_s);
        let readies = readies.filter(|_| unassigned.peek().is_some());
        let next_s = ends.chain(readies).fold(f64::INFINITY, f64::min);
        if !next_s.is_finite() {
            return Some(played);
        }
        now_s = next_s;
        for seat in seats.iter_mut().filter(|seat| seat.state.next_s <= next_s) {
            played.bill += seat.advance(next_s);
            if seat.leave() > 0 {
                played.finish_s = next_s;
            }
            played.bill += seat.begin(next_s);
        }
    }
}

/// Moves jobs that would wait long to engines with an empty slot, as [`crate::route::rebalance`] does. It answers as
/// [`Seat::begin`].
fn rebalance(seats: &mut [Seat<'_>], now_s: f64) -> f64 {
    let mut bill = 0.0;
    let waits_s = |seat: &Seat<'_>| seat.state.waiting_tokens / seat.engine.rate_tok_s.max(1e-9);
    for receiver in 0..seats.len() {
        while seats[receiver].ready_s <= now_s && seats[receiver].has_slot() {
            let donors = (0..seats.len()).filter(|&place| waits_s(&seats[place]) > WINDOW_S / 4.0);
            let donor = donors.max_by(|&a, &b| waits_s(&seats[a]).total_cmp(&waits_s(&seats[b])));
            let Some(donor) = donor else { return bill };
            let Some(job) = seats[donor].state.waiting.pop_back() else { return bill };
            seats[donor].state.held_tokens -= job.size;
            seats[donor].state.waiting_tokens -= job.size;
            bill += seats[receiver].advance(now_s) + seats[receiver].take(job, now_s);
        }
    }
    bill
}

#[cfg(test)]
mod tests {
    use ternfleet_proto::message::RatePoint;

    use super::*;

    fn engine() -> Engine {
        // Alone 10 tok/s, sixteen together 40.
        Engine::new(
            16,
            &[RatePoint { batch: 1, tok_s: 10.0 }, RatePoint { batch: 16, tok_s: 40.0 }],
            100.0,
            40.0,
            1.0,
        )
    }

    fn job(own: bool, output_tokens: f64) -> Job {
        Job { own, prompt_tokens: 10.0, output_tokens, size: 10.0 + output_tokens }
    }

    #[test]
    fn a_job_alone_pays_for_the_whole_engine() {
        let engine = engine();
        let mut seats = [Seat::new(&engine, 2.0, 0, 5.0, 1.0, 1.0)];
        let played = play(&mut seats, [job(true, 100.0)]).unwrap();
        // A tenth of a second of reading and ten of decoding, from 5 s on.
        assert!((played.finish_s - 15.1).abs() < 1e-6, "{played:?}");
        assert!((played.bill - 20.2).abs() < 1e-6, "{played:?}");
    }

    #[test]
    fn jobs_that_run_together_share_the_engine_and_its_price() {
        let engine = engine();
        let whole = |own: usize| {
            let mut seats = [Seat::new(&engine, 1.0, 0, 0.0, 1.0, 1.0)];
            play(&mut seats, (0..16).map(|n| job(n < own, 100.0))).unwrap()
        };
        let (all, half) = (whole(16), whole(8));
        assert!((all.finish_s - (1.6 + 40.0)).abs() < 1e-6 && (all.bill - 41.6).abs() < 1e-6, "{all:?}");
        assert!((half.bill - 20.8).abs() < 1e-6, "{half:?}");
    }

    #[test]
    fn more_jobs_than_slots_wait_and_an_engine_that_comes_later_takes_its_share() {
        let engine = engine();
        let seat = |ready_s| Seat::new(&engine, 1.0, 0, ready_s, 1.0, 1.0);
        let jobs = || (0..64).map(|_| job(true, 100.0));
        let alone = play(&mut [seat(0.0)], jobs()).unwrap();
        let two = play(&mut [seat(0.0), seat(30.0)], jobs()).unwrap();
        assert!(alone.finish_s > 160.0 && two.finish_s < 0.75 * alone.finish_s, "{alone:?} {two:?}");
        assert!(play(&mut [], jobs()).is_none());
    }

    #[test]
    fn a_course_ends_however_fast_its_engines_are_and_however_late_it_is() {
        for (rate, ready_s) in [(400_000.0, 300.0), (100.0, 3e5), (1e4, 1e8)] {
            let engine = Engine::new(256, &[RatePoint { batch: 1, tok_s: rate }], 0.0, rate, 1.0);
            let seat = || Seat::new(&engine, 1.0, 0, ready_s, 1.003, 1.0);
            let jobs = (0..1_200).map(|n| job(true, 16.0 * (1.0 + f64::from(n).sin() / 7.0)));
            let played = play(&mut [seat(), seat()], jobs).unwrap();
            assert!(played.finish_s >= ready_s && played.bill > 0.0, "{rate} tok/s at {ready_s}: {played:?}");
        }
    }

    #[test]
    fn jobs_wait_at_the_cheaper_of_two_engines_for_a_window_as_the_router_has_it() {
        // Of two seconds of work each: eight slots, and eight jobs beyond.
        let points = [RatePoint { batch: 1, tok_s: 400.0 }];
        let engine = Engine::new(8, &points, 1e9, 400.0, 1.0);
        let job = Job { own: true, prompt_tokens: 0.0, output_tokens: 50.0, size: 50.0 };
        let bill = |count: usize| {
            let seat = |price, rank| Seat::new(&engine, price, rank, 0.0, 1.0, 1.0);
            play(&mut [seat(1.0, 0), seat(100.0, 1)], vec![job; count]).unwrap().bill
        };
        // A second of the cheap one for eight; only what goes beyond its window is assigned to the other.
        assert!((bill(8) - 1.0).abs() < 1e-6, "{}", bill(8));
        assert!((bill(15) - 15.0 / 8.0).abs() < 1e-6, "{}", bill(15));
        assert!(bill(24) > 100.0, "{}", bill(24));
    }
}
