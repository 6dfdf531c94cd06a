//! Chaos on real processes: nats-servers, coordinators, workers and callers of a whole fleet, killed, stopped, cut off and
//! starved of disk at random, and a checker that reads what came of it.
//!
//! `chaos::run` is called by a short test and by the binary `chaos` (`make chaos`). Power loss and clocks that jump are
//! the simulation's business: no process can be made to suffer them here.

mod check;
mod cluster;
mod faults;
mod processes;
mod proxy;
mod report;
mod world;

pub use faults::Fault;
pub use report::page;
pub use world::{Outcome, Plan, run};
