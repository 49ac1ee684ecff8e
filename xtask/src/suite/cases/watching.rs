//! When write faults are watched: the kernel's own lists say whether anything is attached to `handle_mm_fault`.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::detection::said::{Detection, Dump};
use crate::suite::actor::Actor;
use crate::suite::attached::{Attached, on};
use crate::suite::daemon::Daemon;
use crate::suite::exposition::Scrape;
use crate::suite::kept::Kept;
use crate::suite::{Suite, compare, verdicts};

const FUNCTION: &str = "handle_mm_fault";
/// How soon after a reason for it write faults must be watched: milliseconds, if the host has time for the guest.
const SOON: Duration = Duration::from_secs(1);
/// How long they are watched after the last reason, here.
const LINGER: &str = "2s";
/// By when that must be over.
const LINGERED: Duration = Duration::from_secs(20);
/// How long an epoch may take to be finished.
const FINISHING: Duration = Duration::from_secs(20);

fn start(suite: &Suite, name: &str, arguments: &[&str]) -> Result<Daemon> {
    ensure!(on(FUNCTION)?.is_empty(), "attached before: {:?}", on(FUNCTION)?);
    let log = suite.options.out.join(name);
    let arguments = [&["--attach", &suite.options.attach], arguments].concat();
    Daemon::start(Suite::address(), &arguments, &log.to_string_lossy())
}

fn end(suite: &Suite, daemon: Daemon) -> Result<()> {
    let status = daemon.end(Signal::TERM)?;
    ensure!(status.code() == Some(0), "sdtrace ended with {status}");
    Attached::wait_until_gone(&suite.before).map(|_| ())
}

/// Waits until write faults are watched, or not, by the kernel's lists and by `/metrics`.
fn wait(daemon: &Daemon, watched: bool, limit: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let attached = on(FUNCTION)?;
        if attached.is_empty() != watched {
            break;
        }
        ensure!(
            start.elapsed() < limit,
            "after {limit:?}, {attached:?} is attached to {FUNCTION}; sdtrace said: {}",
            daemon.said()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let shown = daemon.scrape()?.count("sdtrace_writes_watched", &[])?;
    ensure!(
        shown == u64::from(watched),
        "sdtrace_writes_watched is {shown}, and the kernel's lists say {watched}"
    );
    Ok(())
}

/// What is said of an epoch once it is finished.
fn finished(daemon: &Daemon, pid: u32, number: u32) -> Result<Detection> {
    let start = Instant::now();
    loop {
        let dump: Dump =
            serde_json::from_str(&daemon.get("/debug/ledger")?).context("the ledger cannot be read")?;
        let epoch = dump
            .address_spaces
            .into_iter()
            .filter(|space| space.process.as_ref().and_then(|process| process.pid) == Some(pid))
            .flat_map(|space| space.epochs)
            .find(|epoch| epoch.number == number);
        let detection = epoch.and_then(|epoch| epoch.detection);
        if let Some(detection) = detection.filter(|detection| detection.finished) {
            return Ok(detection);
        }
        ensure!(
            start.elapsed() < FINISHING,
            "epoch {number} of process {pid} is not finished after {FINISHING:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sees that it is trusted, or would be if the kernel had not skipped a probe.
fn trusted(detection: &Detection, what: &str, scrape: &Scrape) -> Result<()> {
    let skipped = compare::skipped(scrape)?;
    let reasons: Vec<_> = detection
        .reasons
        .iter()
        .filter(|reason| skipped == 0 || reason.name != "missed_probe_runs")
        .collect();
    ensure!(
        detection.causes.is_empty() && reasons.is_empty(),
        "{what} is {}: {reasons:?} {:?}",
        detection.verdict,
        detection.causes
    );
    Ok(())
}

fn clear(actor: &mut Actor, times: usize) -> Result<()> {
    (0..times).try_for_each(|_| actor.clear_from_here())
}

/// Nothing is attached while nobody asks. A clear out of the blue finds it so, and that epoch says it, the next one is
/// trusted. Who reads pagemap first is trusted from the first epoch on.
pub fn writes_are_watched_on_demand(suite: &mut Suite) -> Result<()> {
    let daemon = start(suite, "on-demand.log", &["--watch-writes-for", LINGER])?;
    wait(&daemon, false, LINGERED).context("at the start")?;
    verdicts::check(&daemon.scrape()?, &suite.options.attach, &suite.series)?;
    let mut actor = Actor::start("private")?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(on(FUNCTION)?.is_empty(), "attached though nobody asked");

    clear(&mut actor, 1)?;
    wait(&daemon, true, SOON).context("after a clear")?;
    clear(&mut actor, 2)?;
    let late = finished(&daemon, actor.pid(), 1)?;
    ensure!(
        late.verdict == "suspect"
            && late
                .reasons
                .iter()
                .any(|reason| reason.name == "watch_started_late"),
        "an epoch that began unwatched is {}: {:?}",
        late.verdict,
        late.reasons
    );
    let second = finished(&daemon, actor.pid(), 2)?;
    trusted(&second, "the second epoch", &daemon.scrape()?)?;
    actor.end()?;
    wait(&daemon, false, LINGERED).context("after everything tracked was gone")?;

    let mut expected = 1;
    for (how, look) in [("read", read as Look), ("PAGEMAP_SCAN", scan)] {
        let mut actor = Actor::start("private")?;
        let path = format!("/proc/{}/pagemap", actor.pid());
        let pagemap = File::open(&path).with_context(|| path.clone())?;
        match look(&pagemap, &path) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => continue,
            result => result.context(path)?,
        }
        expected += 1;
        wait(&daemon, true, SOON).with_context(|| format!("after a {how} of pagemap"))?;
        clear(&mut actor, 2)?;
        let first = finished(&daemon, actor.pid(), 1)?;
        trusted(
            &first,
            &format!("an epoch after a {how} of pagemap"),
            &daemon.scrape()?,
        )?;
        actor.end()?;
        wait(&daemon, false, LINGERED).context("after everything tracked was gone again")?;
    }
    let attaches = daemon
        .scrape()?
        .count("sdtrace_write_watch_attaches_total", &[])?;
    ensure!(
        attaches == expected,
        "{attaches} attaches are counted, there were {expected}"
    );
    end(suite, daemon)
}

/// A look at the pagemap file of a process, with its path.
type Look = fn(&File, &str) -> io::Result<()>;

fn read(mut pagemap: &File, _path: &str) -> io::Result<()> {
    pagemap.read_exact(&mut [0; 8])
}

/// `struct pm_scan_arg` of include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_length: u64,
    most_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any: u64,
    returned: u64,
}

/// Asks for the soft-dirty pages of its first mapping; `ENOTTY` before 6.7.
fn scan(pagemap: &File, path: &str) -> io::Result<()> {
    /// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
    const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610;
    /// `PAGE_IS_SOFT_DIRTY`.
    const SOFT_DIRTY: u64 = 1 << 7;
    let maps = std::fs::read_to_string(path.replace("pagemap", "maps"))?;
    let (start, rest) = maps.split_once('-').unwrap_or_default();
    let (end, _) = rest.split_once(' ').unwrap_or_default();
    let number = |text| u64::from_str_radix(text, 16).map_err(io::Error::other);
    let mut regions = [[0u64; 3]; 8];
    let mut argument = Scan {
        size: size_of::<Scan>() as u64,
        start: number(start)?,
        end: number(end)?,
        regions: regions.as_mut_ptr() as u64,
        regions_length: regions.len() as u64,
        category_mask: SOFT_DIRTY,
        returned: SOFT_DIRTY,
        ..Scan::default()
    };
    // SAFETY: the argument is ours, as is the room for regions that it names.
    let result = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// With `--watch-writes always`, the first epoch is trusted though nobody has read pagemap.
pub fn writes_are_always_watched_if_told(suite: &mut Suite) -> Result<()> {
    let always = ["--watch-writes", "always", "--watch-writes-for", "1s"];
    let daemon = start(suite, "always.log", &always)?;
    // Longer than it would be watched on demand.
    std::thread::sleep(Duration::from_secs(3));
    wait(&daemon, true, Duration::ZERO)?;
    let mut actor = Actor::start("private")?;
    clear(&mut actor, 2)?;
    let first = finished(&daemon, actor.pid(), 1)?;
    trusted(&first, "the first epoch", &daemon.scrape()?)?;
    actor.end()?;
    end(suite, daemon)
}

/// Without a file descriptor for it nothing can be attached: then the epochs say so, the verdict and readiness do, and it
/// is tried again.
pub fn what_cannot_be_attached_is_said(suite: &mut Suite) -> Result<()> {
    let daemon = start(suite, "refused.log", &["--watch-writes-for", LINGER])?;
    wait(&daemon, false, LINGERED)?;
    let mut actor = Actor::start("private")?;
    let mut connection = Kept::to(daemon.address())?;
    ensure!(connection.get("/readyz")?.status == 200, "it is not ready");
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw);
    // It has them from us.
    let usual = getrlimit(Resource::Nofile);
    let limit = |current| {
        let files = Rlimit { current, ..usual };
        prlimit(pid, Resource::Nofile, files).context("prlimit")
    };
    // What is open stays so.
    limit(Some(3))?;
    clear(&mut actor, 1)?;
    let answer = until_ready(&mut connection, false)?;
    ensure!(
        answer.contains(FUNCTION) && on(FUNCTION)?.is_empty(),
        "the reasons are {answer}"
    );
    clear(&mut actor, 1)?;
    limit(usual.current)?;
    until_ready(&mut connection, true)?;
    wait(&daemon, true, Duration::ZERO)?;
    clear(&mut actor, 2)?;
    let late = finished(&daemon, actor.pid(), 2)?;
    for expected in ["watch_started_late", "probe_unavailable"] {
        ensure!(
            late.reasons.iter().any(|reason| reason.name == expected),
            "an epoch whose writes could not be watched has the reasons {:?}",
            late.reasons
        );
    }
    let third = finished(&daemon, actor.pid(), 3)?;
    trusted(&third, "the epoch after that", &daemon.scrape()?)?;
    actor.end()?;
    end(suite, daemon)
}

/// The answer of `/readyz` once it is that.
fn until_ready(connection: &mut Kept, ready: bool) -> Result<String> {
    let start = Instant::now();
    loop {
        let answer = connection.get("/readyz")?;
        if (answer.status == 200) == ready {
            return Ok(answer.body);
        }
        ensure!(
            start.elapsed() < LINGERED,
            "after {LINGERED:?} readiness says {}",
            answer.body.trim()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
