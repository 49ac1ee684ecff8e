//! `cargo xtask`: the project's own tasks.

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask::cli::main()
}
