//! What is known page by page in one epoch: which pages a handled write fault hit, and which mechanism touched
//! them. One chunk stands for 2 MiB, what one page table maps.

use bytemuck::{Pod, Zeroable};

/// Pages of a chunk, and entries of a page table.
pub const PAGES: usize = 512;
/// Bits of an address below the number of its chunk.
pub const CHUNK_SHIFT: u32 = 21;
/// Bytes of a chunk.
pub const CHUNK_SIZE: u64 = 1 << CHUNK_SHIFT;

/// What a chunk is found by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ChunkKey {
    /// Stable id of the address space; 0 in a free chunk.
    pub birth: u64,
    /// Address, shifted by [`CHUNK_SHIFT`].
    pub number: u64,
}

/// One chunk. A byte for each page, because two processors can store two bytes without losing one; to set a bit
/// in a shared word takes an atomic instruction that kernels before 5.12 do not offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PageChunk {
    /// Whose pages these are.
    pub key: ChunkKey,
    /// Newest epoch that anything was noted in.
    pub noted_epoch: u32,
    /// 1 if marks of epochs so old that they look like new ones may be among these: nothing is concluded then.
    pub stale: u32,
    /// Newest epoch in which a migration took a page out of the page table; 0: none did.
    pub departed_epoch: u32,
    /// 1 if there may be marks of mechanisms among [`Self::causes`].
    pub caused: u32,
    /// Keeps the bytes on cache lines of their own.
    pub line: [u64; 4],
    /// [`tag`] of the epoch of the newest write to each page, perhaps with [`RACED`]; 0 without one.
    pub written: [u8; PAGES],
    /// [`cause_mark`] of the mechanism that touched each page last; 0 without one.
    pub causes: [u8; PAGES],
}

/// Size of a chunk's record in bytes.
pub const CHUNK_RECORD: usize = size_of::<PageChunk>();
const _: () = assert!(CHUNK_RECORD.is_multiple_of(64));

/// Bits of [`PageChunk::written`] that hold the epoch.
pub const TAG_MASK: u8 = 0x7f;
/// Bit of [`PageChunk::written`]: noted while a clear was walking over this address space, so the write may have
/// come before the clear took the page's bit; or nobody knows whether there was a write, because it would not have come by a
/// fault.
pub const RACED: u8 = 0x80;
/// Marks repeat after so many epochs.
pub const TAG_PERIOD: u32 = 64;
/// Marks older than this are not trusted to be told from new ones.
pub const TAG_TRUSTED: u32 = 48;

/// Every so many epochs a clear takes all marks away, so that none gets as old as [`TAG_TRUSTED`] while its chunk is in use.
pub const FORGET_PERIOD: u32 = 16;

/// The mark of a write in `epoch`; never 0.
#[inline(always)]
#[must_use]
pub const fn tag(epoch: u32) -> u8 {
    (epoch as u8 & 0x3f) | 0x40
}

/// The mark of a mechanism in `epoch`; never 0.
#[inline(always)]
#[must_use]
pub const fn cause_mark(cause: PageCause, epoch: u32) -> u8 {
    cause as u8 | ((epoch as u8 & 0x7) << 5)
}

/// The mechanism of a mark, if the mark is of `epoch`.
#[must_use]
pub fn cause_of(mark: u8, epoch: u32) -> Option<PageCause> {
    let cause = PageCause::from_raw(mark & 0x1f)?;
    (mark == cause_mark(cause, epoch)).then_some(cause)
}

/// Mechanisms that touch page-table entries one by one, as the hooks on them see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PageCause {
    /// `remove_migration_pte`: a migration entry became a page again.
    Migration = 1,
    /// `remove_migration_pmd`: the same for a huge page, which one of the functions of [`Self::Departure`] took out.
    HugeMigration = 2,
    /// `try_to_merge_one_page`: KSM is about to replace the page.
    Ksm = 3,
    /// `try_to_unmap_one`: reclaim takes the page out of the page table.
    Reclaim = 4,
    /// `__split_huge_pmd`: a huge page is split, or only taken out if it is not anonymous.
    Split = 5,
    /// `collapse_pte_mapped_thp`: a page table gives way to a huge page.
    Collapse = 6,
    /// `uprobe_write_opcode`: a breakpoint was written.
    Uprobe = 7,
    /// `try_to_migrate_one`, before 5.14 `try_to_unmap_one` with `TTU_MIGRATION`: a migration takes the page out of the
    /// page table and puts a migration entry there.
    Departure = 8,
    /// The same, and the page was writable: so is the migration entry (`make_writable_migration_entry`).
    WritableDeparture = 9,
    /// A migration entry became a page again, and that page was exposed: writable, without the soft-dirty bit, in an armed
    /// VMA. No later migration takes this mark away.
    ExposedArrival = 10,
}

impl PageCause {
    /// Every mechanism, in the order of the discriminants.
    pub const ALL: [Self; 10] = [
        Self::Migration,
        Self::HugeMigration,
        Self::Ksm,
        Self::Reclaim,
        Self::Split,
        Self::Collapse,
        Self::Uprobe,
        Self::Departure,
        Self::WritableDeparture,
        Self::ExposedArrival,
    ];

    /// The mechanism with this discriminant.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        Self::ALL.get(usize::from(raw).checked_sub(1)?).copied()
    }

    /// Whether a migration of a small page did it.
    #[must_use]
    pub const fn is_migration(self) -> bool {
        matches!(
            self,
            Self::Migration | Self::Departure | Self::WritableDeparture | Self::ExposedArrival
        )
    }

    /// The name in records for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Migration => "migration",
            Self::HugeMigration => "huge_migration",
            Self::Ksm => "ksm",
            Self::Reclaim => "reclaim",
            Self::Split => "split",
            Self::Collapse => "collapse",
            Self::Uprobe => "uprobe",
            Self::Departure => "departure",
            Self::WritableDeparture => "writable_departure",
            Self::ExposedArrival => "exposed_arrival",
        }
    }
}

/// A set of pages of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct PageSet(pub [u64; PAGES / 64]);

impl PageSet {
    /// The pages from `first`, `count` of them.
    #[must_use]
    pub fn range(first: usize, count: usize) -> Self {
        let mut set = Self::default();
        for page in first..(first + count).min(PAGES) {
            set.insert(page);
        }
        set
    }

    /// Adds a page below [`PAGES`].
    pub fn insert(&mut self, page: usize) {
        self.0[page / 64] |= 1 << (page % 64);
    }

    /// Whether the page is in the set.
    #[must_use]
    pub const fn contains(&self, page: usize) -> bool {
        self.0[page / 64] >> (page % 64) & 1 != 0
    }

    /// Number of pages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no page is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; PAGES / 64]
    }

    /// The pages that are in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = *self;
        for (word, other) in both.0.iter_mut().zip(other.0) {
            *word &= other;
        }
        both
    }

    /// The pages that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = *self;
        for (word, other) in left.0.iter_mut().zip(other.0) {
            *word &= !other;
        }
        left
    }

    /// Adds all pages of `other`.
    pub fn add(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
    }

    /// The pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..PAGES).filter(|&page| self.contains(page))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn marks_of_neighbouring_epochs_differ() {
        for epoch in 1..300 {
            assert_ne!(tag(epoch), 0);
            assert_eq!(tag(epoch) & RACED, 0);
            for other in epoch + 1..epoch + TAG_PERIOD {
                assert_ne!(tag(epoch), tag(other));
            }
            assert_eq!(tag(epoch), tag(epoch + TAG_PERIOD));
        }
    }

    #[test]
    fn a_mechanism_is_known_by_its_mark_in_its_epoch_only() {
        for cause in PageCause::ALL {
            assert_eq!(PageCause::from_raw(cause as u8), Some(cause));
            let mark = cause_mark(cause, 13);
            assert_ne!(mark, 0);
            assert_eq!(cause_of(mark, 13), Some(cause));
            assert_eq!(cause_of(mark, 14), None);
        }
        assert_eq!(cause_of(0, 0), None);
        assert_eq!(PageCause::from_raw(0), None);
        assert_eq!(PageCause::from_raw(31), None);
    }

    proptest! {
        #[test]
        fn page_sets_are_sets(
            a in prop::collection::btree_set(0..PAGES, 0..80), b in prop::collection::btree_set(0..PAGES, 0..80),
        ) {
            let set = |pages: &BTreeSet<usize>| {
                let mut set = PageSet::default();
                for &page in pages {
                    set.insert(page);
                }
                set
            };
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(x.len(), a.len() as u64);
            prop_assert_eq!(x.is_empty(), a.is_empty());
            prop_assert_eq!(x.iter().collect::<Vec<_>>(), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(x.and(&y), set(&a.intersection(&b).copied().collect()));
            prop_assert_eq!(x.without(&y), set(&a.difference(&b).copied().collect()));
            let mut all = x;
            all.add(&y);
            prop_assert_eq!(all, set(&a.union(&b).copied().collect()));
        }

        #[test]
        fn ranges_are_cut_at_the_chunk(first in 0..PAGES, count in 0..2 * PAGES) {
            let set = PageSet::range(first, count);
            prop_assert!((0..PAGES).all(|page| set.contains(page) == (page >= first && page < first + count)));
        }
    }
}
