//! From the ledger to what is shown: the dump, and the few numbers that metrics need.

use std::collections::BTreeMap;

use tracer_common::classify::{Outcome, ProtectionState};
use tracer_common::flags::{PTE_WRITE, is_armed, smaps_names};
use tracer_common::records::{
    CLEAR_FILTERED, CLEAR_REACHED_NOTHING, CLEAR_UNTRACKED, ClearRecord, TaskIdentity,
};
use tracer_common::table::VmaKey;

use super::counts::{Counts, change_names, fault_counter, fault_kind_labels};
use super::epoch::{EndReason, Epoch, Opening, VmaEntry, kind_of};
use super::space::{Origin, Phase, Space};
use super::{Clock, Ledger, dump};

/// What the dump says about where it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Release of the kernel.
    pub kernel: String,
    /// Inode of sdtrace's pid namespace.
    pub pid_namespace: u64,
}

/// The ledger in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Live address spaces, by the place of their origin in [`Origin::ALL`].
    pub live: [u64; Origin::ALL.len()],
    /// Epochs that are open.
    pub open: u64,
    /// Epochs that ended and whose counts may still grow.
    pub closing: u64,
    /// Epochs that are final and kept in detail.
    pub settled: u64,
    /// Epochs that ended, by the place of their reason in [`EndReason::ALL`].
    pub ended: [u64; EndReason::ALL.len()],
    /// Ended address spaces that were given up to save memory.
    pub folded_spaces: u64,
    /// Epochs that were given up to save memory.
    pub folded_epochs: u64,
    /// VMA states that were given up to save memory.
    pub folded_vmas: u64,
    /// Rows of the table that are in use.
    pub rows: u64,
    /// Whether something is missing.
    pub incomplete: bool,
}

impl Ledger {
    /// The ledger in numbers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut summary = Summary {
            ended: self.ends,
            folded_spaces: self.folded_spaces,
            folded_epochs: self.folded_epochs,
            folded_vmas: self.folded_vmas,
            rows: self.rows.len() as u64,
            incomplete: !self.incomplete().is_empty(),
            ..Summary::default()
        };
        for space in self.spaces.values() {
            let live = space.phase == Phase::Live;
            if live && let Some(at) = Origin::ALL.iter().position(|&origin| origin == space.origin) {
                summary.live[at] += 1;
            }
            summary.settled += space.epochs.len() as u64;
            for epoch in space.unsettled() {
                summary.settled -= 1;
                if live && epoch.number == space.newest() {
                    summary.open += 1;
                } else {
                    summary.closing += 1;
                }
            }
        }
        summary
    }

    /// Everything that rows have counted, wherever it is kept now.
    #[must_use]
    pub fn total(&self) -> Counts {
        let mut total = self.folded;
        total.add(&self.pending());
        for space in self.spaces.values() {
            total.add(&space.counts());
        }
        total
    }

    /// What rows have counted for epochs whose record has not arrived.
    #[must_use]
    pub fn pending(&self) -> Counts {
        let mut pending = Counts::default();
        for waiting in self.rows.values().filter_map(|row| row.pending.as_deref()) {
            pending.add(waiting);
        }
        pending
    }

    /// The whole ledger, as of the last [`Ledger::look`]. `unlinked_faults` is the kernel's counter.
    #[must_use]
    pub fn dump(
        &self,
        capacity: u32,
        unlinked_faults: u64,
        surroundings: &Surroundings,
        clock: &dyn Clock,
    ) -> dump::Dump {
        let taken_ns = clock.monotonic_ns();
        let incomplete: Vec<_> = self
            .incomplete()
            .into_iter()
            .map(|reason| dump::Reason {
                reason: reason.reason.to_owned(),
                count: reason.count,
            })
            .collect();
        let count = |rows: usize| u32::try_from(rows).unwrap_or(u32::MAX);
        dump::Dump {
            format: dump::FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: surroundings.kernel.clone(),
            pid_namespace: surroundings.pid_namespace,
            taken_unix: seconds(clock.unix_ns(taken_ns)),
            taken_ns,
            complete: incomplete.is_empty(),
            incomplete,
            uncounted_probes: self.uncounted_probes(),
            total: sum(&self.total()),
            unlinked_faults,
            pending: sum(&self.pending()),
            folded: dump::Folded {
                address_spaces: self.folded_spaces,
                epochs: self.folded_epochs,
                vmas: self.folded_vmas,
                sum: sum(&self.folded),
            },
            rows: dump::Rows {
                used: count(self.rows.len()),
                retired: count(self.rows.values().filter(|row| row.retired_at.is_some()).count()),
                capacity,
            },
            address_spaces: self
                .spaces
                .values()
                .map(|space| self.address_space(space, clock))
                .collect(),
            other_clears: self.other_clears.iter().map(other_clear).collect(),
        }
    }

    fn address_space(&self, space: &Space, clock: &dyn Clock) -> dump::AddressSpace {
        let (state, ended_ns) = match space.phase {
            Phase::Live => ("live", None),
            Phase::Ending { at_ns, .. } => ("ending", Some(at_ns)),
            Phase::Ended { at_ns } => ("ended", Some(at_ns)),
        };
        let forked = space.parent_birth != 0;
        dump::AddressSpace {
            id: space.id,
            birth: space.birth,
            origin: space.origin.label().to_owned(),
            parent: self.ids.get(&space.parent_birth).copied(),
            parent_epoch: forked.then_some(space.parent_epoch),
            process: space.owner.as_ref().map(|owner| dump::Process {
                cgroup: space.details.as_ref().map(|details| details.cgroup.clone()),
                ..process(owner)
            }),
            state: state.to_owned(),
            ended_ns,
            total: sum(&space.counts()),
            folded_epochs: space.folded_epochs,
            unseen_epochs: space.unseen_epochs,
            epochs: space
                .epochs
                .iter()
                .map(|epoch| epoch_dump(epoch, clock))
                .collect(),
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a 64-bit float keeps times of this century to 0.3 µs, and durations better"
)]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// The name in a zero-padded `comm`; bytes that are no UTF-8 are replaced.
pub(super) fn comm(raw: &[u8]) -> String {
    let end = raw.iter().position(|&byte| byte == 0).unwrap_or(raw.len());
    String::from_utf8_lossy(&raw[..end]).into_owned()
}

fn process(task: &TaskIdentity) -> dump::Process {
    dump::Process {
        pid: (task.pid != 0).then_some(task.pid),
        initial_pid: task.initial_pid,
        tid: (task.tid != 0).then_some(task.tid),
        start_ns: task.start_ns,
        comm: comm(&task.comm),
        cgroup: None,
    }
}

/// Wait and hold of a clear in nanoseconds; `None` if it reached no VMA.
pub(crate) fn clear_times(record: &ClearRecord) -> Option<(u64, u64)> {
    (record.first_walk_ns != 0).then(|| {
        (
            record.first_walk_ns.saturating_sub(record.entry_ns),
            record.header.time_ns.saturating_sub(record.first_walk_ns),
        )
    })
}

fn clear(record: &ClearRecord) -> dump::Clear {
    let times = clear_times(record);
    dump::Clear {
        tracker: process(&record.tracker),
        result: record.result,
        wait_seconds: times.map(|(wait, _)| seconds(wait)),
        hold_seconds: times.map(|(_, hold)| seconds(hold)),
        armed_bytes: record.armed_bytes,
        vmas: record.vmas,
    }
}

/// How a clear ended: a label of the metric of clears.
pub(crate) fn clear_result(record: &ClearRecord) -> &'static str {
    match record.status {
        _ if record.result < 0 => "failed",
        CLEAR_FILTERED => "filtered",
        CLEAR_UNTRACKED => "untracked",
        CLEAR_REACHED_NOTHING => "reached_nothing",
        _ => "tracked",
    }
}

/// Every value of [`clear_result`].
pub(crate) const CLEAR_RESULTS: [&str; 5] = ["tracked", "filtered", "untracked", "reached_nothing", "failed"];

fn other_clear(record: &ClearRecord) -> dump::OtherClear {
    dump::OtherClear {
        why: clear_result(record).to_owned(),
        at_ns: record.header.time_ns,
        target: process(&record.target),
        clear: clear(record),
    }
}

fn epoch_dump(epoch: &Epoch, clock: &dyn Clock) -> dump::Epoch {
    let (opened_by, opened_ns, clear) = match &epoch.opening {
        Opening::Clear(record) => ("clear", Some(record.header.time_ns), Some(clear(record))),
        Opening::Adopted(at) => ("adopted", Some(*at), None),
        Opening::Fork(at) => ("fork", Some(*at), None),
        Opening::Unseen => ("unseen", None, None),
    };
    dump::Epoch {
        number: epoch.number,
        opened_by: opened_by.to_owned(),
        opened_ns,
        opened_unix: opened_ns.map(|at| seconds(clock.unix_ns(at))),
        clear,
        ended_by: epoch.end.map(|end| end.reason.label().to_owned()),
        ended_ns: epoch.end.map(|end| end.at_ns),
        settled: epoch.settled,
        uncertain: epoch.uncertain,
        vmas_complete: epoch.vmas_complete,
        folded_vmas: epoch.folded_vmas,
        total: sum(&epoch.counts()),
        vmas: epoch.vmas.iter().map(|(key, entry)| vma(key, entry)).collect(),
        detection: None,
    }
}

fn vma(key: &VmaKey, entry: &VmaEntry) -> dump::Vma {
    let file = entry.inode != 0 || entry.device != 0;
    dump::Vma {
        start: key.start,
        end: entry.end,
        flags: smaps_names(key.flags).map(str::to_owned).collect(),
        vm_flags: key.flags,
        page_prot: key.page_prot,
        page_prot_writable: key.page_prot & PTE_WRITE != 0,
        armed: is_armed(key.flags),
        armed_at_clear: entry.armed_at_clear,
        kind: kind_of(entry.kind).label().to_owned(),
        inode: file.then_some(entry.inode),
        // The kernel's own dev_t (include/linux/kdev_t.h): twenty bits of minor number.
        device: file.then(|| format!("{:02x}:{:02x}", entry.device >> 20, entry.device & 0xf_ffff)),
        faults: entry.faults,
        huge_faults: entry.huge_faults,
        outcomes: outcomes(&entry.outcomes),
        mprotects: entry.mprotects,
        mprotect_changes: change_names(entry.changes).map(str::to_owned).collect(),
    }
}

/// Outcomes that happened, by name.
fn outcomes(counts: &[u64; Outcome::ALL.len()]) -> BTreeMap<String, u64> {
    Outcome::ALL
        .into_iter()
        .map(|outcome| (outcome.label().to_owned(), counts[outcome as usize]))
        .filter(|&(_, count)| count > 0)
        .collect()
}

fn sum(counts: &Counts) -> dump::Sum {
    let mut by_kind = BTreeMap::new();
    for (at, kind) in fault_kind_labels().into_iter().enumerate() {
        let states: BTreeMap<_, _> = ProtectionState::ALL
            .into_iter()
            .map(|state| {
                let count = counts.get(fault_counter(at, state)).unwrap_or(0);
                (state.label().to_owned(), count)
            })
            .filter(|&(_, count)| count > 0)
            .collect();
        if !states.is_empty() {
            by_kind.insert(kind.to_owned(), states);
        }
    }
    dump::Sum {
        faults: counts.faults(),
        huge_faults: counts.huge_faults(),
        by_kind,
        outcomes: outcomes(counts.outcomes()),
        mprotects: counts.mprotects(),
    }
}
