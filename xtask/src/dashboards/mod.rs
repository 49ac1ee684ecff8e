//! The Grafana dashboards: written here as data, committed as the JSON that Grafana imports, and held against the
//! registry of metrics, the rules and the runbook.
//!
//! The way of the data: [`fleet`], [`node`] and [`health`] say what is shown → [`model`] makes Grafana's JSON of it →
//! `dashboards/grafana/*.json`. The checks begin at the other end, with what is committed: [`lint`] reads the JSON,
//! [`promql`] the expressions in it and in the rules ([`rules`]), and [`check`] holds them against [`registry`].

pub mod cases;
pub mod check;
pub mod fleet;
pub mod health;
pub mod lint;
pub mod model;
pub mod node;
pub mod promql;
pub mod registry;
pub mod rules;
pub mod runbook;
pub mod typecheck;
mod verify;

use crate::workspace::root;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// Where links lead until somebody puts addresses of their own there. The domain is reserved: nobody can be asked by
/// mistake.
pub const RUNBOOK: &str = "https://sdtrace.example/docs/runbook.md";
/// The same for Grafana.
pub const GRAFANA: &str = "https://grafana.example";

/// The dashboards, by the name of their file.
#[must_use]
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("sdtrace-fleet.json", fleet::dashboard().json()),
        ("sdtrace-node.json", node::dashboard().json()),
        ("sdtrace-health.json", health::dashboard().json()),
    ]
}

/// The committed files that are made here, with what they should hold.
fn files() -> Result<Vec<(PathBuf, String)>> {
    let folder = root().join("dashboards");
    let mut files = Vec::new();
    for (name, dashboard) in all() {
        let text = serde_json::to_string_pretty(&dashboard)? + "\n";
        files.push((folder.join("grafana").join(name), text));
    }
    files.push((folder.join("rules_test.yml"), cases::file(&rules::committed()?)?));
    Ok(files)
}

/// Writes them.
pub fn write() -> Result<()> {
    for (path, text) in files()? {
        let folder = path.parent().context("a file lies in a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Whether what is committed is what the code says, and no dashboard lies there that the code does not know.
pub fn current() -> Result<()> {
    let files = files()?;
    for (path, text) in &files {
        ensure!(
            fs::read_to_string(path).unwrap_or_default() == *text,
            "{} is not what xtask/src/dashboards makes; run `cargo xtask generate`",
            path.display()
        );
    }
    for path in crate::packaging::files_in(&root().join("dashboards/grafana"))? {
        ensure!(
            files.iter().any(|(known, _)| *known == path),
            "{} is made by nothing in xtask/src/dashboards",
            path.display()
        );
    }
    Ok(())
}

/// The committed dashboards, by the name of their file.
pub fn committed() -> Result<Vec<(String, Value)>> {
    let mut dashboards = Vec::new();
    for path in crate::packaging::files_in(&root().join("dashboards/grafana"))? {
        let name = path.file_name().context("a file has a name")?;
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let json = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        dashboards.push((name.to_string_lossy().into_owned(), json));
    }
    Ok(dashboards)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_files_are_current() {
        super::current().unwrap();
    }
}
