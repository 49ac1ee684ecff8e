//! The dashboards, the rules and the runbook, without a running Prometheus: against sdtrace's registry, Grafana's types,
//! and by promtool.

use super::compose;
use crate::dashboards::{check, typecheck};
use crate::provision::{promtool, run_quietly};
use crate::workspace::root;
use anyhow::{Context as _, Result};
use std::process::Command;

/// Checks all of it.
pub fn run() -> Result<()> {
    println!("{}", check::run()?);
    let promtool = promtool::provide()?;
    for arguments in [
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ] {
        run_quietly(
            Command::new(&promtool)
                .args(arguments)
                .current_dir(root().join("dashboards")),
        )?;
    }
    typecheck::run().context("the types of @grafana/schema")?;
    compose::check().context("packaging/compose")
}
