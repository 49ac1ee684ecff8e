//! The demo itself: sdtrace, a tracker that clears and reads, and a target whose writes are known.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::tally::Tally;
use crate::suite::actor::Actor;
use crate::suite::compare;
use crate::suite::daemon::Daemon;
use crate::workload::proc::PAGE;
use crate::workload::report::Report;

/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a line about the state of things is printed.
const NEWS: Duration = Duration::from_secs(5);
/// Bit 55 of a pagemap entry.
const PAGEMAP_SOFT_DIRTY: u64 = 1 << 55;

/// Runs until the time is over, SIGINT or SIGTERM, prints the table, and returns whether both sides agree.
pub fn show(listen: SocketAddr, duration: Option<Duration>) -> Result<bool> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let log = tempfile::NamedTempFile::new().context("cannot create a temporary file")?;
    let daemon = Daemon::start(listen, &[], &log.path().to_string_lossy())?;
    let start = Instant::now();
    let mut target = Actor::start("demo")?;
    let before = daemon.scrape()?;
    let mut tally = Tally::default();
    let (mut rounds, mut found, mut changed) = (0u64, 0u64, 0u64);
    let mut news = Instant::now();
    while !stop.load(Ordering::SeqCst) && duration.is_none_or(|duration| start.elapsed() < duration) {
        target.clear_from_here()?;
        let report = target.act()?;
        let (dirty, wrote) = read_back(&report)?;
        found += dirty;
        changed += wrote;
        tally.did(report);
        rounds += 1;
        if tally.wants_a_look() {
            tally.saw(&daemon.ledger()?);
        }
        if news.elapsed() >= NEWS {
            news = Instant::now();
            println!(
                "{:>4} s: {rounds} clears, {} writes of the target",
                start.elapsed().as_secs(),
                tally.written()
            );
        }
        std::thread::sleep(PAUSE);
    }
    let (after, ledger) = (daemon.scrape()?, daemon.ledger()?);
    tally.saw(&ledger);
    let sums = compare::consistent(&ledger, &after);
    let clears = |scrape: &crate::suite::exposition::Scrape| {
        scrape.count("softdirty_clears_total", &[("result", "tracked")])
    };
    let clears = clears(&after)? - clears(&before)?;
    println!();
    print!("{}", tally.table());
    let verdict = |equal| if equal { "equal" } else { "NOT EQUAL" };
    println!(
        "{:<20}{rounds:>12}{clears:>12}  {}",
        "clears",
        verdict(rounds == clears)
    );
    println!("\nthe tracker found {found} soft-dirty pages in the target's memory, {changed} had changed");
    match &sums {
        Ok(()) => println!("/metrics equals the sum over the ledger"),
        Err(error) => println!("/metrics and the ledger DIFFER: {error:#}"),
    }
    target.end()?;
    let said = daemon.said();
    let status = daemon.end(Signal::TERM)?;
    ensure!(
        status.success(),
        "sdtrace ended with {status}; it had said: {said}"
    );
    Ok(tally.equal() && rounds == clears && found == changed && sums.is_ok())
}

/// Reads pagemap as a tracker does: soft-dirty pages in the target's areas, and how many it says should be.
fn read_back(report: &Report) -> Result<(u64, u64)> {
    let path = format!("/proc/{}/pagemap", report.pid);
    let pagemap = File::open(&path).with_context(|| path.clone())?;
    let (mut dirty, mut written) = (0, 0);
    for area in &report.areas {
        let page = PAGE as u64;
        let pages = usize::try_from((area.end - area.start) / page)?;
        let mut entries = vec![0; pages * 8];
        pagemap
            .read_exact_at(&mut entries, area.start / page * 8)
            .with_context(|| path.clone())?;
        let entries = entries.chunks_exact(8).filter_map(|entry| entry.try_into().ok());
        let count = entries
            .map(u64::from_ne_bytes)
            .filter(|entry| entry & PAGEMAP_SOFT_DIRTY != 0);
        dirty += count.count() as u64;
        written += area.written;
    }
    Ok((dirty, written))
}
