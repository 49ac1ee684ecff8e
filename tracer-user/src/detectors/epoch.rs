//! One epoch, as the detectors see it.

use std::collections::BTreeMap;

use tracer_common::audit::{MOVED_RANGES, PagesRecord, Reader, VmaRecord};
use tracer_common::classify::VmaKind;
use tracer_common::counters::Stage;
use tracer_common::flags::{VM_SHARED, is_armed};
use tracer_common::pages::PageCause;
use tracer_common::records::{Blind, ClearRecord};

use super::cause::{Cause, Dropped, Evidence};
use super::findings::{Budget, Counted, Findings, PAGE, PageFinding, Rank, Sight};
use super::hazards::{MERGED, born_writable};
use super::holes::{FileRange, Holes};
use super::ranges::{Range, RangeSet};
use super::verdict::{Unknown, Verdict};
use super::worked::{AtClear, Work, Worked};
use super::{GRACE_NS, exposed, lost};

/// Ranges that are remembered of what was dropped, for each reason.
const DROPPED_RANGES: usize = 256;

/// What opened an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    Clear(Box<ClearRecord>),
    Adopted,
    Fork,
    Unseen,
}

/// How an epoch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// By a clear, which audited it first.
    Clear,
    /// By exec or exit.
    Gone,
    Unseen,
}

/// An epoch.
#[derive(Clone, Debug)]
pub(super) struct Epoch {
    pub(super) opening: Opening,
    pub(super) ending: Option<(Ending, u64)>,
    /// Final: the page states are gone.
    pub(super) finished: bool,
    /// Its end was told, too.
    pub(super) told: bool,
    /// Its incidents do not know their ranges any more.
    pub(super) ranges_given_up: bool,
    /// What of [`Self::dropped_pages`] the totals have.
    pub(super) dropped_counted: [u64; Dropped::ALL.len()],
    pub(super) at_clear: Option<AtClear>,
    pub(super) worked: Worked,
    holes: Holes,
    pub(super) findings: Findings,
    /// What was dropped, by [`Dropped`].
    pub(super) dropped: [RangeSet; Dropped::ALL.len()],
    /// Pages dropped, by [`Dropped`], each once.
    pub(super) dropped_pages: [u64; Dropped::ALL.len()],
    /// Ranges that were mapped after the clear and have lost `VM_SOFTDIRTY`.
    pub(super) fresh: RangeSet,
    /// Ranges that mappings were moved to which had been made after the clear, and carried `VM_SOFTDIRTY`.
    pub(super) moved_fresh: RangeSet,
    /// Ranges that pages were moved to over others; whoever looks at the pages takes them out.
    pub(super) to_verify: RangeSet,
    /// What the programs remember of moves, see [`Self::note_move`].
    moves: Vec<Range>,
    /// Ranges that somebody has looked at since pages were moved there.
    pub(super) seen: RangeSet,
    pub(super) unknown: BTreeMap<Unknown, u64>,
    pub(super) blind: [u64; Blind::ALL.len()],
    /// Of these bytes, those without known addresses.
    pub(super) blind_nowhere: u64,
    /// Where the others are, but for writable aliases.
    pub(super) blind_ranges: RangeSet,
    /// Shared memory that is mapped a second time, by anybody.
    pub(super) aliased: RangeSet,
    /// What was written by faults that began in this epoch, and whose end nobody has seen.
    pub(super) unreturned: RangeSet,
    /// VMAs and pages that the clear at its end tested.
    pub(super) audited: Option<(u32, u64)>,
    /// Pages whose content was compared, and those of them whose write was missed.
    pub(super) verified_pages: u64,
    pub(super) verified_missed: u64,
}

/// Ranges of blind memory of one epoch, twice; more are joined over the smallest gaps.
pub(super) const BLIND_RANGES: usize = 256;

impl Epoch {
    pub(super) fn new(opening: Opening) -> Self {
        let mut unknown = BTreeMap::new();
        let mut blind = [0; Blind::ALL.len()];
        let mut blind_nowhere = 0;
        match &opening {
            Opening::Clear(record) => {
                blind = record.blind_bytes;
                blind_nowhere = record.direct_read_bytes;
            }
            Opening::Adopted => drop(unknown.insert(Unknown::Adopted, 1)),
            Opening::Fork => drop(unknown.insert(Unknown::Forked, 1)),
            Opening::Unseen => drop(unknown.insert(Unknown::OpeningUnseen, 1)),
        }
        Self {
            opening,
            ending: None,
            finished: false,
            told: false,
            ranges_given_up: false,
            dropped_counted: [0; Dropped::ALL.len()],
            at_clear: None,
            worked: Worked::default(),
            holes: Holes::default(),
            findings: Findings::default(),
            dropped: Default::default(),
            dropped_pages: [0; Dropped::ALL.len()],
            fresh: RangeSet::default(),
            moved_fresh: RangeSet::default(),
            to_verify: RangeSet::default(),
            moves: Vec::new(),
            seen: RangeSet::default(),
            unknown,
            blind,
            blind_nowhere,
            blind_ranges: RangeSet::default(),
            aliased: RangeSet::default(),
            unreturned: RangeSet::default(),
            audited: None,
            verified_pages: 0,
            verified_missed: 0,
        }
    }

    /// A write whose end nobody has seen may belong to this epoch.
    pub(super) fn write_unreturned(&mut self, range: Range) {
        self.note_unknown(Unknown::WriteUnreturned, 1);
        self.blind_ranges.insert_bounded(range, BLIND_RANGES);
    }

    /// Notes shared memory that somebody else, or another mapping, may write.
    pub(super) fn aliased(&mut self, ranges: &[Range]) {
        for &range in ranges {
            self.blind[Blind::WritableAlias as usize] += range.len();
            self.aliased.insert_bounded(range, BLIND_RANGES);
        }
    }

    /// Takes back what is of no concern any more.
    pub(super) fn not_aliased(&mut self, ranges: &[Range]) {
        let bytes = &mut self.blind[Blind::WritableAlias as usize];
        for &range in ranges {
            *bytes = bytes.saturating_sub(range.len());
            self.aliased.remove(range);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.ending.is_none()
    }

    /// Whether it had not ended by then.
    pub(super) fn lived_after(&self, since_ns: u64) -> bool {
        self.ending.is_none_or(|(_, at_ns)| at_ns >= since_ns)
    }

    /// Whether it is time to finish it.
    pub(super) fn is_over(&self, now_ns: u64) -> bool {
        let ended = self.ending;
        !self.finished && ended.is_some_and(|(_, at_ns)| now_ns >= at_ns.saturating_add(GRACE_NS))
    }

    pub(super) fn opened_by_clear(&self) -> Option<&ClearRecord> {
        match &self.opening {
            Opening::Clear(record) => Some(record),
            Opening::Adopted | Opening::Fork | Opening::Unseen => None,
        }
    }

    pub(super) fn note_unknown(&mut self, reason: Unknown, count: u64) {
        if count > 0 && !self.finished {
            *self.unknown.entry(reason).or_default() += count;
        }
    }

    /// May a tracker rely on it? For an open epoch: as far as is known now.
    pub(super) fn verdict(&self) -> Verdict {
        let standing = || self.findings.standing();
        if standing().any(|(_, evidence, _)| evidence.is_miss()) {
            Verdict::Broken
        } else if standing().next().is_some()
            || self.blind.iter().any(|&bytes| bytes > 0)
            || !self.unknown.is_empty()
            || !self.to_verify.is_empty()
        {
            Verdict::Suspect
        } else {
            Verdict::Trusted
        }
    }

    /// Takes in what was found in one chunk. `merged`: a fresh range became part of this VMA in an older epoch.
    pub(super) fn pages(&mut self, record: &PagesRecord, merged: bool, budget: &mut Budget) -> Counted {
        let vma_range = Range {
            start: record.vma.key.start,
            end: record.vma.end,
        };
        let shared = record.vma.key.flags & VM_SHARED != 0;
        let kind = u8::try_from(record.vma.kind).ok().and_then(VmaKind::from_raw);
        let merged = merged || self.fresh.overlaps(vma_range);
        let holes = self.holes.within(&record.vma);
        let mut found = Vec::new();
        let mut interesting = record.exposed;
        interesting.add(&record.lost);
        interesting.add(&record.moved);
        for page in interesting.iter() {
            let range = Range::of(record.address + page as u64 * PAGE, PAGE);
            let mark = tracer_common::pages::cause_of(record.causes[page], record.epoch);
            let mut put = |rank, cause| found.push(PageFinding { page, rank, cause });
            if record.exposed.contains(page) {
                let cause = exposed::cause(exposed::Around {
                    mark,
                    born_writable: born_writable(&record.vma.key),
                    merged,
                    protected: self.worked.on(Work::Protect, range),
                    shared_anon: kind == Some(VmaKind::SharedAnon),
                    migrating: record.migrating != 0,
                });
                let dirty = record.exposed_dirty.contains(page);
                put(if dirty { Rank::ExposedDirty } else { Rank::Exposed }, cause);
            }
            if record.moved.contains(page) {
                // Looked at now.
                self.has_seen(range);
                // Nothing was moved here, though the range was: the place was untouched, and perhaps read since.
                if record.none.contains(page) || (!shared && record.zero.contains(page)) {
                    if !self.hiding(range, kind).is_empty() {
                        let cause = self.untouched(range);
                        self.findings.hazard(cause, range, sight(record));
                    }
                } else if self.moved_fresh.overlaps(range) {
                    put(Rank::Observed, Cause::VmaMerge);
                } else if self.worked.on(Work::UserfaultMovedHere, range) {
                    put(Rank::Observed, Cause::UserfaultfdMove);
                } else {
                    put(Rank::Observed, Cause::MremapTableMove);
                }
            }
            if !record.lost.contains(page) {
                continue;
            }
            let entry = if record.none.contains(page) {
                lost::Entry::None
            } else if record.zero.contains(page) {
                lost::Entry::Zero
            } else {
                lost::Entry::Page
            };
            let fate = lost::judge(&lost::Around {
                shared,
                entry,
                mark,
                worked: &self.worked,
                migrating: record.migrating != 0,
                hole: holes.iter().any(|hole| hole.overlaps(range)),
                page: range,
            });
            if record.raced.contains(page) {
                match fate {
                    _ if mark != Some(PageCause::ExposedArrival) => put(Rank::Raced, Cause::Unknown),
                    // Which the tracker sees.
                    lost::Lost::Dropped(_) if entry == lost::Entry::None => {}
                    lost::Lost::OnTheMove => put(Rank::Raced, Cause::Unknown),
                    // Somebody has write-protected it meanwhile.
                    _ => put(Rank::Exposed, Cause::MigrationRace),
                }
                continue;
            }
            match fate {
                lost::Lost::Missed(cause) => put(Rank::Observed, cause),
                lost::Lost::Dropped(reason) => self.drop_range(reason, range),
                lost::Lost::OnTheMove => put(Rank::Raced, Cause::Unknown),
            }
        }
        let raced = self.findings.raced;
        let unlisted = self.findings.unlisted;
        let counted = self.findings.pages(record.address, &found, sight(record), budget);
        self.note_unknown(Unknown::FindingsFull, self.findings.unlisted - unlisted);
        if self.findings.raced != raced {
            if self.findings.raced == 0 {
                self.unknown.remove(&Unknown::RacedWithClear);
            } else {
                self.unknown.insert(Unknown::RacedWithClear, self.findings.raced);
            }
        }
        counted
    }

    /// Why a place that was moved here untouched reads as clean. `UFFDIO_MOVE` marks what it moves, but not the zero
    /// page; a mapping made after the clear carried `VM_SOFTDIRTY`, and lost it when it became a part of an armed one.
    pub(super) fn untouched(&self, range: Range) -> Cause {
        if self.worked.on(Work::UserfaultMovedHere, range) {
            Cause::UserfaultfdMove
        } else if self.moved_fresh.overlaps(range) {
            Cause::VmaMerge
        } else {
            Cause::MremapGrow
        }
    }

    /// The parts of a new range in which content can hide: what reads as clean though the tracker has never seen it
    /// in this shape. Private anonymous memory that nothing was mapped at before reads as zeros, and what is written
    /// there gets its bit by the fault that makes the page: nothing is hidden. Other memory has content from the
    /// start; and where something else was mapped at the clear, that content is gone without a word.
    pub(super) fn hiding(&self, range: Range, kind: Option<VmaKind>) -> Vec<Range> {
        match (&self.at_clear, kind) {
            (Some(at_clear), Some(VmaKind::PrivateAnon)) => at_clear.mapped(range).iter().collect(),
            _ => vec![range],
        }
    }

    /// Wants somebody to look at the pages of a range, unless that has happened since pages were moved there.
    pub(super) fn look_at(&mut self, range: Range) {
        if self.seen.is_coarse() {
            self.to_verify.insert_bounded(range, MERGED);
            return;
        }
        for part in self.seen.missing(range) {
            self.to_verify.insert_bounded(part, MERGED);
        }
    }

    /// The programs compare page tables with the places that pages were moved to, and remember so many of them for each
    /// address space. After a move nothing that was moved before lies in its source any more.
    pub(super) fn note_move(&mut self, source: Range, moved_here: Range) {
        if moved_here.is_empty() {
            return;
        }
        let gone = |range: &Range| source.and(*range) == *range;
        self.moves.retain(|range| !gone(range));
        if self.moves.len() < MOVED_RANGES {
            self.moves.push(moved_here);
        } else {
            self.note_unknown(Unknown::Lost(Stage::MovedFull), 1);
        }
    }

    /// Somebody has looked at these pages.
    pub(super) fn has_seen(&mut self, range: Range) {
        self.to_verify.remove(range);
        self.seen.insert_bounded(range, MERGED);
    }

    /// Notes dropped content; a page counts once per epoch, under the first reason.
    pub(super) fn drop_range(&mut self, reason: Dropped, range: Range) {
        let mut new = vec![range];
        for known in &self.dropped {
            new = new.into_iter().flat_map(|part| known.missing(part)).collect();
        }
        let at = reason as usize;
        for part in new {
            self.dropped_pages[at] += self.dropped[at].insert_bounded(part, DROPPED_RANGES) / PAGE;
        }
    }

    /// Remembers a hole in a file, for pages that are found missing later.
    pub(super) fn note_hole(&mut self, hole: FileRange) {
        // Most holes are made in files that this address space has never mapped. One that is mapped later is not armed,
        // unless it becomes a part of a VMA of the same file.
        if let Some(at_clear) = &self.at_clear
            && at_clear.of_file(&hole).next().is_none()
        {
            return;
        }
        if !self.holes.note(hole) {
            // What the hole took away would be called a missed write, or the other way round.
            self.note_unknown(Unknown::FindingsFull, 1);
        }
    }

    /// Addresses of a VMA as it is now at which there was nothing at the clear, or another mapping.
    pub(super) fn new_addresses(&self, record: &VmaRecord) -> Option<Vec<Range>> {
        let vma = Range {
            start: record.vma.key.start,
            end: record.vma.end,
        };
        let at_clear = self.at_clear.as_ref()?;
        let mut parts = at_clear.intact.missing(vma);
        parts.extend(
            at_clear
                .overlapping(vma)
                .filter(|old| !old.goes_on_in(&record.vma))
                .flat_map(|old| at_clear.intact.within(old.range().and(vma))),
        );
        Some(parts)
    }

    /// What of a dropped-content call hit VMAs that the clear had met.
    pub(super) fn drop_by(&mut self, work: Work, range: Range) {
        let Some(at_clear) = &self.at_clear else {
            if self.opened_by_clear().is_some() {
                self.note_unknown(Unknown::VmasUnknown, 1);
            }
            return;
        };
        let parts: Vec<_> = at_clear
            .overlapping(range)
            .filter(|vma| is_armed(vma.key.flags))
            .filter_map(|vma| {
                let reason = super::worked::dropping(work, vma.is_shared())?;
                Some((reason, vma.range().and(range)))
            })
            .collect();
        for (reason, part) in parts {
            self.drop_range(reason, part);
        }
    }

    /// The addresses whose content the tracker should read anew, whatever the bits say.
    pub(super) fn dump_again(&self, most: usize) -> RangeSet {
        let mut all = RangeSet::default();
        for (_, _, incident) in self.findings.standing() {
            all.add(&incident.ranges, most);
        }
        for ranges in [&self.to_verify, &self.blind_ranges, &self.aliased] {
            all.add(ranges, most);
        }
        all
    }

    /// Ends it for good: gives up what only further findings would need.
    pub(super) fn finish(&mut self, budget: &mut Budget) {
        self.finished = true;
        self.unknown.remove(&Unknown::AuditBehind);
        self.findings.forget_pages(budget);
        self.at_clear = None;
        self.worked = Worked::default();
        self.holes = Holes::default();
        self.dropped = Default::default();
        self.fresh = RangeSet::default();
        self.moved_fresh = RangeSet::default();
        self.seen = RangeSet::default();
    }

    /// Whether there is anything for [`Self::give_up_ranges`].
    pub(super) fn has_ranges(&self) -> bool {
        let has_findings = self.findings.standing().next().is_some();
        has_findings || !self.blind_ranges.is_empty() || !self.aliased.is_empty()
    }

    /// Keeps the counts of a finished epoch and gives its ranges up.
    pub(super) fn give_up_ranges(&mut self) {
        self.ranges_given_up = true;
        self.blind_ranges = RangeSet::default();
        self.unreturned = RangeSet::default();
        self.aliased = RangeSet::default();
        for incident in self.findings.incidents.values_mut() {
            incident.ranges = RangeSet::default();
            incident.vmas = Vec::new();
        }
    }

    /// Pages that stand under this evidence, by cause.
    pub(super) fn standing_pages(&self, wanted: Evidence) -> impl Iterator<Item = (Cause, u64)> {
        self.findings
            .standing()
            .filter(move |&(_, evidence, _)| evidence == wanted)
            .map(|(cause, _, incident)| (cause, incident.pages))
    }
}

pub(super) fn sight(record: &PagesRecord) -> Sight<'_> {
    Sight {
        vma: Some(&record.vma),
        reader: Reader::from_raw(record.reader),
        at_ns: record.header.time_ns,
    }
}
