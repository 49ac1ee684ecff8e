//! The quick test: does anything in a page table need a look?

use core::arch::asm;

use tracer_common::flags::{
    PTE_HUGE, PTE_PRESENT, PTE_PROTNONE, PTE_SOFT_DIRTY, PTE_SWAP_SOFT_DIRTY, PTE_WRITE,
};
use tracer_common::pages::{CHUNK_SIZE, tag};

use super::{GROUPS, Scratch, Site};
use crate::maps::MOVED;
use crate::{pages, tracking};

/// Whether pages were moved into this chunk in this epoch.
#[inline(always)]
pub fn moved_here(site: &Site, addr: u64) -> bool {
    if !tracking::anything_moved() {
        return false;
    }
    let Some(moved) = MOVED.get_ptr(site.key.birth) else {
        return false;
    };
    // SAFETY: the verifier proves that `moved` is a map value.
    let moved = unsafe { &*moved };
    if moved.epoch != site.epoch {
        return false;
    }
    let chunk = addr & !(CHUNK_SIZE - 1);
    for [start, end] in moved.ranges {
        if start < chunk + CHUNK_SIZE && end > chunk {
            return true;
        }
    }
    false
}

/// The test of a whole chunk by one entry.
#[inline(always)]
pub fn objects_to_all(entry: u64, chunk: u32, epoch: u32) -> bool {
    // A PMD entry that is being split lacks both bits of presence and still is one (`pmd_present`).
    let present = entry & (PTE_PRESENT | PTE_PROTNONE | PTE_HUGE) != 0;
    let soft_dirty = entry
        & if present {
            PTE_SOFT_DIRTY
        } else {
            PTE_SWAP_SOFT_DIRTY
        }
        != 0;
    if soft_dirty {
        return false;
    }
    if entry & (PTE_PRESENT | PTE_WRITE) == PTE_PRESENT | PTE_WRITE {
        return true;
    }
    let Some(chunk) = pages::get(chunk) else {
        return false;
    };
    // SAFETY: the verifier proves that `chunk` is a map value.
    unsafe { (*chunk).noted_epoch >= epoch }
}

/// One instruction more for each of eight entries: `or` or `and`, without a branch.
macro_rules! of_eight {
    ($operator:literal $entries:ident $sum:ident $($offset:literal)*) => {$(
        // SAFETY: the verifier proves that `entries` has eight words.
        unsafe {
            asm!(
                concat!("{x} = *(u64 *)({entries} + ", $offset, ")"),
                concat!("{sum} ", $operator, " {x}"),
                x = out(reg) _,
                entries = in(reg) $entries,
                sum = inout(reg) $sum,
                options(pure, readonly, nostack),
            );
        }
    )*};
}

/// What `sum` or any of eight entries has.
#[inline(always)]
fn any_of_eight(entries: *const u64, mut sum: u64) -> u64 {
    of_eight!("|=" entries sum 0 8 16 24 32 40 48 56);
    sum
}

/// What `sum` and all of eight entries have.
#[inline(always)]
fn all_of_eight(entries: *const u64, mut sum: u64) -> u64 {
    of_eight!("&=" entries sum 0 8 16 24 32 40 48 56);
    sum
}

/// Not 0 if an entry may let writes through without being soft-dirty, by what any and all of them have.
#[inline(always)]
fn may_be_exposed(any: u64, all: u64) -> u64 {
    const TO_WRITE: u32 = PTE_SOFT_DIRTY.trailing_zeros() - PTE_WRITE.trailing_zeros();
    any & !(all >> TO_WRITE) & PTE_WRITE
}

/// All bits set, unless all are present and soft-dirty: then none of them can have lost a bit.
#[inline(always)]
fn may_have_lost_bits(all: u64) -> u64 {
    ((all >> PTE_SOFT_DIRTY.trailing_zeros()) & all & PTE_PRESENT).wrapping_sub(1)
}

const _: () = assert!(PTE_PRESENT == 1);

/// Of eight entries: negative if one of them is present, writable and not soft-dirty. `x - 1` is
/// negative for 0 only. Written as instructions, because LLVM makes a branch of it, and the verifier then cannot
/// follow all ways through 512 of them.
#[inline(always)]
fn eight_entries(entries: *const u64) -> u64 {
    let mut answer = 0u64;
    macro_rules! entry {
        ($offset:literal) => {
            // SAFETY: the verifier proves that `entries` has eight words.
            unsafe {
                asm!(
                    concat!("{x} = *(u64 *)({entries} + ", $offset, ")"),
                    "{x} &= {mask}",
                    "{x} ^= {exposed}",
                    "{x} += -1",
                    "{answer} |= {x}",
                    x = out(reg) _,
                    entries = in(reg) entries,
                    answer = inout(reg) answer,
                    mask = const (PTE_PRESENT | PTE_WRITE | PTE_SOFT_DIRTY),
                    exposed = const (PTE_PRESENT | PTE_WRITE),
                    options(pure, readonly, nostack),
                );
            }
        };
    }
    entry!(0);
    entry!(8);
    entry!(16);
    entry!(24);
    entry!(32);
    entry!(40);
    entry!(48);
    entry!(56);
    answer
}

/// Of eight entries, those that are present (`PTE_PRESENT` or `PTE_PROTNONE`, bit 0 or 8) and soft-dirty: the highest bit of byte `n` for entry `n`.
#[inline(always)]
fn eight_soft_dirty(entries: *const u64) -> u64 {
    let mut lanes = 0u64;
    macro_rules! entry {
        ($offset:literal $shift:literal) => {
            // SAFETY: the verifier proves that `entries` has eight words.
            unsafe {
                asm!(
                    concat!("{x} = *(u64 *)({entries} + ", $offset, ")"),
                    "{y} = {x}",
                    "{y} >>= 8",
                    "{y} |= {x}",
                    "{x} >>= 11",
                    "{x} &= {y}",
                    "{x} &= 1",
                    concat!("{x} <<= ", $shift),
                    "{lanes} |= {x}",
                    x = out(reg) _,
                    y = out(reg) _,
                    entries = in(reg) entries,
                    lanes = inout(reg) lanes,
                    options(pure, readonly, nostack),
                );
            }
        };
    }
    entry!(0 7);
    entry!(8 15);
    entry!(16 23);
    entry!(24 31);
    entry!(32 39);
    entry!(40 47);
    entry!(48 55);
    entry!(56 63);
    lanes
}

/// The quick test of the entries from page `scratch.first` to page `scratch.last`; goes to the next multiple of eight at both
/// ends, so what it says of a page outside is found to be nothing later. A function of its own for its share of the
/// stack.
#[inline(never)]
pub fn objects(scratch: &Scratch, chunk: u32, epoch: u32) -> bool {
    let marks = u64::from(tag(epoch)) * EACH;
    // The choice stands outside of the loop: in it, LLVM computes with the record before it is known that there is one.
    // A record in which nothing was noted since this epoch began has no mark of it either.
    if let Some(chunk) = pages::get(chunk)
        // SAFETY: the verifier proves that `chunk` is a map value.
        && unsafe { (*chunk).noted_epoch } >= epoch
    {
        let written = |group: usize| {
            // SAFETY: the verifier proves that `chunk` is a map value; the index is masked.
            let word =
                unsafe { core::ptr::read_volatile((&raw const (*chunk).written).cast::<u64>().add(group)) };
            // A byte is 0 where the mark is that of this epoch; adding 0x7f then leaves its highest bit clear.
            !((word ^ marks) & (EACH * 0x7f)).wrapping_add(EACH * 0x7f) & (EACH * 0x80)
        };
        go_over(scratch, u64::MAX, written)
    } else {
        go_over(scratch, 0, |_| 0)
    }
}

const EACH: u64 = 0x0101_0101_0101_0101;
/// Groups that are tested at once.
const BLOCK: usize = 8;

/// `written` tells of a group which of its pages were written in this epoch: the highest bit of byte `n` for page `n`;
/// `noted` is 0 if none was, else all bits set.
///
/// Nothing can be wrong with entries of which none lets writes through, or all are soft-dirty, if none was written that is not
/// present and soft-dirty. So it is where nobody writes, and where everybody does: 64 entries need no closer look there, and
/// two instructions each, or four.
///
/// The bounds are read anew each time: the verifier takes no notice of what is in a map, so behind each branch its ways
/// are one again.
#[inline(always)]
fn go_over(scratch: &Scratch, noted: u64, written: impl Fn(usize) -> u64) -> bool {
    for block in 0..GROUPS / BLOCK {
        let from = block * BLOCK;
        if get(&scratch.whole) != 0 {
            let mut any = 0;
            for group in from..from + BLOCK {
                any = any_of_eight(entries_of(scratch, group), any);
            }
            if (any & PTE_WRITE) | noted == 0 {
                continue;
            }
            let mut all = u64::MAX;
            for group in from..from + BLOCK {
                all = all_of_eight(entries_of(scratch, group), all);
            }
            if may_be_exposed(any, all) | (may_have_lost_bits(all) & noted) == 0 {
                continue;
            }
        } else if last_group(scratch) < from as u32 || first_group(scratch) > (from + BLOCK - 1) as u32 {
            continue;
        }
        for group in from..from + BLOCK {
            if last_group(scratch) < group as u32 || first_group(scratch) > group as u32 {
                continue;
            }
            let entries = entries_of(scratch, group);
            let written = written(group);
            let (any, all) = (any_of_eight(entries, 0), all_of_eight(entries, u64::MAX));
            if may_be_exposed(any, all) | (may_have_lost_bits(all) & written) == 0 {
                continue;
            }
            let without_bit = written & !eight_soft_dirty(entries);
            let objection = eight_entries(entries) | without_bit | without_bit.wrapping_neg();
            if objection.cast_signed() < 0 {
                return true;
            }
        }
    }
    false
}

#[inline(always)]
fn first_group(scratch: &Scratch) -> u32 {
    get(&scratch.first) >> 3
}

#[inline(always)]
fn last_group(scratch: &Scratch) -> u32 {
    get(&scratch.last) >> 3
}

/// The entries of a group.
#[inline(always)]
fn entries_of(scratch: &Scratch, group: usize) -> *const u64 {
    // SAFETY: there are as many groups.
    unsafe { (&raw const scratch.entries).cast::<u64>().add(group * 8) }
}

#[inline(always)]
fn get(word: &u32) -> u32 {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::read_volatile(word) }
}

/// The lower six bits. Written as an instruction, because LLVM knows the bounds of a loop and leaves the mask
/// out that the verifier needs to see.
#[inline(always)]
pub fn below_64(mut value: u64) -> usize {
    // SAFETY: arithmetic on a register.
    unsafe { asm!("{value} &= 63", value = inout(reg) value, options(pure, nomem, nostack)) };
    // SAFETY: the instruction leaves no more.
    unsafe { core::hint::assert_unchecked(value < 64) };
    value as usize
}

/// 1 for 0, else 0, without a branch. Written as instructions for the same reason as `eight_entries`; up to 6.2
/// the verifier of a program with functions follows every way through a branch (`mark_chain_precision`).
#[inline(always)]
pub fn zero_as_one(value: u64) -> u64 {
    let mut answer = value;
    // SAFETY: arithmetic on a register.
    unsafe {
        asm!(
            "{answer} = -{answer}",
            "{answer} |= {value}",
            "{answer} >>= 63",
            "{answer} ^= 1",
            answer = inout(reg) answer,
            value = in(reg) value,
            options(pure, nomem, nostack),
        );
    }
    answer
}
