//! What the programs report when the page-table invariant is broken, a bit is gone, or a VMA is not what it was
//! at the clear; and which ranges a mechanism worked on.

use bytemuck::{Pod, Zeroable};

use crate::pages::{PAGES, PageSet};
use crate::records::Header;
use crate::table::VmaKey;

/// On whose walk a page table was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Reader {
    /// `clear_refs_pte_range`, before the clear takes the bits: what is found belongs to the epoch that ends.
    Clear = 0,
    /// `pagemap_pmd_range` for a tracker.
    Pagemap = 1,
    /// `pagemap_scan_pmd_entry` (the `PAGEMAP_SCAN` ioctl).
    Scan = 2,
    /// `pagemap_pmd_range` for the daemon's own audit.
    Own = 3,
    /// No walk: the return of `mprotect_fixup`.
    Mprotect = 4,
}

impl Reader {
    /// Every reader, in the order of the discriminants.
    pub const ALL: [Self; 5] = [Self::Clear, Self::Pagemap, Self::Scan, Self::Own, Self::Mprotect];

    /// The reader with this discriminant.
    #[must_use]
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }

    /// The name in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Pagemap => "pagemap",
            Self::Scan => "pagemap_scan",
            Self::Own => "own_audit",
            Self::Mprotect => "mprotect",
        }
    }
}

/// The state of a VMA at a finding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct VmaFacts {
    /// Birth, `vm_start`, `vm_flags`, `vm_page_prot`.
    pub key: VmaKey,
    /// `vm_end`.
    pub end: u64,
    /// `vm_pgoff`, in pages.
    pub offset: u64,
    /// Inode number of the mapped file, 0 without one.
    pub inode: u64,
    /// `s_dev` of its file system.
    pub device: u32,
    /// [`crate::classify::VmaKind`].
    pub kind: u32,
}

/// The pages of one chunk within one VMA are not as they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PagesRecord {
    /// Kind, version, size, time.
    pub header: Header,
    /// The VMA.
    pub vma: VmaFacts,
    /// First address of the chunk.
    pub address: u64,
    /// Epoch that the finding belongs to.
    pub epoch: u32,
    /// A [`Reader`].
    pub reader: u32,
    /// 1 if one PMD entry maps the whole chunk.
    pub huge: u32,
    /// 1 if the chunk had no page table at all.
    pub hole: u32,
    /// Process id of who walked, in the initial pid namespace.
    pub initial_pid: u32,
    /// Thread id of who walked.
    pub initial_tid: u32,
    /// 1 if migrations took pages of the chunk out of the page table in this epoch or the one before.
    pub migrating: u32,
    /// Keeps the next field aligned.
    pub padding: u32,
    /// Pages of the chunk that lie in the VMA and in the walk.
    pub looked_at: PageSet,
    /// Present, writable, not soft-dirty.
    pub exposed: PageSet,
    /// Of these, pages whose hardware dirty bit is set.
    pub exposed_dirty: PageSet,
    /// Written in this epoch by a handled fault, and the bit is not there; or [`Self::raced`].
    pub lost: PageSet,
    /// Of these, pages whose write may have come before the clear took the bit, and writable migration entries without the
    /// bit: on some kernels the page comes back exposed, on others soft-dirty.
    pub raced: PageSet,
    /// Moved here in this epoch (mremap), present, and the bit is not there.
    pub moved: PageSet,
    /// Pages without any entry.
    pub none: PageSet,
    /// Pages that are the zero page (`_PAGE_SPECIAL`, or the huge zero page).
    pub zero: PageSet,
    /// Marks of the mechanisms that touched the pages, [`crate::pages::cause_of`].
    pub causes: [u8; PAGES],
}

/// A VMA is in a state that matters as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct VmaRecord {
    /// Kind, version, size, time.
    pub header: Header,
    /// The VMA.
    pub vma: VmaFacts,
    /// Epoch that the finding belongs to.
    pub epoch: u32,
    /// A [`Reader`].
    pub reader: u32,
    /// `VMA_` bits.
    pub state: u32,
    /// Keeps the size a multiple of eight.
    pub padding: u32,
}

/// [`VmaRecord::state`]: armed, shared and writable, and `vm_page_prot` lets entries be born writable.
pub const VMA_BORN_WRITABLE: u32 = 1 << 0;
/// [`VmaRecord::state`]: armed, but not in this extent when the epoch was opened.
pub const VMA_CHANGED: u32 = 1 << 1;

/// Something worked on a range of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RangeRecord {
    /// Kind, version, size, time.
    pub header: Header,
    /// Stable id of the address space; 0 for what happens to a file, which any may map.
    pub birth: u64,
    /// First address; the offset in the file for [`RangeCause::FileHole`] and [`RangeCause::FileWrite`].
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Address moved from, for mremap; inode number of a file.
    pub from: u64,
    /// Old length for mremap; `s_dev` of a file.
    pub from_length: u64,
    /// Epoch of the address space.
    pub epoch: u32,
    /// A [`RangeCause`].
    pub cause: u32,
    /// The advice of madvise, the flags of mremap.
    pub detail: u32,
    /// Thread id in the initial pid namespace.
    pub initial_tid: u32,
}

/// What works on ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum RangeCause {
    /// madvise; [`RangeRecord::detail`] is the advice.
    Advice = 1,
    /// mremap: what lies at `start` now lay at `from` before.
    Remap = 2,
    /// A hole was punched into a file, or it was truncated.
    FileHole = 3,
    /// `UFFDIO_ZEROPAGE`.
    UserfaultZero = 4,
    /// `UFFDIO_MOVE`: from `from` to `start`.
    UserfaultMove = 5,
    /// mprotect.
    Protect = 6,
    /// khugepaged or madvise set about collapsing a piece of a file into a huge page; [`RangeRecord`] is filled in as for
    /// [`Self::FileHole`].
    FileCollapse = 7,
    /// write(2) and its kin: at most this range of a file was changed past the page tables.
    FileWrite = 8,
    /// A clear has met memory that soft-dirty cannot track; [`RangeRecord::detail`] is a [`crate::records::Blind`].
    Blind = 9,
    /// The return of a write fault was not seen, and the page is not soft-dirty any more when that comes to light:
    /// [`RangeRecord::epoch`] is that of the fault's entry. It may have ended in the next one.
    WriteUnreturned = 10,
}

impl RangeCause {
    /// Every cause, in the order of the discriminants.
    pub const ALL: [Self; 10] = [
        Self::Advice,
        Self::Remap,
        Self::FileHole,
        Self::UserfaultZero,
        Self::UserfaultMove,
        Self::Protect,
        Self::FileCollapse,
        Self::FileWrite,
        Self::Blind,
        Self::WriteUnreturned,
    ];

    /// The cause with this discriminant.
    #[must_use]
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.get((raw as usize).checked_sub(1)?).copied()
    }
}

/// Ranges that one address space moved pages to in one epoch.
pub const MOVED_RANGES: usize = 8;

/// Where pages were moved to in the newest epoch, by address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Moved {
    /// Epoch of the ranges.
    pub epoch: u32,
    /// No meaning.
    pub padding: u32,
    /// First address and end; both the same where none is kept.
    pub ranges: [[u64; 2]; MOVED_RANGES],
}

impl Moved {
    /// Notes that the pages of `from` have gone to `to`. A range that lies in `from` is given up: nothing that was
    /// moved is there any more. So a chain of moves needs one place. Without a place for it the range is not kept;
    /// the daemon sees every move, counts the places by the same rule, and trusts no such epoch.
    #[inline(always)]
    pub fn note(&mut self, epoch: u32, from: [u64; 2], to: [u64; 2]) {
        let is_new = self.epoch != epoch;
        self.epoch = epoch;
        let mut placed = false;
        for range in &mut self.ranges {
            let [start, end] = *range;
            if is_new || (from[0] <= start && end <= from[1]) {
                *range = [0, 0];
            }
            if !placed && range[0] == range[1] {
                *range = to;
                placed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_moves_takes_one_place() {
        let mut moved = Moved::default();
        for step in 1..100 {
            let place = |step: u64| [step * 0x10000, step * 0x10000 + 0x4000];
            moved.note(3, place(step), place(step + 1));
        }
        assert_eq!(moved.ranges[0], [100 * 0x10000, 100 * 0x10000 + 0x4000]);
        assert_eq!(moved.ranges[1..], [[0; 2]; MOVED_RANGES - 1]);
        for step in 0..MOVED_RANGES as u64 {
            moved.note(3, [0x1000, 0x2000], [step << 30, (step << 30) + 0x1000]);
        }
        assert_eq!(moved.ranges[0][0], 100 * 0x10000, "the first is kept");
        moved.note(4, [0x1000, 0x2000], [0x5000, 0x6000]);
        assert_eq!(moved.ranges[0], [0x5000, 0x6000]);
        assert_eq!(moved.ranges[1..], [[0; 2]; MOVED_RANGES - 1]);
    }

    #[test]
    fn discriminants_are_found_again() {
        for reader in Reader::ALL {
            assert_eq!(Reader::from_raw(reader as u32), Some(reader));
        }
        for cause in RangeCause::ALL {
            assert_eq!(RangeCause::from_raw(cause as u32), Some(cause));
        }
        assert_eq!(Reader::from_raw(5), None);
        assert_eq!(RangeCause::from_raw(0), None);
        assert_eq!(RangeCause::from_raw(11), None);
    }
}
