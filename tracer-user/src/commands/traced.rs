//! The probes as the ledger sees them.

use std::cell::Cell;
use std::collections::HashSet;
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::Result;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracer_common::table::{VmaKey, VmaRow};

use crate::ledger::{LiveAddressSpaces, VmaTable};
use crate::probes::Probes;
use crate::probes::object::possible_cpus;

/// Rows that the self-test used and gave back, far more than it has VMAs.
const SELF_TEST_ROWS: u32 = 1024;

/// The probes as the ledger sees them.
///
/// Rows that were never used lie behind all others: the programs take free rows from a stack with the lowest
/// number on top. A CPU that loses a race for a row gives it back at once. So behind the highest row that was
/// met in use, a hole among the rows in use is at most as long as there are CPUs, or as the self-test left it.
pub(super) struct Kernel {
    pub(super) probes: Probes,
    /// One more than the highest row that was met in use.
    high_water: Cell<u32>,
    longest_hole: u32,
}

impl Kernel {
    pub(super) fn new(probes: Probes) -> Self {
        // If the number of CPUs cannot be told, every row is looked at every time.
        let cpus = possible_cpus().unwrap_or(u32::MAX);
        Self {
            probes,
            high_water: Cell::new(0),
            longest_hole: cpus.saturating_add(SELF_TEST_ROWS),
        }
    }
}

impl Kernel {
    /// Of every row only the first word is read, until it is known to be wanted.
    fn for_each_with(&self, wanted: impl Fn(u64) -> bool, visit: &mut dyn FnMut(u32, &VmaRow)) {
        let mut end = self.high_water.get();
        for slot in 0..self.capacity() {
            if slot >= end.saturating_add(self.longest_hole) {
                break;
            }
            let birth = self.probes.rows().birth(slot);
            if birth == 0 {
                continue;
            }
            end = end.max(slot + 1);
            if wanted(birth) {
                visit(slot, &self.row(slot));
            }
        }
        self.high_water.set(end);
    }
}

impl VmaTable for Kernel {
    fn capacity(&self) -> u32 {
        self.probes.rows().capacity()
    }

    fn row(&self, slot: u32) -> VmaRow {
        self.probes.rows().row(slot)
    }

    fn for_each_used(&self, visit: &mut dyn FnMut(u32, &VmaRow)) {
        self.for_each_with(|_| true, visit);
    }

    fn for_each_of(&self, births: &HashSet<u64>, visit: &mut dyn FnMut(u32, &VmaRow)) {
        self.for_each_with(|birth| births.contains(&birth), visit);
    }

    fn retire(&mut self, _slot: u32, key: &VmaKey) -> Result<()> {
        self.probes.retire_row(key)
    }

    fn recycle(&mut self, slot: u32) -> Result<()> {
        self.probes.recycle_row(slot)
    }
}

impl LiveAddressSpaces for Kernel {
    fn live_births(&mut self) -> Result<Vec<u64>> {
        self.probes.live_births()
    }
}

/// A descriptor of the ring buffer of our own, to wait for records.
pub(super) fn records_to_wait_for(probes: &Probes) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the probes hold the descriptor open, and outlive this borrow of it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(probes.records_fd()) };
    let owned = borrowed.try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` gives the same open descriptor as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(owned, Interest::READABLE) }?)
}
