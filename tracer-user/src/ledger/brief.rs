//! A look at one address space or epoch without making a copy of it: for answers about a page of a long list.

use tracer_common::records::{ClearRecord, TaskIdentity};

use super::epoch::{EndReason, Epoch, Opening};
use super::space::{Origin, Phase, Space};
use super::{Ledger, ProcessDetails};

/// An address space, looked at.
#[derive(Clone, Copy, Debug)]
pub struct SpaceBrief<'l>(&'l Space);

/// An epoch, looked at.
#[derive(Clone, Copy, Debug)]
pub struct EpochBrief<'l>(&'l Epoch);

impl Ledger {
    /// The address spaces whose small number is above `after`, by that number.
    pub fn briefs(&self, after: u64) -> impl Iterator<Item = SpaceBrief<'_>> {
        self.spaces
            .range(after.saturating_add(1)..)
            .map(|(_, space)| SpaceBrief(space.as_ref()))
    }

    /// The address space with this small number.
    #[must_use]
    pub fn brief(&self, id: u64) -> Option<SpaceBrief<'_>> {
        self.spaces.get(&id).map(|space| SpaceBrief(space))
    }
}

impl<'l> SpaceBrief<'l> {
    /// Small number of ours.
    #[must_use]
    pub const fn id(self) -> u64 {
        self.0.id
    }

    /// The kernel side's stable id.
    #[must_use]
    pub const fn birth(self) -> u64 {
        self.0.birth
    }

    /// How it came to be tracked.
    #[must_use]
    pub const fn origin(self) -> Origin {
        self.0.origin
    }

    /// The process, as the first record named it.
    #[must_use]
    pub const fn owner(self) -> Option<&'l TaskIdentity> {
        self.0.owner.as_ref()
    }

    /// What /proc told about the process.
    #[must_use]
    pub const fn details(self) -> Option<&'l ProcessDetails> {
        self.0.details.as_ref()
    }

    /// Whether it is still there.
    #[must_use]
    pub fn is_live(self) -> bool {
        self.0.phase == Phase::Live
    }

    /// When it was torn down, on the monotonic clock.
    #[must_use]
    pub const fn ended_ns(self) -> Option<u64> {
        match self.0.phase {
            Phase::Live => None,
            Phase::Ending { at_ns, .. } | Phase::Ended { at_ns } => Some(at_ns),
        }
    }

    /// Number of the newest epoch, 0 before the first.
    #[must_use]
    pub fn newest(self) -> u32 {
        self.0.newest()
    }

    /// Handled write-notify faults on PTEs and PMDs, over all epochs.
    #[must_use]
    pub fn faults(self) -> u64 {
        let counts = self.0.counts();
        counts.faults() + counts.huge_faults()
    }

    /// The newest clear that opened an epoch that is still listed.
    #[must_use]
    pub fn last_clear(self) -> Option<&'l ClearRecord> {
        self.epochs().find_map(EpochBrief::clear)
    }

    /// The epochs that are listed, newest first.
    pub fn epochs(self) -> impl Iterator<Item = EpochBrief<'l>> {
        self.0.epochs.iter().rev().map(EpochBrief)
    }

    /// The epoch with this number, if it is listed.
    #[must_use]
    pub fn epoch(self, number: u32) -> Option<EpochBrief<'l>> {
        self.0.epoch(number).map(EpochBrief)
    }

    /// The epoch that is open.
    #[must_use]
    pub fn open(self) -> Option<EpochBrief<'l>> {
        self.is_live().then(|| self.0.epochs.back().map(EpochBrief))?
    }

    /// The newest epoch that has ended.
    #[must_use]
    pub fn last(self) -> Option<EpochBrief<'l>> {
        let open = self.open().map(EpochBrief::number);
        self.epochs().find(|epoch| Some(epoch.number()) != open)
    }
}

impl<'l> EpochBrief<'l> {
    /// Number within the address space, from 1.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0.number
    }

    /// The clear that opened it, if one did.
    #[must_use]
    pub fn clear(self) -> Option<&'l ClearRecord> {
        match &self.0.opening {
            Opening::Clear(record) => Some(record),
            Opening::Adopted(_) | Opening::Fork(_) | Opening::Unseen => None,
        }
    }

    /// What opened it, as the dump names it, and when.
    #[must_use]
    pub fn opened(self) -> (&'static str, Option<u64>) {
        match &self.0.opening {
            Opening::Clear(record) => ("clear", Some(record.header.time_ns)),
            Opening::Adopted(at) => ("adopted", Some(*at)),
            Opening::Fork(at) => ("fork", Some(*at)),
            Opening::Unseen => ("unseen", None),
        }
    }

    /// How it ended, and when.
    #[must_use]
    pub fn ended(self) -> Option<(EndReason, u64)> {
        self.0.end.map(|end| (end.reason, end.at_ns))
    }

    /// Whether its counts are final.
    #[must_use]
    pub const fn is_settled(self) -> bool {
        self.0.settled
    }

    /// Handled write-notify faults on PTEs and PMDs.
    #[must_use]
    pub fn faults(self) -> u64 {
        let counts = self.0.counts();
        counts.faults() + counts.huge_faults()
    }
}
