//! What runs inside the guests of the test step `detection`; see [`xtask::detection`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use xtask::detection::guest::{Options, run};

/// Plays the battery while sdtrace traces, and writes down what both said.
#[derive(Debug, Parser)]
struct Arguments {
    /// How sdtrace attaches.
    #[arg(long, default_value = "auto", value_parser = ["auto", "fentry", "kprobe"])]
    attach: String,
    /// Only these scenarios.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Folder for what the host shall have.
    #[arg(long, value_name = "DIR", default_value = "/out")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { attach, only, out } = Arguments::parse();
    match run(&Options { attach, only, out }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cross-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}
