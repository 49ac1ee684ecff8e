//! The per-CPU strips of event counters, in one array that the daemon maps into its memory.
//!
//! Reading a mapped array needs no bpf(2) call. That matters: a kprobe program does not run while
//! `bpf_prog_active` is set on its CPU, which any bpf(2) map operation does, so reading counters by system
//! calls would make the kernel skip the very probes that count.

use crate::classify::{MprotectChange, Outcome, ProtectionState, VmaKind};
use crate::histogram::FAULT_TIME;

/// Number of `u64` cells that one CPU owns: a multiple of eight, so that no two CPUs share a cache line.
pub const STRIP: u32 = 128;

/// Kinds that write-notify faults are counted by: the [`VmaKind`]s, then huge.
pub const FAULT_KINDS: u32 = VmaKind::ALL.len() as u32 + 1;

const FAULTS: u32 = 0;
const OUTCOMES: u32 = FAULTS + FAULT_KINDS * ProtectionState::ALL.len() as u32;
const MPROTECTS: u32 = OUTCOMES + Outcome::ALL.len() as u32;
const STAGES: u32 = MPROTECTS + MprotectChange::ALL.len() as u32;
const FAULT_TIMES: u32 = STAGES + Stage::ALL.len() as u32;
const FAULT_TIME_SUM: u32 = FAULT_TIMES + FAULT_TIME.count;
const END: u32 = FAULT_TIME_SUM + 1;
const _: () = assert!(END <= STRIP && STRIP.is_multiple_of(8));

/// What a cell of a strip counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Handled write-notify faults on PTEs, by kind and state of the VMA.
    Fault(VmaKind, ProtectionState),
    /// Handled write-notify faults on PMDs, by state of the VMA.
    HugeFault(ProtectionState),
    /// Faults of tracked address spaces by how they ended.
    Outcome(Outcome),
    /// Successful mprotect calls on armed VMAs by what changed.
    Mprotect(MprotectChange),
    /// Internal stages and losses.
    Stage(Stage),
    /// Buckets of the fault handling time.
    FaultTime(u32),
    /// Sum of the fault handling times in nanoseconds.
    FaultTimeSum,
}

impl Counter {
    /// The cell within a strip; always below [`STRIP`].
    #[inline(always)]
    #[must_use]
    pub const fn cell(self) -> u32 {
        const STATES: u32 = ProtectionState::ALL.len() as u32;
        match self {
            Self::Fault(kind, state) => FAULTS + kind as u32 * STATES + state as u32,
            Self::HugeFault(state) => FAULTS + (FAULT_KINDS - 1) * STATES + state as u32,
            Self::Outcome(outcome) => OUTCOMES + outcome as u32,
            Self::Mprotect(change) => MPROTECTS + change as u32,
            Self::Stage(stage) => STAGES + stage as u32,
            Self::FaultTime(bucket) => FAULT_TIMES + bucket,
            Self::FaultTimeSum => FAULT_TIME_SUM,
        }
    }
}

/// Stages of the way of the data inside the kernel: what entered, what was lost and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stage {
    /// Runs of the entry probe of `do_wp_page` for tracked address spaces.
    FaultEntry = 0,
    /// Runs of the return probe of `do_wp_page` for tracked address spaces.
    FaultReturn = 1,
    /// Runs of the entry probe of `do_huge_pmd_wp_page` for tracked address spaces.
    HugeEntry = 2,
    /// Runs of the return probe of `do_huge_pmd_wp_page` for tracked address spaces.
    HugeReturn = 3,
    /// Runs of the entry probe of `clear_refs_write`.
    ClearEntry = 4,
    /// Runs of the return probe of `clear_refs_write`.
    ClearReturn = 5,
    /// Runs of the entry probe of `mprotect_fixup` for tracked address spaces.
    MprotectEntry = 6,
    /// Runs of the return probe of `mprotect_fixup` for tracked address spaces.
    MprotectReturn = 7,
    /// A record did not fit into the ring buffer.
    RingFull = 8,
    /// No free row was left: the fault is counted, but linked to no VMA.
    RowsFull = 9,
    /// The map of tracked address spaces was full: a cleared address space is not tracked.
    TrackedFull = 10,
    /// The map of clears under way was full: a clear was not seen.
    ClearsFull = 11,
    /// The map of mprotect calls under way was full: a change of flags was not seen.
    MprotectsFull = 12,
    /// A task slot was taken over by another task between entry and return: a handling time was not taken,
    /// and where the return probe needs the slot, a fault was not counted.
    SlotTaken = 13,
    /// Handled faults that no row could be found for, part of the fault counters.
    Unlinked = 14,
    /// A return probe found no entry that belongs to it.
    OrphanReturn = 15,
    /// Clears that ended with an error or that met no address space any more.
    ClearFailed = 16,
    /// After an mprotect the VMA had other flags than `mprotect_fixup` was asked for.
    MprotectFlagsDiffer = 17,
    /// Handled write faults of armed pages that were noted page by page.
    WriteNoted = 18,
    /// Handled write faults after which the page-table entry was not soft-dirty yet: they come again.
    WriteUnsettled = 19,
    /// Writes noted while a clear was walking.
    WriteRaced = 20,
    /// No free record of pages was left: a write or a mechanism was not noted.
    PagesFull = 21,
    /// Old marks of pages could not be told from new ones.
    PagesStale = 22,
    /// Page tables that were tested, up to 2 MiB each.
    AuditChunk = 23,
    /// Page tables in which something was found.
    AuditFinding = 24,
    /// Page tables that could not be read.
    AuditUnread = 25,
    /// Holes in a pagemap walk too long to be compared with what was written.
    HoleTooLong = 26,
    /// The map of VMAs that a clear is about to arm was full: they are audited as if armed before.
    FreshFull = 27,
    /// More ranges were moved in one epoch than are kept.
    MovedFull = 28,
    /// The map of calls under way was full, or the return of a call was not seen: what it did to a range is not known. Likewise
    /// for the return of a page from its migration.
    CallsFull = 29,
    /// The return of a write fault was not seen, or not in time: one write was not noted.
    WriteSlotTaken = 30,
    /// Pages of which it could not be read whether they are pinned.
    PinsUnread = 31,
    /// The map of writes to files under way was full, or the return of one was not seen: that it went on after a clear
    /// was not told.
    FileWritesFull = 32,
    /// The map of direct reads under way was full: memory that one delivers to was not counted.
    DirectReadsFull = 33,
}

impl Stage {
    /// Every stage, in the order of the discriminants.
    pub const ALL: [Self; 34] = [
        Self::FaultEntry,
        Self::FaultReturn,
        Self::HugeEntry,
        Self::HugeReturn,
        Self::ClearEntry,
        Self::ClearReturn,
        Self::MprotectEntry,
        Self::MprotectReturn,
        Self::RingFull,
        Self::RowsFull,
        Self::TrackedFull,
        Self::ClearsFull,
        Self::MprotectsFull,
        Self::SlotTaken,
        Self::Unlinked,
        Self::OrphanReturn,
        Self::ClearFailed,
        Self::MprotectFlagsDiffer,
        Self::WriteNoted,
        Self::WriteUnsettled,
        Self::WriteRaced,
        Self::PagesFull,
        Self::PagesStale,
        Self::AuditChunk,
        Self::AuditFinding,
        Self::AuditUnread,
        Self::HoleTooLong,
        Self::FreshFull,
        Self::MovedFull,
        Self::CallsFull,
        Self::WriteSlotTaken,
        Self::PinsUnread,
        Self::FileWritesFull,
        Self::DirectReadsFull,
    ];

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::FaultEntry => "fault_entry",
            Self::FaultReturn => "fault_return",
            Self::HugeEntry => "huge_fault_entry",
            Self::HugeReturn => "huge_fault_return",
            Self::ClearEntry => "clear_entry",
            Self::ClearReturn => "clear_return",
            Self::MprotectEntry => "mprotect_entry",
            Self::MprotectReturn => "mprotect_return",
            Self::RingFull => "ring_full",
            Self::RowsFull => "rows_full",
            Self::TrackedFull => "tracked_full",
            Self::ClearsFull => "clears_full",
            Self::MprotectsFull => "mprotects_full",
            Self::SlotTaken => "slot_taken",
            Self::Unlinked => "unlinked",
            Self::OrphanReturn => "orphan_return",
            Self::ClearFailed => "clear_failed",
            Self::MprotectFlagsDiffer => "mprotect_flags_differ",
            Self::WriteNoted => "write_noted",
            Self::WriteUnsettled => "write_unsettled",
            Self::WriteRaced => "write_raced",
            Self::PagesFull => "pages_full",
            Self::PagesStale => "pages_stale",
            Self::AuditChunk => "audit_chunk",
            Self::AuditFinding => "audit_finding",
            Self::AuditUnread => "audit_unread",
            Self::HoleTooLong => "hole_too_long",
            Self::FreshFull => "fresh_full",
            Self::MovedFull => "moved_full",
            Self::CallsFull => "calls_full",
            Self::WriteSlotTaken => "write_slot_taken",
            Self::PinsUnread => "pins_unread",
            Self::FileWritesFull => "file_writes_full",
            Self::DirectReadsFull => "direct_reads_full",
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_counters_share_a_cell() {
        let mut counters = std::vec::Vec::new();
        for state in ProtectionState::ALL {
            counters.extend(VmaKind::ALL.map(|kind| Counter::Fault(kind, state)));
            counters.push(Counter::HugeFault(state));
        }
        counters.extend(Outcome::ALL.map(Counter::Outcome));
        counters.extend(MprotectChange::ALL.map(Counter::Mprotect));
        counters.extend(Stage::ALL.map(Counter::Stage));
        counters.extend((0..FAULT_TIME.count).map(Counter::FaultTime));
        counters.push(Counter::FaultTimeSum);
        let cells: BTreeSet<u32> = counters.iter().map(|counter| counter.cell()).collect();
        assert_eq!(cells.len(), counters.len());
        assert!(cells.iter().all(|&cell| cell < STRIP));
    }
}
