//! The `ternfleet` command.
fn main() {}
