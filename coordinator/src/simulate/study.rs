//! Studies over many random fleets: how far each policy is from the bound, how often it is late or over budget.

use std::fmt::Write as _;

use super::{Generator, Options, Policy, Report, random_fleet, simulate};

#[derive(Debug, Clone, PartialEq)]
pub struct StudyOptions {
    pub fleets: u32,
    pub first_seed: u64,
    pub generator: Generator,
    pub policies: Vec<Policy>,
}

/// What one policy came to over all fleets.
#[derive(Debug, Clone, PartialEq)]
pub struct Study {
    pub policy: Policy,
    pub fleets: u32,
    /// Cost over bound, per fleet, ascending.
    pub ratios: Vec<f64>,
    /// Sum of all costs over the sum of all bounds.
    pub total_ratio: f64,
    pub batches: u32,
    pub missed_deadlines: u32,
    pub budget_violations: u32,
    /// Largest of all fleets, and over all fleets.
    pub wasted_ratio_max: f64,
    pub wasted_ratio_mean: f64,
}

impl Study {
    /// Of the ratios, for `share` in 0 to 1.
    pub fn quantile(&self, share: f64) -> f64 {
        let place = (share * (self.ratios.len().saturating_sub(1)) as f64).round() as usize;
        self.ratios.get(place).copied().unwrap_or(0.0)
    }

    pub fn mean_ratio(&self) -> f64 {
        self.ratios.iter().sum::<f64>() / self.ratios.len().max(1) as f64
    }

    pub fn missed_ratio(&self) -> f64 {
        f64::from(self.missed_deadlines) / f64::from(self.batches.max(1))
    }
}

/// Runs every policy over `fleets` random fleets, on all cores; the result does not depend on how many there are.
pub fn study(options: &StudyOptions) -> Vec<Study> {
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32).max(1);
    let one = |seed: u64| -> (u32, Vec<Report>) {
        let fleet = random_fleet(&options.generator, seed);
        let run = Options { policies: options.policies.clone(), seed, ..Options::default() };
        (fleet.batches.len() as u32, simulate(&fleet, &run))
    };
    let mut outcomes: Vec<(u64, (u32, Vec<Report>))> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                let one = &one;
                scope.spawn(move || {
                    let mine = (worker..options.fleets).step_by(workers as usize);
                    mine.map(|n| options.first_seed + u64::from(n))
                        .map(|seed| (seed, one(seed)))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().expect("because simulating does not panic"));
        joined.flatten().collect()
    });
    outcomes.sort_by_key(|(seed, _)| *seed);

    let summarise = |(place, &policy): (usize, &Policy)| {
        let reports: Vec<&Report> = outcomes.iter().map(|(_, (_, reports))| &reports[place]).collect();
        let mut ratios: Vec<f64> =
            reports.iter().map(|r| r.cost_usd_micro as f64 / (r.bound_usd_micro.max(1)) as f64).collect();
        ratios.sort_by(f64::total_cmp);
        let sum = |value: fn(&Report) -> i64| reports.iter().map(|r| value(r)).sum::<i64>() as f64;
        Study {
            policy,
            fleets: options.fleets,
            ratios,
            total_ratio: sum(|r| r.cost_usd_micro) / sum(|r| r.bound_usd_micro).max(1.0),
            batches: outcomes.iter().map(|(_, (batches, _))| batches).sum(),
            missed_deadlines: reports.iter().map(|r| r.missed_deadlines).sum(),
            budget_violations: reports.iter().map(|r| r.budget_violations).sum(),
            wasted_ratio_max: reports.iter().map(|r| r.wasted_tokens_ratio).fold(0.0, f64::max),
            wasted_ratio_mean: reports.iter().map(|r| r.wasted_tokens_ratio).sum::<f64>()
                / reports.len().max(1) as f64,
        }
    };
    options.policies.iter().enumerate().map(summarise).collect()
}

/// A table for `docs/routing`.
pub fn render_markdown(studies: &[Study]) -> String {
    let mut text = String::from(
        "| policy | cost/bound mean | median | p95 | max | all dollars | missed deadlines | budget violations | wasted tokens, mean (max) |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for study in studies {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {} of {} ({:.2} %) | {} | {:.3} % ({:.3} %) |",
            study.policy,
            study.mean_ratio(),
            study.quantile(0.5),
            study.quantile(0.95),
            study.quantile(1.0),
            study.total_ratio,
            study.missed_deadlines,
            study.batches,
            100.0 * study.missed_ratio(),
            study.budget_violations,
            100.0 * study.wasted_ratio_mean,
            100.0 * study.wasted_ratio_max,
        );
    }
    text
}
