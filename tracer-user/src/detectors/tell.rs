//! What the detectors tell: numbers for the metrics, a verdict for each epoch of the dump, incidents for the log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tracer_common::records::Blind;

use super::cause::{Cause, Class, Dropped, Evidence};
use super::epoch::{Ending, Epoch};
use super::findings::Counted;
use super::findings::Incident as Found;
use super::incident::{self, Bound, Incident, IncidentRange, Moment, State};
use super::verdict::{Unknown, Verdict};
use super::verify::{LeftOut, Verified};
use super::{Detectors, LedgerView, Mappings};
use crate::ledger::Clock;

/// Ranges that the dump lists of one epoch.
const DUMP_RANGES: usize = 1_024;

/// Sums over everything, for counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pages: BTreeMap<(Cause, Evidence), u64>,
    hazards: BTreeMap<Cause, u64>,
    dropped: [u64; Dropped::ALL.len()],
    verdicts: BTreeMap<Verdict, u64>,
    unknown: BTreeMap<Unknown, u64>,
    pub(super) late: u64,
    pub(super) folded: u64,
    unlisted: u64,
    /// See [`Epoch::verified_pages`].
    pub(super) verified_pages: u64,
    pub(super) verified_missed: u64,
    /// By [`LeftOut`].
    pub(super) left_out: [u64; LeftOut::ALL.len()],
}

impl Totals {
    /// Counts pages that were found; those of unknown cause are counted when their epoch is over, because a cause may
    /// be found until then.
    pub(super) fn count(&mut self, counted: &Counted) {
        for (&(cause, evidence), &pages) in counted {
            if cause != Cause::Unknown {
                self.pages(cause, evidence, pages);
            }
        }
    }

    pub(super) fn pages(&mut self, cause: Cause, evidence: Evidence, pages: u64) {
        *self.pages.entry((cause, evidence)).or_default() += pages;
    }

    pub(super) fn hazards(&mut self, new: &[Cause]) {
        for &cause in new {
            *self.hazards.entry(cause).or_default() += 1;
        }
    }

    pub(super) fn flush_dropped(&mut self, epoch: &mut Epoch) {
        for (at, sum) in self.dropped.iter_mut().enumerate() {
            *sum += epoch.dropped_pages[at] - epoch.dropped_counted[at];
        }
        epoch.dropped_counted = epoch.dropped_pages;
    }

    pub(super) fn finished(&mut self, epoch: &Epoch) {
        *self.verdicts.entry(epoch.verdict()).or_default() += 1;
        for &reason in epoch.unknown.keys() {
            *self.unknown.entry(reason).or_default() += 1;
        }
        self.unlisted += epoch.findings.unlisted;
    }
}

/// The detectors in numbers. Every list has all values of its label, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Pages whose write was missed, by cause and evidence.
    pub missed: Vec<(Cause, Evidence, u64)>,
    /// Exposed pages of open epochs, by cause.
    pub exposed: Vec<(Cause, u64)>,
    /// Pages that were ever found exposed, once for each epoch, by cause.
    pub exposed_total: Vec<(Cause, u64)>,
    /// Epochs with a hazard, by cause.
    pub hazards: Vec<(Cause, u64)>,
    /// Pages dropped, by reason.
    pub dropped: Vec<(Dropped, u64)>,
    /// Bytes of live address spaces that soft-dirty cannot track, by reason, as of their newest clears.
    pub blind_bytes: Vec<(Blind, u64)>,
    /// Finished epochs, by verdict.
    pub verdicts: Vec<(Verdict, u64)>,
    /// Open epochs, by the verdict that they have so far.
    pub open: Vec<(Verdict, u64)>,
    /// Finished epochs with a check that could not be completed, by reason.
    pub unknown: Vec<(Unknown, u64)>,
    /// Records that came after their epoch was finished.
    pub late: u64,
    /// Finished epochs whose ranges were given up to save memory.
    pub folded: u64,
    /// Reports of pages that were not kept page by page.
    pub unlisted: u64,
    /// What verify has shown.
    pub verified: Verified,
    /// Sampled pages that it left out, by reason.
    pub left_out: Vec<(LeftOut, u64)>,
}

impl Default for Summary {
    fn default() -> Self {
        Detectors::new(super::Limits::default()).summary()
    }
}

impl Detectors {
    /// The detectors in numbers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let totals = &self.totals;
        let pages = |cause, evidence| totals.pages.get(&(cause, evidence)).copied().unwrap_or(0);
        let mut exposed = BTreeMap::<Cause, u64>::new();
        let mut open = BTreeMap::<Verdict, u64>::new();
        let mut blind = [0u64; Blind::ALL.len()];
        let mut unlisted = totals.unlisted;
        for space in self.spaces.values() {
            for epoch in space.epochs.values().filter(|epoch| !epoch.finished) {
                unlisted += epoch.findings.unlisted;
                if !epoch.is_open() {
                    continue;
                }
                *open.entry(epoch.verdict()).or_default() += 1;
                for (cause, pages) in epoch.standing_pages(Evidence::Exposed) {
                    *exposed.entry(cause).or_default() += pages;
                }
                for (sum, bytes) in blind.iter_mut().zip(epoch.blind) {
                    *sum += bytes;
                }
            }
        }
        let misses = [Evidence::Observed, Evidence::Proved];
        Summary {
            missed: Cause::ALL
                .into_iter()
                .flat_map(|cause| misses.map(|evidence| (cause, evidence, pages(cause, evidence))))
                .collect(),
            exposed: Cause::ALL
                .map(|cause| (cause, exposed.get(&cause).copied().unwrap_or(0)))
                .into(),
            exposed_total: Cause::ALL
                .map(|cause| (cause, pages(cause, Evidence::Exposed)))
                .into(),
            hazards: Cause::ALL
                .map(|cause| (cause, totals.hazards.get(&cause).copied().unwrap_or(0)))
                .into(),
            dropped: Dropped::ALL.into_iter().zip(totals.dropped).collect(),
            blind_bytes: Blind::ALL.into_iter().zip(blind).collect(),
            verdicts: Verdict::ALL
                .map(|verdict| (verdict, totals.verdicts.get(&verdict).copied().unwrap_or(0)))
                .into(),
            open: Verdict::ALL
                .map(|verdict| (verdict, open.get(&verdict).copied().unwrap_or(0)))
                .into(),
            unknown: Unknown::all()
                .map(|reason| (reason, totals.unknown.get(&reason).copied().unwrap_or(0)))
                .collect(),
            late: totals.late,
            folded: totals.folded,
            unlisted,
            verified: Verified::of(totals.verified_pages, totals.verified_missed),
            left_out: LeftOut::ALL.into_iter().zip(totals.left_out).collect(),
        }
    }
}

/// What the dump says about an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Detection {
    /// `trusted`, `suspect` or `broken`; of an open epoch: as far as is known now.
    pub verdict: Verdict,
    /// Nothing can change any more.
    pub finished: bool,
    /// Why it is not trusted.
    pub reasons: Vec<Reason>,
    /// What was found, by cause and evidence.
    pub causes: Vec<CauseFound>,
    /// Address ranges to dump in full, whatever the bits say.
    pub dump_again: Vec<IncidentRange>,
    /// The ranges were joined over gaps to keep the list short: they have more than was found, never less.
    pub ranges_joined: bool,
    /// The ranges were given up to save memory: dump everything in full.
    pub ranges_given_up: bool,
    /// Bytes that soft-dirty cannot track, by reason, as of the clear that opened the epoch.
    pub blind_bytes: BTreeMap<String, u64>,
    /// Of these, bytes whose addresses are not known, so that they are not among [`Self::dump_again`].
    pub blind_bytes_nowhere: u64,
    /// Pages that the target threw away, by reason; no reason against trust.
    pub dropped_pages: BTreeMap<String, u64>,
    /// VMAs that the clear at its end tested before it took their bits; `null` if no clear ended it.
    pub audited_vmas: Option<u32>,
    /// Page-table entries that it tested.
    pub audited_pages: Option<u64>,
    /// What the contents of sampled pages showed; `null` if none was compared.
    pub verified: Option<Verified>,
}

/// Why an epoch is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Reason {
    /// `missed`, `exposed`, `hazard`, `blind` or `unknown`.
    pub kind: String,
    /// The cause; for `blind` and `unknown` the reason.
    pub name: String,
    /// Pages; bytes for `blind`, times for `unknown`.
    pub count: u64,
}

/// Everything of one cause and evidence in an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CauseFound {
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
    /// Of exposed pages: those with the hardware dirty bit.
    pub dirty_pages: u64,
    /// Address ranges.
    pub ranges: Vec<IncidentRange>,
}

impl Detectors {
    /// What is known about an epoch.
    #[must_use]
    pub fn detection(&self, birth: u64, number: u32) -> Option<Detection> {
        let epoch = self.spaces.get(&birth)?.epochs.get(&number)?;
        let again = epoch.dump_again(DUMP_RANGES);
        let named = |counts: Vec<(&str, u64)>| {
            counts
                .into_iter()
                .filter(|&(_, count)| count > 0)
                .map(|(name, count)| (name.to_owned(), count))
                .collect()
        };
        let blind = Blind::ALL.map(|blind| (blind.label(), epoch.blind[blind as usize]));
        let dropped = Dropped::ALL.map(|reason| (reason.label(), epoch.dropped_pages[reason as usize]));
        Some(Detection {
            verdict: epoch.verdict(),
            finished: epoch.finished,
            reasons: reasons(epoch),
            causes: epoch
                .findings
                .standing()
                .map(|(cause, evidence, found)| CauseFound {
                    cause: cause.label().to_owned(),
                    class: cause.class(),
                    evidence,
                    pages: found.pages,
                    bound: Bound::of(cause, evidence, found.unlisted > 0),
                    dirty_pages: found.dirty,
                    ranges: incident::ranges(&found.ranges),
                })
                .collect(),
            dump_again: incident::ranges(&again),
            ranges_joined: again.is_coarse(),
            ranges_given_up: epoch.ranges_given_up,
            blind_bytes: named(blind.into()),
            blind_bytes_nowhere: epoch.blind_nowhere,
            dropped_pages: named(dropped.into()),
            audited_vmas: epoch.audited.map(|(vmas, _)| vmas),
            audited_pages: epoch.audited.map(|(_, pages)| pages),
            verified: (epoch.verified_pages > 0)
                .then(|| Verified::of(epoch.verified_pages, epoch.verified_missed)),
        })
    }

    /// Address spaces and epochs about which something was learnt since [`Self::incidents`] was called last.
    pub fn touched(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.touched.iter().copied()
    }

    /// Incidents that were found, or that ended with their epoch, since the last call: one when it is found and
    /// one when the epoch is finished.
    pub fn incidents(
        &mut self,
        ledger: &dyn LedgerView,
        mappings: &dyn Mappings,
        clock: &dyn Clock,
    ) -> Vec<Incident> {
        let mut told = Vec::new();
        for (birth, number) in std::mem::take(&mut self.touched) {
            let Some(epoch) = self
                .spaces
                .get_mut(&birth)
                .and_then(|space| space.epochs.get_mut(&number))
            else {
                continue;
            };
            if std::mem::replace(&mut epoch.told, epoch.finished) {
                continue;
            }
            name_files(epoch, birth, ledger, mappings);
            let finished = epoch.finished;
            let about = About {
                birth,
                number,
                ending: epoch.ending.map(|(ending, _)| ending),
                opening: epoch.opened_by_clear().copied(),
            };
            for (&(cause, evidence), found) in &mut epoch.findings.incidents {
                if finished {
                    if found.told || found.stands() {
                        told.push(about.incident(cause, evidence, found, State::Closed, ledger, clock));
                    }
                } else if !found.told && found.stands() {
                    found.told = true;
                    told.push(about.incident(cause, evidence, found, State::Open, ledger, clock));
                }
            }
        }
        told
    }
}

/// Looks up how the mappings are called in which something was found, as long as the process is there.
fn name_files(epoch: &mut Epoch, birth: u64, ledger: &dyn LedgerView, mappings: &dyn Mappings) {
    let unnamed = |found: &Found| {
        found
            .vmas
            .iter()
            .any(|vma| vma.path.is_none() && vma.facts.inode != 0 && !vma.asked)
    };
    if !epoch.findings.incidents.values().any(unnamed) {
        return;
    }
    let owner = ledger.describe(birth).and_then(|space| space.owner);
    let Some(now) = owner
        .filter(|owner| owner.pid != 0)
        .and_then(|owner| mappings.mappings(owner.pid, owner.start_ns))
    else {
        return;
    };
    for vma in epoch
        .findings
        .incidents
        .values_mut()
        .flat_map(|found| &mut found.vmas)
    {
        // Reading them costs much, and what is gone from there does not come back.
        vma.asked = true;
        // Something else may be mapped there by now.
        vma.path = now
            .iter()
            .find(|mapping| mapping.range.contains(vma.facts.key.start) && mapping.inode == vma.facts.inode)
            .and_then(|mapping| mapping.path.clone())
            .or(vma.path.take());
    }
}

struct About {
    birth: u64,
    number: u32,
    ending: Option<Ending>,
    opening: Option<tracer_common::records::ClearRecord>,
}

impl About {
    fn incident(
        &self,
        cause: Cause,
        evidence: Evidence,
        found: &Found,
        state: State,
        ledger: &dyn LedgerView,
        clock: &dyn Clock,
    ) -> Incident {
        let moment = |ns: u64| Moment(clock.unix_ns(ns));
        let space = ledger.describe(self.birth);
        let owner = space.as_ref().and_then(|space| space.owner);
        let details = space.as_ref().and_then(|space| space.details.as_ref());
        Incident {
            schema: incident::SCHEMA,
            state,
            address_space: space.as_ref().map(|space| space.id),
            birth: self.birth,
            epoch: self.number,
            epoch_opened_unix: self.opening.map(|clear| moment(clear.header.time_ns)),
            ended_by: self.ending.map(incident::EndedBy::of),
            cause: cause.label().to_owned(),
            class: cause.class(),
            evidence,
            pages: found.pages,
            bound: Bound::of(cause, evidence, found.unlisted > 0),
            dirty_pages: found.dirty,
            ranges: incident::ranges(&found.ranges),
            ranges_joined: found.ranges.is_coarse(),
            vmas: found.vmas.iter().map(incident::vma).collect(),
            more_vmas: found.more_vmas,
            readers: incident::readers(found.readers),
            first_unix: moment(found.first_ns),
            last_unix: moment(found.last_ns),
            process: owner.map(|owner| incident::process(&owner, details)),
            tracker: self.opening.map(|clear| incident::process(&clear.tracker, None)),
            help: cause.help(),
        }
    }
}

pub(super) fn reasons(epoch: &Epoch) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut add = |kind: &str, name: &str, count| {
        reasons.push(Reason {
            kind: kind.to_owned(),
            name: name.to_owned(),
            count,
        });
    };
    for (cause, evidence, found) in epoch.findings.standing() {
        let kind = if evidence.is_miss() {
            "missed"
        } else {
            evidence.label()
        };
        add(kind, cause.label(), found.pages);
    }
    for blind in Blind::ALL {
        let bytes = epoch.blind[blind as usize];
        if bytes > 0 {
            add("blind", blind.label(), bytes);
        }
    }
    for (reason, &count) in &epoch.unknown {
        add("unknown", reason.label(), count);
    }
    if !epoch.finished && !epoch.to_verify.is_empty() {
        add("unknown", Unknown::MoveUnverified.label(), 1);
    }
    reasons
}
