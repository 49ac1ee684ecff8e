//! The table of VMA states: one row for each combination of address space, VMA start, flags and page
//! protection that a clear, a fault or an mprotect met.
//!
//! The rows lie in an array that the daemon maps into its memory; an index map in the kernel finds a row by
//! its key, and a stack in the kernel holds the numbers of the free rows.

use bytemuck::{Pod, Zeroable};

/// Epochs whose counts a row can hold at the same time. The daemon settles an epoch when it learns of the
/// next clear; only a tracker that clears eight times before the daemon wakes mixes two epochs, and the
/// daemon sees that by [`VmaRow::last_fault_epoch`].
pub const EPOCH_CELLS: usize = 8;

/// The cell of an epoch within [`VmaRow::faults`].
#[inline(always)]
#[must_use]
pub const fn epoch_cell(epoch: u32) -> usize {
    epoch as usize % EPOCH_CELLS
}

/// What makes two VMA states the same row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct VmaKey {
    /// Stable id of the address space, see [`crate::tracked::birth_id`]; 0 in a free row.
    pub birth: u64,
    /// `vm_start`.
    pub start: u64,
    /// `vm_flags`.
    pub flags: u64,
    /// `vm_page_prot`.
    pub page_prot: u64,
}

/// One row. Counters grow only; the daemon takes differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct VmaRow {
    /// The row's key.
    pub key: VmaKey,
    /// `vm_end` when the state was last met.
    pub end: u64,
    /// Inode number of the mapped file, 0 without one.
    pub inode: u64,
    /// `s_dev` of the mapped file's file system.
    pub device: u32,
    /// [`crate::classify::VmaKind`].
    pub kind: u32,
    /// Newest epoch whose clear met this state; 0: none did.
    pub armed_epoch: u32,
    /// Newest epoch in which a fault hit this state.
    pub last_fault_epoch: u32,
    /// Newest epoch in which an mprotect produced this state.
    pub mprotect_epoch: u32,
    /// All [`crate::classify::MprotectChange`] bits of the calls that produced this state.
    pub mprotect_changes: u32,
    /// Successful `mprotect_fixup` calls that produced this state.
    pub mprotects: u64,
    /// Handled write-notify faults on PTEs, by [`epoch_cell`].
    pub faults: [u64; EPOCH_CELLS],
    /// Handled write-notify faults on PMDs, by [`epoch_cell`].
    pub huge_faults: [u64; EPOCH_CELLS],
    /// Faults that ended otherwise, by [`crate::classify::Outcome`] (the cell of `Handled` stays 0).
    pub outcomes: [u64; 7],
    /// Newest epoch in which a [`crate::audit::VmaRecord`] was sent for this state.
    pub reported_epoch: u32,
    /// `i_mmap_writable` of the mapped file at the last clear: shared mappings of it, this one included. 0 for a
    /// private VMA.
    pub shared_mappings: u32,
    /// `vm_pgoff`, in pages.
    pub offset: u64,
    /// `vm_end` in the [`crate::audit::VmaRecord`] of [`VmaRow::reported_epoch`].
    pub reported_end: u64,
    /// [`clear_mark`]s of the last clears that met this state, by [`clear_cell`].
    pub clears: [u64; CLEAR_MARKS],
}

/// Clears that a row remembers. A tracker that clears this often before the daemon looks at the rows takes the mark of
/// the oldest; the daemon then does not know which VMAs that clear met, and says so.
pub const CLEAR_MARKS: usize = 4;

/// The place of an epoch's mark within [`VmaRow::clears`].
#[inline(always)]
#[must_use]
pub const fn clear_cell(epoch: u32) -> usize {
    epoch as usize % CLEAR_MARKS
}

/// The mark of a clear that opened `epoch` and met the state with this `vm_end`, which is page aligned: the low twelve bits
/// hold those of the epoch's number.
#[inline(always)]
#[must_use]
pub const fn clear_mark(end: u64, epoch: u32) -> u64 {
    (end & !0xfff) | (epoch as u64 & 0xfff)
}

impl VmaRow {
    /// The clears that the row remembers: epoch and `vm_end` of each, in no order.
    pub fn met_by(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let newest = self.armed_epoch;
        self.clears
            .iter()
            .filter(|&&mark| mark != 0)
            .filter_map(move |mark| {
                let back = newest.wrapping_sub((mark & 0xfff) as u32) & 0xfff;
                let epoch = newest.checked_sub(back)?;
                (epoch != 0 && (back as usize) < CLEAR_MARKS).then_some((epoch, mark & !0xfff))
            })
    }
}

/// Size of a row in bytes.
pub const ROW_SIZE: usize = size_of::<VmaRow>();
const _: () = assert!(ROW_SIZE.is_multiple_of(64));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::Outcome;

    #[test]
    fn a_row_has_a_cell_for_every_outcome() {
        assert_eq!(VmaRow::default().outcomes.len(), Outcome::ALL.len());
    }

    #[test]
    fn a_row_remembers_its_last_clears() {
        extern crate std;
        use std::vec::Vec;
        let mut row = VmaRow::default();
        assert_eq!(row.met_by().count(), 0);
        for epoch in [0xffe, 0xfff, 0x1000, 0x1001, 0x1002] {
            row.armed_epoch = epoch;
            row.clears[clear_cell(epoch)] = clear_mark(u64::from(epoch) << 12, epoch);
        }
        let mut met: Vec<_> = row.met_by().collect();
        met.sort_unstable();
        let expected: Vec<_> = (0xfff..=0x1002)
            .map(|epoch| (epoch, u64::from(epoch) << 12))
            .collect();
        assert_eq!(met, expected);
        // What a clear long ago has left is not taken for one of the last.
        row.armed_epoch = 0x1006;
        row.clears[clear_cell(0x1006)] = clear_mark(0x5000, 0x1006);
        assert_eq!(row.met_by().collect::<Vec<_>>(), [(0x1006, 0x5000)]);
    }

    #[test]
    fn eight_epochs_in_a_row_have_cells_of_their_own() {
        let mut cells = [false; EPOCH_CELLS];
        for epoch in 1000..1000 + u32::try_from(EPOCH_CELLS).unwrap() {
            cells[epoch_cell(epoch)] = true;
        }
        assert_eq!(cells, [true; EPOCH_CELLS]);
    }
}
