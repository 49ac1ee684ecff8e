//! A browser and what drives it: Debian's Chromium, and packages of Node in the cache.

use super::{CacheLock, HostProgram, cache_dir, ensure_programs, place_atomically, run_quietly, say};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Drives the browser; the variant that brings no browser of its own.
const PLAYWRIGHT: &str = "playwright-core@1.65.1";
/// Looks for what people who cannot see or use a mouse stumble over.
const AXE: &str = "axe-core@4.14.1";

/// A browser and what drives it.
#[derive(Clone, Debug)]
pub struct Browser {
    /// The program.
    pub chromium: PathBuf,
    /// A folder whose `node_modules` hold the packages.
    pub packages: PathBuf,
}

/// Makes sure that a browser is there, with letters to write with.
pub fn provide() -> Result<Browser> {
    const WHY: &str = "opens the live page";
    ensure_programs(&[
        HostProgram {
            name: "chromium",
            package: "chromium",
            why: WHY,
        },
        HostProgram {
            name: "npm",
            package: "npm",
            why: "installs what drives the browser",
        },
        HostProgram {
            name: "fc-list",
            package: "fontconfig",
            why: WHY,
        },
    ])?;
    let chromium =
        super::find_on_path("chromium").context("chromium is not on the PATH after it was installed")?;
    let folder = cache_dir()?.join(format!("browser-{PLAYWRIGHT}-{AXE}"));
    let _lock = CacheLock::acquire("browser")?;
    if !folder.is_dir() {
        say(&format!(
            "downloading {PLAYWRIGHT} and {AXE} (they drive the browser and check the page)"
        ));
        place_atomically(&folder, |content| {
            fs::write(content.join("package.json"), "{\"private\": true}\n")?;
            let mut npm = Command::new("npm");
            npm.args([
                "install",
                "--silent",
                "--no-fund",
                "--no-audit",
                "--ignore-scripts",
                PLAYWRIGHT,
                AXE,
            ])
            .current_dir(content);
            run_quietly(&mut npm).map(drop)
        })?;
    }
    Ok(Browser {
        chromium,
        packages: folder,
    })
}
