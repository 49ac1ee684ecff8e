//! The sdtrace binary.

use std::process::ExitCode;

use sdtrace::cli::{self, Parsed, UsageError};
use sdtrace::commands;

fn main() -> ExitCode {
    // Messages may contain more than one line of a cause; users get one.
    let complain = |error: &dyn std::fmt::Display| {
        let text = error.to_string();
        let line: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        eprintln!("sdtrace: {}", line.join("; "));
    };
    match cli::parse(std::env::args_os()) {
        Ok(Parsed::Text(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Parsed::Command(command)) => match commands::execute(command) {
            Ok(code) => code,
            Err(error) => {
                complain(&format_args!("{error:#}"));
                ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
            }
        },
        Err(error) => {
            complain(&error);
            ExitCode::from(2)
        }
    }
}
