//! One address space and its epochs.

use std::collections::VecDeque;

use tracer_common::records::TaskIdentity;
use tracer_common::table::{EPOCH_CELLS, VmaRow};
use tracer_common::tracked::{ORIGIN_ADOPTED, ORIGIN_CLEAR, ORIGIN_FORK};

use super::counts::Counts;
use super::epoch::{End, EndReason, Epoch, Opening, VmaEntry, reason_of_next, same_process};
use super::sources::ProcessDetails;

/// How an address space came to be tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// sdtrace saw its first clear.
    Clear,
    /// It was armed before sdtrace started.
    Adopted,
    /// It was forked from a tracked one.
    Fork,
    /// The record that would tell was lost, or is still on its way.
    Unknown,
}

impl Origin {
    /// Every origin.
    pub const ALL: [Self; 4] = [Self::Clear, Self::Adopted, Self::Fork, Self::Unknown];

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Adopted => "adopted",
            Self::Fork => "fork",
            Self::Unknown => "unknown",
        }
    }

    pub(super) fn of(raw: u32) -> Self {
        match raw {
            ORIGIN_CLEAR => Self::Clear,
            ORIGIN_ADOPTED => Self::Adopted,
            ORIGIN_FORK => Self::Fork,
            _ => Self::Unknown,
        }
    }
}

/// Where an address space is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Live,
    /// Torn down at `at_ns`; what late faults count is still taken in until `since_ns` plus the grace period.
    Ending {
        at_ns: u64,
        since_ns: u64,
    },
    Ended {
        at_ns: u64,
    },
}

/// An address space.
#[derive(Clone, Debug)]
pub(super) struct Space {
    /// Small stable id of ours.
    pub(super) id: u64,
    /// Stable id of the kernel side.
    pub(super) birth: u64,
    pub(super) origin: Origin,
    /// Birth of the address space it was forked from, 0 without one.
    pub(super) parent_birth: u64,
    /// The parent's epoch at the fork.
    pub(super) parent_epoch: u32,
    /// The process it belongs to, as the first record named it.
    pub(super) owner: Option<TaskIdentity>,
    pub(super) details: Option<ProcessDetails>,
    /// Times that the details were looked up in vain.
    pub(super) look_ups: u8,
    pub(super) phase: Phase,
    /// When the owner called exec.
    exec_ns: Option<u64>,
    /// In the order of their numbers, without gaps. Those that are settled come first.
    pub(super) epochs: VecDeque<Epoch>,
    /// VMA states that its epochs keep.
    kept: Kept,
    /// Epochs that were given up to save memory, and their sum.
    pub(super) folded_epochs: u64,
    pub(super) folded: Counts,
    /// Epochs that no record told of and that are too old to have counts of their own.
    pub(super) unseen_epochs: u64,
    /// Numbers of epochs not yet opened whose cell was met in use already while an older epoch owned it.
    pub(super) uncertain_ahead: Vec<u32>,
    /// Newest epoch that any row was met in during the last scan.
    pub(super) met_epoch: u32,
    /// The newest known epoch at the last look at the rows.
    pub(super) looked_at: u32,
    /// Since when rows have been ahead of the records, for record loss.
    pub(super) ahead_since: Option<u64>,
    /// Rows of the table that belong to it.
    pub(super) rows: u32,
}

/// How many VMA states epochs keep, so that nobody has to count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kept {
    all: usize,
    /// Of these, those of settled epochs, which can be given up.
    settled: usize,
}

/// Epochs whose end became known, for the counters.
pub(super) type Ends = Vec<EndReason>;

impl Space {
    pub(super) fn new(id: u64, birth: u64) -> Self {
        Self {
            id,
            birth,
            origin: Origin::Unknown,
            parent_birth: 0,
            parent_epoch: 0,
            owner: None,
            details: None,
            look_ups: 0,
            phase: Phase::Live,
            exec_ns: None,
            epochs: VecDeque::new(),
            kept: Kept::default(),
            folded_epochs: 0,
            folded: Counts::default(),
            unseen_epochs: 0,
            uncertain_ahead: Vec::new(),
            met_epoch: 0,
            looked_at: 0,
            ahead_since: None,
            rows: 0,
        }
    }

    /// Number of the newest epoch that is known, 0 before the first record.
    pub(super) fn newest(&self) -> u32 {
        self.epochs.back().map_or(0, |epoch| epoch.number)
    }

    pub(super) fn epoch_mut(&mut self, number: u32) -> Option<&mut Epoch> {
        let first = self.epochs.front()?.number;
        self.epochs.get_mut(number.checked_sub(first)? as usize)
    }

    pub(super) fn epoch(&self, number: u32) -> Option<&Epoch> {
        let first = self.epochs.front()?.number;
        self.epochs.get(number.checked_sub(first)? as usize)
    }

    /// The entry of a row's state in an epoch, described anew.
    pub(super) fn entry(&mut self, number: u32, row: &VmaRow) -> Option<&mut VmaEntry> {
        let first = self.epochs.front()?.number;
        let epoch = self.epochs.get_mut(number.checked_sub(first)? as usize)?;
        if !epoch.vmas.contains_key(&row.key) {
            self.kept.all += 1;
            self.kept.settled += usize::from(epoch.settled);
        }
        Some(epoch.entry(row))
    }

    pub(super) fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    /// Opens epoch `number`, or completes it when something newer was met before its record. Returns false if
    /// that epoch was opened before: two records say the same, which no kernel does.
    pub(super) fn open(&mut self, number: u32, opening: Opening, at_ns: u64, ends: &mut Ends) -> bool {
        if number > self.newest() {
            self.make_room_until(number);
            self.push(number, opening);
        } else {
            match self.epoch_mut(number) {
                Some(epoch) if epoch.opening == Opening::Unseen => epoch.opening = opening,
                Some(_) => return false,
                // Folded already: the record came later than any order of events explains.
                None => return number <= self.newest() && self.folded_epochs > 0,
            }
        }
        self.end_by_next(number.wrapping_sub(1), at_ns, ends);
        let after = number.wrapping_add(1);
        if let Some(Opening::Clear(next)) = self.epoch(after).map(|epoch| &epoch.opening) {
            let at_ns = next.header.time_ns;
            self.end_by_next(number, at_ns, ends);
        }
        true
    }

    /// Adds the epochs up to `number` that no record told of.
    pub(super) fn open_unseen(&mut self, number: u32) {
        if number > self.newest() {
            self.make_room_until(number);
            self.push(number, Opening::Unseen);
        }
    }

    /// Epochs older than the cells of a row reach have nothing of their own to show: only their number is kept.
    fn make_room_until(&mut self, number: u32) {
        let reach = u32::try_from(EPOCH_CELLS).unwrap_or(u32::MAX);
        let first = (self.newest() + 1).max(number.saturating_sub(reach - 1));
        let skipped = u64::from(first - (self.newest() + 1));
        if skipped > 0 {
            // Numbers must have no gaps: what was there before the gap is given up, its sum kept.
            for epoch in std::mem::take(&mut self.epochs) {
                self.folded.add(&epoch.counts());
                self.folded_epochs += 1;
            }
            self.kept = Kept::default();
            self.unseen_epochs += skipped;
        }
        for unseen in first..number {
            self.push(unseen, Opening::Unseen);
        }
        if skipped > 0 {
            // What the skipped epochs counted lies in the same cells as what these do.
            self.uncertain_ahead.push(number);
            for epoch in &mut self.epochs {
                epoch.uncertain = true;
            }
        }
    }

    fn push(&mut self, number: u32, opening: Opening) {
        let mut epoch = Epoch::new(number, opening);
        if let Some(at) = self.uncertain_ahead.iter().position(|&ahead| ahead == number) {
            self.uncertain_ahead.swap_remove(at);
            epoch.uncertain = true;
        }
        self.epochs.push_back(epoch);
    }

    fn end_by_next(&mut self, number: u32, at_ns: u64, ends: &mut Ends) {
        let Some(next) = self.epoch(number.wrapping_add(1)) else {
            return;
        };
        let Some(epoch) = self.epoch(number) else { return };
        if epoch.end.is_some() {
            return;
        }
        if let Some(reason) = reason_of_next(&epoch.opening, &next.opening) {
            self.end_epoch(number, reason, at_ns, ends);
        }
    }

    fn end_epoch(&mut self, number: u32, reason: EndReason, at_ns: u64, ends: &mut Ends) {
        if let Some(epoch) = self.epoch_mut(number)
            && epoch.end.is_none()
        {
            epoch.end = Some(End { reason, at_ns });
            ends.push(reason);
        }
    }

    /// A task of this address space calls exec. Only the owner's exec ends the address space; a child between
    /// vfork and exec leaves a borrowed one.
    pub(super) fn exec(&mut self, task: &TaskIdentity, at_ns: u64) {
        if self.owner.is_some_and(|owner| same_process(&owner, task)) {
            self.exec_ns = Some(at_ns);
        }
    }

    /// The address space was torn down at `at_ns`; its last epoch was `last`, if the kernel told.
    pub(super) fn exit(&mut self, last: Option<u32>, at_ns: u64, now_ns: u64, ends: &mut Ends) {
        if self.phase != Phase::Live {
            return;
        }
        let reason = match last {
            Some(last) => {
                self.open_unseen(last);
                if self.exec_ns.is_some() {
                    EndReason::Exec
                } else {
                    EndReason::Exit
                }
            }
            None => EndReason::Unknown,
        };
        self.end_epoch(self.newest(), reason, at_ns, ends);
        self.phase = Phase::Ending {
            at_ns,
            since_ns: now_ns,
        };
    }

    /// Settles the epochs that nothing can be counted for any more: those that had closed before the newest one
    /// opened, and all of them once the address space is gone.
    pub(super) fn settle(&mut self, everything: bool, now_ns: u64, ends: &mut Ends) {
        let newest = self.newest();
        let first = self.epochs.len() - self.unsettled().count();
        for epoch in self.epochs.range_mut(first..) {
            if !everything && epoch.number + 2 > newest {
                break;
            }
            epoch.settled = true;
            self.kept.settled += epoch.vmas.len();
            if epoch.end.is_none() {
                epoch.end = Some(End {
                    reason: EndReason::Unknown,
                    at_ns: now_ns,
                });
                ends.push(EndReason::Unknown);
            }
        }
    }

    /// The epochs that are not settled, newest first. None of them is older than one that is.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = &Epoch> {
        self.epochs.iter().rev().take_while(|epoch| !epoch.settled)
    }

    /// How many VMA states its epochs keep.
    pub(super) fn kept_vmas(&self) -> usize {
        debug_assert_eq!(self.kept, self.count_kept());
        self.kept.all
    }

    fn count_kept(&self) -> Kept {
        let mut kept = Kept::default();
        for epoch in &self.epochs {
            kept.all += epoch.vmas.len();
            kept.settled += if epoch.settled { epoch.vmas.len() } else { 0 };
        }
        kept
    }

    /// Settled epochs whose VMA states can be given up, with the time of their end, oldest first.
    pub(super) fn foldable(&self) -> impl Iterator<Item = (u64, u32)> {
        let epochs = if self.kept.settled > 0 {
            self.epochs.len()
        } else {
            0
        };
        let epochs = self.epochs.iter().take(epochs).take_while(|epoch| epoch.settled);
        epochs
            .filter(|epoch| !epoch.vmas.is_empty())
            .map(|epoch| (epoch.end.map_or(u64::MAX, |end| end.at_ns), epoch.number))
    }

    /// Gives up the VMA states of a settled epoch; returns how many went.
    pub(super) fn fold_vmas(&mut self, number: u32) -> usize {
        let Some(epoch) = self.epoch_mut(number).filter(|epoch| epoch.settled) else {
            return 0;
        };
        let gone = epoch.fold_vmas();
        self.kept.all -= gone;
        self.kept.settled -= gone;
        gone
    }

    /// Gives up the oldest settled epochs beyond `keep`; returns how many went.
    pub(super) fn fold_epochs(&mut self, keep: usize) -> u64 {
        let mut gone = 0;
        while self.epochs.len() > keep + 1 && self.epochs.front().is_some_and(|epoch| epoch.settled) {
            if let Some(epoch) = self.epochs.pop_front() {
                self.kept.all -= epoch.vmas.len();
                self.kept.settled -= epoch.vmas.len();
                self.folded.add(&epoch.counts());
                gone += 1;
            }
        }
        self.folded_epochs += gone;
        gone
    }

    pub(super) fn counts(&self) -> Counts {
        let mut sum = self.folded;
        for epoch in &self.epochs {
            sum.add(&epoch.counts());
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::records::{ClearRecord, Header};

    use super::*;

    fn clear(pid: u32, time_ns: u64) -> Opening {
        Opening::Clear(Box::new(ClearRecord {
            header: Header {
                time_ns,
                ..Header::default()
            },
            tracker: TaskIdentity {
                initial_pid: pid,
                ..TaskIdentity::default()
            },
            ..ClearRecord::default()
        }))
    }

    fn ends_of(space: &Space) -> Vec<Option<EndReason>> {
        space
            .epochs
            .iter()
            .map(|epoch| epoch.end.map(|end| end.reason))
            .collect()
    }

    #[test]
    fn two_clears_whose_records_are_swapped_end_as_if_in_order() {
        let mut space = Space::new(1, 1);
        let mut ends = Ends::new();
        assert!(space.open(1, clear(7, 10), 10, &mut ends));
        assert!(space.open(3, clear(7, 30), 30, &mut ends));
        assert_eq!(ends_of(&space), [None, None, None]);
        assert!(space.open(2, clear(8, 20), 20, &mut ends));
        assert_eq!(
            ends_of(&space),
            [Some(EndReason::OtherTracker), Some(EndReason::OtherTracker), None]
        );
        assert_eq!(space.epoch(2).unwrap().end.unwrap().at_ns, 30);
        assert_eq!(ends.len(), 2);
        assert!(!space.open(2, clear(8, 20), 20, &mut ends));
    }

    #[test]
    fn an_exec_of_the_owner_names_the_end_and_a_vfork_child_does_not() {
        let owner = TaskIdentity {
            initial_pid: 5,
            start_ns: 50,
            ..TaskIdentity::default()
        };
        let child = TaskIdentity {
            initial_pid: 6,
            ..owner
        };
        for (task, reason) in [(owner, EndReason::Exec), (child, EndReason::Exit)] {
            let mut space = Space::new(1, 1);
            space.owner = Some(owner);
            let mut ends = Ends::new();
            space.open(1, clear(7, 10), 10, &mut ends);
            space.exec(&task, 20);
            space.exit(Some(1), 21, 22, &mut ends);
            assert_eq!(ends, [reason]);
        }
    }

    #[test]
    fn an_exit_that_overtakes_the_record_of_its_clear_is_completed_later() {
        let mut space = Space::new(1, 1);
        let mut ends = Ends::new();
        space.exit(Some(1), 20, 20, &mut ends);
        assert!(space.open(1, clear(7, 10), 10, &mut ends));
        assert_eq!(ends, [EndReason::Exit]);
        assert!(space.epoch(1).unwrap().opening.tracker().is_some());
    }

    #[test]
    fn a_long_gap_in_the_numbers_keeps_only_what_cells_can_tell_apart() {
        let mut space = Space::new(1, 1);
        let mut ends = Ends::new();
        space.open(1, clear(7, 10), 10, &mut ends);
        space.open(100, clear(7, 20), 20, &mut ends);
        assert_eq!(space.epochs.len(), EPOCH_CELLS);
        assert_eq!(space.newest(), 100);
        assert_eq!(space.folded_epochs, 1);
        assert_eq!(space.unseen_epochs, 91);
        space.settle(false, 30, &mut ends);
        assert!(space.epoch(98).unwrap().settled);
        assert!(!space.epoch(99).unwrap().settled);
    }
}
