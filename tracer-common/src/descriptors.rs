//! What the descriptor of a page (`struct page`) says about pins, as `include/linux/mm.h` reads it.

use crate::flags::{PIN_BIAS, PTE_PRESENT};

/// The bit of `compound_head` that says that a page is a tail of a compound page.
pub const TAIL: u64 = 1;

/// The address of the first page of the compound page that the page at this address with this `compound_head` belongs
/// to; its own for a page that is no tail.
///
/// The rest of the word is the address of the head, or, where the kernel shares the descriptors of tails, the mask that
/// makes the head's address of any tail's (`compound_info_has_mask`): all its upper bits are set, as in no address of
/// a descriptor.
#[inline(always)]
#[must_use]
pub const fn head_of(page: u64, compound_head: u64) -> u64 {
    const UPPER: u64 = 0xffff_ffff << 32;
    if compound_head & TAIL == 0 {
        page
    } else if compound_head & UPPER == UPPER {
        page & compound_head & !TAIL
    } else {
        compound_head & !TAIL
    }
}

/// Whether a page that is no compound one is pinned: it has [`PIN_BIAS`] references beyond those of its mappings, each
/// of which holds one (`_mapcount` counts them from -1). A count of references that ran over its sign counts as many,
/// like in the kernel.
#[inline(always)]
#[must_use]
pub const fn is_pinned(references: u32, mapcount: i32) -> bool {
    references as i64 - (mapcount as i64 + 1) >= PIN_BIAS.cast_signed()
}

/// The bits of an entry in which the page frame stands. Where the present bit is clear, as in `PROT_NONE` memory, the
/// kernel keeps the frame inverted (`protnone_mask`).
#[inline(always)]
#[must_use]
pub const fn upright(entry: u64) -> u64 {
    if entry & PTE_PRESENT == 0 { !entry } else { entry }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{PTE_FRAME, PTE_PROTNONE};

    #[test]
    fn a_head_is_found_by_its_address_and_by_its_mask() {
        let head = 0xffff_ea00_0123_8000;
        let tail = head + 5 * 64;
        // A page of the page cache has a list pointer there.
        assert_eq!(head_of(tail, 0xffff_8880_1234_5670), tail);
        assert_eq!(head_of(tail, head | TAIL), head);
        // Order 9, descriptors of 64 bytes.
        assert_eq!(head_of(tail, u64::MAX << 15 | TAIL), head);
    }

    #[test]
    fn references_of_mappings_are_no_pins() {
        // In the page cache and mapped once.
        assert!(!is_pinned(2, 0));
        assert!(is_pinned(2 + 1024, 0));
        // Mapped by 2,000 processes.
        assert!(!is_pinned(2001, 1999));
        assert!(is_pinned(2001 + 1024, 1999));
        assert!(!is_pinned(1023, -1));
        assert!(is_pinned(1024, -1));
        assert!(is_pinned(0x8000_0000, 0));
    }

    #[test]
    fn the_frame_of_an_entry_without_access_is_inverted() {
        let frame = 0x1_2345_6000;
        assert_eq!(upright(frame | PTE_PRESENT) & PTE_FRAME, frame);
        assert_eq!(upright(!frame & PTE_FRAME | PTE_PROTNONE) & PTE_FRAME, frame);
    }
}
