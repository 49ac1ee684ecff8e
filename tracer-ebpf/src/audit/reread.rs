//! What the look at a chunk is made of, read anew in the order that its conclusions depend on: first the marks of writes,
//! then the entries. The bit is in an entry before its mark is made, so a mark without a bit means that the bit was taken away;
//! an entry that was read before the marks says nothing, because its write may have come between.
//!
//! Functions of their own for their shares of the stack, each called by the program itself.

use tracer_common::audit::MOVED_RANGES;
use tracer_common::flags::{PTE_HUGE, PTE_PRESENT, PTE_SPECIAL};
use tracer_common::pages::{PAGES, RACED, tag};

use super::look::bits_below;
use super::quick::{below_64, zero_as_one};
use super::{GROUPS, Scratch, WORDS};
use crate::layout::*;
use crate::maps::MOVED;
use crate::memory::{Memory, Probed};
use crate::{migration, pages, paging, tracking};

/// Copies the marks of writes; none where they cannot be told from old ones.
#[inline(never)]
pub fn marks(scratch: &mut Scratch, chunk: u32) {
    if let Some(chunk) = pages::get(chunk)
        // SAFETY: the verifier proves that `chunk` is a map value.
        && unsafe { (*chunk).stale } == 0
    {
        for index in 0..GROUPS {
            // SAFETY: as above; there are as many groups.
            scratch.written[index] =
                unsafe { core::ptr::read_volatile((&raw const (*chunk).written).cast::<u64>().add(index)) };
        }
    } else {
        for index in 0..GROUPS {
            zero(&mut scratch.written[index]);
        }
    }
}

/// Reads the entries. What was a hole or a huge page a moment ago may have become a page table. Returns false if they could
/// not be read.
#[inline(never)]
pub fn entries(scratch: &mut Scratch) -> bool {
    if scratch.table == 0 {
        let entry = if scratch.pmd == 0 {
            paging::middle(Probed::u64(scratch.site.vma, VMA_MM.load()), scratch.address)
        } else {
            Probed::u64(scratch.pmd, 0)
        };
        if entry & PTE_PRESENT == 0 || entry & PTE_HUGE != 0 {
            one_for_all(scratch, entry);
            return true;
        }
        scratch.table = paging::table_of(entry);
        scratch.huge = 0;
        scratch.hole = 0;
    }
    paging::copy((&raw mut scratch.entries).cast(), 4096, scratch.table)
}

#[inline(always)]
fn one_for_all(scratch: &mut Scratch, mut entry: u64) {
    // Present in the sense of `pmd_present`; `PTE_PROTNONE` is the bit above `PTE_HUGE`.
    entry |= (entry & PTE_HUGE) << 1;
    if entry & PTE_PRESENT != 0 && is_huge_zero(entry) {
        entry |= PTE_SPECIAL;
    }
    for index in 0..PAGES {
        scratch.entries[index] = entry;
    }
}

#[inline(always)]
fn is_huge_zero(entry: u64) -> bool {
    let symbol = HUGE_ZERO_PFN.load();
    // A PMD entry of a huge page has a bit of its own (PAT) where the frame of a PTE begins.
    symbol != 0 && paging::frame_of(entry) & !1 == Probed::u64(symbol, 0)
}

/// Which pages of the chunk were moved here in this epoch.
#[inline(never)]
pub fn moved(scratch: &mut Scratch) {
    for word in 0..WORDS {
        zero(&mut scratch.moved[word]);
    }
    if !tracking::anything_moved() {
        return;
    }
    let Some(moved) = MOVED.get_ptr(scratch.site.key.birth) else {
        return;
    };
    // SAFETY: the verifier proves that `moved` is a map value.
    let moved = unsafe { &*moved };
    if moved.epoch != scratch.site.epoch {
        return;
    }
    for range in 0..MOVED_RANGES {
        // As numbers of pages from the beginning of the chunk; those before it are negative.
        let [start, end] = moved.ranges[range];
        let page = |address: u64| (address.wrapping_sub(scratch.address).cast_signed() >> 12).cast_unsigned();
        let (start, end) = (page(start), page(end));
        for word in 0..WORDS {
            scratch.moved[word] |= bits_below(end, word) & !bits_below(start, word);
        }
    }
}

/// Marks what has a writable migration entry without the bit as a write that raced with the clear: a migration has the page in
/// hand, and what becomes of it is not known yet.
#[inline(never)]
pub fn migrating(scratch: &mut Scratch, chunk: u32) {
    let known = migration::known();
    if known == 0 || !pages::may_be_migrating(chunk, scratch.site.epoch) {
        return;
    }
    let mark = u64::from(tag(scratch.site.epoch) | RACED);
    for group in 0..GROUPS {
        // Opaque: LLVM would count from -64 up to 0, and the verifier of 7.3 takes no address below the memory's beginning.
        let group = below_64(group as u64);
        let mut written = scratch.written[group];
        // Eight copies for the verifiers before 6.3, as in `look_at_group`.
        macro_rules! page {
            ($($bit:literal)*) => {$(
                let is_one = zero_as_one(migration::difference(scratch.entries[group * 8 + $bit], known));
                written = (written & !((is_one * 0xff) << ($bit * 8))) | ((is_one * mark) << ($bit * 8));
            )*};
        }
        page!(0 1 2 3 4 5 6 7);
        scratch.written[group] = written;
    }
}

/// Stores a 0, but not as a part of a memset: a call of it takes a share of the stack.
#[inline(always)]
fn zero(word: &mut u64) {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::write_volatile(word, 0) };
}
