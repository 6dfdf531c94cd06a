//! What the fleet's owner sets: classes of pods, limits, patience.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use ternfleet_proto::UsdMicro;

/// A class of pods that may be rented.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    pub name: String,
    pub price_usd_micro_per_hour: UsdMicro,
    /// Expected until a pod of the class is measured.
    pub rate_tok_s: f64,
    pub rate_sd_tok_s: f64,
    pub boot_s: f64,
    #[serde(default)]
    pub loss_per_hour: f64,
    /// So many at once.
    pub pods_max: u32,
    /// Where they may be, in order of preference; pods are spread over all of them.
    #[serde(default)]
    pub data_centers: Vec<String>,
    /// So many may be starting at once; `None` is no limit.
    #[serde(default)]
    pub starting_max: Option<u32>,
}

/// A place that has no room for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub class: String,
    pub data_center: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Begins every pod's name; pods with other names are never touched.
    pub fleet: String,
    pub pods_min: usize,
    pub pods_max: usize,
    pub classes: Vec<Class>,
    pub usd_micro_per_hour_max: Option<UsdMicro>,
    pub usd_micro_per_day_max: Option<UsdMicro>,
    /// A pod that loses its coordinator ends itself after so long: what each pod may cost unattended.
    pub lease_s: f64,
    /// From the order to the first heartbeat.
    pub ready_limit_s: f64,
    /// Between two heartbeats.
    pub silence_limit_s: f64,
    /// When there is nothing to do at all, a pod waits so long for more before it is given back.
    pub idle_limit_s: f64,
    /// From the intent to the provider's list.
    pub order_limit_s: f64,
    pub epsilon: f64,
    pub replan_s: f64,
    pub refused: Vec<Refused>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            fleet: "ternfleet".to_owned(),
            pods_min: 0,
            pods_max: 8,
            classes: Vec::new(),
            usd_micro_per_hour_max: None,
            usd_micro_per_day_max: None,
            lease_s: 300.0,
            ready_limit_s: 900.0,
            silence_limit_s: 45.0,
            idle_limit_s: 0.0,
            order_limit_s: 600.0,
            epsilon: 0.05,
            replan_s: 30.0,
            refused: Vec::new(),
        }
    }
}

impl Settings {
    /// Is this one of ours? `<fleet>-<class>-<number>`.
    pub(super) fn is_ours(&self, name: &str) -> bool {
        name.strip_prefix(self.fleet.as_str()).is_some_and(|rest| rest.starts_with('-'))
    }

    /// What one pod may cost until its lease runs out.
    pub(super) fn lease(&self, price: UsdMicro) -> UsdMicro {
        price.over(Duration::from_secs_f64(self.lease_s))
    }

    /// No pod of any class may be rented any more today.
    pub(crate) fn day_is_spent(&self, spent_today: UsdMicro) -> bool {
        let fits = |class: &Class, limit| spent_today + self.lease(class.price_usd_micro_per_hour) <= limit;
        let limit = self.usd_micro_per_day_max;
        limit.is_some_and(|limit| {
            !self.classes.is_empty() && !self.classes.iter().any(|class| fits(class, limit))
        })
    }

    pub(super) fn class(&self, name: &str) -> Option<&Class> {
        self.classes.iter().find(|class| class.name == name)
    }
}
