//! The container image: its file is linted, it is built, and the program in it runs alone.

use crate::provision::{HostProgram, ensure_programs, packagers, run_quietly};
use crate::workspace::root;
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::process::Command;

const NAME: &str = "localhost/sdtrace-test";

/// Builds the image from `folder` in a storage of its own and looks into it.
pub fn check(folder: &Path) -> Result<()> {
    let tools = packagers::python_tools()?;
    run_quietly(
        Command::new(tools.join("bin/hadolint"))
            .arg("--config")
            .arg(root().join("packaging/container/hadolint.yaml"))
            .arg(folder.join("Containerfile")),
    )?;
    ensure_programs(&[HostProgram {
        name: "buildah",
        package: "buildah",
        why: "builds the container image",
    }])?;
    let storage = tempfile::tempdir()?;
    let buildah = || {
        let mut command = Command::new("buildah");
        command
            .args(["--storage-driver", "vfs", "--root"])
            .arg(storage.path().join("root"))
            .arg("--runroot")
            .arg(storage.path().join("run"));
        command
    };
    run_quietly(
        buildah()
            .args(["build", "--isolation", "chroot", "--tag", NAME])
            .arg(folder),
    )?;
    let said = run_quietly(buildah().args(["inspect", "--type", "image", NAME]))?;
    let image: serde_json::Value = serde_json::from_slice(&said).context("buildah inspect")?;
    let config = &image["OCIv1"]["config"];
    ensure!(
        config["Entrypoint"] == serde_json::json!(["/usr/bin/sdtrace"])
            && config["Cmd"] == serde_json::json!(["run"]),
        "it starts {config}"
    );
    // Nothing but the program: it must run without a library, a shell, or /etc.
    let rootfs = tempfile::tempdir()?;
    let program = rootfs.path().join("sdtrace");
    std::fs::copy(folder.join("sdtrace"), &program)?;
    let said = run_quietly(
        Command::new("chroot")
            .arg(rootfs.path())
            .args(["/sdtrace", "config", "check"]),
    )?;
    let said = String::from_utf8(said)?;
    ensure!(
        said.contains("sdtrace run would use"),
        "in an empty root it says: {said}"
    );
    Ok(())
}
