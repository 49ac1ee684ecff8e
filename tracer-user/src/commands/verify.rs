//! Verify at work: keeps the samples of all address spaces, and reads the memory of processes.
//!
//! It works on the thread of sdtrace's own audit, see [`super::own_audit`]. What it finds is judged by the detectors
//! ([`crate::detectors::verify`]) after the records of what happened meanwhile were taken in.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use procfs::process::Process;

use crate::detectors::verify::{Allowance, Area, Digests, Means, Random, Reading, Sample, Watched};
use crate::export::metrics::reading::VerifyCounts;
use crate::ledger::Clock as _;
use crate::processes::{SystemClock, nanoseconds_per_tick};

/// Bytes of an entry of pagemap, and of a page.
const ENTRY: usize = 8;
const PAGE: u64 = 4096;

/// Address spaces that are sampled at the same time. Each keeps two files open, and the usual limit is 1,024.
const MOST_SPACES: usize = 256;
/// Pages in all samples.
const MOST_PAGES: usize = 262_144;

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Pages of each sample; 0: none.
    pub(super) pages: u32,
    /// Bytes that may be read in a second.
    pub(super) bytes_per_second: u64,
}

/// An address space to verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) birth: u64,
    pub(super) epoch: u32,
    pub(super) pid: u32,
    pub(super) start_ns: u64,
    /// Where to draw a sample from, if there is none of this epoch.
    pub(super) areas: Vec<Area>,
}

/// What to do now.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) verifier: Verifier,
    /// Every address space that may keep its sample, in ascending order of birth.
    pub(super) orders: Vec<Order>,
    /// Read samples again; else only those are drawn that are missing.
    pub(super) compare: bool,
    /// How long at most.
    pub(super) time: Duration,
}

/// What was done.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) verifier: Verifier,
    pub(super) readings: Vec<Reading>,
}

/// A sample and the memory that it was drawn from; without memory nothing could be drawn in this epoch.
#[derive(Debug)]
struct Held {
    epoch: u32,
    sample: Sample,
    memory: Option<ProcessMemory>,
}

/// The samples.
#[derive(Debug)]
pub(super) struct Verifier {
    settings: Settings,
    digests: Digests,
    random: Random,
    allowance: Allowance,
    /// By birth of the address space.
    held: BTreeMap<u64, Held>,
    /// The address space whose turn is next: the last reading had no time or bytes left.
    next: u64,
    pub(super) counts: VerifyCounts,
}

impl Verifier {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            digests: Digests::default(),
            random: Random::seeded(),
            allowance: Allowance::new(settings.bytes_per_second, SystemClock.monotonic_ns()),
            held: BTreeMap::new(),
            next: 0,
            counts: VerifyCounts::default(),
        }
    }

    /// Whether a sample of this epoch is missing.
    pub(super) fn wants(&self, birth: u64, epoch: u32) -> bool {
        self.held.get(&birth).is_none_or(|held| held.epoch != epoch)
    }
}

/// Does it; blocks.
pub(super) fn work(job: Job) -> Done {
    let Job {
        mut verifier,
        orders,
        compare,
        time,
    } = job;
    let start_ns = SystemClock.monotonic_ns();
    verifier.allowance.refill(start_ns);
    let until_ns = start_ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let keeps = |birth: u64, epoch: u32| {
        let found = orders.binary_search_by_key(&birth, |order| order.birth);
        found.is_ok_and(|at| orders[at].epoch == epoch)
    };
    verifier.held.retain(|&birth, held| keeps(birth, held.epoch));
    let mut read = 0;
    let readings = if compare {
        verifier.compare(until_ns, &mut read)
    } else {
        Vec::new()
    };
    for order in &orders {
        if SystemClock.monotonic_ns() >= until_ns {
            break;
        }
        if verifier.wants(order.birth, order.epoch) {
            verifier.draw(order, until_ns, &mut read);
        }
    }
    let counts = &mut verifier.counts;
    counts.bytes += read;
    counts.nanoseconds += SystemClock.monotonic_ns().saturating_sub(start_ns);
    counts.kept_pages = verifier.held.values().map(|held| held.sample.len() as u64).sum();
    Done { verifier, readings }
}

impl Verifier {
    /// Draws the sample of an epoch.
    fn draw(&mut self, order: &Order, until_ns: u64, read: &mut u64) {
        let kept: usize = self.held.values().map(|held| held.sample.len()).sum();
        let most = usize::try_from(self.settings.pages).unwrap_or(usize::MAX);
        let most = most.min(MOST_PAGES.saturating_sub(kept));
        if most == 0 || self.held.len() >= MOST_SPACES {
            self.counts.no_room += 1;
            return;
        }
        let mut held = Held {
            epoch: order.epoch,
            sample: Sample::default(),
            memory: None,
        };
        match ProcessMemory::open(order.pid, order.start_ns) {
            None => self.counts.gone += 1,
            Some(mut memory) => {
                let mut means = self.means(until_ns);
                held.sample = Sample::draw(&mut memory, &order.areas, most, &mut means);
                *read += memory.take_read();
                if held.sample.is_empty() {
                    self.counts.empty += 1;
                } else {
                    self.counts.drawn += 1;
                    self.counts.sampled_pages += held.sample.len() as u64;
                    held.memory = Some(memory);
                }
            }
        }
        self.held.insert(order.birth, held);
    }

    /// Reads the samples again, those first that the last reading did not come to.
    fn compare(&mut self, until_ns: u64, read: &mut u64) -> Vec<Reading> {
        let after = self.held.range(self.next..).map(|(&birth, _)| birth);
        let before = self.held.range(..self.next).map(|(&birth, _)| birth);
        let births: Vec<u64> = after.chain(before).collect();
        let mut readings = Vec::new();
        self.next = 0;
        for birth in births {
            if SystemClock.monotonic_ns() >= until_ns {
                self.next = birth;
                break;
            }
            let Some(mut held) = self.held.remove(&birth) else {
                continue;
            };
            if let Some(memory) = &mut held.memory {
                let mut reading = held.sample.compare(memory, &mut self.means(until_ns));
                *read += memory.take_read();
                (reading.birth, reading.epoch) = (birth, held.epoch);
                if reading.gone || held.sample.is_empty() {
                    held.memory = None;
                }
                readings.push(reading);
            }
            self.held.insert(birth, held);
        }
        readings
    }

    fn means(&mut self, until_ns: u64) -> Means<'_> {
        Means {
            digests: &self.digests,
            random: &mut self.random,
            allowance: &mut self.allowance,
            clock: &SystemClock,
            until_ns,
        }
    }
}

/// The memory of a process, through /proc. Open files belong to the address space and not to the pid, so neither an exec
/// nor another process of the same pid can put other memory there.
#[derive(Debug)]
struct ProcessMemory {
    pagemap: File,
    memory: File,
    entries: Vec<u8>,
    /// Bytes of memory that were read.
    read: u64,
}

impl ProcessMemory {
    fn open(pid: u32, start_ns: u64) -> Option<Self> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).ok()?;
        let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
        // Asked last: if the process is still the same, so were the files'.
        let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
        (stat.starttime == start_ns / nanoseconds_per_tick()).then_some(Self {
            pagemap,
            memory,
            entries: Vec::new(),
            read: 0,
        })
    }

    fn take_read(&mut self) -> u64 {
        std::mem::take(&mut self.read)
    }
}

impl Watched for ProcessMemory {
    fn entries(&mut self, address: u64, entries: &mut [u64]) -> bool {
        self.entries.resize(entries.len() * ENTRY, 0);
        let read = self
            .pagemap
            .read_at(&mut self.entries, address / PAGE * ENTRY as u64);
        // pagemap_read gives fewer only if the address space is gone or ends there.
        if read.ok() != Some(self.entries.len()) {
            return false;
        }
        let bytes = self.entries.as_chunks::<ENTRY>().0;
        for (entry, bytes) in entries.iter_mut().zip(bytes) {
            *entry = u64::from_ne_bytes(*bytes);
        }
        true
    }

    /// Through mem and not by `process_vm_readv`, which pins pages (`FOLL_PIN`): an address space that has ever had pins
    /// costs more at each clear. A copy of the kernel's (`access_remote_vm`) has none.
    fn content(&mut self, address: u64, page: &mut [u8]) -> bool {
        let whole = self.memory.read_at(page, address).ok() == Some(page.len());
        self.read += if whole { page.len() as u64 } else { 0 };
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detectors::Range;

    const PAGES: usize = 64;

    fn settings(pages: u32) -> Settings {
        Settings {
            pages,
            bytes_per_second: 1 << 30,
        }
    }

    /// Private memory of our own, all of it written.
    fn memory() -> (Vec<u8>, Area) {
        let memory = vec![1u8; (PAGES + 1) * 4096];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let range = Range::of(start, PAGES as u64 * PAGE);
        (memory, Area { range, shared: false })
    }

    fn order(area: Area) -> Order {
        let ticks = Process::myself().unwrap().stat().unwrap().starttime;
        Order {
            birth: 1,
            epoch: 1,
            pid: std::process::id(),
            start_ns: ticks * nanoseconds_per_tick() + 1,
            areas: vec![area],
        }
    }

    fn job(verifier: Verifier, order: Order, compare: bool) -> Job {
        Job {
            verifier,
            orders: vec![order],
            compare,
            time: Duration::from_mins(1),
        }
    }

    #[test]
    fn our_own_memory_can_be_read() {
        let (memory, area) = memory();
        let mut us = ProcessMemory::open(order(area).pid, order(area).start_ns).unwrap();
        let mut entries = [0; PAGES];
        assert!(us.entries(area.range.start, &mut entries));
        assert!(entries.iter().all(|entry| entry >> 63 == 1), "{entries:x?}");
        let mut page = vec![0; 4096];
        assert!(us.content(area.range.start, &mut page));
        assert!(page.iter().all(|&byte| byte == 1));
        assert!(!us.content(0, &mut page));
        assert_eq!(us.take_read(), PAGE);
        drop(memory);
    }

    #[test]
    fn nothing_is_drawn_from_memory_that_is_not_clean_or_from_somebody_else() {
        let (memory, area) = memory();
        // Nobody has cleared us, so all of it carries its bit, or the kernel has none and nothing can be said.
        let done = work(job(Verifier::new(settings(16)), order(area), false));
        let mut other = order(area);
        (other.start_ns, other.epoch) = (other.start_ns + 10_000_000_000, 2);
        assert!(done.verifier.wants(1, 2) && !done.verifier.wants(1, 1));
        let done = work(job(done.verifier, other, false));
        assert_eq!(done.verifier.counts.gone, 1);
        drop(memory);
    }

    #[test]
    fn a_sample_ends_with_its_epoch_and_no_more_are_kept_than_fit() {
        let (memory, area) = memory();
        let done = work(job(Verifier::new(settings(16)), order(area), false));
        let mut next = order(area);
        next.epoch = 2;
        let done = work(Job {
            orders: vec![],
            ..job(done.verifier, next.clone(), true)
        });
        assert!(done.verifier.held.is_empty());
        let mut full = done.verifier;
        for birth in 10..10 + MOST_SPACES as u64 {
            full.held.insert(
                birth,
                Held {
                    epoch: 1,
                    sample: Sample::default(),
                    memory: None,
                },
            );
        }
        full.draw(&next, u64::MAX, &mut 0);
        assert_eq!((full.counts.no_room, full.held.len()), (1, MOST_SPACES));
        drop(memory);
    }
}
