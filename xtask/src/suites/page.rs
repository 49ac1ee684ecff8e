//! The live page in a real browser: a guest runs sdtrace and processes whose writes are missed, Chromium on this machine
//! looks at them. What is asserted is in `page.mjs`; the pictures are kept under `target/page`.

use super::output::Shared;
use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::Kernels;
use crate::page::stage::{CONTROL_PORT, PAGE_PORT};
use crate::provision::browser;
use crate::suites::battery;
use crate::workspace::{build_static, target_dir};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The whole takes one to two minutes under emulation; more when the host is busy.
const TIMEOUT: Duration = Duration::from_mins(15);

const SCRIPT: &str = include_str!("page.mjs");

/// A port of 127.0.0.1 that nobody has.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Ends with us.
struct Script(Child);

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the guest and has the browser look at it.
pub fn run(kernel: Wanted) -> Result<()> {
    let browser = browser::provide()?;
    let sdtrace = build_static("tracer-user", "sdtrace")?;
    let stage = build_static("xtask", "page-stage")?;
    let kernel = Kernels::open()?.provide(kernel, false)?;
    let folder = target_dir().join("page");
    if folder.is_dir() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let script = folder.join("page.mjs");
    fs::write(&script, SCRIPT).with_context(|| script.display().to_string())?;
    let (page, control) = (free_port()?, free_port()?);
    let said = Shared::default();
    let mut guest = Guest::new(kernel.clone(), ["page-stage", "run"])
        .cpus(2)
        .two_nodes(true)
        .memory_mib(1536)
        .file(&sdtrace, "/usr/bin/sdtrace")
        .file(&stage, "/usr/bin/page-stage")
        .forward(page, PAGE_PORT)
        .forward(control, CONTROL_PORT)
        .out(folder.join("guest"))
        .timeout(TIMEOUT);
    for module in battery::modules(&kernel)? {
        guest = guest.module(module);
    }
    let mut running = guest.start(said.clone())?;
    let child = Command::new("node")
        .arg(&script)
        .env("PAGE_URL", format!("http://127.0.0.1:{page}"))
        .env("PAGE_CONTROL", control.to_string())
        .env("PAGE_FOLDER", &folder)
        .env("PAGE_KERNEL", &kernel.release)
        .env("PAGE_CHROMIUM", &browser.chromium)
        .env("PAGE_PACKAGES", &browser.packages)
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start node (Debian's package nodejs)")?;
    let mut script = Script(child);
    let mut status = None;
    while running.step(Duration::from_millis(100))? {
        status = script.0.try_wait()?;
        if status.is_some() {
            break;
        }
    }
    let status = match status {
        Some(status) => status,
        // The guest has ended; the script finds out by itself, or has just told it to.
        None => script.0.wait()?,
    };
    ensure!(
        status.success(),
        "the page is not as it should be ({status}); pictures are in {}, the guest said: {}",
        folder.display(),
        said.text().trim()
    );
    let report = running.wait()?;
    ensure!(
        report.outcome == Outcome::Exited(0),
        "{:?}: {}",
        report.outcome,
        said.text()
    );
    Ok(())
}
