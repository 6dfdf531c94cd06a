//! Rotary scaling as `config.json` has it: newer files under `rope_parameters`, older ones under `rope_scaling`.

use serde_json::{Value, json};

use super::config::shortest;
use crate::gguf::{Hyper, Scaling};
use crate::math;

/// What is done to rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    pub(super) scaling: Scaling,
    /// What each is divided by.
    pub(super) factors: Option<Vec<f32>>,
}

/// Reads it; a fault is a field and a reason.
pub(super) fn read(json: &Value, head_dim: usize, theta: f32) -> Result<Rope, (String, String)> {
    let (name, nested) = match ["rope_parameters", "rope_scaling"].map(|name| (name, &json[name])) {
        [(_, newer), older] if newer.is_null() => older,
        [newer, _] => newer,
    };
    let kind = nested["rope_type"].as_str().or(nested["type"].as_str()).unwrap_or("default");
    let number = |key: &str| {
        let value = nested[key].as_f64().filter(|value| value.is_finite() && *value > 0.0);
        value.ok_or_else(|| (format!("{name}.{key}"), format!("{} is not a positive number", nested[key])))
    };
    let plain = Rope { scaling: Scaling::None, factors: None };
    match kind {
        "default" => Ok(plain),
        "linear" if nested["factor"] == 1.0 => Ok(plain),
        "yarn" => {
            for (key, usual) in
                [("beta_fast", 32.0), ("beta_slow", 1.0), ("mscale", 1.0), ("mscale_all_dim", 0.0)]
            {
                if !nested[key].is_null() && nested[key].as_f64() != Some(usual) {
                    return Err((
                        format!("{name}.{key}"),
                        format!("{}; only {usual} is supported", nested[key]),
                    ));
                }
            }
            if !nested["attention_factor"].is_null() {
                return Err((format!("{name}.attention_factor"), "only the default is supported".to_owned()));
            }
            let original_context = number("original_max_position_embeddings")? as usize;
            Ok(Rope {
                scaling: Scaling::Yarn { factor: number("factor")? as f32, original_context },
                ..plain
            })
        }
        "llama3" => {
            let [factor, low, high] = ["factor", "low_freq_factor", "high_freq_factor"].map(number);
            let original = number("original_max_position_embeddings")?;
            let factors = llama3_factors(head_dim, theta, [factor?, low?, high?, original]);
            Ok(Rope { factors: Some(factors), ..plain })
        }
        other => Err((format!("{name}.rope_type"), format!("\"{other}\" is not supported by this engine"))),
    }
}

/// Llama 3's: slow frequencies are divided by the factor, fast ones kept, and those between by something between.
fn llama3_factors(head_dim: usize, theta: f32, [factor, low, high, original]: [f64; 4]) -> Vec<f32> {
    let log_theta = math::ln(f64::from(theta));
    let of_pair = |pair: usize| {
        let wavelength =
            2.0 * std::f64::consts::PI * math::exp(log_theta * (2 * pair) as f64 / head_dim as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let share = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - share) / factor + share)
        }
    };
    (0..head_dim / 2).map(|pair| of_pair(pair) as f32).collect()
}

/// The way back.
pub(super) fn render(hyper: &Hyper) -> Value {
    let theta = shortest(hyper.rope_theta);
    match hyper.rope_scaling {
        Scaling::None => json!({"rope_type": "default", "rope_theta": theta}),
        Scaling::Yarn { factor, original_context } => json!({
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": shortest(factor),
            "original_max_position_embeddings": original_context,
        }),
    }
}
