//! What needs more than one crate to be tested: a nats-server to run against, a simulated one, the simulation.
//!
//! Nothing of the product imports this crate.

pub mod account;
pub mod caller;
pub mod chaos;
pub mod cluster;
pub mod hostile;
pub mod http;
pub mod instant;
pub mod measure;
pub mod program;
pub mod server;
pub mod sim;
pub mod standin;
pub mod upstream;
