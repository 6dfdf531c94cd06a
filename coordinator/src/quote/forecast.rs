//! What a batch will be billed and when it will be done, as a distribution: its course is played many times, each time
//! with other lengths of outputs, other speeds and other losses, beside the batches that wait already.
//!
//! The plan says which pods work and about for how long; here is what that comes to. Most of a large batch is a stream
//! of work through full engines and is computed as such; its end, where engines run empty, and small batches as a whole
//! are played job by job ([`super::play`]).

use super::engine::Engine;
use super::play::{Job, Played, Seat, play};
use super::tokens::{COMMON_RATIO, SampledLine};
use super::{Work, lengths};
use crate::random::Random;

/// Courses that are played.
const COURSES: usize = 80;
/// Jobs of one course that are played one by one, at least and for each slot.
const JOBS_MIN: usize = 256;
const JOBS_PER_SLOT: usize = 4;
const JOBS_MAX: usize = 1_200;
/// A larger fleet is played by every k-th engine of it.
const ENGINES_MAX: usize = 24;
/// Engines that are needed to the end stay for the last jobs; this share of the time is the end.
const END_RATIO: f64 = 0.97;
/// Reading the file, the first assignment, the last answer: no engine works then.
const AROUND_S: f64 = 0.6;

/// An engine of a pod that works for the batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Placed {
    pub engine: Engine,
    /// In micro-dollars.
    pub price_per_s: f64,
    /// In seconds from now.
    pub ready_s: f64,
    /// Until when the plan needs it; infinite for a pod that works as long as there is work.
    pub until_s: f64,
    /// Doubt about its speed, as a share.
    pub rate_sd: f64,
    pub loss_per_s: f64,
    /// A loss takes it away for so long, of which so much is paid for.
    pub restart_s: f64,
    pub boot_s: f64,
}

/// How bills turned out beside quotes so far: what every further quote is corrected by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Skill {
    /// Mean logarithm of bill over forecast.
    pub bias: f64,
    /// Its standard deviation.
    pub sd: f64,
}

impl Default for Skill {
    fn default() -> Self {
        Skill { bias: 0.0, sd: 0.05 }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Quantiles {
    pub p50: f64,
    pub p95: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Forecast {
    /// What the batch is billed: engine time of its jobs, in micro-dollars.
    pub bill: Quantiles,
    /// Boots that losses cost besides, in micro-dollars.
    pub reboots: Quantiles,
    /// In seconds from now.
    pub finish_s: Quantiles,
}

/// `others` are the tokens that each batch beside it still needs of these engines. `None` if no engine would ever work.
pub(super) fn forecast(placed: &[Placed], work: &Work, others: &[f64], skill: &Skill) -> Option<Forecast> {
    let usable = |one: &&Placed| one.engine.full_tok_s() > 0.0 && one.ready_s.is_finite();
    let usable: Vec<&Placed> = placed.iter().filter(usable).collect();
    let thin = usable.len().div_ceil(ENGINES_MAX).max(1);
    let mut engines: Vec<&Placed> = usable.iter().step_by(thin).copied().collect();
    if engines.is_empty() || work.sample.is_empty() || work.lines == 0 {
        return None;
    }
    engines.sort_by(|a, b| kappa(a).total_cmp(&kappa(b)));
    // Of each k-th engine its share of the work.
    let scale = usable.len() as f64 / engines.len() as f64;
    let course = Course { engines: &engines, work, others, scale, skill };
    let played: Vec<(Played, f64)> = (0..COURSES).filter_map(|n| course.play(n as u64)).collect();
    let quantiles = |value: &dyn Fn(&(Played, f64)) -> f64| {
        let mut values: Vec<f64> = played.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get(((values.len() as f64 * share) as usize).min(values.len() - 1));
        Quantiles { p50: at(0.5).copied().unwrap_or(0.0), p95: at(0.95).copied().unwrap_or(0.0) }
    };
    if played.is_empty() {
        return None;
    }
    Some(Forecast {
        bill: quantiles(&|one| one.0.bill),
        reboots: quantiles(&|one| one.1),
        finish_s: quantiles(&|one| one.0.finish_s),
    })
}

fn kappa(placed: &Placed) -> f64 {
    placed.price_per_s / placed.engine.full_tok_s().max(1e-9)
}

struct Course<'a> {
    engines: &'a [&'a Placed],
    work: &'a Work,
    others: &'a [f64],
    scale: f64,
    skill: &'a Skill,
}

/// An engine in one course.
struct Chance {
    ready_s: f64,
    /// True speed over measured speed.
    luck: f64,
}

impl Course<'_> {
    fn play(&self, number: u64) -> Option<(Played, f64)> {
        let mut random = Random::new(number, 51);
        // Jobs of one batch are alike: all of their outputs are longer or shorter than usual.
        let common = random.normal();
        let doubt = (self.skill.sd * random.normal()).exp();
        let chances: Vec<Chance> = self
            .engines
            .iter()
            .map(|one| {
                let luck = (1.0 + one.rate_sd * random.normal()).clamp(0.2, 3.0);
                Chance { ready_s: one.ready_s, luck }
            })
            .collect();

        let own = (self.work.lines as f64 / self.scale).ceil().max(1.0) as usize;
        let slots: usize = self.engines.iter().map(|one| one.engine.slots as usize).sum();
        let most = (JOBS_PER_SLOT * slots).clamp(JOBS_MIN, JOBS_MAX);
        let typical = self.typical_tokens();
        // Batches share the engines evenly: another one is in the way for as much work as this one has.
        let own_tokens = typical * own as f64;
        let others: f64 = self.others.iter().map(|tokens| (tokens / self.scale).min(own_tokens)).sum();
        let other_jobs = (others / typical.max(1e-9)).round() as usize;
        let all = own + other_jobs;
        let played_share = (most as f64 / all as f64).min(1.0);
        let own_played = ((own as f64 * played_share).round() as usize).clamp(1, own);
        let others_played = (other_jobs as f64 * played_share).round() as usize;

        let mut jobs = self.jobs(own_played, others_played, common, &mut random);
        let bulk = Bulk {
            own: self.bulk_tokens(own - own_played, &jobs, common, &mut random),
            others: typical * (other_jobs - others_played) as f64,
        };
        let (mut chances, mut bill, mut reboots) = (chances, 0.0, 0.0);
        let mut end_s = vec![f64::INFINITY; chances.len()];
        if bulk.own + bulk.others > 0.0 {
            (bill, reboots) = self.stream(&bulk, &mut chances, &mut end_s, &mut random);
        }
        let last_s = end_s.iter().copied().fold(0.0, f64::max);
        let weight = self.work.lengths.prompt_weight;
        let ratio = if weight > 0.0 { 1.0 / weight } else { 1e9 };
        let mut seats: Vec<Seat<'_>> = (0..chances.len())
            .filter(|&n| end_s[n].is_infinite() || end_s[n] >= END_RATIO * last_s)
            .map(|n| {
                let one = &self.engines[n];
                Seat::new(&one.engine, one.price_per_s, n, chances[n].ready_s, chances[n].luck, ratio)
            })
            .collect();
        let mut played = play(&mut seats, jobs.drain(..))?;
        played.bill = (played.bill + bill) * self.scale * doubt * self.skill.bias.exp();
        played.finish_s += AROUND_S;
        Some((played, reboots * self.scale))
    }

    /// Expected tokens of a line.
    fn typical_tokens(&self) -> f64 {
        let Work { sample, model, lengths, .. } = self.work;
        let model = model.as_deref();
        let of = |line: &SampledLine| {
            lengths.reading(line) + lengths.limit(line) * lengths::moments(lengths.ratios(model, line)).0
        };
        (sample.iter().map(of).sum::<f64>() / sample.len() as f64).max(1.0)
    }

    /// Lines by chance, own and others mixed as they are served.
    fn jobs(&self, own: usize, others: usize, common: f64, random: &mut Random) -> Vec<Job> {
        let sample = &self.work.sample;
        let whole = own == sample.len() && self.work.lines as usize == sample.len();
        let (mut served, mut jobs) = (0usize, Vec::with_capacity(own + others));
        for n in 0..own {
            while served * own < n * others {
                jobs.push(Job { own: false, ..self.job(self.any(random), common, random) });
                served += 1;
            }
            let line = sample.get(n).filter(|_| whole).unwrap_or_else(|| self.any(random));
            jobs.push(self.job(line, common, random));
        }
        jobs
    }

    fn any(&self, random: &mut Random) -> &SampledLine {
        let sample = &self.work.sample;
        &sample[(random.next() % sample.len() as u64) as usize]
    }

    fn job(&self, line: &SampledLine, common: f64, random: &mut Random) -> Job {
        let Work { model, lengths, .. } = self.work;
        let (ratios, limit) = (lengths.ratios(model.as_deref(), line), lengths.limit(line));
        let shift = common * COMMON_RATIO * lengths::moments(ratios).1;
        let ratio = (lengths::draw(ratios, random) + shift).clamp(0.0, 1.0);
        let prompt_tokens = f64::from(line.prompt_tokens);
        Job { own: true, prompt_tokens, output_tokens: limit * ratio, size: prompt_tokens + limit }
    }

    /// Tokens of so many lines more, by the mean of those that were drawn and a few hundred others.
    fn bulk_tokens(&self, count: usize, drawn: &[Job], common: f64, random: &mut Random) -> f64 {
        if count == 0 {
            return 0.0;
        }
        let weight = self.work.lengths.prompt_weight;
        let tokens = |job: &Job| job.prompt_tokens * weight + job.output_tokens;
        let mut values: Vec<f64> = drawn.iter().filter(|job| job.own).map(tokens).collect();
        for _ in 0..200 {
            let line = self.any(random);
            values.push(tokens(&self.job(line, common, random)));
        }
        count as f64 * values.iter().sum::<f64>() / values.len() as f64
    }

    /// The stream of work through full engines, each as long as the plan needs it, all longer or shorter together.
    /// Engines are ready for the last jobs after it. Answers what the own work is billed, and what losses cost.
    fn stream(
        &self,
        bulk: &Bulk,
        chances: &mut [Chance],
        end_s: &mut [f64],
        random: &mut Random,
    ) -> (f64, f64) {
        let tokens = bulk.own + bulk.others;
        let rate = |n: usize, chances: &[Chance]| self.engines[n].engine.full_tok_s() * chances[n].luck;
        let planned_s = |one: &Placed| one.until_s - one.ready_s;
        let finite = self.engines.iter().map(|one| one.until_s).filter(|until_s| until_s.is_finite());
        let longest_s = finite.fold(0.0, f64::max);
        let limited = |one: &Placed| one.until_s.is_finite() && one.until_s < longest_s * END_RATIO;
        // Those that the plan needs to its end work until all is done; the others keep their share of the time.
        let stretch = |to_s: f64, one: &Placed| match limited(one) {
            true => one.ready_s + planned_s(one).max(0.0) * (to_s / longest_s.max(1e-9)),
            false => to_s,
        };
        let done = |to_s: f64, chances: &[Chance]| -> f64 {
            (0..self.engines.len())
                .map(|n| (stretch(to_s, self.engines[n]) - chances[n].ready_s).max(0.0) * rate(n, chances))
                .sum()
        };
        let solve = |chances: &[Chance]| {
            let mut high = 1.0 + self.engines.iter().map(|one| one.ready_s).fold(0.0, f64::max);
            while done(high, chances) < tokens && high < 1e12 {
                high *= 2.0;
            }
            let mut low = 0.0;
            for _ in 0..60 {
                let middle = 0.5 * (low + high);
                if done(middle, chances) < tokens { low = middle } else { high = middle }
            }
            high
        };
        let mut to_s = solve(chances);
        let mut reboots = 0.0;
        for (one, chance) in self.engines.iter().zip(chances.iter_mut()) {
            let span_s = stretch(to_s, one) - chance.ready_s;
            if one.loss_per_s > 0.0 && -(1.0 - random.unit()).ln() / one.loss_per_s < span_s {
                chance.ready_s += one.restart_s + one.boot_s;
                reboots += one.boot_s * one.price_per_s;
            }
        }
        if reboots > 0.0 {
            to_s = solve(chances);
        }
        let mut cost = 0.0;
        for n in 0..chances.len() {
            let until_s = stretch(to_s, self.engines[n]);
            cost += (until_s - chances[n].ready_s).max(0.0) * self.engines[n].price_per_s;
            end_s[n] = until_s.max(chances[n].ready_s);
            chances[n].ready_s = end_s[n];
        }
        (cost * bulk.own / tokens, reboots)
    }
}

/// Work that is not played job by job, in tokens.
struct Bulk {
    own: f64,
    others: f64,
}
