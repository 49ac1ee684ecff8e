//! sdtrace, the user side.

pub mod kernel;
