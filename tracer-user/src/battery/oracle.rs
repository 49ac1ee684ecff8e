//! The judge: the page's bit, its content, the bit again, in one uncut epoch.
//!
//! A page counts as missed when its content differs from what it was before the clear and pagemap said "not soft-dirty"
//! both before and after the content was looked at (looking may fault the page in again and so change the bit). That the
//! epoch was not cut, by anybody's clear, is shown by a canary page that this process wrote just after its own clear:
//! nothing but a clear takes the bit away from it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use super::outcome::{Needs as _, Stop, Tally};
use super::sys::{self, Area, MAP_ANONYMOUS, MAP_PRIVATE, READ_WRITE, page_size};

/// One entry of `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// Bit 55.
    pub fn soft_dirty(self) -> bool {
        self.0 & (1 << 55) != 0
    }

    /// Bit 63.
    pub fn present(self) -> bool {
        self.0 & (1 << 63) != 0
    }

    /// Bits 0 to 54 of a present page: its page frame. The kernel shows 0 to those without `CAP_SYS_ADMIN`.
    pub fn frame(self) -> u64 {
        self.0 & ((1 << 55) - 1)
    }

    /// Bit 62.
    pub fn swapped(self) -> bool {
        self.0 & (1 << 62) != 0
    }
}

/// The memory of a process as a tracker sees it: `/proc/PID/{clear_refs,pagemap,mem}`.
#[derive(Debug)]
pub struct Tracked {
    clear_refs: File,
    pagemap: File,
    /// Content through `/proc/PID/mem`; `None`: through this process's own mapping.
    memory: Option<File>,
}

impl Tracked {
    /// This process, its content read by loads.
    pub fn this() -> io::Result<Self> {
        Self::open("self", false)
    }

    /// Another process, its content read through `/proc/PID/mem`.
    pub fn other(pid: u32) -> io::Result<Self> {
        Self::open(&pid.to_string(), true)
    }

    fn open(process: &str, by_file: bool) -> io::Result<Self> {
        let file = |name: &str| format!("/proc/{process}/{name}");
        Ok(Self {
            clear_refs: OpenOptions::new().write(true).open(file("clear_refs"))?,
            pagemap: File::open(file("pagemap"))?,
            memory: by_file.then(|| File::open(file("mem"))).transpose()?,
        })
    }

    /// `echo 4 > clear_refs`.
    pub fn clear(&self) -> io::Result<()> {
        (&self.clear_refs).write_all(b"4")
    }

    /// The entries of all pages of `area`.
    pub fn entries(&self, area: Area) -> io::Result<Vec<Entry>> {
        let mut bytes = vec![0; area.pages() * 8];
        self.pagemap
            .read_exact_at(&mut bytes, (area.start() / page_size() * 8) as u64)?;
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|entry| Entry(u64::from_ne_bytes(*entry)))
            .collect())
    }

    /// The whole content of `area`.
    pub fn contents(&self, area: Area) -> io::Result<Vec<u8>> {
        let Some(memory) = &self.memory else {
            return Ok(area.contents());
        };
        let mut bytes = vec![0; area.len()];
        memory.read_exact_at(&mut bytes, area.start() as u64)?;
        Ok(bytes)
    }
}

/// Whether soft-dirty works here, by a round trip: clear, write, read the bit.
///
/// `clear_refs=4` returns success on kernels without `CONFIG_MEM_SOFT_DIRTY` too (`fs/proc/task_mmu.c`), so nothing less
/// is a proof.
///
/// # Errors
/// What could not be opened, mapped or read.
pub fn round_trip() -> io::Result<Result<(), String>> {
    let this = Tracked::this()?;
    let page = Area::reserve(1, 0)?.place(READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, None)?;
    page.write(0, 1);
    this.clear()?;
    let cleared = this.entries(page)?[0];
    page.write(0, 2);
    let written = this.entries(page)?[0];
    Ok(match (cleared.soft_dirty(), written.soft_dirty()) {
        (false, true) => Ok(()),
        (false, false) => Err(
            "clear_refs=4 succeeded, but a page written after it reads soft-dirty 0: \
                               this kernel has no soft-dirty tracking (CONFIG_MEM_SOFT_DIRTY is not set)"
                .into(),
        ),
        (true, _) => Err("a page still reads soft-dirty 1 just after clear_refs=4".into()),
    })
}

/// The content of an area before the clear.
#[derive(Clone, Debug)]
pub struct Before {
    area: Area,
    bytes: Vec<u8>,
}

impl Before {
    /// Reads it through the mapping: for memory that is populated, which a read leaves as it is.
    pub fn read(area: Area) -> Self {
        Self {
            area,
            bytes: area.contents(),
        }
    }

    /// Memory never touched, which is zero by definition and stays unpopulated.
    pub fn zero(area: Area) -> Self {
        Self {
            area,
            bytes: vec![0; area.len()],
        }
    }

    /// Content that the scenario knows.
    pub fn known(area: Area, byte: u8) -> Self {
        Self {
            area,
            bytes: vec![byte; area.len()],
        }
    }

    /// The area it belongs to.
    pub fn area(&self) -> Area {
        self.area
    }
}

/// What happens to the content of a scenario's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Written, moved or replaced: a tracker must be told.
    Written,
    /// Thrown away by the target itself.
    Discarded,
}

/// The judgement on one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageVerdict {
    Unchanged,
    OverReported,
    Tracked,
    Missed,
    Dropped,
    Unstable,
}

/// Judges one page. `first` and `second` are its entries before and after the content was looked at.
fn judge_page(change: Change, changed: bool, zero_now: bool, first: Entry, second: Entry) -> PageVerdict {
    match (changed, first.soft_dirty(), second.soft_dirty()) {
        (false, false, _) => PageVerdict::Unchanged,
        (false, true, _) => PageVerdict::OverReported,
        (true, true, _) => PageVerdict::Tracked,
        (true, false, _) if change == Change::Discarded && zero_now && !first.swapped() => {
            PageVerdict::Dropped
        }
        (true, false, true) => PageVerdict::Unstable,
        (true, false, false) => PageVerdict::Missed,
    }
}

/// An epoch of a process, opened by a clear.
#[derive(Debug)]
pub struct Epoch {
    tracked: Tracked,
    canary: Area,
}

impl Epoch {
    /// Opens an epoch of this process by its own clear.
    pub fn open() -> Result<Self, Stop> {
        Self::open_by(|| Tracked::this()?.clear())
    }

    /// Opens an epoch of this process by `clear`, which has another process do it.
    pub fn open_by(clear: impl FnOnce() -> io::Result<()>) -> Result<Self, Stop> {
        let canary = Area::reserve(1, 0)
            .and_then(|area| area.place(READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, None))
            .works("mapping the canary")?;
        canary.write(0, 1);
        clear().works("clear_refs=4")?;
        let tracked = Tracked::this().works("opening /proc/self")?;
        if tracked.entries(canary)?[0].soft_dirty() {
            return Err(Stop::Inconclusive(
                "the clear left the canary page soft-dirty".into(),
            ));
        }
        canary.write(0, 2);
        let epoch = Self { tracked, canary };
        epoch.uncut()?;
        Ok(epoch)
    }

    /// The next epoch of the same process: everything older is forgotten.
    pub fn next(self) -> Result<Self, Stop> {
        drop(self);
        Self::open()
    }

    /// An error if somebody cleared this address space since the epoch was opened.
    pub fn uncut(&self) -> Result<(), Stop> {
        if self.tracked.entries(self.canary)?[0].soft_dirty() {
            Ok(())
        } else {
            Err(Stop::Inconclusive(
                "the epoch was cut: the canary page lost its bit, somebody else cleared".into(),
            ))
        }
    }

    /// An error unless every page of `area` reads soft-dirty 0, without which "tracked" would say nothing.
    pub fn armed(&self, area: Area) -> Result<(), Stop> {
        let set = self
            .tracked
            .entries(area)?
            .iter()
            .filter(|entry| entry.soft_dirty())
            .count();
        if set == 0 {
            Ok(())
        } else {
            Err(Stop::Inconclusive(format!(
                "{set} of {} pages read soft-dirty 1 before the change",
                area.pages()
            )))
        }
    }

    /// Judges pages that were written, of which exactly `expected` must have changed.
    pub fn judge(&self, before: &Before, expected: usize) -> Result<Tally, Stop> {
        self.judge_in(&self.tracked, before, expected, Change::Written)
    }

    /// Judges pages that the target threw away, of which exactly `expected` must have changed.
    pub fn judge_discarded(&self, before: &Before, expected: usize) -> Result<Tally, Stop> {
        self.judge_in(&self.tracked, before, expected, Change::Discarded)
    }

    /// As [`Epoch::judge`], in the memory of another process that inherited this epoch.
    pub fn judge_other(&self, tracked: &Tracked, before: &Before, expected: usize) -> Result<Tally, Stop> {
        self.judge_in(tracked, before, expected, Change::Written)
    }

    fn judge_in(
        &self,
        tracked: &Tracked,
        before: &Before,
        expected: usize,
        change: Change,
    ) -> Result<Tally, Stop> {
        let tally = judge(tracked, before, change)?;
        self.uncut()?;
        if tally.changed != expected as u64 {
            return Err(Stop::Inconclusive(format!(
                "{} pages changed where {expected} must have",
                tally.changed
            )));
        }
        Ok(tally)
    }
}

/// The bit, the content, the bit again. The caller vouches for the epoch.
pub fn judge(tracked: &Tracked, before: &Before, change: Change) -> Result<Tally, Stop> {
    let first = tracked.entries(before.area).works("reading pagemap")?;
    let now = tracked.contents(before.area).works("reading the content")?;
    let second = tracked.entries(before.area).works("reading pagemap")?;
    let mut tally = Tally {
        rounds: 1,
        ..Tally::default()
    };
    let page = page_size();
    for (index, (was, is)) in before
        .bytes
        .chunks_exact(page)
        .zip(now.chunks_exact(page))
        .enumerate()
    {
        let changed = was != is;
        let zero_now = is.iter().all(|byte| *byte == 0);
        tally.changed += u64::from(changed);
        match judge_page(change, changed, zero_now, first[index], second[index]) {
            PageVerdict::Unchanged | PageVerdict::Tracked => {}
            PageVerdict::OverReported => tally.over_reported += 1,
            PageVerdict::Missed => tally.missed += 1,
            PageVerdict::Dropped => tally.dropped += 1,
            PageVerdict::Unstable => tally.unstable += 1,
        }
    }
    Ok(tally)
}

/// Another process clears this one, as the seed's snippet does by `system("echo 4 > /proc/$PPID/clear_refs")`.
pub fn clear_from_child() -> io::Result<()> {
    let target = std::process::id();
    sys::in_child(|| std::fs::write(format!("/proc/{target}/clear_refs"), "4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Entry = Entry(1 << 63);
    const DIRTY: Entry = Entry(1 << 63 | 1 << 55);
    const ABSENT: Entry = Entry(0);
    const SWAPPED: Entry = Entry(1 << 62);

    fn written(changed: bool, first: Entry, second: Entry) -> PageVerdict {
        judge_page(Change::Written, changed, false, first, second)
    }

    #[test]
    fn a_change_is_missed_only_if_the_bit_was_clear_twice() {
        assert_eq!(written(true, CLEAN, CLEAN), PageVerdict::Missed);
        assert_eq!(written(true, CLEAN, DIRTY), PageVerdict::Unstable);
        assert_eq!(written(true, DIRTY, DIRTY), PageVerdict::Tracked);
        assert_eq!(written(true, DIRTY, CLEAN), PageVerdict::Tracked);
    }

    #[test]
    fn an_unchanged_page_is_never_missed() {
        assert_eq!(written(false, CLEAN, CLEAN), PageVerdict::Unchanged);
        assert_eq!(written(false, DIRTY, DIRTY), PageVerdict::OverReported);
    }

    #[test]
    fn only_discarded_zero_pages_are_dropped() {
        let discarded = |zero_now, first| judge_page(Change::Discarded, true, zero_now, first, first);
        assert_eq!(discarded(true, ABSENT), PageVerdict::Dropped);
        assert_eq!(discarded(true, CLEAN), PageVerdict::Dropped);
        assert_eq!(discarded(true, DIRTY), PageVerdict::Tracked);
        assert_eq!(discarded(false, CLEAN), PageVerdict::Missed);
        assert_eq!(discarded(true, SWAPPED), PageVerdict::Missed);
    }
}
