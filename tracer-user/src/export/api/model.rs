//! What the answers of the JSON API look like. docs/openapi.json is made from here.
//!
//! Addresses are hexadecimal strings. Times that end in `_ns` are nanoseconds of the monotonic clock of the traced machine
//! (`start_ns`: since the boot), those that end in `_unix` are seconds since 1970.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::detectors::{CauseBrief, Class, Detection, Evidence, Hex, Incident, Moment, Reason, Verdict};

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub struct List<T> {
    /// The page.
    pub items: Vec<T>,
    /// To be given as `cursor` for the page after this one; `null` at the end.
    pub next_cursor: Option<String>,
}

/// Whether an address space is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpaceState {
    /// It is.
    Live,
    /// It was torn down, by exec or exit.
    Ended,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Container {
    /// `docker`, `containerd`, `crio`, `podman` or `kubernetes`.
    pub runtime: String,
    /// Its id.
    pub id: String,
}

/// Who cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tracker {
    /// Process id in sdtrace's pid namespace; `null` where it is not visible there.
    pub pid: Option<u32>,
    /// Process id in the initial pid namespace.
    pub initial_pid: u32,
    /// Name.
    pub comm: String,
}

/// Finished epochs by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EpochCounts {
    /// Every check complete, nothing found.
    pub trusted: u64,
    /// Something could be missed, or could not be checked.
    pub suspect: u64,
    /// A write was missed.
    pub broken: u64,
}

/// A tracked process: one address space. A process that calls exec gets another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Small number that names the address space as long as this sdtrace runs.
    pub id: u64,
    /// The kernel side's stable id of the address space.
    pub birth: u64,
    /// Process id in sdtrace's pid namespace; `null` where it is not visible there, or while it is not known whose it is.
    pub pid: Option<u32>,
    /// Process id in the initial pid namespace; `null` while it is not known whose it is.
    pub initial_pid: Option<u32>,
    /// Start of the process in nanoseconds since the boot; with the pid it names a process for good.
    pub start_ns: Option<u64>,
    /// Name.
    pub comm: Option<String>,
    /// Path of its cgroup, if it could be read while it lived.
    pub cgroup: Option<String>,
    /// The container that the cgroup tells of.
    pub container: Option<Container>,
    /// Whether it is still there.
    pub state: SpaceState,
    /// When it was torn down.
    pub ended_ns: Option<u64>,
    /// How it came to be tracked: `clear`, `adopted` (armed before sdtrace started), `fork` or `unknown`.
    pub origin: String,
    /// Number of the open epoch.
    pub epoch: Option<u32>,
    /// Verdict of the open epoch, as far as is known now.
    pub verdict: Option<Verdict>,
    /// Verdict of the newest finished epoch.
    pub last_verdict: Option<Verdict>,
    /// All its finished epochs, those included that are not listed any more.
    pub epochs: EpochCounts,
    /// Pages whose write was missed, over all epochs, each once for each epoch.
    pub missed_pages: u64,
    /// Pages whose next write is missed, in the open epoch.
    pub exposed_pages: u64,
    /// Bytes that soft-dirty cannot track, in the open epoch.
    pub blind_bytes: u64,
    /// Pages that the target threw away, in the open epoch.
    pub dropped_pages: u64,
    /// Handled write-notify faults, over all epochs; one for a huge page.
    pub write_notify_faults: u64,
    /// When it was cleared last.
    pub last_clear_unix: Option<Moment>,
    /// Who cleared it last.
    pub tracker: Option<Tracker>,
}

/// One process, and what is found in its open epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessDetail {
    /// The same as in the list.
    #[serde(flatten)]
    pub process: Process,
    /// What is known of the open epoch, as far as is known now.
    pub detection: Option<Detection>,
}

/// An epoch: from one clear to the next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Epoch {
    /// Number within the address space, from 1.
    pub number: u32,
    /// `clear`, `adopted`, `fork` or `unseen` (its record is missing or on its way).
    pub opened_by: String,
    /// When, monotonic: the return of `clear_refs_write`.
    pub opened_ns: Option<u64>,
    /// When, wall clock.
    pub opened_unix: Option<Moment>,
    /// `clear_same_tracker`, `clear_other_tracker`, `clear_first`, `exec`, `exit`, `unknown`; `null` while it is open.
    pub ended_by: Option<String>,
    /// When it ended, monotonic.
    pub ended_ns: Option<u64>,
    /// Who made the clear that opened it.
    pub tracker: Option<Tracker>,
    /// May a tracker rely on it? Until it is final: as far as is known now. `null` if the detectors know nothing of it.
    pub verdict: Option<Verdict>,
    /// Nothing can change any more.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Why it is not trusted.
    pub reasons: Vec<Reason>,
    /// What was found, by cause and evidence.
    pub causes: Vec<CauseBrief>,
    /// Handled write-notify faults; one for a huge page.
    pub write_notify_faults: u64,
    /// Pages whose write was missed.
    pub missed_pages: u64,
    /// Pages whose next write is missed.
    pub exposed_pages: u64,
    /// Bytes that soft-dirty cannot track.
    pub blind_bytes: u64,
    /// Pages that the target threw away; no reason against trust.
    pub dropped_pages: u64,
    /// From the first VMA to the return of the clear that opened it: how long `mmap_lock` kept the target out.
    pub hold_seconds: Option<f64>,
    /// Bytes of VMAs that this clear armed.
    pub armed_bytes: Option<u64>,
}

/// One epoch with all that is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EpochDetail {
    /// The same as in the list.
    #[serde(flatten)]
    pub epoch: Epoch,
    /// The verdict with its reasons, what was found where, and what was checked; `null` if the detectors know nothing of it.
    pub detection: Option<Detection>,
}

/// Addresses to dump again, from `start` up to and without `end`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RangeFound {
    /// First address.
    pub start: Hex,
    /// First address behind.
    pub end: Hex,
    /// A heading of docs/causes.md, or `unknown_cause`; `null` where pages were moved and nobody has looked at them.
    pub cause: Option<String>,
    /// How we know.
    pub evidence: Option<Evidence>,
}

/// Address ranges to dump in full, whatever the bits say. One of several causes may be listed for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ranges {
    /// Number of the epoch.
    pub epoch: u32,
    /// Nothing can change any more.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The ranges are not enough: dump everything in full. So it is where a check could not be completed, memory is
    /// blind, a cause has no addresses, or the ranges were given up to save memory.
    pub dump_everything: bool,
    /// The ranges were joined over gaps to keep the list short: they have more than was found, never less.
    pub ranges_joined: bool,
    /// A page of the ranges, by address.
    pub items: Vec<RangeFound>,
    /// To be given as `cursor` for the page after this one; `null` at the end.
    pub next_cursor: Option<String>,
}

/// A page of incidents, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Incidents {
    /// The page; docs/incidents.md explains the objects.
    pub items: Vec<Incident>,
    /// To be given as `cursor` for the page after this one; `null` at the end.
    pub next_cursor: Option<String>,
    /// Older incidents that are not kept any more; the incident log has them.
    pub forgotten: u64,
}

/// A probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// The kernel function or tracepoint.
    pub probe: String,
    /// Whether sdtrace cannot work without it.
    pub required: bool,
    /// `attached`, `unsupported` or `broken`.
    pub verdict: String,
    /// How it is attached: `fentry` or `kprobe`.
    pub mechanism: Option<String>,
    /// Why it is not, or why not by the mechanism that was tried first.
    pub why: Option<String>,
}

/// Something that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// The stage, as the label of `sdtrace_lost_records_total` in docs/metrics.md names it; `undecodable`;
    /// `missed_probe_runs`.
    pub stage: String,
    /// How often since the start.
    pub count: u64,
}

/// How full a bounded map of the kernel side is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Name.
    pub map: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries that there are.
    pub capacity: u64,
}

/// The kernel, and how sdtrace gets along with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// Version of sdtrace.
    pub sdtrace_version: String,
    /// Random name of this boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: Option<String>,
    /// Inode of sdtrace's pid namespace, to which every `pid` belongs.
    pub pid_namespace: Option<u64>,
    /// Everything that was asked for works.
    pub ready: bool,
    /// Why not, one line each.
    pub reasons: Vec<String>,
    /// Whether the ledger has everything that happened since the start.
    pub complete: bool,
    /// The probes.
    pub probes: Vec<Probe>,
    /// What was lost, every stage.
    pub losses: Vec<Loss>,
    /// Programs whose runs this kernel may skip without counting it.
    pub uncounted_probes: u64,
    /// How full the bounded maps are.
    pub maps: Vec<Usage>,
}

/// A mechanism that makes soft-dirty miss a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CauseInfo {
    /// Its stable name: a heading of docs/causes.md, or `unknown_cause`.
    pub name: String,
    /// Its class.
    pub class: Class,
    /// A short title.
    pub title: String,
    /// What happens; Markdown.
    pub summary: String,
    /// In which kernels; Markdown.
    pub kernels: Option<String>,
    /// What a user can do; Markdown.
    pub remedy: Option<String>,
    /// Where it is explained.
    pub link: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorAnswer {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDetail {
    /// `bad_request`, `not_found`, `method_not_allowed`, `starting`, `ending`, `late` or `internal`.
    pub code: String,
    /// One line with what to do.
    pub message: String,
}
