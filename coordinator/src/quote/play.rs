//! One course of a batch, job by job: engines take jobs as their slots come free, as the router gives them, and run
//! as fast as so many sequences run together. What is played is the end of a batch, or a small one as a whole.

use super::engine::Engine;
use crate::route::WINDOW_S;

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
    pub(super) fn new(engine: &'a Engine, price_per_s: f64, rank: usize, ready_s: f64, luck: f64) -> Self {
        let state = Running { next_s: f64::INFINITY, ..Running::default() };
        Seat { engine, price_per_s, rank, ready_s, luck, state }
    }

    fn each_tok_s(&self) -> f64 {
        let n = self.state.jobs.len().max(1) as u32;
        self.engine.speed(n) * self.luck / f64::from(n)
    }

    /// Its jobs have changed: when does the next one end now?
    fn look_ahead(&mut self) {
        let least = self.state.jobs.iter().map(|(end, _)| *end).fold(f64::INFINITY, f64::min);
        let left_s = (least - self.state.progress).max(0.0) / self.each_tok_s().max(1e-9);
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

    /// Begins a job; answers what reading its prompt costs, if it is an own one.
    fn take(&mut self, job: Job, now_s: f64, typical_prompt_tok_s: f64) -> f64 {
        let prefill_tok_s = match self.engine.prefill_tok_s {
            measured if measured > 0.0 => measured,
            _ => typical_prompt_tok_s,
        };
        let reading_s = job.prompt_tokens / (prefill_tok_s * self.luck).max(1e-9);
        let state = &mut self.state;
        state.at_s = state.at_s.max(now_s);
        state.reading_s += reading_s;
        state.held_tokens += job.size;
        state.own += usize::from(job.own);
        state.jobs.push((state.progress + job.output_tokens.max(1.0), job));
        self.look_ahead();
        if job.own { reading_s * self.price_per_s } else { 0.0 }
    }

    /// Removes the jobs that have ended; how many own ones there were.
    fn leave(&mut self) -> usize {
        let state = &mut self.state;
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
        let left = before - state.own;
        self.look_ahead();
        left
    }

    /// The router's order: the window in which it would be through with one more job, then the price.
    fn turn(&self, typical_tokens: f64) -> (u64, usize) {
        let through_s = (self.state.held_tokens + typical_tokens) / self.engine.rate_tok_s.max(1e-9);
        ((through_s / WINDOW_S) as u64, self.rank)
    }
}

/// Plays these jobs, in their order. Prompts are read at `reading_ratio` times the decode speed where an engine does not
/// say. `None` if no engine ever takes one.
pub(super) fn play(
    seats: &mut [Seat<'_>],
    jobs: impl IntoIterator<Item = Job>,
    reading_ratio: f64,
) -> Option<Played> {
    let mut waiting = jobs.into_iter().peekable();
    let mut played = Played::default();
    let mut now_s = seats.iter().map(|seat| seat.ready_s).fold(f64::INFINITY, f64::min);
    if !now_s.is_finite() {
        return None;
    }
    loop {
        while let Some(job) = waiting.peek().copied() {
            let free =
                |seat: &Seat<'_>| seat.ready_s <= now_s && (seat.state.jobs.len() as u32) < seat.engine.slots;
            let taker = (0..seats.len())
                .filter(|&place| free(&seats[place]))
                .min_by_key(|&place| seats[place].turn(job.size));
            let Some(taker) = taker else { break };
            let seat = &mut seats[taker];
            played.bill += seat.advance(now_s);
            let typical = seat.engine.full_tok_s() * reading_ratio;
            played.bill += seat.take(job, now_s, typical);
            waiting.next();
        }
        let ends = seats.iter().map(|seat| seat.state.next_s);
        let readies = seats.iter().map(|seat| seat.ready_s).filter(|ready_s| *ready_s > now_s);
        let readies = readies.filter(|_| waiting.peek().is_some());
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
        }
    }
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
        let mut seats = [Seat::new(&engine, 2.0, 0, 5.0, 1.0)];
        let played = play(&mut seats, [job(true, 100.0)], 1.0).unwrap();
        // A tenth of a second of reading and ten of decoding, from 5 s on.
        assert!((played.finish_s - 15.1).abs() < 1e-6, "{played:?}");
        assert!((played.bill - 20.2).abs() < 1e-6, "{played:?}");
    }

    #[test]
    fn jobs_that_run_together_share_the_engine_and_its_price() {
        let engine = engine();
        let whole = |own: usize| {
            let mut seats = [Seat::new(&engine, 1.0, 0, 0.0, 1.0)];
            play(&mut seats, (0..16).map(|n| job(n < own, 100.0)), 1.0).unwrap()
        };
        let (all, half) = (whole(16), whole(8));
        assert!((all.finish_s - (1.6 + 40.0)).abs() < 1e-6 && (all.bill - 41.6).abs() < 1e-6, "{all:?}");
        assert!((half.bill - 20.8).abs() < 1e-6, "{half:?}");
    }

    #[test]
    fn more_jobs_than_slots_wait_and_an_engine_that_comes_later_takes_its_share() {
        let engine = engine();
        let seat = |ready_s| Seat::new(&engine, 1.0, 0, ready_s, 1.0);
        let jobs = || (0..64).map(|_| job(true, 100.0));
        let alone = play(&mut [seat(0.0)], jobs(), 1.0).unwrap();
        let two = play(&mut [seat(0.0), seat(30.0)], jobs(), 1.0).unwrap();
        assert!(alone.finish_s > 160.0 && two.finish_s < 0.75 * alone.finish_s, "{alone:?} {two:?}");
        assert!(play(&mut [], jobs(), 1.0).is_none());
    }
}
