//! The core's rules, one test each, and random event sequences against the invariants.

mod accounts;
mod answers;
mod checkpoints;
mod claims;
mod orders;
mod property;
mod rig;
