//! `workload SCENE`: does known things to its memory and tells what it did; see [`xtask::workload`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        // What a child that borrowed the parent's memory becomes.
        (Some("--nothing"), None) => ExitCode::SUCCESS,
        (Some(scene), None) if !scene.starts_with('-') => match xtask::workload::play(scene) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("workload: {error:#}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!(
                "usage: workload SCENE; scenes: {}",
                xtask::workload::names().join(", ")
            );
            ExitCode::from(2)
        }
    }
}
