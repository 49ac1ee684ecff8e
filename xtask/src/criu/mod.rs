//! CRIU in a guest, under sdtrace: its clears are sdtrace's epochs, and what it wrote is what its target changed.
//!
//! [`guest`] runs inside: CRIU of a newer Debian suite pre-dumps an [`crate::oracle`] three times and dumps it, without and
//! with KSM. [`images`] reads what it wrote, [`compare`] holds that against what the oracle knows, [`judge`] says what
//! must hold, sdtrace's ledger included. [`gate`] runs the script of docs/operations.md that asks for verdicts. This module
//! boots the guest.

pub mod compare;
pub mod gate;
pub mod guest;
pub mod images;
pub mod judge;

use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::{Kernel, Kernels};
use crate::kernels::modules::ModuleTree;
use crate::provision::programs::{CRIU, provide};
use crate::suites::output::Shared;
use crate::workspace::{build_static, root, target_dir};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// A run takes a minute and a half under emulation, on a busy machine several times that.
const TIMEOUT: Duration = Duration::from_mins(10);

/// Modules that CRIU cannot start without, as far as this kernel has them as modules.
const MODULES: [&str; 1] = ["nf_tables"];

/// Boots each kernel and lets CRIU checkpoint there; fails unless all is as it must be.
pub fn run(kernels: &[Wanted], attach: &str) -> Result<()> {
    let sdtrace = build_static("tracer-user", "sdtrace")?;
    let soak = build_static("xtask", "soak")?;
    let criu = provide(&CRIU)?;
    let cache = Kernels::open()?;
    for wanted in kernels {
        let kernel = cache.provide(*wanted, false)?;
        let series = kernel.source.series;
        let out = target_dir().join("criu").join(series.to_string());
        let said = Shared::default();
        let mut guest = Guest::new(
            kernel.clone(),
            ["soak", "criu", "--attach", attach, "--out", "/out"],
        )
        .cpus(2)
        .file(&sdtrace, "/usr/bin/sdtrace")
        .file(&soak, "/usr/bin/soak")
        .file(root().join("packaging/examples/predump-gate.sh"), gate::SCRIPT)
        .file(&criu, "/")
        .out(&out)
        .timeout(TIMEOUT);
        for module in modules(&kernel)? {
            guest = guest.module(module);
        }
        let report = guest.run(said.clone())?;
        let text = said.text();
        print!("{text}");
        ensure!(
            report.outcome == Outcome::Exited(0),
            "CRIU on {series}: {:?} (what it left is in {})",
            report.outcome,
            out.display()
        );
        ensure!(
            report.warnings.is_empty(),
            "the kernel warned: {}",
            report.warnings.join("; ")
        );
    }
    Ok(())
}

/// Those of [`MODULES`] that this kernel has as modules; what it lacks is built in, or CRIU says so.
fn modules(kernel: &Kernel) -> Result<Vec<&'static str>> {
    let folder = kernel.modules.as_deref().with_context(|| {
        format!(
            "Debian no longer has the modules of kernel {}, which CRIU needs",
            kernel.source.series
        )
    })?;
    let tree = ModuleTree::open(folder)?;
    Ok(MODULES.into_iter().filter(|name| tree.contains(name)).collect())
}
