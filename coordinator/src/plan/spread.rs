//! Margins from the spread of what was measured: how much more work to plan for, so that a deadline holds with
//! probability 1 − ε.

/// Quantile of the standard normal distribution, by bisection on the logistic-like series of its distribution
/// function (Abramowitz and Stegun 26.2.17, absolute error below 7.5e-8). `probability` is held within (1e-9, 1 − 1e-9).
pub fn normal_quantile(probability: f64) -> f64 {
    let probability = if probability.is_nan() { 0.5 } else { probability.clamp(1e-9, 1.0 - 1e-9) };
    let (mut low, mut high) = (-7.0, 7.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if normal_distribution(middle) < probability { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

fn normal_distribution(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let series = t
        * (0.319_381_530
            + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let tail = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt() * series;
    if x >= 0.0 { 1.0 - tail } else { tail }
}

/// Spread of the tokens that a set of pods brings, gathered pod by pod.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spread {
    variance: f64,
}

impl Spread {
    /// A pod works for `span_s`: its speed may be off by `rate_sd`, and it may be lost (a Poisson count of losses,
    /// each costing `lost_tokens`; their mean is in the effective rate already).
    pub(super) fn add(&mut self, span_s: f64, rate_sd: f64, losses: f64, lost_tokens: f64) {
        let speed = span_s * rate_sd;
        self.variance += speed * speed + losses * lost_tokens * lost_tokens;
    }

    pub(super) fn add_tokens_sd(&mut self, tokens_sd: f64) {
        self.variance += tokens_sd * tokens_sd;
    }

    pub(super) fn sd(&self) -> f64 {
        self.variance.sqrt()
    }
}
