//! What runs inside the guest of the test step `page`; see [`xtask::page`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::detection::scenes;
use xtask::page::{stage, steady};

/// The guest's side of the live page's test.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Do what the host asks for.
    Run {
        /// Folder for what the host shall have.
        #[arg(long, value_name = "DIR", default_value = "/out")]
        out: PathBuf,
    },
    /// Be a process that writes without pause.
    Steady {
        /// What the kernel shall call it.
        name: String,
        /// Pages of its memory.
        pages: usize,
    },
    /// Be a process of the cross-check's cases.
    Scene {
        /// Which.
        name: String,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Run { out } => stage::run(&out),
        Task::Steady { name, pages } => steady::run(&name, pages),
        Task::Scene { name } => scenes::play(&name),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("page-stage: {error:#}");
            ExitCode::FAILURE
        }
    }
}
