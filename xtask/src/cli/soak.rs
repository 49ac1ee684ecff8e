//! `cargo xtask soak`.

use crate::kernels::Wanted;
use crate::soak::features::Features;
use crate::soak::{self, Options};
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  cargo xtask soak --minutes 2
  cargo xtask soak --minutes 30 --kernel newest --attach kprobe --features on

Exit status: 0 if everything is as it must be, 1 if not (the reasons are in the table and under
`failures` of the summary), 2 for usage. docs/soak.md explains each number.";

/// Arguments of `cargo xtask soak`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// How long, 1 to 1440.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Kernel series (6.12, …) or `newest`.
    #[arg(long, default_value = "6.12")]
    kernel: Wanted,
    /// How sdtrace attaches.
    #[arg(long, default_value = "fentry", value_parser = ["fentry", "kprobe"])]
    attach: String,
    /// Whether the kernel's features that make soft-dirty lose writes are at work: KSM, compaction, NUMA balancing, huge
    /// pages of shared memory.
    #[arg(long, value_enum, default_value = "off")]
    features: Features,
    /// Print the summary as JSON instead of only naming its file.
    #[arg(long)]
    json: bool,
}

/// Soaks, and ends with 1 if something is not as it must be.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let soaked = soak::run(&Options {
        time: Duration::from_mins(arguments.minutes),
        kernel: arguments.kernel,
        attach: arguments.attach.clone(),
        features: arguments.features,
    })?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&soaked.summary)?);
    } else {
        println!("summary: {}", soaked.path.display());
    }
    Ok(if soaked.summary.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
