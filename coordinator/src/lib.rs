//! The coordinator: ledger of batches and jobs, fleet view, router, planner, gateway. It never runs a model.

pub mod core;
mod options;
pub mod plan;
pub mod route;

pub use options::{Options, Quotas};
