//! `cargo xtask package`: what users install. A Debian package, and a folder from which `podman build` makes an image.

pub mod alerts;
pub mod openapi;

use crate::provision::{packagers, run_quietly, say};
use crate::workspace::{build_static, build_static_example, clean_command, root, target_dir};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What was made.
#[derive(Debug)]
pub struct Packages {
    /// The Debian package.
    pub deb: PathBuf,
    /// The folder of the image: Containerfile and program.
    pub container: PathBuf,
    /// Manual pages, completions and the configuration file, as they go into the package.
    pub generated: PathBuf,
}

/// Builds everything anew into `target/package`.
pub fn make() -> Result<Packages> {
    let program = build_static("tracer-user", "sdtrace")?;
    let generator = build_static_example("tracer-user", "generate")?;
    let release = program.parent().context("the program lies in a folder")?;
    // Beside the program: there cargo-deb looks for what the manifest says of target/release.
    let generated = release.join("package");
    start_anew(&generated)?;
    run_quietly(Command::new(&generator).arg(&generated))?;
    let pages = files_in(&generated.join("man"))?;
    run_quietly(Command::new("gzip").arg("-9n").args(&pages))?;

    let folder = target_dir().join("package");
    start_anew(&folder)?;
    let container = folder.join("container");
    fs::create_dir(&container)?;
    let source = root().join("packaging/container/Containerfile");
    fs::copy(&source, container.join("Containerfile")).with_context(|| source.display().to_string())?;
    // Without the symbols, as in the Debian package.
    run_quietly(
        Command::new("strip")
            .arg("-o")
            .arg(container.join("sdtrace"))
            .arg(&program),
    )?;
    let deb = debian(&folder)?;
    Ok(Packages {
        deb,
        container,
        generated,
    })
}

fn debian(folder: &Path) -> Result<PathBuf> {
    let mut cargo = clean_command(packagers::cargo_deb()?);
    cargo
        .args(["deb", "--package", "tracer-user", "--no-build", "--strip"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--output"])
        .arg(folder)
        .env("CARGO_TARGET_DIR", target_dir());
    run_quietly(&mut cargo)?;
    let packages: Vec<_> = files_in(folder)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    ensure!(packages.len() == 1, "cargo-deb made {} packages", packages.len());
    packages.into_iter().next().context("there is one")
}

/// Makes the packages and tells where they are.
pub fn run() -> Result<()> {
    let packages = make()?;
    say("made:");
    println!("{}", packages.deb.display());
    println!("{}", packages.container.display());
    Ok(())
}

fn start_anew(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())
}

/// The files in a folder, sorted.
pub fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
