//! The alert rules, read and tested by Prometheus' own tool.

use crate::provision::promtool;
use crate::workspace::root;
use anyhow::{Context as _, Result, ensure};
use std::process::Command;

/// Checks the rules and runs their tests: every alert once firing and once silent.
pub fn run() -> Result<()> {
    let promtool = promtool::provide()?;
    for arguments in [
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ] {
        let output = Command::new(&promtool)
            .args(arguments)
            .current_dir(root().join("dashboards"))
            .output()
            .with_context(|| format!("cannot start {}", promtool.display()))?;
        ensure!(
            output.status.success(),
            "promtool {}: {} {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
