//! The Debian package, read by lintian and unpacked.

use crate::provision::{HostProgram, ensure_programs, run_quietly};
use crate::workspace::root;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Checks it.
pub fn check(deb: &Path) -> Result<()> {
    ensure_programs(&[HostProgram {
        name: "lintian",
        package: "lintian",
        why: "reads the Debian package",
    }])?;
    run_quietly(
        Command::new("lintian")
            .args(["--allow-root", "--fail-on", "error,warning"])
            .arg(deb),
    )?;
    let folder = tempfile::tempdir()?;
    run_quietly(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(deb)
            .arg(folder.path()),
    )?;
    let unpacked = |path: &str| folder.path().join(path);
    same(
        &unpacked("usr/lib/systemd/system/sdtrace.service"),
        "packaging/systemd/sdtrace.service",
    )?;
    same(
        &unpacked("usr/share/doc/sdtrace/examples/rules.yml"),
        "dashboards/rules.yml",
    )?;
    // The program runs, and what it is installed with is well-formed and changes nothing.
    let said = run_quietly(
        Command::new(unpacked("usr/bin/sdtrace"))
            .args(["config", "check"])
            .arg(unpacked("etc/sdtrace/sdtrace.toml"))
            .env_clear(),
    )?;
    let said = String::from_utf8(said)?;
    let settings: Vec<_> = said.lines().skip_while(|line| !line.is_empty()).skip(1).collect();
    ensure!(
        settings.len() > 10 && settings.iter().all(|line| line.ends_with(" default")),
        "the configuration file changes something: {said}"
    );
    let control = String::from_utf8(run_quietly(
        Command::new("dpkg-deb").arg("--info").arg(deb).arg("conffiles"),
    )?)?;
    ensure!(
        control.trim() == "/etc/sdtrace/sdtrace.toml",
        "conffiles: {control}"
    );
    Ok(())
}

fn same(unpacked: &Path, ours: &str) -> Result<()> {
    let found = fs::read(unpacked).with_context(|| unpacked.display().to_string())?;
    ensure!(
        found == fs::read(root().join(ours))?,
        "{} is not {ours}",
        unpacked.display()
    );
    Ok(())
}
