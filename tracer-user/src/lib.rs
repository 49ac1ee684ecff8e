//! sdtrace, the user side.

pub mod kernel;
pub mod ledger;
pub mod probes;
