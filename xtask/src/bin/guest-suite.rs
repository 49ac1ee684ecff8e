//! The tests inside a guest; see [`xtask::suite`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use xtask::suite::{Options, run};

/// Tests sdtrace on the running kernel.
#[derive(Debug, Parser)]
struct Arguments {
    /// How sdtrace shall attach: fentry or kprobe.
    #[arg(long, env = "SDTRACE_ATTACH", value_parser = ["fentry", "kprobe"])]
    attach: String,
    /// Only tests whose name contains this; may be repeated.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Folder for what the host shall have.
    #[arg(long, value_name = "DIR", default_value = "/out")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { attach, only, out } = Arguments::parse();
    match run(Options { attach, only, out }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("guest-suite: {error:#}");
            ExitCode::FAILURE
        }
    }
}
