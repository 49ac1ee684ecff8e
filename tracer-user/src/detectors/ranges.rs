//! Sets of addresses as merged ranges.

use std::collections::BTreeMap;

/// Addresses from `start` up to and without `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
}

impl Range {
    /// From `start`, `length` bytes; cut at the end of the address space.
    #[must_use]
    pub const fn of(start: u64, length: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(length),
        }
    }

    /// Whether no address is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether they share an address.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether the address is in it.
    #[must_use]
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// What is in both; may be empty.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        }
    }
}

/// A set of addresses. With a bound on the number of ranges, the two with the smallest gap between them become
/// one when there are too many: the set then has more addresses than were put in, never fewer, and says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end; neither overlapping nor touching.
    ranges: BTreeMap<u64, u64>,
    coarse: bool,
}

impl RangeSet {
    /// Whether ranges were joined over gaps to keep the set small.
    #[must_use]
    pub const fn is_coarse(&self) -> bool {
        self.coarse
    }

    /// Number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether no address is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Range> + '_ {
        self.ranges.iter().map(|(&start, &end)| Range { start, end })
    }

    /// Adds a range; returns how many bytes were not in the set before.
    pub fn insert(&mut self, range: Range) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let mut whole = range;
        let mut known = 0;
        // Those that touch count as neighbours too.
        let reach = Range {
            start: range.start.saturating_sub(1),
            end: range.end.saturating_add(1),
        };
        for other in self.overlapping(reach) {
            let common = other.and(range);
            known += common.len();
            whole.start = whole.start.min(other.start);
            whole.end = whole.end.max(other.end);
            self.ranges.remove(&other.start);
        }
        self.ranges.insert(whole.start, whole.end);
        range.len() - known
    }

    /// Adds a range and keeps at most `most` ranges (at least one).
    pub fn insert_bounded(&mut self, range: Range, most: usize) -> u64 {
        let new = self.insert(range);
        while self.ranges.len() > most.max(1) {
            self.join_nearest();
        }
        new
    }

    /// Adds all ranges of `other`.
    pub fn add(&mut self, other: &Self, most: usize) {
        for range in other.iter() {
            self.insert_bounded(range, most);
        }
        self.coarse |= other.coarse;
    }

    fn join_nearest(&mut self) {
        let pairs = self.ranges.iter().zip(self.ranges.iter().skip(1));
        let nearest = pairs
            .map(|((&start, &end), (&next, &next_end))| (next - end, start, next, next_end))
            .min();
        if let Some((_, start, next, next_end)) = nearest {
            self.ranges.remove(&next);
            self.ranges.insert(start, next_end);
            self.coarse = true;
        }
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        for other in self.overlapping(range) {
            self.ranges.remove(&other.start);
            if other.start < range.start {
                self.ranges.insert(other.start, range.start);
            }
            if other.end > range.end {
                self.ranges.insert(range.end, other.end);
            }
        }
    }

    /// Whether the set and the range share an address.
    #[must_use]
    pub fn overlaps(&self, range: Range) -> bool {
        !range.is_empty()
            && self
                .ranges
                .range(..range.end)
                .next_back()
                .is_some_and(|(_, &end)| end > range.start)
    }

    /// Whether the address is in the set.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        self.overlaps(Range::of(address, 1))
    }

    /// The parts of the range that are in the set.
    #[must_use]
    pub fn within(&self, range: Range) -> Vec<Range> {
        self.overlapping(range)
            .into_iter()
            .map(|other| other.and(range))
            .collect()
    }

    /// The parts of the range that are not in the set.
    #[must_use]
    pub fn missing(&self, range: Range) -> Vec<Range> {
        let mut parts = Vec::new();
        let mut from = range.start;
        for other in self.overlapping(range) {
            if other.start > from {
                parts.push(Range {
                    start: from,
                    end: other.start,
                });
            }
            from = from.max(other.end);
        }
        if from < range.end {
            parts.push(Range {
                start: from,
                end: range.end,
            });
        }
        parts
    }

    fn overlapping(&self, range: Range) -> Vec<Range> {
        let first = self.ranges.range(..=range.start).next_back();
        let from = first.map_or(range.start, |(&start, _)| start);
        self.ranges
            .range(from..range.end.max(from))
            .map(|(&start, &end)| Range { start, end })
            .filter(|other| other.overlaps(range))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        let mut set = RangeSet::default();
        for &(start, end) in ranges {
            set.insert(Range { start, end });
        }
        set
    }

    #[test]
    fn neighbours_become_one() {
        let mut ranges = set(&[(0, 10), (20, 30)]);
        assert_eq!(ranges.insert(Range { start: 10, end: 20 }), 10);
        assert_eq!(ranges, set(&[(0, 30)]));
        assert!(!ranges.is_coarse());
    }

    #[test]
    fn too_many_are_joined_where_the_gap_is_smallest() {
        let mut ranges = set(&[(0, 10), (100, 110)]);
        ranges.insert_bounded(Range { start: 115, end: 120 }, 2);
        assert_eq!(
            ranges.iter().collect::<Vec<_>>(),
            [Range { start: 0, end: 10 }, Range { start: 100, end: 120 }]
        );
        assert!(ranges.is_coarse());
    }

    #[test]
    fn the_last_address_is_no_trap() {
        let mut ranges = RangeSet::default();
        ranges.insert(Range::of(u64::MAX - 5, 100));
        assert!(ranges.contains(u64::MAX - 1));
        assert_eq!(ranges.bytes(), 5);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (any::<bool>(), 0u64..200, 0u64..40).prop_map(|(insert, start, length)| {
            if insert {
                Step::Insert(start, length)
            } else {
                Step::Remove(start, length)
            }
        });
        prop::collection::vec(step, 0..40)
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_addresses(steps in steps(), start in 0u64..240, length in 0u64..60) {
            let mut ranges = RangeSet::default();
            let mut truth = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Insert(start, length) => {
                        let new = (start..start + length).filter(|&address| truth.insert(address)).count();
                        prop_assert_eq!(ranges.insert(Range::of(start, length)), new as u64);
                    }
                    Step::Remove(start, length) => {
                        ranges.remove(Range::of(start, length));
                        truth.retain(|&address| !(start..start + length).contains(&address));
                    }
                }
            }
            prop_assert_eq!(ranges.bytes(), truth.len() as u64);
            prop_assert!((0..300).all(|address| ranges.contains(address) == truth.contains(&address)));
            let all: Vec<_> = ranges.iter().collect();
            prop_assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", all);
            let asked = Range::of(start, length);
            let inside: u64 = ranges.within(asked).iter().map(|part| part.len()).sum();
            let outside: u64 = ranges.missing(asked).iter().map(|part| part.len()).sum();
            prop_assert_eq!(inside, truth.range(start..start + length).count() as u64);
            prop_assert_eq!(inside + outside, length);
            prop_assert_eq!(ranges.overlaps(asked), inside > 0);
        }

        #[test]
        fn a_bounded_set_never_has_too_little(
            inserts in prop::collection::vec((0u64..1000, 1u64..30), 0..60), most in 1usize..8,
        ) {
            let mut ranges = RangeSet::default();
            for &(start, length) in &inserts {
                ranges.insert_bounded(Range::of(start, length), most);
                prop_assert!(ranges.len() <= most);
            }
            for (start, length) in inserts {
                prop_assert!(ranges.missing(Range::of(start, length)).is_empty());
            }
        }
    }
}
