//! Where this workspace lies, and cargo runs inside it that do not depend on who called.

use anyhow::{Context as _, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the workspace that this xtask was built from.
#[must_use]
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The target folder that cargo uses for this workspace.
#[must_use]
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        // Cargo takes a relative one from the folder it is called in; ours is always the root.
        Some(dir) if !dir.is_empty() => root().join(dir),
        _ => root().join("target"),
    }
}

/// `program` started in the workspace root without the variables that cargo and rustup hand to what they run: those
/// would make the result depend on whether the task was started by `cargo xtask` or by hand.
#[must_use]
pub fn clean_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(leaks_into_build) {
            command.env_remove(name);
        }
    }
    command
}

/// Builds a program of this workspace as a static binary, which runs in a guest that has no libraries, and returns its
/// path.
pub fn build_static(package: &str, binary: &str) -> Result<PathBuf> {
    let folder = build_statically(package, "--bin", binary, &[])?;
    Ok(folder.join(binary))
}

/// Builds an example of the workspace like [`build_static`], and returns where it lies.
pub fn build_static_example(package: &str, example: &str) -> Result<PathBuf> {
    build_static_example_with(package, example, &[])
}

/// The same with features of the package.
pub fn build_static_example_with(package: &str, example: &str, features: &[&str]) -> Result<PathBuf> {
    let folder = build_statically(package, "--example", example, features)?;
    Ok(folder.join("examples").join(example))
}

/// Returns the folder of the release profile.
fn build_statically(package: &str, kind: &str, name: &str, features: &[&str]) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let mut cargo = clean_command("cargo");
    cargo
        .args(["build", "--quiet", "--locked", "--release", "--target", TARGET])
        .args(["--package", package, kind, name])
        .args(features.iter().flat_map(|feature| ["--features", *feature]))
        .env("CARGO_TARGET_DIR", target_dir())
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        );
    let status = cargo.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("{name} of the package {package} does not build (the compiler's messages are above)");
    }
    Ok(target_dir().join(TARGET).join("release"))
}

/// Whether an environment variable would change what a nested cargo or rustc builds. Where to keep and fetch things
/// (`CARGO_HOME`, `RUSTUP_HOME`, network and registry settings) stays as the user set it.
fn leaks_into_build(name: &str) -> bool {
    const KEPT: [&str; 5] = [
        "CARGO_HOME",
        "RUSTUP_HOME",
        "CARGO_TERM_COLOR",
        "RUSTUP_DIST_SERVER",
        "RUSTUP_AUTO_INSTALL",
    ];
    const KEPT_FAMILIES: [&str; 4] = [
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
    ];
    let cargo_or_rust = name.starts_with("CARGO") || name.starts_with("RUST") || name == "LD_LIBRARY_PATH";
    cargo_or_rust && !KEPT.contains(&name) && !KEPT_FAMILIES.iter().any(|family| name.starts_with(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_settings_are_cleared_and_places_kept() {
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(leaks_into_build(name), "{name}");
        }
        for name in ["CARGO_HOME", "RUSTUP_HOME", "CARGO_HTTP_PROXY", "PATH", "HOME"] {
            assert!(!leaks_into_build(name), "{name}");
        }
    }
}
