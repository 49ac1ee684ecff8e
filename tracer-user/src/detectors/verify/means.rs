//! What drawing and comparing need from outside: a process's memory, digests, chance, and how much may be read.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use crate::ledger::Clock;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;

/// A second in nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// The memory of an address space. Whatever becomes of the process, it is always the same address space.
pub trait Watched {
    /// Reads entries of pagemap from the page at `address` on; whether all of them could be read.
    fn entries(&mut self, address: u64, entries: &mut [u64]) -> bool;

    /// Reads a page; whether that was possible.
    fn content(&mut self, address: u64, page: &mut [u8]) -> bool;
}

/// Makes digests: `SipHash` of 64 bits, by a key that is drawn at each start, so that nobody can find two contents of
/// the same digest.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    key: RandomState,
}

impl Digests {
    pub(super) fn of(&self, page: &[u8]) -> u64 {
        let mut hasher = self.key.build_hasher();
        hasher.write(page);
        hasher.finish()
    }
}

/// Draws by chance (splitmix64 of Steele, Lea and Flood). Nobody has to be surprised by it.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// With this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// With a seed by chance.
    #[must_use]
    pub fn seeded() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, each as likely as the others; 0 if there is none.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(end);
        u64::try_from(product >> 64).unwrap_or(0)
    }
}

/// How much memory may still be read: so many bytes a second, and what was not used of one second.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    bytes_per_second: u64,
    left: u64,
    at_ns: u64,
}

impl Allowance {
    /// So many bytes a second.
    #[must_use]
    pub const fn new(bytes_per_second: u64, now_ns: u64) -> Self {
        Self {
            bytes_per_second,
            left: bytes_per_second,
            at_ns: now_ns,
        }
    }

    /// Adds what time has brought.
    pub fn refill(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.at_ns).min(SECOND);
        let more = u128::from(self.bytes_per_second) * u128::from(passed) / u128::from(SECOND);
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        self.left = self.left.saturating_add(more).min(self.bytes_per_second);
        self.at_ns = now_ns;
    }

    fn take(&mut self, bytes: u64) -> bool {
        let enough = self.left >= bytes;
        if enough {
            self.left -= bytes;
        }
        enough
    }
}

/// Everything of it.
pub struct Means<'a> {
    /// Digests.
    pub digests: &'a Digests,
    /// Chance.
    pub random: &'a mut Random,
    /// How much may be read.
    pub allowance: &'a mut Allowance,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Nothing is begun after this moment of the monotonic clock.
    pub until_ns: u64,
}

impl Means<'_> {
    /// Whether time is left.
    pub(super) fn has_time(&self) -> bool {
        self.clock.monotonic_ns() < self.until_ns
    }

    /// Whether one more page may be read.
    pub(super) fn may_read_a_page(&mut self) -> bool {
        self.allowance.take(PAGE as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_contents_apart_and_nobody_can_foresee_them() {
        let digests = Digests::default();
        let mut page = vec![7u8; PAGE];
        let before = digests.of(&page);
        assert_eq!(digests.of(&page), before);
        assert_ne!(Digests::default().of(&page), before);
        page[PAGE - 1] ^= 1;
        assert_ne!(digests.of(&page), before);
    }

    #[test]
    fn chance_is_even() {
        let mut random = Random::new(1);
        let mut counts = [0u32; 8];
        for _ in 0..8_000 {
            counts[usize::try_from(random.below(8)).unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn the_allowance_grows_with_time_up_to_a_second() {
        let mut allowance = Allowance::new(8192, 0);
        assert!(allowance.take(4096) && allowance.take(4096) && !allowance.take(1));
        allowance.refill(SECOND / 2);
        assert!(allowance.take(4096) && !allowance.take(1));
        allowance.refill(100 * SECOND);
        assert!(allowance.take(8192) && !allowance.take(1));
    }
}
