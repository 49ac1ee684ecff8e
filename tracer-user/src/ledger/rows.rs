//! From the counters of a row, which only grow, to counts of epochs.
//!
//! The daemon keeps what it has taken from each cell of each row. At every look at the table, what is new is
//! given to the epoch that the cell belongs to. Only the two newest epochs can still grow: a fault holds the
//! lock of its VMA, and the clear that opens an epoch takes the same lock, so a fault of epoch `e` is over
//! before epoch `e + 1` has reached its VMA; one more epoch is kept open for safety.

use tracer_common::classify::{Outcome, ProtectionState};
use tracer_common::table::{CLEAR_MARKS, EPOCH_CELLS, VmaRow, clear_cell, epoch_cell};

use super::counts::Counts;
use super::epoch::{VmaEntry, kind_of};
use super::space::Space;

/// What has been taken from a row.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    faults: [u64; EPOCH_CELLS],
    huge_faults: [u64; EPOCH_CELLS],
    outcomes: [u64; Outcome::ALL.len()],
    mprotects: u64,
}

/// What the daemon knows about a row of the table.
#[derive(Clone, Debug)]
pub(super) struct RowState {
    taken: Taken,
    /// What the row has counted that no known epoch can be given yet; seldom anything.
    pub(super) pending: Option<Box<Counts>>,
    /// The ledger's number for its address space, 0 while no record has told of that.
    pub(super) space: u64,
    /// Address space, by its birth.
    pub(super) birth: u64,
    /// When the row's key left the index.
    pub(super) retired_at: Option<u64>,
    /// When the row was first met, to notice rows whose record was lost.
    pub(super) first_met: u64,
    /// Number of the last look at all rows that met it, or at those of its address space after it.
    pub(super) look: u64,
    /// Newest epoch in which anything met the row, as of the last look.
    pub(super) met_epoch: u32,
    /// The marks of clears that were noted.
    clears: [u64; CLEAR_MARKS],
}

/// A consistent enough view of a row that is being written: counters from before, epoch numbers from after.
/// The programs store the epoch number before they count, so whatever `counted` holds, `numbered` names.
pub(super) struct RowView<'a> {
    pub(super) counted: &'a VmaRow,
    pub(super) numbered: &'a VmaRow,
}

/// Which epoch a cell's new counts belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// No epoch that is known: its record is still on its way.
    Pending,
    /// This one.
    Epoch(u32),
    /// This one or another one that uses the same cell, known or not.
    Uncertain { oldest: u32, other: u32 },
}

/// The epoch that new counts in `cell` belong to. `open` are the numbers of the known epochs that are not
/// settled, oldest first; `last` is the newest epoch in which a fault hit the row.
fn owner(cell: usize, open: impl Iterator<Item = u32>, newest: u32, last: u32) -> Owner {
    let mut users = open.filter(|&epoch| epoch_cell(epoch) == cell && epoch <= last);
    let Some(oldest) = users.next() else {
        return Owner::Pending;
    };
    if let Some(other) = users.next() {
        return Owner::Uncertain { oldest, other };
    }
    let reach = u32::try_from(EPOCH_CELLS).unwrap_or(u32::MAX);
    match oldest.checked_add(reach) {
        Some(ahead) if ahead > newest && ahead <= last => Owner::Uncertain { oldest, other: ahead },
        _ => Owner::Epoch(oldest),
    }
}

impl RowState {
    pub(super) fn new(birth: u64, now_ns: u64) -> Self {
        Self {
            taken: Taken::default(),
            pending: None,
            space: 0,
            birth,
            retired_at: None,
            first_met: now_ns,
            look: 0,
            met_epoch: 0,
            clears: [0; CLEAR_MARKS],
        }
    }

    /// Whether the row holds less than was taken from it: somebody else zeroed it.
    pub(super) fn went_back(&self, row: &VmaRow) -> bool {
        let less = |taken: &[u64], counted: &[u64]| taken.iter().zip(counted).any(|(taken, now)| now < taken);
        less(&self.taken.faults, &row.faults)
            || less(&self.taken.huge_faults, &row.huge_faults)
            || less(&self.taken.outcomes, &row.outcomes)
            || row.mprotects < self.taken.mprotects
    }

    /// Whether the row has counted anything that was not taken. Most rows have not since the last look.
    pub(super) fn has_new(&self, row: &VmaRow) -> bool {
        let taken = &self.taken;
        row.faults != taken.faults
            || row.huge_faults != taken.huge_faults
            || row.outcomes != taken.outcomes
            || row.mprotects != taken.mprotects
    }

    /// Notes which epochs have met the row, and that the clears of epochs that are not settled did.
    pub(super) fn meet(&mut self, row: &VmaRow, space: &mut Space) {
        self.met_epoch = newest_meeting(row);
        space.met_epoch = space.met_epoch.max(self.met_epoch);
        if self.clears == row.clears {
            return;
        }
        for (number, end) in row.met_by() {
            let cell = clear_cell(number);
            if self.clears[cell] != row.clears[cell]
                && space.epoch(number).is_some_and(|epoch| !epoch.settled)
                && let Some(entry) = space.entry(number, row)
            {
                entry.armed_at_clear = true;
                entry.end_at_clear = end;
                self.clears[cell] = row.clears[cell];
            }
        }
    }

    /// Gives what is new in the row to the address space's epochs. With `everything`, what no epoch can be
    /// found for goes to the nearest one instead of waiting for a record.
    pub(super) fn absorb(&mut self, view: &RowView<'_>, space: &mut Space, everything: bool) {
        let newest = space.newest();
        let last = view.numbered.last_fault_epoch;
        for cell in 0..EPOCH_CELLS {
            let faults = view.counted.faults[cell] - self.taken.faults[cell];
            let huge_faults = view.counted.huge_faults[cell] - self.taken.huge_faults[cell];
            if faults == 0 && huge_faults == 0 {
                continue;
            }
            let open = space
                .epochs
                .iter()
                .filter(|epoch| !epoch.settled)
                .map(|epoch| epoch.number);
            let give = |entry: &mut VmaEntry| {
                entry.faults += faults;
                entry.huge_faults += huge_faults;
            };
            match owner(cell, open, newest, last) {
                // After a gap in the records, cells hold what skipped epochs counted.
                Owner::Pending if everything || (space.unseen_epochs > 0 && last <= newest) => {
                    late(space, cell, last, view.counted, give);
                }
                Owner::Pending => continue,
                Owner::Epoch(number) => give_to(space, number, view.counted, false, give),
                Owner::Uncertain { oldest, other } => {
                    give_to(space, oldest, view.counted, true, give);
                    if let Some(epoch) = space.epoch_mut(other) {
                        epoch.uncertain = true;
                    } else if !space.uncertain_ahead.contains(&other) {
                        space.uncertain_ahead.push(other);
                    }
                }
            }
            self.taken.faults[cell] = view.counted.faults[cell];
            self.taken.huge_faults[cell] = view.counted.huge_faults[cell];
        }
        self.absorb_the_rest(view, space, everything);
        self.set_pending(view.counted);
    }

    /// Outcomes and mprotect calls have no cells. Outcomes go to the epoch that was the newest at the last look:
    /// a clear's record wakes the daemon, so nearly all of the time since then belongs to that one. Calls of
    /// mprotect go to the epoch of the row's last one.
    fn absorb_the_rest(&mut self, view: &RowView<'_>, space: &mut Space, everything: bool) {
        let newest = space.newest();
        let row = view.counted;
        if row.outcomes != self.taken.outcomes && newest > 0 {
            let mut new = row.outcomes;
            for (new, taken) in new.iter_mut().zip(self.taken.outcomes) {
                *new -= taken;
            }
            give_near(space, space.looked_at, row, |entry| {
                for (sum, new) in entry.outcomes.iter_mut().zip(new) {
                    *sum += new;
                }
            });
            self.taken.outcomes = row.outcomes;
        }
        let mprotects = row.mprotects - self.taken.mprotects;
        if mprotects > 0 && newest > 0 && (everything || view.numbered.mprotect_epoch <= newest) {
            let changes = view.numbered.mprotect_changes;
            give_near(space, view.numbered.mprotect_epoch, row, |entry| {
                entry.mprotects += mprotects;
                entry.changes |= changes;
            });
            self.taken.mprotects = row.mprotects;
        }
    }

    /// Notes what waits for the record of its epoch.
    pub(super) fn set_pending(&mut self, row: &VmaRow) {
        let waiting = self.not_taken(row);
        self.pending = (waiting != Counts::default()).then(|| Box::new(waiting));
    }

    /// What the row has counted beyond what was taken.
    fn not_taken(&self, row: &VmaRow) -> Counts {
        let difference = |now: &[u64], taken: &[u64]| -> u64 {
            now.iter().zip(taken).map(|(now, taken)| now - taken).sum()
        };
        let state = ProtectionState::of(row.key.page_prot);
        let mut counts = Counts::default();
        counts.add_faults(
            kind_of(row.kind),
            state,
            difference(&row.faults, &self.taken.faults),
        );
        counts.add_huge_faults(state, difference(&row.huge_faults, &self.taken.huge_faults));
        let mut outcomes = row.outcomes;
        for (now, taken) in outcomes.iter_mut().zip(self.taken.outcomes) {
            *now -= taken;
        }
        counts.add_outcomes(&outcomes);
        counts.add_mprotects(row.mprotects - self.taken.mprotects);
        counts
    }
}

/// The newest epoch in which anything met the row.
pub(super) fn newest_meeting(row: &VmaRow) -> u32 {
    row.armed_epoch.max(row.last_fault_epoch).max(row.mprotect_epoch)
}

fn give_to(space: &mut Space, number: u32, row: &VmaRow, uncertain: bool, give: impl FnOnce(&mut VmaEntry)) {
    if let Some(epoch) = space.epoch_mut(number) {
        epoch.uncertain |= uncertain;
    }
    if let Some(entry) = space.entry(number, row) {
        give(entry);
    } else {
        let mut entry = VmaEntry::default();
        entry.describe(row);
        give(&mut entry);
        space.folded.add(&entry.counts(&row.key));
    }
}

/// Gives to epoch `number`, or to the newest one if that one is settled or unknown.
fn give_near(space: &mut Space, number: u32, row: &VmaRow, give: impl FnOnce(&mut VmaEntry)) {
    let number = match space.epoch(number) {
        Some(epoch) if !epoch.settled => number,
        _ => space.newest(),
    };
    give_to(space, number, row, false, give);
}

/// Counts that no open epoch owns and none will: the newest epoch that used the cell has them, if it is kept.
fn late(space: &mut Space, cell: usize, last: u32, row: &VmaRow, give: impl FnOnce(&mut VmaEntry)) {
    let users = space.epochs.iter().rev().map(|epoch| epoch.number);
    let user = users
        .into_iter()
        .find(|&epoch| epoch_cell(epoch) == cell && epoch <= last);
    give_to(space, user.unwrap_or(0), row, true, give);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_belongs_to_the_open_epoch_that_uses_it() {
        assert_eq!(owner(5, [4, 5].into_iter(), 5, 5), Owner::Epoch(5));
        assert_eq!(owner(4, [4, 5].into_iter(), 5, 5), Owner::Epoch(4));
    }

    #[test]
    fn a_cell_of_an_epoch_whose_record_is_missing_waits() {
        assert_eq!(owner(6, [4, 5].into_iter(), 5, 6), Owner::Pending);
        assert_eq!(owner(6, [4, 5].into_iter(), 5, 5), Owner::Pending);
    }

    #[test]
    fn a_cell_is_not_given_to_an_epoch_that_no_fault_has_reached() {
        assert_eq!(owner(5, [4, 5].into_iter(), 5, 4), Owner::Pending);
    }

    #[test]
    fn two_epochs_in_one_cell_are_uncertain() {
        assert_eq!(
            owner(4, [4, 5, 6, 7, 8, 9, 10, 11, 12].into_iter(), 12, 12),
            Owner::Uncertain { oldest: 4, other: 12 }
        );
        assert_eq!(
            owner(4, [4, 5].into_iter(), 5, 12),
            Owner::Uncertain { oldest: 4, other: 12 }
        );
        assert_eq!(owner(4, [4, 5].into_iter(), 5, 11), Owner::Epoch(4));
    }
}
