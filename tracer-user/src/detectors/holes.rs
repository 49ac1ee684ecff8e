//! Holes in files: what they took away is dropped, in every address space that maps the file.

use std::collections::BTreeMap;

use tracer_common::audit::{RangeRecord, VmaFacts};

use super::ranges::{Range, RangeSet};
use super::worked::{AtClear, pages_of};

/// Files with holes that are remembered in one epoch, and ranges of each.
const FILES: usize = 64;
const RANGES: usize = 256;

/// A range of a file to which something happened: a hole, or a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileRange {
    pub(super) inode: u64,
    pub(super) device: u64,
    /// In the file.
    pub(super) range: Range,
}

impl FileRange {
    /// The whole pages that a write has touched.
    pub(super) fn in_pages(record: &RangeRecord) -> Self {
        Self {
            range: pages_of(record.start, record.length),
            ..Self::of(record)
        }
    }

    pub(super) fn of(record: &RangeRecord) -> Self {
        Self {
            inode: record.from,
            device: record.from_length,
            // `unmap_mapping_range` takes a length of 0 for everything behind.
            range: match record.length {
                0 => Range {
                    start: record.start,
                    end: u64::MAX,
                },
                length => Range::of(record.start, length),
            },
        }
    }
}

/// Holes that were made in one epoch.
#[derive(Clone, Debug, Default)]
pub(super) struct Holes {
    /// By inode and device.
    by_file: BTreeMap<(u64, u64), RangeSet>,
}

impl Holes {
    /// Remembers a hole; returns whether all of them are known one by one still.
    pub(super) fn note(&mut self, hole: FileRange) -> bool {
        let file = (hole.inode, hole.device);
        if self.by_file.len() >= FILES && !self.by_file.contains_key(&file) {
            return false;
        }
        let ranges = self.by_file.entry(file).or_default();
        ranges.insert_bounded(hole.range, RANGES);
        !ranges.is_coarse()
    }

    /// The holes in what a VMA maps, by its addresses.
    pub(super) fn within(&self, vma: &VmaFacts) -> Vec<Range> {
        let file = (vma.inode, u64::from(vma.device));
        self.by_file.get(&file).map_or_else(Vec::new, |ranges| {
            let holes = ranges.iter().map(|range| {
                place_in(
                    vma,
                    &FileRange {
                        inode: file.0,
                        device: file.1,
                        range,
                    },
                )
            });
            holes.filter(|range| !range.is_empty()).collect()
        })
    }
}

/// Where a hole lies in the VMAs that the clear met.
pub(super) fn holes_at(at_clear: &AtClear, hole: &FileRange) -> Vec<Range> {
    let holes = at_clear.of_file(hole).map(|vma| place_in(&vma.facts(), hole));
    holes.filter(|range| !range.is_empty()).collect()
}

/// Where the range lies in a VMA that maps the file; empty if it does not.
pub(super) fn place_in(vma: &VmaFacts, hole: &FileRange) -> Range {
    if vma.inode == 0 || vma.inode != hole.inode || u64::from(vma.device) != hole.device {
        return Range::default();
    }
    let offset = vma.offset.saturating_mul(4096);
    let mapped = Range {
        start: offset,
        end: offset.saturating_add(vma.end.saturating_sub(vma.key.start)),
    };
    let common = mapped.and(hole.range);
    if common.is_empty() {
        return Range::default();
    }
    Range::of(vma.key.start + (common.start - offset), common.len())
}

#[cfg(test)]
mod tests {
    use tracer_common::table::VmaKey;

    use super::*;

    #[test]
    fn a_hole_is_found_where_the_file_is_mapped() {
        let vma = VmaFacts {
            key: VmaKey {
                start: 0x10_0000,
                ..VmaKey::default()
            },
            end: 0x10_4000,
            offset: 2,
            inode: 7,
            device: 5,
            kind: 0,
        };
        let hole = |inode, start, length| FileRange {
            inode,
            device: 5,
            range: Range::of(start, length),
        };
        assert_eq!(
            place_in(&vma, &hole(7, 0x3000, 0x1000)),
            Range::of(0x10_1000, 0x1000)
        );
        assert_eq!(
            place_in(&vma, &hole(7, 0, u64::MAX)),
            Range::of(0x10_0000, 0x4000)
        );
        assert!(place_in(&vma, &hole(7, 0, 0x2000)).is_empty());
        assert!(place_in(&vma, &hole(8, 0, u64::MAX)).is_empty());
    }

    #[test]
    fn holes_in_one_file_need_one_place_and_too_many_are_told() {
        let hole = |inode, start| FileRange {
            inode,
            device: 5,
            range: Range::of(start, 0x1000),
        };
        let mut holes = Holes::default();
        // One behind the other, as a stream of them mostly comes.
        assert!((0..1_000).all(|page| holes.note(hole(7, page * 0x1000))));
        assert!((0..255).all(|page| holes.note(hole(7, 0x1000_0000 + page * 0x2000))));
        assert!(!holes.note(hole(7, 0x2000_0000)));
        assert!((100..163).all(|inode| holes.note(hole(inode, 0))));
        assert!(!holes.note(hole(163, 0)));
    }
}
