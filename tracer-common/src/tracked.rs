//! What the programs keep about a tracked address space, and how an address finds its epoch.

use bytemuck::{Pod, Zeroable};

/// A stable id of an address space: the kernel's monotonic clock in nanoseconds when it was first seen, the
/// low twelve bits replaced by the number of the CPU that saw it. Two address spaces cannot be created on one
/// CPU within 4 µs. Never 0. A reused `mm_struct` gets another id.
#[must_use]
#[inline(always)]
pub const fn birth_id(now_ns: u64, cpu: u32) -> u64 {
    (now_ns & !0xfff) | (cpu as u64 & 0xfff)
}

/// The boundary between two epochs, in one word so that it can be replaced at once.
///
/// A clear reaches one VMA after the other in the order of addresses (`clear_refs_test_walk`). From 6.4 on,
/// faults under a VMA's own lock run meanwhile. So addresses below the boundary belong to the new epoch,
/// those at or above it to the old one. VMA ends are page aligned: the low twelve bits hold the low bits of
/// the new epoch's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Boundary(pub u64);

impl Boundary {
    const EPOCH_BITS: u64 = 0xfff;

    /// Everything below `address` (page aligned) belongs to `epoch`, the rest to the one before.
    #[inline(always)]
    #[must_use]
    pub const fn at(address: u64, epoch: u32) -> Self {
        Self((address & !Self::EPOCH_BITS) | (epoch as u64 & Self::EPOCH_BITS))
    }

    /// Every address belongs to `epoch`.
    #[inline(always)]
    #[must_use]
    pub const fn complete(epoch: u32) -> Self {
        Self::at(u64::MAX, epoch)
    }

    /// Whether a clear is walking now.
    #[inline(always)]
    #[must_use]
    pub const fn is_walking(self) -> bool {
        self.0 | Self::EPOCH_BITS != u64::MAX
    }

    /// The low twelve bits of the number of the epoch that `address` belongs to.
    #[inline(always)]
    #[must_use]
    pub const fn epoch_bits(self, address: u64) -> u32 {
        let epoch = (self.0 & Self::EPOCH_BITS) as u32;
        let before = (address >= self.0 & !Self::EPOCH_BITS) as u32;
        epoch.wrapping_sub(before) & Self::EPOCH_BITS as u32
    }

    /// The full number of the epoch that `address` belongs to, given the number of the newest epoch.
    #[inline(always)]
    #[must_use]
    pub const fn epoch_of(self, address: u64, newest: u32) -> u32 {
        let bits = self.epoch_bits(address);
        newest.wrapping_sub(newest.wrapping_sub(bits) & Self::EPOCH_BITS as u32)
    }
}

/// [`Tracked::origin`]: seen at a clear.
pub const ORIGIN_CLEAR: u32 = 0;
/// [`Tracked::origin`]: armed before sdtrace started.
pub const ORIGIN_ADOPTED: u32 = 1;
/// [`Tracked::origin`]: a fork of a tracked address space.
pub const ORIGIN_FORK: u32 = 2;

/// Value of the map of tracked address spaces; its key is the address of the `mm_struct`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tracked {
    /// Stable id, see [`birth_id`].
    pub birth: u64,
    /// Where the newest epoch begins.
    pub boundary: Boundary,
    /// Number of the newest epoch, from 1. An adopted address space and a fork start in epoch 1 too.
    pub epoch: u32,
    /// One of the `ORIGIN_` constants.
    pub origin: u32,
    /// Epoch in which a tracker read the pagemap last; 0: none did.
    pub read_epoch: u32,
    /// Keeps the next field aligned.
    pub padding: u32,
    /// Write faults handled since then.
    pub writes_since_read: u64,
    /// The address space of the process that cleared last, and when that process began; 0: nobody has.
    pub opener_mm: u64,
    /// See [`Tracked::opener_mm`]: nanoseconds since the boot.
    pub opener_start: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_boundary_divides_the_epochs() {
        let boundary = Boundary::at(0x5000, 7);
        assert_eq!(boundary.epoch_of(0x4fff, 7), 7);
        assert_eq!(boundary.epoch_of(0x5000, 7), 6);
        assert!(boundary.is_walking());
        assert!(!Boundary::complete(7).is_walking());
        assert_eq!(Boundary::complete(7).epoch_of(0x7fff_ffff_f000, 7), 7);
    }

    #[test]
    fn an_epoch_number_beyond_the_bits_survives() {
        assert_eq!(Boundary::at(0x5000, 0x1000).epoch_of(0x6000, 0x1000), 0xfff);
        assert_eq!(Boundary::at(0x5000, 0x1000).epoch_of(0x4000, 0x1000), 0x1000);
    }

    proptest! {
        #[test]
        fn every_address_has_the_newest_epoch_or_the_one_before(
            page in 0u64..1 << 45, address in 0u64..1 << 57, epoch in 1u32..,
        ) {
            let boundary = Boundary::at(page << 12, epoch);
            let expected = if address < page << 12 { epoch } else { epoch - 1 };
            prop_assert_eq!(boundary.epoch_of(address, epoch), expected);
        }
    }
}
