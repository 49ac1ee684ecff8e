//! What worked on ranges of addresses in one epoch, and which VMAs there were when it was opened.

use std::collections::BTreeMap;

use tracer_common::audit::{RangeCause, RangeRecord, VmaFacts};
use tracer_common::classify::VmaKind;
use tracer_common::flags::{VM_SHADOW_STACK, VM_SHARED, is_armed};
use tracer_common::table::VmaKey;

use super::cause::Dropped;
use super::holes::FileRange;
use super::ranges::{Range, RangeSet};

/// Ranges that are remembered for each mechanism in one epoch; beyond that they are joined.
const RANGES: usize = 256;
/// `MREMAP_DONTUNMAP` of include/uapi/linux/mman.h.
pub(super) const MREMAP_DONTUNMAP: u32 = 4;

/// Advice of madvise that matters here (include/uapi/asm-generic/mman-common.h).
mod advice {
    pub(super) const DONTNEED: u32 = 4;
    pub(super) const FREE: u32 = 8;
    pub(super) const REMOVE: u32 = 9;
    pub(super) const PAGEOUT: u32 = 21;
    pub(super) const DONTNEED_LOCKED: u32 = 24;
    pub(super) const COLLAPSE: u32 = 25;
    pub(super) const GUARD_INSTALL: u32 = 102;
}

/// Something that a target asked for and that changes page-table entries in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Work {
    /// `MADV_DONTNEED` and `MADV_DONTNEED_LOCKED`.
    Dontneed,
    Free,
    Remove,
    Pageout,
    Collapse,
    Guard,
    /// The place that mremap took pages from.
    MovedAway,
    /// The same with `MREMAP_DONTUNMAP`: the VMA stays.
    DontunmapSource,
    /// The place that mremap moved pages to.
    MovedHere,
    /// What mremap added to a mapping.
    Grown,
    UserfaultZero,
    UserfaultMovedAway,
    UserfaultMovedHere,
    Protect,
}

impl Work {
    /// What madvise does with this advice, as far as it matters here.
    pub(super) const fn by_advice(number: u32) -> Option<Self> {
        Some(match number {
            advice::DONTNEED | advice::DONTNEED_LOCKED => Self::Dontneed,
            advice::FREE => Self::Free,
            advice::REMOVE => Self::Remove,
            advice::PAGEOUT => Self::Pageout,
            advice::COLLAPSE => Self::Collapse,
            advice::GUARD_INSTALL => Self::Guard,
            _ => return None,
        })
    }
}

const WORKS: usize = Work::Protect as usize + 1;

/// What worked where in one epoch of one address space.
#[derive(Clone, Debug, Default)]
pub(super) struct Worked {
    by_work: [RangeSet; WORKS],
}

impl Worked {
    pub(super) fn note(&mut self, work: Work, range: Range) {
        self.by_work[work as usize].insert_bounded(range, RANGES);
    }

    /// Whether it worked on any of these addresses.
    pub(super) fn on(&self, work: Work, range: Range) -> bool {
        self.by_work[work as usize].overlaps(range)
    }

    pub(super) fn ranges(&self, work: Work) -> &RangeSet {
        &self.by_work[work as usize]
    }

    /// Takes in a record; what it does to VMAs is the caller's matter.
    pub(super) fn take_in(&mut self, record: &RangeRecord) {
        let range = pages_of(record.start, record.length);
        match RangeCause::from_raw(record.cause) {
            Some(RangeCause::Advice) => {
                if let Some(work) = Work::by_advice(record.detail) {
                    self.note(work, range);
                }
            }
            Some(RangeCause::Remap) => {
                let remap = Remap::of(record);
                self.note(Work::Grown, remap.grown);
                self.note(Work::MovedHere, remap.moved_here);
                if !remap.moved_here.is_empty() {
                    let source = if remap.keeps_source {
                        Work::DontunmapSource
                    } else {
                        Work::MovedAway
                    };
                    self.note(source, remap.source);
                }
            }
            Some(RangeCause::UserfaultZero) => self.note(Work::UserfaultZero, range),
            Some(RangeCause::UserfaultMove) => {
                self.note(Work::UserfaultMovedHere, range);
                self.note(Work::UserfaultMovedAway, pages_of(record.from, record.length));
            }
            Some(RangeCause::Protect) => self.note(Work::Protect, range),
            // What happens to files has no addresses of its own.
            Some(
                RangeCause::FileHole
                | RangeCause::FileCollapse
                | RangeCause::FileWrite
                | RangeCause::Blind
                | RangeCause::WriteUnreturned,
            )
            | None => {}
        }
    }
}

/// Whole pages: system calls round lengths up.
pub(super) fn pages_of(start: u64, length: u64) -> Range {
    const PAGE: u64 = super::findings::PAGE;
    let end = start.saturating_add(length).saturating_add(PAGE - 1);
    Range {
        start: start & !(PAGE - 1),
        end: end & !(PAGE - 1),
    }
}

/// What an mremap call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remap {
    /// Where the mapping was.
    pub(super) source: Range,
    /// Where its pages lie now; empty if they stayed.
    pub(super) moved_here: Range,
    /// Addresses that it did not have before.
    pub(super) grown: Range,
    /// `MREMAP_DONTUNMAP`.
    pub(super) keeps_source: bool,
}

impl Remap {
    pub(super) fn of(record: &RangeRecord) -> Self {
        let new = pages_of(record.start, record.length);
        let source = pages_of(record.from, record.from_length);
        let kept = new.len().min(source.len());
        let moved_here = if new.start == source.start {
            Range::default()
        } else {
            Range::of(new.start, kept)
        };
        Self {
            source,
            moved_here,
            grown: Range {
                start: new.start.saturating_add(kept),
                end: new.end,
            },
            keeps_source: record.detail & MREMAP_DONTUNMAP != 0,
        }
    }

    /// Addresses that have lost what was mapped there before the call.
    pub(super) fn replaced(&self) -> [Range; 3] {
        let left = if self.keeps_source {
            Range::default()
        } else if self.moved_here.is_empty() {
            // Shrunk in place.
            Range::default()
        } else {
            self.source
        };
        [self.moved_here, self.grown, left]
    }
}

/// A VMA that the clear met which opened the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmaAtClear {
    /// Start, flags and page protection.
    pub key: VmaKey,
    /// End.
    pub end: u64,
    /// Inode number of the mapped file, 0 without one.
    pub inode: u64,
    /// `s_dev` of its file system.
    pub device: u32,
    /// `vm_pgoff`, in pages.
    pub offset: u64,
    /// Shared mappings of the file by anybody (`i_mmap_writable`), this one included; 0 for a private VMA.
    pub shared_mappings: u32,
    /// Its kind.
    pub kind: VmaKind,
}

impl VmaAtClear {
    pub(super) fn range(&self) -> Range {
        Range {
            start: self.key.start,
            end: self.end,
        }
    }

    pub(super) fn facts(&self) -> VmaFacts {
        VmaFacts {
            key: self.key,
            end: self.end,
            offset: self.offset,
            inode: self.inode,
            device: self.device,
            kind: self.kind as u32,
        }
    }

    /// Whether what both have is the same mapping still: the same object at the same place. What took the place of
    /// another mapping is another object, or lies elsewhere in it; a split keeps both.
    pub(super) fn goes_on_in(&self, now: &VmaFacts) -> bool {
        let place = |start: u64, offset: u64| offset.wrapping_sub(start / super::findings::PAGE);
        self.key.flags & VM_SHARED == now.key.flags & VM_SHARED
            && (self.inode, self.device) == (now.inode, now.device)
            && place(self.key.start, self.offset) == place(now.key.start, now.offset)
    }

    /// In the file, in pages.
    fn file_pages(&self) -> Range {
        Range::of(self.offset, self.range().len() / super::findings::PAGE)
    }

    pub(super) fn is_shared(&self) -> bool {
        self.key.flags & VM_SHARED != 0
    }
}

/// The VMAs that a clear met.
#[derive(Clone, Debug)]
pub(super) struct AtClear {
    /// By address.
    vmas: Vec<VmaAtClear>,
    /// What is left of them as they were: without what was unmapped, moved or replaced since.
    pub(super) intact: RangeSet,
}

impl AtClear {
    pub(super) fn new(mut vmas: Vec<VmaAtClear>) -> Self {
        vmas.retain(|vma| is_armed(vma.key.flags));
        vmas.sort_by_key(|vma| vma.key.start);
        let mut intact = RangeSet::default();
        for vma in &vmas {
            intact.insert(vma.range());
        }
        Self { vmas, intact }
    }

    /// The VMAs that had one of these addresses. VMAs of one moment do not overlap, so their ends ascend, too.
    pub(super) fn overlapping(&self, range: Range) -> impl Iterator<Item = &VmaAtClear> {
        let first = self.vmas.partition_point(|vma| vma.end <= range.start);
        self.vmas
            .iter()
            .skip(first)
            .take_while(move |vma| vma.key.start < range.end)
            .filter(move |vma| vma.range().overlaps(range))
    }

    /// All of them.
    pub(super) fn vmas(&self) -> impl Iterator<Item = &VmaAtClear> {
        self.vmas.iter()
    }

    /// The parts of the range that were mapped at the clear, by VMA.
    pub(super) fn mapped(&self, range: Range) -> RangeSet {
        let mut parts = RangeSet::default();
        for vma in self.overlapping(range) {
            parts.insert(vma.range().and(range));
        }
        parts
    }

    /// The kind of the VMA that had this address.
    pub(super) fn kind_at(&self, address: u64) -> Option<VmaKind> {
        self.overlapping(Range::of(address, 1)).next().map(|vma| vma.kind)
    }

    /// Shared memory that is mapped a second time, by anybody: what is written there sets no bit here.
    /// Mappings of other parts of the same file by the same process are no second mapping.
    pub(super) fn aliased_ranges(&self) -> Vec<Range> {
        self.aliased().map(VmaAtClear::range).collect()
    }

    /// The part of [`Self::aliased_ranges`] in VMAs that the clear at the end of the epoch did not meet any more: they are gone, and so is what
    /// anybody wrote there.
    pub(super) fn aliased_and_gone(&self, next: &Self) -> Vec<Range> {
        let is_there = |vma: &VmaAtClear| {
            next.overlapping(vma.range())
                .any(|other| (other.inode, other.device) == (vma.inode, vma.device))
        };
        let gone = self.aliased().filter(|vma| !is_there(vma));
        gone.map(VmaAtClear::range).collect()
    }

    /// Shadow stacks.
    pub(super) fn shadow_stacks(&self) -> u64 {
        let is_one =
            |vma: &&VmaAtClear| vma.kind == VmaKind::PrivateAnon && vma.key.flags & VM_SHADOW_STACK != 0;
        self.vmas.iter().filter(is_one).count() as u64
    }

    fn aliased(&self) -> impl Iterator<Item = &VmaAtClear> {
        let mut files = BTreeMap::<_, Vec<&VmaAtClear>>::new();
        for vma in self.vmas.iter().filter(|vma| vma.is_shared()) {
            files.entry((vma.inode, vma.device)).or_default().push(vma);
        }
        files.into_values().flat_map(aliased_of_file)
    }

    /// Shared memory.
    pub(super) fn shared_ranges(&self) -> Vec<Range> {
        let shared = self.vmas.iter().filter(|vma| vma.is_shared());
        shared.map(VmaAtClear::range).collect()
    }

    /// The VMAs that map the file.
    pub(super) fn of_file(&self, hole: &FileRange) -> impl Iterator<Item = &VmaAtClear> {
        self.vmas.iter().filter(move |vma| {
            vma.inode != 0 && vma.inode == hole.inode && u64::from(vma.device) == hole.device
        })
    }
}

/// Of the shared mappings of one file by one process, those that are not the only ones of their pages.
fn aliased_of_file(mut vmas: Vec<&VmaAtClear>) -> Vec<&VmaAtClear> {
    vmas.sort_by_key(|vma| vma.offset);
    let mut end_before = 0;
    let mut aliased = Vec::new();
    for (at, vma) in vmas.iter().enumerate() {
        let pages = vma.file_pages();
        let next = vmas.get(at + 1).map_or(u64::MAX, |next| next.offset);
        let by_others = vma.shared_mappings as usize > vmas.len();
        if by_others || pages.start < end_before || pages.end > next {
            aliased.push(*vma);
        }
        end_before = end_before.max(pages.end);
    }
    aliased
}

/// Why content was dropped by what the target asked for, if it was.
pub(super) fn dropping(work: Work, shared: bool) -> Option<Dropped> {
    match (work, shared) {
        (Work::Dontneed, false) => Some(Dropped::Dontneed),
        (Work::Remove, _) => Some(Dropped::Remove),
        (Work::Guard, false) => Some(Dropped::Guard),
        (Work::DontunmapSource, false) => Some(Dropped::MremapDontunmap),
        (Work::UserfaultMovedAway, false) => Some(Dropped::UserfaultfdMove),
        _ => None,
    }
}

/// What drops content.
pub(super) const DROPPING: [Work; 5] = [
    Work::Dontneed,
    Work::Remove,
    Work::Guard,
    Work::DontunmapSource,
    Work::UserfaultMovedAway,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn remap(from: Range, to: Range, flags: u32) -> Remap {
        Remap::of(&RangeRecord {
            start: to.start,
            length: to.len(),
            from: from.start,
            from_length: from.len(),
            detail: flags,
            cause: RangeCause::Remap as u32,
            ..RangeRecord::default()
        })
    }

    #[test]
    fn a_move_a_growth_and_both_are_told_apart() {
        let old = Range::of(0x1000, 0x2000);
        let grown = remap(old, Range::of(0x1000, 0x5000), 0);
        assert!(grown.moved_here.is_empty());
        assert_eq!(grown.grown, Range::of(0x3000, 0x3000));
        let moved = remap(old, Range::of(0x9000, 0x2000), 3);
        assert_eq!(moved.moved_here, Range::of(0x9000, 0x2000));
        assert!(moved.grown.is_empty());
        let both = remap(old, Range::of(0x9000, 0x3000), 1);
        assert_eq!(both.moved_here, Range::of(0x9000, 0x2000));
        assert_eq!(both.grown, Range::of(0xb000, 0x1000));
        let shrunk = remap(old, Range::of(0x1000, 0x1000), 0);
        assert!(shrunk.grown.is_empty() && shrunk.moved_here.is_empty());
        assert!(remap(old, Range::of(0x9000, 0x2000), 7).keeps_source);
    }
}
