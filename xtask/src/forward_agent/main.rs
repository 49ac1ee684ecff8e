//! Runs in a guest without a network card: carries the host's TCP connections over a serial line.
//!
//! Usage: forward-agent DEVICE (a terminal in raw mode)

use std::fs::OpenOptions;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(device) = std::env::args_os().nth(1) else {
        eprintln!("forward-agent: no device; usage: forward-agent /dev/ttyS3");
        return ExitCode::from(2);
    };
    let opened = OpenOptions::new().read(true).write(true).open(&device);
    let carried = opened.and_then(|line| xtask::guest::forward::guest(line.try_clone()?, line));
    match carried {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forward-agent: {}: {error}", device.display());
            ExitCode::FAILURE
        }
    }
}
