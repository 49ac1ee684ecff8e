//! sdtrace on real kernels: one guest for each kernel and attach mode runs the tests of [`crate::suite`], and what its
//! `/metrics` said in the end is read by Prometheus' own checker.

use super::output::Shared;
use super::two_at_a_time;
use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::{Kernel, Kernels};
use crate::provision::{promtool, say};
use crate::suite;
use crate::workspace::build_static;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A guest takes 30 to 60 s under emulation; more when the host is busy.
const TIMEOUT: Duration = Duration::from_mins(10);

/// The attach modes.
const MODES: [&str; 2] = ["fentry", "kprobe"];

/// What goes into every guest.
struct Programs {
    sdtrace: PathBuf,
    workload: PathBuf,
    suite: PathBuf,
    promtool: PathBuf,
}

/// Tests every kernel in both attach modes; fails if one test fails, does not run, or if a guest dies twice.
pub fn run(kernels: &[Wanted]) -> Result<()> {
    let programs = Programs {
        sdtrace: build_static("tracer-user", "sdtrace")?,
        workload: build_static("xtask", "workload")?,
        suite: build_static("xtask", "guest-suite")?,
        promtool: promtool::provide()?,
    };
    let cache = Kernels::open()?;
    let mut guests = Vec::new();
    for wanted in kernels {
        let kernel = cache.provide(*wanted, false)?;
        guests.extend(MODES.map(|mode| (kernel.clone(), mode)));
    }
    let results = two_at_a_time(&guests, |(kernel, mode)| {
        let name = format!("{} {mode}", kernel.source.series);
        let result = test(kernel, mode, &name, &programs);
        // Told as it comes: a whole run takes minutes.
        match &result {
            Ok(tests) => say(&format!("guest {name}: {tests} tests passed")),
            Err(error) => say(&format!("guest {name}: {error:#}")),
        }
        result.map_err(|_| anyhow::anyhow!(name))
    });
    let mut failures = Vec::new();
    let mut passed = 0;
    for result in results {
        match result {
            Ok(tests) => passed += tests,
            Err(name) => failures.push(name.to_string()),
        }
    }
    say(&format!(
        "{passed} tests passed in {} of {} guests",
        guests.len() - failures.len(),
        guests.len()
    ));
    ensure!(
        failures.is_empty(),
        "guests failed (the reasons are above): {}",
        failures.join(", ")
    );
    Ok(())
}

/// Runs one guest, and once more if the emulator lost it.
fn test(kernel: &Kernel, mode: &str, name: &str, programs: &Programs) -> Result<usize> {
    match attempt(kernel, mode, name, programs)? {
        Ok(tests) => Ok(tests),
        Err(lost) => {
            say(&format!("guest {name} is run again: {lost}"));
            match attempt(kernel, mode, name, programs)? {
                Ok(tests) => Ok(tests),
                Err(lost) => bail!("lost twice: {lost}"),
            }
        }
    }
}

/// Runs one guest. The inner error says how the guest itself was lost; a failed test is an outer one.
fn attempt(
    kernel: &Kernel,
    mode: &str,
    name: &str,
    programs: &Programs,
) -> Result<std::result::Result<usize, String>> {
    let said = Shared::default();
    let out = tempfile::tempdir().context("cannot create a temporary folder (set TMPDIR)")?;
    let report = Guest::new(kernel.clone(), ["guest-suite"])
        .environment("SDTRACE_ATTACH", mode)
        .cpus(2)
        .file(&programs.sdtrace, "/usr/bin/sdtrace")
        .file(&programs.workload, "/usr/bin/workload")
        .file(&programs.suite, "/usr/bin/guest-suite")
        .out(out.path())
        .timeout(TIMEOUT)
        .run(said.clone())?;
    let said = said.text();
    for line in said.lines() {
        println!("[{name}] {line}");
    }
    match report.outcome {
        Outcome::Exited(status) => {
            let tests = judge(&said, status, &suite::test_names(mode))?;
            ensure!(
                report.warnings.is_empty(),
                "the kernel warned: {}",
                report.warnings.join("; ")
            );
            check_metrics(&programs.promtool, &out.path().join("metrics"))?;
            Ok(Ok(tests))
        }
        Outcome::Interrupted => bail!("interrupted"),
        lost => Ok(Err(format!("{lost:?}"))),
    }
}

/// Whether every test that there is ran and passed: the guest's own word for it is not enough.
fn judge(said: &str, status: u8, names: &[&str]) -> Result<usize> {
    let verdict = |name: &str| {
        let head = format!("test {name} ... ");
        said.lines().find_map(|line| line.strip_prefix(&head))
    };
    let bad: Vec<String> = names
        .iter()
        .filter_map(|name| match verdict(name) {
            Some(verdict) if verdict.starts_with("ok") => None,
            Some(verdict) => Some(format!("{name}: {verdict}")),
            None => Some(format!("{name} did not run")),
        })
        .collect();
    ensure!(
        bad.is_empty(),
        "{} of {} tests failed: {}",
        bad.len(),
        names.len(),
        bad.join("; ")
    );
    ensure!(
        status == 0,
        "every test passed, but guest-suite exited with {status}"
    );
    Ok(names.len())
}

/// Lets Prometheus' own checker read what `/metrics` said.
fn check_metrics(promtool: &Path, metrics: &Path) -> Result<()> {
    let file = File::open(metrics).context("the guest brought no /metrics back")?;
    let output = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::from(file))
        .output()
        .with_context(|| format!("cannot start {}", promtool.display()))?;
    // It exits with 3 for what it only dislikes; that is a failure here too.
    ensure!(
        output.status.success(),
        "promtool check metrics: {} {}",
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str =
        "test one ... ok (0.1 s)\n  a note\ntest two ... FAILED: why (0.2 s)\n1 passed, 1 failed\n";

    #[test]
    fn failed_and_skipped_tests_fail_the_guest() {
        assert_eq!(judge(SAID, 0, &["one"]).unwrap(), 1);
        assert!(judge(SAID, 1, &["one"]).is_err());
        let error = judge(SAID, 1, &["one", "two", "three"]).unwrap_err().to_string();
        assert!(error.starts_with("2 of 3 tests failed: two: FAILED: why"));
        assert!(error.ends_with("three did not run"));
    }
}
