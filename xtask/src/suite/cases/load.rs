//! Many faults at once, while everything is being read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::suite::actor::Actor;
use crate::suite::daemon::fetch;
use crate::suite::exposition::Scrape;
use crate::suite::{Suite, compare};

/// Faults that are made, in four epochs.
const FAULTS: u64 = 200_000;
const ROUNDS: u64 = 4;

/// What a kernel that does not count may skip. It skips where two things meet by chance on a CPU; if more than this
/// is missing, something else is wrong.
const UNCOUNTED_AT_MOST: u64 = FAULTS / 100;

/// 200,000 write faults by two threads while `/metrics` is read in a loop: all are counted, or what is missing is at
/// most what the loss counters say; where the kernel does not count what it skips, the gauge must say so.
pub fn counts_are_exact_under_load(suite: &mut Suite) -> Result<()> {
    let mut actor = Actor::start("hammer")?;
    let before = suite.daemon()?.scrape()?;
    let address = suite.daemon()?.address();
    let (over, scrapes) = (AtomicBool::new(false), AtomicU64::new(0));
    let areas = std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::SeqCst) {
                Scrape::parse(&fetch(address, "/metrics")?)?;
                scrapes.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let acted = (0..ROUNDS).try_fold(Vec::new(), |_, _| {
            actor.clear_from_here()?;
            let report = actor.act()?;
            for area in &report.areas {
                ensure!(
                    area.soft_dirty == area.written,
                    "{} of {} pages soft-dirty",
                    area.soft_dirty,
                    area.written
                );
            }
            Ok(report.areas)
        });
        over.store(true, Ordering::SeqCst);
        reader
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the reader panicked")))
            .context("scraping")?;
        acted
    })?;
    let scrapes = scrapes.into_inner();
    ensure!(scrapes >= 10, "only {scrapes} scrapes were made meanwhile");
    let (after, ledger) = suite.look()?;
    compare::sums_agree(&ledger, &after)?;
    let space = ledger
        .space_of(actor.pid())
        .context("the ledger has no such address space")?;
    let counted: u64 = space
        .epochs
        .iter()
        .flat_map(|epoch| &epoch.vmas)
        .filter(|vma| {
            areas
                .iter()
                .any(|area| (area.start..area.end).contains(&vma.start.0))
        })
        .map(|vma| vma.faults)
        .sum();
    println!("  {counted} of {FAULTS} faults were counted while /metrics was read {scrapes} times");
    ensure!(
        counted <= FAULTS,
        "{counted} faults were counted, {FAULTS} were made"
    );
    judge(FAULTS - counted, &before, &after)?;
    actor.end()
}

/// Whether a shortfall is what sdtrace itself says it may be.
fn judge(shortfall: u64, before: &Scrape, after: &Scrape) -> Result<()> {
    if shortfall == 0 {
        return Ok(());
    }
    let counted = after.all("sdtrace_missed_probe_runs_counted", &[]);
    let mut hot = counted.filter(|(labels, _)| {
        labels
            .get("probe")
            .is_some_and(|probe| probe.starts_with("do_wp_page"))
    });
    let uncounted = hot.any(|(_, counted)| counted == 0.0);
    let said = |scrape: &Scrape| -> Result<u64> {
        Ok(scrape.sum("sdtrace_missed_probe_runs_total", &[])?
            + scrape.sum("sdtrace_lost_records_total", &[("stage", "slot_taken")])?)
    };
    let said = said(after)? - said(before)?;
    ensure!(
        shortfall <= said || (uncounted && shortfall <= UNCOUNTED_AT_MOST),
        "{shortfall} faults are missing, the loss counters say {said}; kernel counts all skipped runs: {}",
        !uncounted
    );
    println!(
        "  {shortfall} are missing: the loss counters say {said}, kernel counts all skipped runs: {}",
        !uncounted
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(missed: u64, counted: u64) -> Scrape {
        Scrape::parse(&format!(
            "sdtrace_missed_probe_runs_total{{probe=\"do_wp_page_kprobe\",stage=\"bpf_prog_active\"}} {missed}\n\
             sdtrace_missed_probe_runs_counted{{probe=\"do_wp_page_kprobe\",stage=\"bpf_prog_active\"}} {counted}\n\
             sdtrace_lost_records_total{{stage=\"slot_taken\"}} 0\n"
        ))
        .unwrap()
    }

    #[test]
    fn a_shortfall_must_be_announced() {
        let before = scrape(0, 1);
        judge(0, &before, &scrape(0, 1)).unwrap();
        judge(3, &before, &scrape(3, 1)).unwrap();
        judge(3, &before, &scrape(0, 0)).unwrap();
        assert!(judge(UNCOUNTED_AT_MOST + 1, &before, &scrape(0, 0)).is_err());
        assert!(judge(3, &before, &scrape(2, 1)).is_err());
        assert!(judge(1, &before, &scrape(0, 1)).is_err());
    }
}
