//! The reproducers of docs/reproducers: each is short, builds without a warning, and reproduces.

use super::output::Shared;
use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::Kernels;
use crate::provision::run_quietly;
use crate::workspace::root;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::process::Command;

/// An upstream maintainer reads a reproducer of this length.
const MOST_LINES: usize = 60;

/// Builds all of them and runs them in a guest with two nodes, where each must exit with 1: something was missed.
pub fn run(kernel: Wanted) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sources = root().join("docs/reproducers");
    let mut guest = Guest::new(
        Kernels::open()?.provide(kernel, false)?,
        [
            "sh",
            "-c",
            "for one in /reproducers/*; do echo \"$one\"; $one; echo \"status $?\"; done",
        ],
    )
    .cpus(2)
    .two_nodes(true);
    let mut count = 0;
    for entry in fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))? {
        let source = entry?.path();
        let name = source
            .file_stem()
            .and_then(|name| name.to_str())
            .context("a reproducer has a name")?;
        let lines = fs::read_to_string(&source)?.lines().count();
        ensure!(lines < MOST_LINES, "{name}.c has {lines} lines");
        let program = folder.path().join(name);
        let mut compiler = Command::new("gcc");
        compiler
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"])
            .arg(&program)
            .arg(&source);
        run_quietly(&mut compiler).with_context(|| format!("{name}.c does not build"))?;
        guest = guest.file(program, &format!("/reproducers/{name}"));
        count += 1;
    }
    ensure!(count > 0, "there are no reproducers in {}", sources.display());
    let said = Shared::default();
    let report = guest.run(said.clone())?;
    let text = said.text();
    print!("{text}");
    let reproduced = text.lines().filter(|line| *line == "status 1").count();
    ensure!(
        report.outcome == Outcome::Exited(0) && reproduced == count,
        "{reproduced} of {count} reproduce ({:?})",
        report.outcome
    );
    Ok(())
}
