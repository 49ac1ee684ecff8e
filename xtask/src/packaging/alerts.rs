//! The alerts for the Prometheus Operator, made from `dashboards/rules.yml`, so that there is one list of alerts.

use crate::workspace::root;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::PathBuf;

const HEAD: &str = "---
# Made from dashboards/rules.yml by `cargo xtask generate`; a test compares.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sdtrace
  labels:
    app.kubernetes.io/name: sdtrace
spec:
";

/// Where it lies.
#[must_use]
pub fn path() -> PathBuf {
    root().join("packaging/kubernetes/monitoring/prometheusrule.yaml")
}

/// The manifest.
pub fn manifest() -> Result<String> {
    let path = root().join("dashboards/rules.yml");
    let rules = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    wrapped(&rules)
}

/// A rule file is the specification of a `PrometheusRule`, two columns further to the left.
fn wrapped(rules: &str) -> Result<String> {
    let at = rules
        .lines()
        .position(|line| line == "groups:")
        .context("dashboards/rules.yml has no line `groups:`")?;
    let mut text = HEAD.to_owned();
    for line in rules.lines().skip(at) {
        if !line.is_empty() {
            text.push_str("  ");
            text.push_str(line);
        }
        text.push('\n');
    }
    Ok(text)
}

/// Writes it.
pub fn write() -> Result<()> {
    fs::write(path(), manifest()?).with_context(|| path().display().to_string())
}

/// Whether the committed one is what the rules make.
pub fn check() -> Result<()> {
    let committed = fs::read_to_string(path()).unwrap_or_default();
    ensure!(
        committed == manifest()?,
        "packaging/kubernetes/monitoring/prometheusrule.yaml is not what dashboards/rules.yml makes; run \
         `cargo xtask generate`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_become_the_specification() {
        let rules = "# A comment.\ngroups:\n  - name: a\n\n    rules: []\n";
        let text = wrapped(rules).unwrap();
        assert!(
            text.ends_with("spec:\n  groups:\n    - name: a\n\n      rules: []\n"),
            "{text}"
        );
        assert!(wrapped("group:\n").is_err());
    }

    #[test]
    fn the_committed_manifest_is_current() {
        check().unwrap();
    }
}
