//! A fleet on this machine, as child processes: what `up` runs and `demo` shows.
//!
//! Not here: any of the fleet's own work. A child is a nats-server, a Prometheus, or this program again as `coordinator`
//! or `worker`.

mod data_dir;
mod fleet;
mod keeper;
mod nats_server;
mod ports;
mod probe;
mod prometheus;
mod rented;
mod shares;

pub(crate) use data_dir::Addresses;
pub(crate) use fleet::{Plan, run};
pub(crate) use rented::{Range, parse_range};
