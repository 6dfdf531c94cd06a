//! Every message of the wire, by who speaks: work and its answers, workers about themselves, callers to the
//! coordinator. Optional fields default, unknown ones are skipped, so that two versions can share a fleet.

mod abilities;
mod api;
mod event;
mod fleet;
mod overview;
mod quote;
mod scale;
mod stall;
mod tools;
mod work;

pub use abilities::*;
pub use api::*;
pub use event::*;
pub use fleet::*;
pub use overview::*;
pub use quote::*;
pub use scale::*;
pub use stall::*;
pub use tools::*;
pub use work::*;
