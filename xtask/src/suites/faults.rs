//! Soft-dirty broken on purpose: with the test module loaded the bugs of class A must be found, without it they must not.

use super::output::Shared;
use super::two_at_a_time;
use crate::guest::{Guest, Outcome};
use crate::headers::Headers;
use crate::kernels::Wanted;
use crate::kernels::fetch::{Kernel, Kernels};
use crate::provision::run_quietly;
use crate::workspace::{build_static, root};
use anyhow::{Context as _, Result, bail, ensure};
use std::path::Path;
use std::process::Command;

const SCRIPT: &str = include_str!("faults.sh");
const MODULE: &str = "softdirty_faults";

/// Builds the module against each kernel's headers and tests with it in a guest.
pub fn run(kernels: &[Wanted]) -> Result<()> {
    let program = build_static("tracer-user", "sdtrace")?;
    let cache = Kernels::open()?;
    let mut ready = Vec::new();
    for wanted in kernels {
        let kernel = cache.provide(*wanted, false)?;
        let headers = Headers::provide(&kernel)?;
        ready.push((kernel, headers));
    }
    let results = two_at_a_time(&ready, |(kernel, headers)| test(kernel, headers, &program));
    let mut failures = Vec::new();
    for ((kernel, _), result) in ready.iter().zip(results) {
        match result {
            Ok(said) => print!("{} ({})\n{said}", kernel.source.series, kernel.release),
            Err(error) => failures.push(format!("{}: {error:#}", kernel.source.series)),
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

fn test(kernel: &Kernel, headers: &Headers, program: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let source = root().join("xtask/module");
    let module = headers.build_module(&source, MODULE, folder.path())?;
    let driver = folder.path().join("driver-mapping");
    let mut compiler = Command::new("gcc");
    compiler
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o"])
        .arg(&driver)
        .arg(source.join("driver_mapping.c"));
    run_quietly(&mut compiler).context("driver_mapping.c does not build")?;
    let said = Shared::default();
    let report = Guest::new(kernel.clone(), ["sh", "-c", SCRIPT])
        .cpus(2)
        .two_nodes(true)
        .disk(true)
        .file(program, "/bin/sdtrace")
        .file(&driver, "/bin/driver-mapping")
        .file(&module, "/softdirty_faults.ko")
        .run(said.clone())?;
    match report.outcome {
        Outcome::Exited(0) => {
            ensure!(
                report.warnings.is_empty(),
                "the kernel warned: {}",
                report.warnings.join("; ")
            );
            Ok(said.text())
        }
        other => bail!("{other:?}\n{}", said.text()),
    }
}
