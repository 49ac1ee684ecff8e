//! What is known about an address space or an epoch, in a few numbers: for lists.

use serde::{Deserialize, Serialize};

use super::cause::{Cause, Class, Evidence};
use super::epoch::Epoch;
use super::incident::Bound;
use super::tell::{Reason, reasons};
use super::verdict::Verdict;
use super::{Detectors, Space};

/// The finished epochs of one address space, those included that nobody lists any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Finished {
    verdicts: [u64; Verdict::ALL.len()],
    missed_pages: u64,
    last: Option<(u32, Verdict)>,
}

impl Finished {
    pub(super) fn note(&mut self, number: u32, epoch: &Epoch) {
        let verdict = epoch.verdict();
        self.verdicts[verdict as usize] += 1;
        self.missed_pages += missed_pages(epoch);
        if self.last.is_none_or(|(newest, _)| newest < number) {
            self.last = Some((number, verdict));
        }
    }
}

/// One address space in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceBrief {
    /// Finished epochs, by the place of their verdict in [`Verdict::ALL`].
    pub verdicts: [u64; Verdict::ALL.len()],
    /// The verdict of the newest finished epoch.
    pub last: Option<Verdict>,
    /// Pages whose write was missed, over all epochs, each once for each epoch.
    pub missed_pages: u64,
}

/// One epoch in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochBrief {
    /// Of an open epoch: as far as is known now.
    pub verdict: Verdict,
    /// Nothing can change any more.
    pub finished: bool,
    /// Pages whose write was missed.
    pub missed_pages: u64,
    /// Pages whose next write is missed.
    pub exposed_pages: u64,
    /// Bytes that soft-dirty cannot track.
    pub blind_bytes: u64,
    /// Pages that the target threw away.
    pub dropped_pages: u64,
}

/// Everything of one cause and evidence in an epoch, without its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CauseBrief {
    /// A heading of docs/causes.md, or `unknown_cause`.
    pub cause: String,
    /// Its class.
    pub class: Class,
    /// How we know.
    pub evidence: Evidence,
    /// Pages.
    pub pages: u64,
    /// What the number of pages is.
    pub bound: Bound,
}

fn pages(epoch: &Epoch, wanted: impl Fn(Evidence) -> bool) -> u64 {
    let standing = epoch.findings.standing();
    standing
        .filter(|&(_, evidence, _)| wanted(evidence))
        .map(|(_, _, found)| found.pages)
        .sum()
}

fn missed_pages(epoch: &Epoch) -> u64 {
    pages(epoch, Evidence::is_miss)
}

impl Detectors {
    /// One address space in numbers.
    #[must_use]
    pub fn space_brief(&self, birth: u64) -> SpaceBrief {
        let Some(space) = self.spaces.get(&birth) else {
            return SpaceBrief::default();
        };
        let unfinished = space.epochs.values().filter(|epoch| !epoch.finished);
        SpaceBrief {
            verdicts: space.finished.verdicts,
            last: space.finished.last.map(|(_, verdict)| verdict),
            missed_pages: space.finished.missed_pages + unfinished.map(missed_pages).sum::<u64>(),
        }
    }

    /// One epoch in numbers.
    #[must_use]
    pub fn epoch_brief(&self, birth: u64, number: u32) -> Option<EpochBrief> {
        let epoch = self.epoch(birth, number)?;
        Some(EpochBrief {
            verdict: epoch.verdict(),
            finished: epoch.finished,
            missed_pages: missed_pages(epoch),
            exposed_pages: pages(epoch, |evidence| evidence == Evidence::Exposed),
            blind_bytes: epoch.blind.iter().sum(),
            dropped_pages: epoch.dropped_pages.iter().sum(),
        })
    }

    /// Why an epoch is not trusted.
    #[must_use]
    pub fn reasons(&self, birth: u64, number: u32) -> Vec<Reason> {
        self.epoch(birth, number).map_or_else(Vec::new, reasons)
    }

    /// What was found in an epoch, without addresses.
    #[must_use]
    pub fn causes(&self, birth: u64, number: u32) -> Vec<CauseBrief> {
        let Some(epoch) = self.epoch(birth, number) else {
            return Vec::new();
        };
        let standing = epoch.findings.standing();
        standing
            .map(|(cause, evidence, found)| CauseBrief {
                cause: cause.label().to_owned(),
                class: cause.class(),
                evidence,
                pages: found.pages,
                bound: Bound::of(cause, evidence, found.unlisted > 0),
            })
            .collect()
    }

    fn epoch(&self, birth: u64, number: u32) -> Option<&Epoch> {
        self.spaces
            .get(&birth)
            .and_then(|space: &Space| space.epochs.get(&number))
    }
}

impl Cause {
    /// The cause that has this label.
    #[must_use]
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.label() == label)
    }
}
