//! The demo, on this machine: see [`xtask::demo::show`]. `cargo xtask run` starts it on this host or in a guest.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use xtask::demo::show::show;

/// Runs sdtrace beside a tracker and a target whose writes are known.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where sdtrace listens.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Seconds after which to end; until SIGINT without it.
    #[arg(long = "for", value_name = "SECONDS")]
    duration: Option<u64>,
}

fn main() -> ExitCode {
    let Arguments { listen, duration } = Arguments::parse();
    match show(listen, duration.map(Duration::from_secs)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
