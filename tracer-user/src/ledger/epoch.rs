//! One epoch of one address space: who opened it, what its VMAs saw, how it ended.

use std::collections::BTreeMap;

use tracer_common::classify::{Outcome, ProtectionState, VmaKind};
use tracer_common::records::{ClearRecord, TaskIdentity};
use tracer_common::table::{VmaKey, VmaRow};

use super::counts::Counts;

/// What opened an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// A clear; the record tells everything about it.
    Clear(Box<ClearRecord>),
    /// Armed before sdtrace started, found at this monotonic time.
    Adopted(u64),
    /// Forked from a tracked address space at this monotonic time.
    Fork(u64),
    /// The record was lost or is still on its way; something newer was met already.
    Unseen,
}

impl Opening {
    /// Who cleared.
    pub(super) fn tracker(&self) -> Option<&TaskIdentity> {
        match self {
            Self::Clear(record) => Some(&record.tracker),
            Self::Adopted(_) | Self::Fork(_) | Self::Unseen => None,
        }
    }
}

/// How an epoch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The tracker that opened it cleared again.
    SameTracker,
    /// Another process cleared: the first tracker's changes since its last read are gone.
    OtherTracker,
    /// A clear ended it, but it was not opened by a clear (adopted, forked).
    FirstClear,
    /// The process called exec.
    Exec,
    /// The process exited.
    Exit,
    /// The record that would tell was lost.
    Unknown,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::SameTracker,
        Self::OtherTracker,
        Self::FirstClear,
        Self::Exec,
        Self::Exit,
        Self::Unknown,
    ];

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SameTracker => "clear_same_tracker",
            Self::OtherTracker => "clear_other_tracker",
            Self::FirstClear => "clear_first",
            Self::Exec => "exec",
            Self::Exit => "exit",
            Self::Unknown => "unknown",
        }
    }
}

/// Whether two records name the same process. The pid in the initial pid namespace is always there, and with
/// the start time it is never reused.
pub(super) fn same_process(one: &TaskIdentity, other: &TaskIdentity) -> bool {
    (one.initial_pid, one.start_ns) == (other.initial_pid, other.start_ns)
}

/// How the epoch opened by `opening` ends when `next` opens the one after it; `None` while `next` is unseen.
pub(super) fn reason_of_next(opening: &Opening, next: &Opening) -> Option<EndReason> {
    let next = next.tracker()?;
    Some(match opening {
        Opening::Clear(record) if same_process(&record.tracker, next) => EndReason::SameTracker,
        Opening::Clear(_) => EndReason::OtherTracker,
        Opening::Adopted(_) | Opening::Fork(_) => EndReason::FirstClear,
        Opening::Unseen => return None,
    })
}

/// The end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) reason: EndReason,
    /// Monotonic time.
    pub(super) at_ns: u64,
}

/// What one VMA state saw in one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VmaEntry {
    /// `vm_end` when the state was last met.
    pub(super) end: u64,
    pub(super) inode: u64,
    pub(super) device: u32,
    /// `vm_pgoff`, in pages.
    pub(super) offset: u64,
    /// Shared mappings of the file at the clear, this one included.
    pub(super) shared_mappings: u32,
    /// Discriminant of [`VmaKind`].
    pub(super) kind: u32,
    /// The epoch's clear met this state.
    pub(super) armed_at_clear: bool,
    /// `vm_end` then.
    pub(super) end_at_clear: u64,
    pub(super) faults: u64,
    pub(super) huge_faults: u64,
    pub(super) outcomes: [u64; Outcome::ALL.len()],
    pub(super) mprotects: u64,
    /// Bits of [`tracer_common::classify::MprotectChange`].
    pub(super) changes: u32,
}

/// The kind of a row. The programs write nothing else; should they, the row is shown as private anonymous
/// memory rather than lost, and its counts stay in the sum.
pub(super) fn kind_of(raw: u32) -> VmaKind {
    u8::try_from(raw)
        .ok()
        .and_then(VmaKind::from_raw)
        .unwrap_or(VmaKind::PrivateAnon)
}

impl VmaEntry {
    /// Takes over what describes the VMA.
    pub(super) fn describe(&mut self, row: &VmaRow) {
        self.end = row.end;
        self.inode = row.inode;
        self.device = row.device;
        self.offset = row.offset;
        self.shared_mappings = row.shared_mappings;
        self.kind = row.kind;
    }

    pub(super) fn counts(&self, key: &VmaKey) -> Counts {
        let mut counts = Counts::default();
        let state = ProtectionState::of(key.page_prot);
        counts.add_faults(kind_of(self.kind), state, self.faults);
        counts.add_huge_faults(state, self.huge_faults);
        counts.add_outcomes(&self.outcomes);
        counts.add_mprotects(self.mprotects);
        counts
    }
}

/// An epoch.
#[derive(Clone, Debug)]
pub(super) struct Epoch {
    pub(super) number: u32,
    pub(super) opening: Opening,
    pub(super) end: Option<End>,
    /// Final: what rows still count goes to a newer epoch.
    pub(super) settled: bool,
    /// Two epochs used one cell of a row at the same time: the sum is right, the division between them is not
    /// known.
    pub(super) uncertain: bool,
    /// The daemon looked at the rows while this epoch was the newest, so every VMA that the clear met is
    /// in [`Self::vmas`].
    pub(super) vmas_complete: bool,
    pub(super) vmas: BTreeMap<VmaKey, VmaEntry>,
    /// VMA states whose entries were given up to save memory, and their sum.
    pub(super) folded_vmas: u64,
    pub(super) folded: Counts,
}

impl Epoch {
    pub(super) fn new(number: u32, opening: Opening) -> Self {
        Self {
            number,
            opening,
            end: None,
            settled: false,
            uncertain: false,
            vmas_complete: false,
            vmas: BTreeMap::new(),
            folded_vmas: 0,
            folded: Counts::default(),
        }
    }

    /// The entry of a row's state, described anew.
    pub(super) fn entry(&mut self, row: &VmaRow) -> &mut VmaEntry {
        let entry = self.vmas.entry(row.key).or_default();
        entry.describe(row);
        entry
    }

    /// Gives the details up and keeps the sum; returns how many VMA states went.
    pub(super) fn fold_vmas(&mut self) -> usize {
        let mut sum = self.folded;
        for (key, entry) in &self.vmas {
            sum.add(&entry.counts(key));
        }
        let gone = self.vmas.len();
        self.folded = sum;
        self.folded_vmas += gone as u64;
        self.vmas = BTreeMap::new();
        gone
    }

    pub(super) fn counts(&self) -> Counts {
        let mut sum = self.folded;
        for (key, entry) in &self.vmas {
            sum.add(&entry.counts(key));
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clear_by(initial_pid: u32, start_ns: u64) -> Opening {
        let tracker = TaskIdentity {
            initial_pid,
            start_ns,
            ..TaskIdentity::default()
        };
        Opening::Clear(Box::new(ClearRecord {
            tracker,
            ..ClearRecord::default()
        }))
    }

    #[test]
    fn a_clear_ends_the_epoch_before_it() {
        let first = clear_by(7, 100);
        let cases = [
            (&first, clear_by(7, 100), Some(EndReason::SameTracker)),
            (&first, clear_by(8, 100), Some(EndReason::OtherTracker)),
            (&first, clear_by(7, 200), Some(EndReason::OtherTracker)),
            (
                &Opening::Adopted(1),
                clear_by(7, 100),
                Some(EndReason::FirstClear),
            ),
            (&first, Opening::Unseen, None),
            (&Opening::Unseen, clear_by(7, 100), None),
        ];
        for (opening, next, reason) in cases {
            assert_eq!(reason_of_next(opening, &next), reason, "{opening:?} {next:?}");
        }
    }

    #[test]
    fn folding_keeps_the_sum() {
        let mut epoch = Epoch::new(1, Opening::Adopted(0));
        for start in [0x1000, 0x2000] {
            let row = VmaRow {
                key: VmaKey {
                    birth: 1,
                    start,
                    ..VmaKey::default()
                },
                ..VmaRow::default()
            };
            let entry = epoch.entry(&row);
            entry.faults += 5;
            entry.mprotects += 1;
        }
        let before = epoch.counts();
        assert_eq!(before.faults(), 10);
        assert_eq!(epoch.fold_vmas(), 2);
        assert_eq!(epoch.counts(), before);
        assert_eq!((epoch.vmas.len(), epoch.folded_vmas), (0, 2));
    }
}
