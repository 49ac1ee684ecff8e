//! docs/openapi.json, which sdtrace itself makes from its routes and types. That the committed one is current is tested
//! beside the routes.

use crate::workspace::{clean_command, root, target_dir};
use anyhow::{Context as _, Result, ensure};
use std::fs;

/// Writes it.
pub fn write() -> Result<()> {
    let output = clean_command("cargo")
        .args([
            "run",
            "--quiet",
            "--locked",
            "-p",
            "tracer-user",
            "--bin",
            "sdtrace",
            "--",
            "openapi",
        ])
        .env("CARGO_TARGET_DIR", target_dir())
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "sdtrace does not describe its API: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let path = root().join("docs/openapi.json");
    fs::write(&path, output.stdout).with_context(|| path.display().to_string())
}
