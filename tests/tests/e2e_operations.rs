//! A fleet as it runs in production: a NATS cluster of three with TLS and permissions, pods that join with tokens,
//! upgrades under load, backup and restore. Real servers and real processes, on loopback.

#![allow(clippy::unwrap_used)] // A test may panic; its helpers count as no tests.

#[path = "e2e_operations/access.rs"]
mod access;
#[path = "e2e_operations/backup.rs"]
mod backup;
#[path = "e2e_operations/fleet.rs"]
mod fleet;
#[path = "e2e_operations/hostile.rs"]
mod hostile;
#[path = "e2e_operations/kubernetes.rs"]
mod kubernetes;
#[path = "e2e_operations/membership.rs"]
mod membership;
#[path = "e2e_operations/rolling.rs"]
mod rolling;
