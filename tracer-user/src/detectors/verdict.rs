//! May a tracker rely on this epoch?

use serde::{Deserialize, Serialize};
use tracer_common::counters::Stage;

/// The answer.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every check is complete, and nothing was found.
    Trusted,
    /// Nothing is known to be missed, but something could be, or could not be checked.
    Suspect,
    /// A write was missed.
    Broken,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 3] = [Self::Trusted, Self::Suspect, Self::Broken];

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Suspect => "suspect",
            Self::Broken => "broken",
        }
    }
}

/// Why a check could not be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unknown {
    /// The programs lost something at this stage while the epoch lasted.
    Lost(Stage),
    /// A record could not be decoded.
    Undecodable,
    /// The kernel skipped runs of a probe.
    MissedProbeRuns,
    /// The kernel may have skipped runs of probes and does not count them.
    UncountedProbes,
    /// Records of address spaces or epochs did not arrive, or contradicted each other.
    MissingRecords,
    /// A probe that a check needs is not attached.
    ProbeUnavailable,
    /// The epoch began before write faults were watched.
    WatchStartedLate,
    /// It was armed before sdtrace started.
    Adopted,
    /// It began with a fork and not with a clear.
    Forked,
    /// What opened it is not known.
    OpeningUnseen,
    /// What ended it is not known.
    EndUnseen,
    /// A page was written while the clear was walking, perhaps before, perhaps after its bit was taken; or a migration
    /// had it out of the page table when it was looked at.
    RacedWithClear,
    /// A VMA changed and it is not known which VMAs there were at the clear.
    VmasUnknown,
    /// Pages were moved onto mapped memory, and nobody looked whether all of it arrived.
    MoveUnverified,
    /// More was found than is kept page by page.
    FindingsFull,
    /// sdtrace's own audit has not been through the address space within its period; only while the epoch is open.
    AuditBehind,
    /// A shadow stack: there an entry is writable without its write bit, and the audit does not see that.
    ShadowStack,
    /// The return of a write fault was not seen, so it is not known whether it was handled in this epoch.
    WriteUnreturned,
}

/// Stages whose growth means that something was not seen.
pub const LOSSES: [Stage; 17] = [
    Stage::RingFull,
    Stage::RowsFull,
    Stage::TrackedFull,
    Stage::ClearsFull,
    Stage::MprotectsFull,
    Stage::SlotTaken,
    Stage::OrphanReturn,
    Stage::PagesFull,
    Stage::PagesStale,
    Stage::AuditUnread,
    Stage::HoleTooLong,
    Stage::FreshFull,
    Stage::MovedFull,
    Stage::CallsFull,
    Stage::PinsUnread,
    Stage::FileWritesFull,
    Stage::DirectReadsFull,
];

impl Unknown {
    const OWN: [Self; 17] = [
        Self::Undecodable,
        Self::MissedProbeRuns,
        Self::UncountedProbes,
        Self::MissingRecords,
        Self::ProbeUnavailable,
        Self::WatchStartedLate,
        Self::Adopted,
        Self::Forked,
        Self::OpeningUnseen,
        Self::EndUnseen,
        Self::RacedWithClear,
        Self::VmasUnknown,
        Self::MoveUnverified,
        Self::FindingsFull,
        Self::AuditBehind,
        Self::ShadowStack,
        Self::WriteUnreturned,
    ];

    /// Every reason.
    pub fn all() -> impl Iterator<Item = Self> {
        LOSSES.into_iter().map(Self::Lost).chain(Self::OWN)
    }

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Lost(stage) => stage.label(),
            Self::Undecodable => "undecodable",
            Self::MissedProbeRuns => "missed_probe_runs",
            Self::UncountedProbes => "uncounted_probes",
            Self::MissingRecords => "missing_records",
            Self::ProbeUnavailable => "probe_unavailable",
            Self::WatchStartedLate => "watch_started_late",
            Self::Adopted => "adopted",
            Self::Forked => "forked",
            Self::OpeningUnseen => "opening_unseen",
            Self::EndUnseen => "end_unseen",
            Self::RacedWithClear => "raced_with_clear",
            Self::VmasUnknown => "vmas_unknown",
            Self::MoveUnverified => "move_unverified",
            Self::FindingsFull => "findings_full",
            Self::AuditBehind => "audit_behind",
            Self::ShadowStack => "shadow_stack",
            Self::WriteUnreturned => "write_unreturned",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_are_unique() {
        let labels: BTreeSet<_> = Unknown::all().map(Unknown::label).collect();
        assert_eq!(labels.len(), Unknown::all().count());
    }
}
