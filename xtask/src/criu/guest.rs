//! Inside the guest: CRIU checkpoints an oracle three times and a last time, while sdtrace traces.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde::Serialize;

use super::compare::{Area, Comparison, Known, PageSet, Reason};
use super::images::{Image, restored};
use super::{gate, judge};
use crate::oracle::{Oracle, Settings};
use crate::soak::pagemap::{Pagemap, vmas};
use crate::suite::daemon::Daemon;
use crate::workload::proc::PAGE;

/// Pre-dumps before the dump.
pub const PRE_DUMPS: usize = 3;
/// Threads of the oracle.
pub const THREADS: usize = 4;
/// How long the oracle writes between two of them.
pub(super) const WRITING: Duration = Duration::from_millis(400);
/// KSM is waited for until it has gone round this often: it merges what did not change between two rounds.
const SCANS: u64 = 3;
const KSM: &str = "/sys/kernel/mm/ksm";

/// What was seen of one pre-dump or dump.
#[derive(Clone, Debug)]
pub struct Step {
    /// What was known to have been written since the clear before it.
    pub known: Known,
    /// What CRIU wrote, against that.
    pub comparison: Comparison,
    /// Writes that the oracle made.
    pub writes: u64,
}

/// What was seen of one target, from the first pre-dump to the dump.
#[derive(Clone, Debug)]
pub struct Series {
    /// The target's process id.
    pub pid: u32,
    /// Whether KSM ran.
    pub ksm: bool,
    /// One after the other.
    pub steps: Vec<Step>,
    /// Pages in private memory that a restore from the images would bring back with an old content, by area.
    pub stale: BTreeMap<String, Vec<u64>>,
    /// Pages whose restored content was compared.
    pub restored: u64,
}

/// The result, as JSON.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// CRIU's own words.
    pub criu: String,
    /// `uname -r`.
    pub kernel: String,
    /// One for each target.
    pub series: Vec<judge::Judged>,
    /// The script that asks sdtrace for verdicts, without and with KSM.
    pub gates: Vec<gate::Gated>,
}

/// Runs everything, prints a table, leaves `criu.json` in `out`, and returns whether all is as it must be.
///
/// # Errors
/// If something does not work at all.
pub fn run(attach: &str, out: &Path) -> Result<bool> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let criu = said(Command::new("criu").arg("--version"))?;
    said(Command::new("criu").arg("check")).context("CRIU does not work on this kernel")?;
    let log = out.join("sdtrace.log");
    let listen = SocketAddr::from(([127, 0, 0, 1], 9955));
    let daemon = Daemon::start(listen, &["--attach", attach], &log.to_string_lossy())?;
    let mut judged = Vec::new();
    for ksm in [false, true] {
        let series = series(ksm, out)?;
        let (scrape, ledger) = (daemon.scrape()?, daemon.ledger()?);
        judged.push(judge::judge(&series, &ledger, &scrape)?);
    }
    let gates = [false, true].map(|ksm| gate::run(ksm, out));
    let gates = gates.into_iter().collect::<Result<_>>()?;
    let words = daemon.said();
    let status = daemon.end(Signal::TERM)?;
    ensure!(
        status.success(),
        "sdtrace ended with {status}; it had said: {words}"
    );
    let summary = Summary {
        criu: criu.lines().collect::<Vec<_>>().join(", "),
        kernel: kernel.trim().to_owned(),
        series: judged,
        gates,
    };
    fs::write(out.join("criu.json"), serde_json::to_vec_pretty(&summary)?)?;
    print!("{}", judge::table(&summary));
    for gated in &summary.gates {
        print!("{}", gate::table(gated));
    }
    let failures = summary.series.iter().map(|series| &series.failures);
    let failures = failures.chain(summary.gates.iter().map(|gated| &gated.failures));
    Ok(failures.into_iter().all(Vec::is_empty))
}

/// One target from its start to its dump.
fn series(ksm: bool, out: &Path) -> Result<Series> {
    let _ksm = ksm.then(Ksm::start).transpose()?;
    let folder = PathBuf::from(if ksm { "/tmp/criu-ksm" } else { "/tmp/criu" });
    let settings = Settings {
        threads: THREADS,
        pages: 256,
        pace: 5,
        mergeable: true,
    };
    let mut oracle = Oracle::start(std::env::current_exe()?, settings)?;
    let mut series = Series {
        pid: oracle.pid(),
        ksm,
        steps: Vec::new(),
        stale: BTreeMap::new(),
        restored: 0,
    };
    for number in 1..=PRE_DUMPS + 1 {
        oracle.go()?;
        thread::sleep(WRITING);
        let writes = oracle.pause()?;
        if ksm {
            Ksm::wait()?;
        }
        // The dump ends the target. Asked before pagemap is looked at: to answer, it writes to its heap.
        let content = (number > PRE_DUMPS).then(|| oracle.content()).transpose()?;
        let mut known = known(&mut oracle)?;
        let result = checkpoint(series.pid, number, &folder);
        let log = folder.join(number.to_string()).join("criu.log");
        if result.is_err() {
            // What CRIU said is for the host to see.
            fs::copy(&log, out.join(format!("criu-{number}.log")))?;
        }
        result?;
        let text = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        known.exclusions = exclusions(&text)?;
        let image = image(&folder, number, series.pid)?;
        let written: PageSet = image.written().collect();
        series.steps.push(Step {
            comparison: Comparison::of(&known, &written),
            known,
            writes,
        });
        match content {
            Some(content) => restore(&mut series, &oracle, &content, &folder)?,
            None => oracle.forget()?,
        }
    }
    Ok(series)
}

/// What is known to have been written since the clear before: by the oracle's own word, and elsewhere by pagemap.
fn known(oracle: &mut Oracle) -> Result<Known> {
    let changed = oracle.changed()?;
    let page = PAGE as u64;
    let areas: Vec<_> = oracle
        .areas
        .iter()
        .zip(&changed)
        .filter(|(info, _)| !info.shared)
        .map(|(info, changed)| Area {
            name: info.name.clone(),
            start: info.start,
            end: info.start + info.pages as u64 * page,
            changed: changed
                .iter()
                .flat_map(|pages| pages.from..pages.to)
                .map(|number| info.start + number as u64 * page)
                .collect(),
            huge: info.name == "huge",
        })
        .collect();
    let pagemap = Pagemap::open(oracle.pid())?;
    let mut soft_dirty = PageSet::new();
    for vma in vmas(oracle.pid())? {
        // The kernel's own pages have no entries in pagemap.
        if vma.name != "[vsyscall]" {
            soft_dirty.extend(pagemap.soft_dirty(vma.start..vma.end)?);
        }
    }
    Ok(Known {
        areas,
        soft_dirty,
        exclusions: BTreeMap::new(),
    })
}

/// Runs CRIU once.
fn checkpoint(pid: u32, number: usize, folder: &Path) -> Result<()> {
    let images = folder.join(number.to_string());
    fs::create_dir_all(&images).with_context(|| images.display().to_string())?;
    let mut criu = Command::new("criu");
    criu.arg(if number > PRE_DUMPS { "dump" } else { "pre-dump" })
        .args([
            "--track-mem",
            "--network-lock",
            "skip",
            "-v4",
            "-o",
            "criu.log",
            "-t",
        ])
        .arg(pid.to_string())
        .arg("-D")
        .arg(&images);
    if number > 1 {
        criu.arg("--prev-images-dir").arg(format!("../{}", number - 1));
    }
    said(&mut criu).map(drop)
}

/// What CRIU wrote of the target's private memory.
fn image(folder: &Path, number: usize, pid: u32) -> Result<Image> {
    Image::read(&folder.join(number.to_string()), &pid.to_string())
}

/// The pages that CRIU itself writes into its target, from its log: to make the target call mmap for the parasite's memory it
/// puts a syscall instruction into a page of the program's code. The parasite's own memory is not in the image.
fn exclusions(log: &str) -> Result<BTreeMap<u64, &'static str>> {
    let word = log
        .lines()
        .find_map(|line| line.split_once("Parasite syscall_ip at 0x"))
        .and_then(|(_, address)| u64::from_str_radix(address.trim(), 16).ok())
        .context("CRIU's log does not say where it put its syscall instruction")?;
    let page = word - word % PAGE as u64;
    Ok(BTreeMap::from([(page, "CRIU's syscall instruction")]))
}

/// Compares what a restore would bring back with what the oracle last had.
fn restore(series: &mut Series, oracle: &Oracle, content: &[Vec<u64>], folder: &Path) -> Result<()> {
    let mut chain = Vec::new();
    for number in (1..=PRE_DUMPS + 1).rev() {
        chain.push(image(folder, number, series.pid)?);
    }
    for (info, content) in oracle.areas.iter().zip(content).filter(|(info, _)| !info.shared) {
        for (number, expected) in content.iter().enumerate() {
            let address = info.start + (number * PAGE) as u64;
            series.restored += 1;
            if restored(&chain, address)? != Some(*expected) {
                series.stale.entry(info.name.clone()).or_default().push(address);
            }
        }
    }
    Ok(())
}

/// Runs a command and returns what it said.
fn said(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if !output.status.success() {
        bail!("{name} ended with {}: {}", output.status, text.trim());
    }
    Ok(text)
}

/// KSM at full speed, until this is dropped.
pub(super) struct Ksm;

impl Ksm {
    pub(super) fn start() -> Result<Self> {
        for (name, value) in [
            ("pages_to_scan", "10000"),
            ("sleep_millisecs", "10"),
            ("run", "1"),
        ] {
            let path = format!("{KSM}/{name}");
            fs::write(&path, value).with_context(|| path)?;
        }
        Ok(Self)
    }

    /// Waits until it has seen everything.
    pub(super) fn wait() -> Result<()> {
        let scans = || -> Result<u64> {
            let path = format!("{KSM}/full_scans");
            let text = fs::read_to_string(&path).with_context(|| path)?;
            Ok(text.trim().parse()?)
        };
        let (before, start) = (scans()?, Instant::now());
        while scans()? < before + SCANS {
            ensure!(start.elapsed() < Duration::from_secs(20), "KSM does not go round");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        // 2: what was merged is taken apart again. The guest ends soon anyway.
        let _ = fs::write(format!("{KSM}/run"), "2");
    }
}

/// The reasons that are told, with their words.
pub const REASONS: [(Reason, &str); 3] = [
    (Reason::Changed, "changed by the target"),
    (Reason::HugePage, "in a huge page with such a one"),
    (Reason::SoftDirty, "elsewhere, soft-dirty before"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_that_criu_writes_is_found_in_its_log() {
        let log = "(00.037) x\n(00.037161) Parasite syscall_ip at 0x401234\n(00.1) y\n";
        let pages: Vec<_> = exclusions(log).unwrap().into_keys().collect();
        assert_eq!(pages, [0x40_1000]);
        assert!(exclusions("nothing").is_err());
    }
}
