//! What the workload says about itself, one line of JSON for each command.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An answer of the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The memory is set up.
    Ready {
        /// The workload's process id.
        pid: u32,
    },
    /// It cleared its own soft-dirty bits.
    Cleared,
    /// It acted.
    Acted(Report),
    /// Something did not work.
    Failed(String),
}

/// What one process did since its last clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Process id.
    pub pid: u32,
    /// The memory it wrote to.
    pub areas: Vec<AreaReport>,
    /// Processes it forked that did something themselves.
    pub children: Vec<Self>,
}

/// What one process did to one piece of memory since its last clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaReport {
    /// What it is for.
    pub name: String,
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// Kind as the ledger should name it.
    pub kind: String,
    /// Inode number of the mapped file, where the workload knows it.
    pub inode: Option<u64>,
    /// Pages that should be soft-dirty at the end: those that the workload wrote to since the clear, and those
    /// that the kernel is known to mark with them.
    pub written: u64,
    /// Pages that `/proc/self/pagemap` shows soft-dirty at the end.
    pub soft_dirty: u64,
    /// The states that the VMAs in it went through, as the ledger should list them.
    pub states: Vec<State>,
}

/// One state of one VMA: what makes a row of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `vm_start`.
    pub start: u64,
    /// `vm_end` when the state was last met.
    pub end: u64,
    /// Names of the flags, sorted.
    pub flags: Vec<String>,
    /// Whether the clear met it.
    pub armed_at_clear: bool,
    /// Writes to present, write-protected pages that were not soft-dirty.
    pub faults: u64,
    /// The same on huge pages, one for each.
    pub huge_faults: u64,
    /// Successful mprotect calls that produced this state.
    pub mprotects: u64,
    /// What those calls changed, sorted.
    pub mprotect_changes: Vec<String>,
    /// Faults that ended otherwise, by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Faults that the kernel may have asked to be repeated (`VM_FAULT_RETRY`): whether it does depends on which
    /// lock it took.
    pub retries_at_most: u64,
}
