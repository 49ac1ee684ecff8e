//! The commands of the binary.

mod agent;
mod auditing;
mod audits;
mod check;
mod config;
mod dump;
mod fault_log;
mod health;
mod incident_log;
mod own_audit;
mod pages;
mod preflight;
mod round_trip;
mod run;
mod service;
mod summary;
mod traced;
mod verdict;
mod verify;
mod watching;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cli::Command;
use crate::export::{api, metrics};
use crate::probes::self_test_child;

/// Does what was asked for.
///
/// # Errors
/// A failure, or a [`crate::cli::UsageError`].
pub fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(arguments) => run::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Check(arguments) => check::check(&arguments),
        Command::Dump(arguments) => dump::dump(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Verdict(arguments) => verdict::verdict(&arguments),
        Command::Battery(arguments) => Ok(crate::battery::run(&arguments)),
        Command::Config(arguments) => config::config(&arguments).map(|()| ExitCode::SUCCESS),
        Command::SelfTestChild => self_test_child::play().map(|()| ExitCode::SUCCESS),
        Command::OpenApi => {
            print(&api::description()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::MetricsDocs => {
            print(&metrics::documentation()?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes to standard output; a reader that has gone is an error like any other, not a panic.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// A runtime for what waits for the network and for records.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}
