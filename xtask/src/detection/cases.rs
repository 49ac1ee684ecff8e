//! Cases that the battery does not have: several causes in one epoch, the bug of 2014, and everything that forbids trust.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::said::{Detection, Dump};
use super::scenes::Told;
use crate::suite::daemon::Daemon;

/// How long sdtrace may take to say what it must.
const PATIENCE: Duration = Duration::from_secs(15);

/// A scene that runs, step by step.
pub struct Scene {
    child: Child,
    said: BufReader<ChildStdout>,
    /// What it told last.
    pub told: Told,
}

impl Scene {
    /// Starts it and waits until its first step is done.
    ///
    /// # Errors
    /// If it fails.
    pub fn start(name: &str) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program)
            .args(["scene", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let said = BufReader::new(child.stdout.take().context("a scene has an output")?);
        let told = Told {
            ranges: Vec::new(),
            missed: Vec::new(),
        };
        let mut scene = Self { child, said, told };
        scene.hear().with_context(|| format!("the scene {name}"))?;
        Ok(scene)
    }

    /// Has it do its next step and waits for that.
    ///
    /// # Errors
    /// If it fails.
    pub fn go_on(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("a scene has an input")?;
        writeln!(input)?;
        self.hear()
    }

    /// Lets it do its last step without waiting for what it tells.
    ///
    /// # Errors
    /// If it is gone.
    pub fn go(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("a scene has an input")?;
        Ok(writeln!(input)?)
    }

    /// Waits until the step that was begun is done.
    ///
    /// # Errors
    /// If it fails.
    pub fn hear(&mut self) -> Result<()> {
        let mut line = String::new();
        ensure!(self.said.read_line(&mut line)? > 0, "it ended early");
        self.told = serde_json::from_str(&line).with_context(|| line.clone())?;
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What sdtrace says of the newest epoch of a process, once `enough` is true of it.
///
/// # Errors
/// What it says instead.
pub fn wait_for(daemon: &Daemon, pid: u32, enough: impl Fn(&Detection) -> bool) -> Result<Detection> {
    let start = Instant::now();
    loop {
        let dump: Dump =
            serde_json::from_str(&daemon.get("/debug/ledger")?).context("the ledger cannot be read")?;
        let newest = dump
            .address_spaces
            .into_iter()
            .filter(|space| space.process.as_ref().and_then(|process| process.pid) == Some(pid))
            .filter_map(|space| space.epochs.into_iter().next_back()?.detection)
            .next_back();
        match newest {
            Some(detection) if enough(&detection) => return Ok(detection),
            said if start.elapsed() > PATIENCE => bail!("after {PATIENCE:?} sdtrace says {said:?}"),
            _ => thread::sleep(Duration::from_millis(250)),
        }
    }
}

/// Pages that sdtrace tells of a cause.
#[must_use]
pub fn pages(detection: &Detection, evidence: &str, cause: &str) -> u64 {
    let found = detection
        .causes
        .iter()
        .filter(|found| found.evidence == evidence && found.cause == cause);
    found.map(|found| found.pages).sum()
}

/// Three mechanisms work on three ranges in one epoch: each that makes the kernel lose bits gets its own name, its count and
/// its range. KSM does not on every kernel; then nothing must be said of its range.
///
/// # Errors
/// What sdtrace says instead.
pub fn causes(daemon: &Daemon) -> Result<()> {
    let scene = Scene::start("two-causes")?;
    let missed = scene.told.missed.clone();
    ensure!(
        matches!(missed[..], [63 | 0, 64, 512]),
        "of 64, 64 and 512 pages {missed:?} were missed"
    );
    let causes = ["ksm-merge", "shared-zap", "mremap-table-move"];
    let at_work: Vec<_> = causes
        .into_iter()
        .zip(missed)
        .zip(&scene.told.ranges)
        .filter(|&((_, missed), _)| missed > 0)
        .collect();
    let detection = wait_for(daemon, scene.pid(), |detection| {
        at_work
            .iter()
            .all(|&((cause, _), _)| pages(detection, "observed", cause) > 0)
    })?;
    for &((cause, missed), range) in &at_work {
        let told = pages(&detection, "observed", cause);
        ensure!(
            told == missed,
            "{cause}: {missed} pages were missed, sdtrace says {told}"
        );
        let found = detection.causes.iter().filter(|found| found.cause == cause);
        for place in found.flat_map(|found| &found.ranges) {
            let place: Range<u64> = place.start.0..place.end.0;
            ensure!(
                range.start <= place.start && place.end <= range.end,
                "{cause} at {place:x?}, and it worked on {range:x?}"
            );
        }
    }
    ensure!(
        detection.causes.len() == at_work.len(),
        "{} mechanisms were at work, sdtrace names {:?}",
        at_work.len(),
        detection.causes
    );
    ensure!(
        detection.verdict == "broken",
        "the verdict is {}",
        detection.verdict
    );
    Ok(())
}

/// With the test module's bug of 2014: exposed before anything is written, and after it.
///
/// # Errors
/// What sdtrace says instead.
pub fn seed(daemon: &Daemon) -> Result<()> {
    const CAUSE: &str = "shared-read-fault";
    let mut scene = Scene::start("read-then-write")?;
    let dirty = |detection: &Detection| -> u64 {
        detection
            .causes
            .iter()
            .filter(|found| found.cause == CAUSE)
            .map(|found| found.dirty_pages)
            .sum()
    };
    let before = wait_for(daemon, scene.pid(), |detection| {
        pages(detection, "exposed", CAUSE) >= 512
    })?;
    ensure!(
        pages(&before, "exposed", CAUSE) == 512 && dirty(&before) == 0,
        "before the write: {:?}",
        before.causes
    );
    ensure!(
        before.verdict == "suspect",
        "before the write the verdict is {}",
        before.verdict
    );
    scene.go_on()?;
    let missed = &scene.told.missed;
    ensure!(
        missed[..] == [256],
        "the fault is not at work: {missed:?} of 256 written pages were missed"
    );
    let after = wait_for(daemon, scene.pid(), |detection| dirty(detection) >= 256)?;
    ensure!(
        pages(&after, "exposed", CAUSE) == 512 && dirty(&after) == 256,
        "after the write: {:?}",
        after.causes
    );
    println!("seed: 512 pages exposed before the write; after it 256 of them dirty, and 256 writes missed");
    Ok(())
}

/// Everything that cannot be checked forbids trust: each source is forced, by the smallest bounds that there are.
///
/// # Errors
/// Names the source that sdtrace was not made to tell.
pub fn unknowns(attach: &str, out: &Path) -> Result<()> {
    let adopted = Scene::start("armed")?;
    let bounds = [
        "--max-page-records",
        "64",
        "--max-vmas",
        "256",
        "--max-address-spaces",
        "16",
    ];
    let arguments = [&["--attach", attach][..], &bounds].concat();
    let listen = SocketAddr::from(([127, 0, 0, 1], 9955));
    let daemon = Daemon::start(listen, &arguments, &out.join("unknowns.log").to_string_lossy())?;
    let because = |pid: u32, reason: &str| -> Result<()> {
        let has = |detection: &Detection| {
            detection
                .reasons
                .iter()
                .any(|one| one.kind == "unknown" && one.name == reason)
        };
        let detection = wait_for(&daemon, pid, has).with_context(|| reason.to_owned())?;
        ensure!(detection.verdict != "trusted", "trusted in spite of {reason}");
        println!("unknown: {reason}, and the epoch is {}", detection.verdict);
        Ok(())
    };
    because(adopted.pid(), "adopted")?;
    drop(adopted);
    let clean = Scene::start("armed")?;
    wait_for(&daemon, clean.pid(), |detection| detection.verdict == "trusted")
        .context("an ordinary process within the bounds")?;
    // What is lost concerns every epoch that was open then.
    because_of(&["chunks"], &clean, "pages_full", &because)?;
    because_of(&["mappings"], &clean, "rows_full", &because)?;
    drop(clean);
    let clean = Scene::start("armed")?;
    because_of(&["armed"; 17], &clean, "tracked_full", &because)?;
    drop(clean);
    let mut clears = Scene::start("many-clears")?;
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
    let pid = pid.context("sdtrace has a process id")?;
    kill_process(pid, Signal::STOP)?;
    let result = clears.go().and_then(|()| clears.hear());
    kill_process(pid, Signal::CONT)?;
    result?;
    because(clears.pid(), "ring_full")?;
    daemon.end(Signal::TERM)?;
    Ok(())
}

/// Plays scenes that use something up, and sees that they and a bystander are not trusted for this reason.
fn because_of(
    scenes: &[&str],
    bystander: &Scene,
    reason: &str,
    because: &dyn Fn(u32, &str) -> Result<()>,
) -> Result<()> {
    let running: Result<Vec<_>> = scenes.iter().map(|scene| Scene::start(scene)).collect();
    let running = running?;
    if let [scene] = &running[..] {
        because(scene.pid(), reason)?;
    }
    because(bystander.pid(), reason)
}
