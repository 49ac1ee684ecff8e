//! sdtrace's own audit: it reads the pagemap of tracked processes, and the programs test the page tables that the
//! kernel walks for it. What pagemap says matters only for pages that were moved over others.
//!
//! The reading happens on a thread that may block: a clear can hold a target's `mmap_lock` for seconds. Address spaces
//! take turns within a budget, so that a huge one costs no more than a small one, and waits for its next turn.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use procfs::process::{MMPermissions, Process};

use super::verify;
use crate::detectors::Range;
use crate::export::metrics::reading::AuditCounts;
use crate::processes::nanoseconds_per_tick;

/// Bytes that a page has in pagemap, and that it is.
const ENTRY: u64 = 8;
const PAGE: u64 = 4096;
/// Address space that one read covers: 32 MiB.
const PIECE: u64 = 8192 * PAGE;
/// Bits of pagemap (Documentation/admin-guide/mm/pagemap.rst).
const SOFT_DIRTY: u64 = 1 << 55;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;
/// User addresses end here; the vsyscall page lies beyond, and pagemap has no place for it.
const END_OF_USER: u64 = 1 << 56;

/// How often, and how much at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    /// Zero: never.
    pub(super) period: Duration,
    /// Bytes of address space in one turn.
    pub(super) budget: u64,
}

/// An address space to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) birth: u64,
    pub(super) epoch: u32,
    pub(super) pid: u32,
    pub(super) start_ns: u64,
    /// Where the last turn ended.
    pub(super) from: u64,
    /// Pages to report one by one.
    pub(super) verify: Vec<Range>,
}

/// What a reading is to do.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) targets: Vec<Target>,
    /// Only [`Target::verify`].
    pub(super) only_verify: bool,
    pub(super) budget: u64,
    pub(super) until: Instant,
    /// What to do afterwards.
    pub(super) content: Option<verify::Job>,
}

/// What became of one address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Result {
    /// Read to its end.
    Complete,
    /// Budget or time ended at this address.
    UpTo(u64),
    /// It is gone, or must not be read.
    Gone,
}

/// A page to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeenPage {
    pub(super) address: u64,
    /// Or swapped out.
    pub(super) present: bool,
    pub(super) soft_dirty: bool,
}

/// What a reading found.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) results: Vec<(Target, Result)>,
    pub(super) seen: Vec<(Target, Vec<SeenPage>)>,
    pub(super) counts: AuditCounts,
    pub(super) content: Option<verify::Done>,
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    /// The address space that was not finished, or the last one that was, and where to go on.
    next: Option<(u64, u64)>,
}

impl Rotation {
    /// Puts the targets, in ascending order of birth, into the order in which they are read.
    pub(super) fn order(&self, mut targets: Vec<Target>) -> Vec<Target> {
        let Some((birth, from)) = self.next else {
            return targets;
        };
        let first = targets.partition_point(|target| target.birth < birth);
        targets.rotate_left(first);
        if let Some(target) = targets.first_mut().filter(|target| target.birth == birth) {
            target.from = from;
        }
        targets
    }

    /// Remembers where to go on.
    pub(super) fn note(&mut self, results: &[(Target, Result)]) {
        let unfinished = results.iter().find_map(|(target, result)| match result {
            Result::UpTo(address) => Some((target.birth, *address)),
            Result::Complete | Result::Gone => None,
        });
        self.next = unfinished;
    }
}

/// Does it; blocks.
pub(super) fn read(job: Job) -> Done {
    let start = Instant::now();
    let mut done = Done::default();
    let mut left = job.budget;
    let mut buffer = vec![0; usize::try_from(PIECE / PAGE * ENTRY).unwrap_or(0)];
    for target in job.targets {
        let mut seen = Vec::new();
        let before = left;
        let result = read_one(
            &target,
            job.only_verify,
            &mut left,
            job.until,
            &mut buffer,
            &mut seen,
        );
        done.counts.bytes += before - left;
        match result {
            Result::Complete => done.counts.complete += 1,
            Result::UpTo(_) => done.counts.unfinished += 1,
            Result::Gone => done.counts.gone += 1,
        }
        if !seen.is_empty() {
            done.seen.push((target.clone(), seen));
        }
        done.results.push((target, result));
    }
    done.counts.nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    done.content = job.content.map(verify::work);
    done
}

fn read_one(
    target: &Target,
    only_verify: bool,
    left: &mut u64,
    until: Instant,
    buffer: &mut [u8],
    seen: &mut Vec<SeenPage>,
) -> Result {
    if *left == 0 || Instant::now() >= until {
        return Result::UpTo(target.from);
    }
    let Some((pagemap, ranges)) = open(target, only_verify) else {
        return Result::Gone;
    };
    for range in ranges {
        let mut at = range.start.max(target.from);
        while at < range.end {
            if *left == 0 || Instant::now() >= until {
                return Result::UpTo(at);
            }
            let length = (range.end - at).min((*left).min(PIECE).next_multiple_of(PAGE));
            let bytes = usize::try_from(length / PAGE * ENTRY).unwrap_or(0);
            let Some(piece) = buffer.get_mut(..bytes) else {
                return Result::Gone;
            };
            // 0: the memory is gone.
            let read = match pagemap.read_at(piece, at / PAGE * ENTRY) {
                Ok(read) if read >= 8 => read as u64 / ENTRY * PAGE,
                Ok(_) | Err(_) => return Result::Gone,
            };
            let read_range = Range::of(at, read);
            for verify in target.verify.iter().filter(|verify| verify.overlaps(read_range)) {
                report(piece, at, verify.and(read_range), seen);
            }
            *left = left.saturating_sub(read);
            at += read;
        }
    }
    Result::Complete
}

fn report(piece: &[u8], start: u64, range: Range, seen: &mut Vec<SeenPage>) {
    let entries = piece.as_chunks().0;
    for address in (range.start..range.end).step_by(4096) {
        let at = usize::try_from((address - start) / PAGE).unwrap_or(usize::MAX);
        if let Some(&entry) = entries.get(at) {
            let entry = u64::from_ne_bytes(entry);
            seen.push(SeenPage {
                address,
                present: entry & (PRESENT | SWAPPED) != 0,
                soft_dirty: entry & SOFT_DIRTY != 0,
            });
        }
    }
}

/// The pagemap of a process, and what to read of it: what it has mapped and can access, for reserved addresses have no
/// pages.
///
/// The start time is asked for last. An open pagemap belongs to an address space and not to a pid, so if the process
/// is still the same, the file is the right one.
fn open(target: &Target, only_verify: bool) -> Option<(File, Vec<Range>)> {
    let pagemap = File::open(format!("/proc/{}/pagemap", target.pid)).ok()?;
    let ranges = if only_verify {
        target.verify.clone()
    } else {
        accessible(target.pid)?
    };
    let stat = Process::new(i32::try_from(target.pid).ok()?).ok()?.stat().ok()?;
    if stat.starttime != target.start_ns / nanoseconds_per_tick() {
        return None;
    }
    Some((pagemap, ranges))
}

fn accessible(pid: u32) -> Option<Vec<Range>> {
    let maps = Process::new(i32::try_from(pid).ok()?).ok()?.maps().ok()?;
    let accessible = MMPermissions::READ | MMPermissions::WRITE | MMPermissions::EXECUTE;
    let mapped = maps
        .into_iter()
        .filter(|map| map.perms.intersects(accessible) && map.address.1 <= END_OF_USER)
        .map(|map| Range {
            start: map.address.0,
            end: map.address.1,
        });
    Some(mapped.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(birth: u64) -> Target {
        Target {
            birth,
            epoch: 1,
            pid: 0,
            start_ns: 0,
            from: 0,
            verify: Vec::new(),
        }
    }

    #[test]
    fn everybody_gets_a_turn() {
        let mut rotation = Rotation::default();
        let all = || [1, 2, 3].map(target).to_vec();
        assert_eq!(rotation.order(all()), all());
        rotation.note(&[
            (target(1), Result::Complete),
            (target(2), Result::UpTo(0x5000)),
            (target(3), Result::UpTo(0)),
        ]);
        let next = rotation.order(all());
        let order: Vec<_> = next.iter().map(|target| (target.birth, target.from)).collect();
        assert_eq!(order, [(2, 0x5000), (3, 0), (1, 0)]);
        // The one that was under way is gone: the one behind it is next.
        let order: Vec<_> = rotation
            .order([1, 3].map(target).to_vec())
            .iter()
            .map(|target| (target.birth, target.from))
            .collect();
        assert_eq!(order, [(3, 0), (1, 0)]);
    }

    fn ourselves() -> Target {
        let ticks = Process::myself().unwrap().stat().unwrap().starttime;
        Target {
            pid: std::process::id(),
            start_ns: ticks * nanoseconds_per_tick() + 1,
            ..target(1)
        }
    }

    fn job(target: Target, budget: u64) -> Job {
        Job {
            targets: vec![target],
            only_verify: false,
            budget,
            until: Instant::now() + Duration::from_mins(1),
            content: None,
        }
    }

    #[test]
    fn our_own_pages_are_seen() {
        let memory = vec![1u8; 64 * 4096];
        let first = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let mut target = ourselves();
        target.verify = vec![Range::of(first, 16 * PAGE)];
        let done = read(Job {
            only_verify: true,
            ..job(target.clone(), u64::MAX)
        });
        assert_eq!(done.results[0].1, Result::Complete);
        let seen = &done.seen[0].1;
        assert_eq!(seen.len(), 16);
        assert!(seen.iter().all(|page| page.present), "{seen:?}");
        assert_eq!(seen[3].address, first + 3 * PAGE);
        assert_eq!(done.counts.bytes, 16 * PAGE);
        drop(memory);
    }

    #[test]
    fn the_budget_ends_a_turn_and_the_next_goes_on_there() {
        let first = read(job(ourselves(), 16 * PAGE));
        let Result::UpTo(address) = first.results[0].1 else {
            panic!("{:?}", first.results);
        };
        assert_eq!(first.counts.bytes, 16 * PAGE);
        let mut again = ourselves();
        again.from = address;
        let second = read(job(again, 16 * PAGE));
        let Result::UpTo(further) = second.results[0].1 else {
            panic!("{:?}", second.results);
        };
        assert!(further >= address + 16 * PAGE);
    }

    #[test]
    fn whose_turn_does_not_come_any_more_is_left_for_the_next() {
        let done = read(Job {
            until: Instant::now(),
            ..job(ourselves(), u64::MAX)
        });
        assert_eq!(done.results[0].1, Result::UpTo(0));
        assert_eq!((done.counts.unfinished, done.counts.bytes), (1, 0));
    }

    #[test]
    fn who_is_gone_or_somebody_else_is_not_read() {
        let mut other = ourselves();
        other.start_ns += 10_000_000_000;
        assert_eq!(read(job(other, u64::MAX)).results[0].1, Result::Gone);
        let mut gone = ourselves();
        gone.pid = 4_194_304;
        let done = read(job(gone, u64::MAX));
        assert_eq!((done.results[0].1, done.counts.gone), (Result::Gone, 1));
    }
}
