//! `cargo xtask bench`: what sdtrace costs, in guest instructions.

mod table;

use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::{Kernel, Kernels};
use crate::provision::say;
use crate::suites::output::Shared;
use crate::suites::two_at_a_time;
use crate::workspace::{build_static_example, root};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::path::Path;
use std::time::Duration;
use table::Costs;

/// One run takes two minutes under emulation; more when the host is busy.
const TIME_FOR_A_RUN: Duration = Duration::from_mins(20);
const DOCUMENT: &str = "docs/performance.md";

/// Measures on each kernel, prints the tables, and with `write` puts them into the document.
pub fn run(kernels: &[Wanted], write: bool) -> Result<()> {
    let program = build_static_example("tracer-user", "measure")?;
    let cache = Kernels::open()?;
    let mut ready = Vec::new();
    for wanted in kernels {
        ready.push(cache.provide(*wanted, false)?);
    }
    let mut tables = String::new();
    let mut dear = Vec::new();
    for (kernel, costs) in ready
        .iter()
        .zip(two_at_a_time(&ready, |kernel| measure(kernel, &program)))
    {
        let costs = costs.with_context(|| format!("kernel {}", kernel.source.series))?;
        let table = costs.table(&kernel.source.series.to_string(), &kernel.release);
        println!("{table}");
        tables.push_str(&table);
        tables.push('\n');
        for bound in [costs.cheaper_than_bare_kprobes(), costs.audit_is_cheap()] {
            if let Err(why) = bound {
                dear.push(format!("{}: {why}", kernel.source.series));
            }
        }
    }
    if write {
        let path = root().join(DOCUMENT);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        fs::write(&path, table::replace(&text, &tables)?)?;
        say(&format!("{DOCUMENT} has the new tables"));
    }
    ensure!(dear.is_empty(), "sdtrace costs too much; {}", dear.join("; "));
    Ok(())
}

fn measure(kernel: &Kernel, program: &Path) -> Result<Costs> {
    let said = Shared::default();
    let report = Guest::new(kernel.clone(), ["measure", "cost"])
        .instruction_clock(true)
        .file(program, "/bin/measure")
        .timeout(TIME_FOR_A_RUN)
        .run(said.clone())?;
    match report.outcome {
        Outcome::Exited(0) => Costs::parse(&said.text()),
        other => bail!("{other:?}\n{}", said.text()),
    }
}
