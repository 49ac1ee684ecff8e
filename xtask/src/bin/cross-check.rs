//! What runs inside the guests of the test step `detection`; see [`xtask::detection`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use rustix::process::Signal;
use xtask::detection::guest::{Options, run};
use xtask::detection::{cases, file_writes, scenes, verify};
use xtask::suite::daemon::Daemon;

/// Holds what sdtrace says against programs that know what happened.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Play the battery while sdtrace traces, and write down what both said.
    Battery {
        /// How sdtrace attaches.
        #[arg(long, default_value = "auto", value_parser = ["auto", "fentry", "kprobe"])]
        attach: String,
        /// Only these scenarios.
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        only: Vec<String>,
        /// Folder for what the host shall have.
        #[arg(long, value_name = "DIR", default_value = "/out")]
        out: PathBuf,
    },
    /// Play one case that the battery does not have; exit 1 if sdtrace does not say what it must.
    Case {
        /// Which.
        case: Case,
        /// How sdtrace attaches.
        #[arg(long, default_value = "auto", value_parser = ["auto", "fentry", "kprobe"])]
        attach: String,
        /// Folder for sdtrace's log.
        #[arg(long, value_name = "DIR", default_value = "/out")]
        out: PathBuf,
    },
    /// Be a process of such a case.
    Scene {
        /// Which.
        name: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Case {
    /// Three mechanisms work on three ranges in one epoch.
    Causes,
    /// The bug of 2014, which the test module brings back.
    Seed,
    /// A mapped file is written by write(2): by its own process, by another, in a loop, and where it is not mapped.
    FileWrites,
    /// Contents change past the page tables, or through them, or are thrown away.
    Verify,
    /// Each source of an unknown is forced.
    Unknowns,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Battery { attach, only, out } => run(&Options { attach, only, out }),
        Task::Case { case, attach, out } => play(case, &attach, &out),
        Task::Scene { name } => scenes::play(&name),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cross-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(case: Case, attach: &str, out: &Path) -> Result<()> {
    let play = match case {
        Case::Unknowns => return cases::unknowns(attach, out),
        Case::Verify => return verify::play(attach, out),
        Case::Causes => cases::causes,
        Case::Seed => cases::seed,
        Case::FileWrites => file_writes::play,
    };
    let listen = SocketAddr::from(([127, 0, 0, 1], 9955));
    let log = out.join("sdtrace.log");
    let daemon = Daemon::start(
        listen,
        &["--attach", attach, "--watch-writes", "always"],
        &log.to_string_lossy(),
    )?;
    play(&daemon)?;
    let status = daemon.end(Signal::TERM)?;
    ensure!(status.success(), "sdtrace ended with {status}");
    Ok(())
}
