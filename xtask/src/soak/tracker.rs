//! The tracker: every 100 ms it reads what changed of each process and clears, as a checkpointer would.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::pagemap::{Pagemap, clear, vmas};
use super::stress::Stress;
use crate::oracle::Oracle;
use crate::workload::proc::PAGE;

/// Pages of one VMA that are read at once: reserved memory may be larger than anything that fits into ours.
const CHUNK: u64 = 1 << 16;
/// Misses that are told one by one; all are counted.
const TOLD: usize = 64;
/// Epochs of the oracle whose changes are kept, to be held against the ledger.
const KEPT: usize = 32;

/// What the tracker did and saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tracked {
    /// Rounds.
    pub rounds: u64,
    /// Clears that succeeded.
    pub clears: u64,
    /// Clears that the kernel refused.
    pub failed_clears: u64,
    /// Processes that were gone when they were to be read or cleared.
    pub gone: u64,
    /// Soft-dirty pages of stressors.
    pub soft_dirty_pages: u64,
    /// Pages of stressors that were read.
    pub pages_read: u64,
    /// Seconds that freezing took, all rounds together.
    pub freeze_seconds: f64,
    /// Seconds that reading and clearing stressors took.
    pub read_seconds: f64,
    /// Seconds that the oracle's rounds took.
    pub oracle_seconds: f64,
}

/// What the oracle said beside pagemap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OracleSeen {
    /// Epochs that were compared.
    pub epochs: u64,
    /// Writes of its threads.
    pub writes: u64,
    /// Pages that changed, once per epoch.
    pub changed_pages: u64,
    /// Of these, by area: pages whose bit 55 was 0. The kernel missed the write.
    pub missed_pages: BTreeMap<String, u64>,
    /// Soft-dirty pages that did not change: most are the neighbours in a huge page.
    pub unchanged_soft_dirty_pages: u64,
    /// The first misses.
    pub misses: Vec<Miss>,
}

/// Pages of one area that the kernel missed in one epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Miss {
    /// Epoch of the oracle: the number of the clear that opened it.
    pub epoch: u64,
    /// Seconds since the tracker began.
    pub seconds: f64,
    /// Area.
    pub area: String,
    /// Addresses.
    pub pages: Vec<String>,
}

/// What changed in one epoch of the oracle.
#[derive(Clone, Debug)]
pub struct OracleEpoch {
    /// The number of the clear that opened it.
    pub number: u64,
    /// First byte, first byte after, pages that changed; of each area but the huge one.
    pub areas: Vec<(u64, u64, u64)>,
}

/// Both.
#[derive(Debug, Default)]
pub struct Tracker {
    /// The tracker's own account.
    pub tracked: Tracked,
    /// The oracle's.
    pub oracle: OracleSeen,
    /// The newest epochs of the oracle, oldest first.
    pub recent: Vec<OracleEpoch>,
}

impl Tracker {
    /// One round over the stressors: all are frozen, read, cleared, and let go.
    ///
    /// # Errors
    /// If the machine does not work; processes that are gone are counted.
    pub fn stressors(&mut self, stress: &mut Stress) -> Result<()> {
        self.tracked.rounds += 1;
        let start = Instant::now();
        let pids = stress.freeze()?;
        self.tracked.freeze_seconds += start.elapsed().as_secs_f64();
        let start = Instant::now();
        for pid in &pids {
            if self.read(*pid).is_err() {
                self.tracked.gone += 1;
            }
            self.clear(*pid);
        }
        self.tracked.read_seconds += start.elapsed().as_secs_f64();
        stress.thaw()
    }

    /// Reads all of one process.
    fn read(&mut self, pid: u32) -> Result<()> {
        let page = PAGE as u64;
        let pagemap = Pagemap::open(pid)?;
        for vma in vmas(pid)? {
            // The kernel's own page has no entries.
            if vma.name == "[vsyscall]" {
                continue;
            }
            let mut from = vma.start;
            while from < vma.end {
                let to = vma.end.min(from + CHUNK * page);
                self.tracked.soft_dirty_pages += pagemap.soft_dirty(from..to)?.len() as u64;
                self.tracked.pages_read += (to - from) / page;
                from = to;
            }
        }
        Ok(())
    }

    fn clear(&mut self, pid: u32) {
        match clear(pid) {
            Ok(()) => self.tracked.clears += 1,
            // The process was gone before anything was written.
            Err(error) if is_gone(&error) => self.tracked.gone += 1,
            Err(_) => self.tracked.failed_clears += 1,
        }
    }

    /// One round over the oracle: it stands still, pagemap is held against what changed, and it is cleared.
    ///
    /// # Errors
    /// If it failed, or lost the content of a page.
    pub fn oracle(&mut self, oracle: &mut Oracle, seconds: f64) -> Result<()> {
        let start = Instant::now();
        self.oracle.writes += oracle.pause()?;
        if !self.recent.is_empty() {
            self.compare(oracle, seconds)?;
        }
        oracle.verify()?;
        clear(oracle.pid()).context("cannot clear the oracle")?;
        self.tracked.clears += 1;
        let number = self.recent.last().map_or(1, |last| last.number + 1);
        self.recent.push(OracleEpoch {
            number,
            areas: Vec::new(),
        });
        let surplus = self.recent.len().saturating_sub(KEPT);
        self.recent.drain(..surplus);
        oracle.forget()?;
        oracle.go()?;
        self.tracked.oracle_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Holds pagemap against what changed since the last clear.
    fn compare(&mut self, oracle: &mut Oracle, seconds: f64) -> Result<()> {
        let pagemap = Pagemap::open(oracle.pid())?;
        let changed = oracle.changed()?;
        ensure!(changed.len() == oracle.areas.len(), "the oracle forgot an area");
        let epoch = self.recent.last_mut().context("a clear came before")?;
        self.oracle.epochs += 1;
        for (area, changed) in oracle.areas.iter().zip(&changed) {
            let page = PAGE as u64;
            let end = area.start + area.pages as u64 * page;
            let soft_dirty = pagemap.soft_dirty(area.start..end)?;
            let changed: Vec<u64> = changed
                .iter()
                .flat_map(|pages| pages.from..pages.to)
                .map(|number| area.start + number as u64 * page)
                .collect();
            let missed = missed(&changed, &soft_dirty);
            self.oracle.changed_pages += changed.len() as u64;
            self.oracle.unchanged_soft_dirty_pages +=
                (soft_dirty.len() + missed.len()).saturating_sub(changed.len()) as u64;
            if area.name != "huge" {
                epoch.areas.push((area.start, end, changed.len() as u64));
            }
            if missed.is_empty() {
                continue;
            }
            *self.oracle.missed_pages.entry(area.name.clone()).or_default() += missed.len() as u64;
            if self.oracle.misses.len() < TOLD {
                self.oracle.misses.push(Miss {
                    epoch: epoch.number,
                    seconds,
                    area: area.name.clone(),
                    pages: missed.iter().map(|page| format!("{page:#x}")).collect(),
                });
            }
        }
        Ok(())
    }
}

impl OracleSeen {
    /// Pages missed in all areas.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed_pages.values().sum()
    }
}

/// Those of `changed` that are not in `soft_dirty`, which is sorted.
fn missed(changed: &[u64], soft_dirty: &[u64]) -> Vec<u64> {
    let is_missed = |page: &&u64| soft_dirty.binary_search(page).is_err();
    changed.iter().filter(is_missed).copied().collect()
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_page_is_one_that_changed_and_reads_clean() {
        assert_eq!(missed(&[1, 2, 5], &[0, 2, 9]), [1, 5]);
        assert!(missed(&[], &[1]).is_empty());
    }

    #[test]
    fn only_a_process_that_is_gone_is_gone() {
        assert!(is_gone(&io::Error::from_raw_os_error(libc::ESRCH)));
        assert!(is_gone(&io::Error::from_raw_os_error(libc::ENOENT)));
        assert!(!is_gone(&io::Error::from_raw_os_error(libc::EINTR)));
    }
}
