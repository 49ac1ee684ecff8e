//! Where the ledger's facts come from: small traits, so that everything in the ledger is pure.

use std::collections::HashSet;

use anyhow::Result;
use tracer_common::table::{VmaKey, VmaRow};

/// The table of VMA rows that the programs fill and the daemon maps into its memory.
pub trait VmaTable {
    /// Rows that the table can hold.
    fn capacity(&self) -> u32;

    /// A copy of one row. Every call reads the memory anew.
    fn row(&self, slot: u32) -> VmaRow;

    /// Calls `visit` with a copy of every row that has a key.
    fn for_each_used(&self, visit: &mut dyn FnMut(u32, &VmaRow));

    /// The same for the rows of these address spaces only.
    fn for_each_of(&self, births: &HashSet<u64>, visit: &mut dyn FnMut(u32, &VmaRow)) {
        self.for_each_used(&mut |slot, row| {
            if births.contains(&row.key.birth) {
                visit(slot, row);
            }
        });
    }

    /// Takes the row's key out of the index: the programs do not find the row any more, but one that found
    /// it a moment ago may still count in it.
    ///
    /// # Errors
    /// Whatever the kernel answers.
    fn retire(&mut self, slot: u32, key: &VmaKey) -> Result<()>;

    /// Zeroes a retired row and gives it back to the programs.
    ///
    /// # Errors
    /// Whatever the kernel answers.
    fn recycle(&mut self, slot: u32) -> Result<()>;
}

/// The kernel's own list of tracked address spaces. Reading it takes bpf(2) calls, which make kprobe programs
/// on that CPU be skipped, so the ledger asks only after records were lost.
pub trait LiveAddressSpaces {
    /// The stable ids of all tracked address spaces.
    ///
    /// # Errors
    /// Whatever the kernel answers.
    fn live_births(&mut self) -> Result<Vec<u64>>;
}

/// What /proc tells about a process beyond the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessDetails {
    /// Name of the process now; it may have changed since the record.
    pub comm: String,
    /// Path in the cgroup hierarchy (version 2; else the first version 1 hierarchy).
    pub cgroup: String,
}

/// Looks up processes.
pub trait ProcessInfo {
    /// The details of process `pid` (in sdtrace's own pid namespace), or `None` when it is gone: a process with
    /// this pid that did not start at `start_ns` nanoseconds after the boot is another one.
    fn look_up(&self, pid: u32, start_ns: u64) -> Option<ProcessDetails>;
}

/// The two clocks that records and people use.
pub trait Clock {
    /// The monotonic clock (`CLOCK_MONOTONIC`, which `bpf_ktime_get_ns` reads) in nanoseconds.
    fn monotonic_ns(&self) -> u64;

    /// Nanoseconds since 1970 at this moment of the monotonic clock.
    fn unix_ns(&self, monotonic_ns: u64) -> u64;
}
