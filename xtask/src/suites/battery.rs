//! The conformance battery in guests: on each kernel its results are the expected ones, and it leaves nothing behind.

use super::output::Shared;
use super::two_at_a_time;
use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::{Kernel, Kernels};
use crate::kernels::modules::ModuleTree;
use crate::workspace::build_static;
use anyhow::{Result, bail, ensure};
use std::path::Path;
use std::time::Duration;

const SCRIPT: &str = include_str!("battery.sh");

/// One run takes half a minute under emulation; more when the host is busy.
const TIME_FOR_A_RUN: Duration = Duration::from_mins(4);

/// Runs the battery `runs` times in a guest of each kernel; fails if any result differs from the expected one.
///
/// The expected results (`tracer-user/src/battery/expected.txt`) are those of this guest: two nodes, 1536 MiB, zram,
/// an ext4 disk.
pub fn run(kernels: &[Wanted], runs: u32) -> Result<()> {
    let program = build_static("tracer-user", "sdtrace")?;
    let cache = Kernels::open()?;
    let mut ready = Vec::new();
    for wanted in kernels {
        ready.push(cache.provide(*wanted, false)?);
    }
    let results = two_at_a_time(&ready, |kernel| test(kernel, &program, runs));
    let mut failures = Vec::new();
    for (kernel, result) in ready.iter().zip(results) {
        match result {
            Ok(said) => print!("{said}"),
            Err(error) => failures.push(format!("{}: {error:#}", kernel.source.series)),
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// The modules that the reference guest has, as far as this kernel has them as modules: swap on zram, the compressor
/// that older kernels load on demand, which no guest can, and what gives poisoned page frames back.
pub(super) fn modules(kernel: &Kernel) -> Result<Vec<&'static str>> {
    let Some(folder) = &kernel.modules else {
        return Ok(Vec::new());
    };
    let tree = ModuleTree::open(folder)?;
    Ok(["lzo_rle", "zram", "hwpoison_inject"]
        .into_iter()
        .filter(|name| tree.contains(name))
        .collect())
}

fn test(kernel: &Kernel, program: &Path, runs: u32) -> Result<String> {
    let said = Shared::default();
    let runs_word = runs.to_string();
    let mut guest = Guest::new(kernel.clone(), ["sh", "-c", SCRIPT, "battery", &runs_word])
        .cpus(2)
        .two_nodes(true)
        .disk(true)
        .memory_mib(1536)
        .file(program, "/bin/sdtrace")
        .timeout(TIME_FOR_A_RUN * (runs + 1));
    for module in modules(kernel)? {
        guest = guest.module(module);
    }
    let report = guest.run(said.clone())?;
    match report.outcome {
        Outcome::Exited(0) => Ok(said.text()),
        other => bail!("{other:?}\n{}", said.text()),
    }
}
