//! The systemd unit, read by systemd itself.

use crate::provision::{HostProgram, ensure_programs, run_quietly};
use crate::workspace::root;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The highest exposure that `systemd-analyze security` may find, in tenths; 100 is a service without any protection.
/// What is left comes from what sdtrace is for: its capabilities, `bpf()` and `perf_event_open()`, every process' /proc,
/// and a listener that Prometheus reaches.
const MOST_EXPOSED: u32 = 29;

/// Checks it with the program that was built.
pub fn check(program: &Path) -> Result<()> {
    ensure_programs(&[HostProgram {
        name: "systemd-analyze",
        package: "systemd",
        why: "reads the unit that is shipped",
    }])?;
    let shipped = root().join("packaging/systemd/sdtrace.service");
    let text = fs::read_to_string(&shipped).with_context(|| shipped.display().to_string())?;
    // systemd looks for the program; it is not installed here.
    let installed = "/usr/bin/sdtrace run";
    ensure!(text.contains(installed), "the unit does not start {installed}");
    let folder = tempfile::tempdir()?;
    let unit = folder.path().join("sdtrace.service");
    fs::write(
        &unit,
        text.replace(installed, &format!("{} run", program.display())),
    )?;
    let mut verify = Command::new("systemd-analyze");
    verify
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&unit);
    let said = complete_output(&mut verify)?;
    ensure!(said.is_empty(), "systemd-analyze verify says: {said}");
    run_quietly(
        Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--no-pager"])
            .arg(format!("--threshold={MOST_EXPOSED}"))
            .arg(&unit),
    )
    .map(drop)
}

/// What a program said that ended well; a warning is said, too.
fn complete_output(command: &mut Command) -> Result<String> {
    let output = command.output().context("systemd-analyze")?;
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "systemd-analyze verify: {said}");
    Ok(said.trim().to_owned())
}
