//! Writes to memory whose pagemap is being read at that very moment: whoever compares what was written with what is told must
//! not take the one from before the write and the other from after it.

use std::hint;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::prelude::*;

/// Huge pages, and page tables: one write each.
const HUGE_PAGES: usize = 64;
const PAGE_TABLES: usize = 256;

pub(super) const ALL: &[Scenario] = &[
    Scenario::control(
        "huge-written-while-read",
        huge,
        "Writes armed huge pages, each while another thread reads its pagemap again and again.",
    ),
    Scenario::control(
        "hole-written-while-read",
        hole,
        "Touches shared memory that has no page table yet, while another thread reads its pagemap again and again.",
    ),
];

fn huge(_: &Bench) -> Found {
    let pages = huge_pages()?;
    let area = place(
        Area::reserve(HUGE_PAGES * pages, pages * page_size())?,
        MAP_PRIVATE | MAP_ANONYMOUS,
    )?;
    area.advise(libc::MADV_HUGEPAGE).needs("MADV_HUGEPAGE")?;
    area.fill(OLD);
    needs_huge(area, "AnonHugePages")?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    write_while_read(area, pages)?;
    judge_first_pages(&epoch, area, pages, OLD)
}

fn hole(_: &Bench) -> Found {
    /// Pages that one page table maps (x86-64).
    const MAPPED: usize = 512;
    let area = place(
        Area::reserve(PAGE_TABLES * MAPPED, MAPPED * page_size())?,
        MAP_SHARED | MAP_ANONYMOUS,
    )?;
    let epoch = Epoch::open()?;
    write_while_read(area, MAPPED)?;
    judge_first_pages(&epoch, area, MAPPED, 0)
}

/// Writes to the first of each `pages` pages, when a reading of the entries of these has just been made and the next goes on.
fn write_while_read(area: Area, pages: usize) -> Result<(), Stop> {
    let parts = area.pages() / pages;
    let (written, read) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let tracked = Tracked::this().works("opening /proc/self")?;
    thread::scope(|scope| {
        scope.spawn(|| {
            for part in 0..parts {
                while read.load(Ordering::Acquire) <= part {
                    hint::spin_loop();
                }
                area.write(part * pages, NEW);
                written.store(part + 1, Ordering::Release);
            }
        });
        let mut result = Ok(());
        loop {
            let part = written.load(Ordering::Acquire);
            if part == parts {
                break;
            }
            if result.is_ok() {
                result = tracked.entries(area.part(part * pages, pages)).map(drop);
            }
            read.store(part + 1, Ordering::Release);
        }
        result.works("reading pagemap")
    })
}

/// Judges the pages that were written; the others are left as they are.
fn judge_first_pages(epoch: &Epoch, area: Area, pages: usize, old: u8) -> Found {
    let mut sum = Tally::default();
    for part in 0..area.pages() / pages {
        let before = Before::known(area.part(part * pages, 1), old);
        sum.add(epoch.judge(&before, 1)?);
    }
    sum.rounds = 1;
    Ok(sum)
}
