//! What was found in one epoch: each page once, under its strongest evidence, and what that adds up to.

use std::collections::{BTreeMap, HashMap};

use tracer_common::audit::{Reader, VmaFacts};
use tracer_common::pages::{CHUNK_SHIFT, PAGES};

use super::cause::{Cause, Evidence};
use super::ranges::{Range, RangeSet};

/// Bytes of a page: what a page-table entry maps.
pub(super) const PAGE: u64 = 4096;
/// Ranges that are kept of one incident.
const RANGES: usize = 256;
/// VMAs that are described in one incident.
const VMAS: usize = 8;

/// How sure it is, in the order of strength; hazards are of ranges and not of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Rank {
    /// A write that may belong to the epoch before.
    Raced = 1,
    Exposed = 2,
    /// Exposed, and the hardware dirty bit is set.
    ExposedDirty = 3,
    Observed = 4,
    Proved = 5,
}

impl Rank {
    const ALL: [Self; 5] = [
        Self::Raced,
        Self::Exposed,
        Self::ExposedDirty,
        Self::Observed,
        Self::Proved,
    ];

    fn evidence(self) -> Option<Evidence> {
        match self {
            Self::Raced => None,
            Self::Exposed | Self::ExposedDirty => Some(Evidence::Exposed),
            Self::Observed => Some(Evidence::Observed),
            Self::Proved => Some(Evidence::Proved),
        }
    }
}

/// A page's state in one byte: three bits of [`Rank`], five of [`Cause`]; 0: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PageState(u8);

impl PageState {
    fn of(rank: Rank, cause: Cause) -> Self {
        Self((rank as u8) << 5 | cause as u8)
    }

    fn get(self) -> Option<(Rank, Cause)> {
        let rank = *Rank::ALL.get(usize::from(self.0 >> 5).checked_sub(1)?)?;
        Some((rank, Cause::from_raw(self.0 & 0x1f)?))
    }
}

/// What several pages of one chunk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageFinding {
    pub(super) page: usize,
    pub(super) rank: Rank,
    pub(super) cause: Cause,
}

/// Where and when something was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight<'a> {
    pub(super) vma: Option<&'a VmaFacts>,
    pub(super) reader: Option<Reader>,
    pub(super) at_ns: u64,
}

/// A VMA in which something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenVma {
    pub(super) facts: VmaFacts,
    pub(super) path: Option<String>,
    /// It was looked for among the mappings already.
    pub(super) asked: bool,
}

/// Everything of one cause and one kind of evidence in one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Incident {
    /// Pages, each once.
    pub(super) pages: u64,
    /// Of exposed pages: those with the hardware dirty bit.
    pub(super) dirty: u64,
    /// Reports of pages beyond the bound; a page may be in several.
    pub(super) unlisted: u64,
    pub(super) ranges: RangeSet,
    pub(super) vmas: Vec<SeenVma>,
    pub(super) more_vmas: bool,
    /// Bits by [`Reader`].
    pub(super) readers: u8,
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    /// It was told that this was found.
    pub(super) told: bool,
}

impl Incident {
    /// Whether anything is left of it: its pages may have moved on to stronger evidence.
    pub(super) fn stands(&self) -> bool {
        self.pages > 0 || self.unlisted > 0
    }

    fn see(&mut self, sight: Sight<'_>) {
        if self.first_ns == 0 {
            self.first_ns = sight.at_ns;
        }
        self.first_ns = self.first_ns.min(sight.at_ns);
        self.last_ns = self.last_ns.max(sight.at_ns);
        if let Some(reader) = sight.reader {
            self.readers |= 1 << reader as u8;
        }
        let Some(facts) = sight.vma else { return };
        if let Some(seen) = self
            .vmas
            .iter_mut()
            .find(|seen| seen.facts.key.start == facts.key.start)
        {
            seen.asked &= seen.facts.inode == facts.inode;
            seen.facts = *facts;
        } else if self.vmas.len() < VMAS {
            self.vmas.push(SeenVma {
                facts: *facts,
                path: None,
                asked: false,
            });
        } else {
            self.more_vmas = true;
        }
    }
}

/// How many page states may still be made, over all epochs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) left: usize,
}

/// Pages that were counted for the first time under a cause and evidence.
pub(super) type Counted = BTreeMap<(Cause, Evidence), u64>;

/// The findings of one epoch.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    chunks: HashMap<u64, Box<[PageState; PAGES]>>,
    pub(super) incidents: BTreeMap<(Cause, Evidence), Incident>,
    pub(super) raced: u64,
    /// Reports of pages that no state could be kept for.
    pub(super) unlisted: u64,
}

impl Findings {
    /// Takes in pages of the chunk at `address`; returns what was not counted before.
    pub(super) fn pages(
        &mut self,
        address: u64,
        found: &[PageFinding],
        sight: Sight<'_>,
        budget: &mut Budget,
    ) -> Counted {
        let mut counted = Counted::new();
        if found.is_empty() {
            return counted;
        }
        let chunk = address >> CHUNK_SHIFT;
        if !self.chunks.contains_key(&chunk) {
            if budget.left == 0 {
                self.beyond(address, found, sight);
                return counted;
            }
            budget.left -= 1;
            self.chunks.insert(chunk, Box::new([PageState::default(); PAGES]));
        }
        for finding in found {
            let Some(state) = self
                .chunks
                .get_mut(&chunk)
                .and_then(|states| states.get_mut(finding.page))
            else {
                continue;
            };
            let before = state.get();
            let Some(after) = stronger(before, finding) else {
                // Seen again as what it is already.
                if let Some((rank, cause)) = before
                    && rank.evidence() == finding.rank.evidence()
                    && let Some(evidence) = rank.evidence()
                    && let Some(incident) = self.incidents.get_mut(&(cause, evidence))
                {
                    incident.see(sight);
                }
                continue;
            };
            *state = PageState::of(after.0, after.1);
            let page = Range::of(address + finding.page as u64 * PAGE, PAGE);
            self.take_back(before, page);
            self.put(after, page, sight);
            let evidence = after.0.evidence();
            let same = before.is_some_and(|before| counts_as(before, after));
            if let Some(evidence) = evidence
                && !same
            {
                *counted.entry((after.1, evidence)).or_default() += 1;
            }
        }
        counted
    }

    fn take_back(&mut self, before: Option<(Rank, Cause)>, page: Range) {
        let Some((rank, cause)) = before else { return };
        let Some(evidence) = rank.evidence() else {
            self.raced -= 1;
            return;
        };
        if let Some(incident) = self.incidents.get_mut(&(cause, evidence)) {
            incident.pages -= 1;
            incident.dirty -= u64::from(rank == Rank::ExposedDirty);
            incident.ranges.remove(page);
        }
    }

    fn put(&mut self, (rank, cause): (Rank, Cause), page: Range, sight: Sight<'_>) {
        let Some(evidence) = rank.evidence() else {
            self.raced += 1;
            return;
        };
        let incident = self.incidents.entry((cause, evidence)).or_default();
        incident.pages += 1;
        incident.dirty += u64::from(rank == Rank::ExposedDirty);
        incident.ranges.insert_bounded(page, RANGES);
        incident.see(sight);
    }

    /// Pages that no state can be kept for: their ranges are, and that there were some.
    fn beyond(&mut self, address: u64, found: &[PageFinding], sight: Sight<'_>) {
        for finding in found {
            self.unlisted += 1;
            if let Some(evidence) = finding.rank.evidence() {
                let incident = self.incidents.entry((finding.cause, evidence)).or_default();
                incident.unlisted += 1;
                let page = Range::of(address + finding.page as u64 * PAGE, PAGE);
                incident.ranges.insert_bounded(page, RANGES);
                incident.see(sight);
            }
        }
    }

    /// Whether a state is kept for this page.
    pub(super) fn knows(&self, address: u64) -> bool {
        self.chunks.contains_key(&(address >> CHUNK_SHIFT))
    }

    /// Takes in a hazard of a range; returns whether it is the first of its cause in this epoch.
    pub(super) fn hazard(&mut self, cause: Cause, range: Range, sight: Sight<'_>) -> bool {
        let incident = self.incidents.entry((cause, Evidence::Hazard)).or_default();
        let first = !incident.stands();
        incident.pages += incident.ranges.insert_bounded(range, RANGES).div_ceil(PAGE);
        incident.see(sight);
        first && incident.stands()
    }

    /// Takes in a hazard that has no range, with how many pages it concerns.
    pub(super) fn hazard_without_range(&mut self, cause: Cause, pages: u64, sight: Sight<'_>) -> bool {
        let incident = self.incidents.entry((cause, Evidence::Hazard)).or_default();
        let first = !incident.stands();
        incident.pages += pages;
        incident.see(sight);
        first && incident.stands()
    }

    /// Pages that are hazards of this cause.
    pub(super) fn hazards_of(&self, cause: Cause) -> u64 {
        let incident = self.incidents.get(&(cause, Evidence::Hazard));
        incident.map_or(0, |incident| incident.pages)
    }

    /// What stands, with its cause and evidence.
    pub(super) fn standing(&self) -> impl Iterator<Item = (Cause, Evidence, &Incident)> {
        self.incidents
            .iter()
            .filter(|(_, incident)| incident.stands())
            .map(|(&(cause, evidence), incident)| (cause, evidence, incident))
    }

    /// Gives the page states up; what they add up to stays.
    pub(super) fn forget_pages(&mut self, budget: &mut Budget) {
        budget.left += self.chunks.len();
        self.chunks = HashMap::new();
    }

    #[cfg(test)]
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }
}

/// What a page is after a finding; `None` if that adds nothing.
fn stronger(before: Option<(Rank, Cause)>, finding: &PageFinding) -> Option<(Rank, Cause)> {
    let Some((rank, cause)) = before else {
        return Some((finding.rank, finding.cause));
    };
    if finding.rank > rank {
        // Another sight of the same kind that knows no cause does not take a known one away.
        // Neither does a changed content, which tells no mechanism by itself.
        let same_kind = finding.rank.evidence() == rank.evidence();
        let keeps = cause != Cause::Unknown
            && (finding.rank == Rank::Proved || (same_kind && finding.cause == Cause::Unknown));
        return Some((finding.rank, if keeps { cause } else { finding.cause }));
    }
    let same_kind = finding.rank.evidence() == rank.evidence();
    (same_kind && cause == Cause::Unknown && finding.cause != Cause::Unknown).then_some((rank, finding.cause))
}

/// Whether a page was counted already as what it is now: a missed write is one, observed first and proved later or not.
fn counts_as(before: (Rank, Cause), after: (Rank, Cause)) -> bool {
    let (was, is) = (before.0.evidence(), after.0.evidence());
    let misses = |evidence: Option<Evidence>| evidence.is_some_and(Evidence::is_miss);
    before.1 == after.1 && (was == is || (after.1 != Cause::Unknown && misses(was) && misses(is)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIGHT: Sight<'_> = Sight {
        vma: None,
        reader: Some(Reader::Clear),
        at_ns: 5,
    };

    fn finding(page: usize, rank: Rank, cause: Cause) -> PageFinding {
        PageFinding { page, rank, cause }
    }

    fn pages(findings: &Findings, cause: Cause, evidence: Evidence) -> u64 {
        findings
            .incidents
            .get(&(cause, evidence))
            .map_or(0, |incident| incident.pages)
    }

    #[test]
    fn a_page_counts_once_under_its_strongest_evidence() {
        let mut findings = Findings::default();
        let mut budget = Budget { left: 4 };
        let mut put = |rank, cause| findings.pages(0x20_0000, &[finding(3, rank, cause)], SIGHT, &mut budget);
        assert_eq!(put(Rank::Exposed, Cause::Unknown).len(), 1);
        assert_eq!(put(Rank::Exposed, Cause::Unknown).len(), 0);
        assert_eq!(
            put(Rank::Exposed, Cause::MigrationRace),
            Counted::from([((Cause::MigrationRace, Evidence::Exposed), 1)])
        );
        // The dirty bit later is no new page.
        assert_eq!(put(Rank::ExposedDirty, Cause::Unknown).len(), 0);
        assert_eq!(put(Rank::Observed, Cause::KsmMerge).len(), 1);
        assert_eq!(put(Rank::Exposed, Cause::MigrationRace).len(), 0);
        assert_eq!(pages(&findings, Cause::MigrationRace, Evidence::Exposed), 0);
        assert_eq!(pages(&findings, Cause::Unknown, Evidence::Exposed), 0);
        assert_eq!(pages(&findings, Cause::KsmMerge, Evidence::Observed), 1);
        let standing: Vec<_> = findings
            .standing()
            .map(|(cause, evidence, incident)| (cause, evidence, incident.ranges.bytes()))
            .collect();
        assert_eq!(standing, [(Cause::KsmMerge, Evidence::Observed, PAGE)]);
    }

    #[test]
    fn a_missed_write_that_is_proved_later_counts_once_and_keeps_its_cause() {
        let mut findings = Findings::default();
        let mut budget = Budget { left: 4 };
        let mut put =
            |page, rank, cause| findings.pages(0, &[finding(page, rank, cause)], SIGHT, &mut budget);
        assert_eq!(put(0, Rank::Observed, Cause::KsmMerge).len(), 1);
        assert_eq!(put(0, Rank::Proved, Cause::OtherMapper), Counted::new());
        // Unknown ones are counted when the epoch is over, by what stands then.
        put(1, Rank::Observed, Cause::Unknown);
        assert_eq!(
            put(1, Rank::Proved, Cause::FileWrite),
            Counted::from([((Cause::FileWrite, Evidence::Proved), 1)])
        );
        put(2, Rank::Exposed, Cause::MigrationRace);
        assert_eq!(
            put(2, Rank::Proved, Cause::Unknown),
            Counted::from([((Cause::MigrationRace, Evidence::Proved), 1)])
        );
        assert_eq!(pages(&findings, Cause::KsmMerge, Evidence::Proved), 1);
        assert_eq!(pages(&findings, Cause::KsmMerge, Evidence::Observed), 0);
        assert_eq!(pages(&findings, Cause::FileWrite, Evidence::Proved), 1);
    }

    #[test]
    fn what_does_not_fit_is_not_lost() {
        let mut findings = Findings::default();
        let mut budget = Budget { left: 1 };
        let found = [finding(0, Rank::Observed, Cause::KsmMerge)];
        findings.pages(0, &found, SIGHT, &mut budget);
        findings.pages(0x20_0000, &found, SIGHT, &mut budget);
        let incident = &findings.incidents[&(Cause::KsmMerge, Evidence::Observed)];
        assert_eq!((incident.pages, incident.unlisted, findings.unlisted), (1, 1, 1));
        assert_eq!(incident.ranges.bytes(), 2 * PAGE);
        findings.forget_pages(&mut budget);
        assert_eq!((budget.left, findings.chunks()), (1, 0));
    }

    fn ranks() -> impl Strategy<Value = Rank> {
        prop::sample::select(Rank::ALL.to_vec())
    }

    proptest! {
        /// Whatever comes in whatever order, the incidents add up to the pages' states.
        #[test]
        fn incidents_add_up(
            found in prop::collection::vec((0u64..3, 0usize..8, ranks(), 0u8..26), 0..200),
        ) {
            let mut findings = Findings::default();
            let mut budget = Budget { left: 10 };
            let mut strongest: BTreeMap<(u64, usize), Rank> = BTreeMap::new();
            let mut totals = Counted::new();
            for (chunk, page, rank, cause) in found {
                let cause = Cause::from_raw(cause).unwrap();
                let address = chunk << CHUNK_SHIFT;
                let counted = findings.pages(address, &[finding(page, rank, cause)], SIGHT, &mut budget);
                for (key, count) in counted {
                    *totals.entry(key).or_default() += count;
                }
                let best = strongest.entry((chunk, page)).or_insert(rank);
                *best = (*best).max(rank);
            }
            let count = |wanted: Option<Evidence>| strongest.values().filter(|rank| rank.evidence() == wanted).count() as u64;
            for evidence in [Evidence::Exposed, Evidence::Observed, Evidence::Proved] {
                let standing: u64 = findings
                    .standing()
                    .filter(|&(_, is, _)| is == evidence)
                    .map(|(_, _, incident)| incident.pages)
                    .sum();
                prop_assert_eq!(standing, count(Some(evidence)));
                let bytes: u64 = findings
                    .standing()
                    .filter(|&(_, is, _)| is == evidence)
                    .map(|(_, _, incident)| incident.ranges.bytes())
                    .sum();
                prop_assert_eq!(bytes, standing * PAGE);
            }
            prop_assert_eq!(findings.raced, count(None));
            // What was ever counted is at least what stands; a missed write counts under the evidence that came first.
            let mut standing: BTreeMap<(Cause, bool), u64> = BTreeMap::new();
            for (cause, evidence, incident) in findings.standing() {
                *standing.entry((cause, evidence.is_miss())).or_default() += incident.pages;
            }
            for ((cause, miss), pages) in standing {
                let counted: u64 = totals
                    .iter()
                    .filter(|((is, evidence), _)| *is == cause && evidence.is_miss() == miss)
                    .map(|(_, pages)| pages)
                    .sum();
                prop_assert!(counted >= pages);
            }
        }
    }
}
