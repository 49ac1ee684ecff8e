//! What runs in the guest: sdtrace traces, and the battery plays one scenario after the other.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;

use super::said::{Dump, Incident, Said, Space, contradictions};
use super::{Battery, Played, Run};
use crate::suite::daemon::Daemon;
use crate::suite::exposition::Scrape;

/// How long the last epochs may take to be finished.
const FINISHING: Duration = Duration::from_secs(20);

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How sdtrace attaches.
    pub attach: String,
    /// Scenarios; all when empty.
    pub only: Vec<String>,
    /// Folder for what the host shall have.
    pub out: PathBuf,
}

/// `sdtrace battery --list --json`.
#[derive(Deserialize)]
struct List {
    scenarios: Vec<Scenario>,
}

#[derive(Deserialize)]
struct Scenario {
    scenario: String,
    rounds: u32,
}

/// `sdtrace battery --json`.
#[derive(Deserialize)]
struct Document {
    results: Vec<Battery>,
}

/// A scenario that was played, and when.
struct Window {
    battery: Battery,
    race: bool,
    pid: u32,
    begin_ns: u64,
}

/// Plays the battery under sdtrace and writes `cross-check.json` into the folder for the host.
///
/// # Errors
/// If sdtrace or the battery cannot be run, or if what sdtrace says cannot be read.
pub fn run(options: &Options) -> Result<()> {
    fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let log = options.out.join("incidents.jsonl");
    let words = [
        "--attach",
        &options.attach,
        "--incident-log",
        &log.to_string_lossy(),
        // The first epoch of the first scenario counts like any other.
        "--watch-writes",
        "always",
        // Nothing may be forgotten before it is looked at.
        "--keep-ended",
        "4096",
        "--keep-epochs",
        "1024",
        "--keep-vmas",
        "1048576",
    ];
    let listen = SocketAddr::from(([127, 0, 0, 1], 9955));
    let daemon = Daemon::start(listen, &words, &options.out.join("sdtrace.log").to_string_lossy())?;
    let mut windows = Vec::new();
    for scenario in scenarios(&options.only)? {
        windows.push(play(&scenario)?);
    }
    let dump = finished(&daemon)?;
    let scrape = daemon.scrape()?;
    let status = daemon.end(Signal::TERM)?;
    ensure!(status.success(), "sdtrace ended with {status}");
    let mut wrong = contradictions(&dump, &incidents(&log)?);
    wrong.extend(other_sums(&dump, &scrape)?);
    // Skipped runs are told with every epoch that they may concern.
    let missing = dump
        .incomplete
        .iter()
        .filter(|reason| reason.reason != "missed_probe_runs");
    wrong.extend(
        missing.map(|reason| format!("the ledger is not complete: {} {}", reason.count, reason.reason)),
    );
    let run = Run {
        played: assign(windows, &dump.address_spaces),
        contradictions: wrong,
    };
    let path = options.out.join("cross-check.json");
    fs::write(&path, serde_json::to_string(&run)?).with_context(|| path.display().to_string())
}

fn battery(arguments: &[&str]) -> Command {
    let mut command = Command::new("sdtrace");
    command.arg("battery").args(arguments).stdin(Stdio::null());
    command
}

fn scenarios(only: &[String]) -> Result<Vec<Scenario>> {
    let output = battery(&["--list", "--json"])
        .output()
        .context("cannot start sdtrace")?;
    let list: List = serde_json::from_slice(&output.stdout).context("sdtrace battery --list --json")?;
    let chosen: Vec<_> = list
        .scenarios
        .into_iter()
        .filter(|scenario| only.is_empty() || only.contains(&scenario.scenario))
        .collect();
    ensure!(!chosen.is_empty(), "no scenario is called {}", only.join(", "));
    Ok(chosen)
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Plays one scenario.
fn play(scenario: &Scenario) -> Result<Window> {
    let name = scenario.scenario.as_str();
    let begin_ns = now_ns();
    let child = battery(&["--disruptive", "--json", "--only", name])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start sdtrace")?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let document: Document = serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "the battery's result of {name} ({}): {}",
            output.status,
            said.trim()
        )
    })?;
    let [battery] = &document.results[..] else {
        bail!("the battery gave {} results for {name}", document.results.len());
    };
    Ok(Window {
        battery: battery.clone(),
        race: scenario.rounds > 1,
        pid,
        begin_ns,
    })
}

/// The dump once every process of the battery is gone and every epoch has its last word.
fn finished(daemon: &Daemon) -> Result<Dump> {
    let start = Instant::now();
    loop {
        thread::sleep(Duration::from_secs(1));
        let dump: Dump =
            serde_json::from_str(&daemon.get("/debug/ledger")?).context("the ledger cannot be read")?;
        let open = dump.address_spaces.iter().flat_map(|space| &space.epochs);
        let open = open.filter(|epoch| {
            epoch
                .detection
                .as_ref()
                .is_none_or(|detection| !detection.finished)
        });
        let open = open.count();
        if open == 0 || start.elapsed() > FINISHING {
            // What is not finished by now is told as a contradiction.
            return Ok(dump);
        }
    }
}

fn incidents(path: &Path) -> Result<Vec<Incident>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("incident {line}")))
        .collect()
}

/// Gives each address space to the scenario that was being played when it was first met.
fn assign(windows: Vec<Window>, spaces: &[Space]) -> Vec<Played> {
    let mut ends: Vec<u64> = windows.iter().skip(1).map(|window| window.begin_ns).collect();
    ends.push(u64::MAX);
    windows
        .into_iter()
        .zip(ends)
        .map(|(window, end_ns)| {
            let (mut said, mut said_of_battery) = (Said::default(), Said::default());
            for space in spaces
                .iter()
                .filter(|space| (window.begin_ns..end_ns).contains(&space.birth))
            {
                let pid = space.process.as_ref().and_then(|process| process.pid);
                if pid == Some(window.pid) {
                    said_of_battery.take_in(space);
                } else {
                    said.take_in(space);
                }
            }
            Played {
                battery: window.battery,
                race: window.race,
                said,
                said_of_battery,
            }
        })
        .collect()
}

/// Where `/metrics` sums up to something else than the dump.
fn other_sums(dump: &Dump, scrape: &Scrape) -> Result<Vec<String>> {
    let mut all = Said::default();
    let (mut epochs, mut verdicts) = (0, std::collections::BTreeMap::<&str, u64>::new());
    for space in &dump.address_spaces {
        all.take_in(space);
        for detection in space.epochs.iter().filter_map(|epoch| epoch.detection.as_ref()) {
            epochs += 1;
            *verdicts.entry(&detection.verdict).or_default() += 1;
        }
    }
    ensure!(epochs > 0, "sdtrace has seen no epoch");
    let mut wrong = Vec::new();
    let mut compare = |what: &str, dumped: u64, metrics: u64| {
        if dumped != metrics {
            wrong.push(format!("{what}: {dumped} in the dump, {metrics} in /metrics"));
        }
    };
    for (kind, metric, label) in [
        ("missed", "softdirty_missed_writes_total", "cause"),
        ("dropped", "softdirty_dropped_pages_total", "reason"),
    ] {
        let mut metrics = std::collections::BTreeMap::<&str, u64>::new();
        for (labels, value) in scrape.all(metric, &[]) {
            let name = labels
                .get(label)
                .with_context(|| format!("{metric} has no {label}"))?;
            *metrics.entry(name).or_default() += whole(value)?;
        }
        for (name, &value) in &metrics {
            compare(&format!("{kind}:{name}"), all.count(kind, name), value);
        }
        for (name, count) in all.all(kind).filter(|(name, _)| !metrics.contains_key(name)) {
            compare(&format!("{kind}:{name}"), count, 0);
        }
    }
    for verdict in ["trusted", "suspect", "broken"] {
        let counted = scrape.count("softdirty_epochs_total", &[("verdict", verdict)])?;
        compare(verdict, verdicts.get(verdict).copied().unwrap_or(0), counted);
    }
    Ok(wrong)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be whole and not negative"
)]
fn whole(value: f64) -> Result<u64> {
    ensure!(value >= 0.0 && value.fract() == 0.0, "{value} is no count");
    Ok(value as u64)
}
