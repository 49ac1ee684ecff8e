//! Holds the ledger against what the workload did. Pure: every way to differ has a test.

#[cfg(test)]
mod fixtures;
mod rows;
mod sums;

pub use rows::{areas, newest};
pub use sums::{consistent, growth, nothing_counted, skipped, sums_agree};
