//! NATS in memory, and the whole fleet on top of it under a virtual clock.
//!
//! [`JetStream`] is a state machine with explicit time that models what the fleet relies on: sequences, de-duplication,
//! publish conditions, limits, work queues, ack waits, redelivery, key-value buckets, objects. [`SimBus`] puts the
//! `Bus` trait over it, so that one contract suite holds it and a real server to the same behaviour.

mod bus;
mod consumer;
mod jetstream;
mod stream;

pub use bus::SimBus;
pub use jetstream::JetStream;
pub use stream::subject_matches;
