//! Chaos on real processes: nats-servers with keys and permissions, coordinators, workers and callers of a whole fleet,
//! killed, stopped, cut off, starved of disk and given wrong wall clocks at random, beside somebody who has a stolen
//! worker's key, and a checker that reads what came of it.
//!
//! `chaos::run` is called by a short test and by the binary `chaos` (`make chaos`). Power loss is
//! not among the faults: no process can be made to suffer it here; the simulation has it. The clock of nats-server stays true: libfaketime works on programs that are
//! linked to libc, and Go's are not.

mod check;
mod cluster;
mod faults;
mod processes;
mod proxy;
mod report;
mod thief;
mod world;

pub use faults::Fault;
pub use report::page;
pub use world::{Outcome, Plan, run};
