//! What runs inside the guests of `cargo xtask soak` and of the test step `criu`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::soak::features::Features;
use xtask::soak::guest::Plan;
use xtask::{criu, oracle, soak};

/// Checks sdtrace against programs that know what was written.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Be a process that knows which of its pages changed; takes commands on standard input.
    Oracle(oracle::Settings),
    /// Let CRIU checkpoint such a process while sdtrace traces; exit 1 if they disagree.
    Criu {
        /// How sdtrace attaches.
        #[arg(long, default_value = "fentry", value_parser = ["fentry", "kprobe"])]
        attach: String,
        /// Folder for the summary.
        #[arg(long, default_value = "/out")]
        out: PathBuf,
    },
    /// Stress memory under a tracker and sdtrace, beside such a process; exit 1 if something is not as it must be.
    Run {
        /// For how long.
        #[arg(long)]
        seconds: u64,
        /// How sdtrace attaches.
        #[arg(long, default_value = "fentry", value_parser = ["fentry", "kprobe"])]
        attach: String,
        /// Whether the kernel's features that make soft-dirty lose writes are at work.
        #[arg(long, value_enum, default_value = "off")]
        features: Features,
        /// Folder for the summary.
        #[arg(long, default_value = "/out")]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<bool> {
    match task {
        Task::Oracle(settings) => oracle::serve(settings).map(|()| true),
        Task::Criu { attach, out } => criu::guest::run(&attach, &out),
        Task::Run {
            seconds,
            attach,
            features,
            out,
        } => {
            let plan = Plan {
                time: Duration::from_secs(seconds),
                attach,
                features,
            };
            soak::guest::run(&plan, &out)
        }
    }
}
