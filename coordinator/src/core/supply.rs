//! What may be rented, as the scaler tells the core.

use std::collections::BTreeMap;

use ternfleet_proto::message::Binds;

/// What the scaler can add to the fleet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Supply {
    /// Pods that were ordered, and whose workers have not been heard of.
    pub starting: u32,
    /// Why no pod is ordered now, if none is.
    pub obstacle: Option<String>,
    /// The limiting factor of a batch, by its id.
    pub binds: BTreeMap<String, Binds>,
}
