//! The ledger as JSON: what `/debug/ledger` answers and `sdtrace dump` prints.
//!
//! Addresses, flags and page protections are hexadecimal strings (`"0x7f00"`): JSON numbers of 64 bits do not
//! survive every reader. Times that end in `_ns` are nanoseconds of the monotonic clock of the traced machine;
//! those that end in `_unix` are seconds since 1970.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::detectors::Detection;

/// Version of this format; it rises when a field changes its meaning or goes.
pub const FORMAT: u32 = 1;

/// The whole ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dump {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of sdtrace.
    pub version: String,
    /// Release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// Inode of the pid namespace that all pids except `initial_pid` belong to.
    pub pid_namespace: u64,
    /// When the dump was made.
    pub taken_unix: f64,
    /// The same moment on the monotonic clock.
    pub taken_ns: u64,
    /// Whether everything that happened since the start is in here.
    pub complete: bool,
    /// Why not.
    pub incomplete: Vec<Reason>,
    /// Programs whose runs this kernel may skip without counting it; [`Dump::complete`] cannot speak of those.
    pub uncounted_probes: u64,
    /// Sum over everything that rows counted, what was folded and what is pending included. With
    /// [`Dump::unlinked_faults`] it equals the metrics.
    pub total: Sum,
    /// Handled faults that the programs could link to no row.
    pub unlinked_faults: u64,
    /// Counted in rows for epochs whose record has not arrived yet; part of [`Dump::total`].
    pub pending: Sum,
    /// Given up to keep memory bounded.
    pub folded: Folded,
    /// The table of rows.
    pub rows: Rows,
    /// Tracked address spaces and the newest of those that ended, in the order in which they were met.
    pub address_spaces: Vec<AddressSpace>,
    /// The newest clears that opened no epoch.
    pub other_clears: Vec<OtherClear>,
}

/// One reason why something is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stage of `sdtrace_lost_records_total` (docs/metrics.md), or `missed_probe_runs`, `missing_records`,
    /// `missing_exits`, `inconsistent`.
    pub reason: String,
    /// How often it happened.
    pub count: u64,
}

/// A sum of counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Handled write-notify faults on PTEs.
    pub faults: u64,
    /// Handled write-notify faults on PMDs (one for 512 pages).
    pub huge_faults: u64,
    /// Both, by kind of VMA (`huge` for PMDs) and then by protection state, as the metric's labels name them.
    pub by_kind: BTreeMap<String, BTreeMap<String, u64>>,
    /// Faults that ended otherwise, by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// Successful mprotect calls.
    pub mprotects: u64,
}

/// What was given up to keep memory bounded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folded {
    /// Ended address spaces.
    pub address_spaces: u64,
    /// Closed epochs.
    pub epochs: u64,
    /// VMA states of epochs that are still listed.
    pub vmas: u64,
    /// What the address spaces that are not listed any more had counted.
    pub sum: Sum,
}

/// The table of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Rows with a key.
    pub used: u32,
    /// Of these, rows in quarantine before they are given back.
    pub retired: u32,
    /// Rows that there are.
    pub capacity: u32,
}

/// One address space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressSpace {
    /// Small number that names it as long as this sdtrace runs.
    pub id: u64,
    /// The kernel side's stable id: monotonic nanoseconds of the first meeting, low twelve bits the CPU.
    pub birth: u64,
    /// `clear`, `adopted`, `fork` or `unknown`.
    pub origin: String,
    /// The address space it was forked from, if that one is known.
    pub parent: Option<u64>,
    /// The parent's epoch at the fork.
    pub parent_epoch: Option<u32>,
    /// Whose it is.
    pub process: Option<Process>,
    /// `live`, `ending` (torn down, late counts are still taken in) or `ended`.
    pub state: String,
    /// When it was torn down.
    pub ended_ns: Option<u64>,
    /// Sum over all its epochs, the folded ones included.
    pub total: Sum,
    /// Epochs that are not listed any more.
    pub folded_epochs: u64,
    /// Epochs that no record told of.
    pub unseen_epochs: u64,
    /// The newest epochs, oldest first.
    pub epochs: Vec<Epoch>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in sdtrace's pid namespace; `null` where it is not visible there.
    pub pid: Option<u32>,
    /// Process id in the initial pid namespace.
    pub initial_pid: u32,
    /// Thread id in sdtrace's pid namespace.
    pub tid: Option<u32>,
    /// Start of the process in nanoseconds since the boot; with the pid it names a process for good.
    pub start_ns: u64,
    /// Name at the first record.
    pub comm: String,
    /// Path of its cgroup, if it could be read while it lived.
    pub cgroup: Option<String>,
}

/// One epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Number within the address space, from 1.
    pub number: u32,
    /// `clear`, `adopted`, `fork` or `unseen` (its record is missing or still on its way).
    pub opened_by: String,
    /// When, monotonic: the return of `clear_refs_write`.
    pub opened_ns: Option<u64>,
    /// When, wall clock.
    pub opened_unix: Option<f64>,
    /// About the clear that opened it.
    pub clear: Option<Clear>,
    /// How it ended: `clear_same_tracker`, `clear_other_tracker`, `clear_first`, `exec`, `exit`, `unknown`;
    /// `null` while it is open.
    pub ended_by: Option<String>,
    /// When it ended, monotonic.
    pub ended_ns: Option<u64>,
    /// Its counts are final.
    pub settled: bool,
    /// Two epochs used one counter cell at the same time: their sum is right, their division is not known.
    pub uncertain: bool,
    /// Every VMA that the clear met is listed, unless some are folded.
    pub vmas_complete: bool,
    /// VMA states that are not listed any more.
    pub folded_vmas: u64,
    /// Sum over its VMA states, the folded ones included.
    pub total: Sum,
    /// VMA states that its clear, a fault or an mprotect met, by address.
    pub vmas: Vec<Vma>,
    /// What the detectors say; `null` if they know nothing of it.
    pub detection: Option<Detection>,
}

/// A clear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clear {
    /// Who cleared.
    pub tracker: Process,
    /// What `clear_refs_write` returned: bytes written, or a negative error number.
    pub result: i64,
    /// From the entry to the first VMA, in seconds: `null` if it reached none.
    pub wait_seconds: Option<f64>,
    /// From the first VMA to the return, in seconds: how long `mmap_lock` kept the target out.
    pub hold_seconds: Option<f64>,
    /// Bytes of VMAs that it armed.
    pub armed_bytes: u64,
    /// VMAs that it walked.
    pub vmas: u32,
}

/// A clear that opened no epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OtherClear {
    /// `filtered`, `untracked`, `reached_nothing` or `failed`.
    pub why: String,
    /// When, monotonic.
    pub at_ns: u64,
    /// Whose address space.
    pub target: Process,
    /// The clear itself.
    pub clear: Clear,
}

/// One state of one VMA in one epoch. A VMA whose flags or page protection change appears once for each state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vma {
    /// First byte.
    #[serde(with = "hex")]
    pub start: u64,
    /// First byte after it, when this state was last met.
    #[serde(with = "hex")]
    pub end: u64,
    /// The flags that sdtrace decodes, as `/proc/PID/smaps` names them.
    pub flags: Vec<String>,
    /// `vm_flags`.
    #[serde(with = "hex")]
    pub vm_flags: u64,
    /// `vm_page_prot`.
    #[serde(with = "hex")]
    pub page_prot: u64,
    /// Whether `vm_page_prot` lets entries be born writable.
    pub page_prot_writable: bool,
    /// `VM_SOFTDIRTY` is clear: writes are being tracked.
    pub armed: bool,
    /// The clear that opened this epoch met this state.
    pub armed_at_clear: bool,
    /// `private_anon`, `shared_anon`, `private_file` or `shared_file`.
    pub kind: String,
    /// Inode number of the mapped file.
    pub inode: Option<u64>,
    /// Device of the mapped file's file system, `major:minor` as /proc prints it.
    pub device: Option<String>,
    /// Handled write-notify faults on PTEs.
    pub faults: u64,
    /// Handled write-notify faults on PMDs.
    pub huge_faults: u64,
    /// Faults that ended otherwise, by outcome. Rows do not count these by epoch: those of the last moments
    /// before a clear's record arrived may be listed one epoch early.
    pub outcomes: BTreeMap<String, u64>,
    /// Successful mprotect calls that produced this state.
    pub mprotects: u64,
    /// What such calls changed, since this state was first met.
    pub mprotect_changes: Vec<String>,
}

/// 64-bit values as hexadecimal strings.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde's `with` passes a reference"
    )]
    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:#x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no hexadecimal number")))
    }
}
