//! What each address space has done, for sums by workload.

use std::borrow::Cow;

use super::Ledger;
use super::space::{Origin, Phase, Space};

/// What is summed up by workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Write-notify faults.
    Faults,
    /// Clears.
    Clears,
    /// Epochs that began, by a clear or otherwise.
    Epochs,
    /// Finished epochs that are trusted. The ledger does not know; the detectors do.
    Trusted,
    /// The same, suspect.
    Suspect,
    /// The same, broken.
    Broken,
}

impl Measure {
    /// Every measure.
    pub const ALL: [Self; 6] = [
        Self::Faults,
        Self::Clears,
        Self::Epochs,
        Self::Trusted,
        Self::Suspect,
        Self::Broken,
    ];
}

/// A number for each measure, by its place in [`Measure::ALL`].
pub type Measured = [u64; Measure::ALL.len()];

/// What one address space has done up to now. Each number only grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally<'l> {
    /// Stable id of the address space.
    pub birth: u64,
    /// The cgroup of its process, if /proc told.
    pub cgroup: Option<Cow<'l, str>>,
    /// Whether it is still there.
    pub live: bool,
    /// The numbers.
    pub measured: Measured,
}

/// Address spaces that the ledger gave up since somebody asked last.
#[derive(Debug, Default)]
pub(super) struct Departed {
    wanted: bool,
    tallies: Vec<Tally<'static>>,
}

impl Departed {
    pub(super) fn note(&mut self, space: &Space) {
        if self.wanted {
            let tally = tally(space);
            self.tallies.push(Tally {
                cgroup: tally.cgroup.map(|cgroup| Cow::Owned(cgroup.into_owned())),
                ..tally
            });
        }
    }
}

fn tally(space: &Space) -> Tally<'_> {
    // Epochs are numbered from 1; the first of an adopted or forked address space began without a clear that we saw.
    let epochs = u64::from(space.newest());
    let without_clear = matches!(space.origin, Origin::Adopted | Origin::Fork);
    Tally {
        birth: space.birth,
        cgroup: space
            .details
            .as_ref()
            .map(|details| Cow::Borrowed(details.cgroup.as_str())),
        live: space.phase == Phase::Live,
        measured: Measure::ALL.map(|measure| match measure {
            Measure::Faults => space.counts().faults(),
            Measure::Clears => epochs.saturating_sub(u64::from(without_clear)),
            Measure::Epochs => epochs,
            Measure::Trusted | Measure::Suspect | Measure::Broken => 0,
        }),
    }
}

impl Ledger {
    /// What each address space of the ledger has done.
    pub fn tallies(&self) -> impl Iterator<Item = Tally<'_>> {
        self.spaces.values().map(|space| tally(space))
    }

    /// From now on, keeps the last word of address spaces that are given up, for [`Ledger::take_departed`], which must
    /// then be called now and again.
    pub fn keep_departed(&mut self) {
        self.departed.wanted = true;
    }

    /// The last word of the address spaces that were given up since the last call.
    pub fn take_departed(&mut self) -> Vec<Tally<'static>> {
        std::mem::take(&mut self.departed.tallies)
    }
}
