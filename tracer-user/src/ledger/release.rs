//! Giving rows back to the programs and memory back to the system.

use super::rows::{RowView, newest_meeting};
use super::space::{Phase, Space};
use super::{Ledger, VmaTable};

/// How long a retired row is left alone: a fault that found it before it left the index has returned by then.
/// A fault holds the lock that a clear needs, so it cannot sleep through the two clears that make its row
/// stale, unless the kernel drops the lock for it while it waits for writeback (`fault_dirty_shared_page`).
const QUARANTINE_NS: u64 = 10_000_000_000;
/// The same for an address space that is gone: nobody can fault in it any more.
const ENDED_QUARANTINE_NS: u64 = 1_000_000_000;

/// Whether neither of the last two clears nor anything since met this row: `met_epoch` is the newest epoch that did.
pub(super) fn is_stale(met_epoch: u32, space: &Space) -> bool {
    match space.phase {
        Phase::Live => met_epoch + 2 <= space.newest(),
        Phase::Ending { .. } => false,
        Phase::Ended { .. } => true,
    }
}

fn quarantine(space: &Space) -> u64 {
    match space.phase {
        Phase::Live | Phase::Ending { .. } => QUARANTINE_NS,
        Phase::Ended { .. } => ENDED_QUARANTINE_NS,
    }
}

impl Ledger {
    /// Retires stale rows, and recycles those that have been retired for long enough.
    pub(super) fn release_rows(&mut self, table: &mut dyn VmaTable, now_ns: u64) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        for slot in std::mem::take(&mut self.left.rows) {
            let Some(state) = self.rows.get_mut(slot) else {
                continue;
            };
            let Some(space) = self.spaces.get_mut(&state.space) else {
                continue;
            };
            match state.retired_at {
                None => {
                    // A row that was made a moment ago has no epochs yet.
                    let settled_in = now_ns >= state.first_met + ENDED_QUARANTINE_NS;
                    if !is_stale(state.met_epoch, space) || !settled_in || state.pending.is_some() {
                        continue;
                    }
                    // Something may have met it since the look.
                    let row = table.row(slot);
                    if is_stale(newest_meeting(&row), space) {
                        match table.retire(slot, &row.key) {
                            Ok(()) => state.retired_at = Some(now_ns),
                            Err(error) => errors.push(error.context(format!("row {slot} is not retired"))),
                        }
                    }
                }
                Some(retired_at) if now_ns >= retired_at + quarantine(space) => {
                    // Nobody can count here any more; what came during the quarantine is the last.
                    let row = table.row(slot);
                    let view = RowView {
                        counted: &row,
                        numbered: &row,
                    };
                    state.absorb(&view, space, true);
                    match table.recycle(slot) {
                        Ok(()) => {
                            space.rows -= 1;
                            self.rows.remove(slot);
                        }
                        Err(error) => errors.push(error.context(format!("row {slot} is not recycled"))),
                    }
                }
                Some(_) => {}
            }
        }
        errors
    }

    /// Keeps memory within the limits: old epochs, then ended address spaces, then the VMAs of old epochs.
    pub(super) fn fold(&mut self) {
        for space in self.spaces.values_mut() {
            self.folded_epochs += space.fold_epochs(self.limits.closed_epochs);
        }
        self.fold_spaces();
        self.fold_vmas();
    }

    fn fold_spaces(&mut self) {
        let mut excess = self.ended.len().saturating_sub(self.limits.ended_address_spaces);
        let (spaces, ids, folded) = (&mut self.spaces, &mut self.ids, &mut self.folded);
        let (folded_spaces, folded_epochs) = (&mut self.folded_spaces, &mut self.folded_epochs);
        let departed = &mut self.departed;
        self.ended.retain(|id| {
            // While it has rows, late counts need it.
            if excess == 0 || spaces.get(id).is_some_and(|space| space.rows > 0) {
                return true;
            }
            excess -= 1;
            if let Some(space) = spaces.remove(id) {
                departed.note(&space);
                folded.add(&space.counts());
                *folded_spaces += 1;
                *folded_epochs += space.epochs.len() as u64;
                ids.remove(&space.birth);
            }
            false
        });
    }

    fn fold_vmas(&mut self) {
        let mut kept: usize = self.spaces.values().map(|space| space.kept_vmas()).sum();
        if kept <= self.limits.vmas {
            return;
        }
        let mut epochs: Vec<_> = self
            .spaces
            .values()
            .flat_map(|space| {
                space
                    .foldable()
                    .map(|(end_ns, number)| (end_ns, space.id, number))
            })
            .collect();
        epochs.sort_unstable();
        for (_, id, number) in epochs {
            if kept <= self.limits.vmas {
                break;
            }
            if let Some(space) = self.spaces.get_mut(&id) {
                let gone = space.fold_vmas(number);
                kept -= gone;
                self.folded_vmas += gone as u64;
            }
        }
    }
}
