//! The oracle's memory and its ledger.

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{Advice, madvise};
use serde::{Deserialize, Serialize};

use super::Pages;
use crate::workload::area::Area;
use crate::workload::proc::PAGE;

/// How an area is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Every write gives the page a content that no page ever had.
    Unique,
    /// All pages that are written between two clears get the same content, once.
    Alike,
    /// Like `Unique`, by the first thread alone, which takes the right to write away and gives it back in between.
    Protected,
}

/// An area, as the tracker needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaInfo {
    /// What it is.
    pub name: String,
    /// First byte.
    pub start: u64,
    /// Number of pages.
    pub pages: usize,
    /// Whether it is shared memory.
    pub shared: bool,
}

/// One area with its ledger.
pub struct Memory {
    area: Area,
    name: &'static str,
    shared: bool,
    /// How it is written to.
    pub rule: Rule,
    /// The first eight bytes that each page should have.
    expected: Vec<AtomicU64>,
    /// Pages that changed since the last clear.
    changed: Vec<AtomicBool>,
}

/// All areas.
#[derive(Clone)]
pub struct Memories(Arc<Shared>);

struct Shared {
    memories: Vec<Memory>,
    /// The content that no page has had yet.
    next: AtomicU64,
    /// The content of this epoch, for [`Rule::Alike`].
    epoch: AtomicU64,
}

/// Contents of [`Rule::Alike`] lie far above the others.
const ALIKE: u64 = 1 << 62;

impl Memories {
    /// Maps one area of each kind with `pages` pages, the mergeable one only if asked for.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn map(pages: usize, mergeable: bool) -> Result<Self> {
        let mut memories = vec![
            Memory::new("private", false, Rule::Unique, Area::private("private", pages)?),
            Memory::new("shared", true, Rule::Unique, Area::shared("shared", pages)?),
            Memory::new("huge", false, Rule::Unique, Area::huge("huge")?),
            Memory::new(
                "protected",
                false,
                Rule::Protected,
                Area::private("protected", pages)?,
            ),
            Memory::new(
                "private file",
                false,
                Rule::Unique,
                Area::file("private file", "private_file", &file("private")?, pages)?,
            ),
            Memory::new(
                "memfd",
                true,
                Rule::Unique,
                Area::file(
                    "memfd",
                    "shared_anon",
                    &File::from(memfd_create("oracle", MemfdFlags::CLOEXEC)?),
                    pages,
                )?,
            ),
        ];
        if mergeable {
            let area = Area::private("mergeable", pages)?;
            // SAFETY: our own mapping; the advice changes no content.
            unsafe { madvise(area.pointer(0).cast(), pages * PAGE, Advice::LinuxMergeable) }
                .context("MADV_MERGEABLE (a kernel without CONFIG_KSM?)")?;
            memories.push(Memory::new("mergeable", false, Rule::Alike, area));
        }
        let shared = Shared {
            memories,
            next: AtomicU64::new(1),
            epoch: AtomicU64::new(ALIKE),
        };
        // Present from the beginning, so that what follows are writes to present pages.
        for memory in &shared.memories {
            for page in 0..memory.area.pages() {
                memory.write(
                    page,
                    shared.next.fetch_add(1, Ordering::SeqCst),
                    |pointer, content| {
                        store(pointer, content);
                        Ok(())
                    },
                )?;
            }
        }
        Ok(Self(Arc::new(shared)))
    }

    /// The areas.
    #[must_use]
    pub fn all(&self) -> &[Memory] {
        &self.0.memories
    }

    /// The content that a write to this area gives a page.
    #[must_use]
    pub fn fresh(&self, memory: &Memory) -> u64 {
        match memory.rule {
            Rule::Alike => self.0.epoch.load(Ordering::SeqCst),
            Rule::Unique | Rule::Protected => self.0.next.fetch_add(1, Ordering::SeqCst),
        }
    }

    /// What the tracker needs to know.
    #[must_use]
    pub fn info(&self) -> Vec<AreaInfo> {
        let areas = self.all().iter().map(|memory| AreaInfo {
            name: memory.name.to_owned(),
            start: memory.area.start(),
            pages: memory.area.pages(),
            shared: memory.shared,
        });
        areas.collect()
    }

    /// Pages that changed since [`Self::forget`]. Exact while nobody writes.
    #[must_use]
    pub fn changed(&self) -> Vec<Vec<Pages>> {
        let changed = |memory: &Memory| ranges(&memory.changed, |changed| changed.load(Ordering::SeqCst));
        self.all().iter().map(changed).collect()
    }

    /// Pages whose content is not what was written last.
    #[must_use]
    pub fn wrong(&self) -> Vec<Vec<Pages>> {
        let wrong = |memory: &Memory| {
            let pages: Vec<_> = (0..memory.area.pages()).collect();
            ranges(&pages, |page| memory.is_wrong(*page))
        };
        self.all().iter().map(wrong).collect()
    }

    /// What the first eight bytes of each page should be.
    #[must_use]
    pub fn content(&self) -> Vec<Vec<u64>> {
        let content = |memory: &Memory| -> Vec<u64> {
            let expected = memory.expected.iter();
            expected.map(|content| content.load(Ordering::SeqCst)).collect()
        };
        self.all().iter().map(content).collect()
    }

    /// A clear came.
    pub fn forget(&self) {
        self.0.epoch.fetch_add(1, Ordering::SeqCst);
        for changed in self.all().iter().flat_map(|memory| &memory.changed) {
            changed.store(false, Ordering::SeqCst);
        }
    }
}

impl Memory {
    fn new(name: &'static str, shared: bool, rule: Rule, area: Area) -> Self {
        let pages = area.pages();
        Self {
            area,
            name,
            shared,
            rule,
            expected: (0..pages).map(|_| AtomicU64::new(0)).collect(),
            changed: (0..pages).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Number of pages.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.area.pages()
    }

    /// Writes `content` to a page by `how`, unless it is there already, and returns whether it wrote. The ledger is
    /// told first: a page that it lacks was not changed.
    ///
    /// # Errors
    /// What `how` says.
    pub fn write(
        &self,
        page: usize,
        content: u64,
        how: impl FnOnce(*mut u8, u64) -> Result<()>,
    ) -> Result<bool> {
        if self.expected[page].load(Ordering::SeqCst) == content {
            return Ok(false);
        }
        self.changed[page].store(true, Ordering::SeqCst);
        self.expected[page].store(content, Ordering::SeqCst);
        how(self.area.pointer(page), content)?;
        Ok(true)
    }

    /// Takes the right to write to the whole area away, reads, and gives it back.
    ///
    /// # Errors
    /// What mprotect says.
    pub fn protect_for_a_moment(&self) -> Result<()> {
        let all = 0..self.area.pages();
        self.area.protect(all.clone(), false)?;
        self.area.read(all.clone());
        self.area.protect(all, true)
    }

    fn is_wrong(&self, page: usize) -> bool {
        // SAFETY: within the mapping, which is readable; writers stand still.
        let found = unsafe { self.area.pointer(page).cast::<[u8; 8]>().read_volatile() };
        u64::from_ne_bytes(found) != self.expected[page].load(Ordering::SeqCst)
    }
}

/// Writes by an instruction of the program.
pub fn store(pointer: *mut u8, content: u64) {
    // SAFETY: the beginning of a page of an area, which is writable and belongs to this thread.
    unsafe { pointer.cast::<[u8; 8]>().write_volatile(content.to_ne_bytes()) };
}

/// A file on the tmpfs /dev/shm, which nobody else sees any more.
fn file(name: &str) -> Result<File> {
    // Threads of one process, tests for instance, make files of the same name at the same time.
    static FILES: AtomicU64 = AtomicU64::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = format!("/dev/shm/sdtrace-oracle-{}-{number}-{name}", std::process::id());
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| path.clone())?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The runs of items for which `holds`.
fn ranges<Item>(items: &[Item], holds: impl Fn(&Item) -> bool) -> Vec<Pages> {
    let mut ranges: Vec<Pages> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        if !holds(item) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.to == at => last.to = at + 1,
            _ => ranges.push(Pages { from: at, to: at + 1 }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_longest_runs() {
        let runs = ranges(&[true, true, false, true, false, true, true], |item| *item);
        let runs: Vec<_> = runs.iter().map(|run| (run.from, run.to)).collect();
        assert_eq!(runs, [(0, 2), (3, 4), (5, 7)]);
        assert!(ranges(&[false, false], |item| *item).is_empty());
    }

    #[test]
    fn the_ledger_holds_what_was_written_since_it_forgot() {
        let memories = Memories::map(8, false).unwrap();
        memories.forget();
        let private = &memories.all()[0];
        let write = |page, content| {
            private
                .write(page, content, |pointer, content| {
                    store(pointer, content);
                    Ok(())
                })
                .unwrap()
        };
        assert!(write(3, u64::MAX));
        assert!(!write(3, u64::MAX), "the content is there already");
        assert_eq!(memories.changed()[0], [Pages { from: 3, to: 4 }]);
        assert!(memories.wrong().iter().all(Vec::is_empty));
        memories.forget();
        assert!(memories.changed().iter().all(Vec::is_empty));
        // Behind the ledger's back: the content is wrong and nothing is noted.
        store(private.area.pointer(5), 7);
        assert_eq!(memories.wrong()[0], [Pages { from: 5, to: 6 }]);
        assert!(memories.changed()[0].is_empty());
    }
}
