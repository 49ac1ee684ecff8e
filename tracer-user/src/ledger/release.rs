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
fn is_stale(met_epoch: u32, space: &Space) -> bool {
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
        let mut recycled = Vec::new();
        for (&slot, state) in &mut self.rows {
            let Some(space) = self.ids.get(&state.birth).and_then(|id| self.spaces.get_mut(id)) else {
                continue;
            };
            match state.retired_at {
                None => {
                    // A row that was made a moment ago has no epochs yet.
                    let settled_in = now_ns >= state.first_met + ENDED_QUARANTINE_NS;
                    if !is_stale(state.met_epoch, space)
                        || !settled_in
                        || state.pending != super::Counts::default()
                    {
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
                        Ok(()) => recycled.push(slot),
                        Err(error) => errors.push(error.context(format!("row {slot} is not recycled"))),
                    }
                }
                Some(_) => {}
            }
        }
        for slot in recycled {
            self.rows.remove(&slot);
        }
        errors
    }

    /// Keeps memory within the limits: old epochs, then ended address spaces, then the VMAs of old epochs.
    pub(super) fn fold(&mut self) {
        for space in self.spaces.values_mut() {
            space.rows = 0;
            self.folded_epochs += space.fold_epochs(self.limits.closed_epochs);
        }
        for state in self.rows.values() {
            if let Some(space) = self.ids.get(&state.birth).and_then(|id| self.spaces.get_mut(id)) {
                space.rows += 1;
            }
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
        let mut kept: usize = self
            .spaces
            .values()
            .flat_map(|space| &space.epochs)
            .map(|epoch| epoch.vmas.len())
            .sum();
        if kept <= self.limits.vmas {
            return;
        }
        let mut epochs: Vec<_> = self
            .spaces
            .values_mut()
            .flat_map(|space| &mut space.epochs)
            .filter(|epoch| epoch.settled && !epoch.vmas.is_empty())
            .collect();
        epochs.sort_by_key(|epoch| epoch.end.map_or(u64::MAX, |end| end.at_ns));
        for epoch in epochs {
            if kept <= self.limits.vmas {
                break;
            }
            kept -= epoch.vmas.len();
            self.folded_vmas += epoch.fold_vmas();
        }
    }
}
