//! The command line of `cargo xtask`.

mod guest;
mod run;
mod soak;

use crate::kernels::{Series, Wanted};
use crate::{bench, build_ebpf, dashboards, failure, fixtures, packaging, suites};
use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The project's own tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run sdtrace on this host, or, where its kernel cannot be traced, in an emulated machine, beside a tracker and a
    /// target whose writes are known.
    ///
    /// /metrics is on 127.0.0.1. Ends on Ctrl-C or after --for with a table: what the target did, what sdtrace
    /// counted; exit 1 if they differ.
    Run(run::Arguments),
    /// Build the eBPF object that is committed as tracer-user/ebpf/sdtrace-probes.bpf.o.
    BuildEbpf {
        /// Change nothing: rebuild from nothing, compare byte for byte, exit 1 if the committed object differs.
        #[arg(long)]
        check: bool,
        /// Build nothing: lint the eBPF crate for its own target, warnings are errors.
        #[arg(long, conflicts_with = "check")]
        clippy: bool,
    },
    /// Boot a Debian kernel under emulation and run a command there.
    Guest(Box<guest::Arguments>),
    /// Run every test: lints, unit tests, the eBPF object, the guests.
    ///
    /// Ends with a line that counts the steps; exit 1 if one failed.
    Test {
        /// Also what is too long for continuous integration: every kernel that the suites offer.
        #[arg(long)]
        full: bool,
        /// List the steps, and end.
        #[arg(long, conflicts_with = "only")]
        list: bool,
        /// Only this step; may be repeated.
        #[arg(long, value_name = "STEP")]
        only: Vec<String>,
    },
    /// Count guest instructions of write-notify faults and clears, with and without sdtrace.
    ///
    /// Under the emulator's instruction clock the figures repeat to 0.1 % on any host. Exit 1 if an untracked fault
    /// costs more than under a kprobe that only counts.
    Bench {
        /// Kernel series or `newest`; may be repeated.
        #[arg(long, value_name = "KERNEL", default_values = ["5.10", "6.1", "6.12", "newest"])]
        kernel: Vec<Wanted>,
        /// Put the tables into docs/performance.md.
        #[arg(long)]
        write: bool,
    },
    /// Make what users install: the Debian package, and the folder of the container image, in target/package.
    Package,
    /// Make the committed files anew that are made from others: Grafana's dashboards, the tests of the alerts, the alerts
    /// for the Prometheus Operator, and docs/openapi.json.
    Generate,
    /// Stress a guest's memory for minutes or hours under sdtrace, beside a process that knows what changed.
    ///
    /// stress-ng stresses, a tracker freezes, reads and clears all of it every 100 ms, and an oracle tells which writes
    /// the kernel missed. Leaves a JSON summary.
    Soak(soak::Arguments),
    /// Make the fixtures of the layout tests anew, from kernels booted under emulation.
    Fixtures {
        /// Only this series (6.12, …), which may be one that has no fixture yet; may be repeated.
        #[arg(long, value_name = "SERIES")]
        kernel: Vec<Series>,
    },
}

/// Parses the command line, runs the task, and turns its end into an exit code: 2 for usage, 1 for failure, and for
/// `guest` the status of the command that ran there.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: error: {error:#}");
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::BuildEbpf { clippy: true, .. } => build_ebpf::clippy()?,
        Task::BuildEbpf { check: true, .. } => build_ebpf::check()?,
        Task::BuildEbpf { .. } => build_ebpf::build()?,
        Task::Run(arguments) => return run::run(&arguments),
        Task::Guest(arguments) => return guest::run(*arguments),
        Task::Test { full, list, only } => {
            let steps = suites::steps(if full {
                suites::Extent::Full
            } else {
                suites::Extent::Usual
            });
            if list {
                for step in &steps {
                    println!("{:<24}{}", step.name, step.shows);
                }
            } else {
                suites::run(&steps, &only)?;
            }
        }
        Task::Bench { kernel, write } => bench::run(&kernel, write)?,
        Task::Package => packaging::run()?,
        Task::Generate => {
            dashboards::write()?;
            packaging::alerts::write()?;
            packaging::openapi::write()?;
        }
        Task::Soak(arguments) => return soak::run(&arguments),
        Task::Fixtures { kernel } => fixtures::make(&kernel)?,
    }
    Ok(ExitCode::SUCCESS)
}
