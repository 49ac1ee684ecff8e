//! promtool, which checks metrics and rules the way Prometheus reads them.

use super::apt::PrivateApt;
use super::{CacheLock, cache_dir, find_on_path, place_atomically, run_quietly, say};
use anyhow::{Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Finds promtool, or unpacks Debian's package into the cache: installing it would start a server.
pub fn provide() -> Result<PathBuf> {
    const INSIDE: &str = "usr/bin/promtool";
    if let Some(found) = find_on_path("promtool") {
        return Ok(found);
    }
    let folder = cache_dir()?.join("prometheus");
    let found = folder.join(INSIDE);
    let _lock = CacheLock::acquire("prometheus")?;
    if !found.is_file() {
        say("downloading prometheus (its promtool checks what /metrics says)");
        let apt = PrivateApt::open()?;
        if !apt.has_lists() {
            apt.update()?;
        }
        // Of the suite that the oldest supported machines run: newer packages want a newer C library.
        place_atomically(&folder, |content| {
            apt.unpack_from("prometheus", "bookworm", content)?;
            let unpacked = content.join(INSIDE);
            ensure!(unpacked.is_file(), "the package prometheus holds no {INSIDE}");
            // The rest of the package is 100 MB that nobody needs.
            let server = content.join("usr/bin/prometheus");
            if server.is_file() {
                fs::remove_file(server)?;
            }
            Ok(())
        })?;
    }
    run_quietly(Command::new(&found).arg("--version"))?;
    Ok(found)
}
