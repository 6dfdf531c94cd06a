//! NATS in memory, and the whole fleet on top of it under a virtual clock.
//!
//! [`JetStream`] is a state machine with explicit time that models what the fleet relies on: sequences, de-duplication,
//! publish conditions, limits, work queues, ack waits, redelivery, key-value buckets, objects. [`SimBus`] puts the
//! `Bus` trait over it, so that one contract suite holds it and a real server to the same behaviour.

mod bus;
mod callers;
mod chance;
mod check;
mod cloud;
mod consumer;
mod generator;
mod http;
mod inputs;
mod jetstream;
mod line;
mod network;
mod process;
mod run;
mod scenario;
mod stream;
mod workers;
mod world;

pub use bus::SimBus;
pub(crate) use chance::Chance;
pub use cloud::Trouble;
pub use generator::Lie;
pub use jetstream::JetStream;
pub use run::{Failure, run_scenario, run_seed};
pub use scenario::{BatchPlan, CompletionPlan, Fault, Rent, Scenario, WorkerPlan};
pub use stream::subject_matches;
pub use world::Tally;
