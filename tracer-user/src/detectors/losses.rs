//! What was not seen while an epoch lasted.
//!
//! The counters of losses are of the whole machine. Whatever grew between two samples may have concerned any epoch
//! that lived between them, so each of those is not trusted any more. A sample is taken after the records that were
//! there have been taken in, so an epoch whose end is known has ended before the sample.
//!
//! The kernel counts a run of a probe in the moment in which it skips it. So it concerns no epoch that ended before the
//! last reading of these counters began. Other losses may come to light late, and are held against every epoch that is not
//! finished.

use std::collections::BTreeMap;

use tracer_common::counters::Stage;

use super::Detectors;
use super::epoch::Epoch;
use super::verdict::{LOSSES, Unknown};

/// The counters, as they stand now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// By stage of the programs.
    pub stages: BTreeMap<Stage, u64>,
    /// Bytes from the ring buffer that were no record.
    pub undecodable: u64,
    /// What the ledger misses or finds contradictory.
    pub missing_records: u64,
    /// Runs of probes that the kernel skipped and counted, as they were last read.
    pub missed_runs: u64,
    /// When that reading began, monotonic.
    pub missed_runs_at_ns: u64,
    /// Probes that are needed and are not attached.
    pub unavailable_probes: u64,
    /// Programs whose runs the kernel may skip without counting it.
    pub uncounted_probes: u64,
    /// Since when write faults are watched, monotonic; `None`: from the start on.
    pub watched_since_ns: Option<u64>,
    /// Write faults that have entered and whose return was not seen: address space, and its epoch at the entry.
    pub writes_under_way: Vec<(u64, u32)>,
}

impl Sample {
    fn counts(&self) -> impl Iterator<Item = (Unknown, u64)> {
        let stages = LOSSES.into_iter().map(|stage| {
            let count = self.stages.get(&stage).copied().unwrap_or(0);
            (Unknown::Lost(stage), count)
        });
        stages.chain([
            (Unknown::Undecodable, self.undecodable),
            (Unknown::MissingRecords, self.missing_records),
            (Unknown::MissedProbeRuns, self.missed_runs),
        ])
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    last: BTreeMap<Unknown, u64>,
    missed_runs_at_ns: u64,
    unavailable: u64,
    uncounted: u64,
    watched_since_ns: Option<u64>,
    writes_under_way: Vec<(u64, u32)>,
}

impl State {
    #[cfg(test)]
    pub(super) fn last(&self, reason: Unknown) -> u64 {
        self.last.get(&reason).copied().unwrap_or(0)
    }

    /// How many writes of an epoch that is over may not have been noted: a fault that is still under way a moment after the
    /// end of its epoch, or of the next one, has lost its return.
    pub(super) fn unreturned(&self, birth: u64, number: u32) -> u64 {
        let of_epoch =
            |&&(of, at): &&(u64, u32)| of == birth && (at == number || at.wrapping_add(1) == number);
        self.writes_under_way.iter().filter(of_epoch).count() as u64
    }

    /// Marks an epoch that begins with what is missing already.
    pub(super) fn note_start(&self, epoch: &mut Epoch, opened_ns: u64) {
        epoch.note_unknown(Unknown::ProbeUnavailable, self.unavailable);
        epoch.note_unknown(Unknown::UncountedProbes, self.uncounted);
        if self.watched_since_ns.is_some_and(|since| opened_ns < since) {
            epoch.note_unknown(Unknown::WatchStartedLate, 1);
        }
    }
}

impl Detectors {
    /// Takes note of what was lost so far. The first sample should be taken before anything is tracked.
    pub fn note_losses(&mut self, sample: &Sample) {
        self.losses.unavailable = sample.unavailable_probes;
        self.losses.uncounted = sample.uncounted_probes;
        self.losses.watched_since_ns = sample.watched_since_ns;
        self.losses.writes_under_way.clone_from(&sample.writes_under_way);
        for (reason, count) in sample.counts() {
            let last = self.losses.last.insert(reason, count).unwrap_or(0);
            let more = count.saturating_sub(last);
            if more == 0 {
                continue;
            }
            let since = if reason == Unknown::MissedProbeRuns {
                self.losses.missed_runs_at_ns
            } else {
                0
            };
            for (&birth, space) in &mut self.spaces {
                for (&number, epoch) in &mut space.epochs {
                    if !epoch.finished && epoch.lived_after(since) {
                        epoch.note_unknown(reason, more);
                        self.touched.insert((birth, number));
                    }
                }
            }
        }
        self.losses.missed_runs_at_ns = sample.missed_runs_at_ns;
    }

    /// Notes whether sdtrace's own audit has been through an address space within its period.
    pub fn note_audit(&mut self, birth: u64, complete: bool) {
        if let Some(epoch) = self
            .spaces
            .get_mut(&birth)
            .and_then(super::Space::newest)
            .filter(|epoch| epoch.is_open())
        {
            if complete {
                epoch.unknown.remove(&Unknown::AuditBehind);
            } else {
                epoch.unknown.insert(Unknown::AuditBehind, 1);
            }
        }
    }
}
