//! Holds what CRIU wrote against what is known to have been written. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::workload::proc::PAGE;

/// Pages of a huge page.
const HUGE_PAGES: u64 = 512;

/// Page addresses.
pub type PageSet = BTreeSet<u64>;

/// A piece of the target's memory whose truth is known to the page.
#[derive(Clone, Debug)]
pub struct Area {
    /// What it is.
    pub name: String,
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// Pages that the target changed in this epoch.
    pub changed: PageSet,
    /// Whether one write marks 512 pages.
    pub huge: bool,
}

/// Everything that is known about what was written in one epoch.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The memory whose truth the target itself tells.
    pub areas: Vec<Area>,
    /// Everywhere: what pagemap showed soft-dirty just before CRIU came. A page of an area is never explained by it.
    pub soft_dirty: PageSet,
    /// Listed exclusions: pages that CRIU itself writes into its target.
    pub exclusions: BTreeMap<u64, &'static str>,
}

/// Why a page is in CRIU's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The target says that it changed it.
    Changed,
    /// The target changed another page of the same huge page.
    HugePage,
    /// Outside of the areas, and pagemap showed it soft-dirty before CRIU came: stacks, heap, the program's data.
    SoftDirty,
    /// An exclusion.
    Excluded(&'static str),
}

impl Known {
    /// Why CRIU may have written this page; `None` if nothing explains it.
    ///
    /// This is the one place where another source of written pages (sdtrace's own) is to be asked.
    #[must_use]
    pub fn explain(&self, page: u64) -> Option<Reason> {
        if let Some(area) = self
            .areas
            .iter()
            .find(|area| (area.start..area.end).contains(&page))
        {
            let huge = PAGE as u64 * HUGE_PAGES;
            let first = page - (page - area.start) % huge;
            return if area.changed.contains(&page) {
                Some(Reason::Changed)
            } else if area.huge && area.changed.range(first..first + huge).next().is_some() {
                Some(Reason::HugePage)
            } else {
                None
            };
        }
        if let Some(exclusion) = self.exclusions.get(&page) {
            return Some(Reason::Excluded(exclusion));
        }
        self.soft_dirty.contains(&page).then_some(Reason::SoftDirty)
    }
}

/// The result of holding one image against what is known.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Pages in the image, by reason.
    pub explained: BTreeMap<Reason, u64>,
    /// Pages in the image that nothing explains.
    pub unexplained: Vec<u64>,
    /// Pages that changed and are not in the image, by area.
    pub left_out: BTreeMap<String, Vec<u64>>,
}

impl Comparison {
    /// Compares.
    #[must_use]
    pub fn of(known: &Known, written: &PageSet) -> Self {
        let mut comparison = Self::default();
        for page in written {
            match known.explain(*page) {
                Some(reason) => *comparison.explained.entry(reason).or_default() += 1,
                None => comparison.unexplained.push(*page),
            }
        }
        for area in &known.areas {
            let left_out: Vec<_> = area.changed.difference(written).copied().collect();
            if !left_out.is_empty() {
                comparison.left_out.insert(area.name.clone(), left_out);
            }
        }
        comparison
    }

    /// Number of pages that are explained in this way.
    #[must_use]
    pub fn count(&self, reason: Reason) -> u64 {
        self.explained.get(&reason).copied().unwrap_or(0)
    }

    /// Number of pages that changed and are not in the image.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let area = |name: &str, start: u64, pages: u64, changed: &[u64], huge| Area {
            name: name.to_owned(),
            start,
            end: start + pages * 0x1000,
            changed: changed.iter().copied().collect(),
            huge,
        };
        Known {
            areas: vec![
                area("private", 0x10_0000, 4, &[0x10_1000, 0x10_2000], false),
                area("huge", 0x20_0000, 1024, &[0x20_5000], true),
            ],
            soft_dirty: [0x9000, 0x10_3000].into(),
            exclusions: [(0x80_1000, "code")].into(),
        }
    }

    #[test]
    fn every_page_has_the_right_reason() {
        let known = known();
        for (page, reason) in [
            (0x10_1000, Some(Reason::Changed)),
            (0x20_5000, Some(Reason::Changed)),
            (0x20_0000, Some(Reason::HugePage)),
            (0x9000, Some(Reason::SoftDirty)),
            (0x80_1000, Some(Reason::Excluded("code"))),
            // In an area only the target's own word counts.
            (0x10_3000, None),
            (0x80_0000, None),
            (0xa000, None),
        ] {
            assert_eq!(known.explain(page), reason, "{page:#x}");
        }
    }

    #[test]
    fn what_is_left_out_and_what_is_too_much_are_found() {
        let comparison = Comparison::of(&known(), &[0x10_1000, 0x10_3000, 0x20_5000].into());
        assert_eq!(comparison.unexplained, [0x10_3000]);
        assert_eq!(
            comparison.left_out,
            BTreeMap::from([("private".to_owned(), vec![0x10_2000])])
        );
        assert_eq!(comparison.count(Reason::Changed), 2);
        assert_eq!(comparison.left_out(), 1);
    }
}
