//! sdtrace, the user side.

pub mod battery;
pub mod cli;
pub mod commands;
pub mod config;
pub mod detectors;
pub mod export;
pub mod kernel;
pub mod ledger;
pub mod probes;
pub mod processes;
pub mod workload;
