//! What is said between the parts of Ternfleet, and where it is said.
//!
//! This crate holds the ids, the messages and their MessagePack codec, every subject, stream and
//! consumer setting in one table ([`table`]), the [`Bus`] trait and its NATS implementation.
//! It holds no policy: who gets which job, when and why is the coordinator's business.
//!
//! Architecture Invariant: nothing here knows the engine, and `async_nats` is named only in `nats`.

pub mod access;
pub mod aside;
pub mod bus;
pub mod clock;
pub mod codec;
mod digest;
pub mod id;
pub mod message;
pub mod money;
pub mod nats;
pub mod openai;
pub mod proof;
pub mod span;
pub mod table;
pub mod tag;
pub mod trace;

pub use bus::{Bus, BusError};
pub use clock::{Clock, Deadline, MonoMs, Now};
pub use digest::Digest;
pub use id::{Attempt, BatchId, Epoch, JobKey, Lane, LeaderRevision, TenantId, TimeMs, WorkerId};
pub use money::UsdMicro;

/// Compiles the example in Rust of the API page.
#[cfg(doctest)]
#[doc = include_str!("../../docs/api.md")]
pub struct ApiPage;
