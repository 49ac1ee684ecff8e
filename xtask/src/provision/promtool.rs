//! Prometheus, and promtool, which checks metrics and rules the way Prometheus reads them.

use super::apt::PrivateApt;
use super::{CacheLock, cache_dir, find_on_path, place_atomically, run_quietly, say};
use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::process::Command;

/// Finds promtool, or unpacks Debian's package into the cache: installing it would start a server.
pub fn provide() -> Result<PathBuf> {
    program("promtool")
}

/// The same for the server itself.
pub fn server() -> Result<PathBuf> {
    program("prometheus")
}

fn program(name: &str) -> Result<PathBuf> {
    if let Some(found) = find_on_path(name) {
        return Ok(found);
    }
    let folder = cache_dir()?.join("prometheus-with-server");
    let inside = format!("usr/bin/{name}");
    let found = folder.join(&inside);
    let _lock = CacheLock::acquire("prometheus")?;
    if !found.is_file() {
        say("downloading prometheus (it scrapes sdtrace, its promtool checks what /metrics says)");
        let apt = PrivateApt::open()?;
        if !apt.has_lists() {
            apt.update()?;
        }
        // Of the suite that the oldest supported machines run: newer packages want a newer C library.
        place_atomically(&folder, |content| {
            apt.unpack_from("prometheus", "bookworm", content)?;
            let unpacked = content.join(&inside);
            ensure!(unpacked.is_file(), "the package prometheus holds no {inside}");
            Ok(())
        })?;
    }
    run_quietly(Command::new(&found).arg("--version"))?;
    Ok(found)
}
