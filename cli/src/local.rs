//! A fleet on this machine, as child processes: what `up` runs and `demo` shows.
//!
//! Not here: any of the fleet's own work. A child is a nats-server, a Prometheus, or this program again as `coordinator`
//! or `worker`.

pub(crate) mod child;
mod data_dir;
mod fleet;
mod keeper;
pub(crate) mod nats_server;
mod ports;
mod probe;
mod prometheus;
mod rented;
mod shares;
mod watch;

pub(crate) use fleet::{Ended, Plan, Secured, run};
pub(crate) use rented::{
    Range, end as end_rented, guessed_class, parse_range, provider as rented_pods, return_all,
};
pub(crate) use watch::{LaunchBudget, Why};
