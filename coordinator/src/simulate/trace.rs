//! A trace: what happens to the market at set times, beside what the seed brings. TOML, one `[[events]]` each.

use serde::Deserialize;

use super::FleetError;

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    #[serde(default)]
    pub events: Vec<TraceEvent>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceEvent {
    pub at_s: f64,
    pub class: String,
    pub kind: TraceKind,
    /// Pods for `lose`, a factor for `price` and `rate`.
    pub value: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceKind {
    /// So many running or free pods of the class vanish.
    Lose,
    /// The price of pods not yet rented is multiplied.
    Price,
    /// The true speed of every pod of the class is multiplied: a noisy neighbour, a slower host.
    Rate,
}

impl Trace {
    pub fn parse(text: &str) -> Result<Trace, FleetError> {
        let mut trace: Trace =
            toml::from_str(text).map_err(|fault| FleetError::Syntax(format!("trace: {fault}")))?;
        for event in &trace.events {
            if !(event.at_s.is_finite() && event.value.is_finite() && event.at_s >= 0.0 && event.value >= 0.0)
            {
                return Err(FleetError::Value(format!(
                    "a trace event of {} with at_s or value below 0",
                    event.class
                )));
            }
        }
        trace.events.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        Ok(trace)
    }
}
