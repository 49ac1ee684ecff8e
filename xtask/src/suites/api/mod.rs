//! The JSON API of the real daemon, in a guest where it finds real incidents, asked by schemathesis from the host: whatever
//! the description allows must be answered as it says, everything else must be refused.

mod scale;

use crate::guest::{Guest, Outcome};
use crate::kernels::Wanted;
use crate::kernels::fetch::Kernels;
use crate::provision::packagers;
use crate::suites::output::Shared;
use crate::suites::transport::{free_port, get};
use crate::workspace::{build_static, root, target_dir};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The guest's part: sdtrace, a shell that clears its own bits, and things that make soft-dirty miss writes.
const SCRIPT: &str = include_str!("guest.sh");
/// What the guest's script plays, and finds under these causes on every kernel from 6.1 on.
const CAUSES: [&str; 2] = ["shared-collapse", "mremap-table-move"];
/// Boot, attaching, the battery and a thousand questions, on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(12);
/// Cases for each way to ask a path. With one more for each edge of each parameter it makes about nine hundred questions.
const EXAMPLES: &str = "10";
/// 503 is described, and a busy machine may well give it now and then.
const CONFIGURATION: &str = "[checks]\nnot_a_server_error.expected-statuses = [\"2xx\", \"4xx\", 503]\n";

/// Measures with many address spaces, boots the kernel, lets schemathesis ask, and sees that it can fail.
pub fn run(wanted: Wanted) -> Result<()> {
    scale::run()?;
    let sdtrace = build_static("tracer-user", "sdtrace")?;
    let python = packagers::schemathesis()?;
    let kernel = Kernels::open()?.provide(wanted, false)?;
    let series = kernel.source.series;
    let folder = target_dir().join("api").join(series.to_string());
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let port = free_port()?;
    let said = Shared::default();
    let mut running = Guest::new(kernel, ["sh", "-c", SCRIPT])
        .file(&sdtrace, "/usr/bin/sdtrace")
        .forward(port, 9955)
        .out(folder.join("guest"))
        .timeout(TIMEOUT)
        .start(said.clone())?;
    let gone = Arc::new(AtomicBool::new(false));
    // The emulator dies with the thread that started it, so the questions are asked on another one.
    let asking = std::thread::spawn({
        let (folder, gone) = (folder.clone(), Arc::clone(&gone));
        move || -> Result<()> {
            ready(port, &gone).context("before schemathesis")?;
            ask(&python, port, &folder, None)?;
            notices_a_wrong_description(&python, port, &folder)?;
            ready(port, &gone).context("after schemathesis")
        }
    });
    while !asking.is_finished() {
        if !running.step(Duration::from_millis(100))? {
            gone.store(true, Ordering::SeqCst);
            break;
        }
    }
    if asking.is_finished() {
        running.interrupt_command()?;
    }
    let report = running.wait()?;
    let asked = asking
        .join()
        .map_err(|_| anyhow::anyhow!("whoever asks panicked"))?;
    asked.with_context(|| format!("the API on {series}; the guest said: {}", said.text().trim()))?;
    ensure!(
        report.outcome == Outcome::Exited(0),
        "the guest {series} ended with {:?}: {}",
        report.outcome,
        said.text().trim()
    );
    Ok(())
}

fn list(port: u16, path: &str) -> Result<Vec<Value>> {
    let body: Value = serde_json::from_slice(&get(port, path)?)?;
    let items = body["items"].as_array().context("a list has items")?;
    Ok(items.clone())
}

/// Waits until there is something of everything to ask about.
fn ready(port: u16, gone: &AtomicBool) -> Result<()> {
    let start = Instant::now();
    loop {
        match something_of_everything(port) {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > TIMEOUT || gone.load(Ordering::SeqCst) => return Err(error),
            // Nobody listens before sdtrace is started, and it answers 503 until it is ready.
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

fn something_of_everything(port: u16) -> Result<()> {
    let incidents = list(port, "/api/v1/incidents")?;
    for cause in CAUSES {
        ensure!(
            incidents.iter().any(|incident| incident["cause"] == cause),
            "no incident of {cause}"
        );
    }
    let live = list(port, "/api/v1/processes?limit=1")?;
    let id = live
        .first()
        .and_then(|process| process["id"].as_u64())
        .context("no process is live")?;
    for path in [
        "",
        "/epochs",
        "/epochs/last",
        "/epochs/open",
        "/epochs/last/ranges",
    ] {
        get(port, &format!("/api/v1/processes/{id}{path}")).with_context(|| path.to_owned())?;
    }
    let kernel: Value = serde_json::from_slice(&get(port, "/api/v1/kernel")?)?;
    let attached = |probe: &Value| probe["verdict"] == "attached";
    ensure!(
        kernel["probes"]
            .as_array()
            .is_some_and(|probes| probes.iter().any(attached)),
        "no probe is attached"
    );
    let served: Value = serde_json::from_slice(&get(port, "/api/v1/openapi.json")?)?;
    let committed: Value = serde_json::from_slice(&fs::read(root().join("docs/openapi.json"))?)?;
    ensure!(
        served == committed,
        "the description that is served is not docs/openapi.json"
    );
    Ok(())
}

/// Runs schemathesis, by the description that is served or by another one; its report goes to a file.
fn ask(python: &Path, port: u16, folder: &Path, description: Option<&Path>) -> Result<()> {
    let configuration = folder.join("schemathesis.toml");
    fs::write(&configuration, CONFIGURATION)?;
    let server = format!("http://127.0.0.1:{port}");
    let mut schemathesis = Command::new("python3");
    schemathesis
        .args(["-c", "from schemathesis.cli import schemathesis; schemathesis()"])
        .arg("--config-file")
        .arg(&configuration)
        .args(["run", "--no-color", "--seed", "1", "--request-timeout", "60"])
        .current_dir(folder)
        .env("PYTHONPATH", python);
    match description {
        None => schemathesis
            .arg(format!("{server}/api/v1/openapi.json"))
            .args(["--max-examples", EXAMPLES]),
        Some(path) => schemathesis.arg(path).args([
            "--url",
            &server,
            "--phases",
            "coverage",
            "--include-path",
            "/api/v1/causes",
        ]),
    };
    let asked = schemathesis.output().context("cannot start python3")?;
    let output = String::from_utf8_lossy(&[asked.stdout, asked.stderr].concat()).into_owned();
    let report = folder.join(description.map_or("schemathesis.txt", |_| "schemathesis-wrong.txt"));
    fs::write(&report, &output).with_context(|| report.display().to_string())?;
    let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(
        asked.status.success(),
        "schemathesis is not content (all of it is in {}):\n  {}",
        report.display(),
        lines[lines.len().saturating_sub(20)..].join("\n  ")
    );
    for line in lines {
        if line.contains("generated") || line.contains("No issues found") {
            println!("{}", line.trim_matches(['=', ' ']));
        }
    }
    Ok(())
}

/// A description that says what is not so must not pass, or schemathesis looks at nothing.
fn notices_a_wrong_description(python: &Path, port: u16, folder: &Path) -> Result<()> {
    let mut description: Value = serde_json::from_slice(&fs::read(root().join("docs/openapi.json"))?)?;
    let name = description
        .pointer_mut("/components/schemas/CauseInfo/properties/name")
        .context("the description has the name of a cause")?;
    *name = json!({ "type": "integer" });
    let path = folder.join("wrong.json");
    fs::write(&path, description.to_string())?;
    match ask(python, port, folder, Some(&path)) {
        Ok(()) => bail!("schemathesis accepts a description that says that names of causes are numbers"),
        Err(error) if format!("{error:#}").contains("violates schema") => Ok(()),
        Err(error) => Err(error.context("schemathesis failed, but not over the wrong description")),
    }
}
