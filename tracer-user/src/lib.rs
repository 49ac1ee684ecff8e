//! sdtrace, the user side.

pub mod kernel;
pub mod probes;
