//! `cargo xtask run`.

use super::guest::parse_time;
use crate::demo::{self, Options};
use crate::kernels::Wanted;
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `cargo xtask run`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Boot this kernel (6.12, … or `newest`) even if this host's can be traced.
    #[arg(long)]
    kernel: Option<Wanted>,
    /// End after this time: 30s, 5m; without it, Ctrl-C ends it.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    duration: Option<Duration>,
    /// Port of 127.0.0.1 that /metrics is on.
    #[arg(long, default_value_t = 9955, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

/// Runs the demo and ends with its exit code.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    demo::run(&Options {
        kernel: arguments.kernel,
        duration: arguments.duration,
        port: arguments.port,
    })
}
