//! Logarithmic buckets with inclusive upper bounds, as Prometheus wants them: bucket `i` holds the values in
//! `(2^(i-1), 2^i]`, so `le="2^i"` includes the exact power.

/// Buckets of the fault handling time in nanoseconds: the bounds run from 2^7 ns (128 ns) to 2^30 ns (about
/// 1.07 s); one more bucket holds everything above.
pub const FAULT_TIME: Buckets = Buckets {
    first_power: 7,
    count: 25,
};

/// A row of power-of-two buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// The first bucket's inclusive upper bound is `2^first_power`.
    pub first_power: u32,
    /// Number of buckets, the last of which has no upper bound.
    pub count: u32,
}

impl Buckets {
    /// The bucket that `value` belongs to; always below [`Buckets::count`].
    #[inline(always)]
    #[must_use]
    pub const fn index(self, value: u64) -> u32 {
        // The power whose value is the smallest that is not below `value`. Written without
        // `leading_zeros`, which the BPF target turns into a table look-up or a library call.
        let mut index = 0;
        while index < self.count - 1 {
            if value <= 1 << (self.first_power + index) {
                break;
            }
            index += 1;
        }
        index
    }

    /// The inclusive upper bound of bucket `index`, or `None` for the last one.
    #[must_use]
    pub const fn upper_bound(self, index: u32) -> Option<u64> {
        if index + 1 < self.count {
            Some(1 << (self.first_power + index))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_exact_power_belongs_to_its_own_bound() {
        assert_eq!(FAULT_TIME.index(128), 0);
        assert_eq!(FAULT_TIME.index(129), 1);
        assert_eq!(FAULT_TIME.index(256), 1);
        assert_eq!(FAULT_TIME.index(u64::MAX), FAULT_TIME.count - 1);
    }

    proptest! {
        #[test]
        fn every_value_lies_within_its_bucket(value: u64) {
            let index = FAULT_TIME.index(value);
            prop_assert!(index < FAULT_TIME.count);
            if let Some(bound) = FAULT_TIME.upper_bound(index) {
                prop_assert!(value <= bound);
            }
            if index > 0 {
                prop_assert!(value > FAULT_TIME.upper_bound(index - 1).unwrap());
            }
        }
    }
}
