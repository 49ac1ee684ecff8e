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

/// 0 if nothing can be wrong with eight entries by what they have in common: none lets writes through, or all are soft-dirty;
/// and if any of them was written, all are present and soft-dirty. So it is where nobody writes, and where everybody does.
/// Without a branch for each of these.
#[inline(always)]
fn in_doubt(entries: *const u64, written: u64) -> u64 {
    const SOFT_DIRTY: u32 = PTE_SOFT_DIRTY.trailing_zeros();
    let (mut any, mut all) = (0u64, u64::MAX);
    macro_rules! entries {
        ($($offset:literal)*) => {$(
            // SAFETY: the verifier proves that `entries` has eight words.
            unsafe {
                asm!(
                    concat!("{x} = *(u64 *)({entries} + ", $offset, ")"),
                    "{any} |= {x}",
                    "{all} &= {x}",
                    x = out(reg) _,
                    entries = in(reg) entries,
                    any = inout(reg) any,
                    all = inout(reg) all,
                    options(pure, readonly, nostack),
                );
            }
        )*};
    }
    entries!(0 8 16 24 32 40 48 56);
    let writable = any & !(all >> (SOFT_DIRTY - PTE_WRITE.trailing_zeros())) & PTE_WRITE;
    let all_are_dirty = (all >> SOFT_DIRTY) & all & PTE_PRESENT;
    writable | (written & all_are_dirty.wrapping_sub(1))
}

const _: () = assert!(PTE_PRESENT == 1);

/// Eight entries: `answer` becomes negative if one of them is present, writable and not soft-dirty. `x - 1` is
/// negative for 0 only. Written as instructions, because LLVM makes a branch of it, and the verifier then cannot
/// follow all ways through 512 of them.
#[inline(always)]
fn eight_entries(entries: *const u64, mut answer: u64) -> u64 {
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

/// The quick test of the entries from page `first` to page `last`; goes to the next multiple of eight at both
/// ends, so what it says of a page outside is found to be nothing later. A function of its own for its share of the
/// stack.
#[inline(never)]
pub fn objects(scratch: &Scratch, chunk: u32, first: u32, last: u32, epoch: u32) -> bool {
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
        go_over(scratch, first, last, written)
    } else {
        go_over(scratch, first, last, |_| 0)
    }
}

const EACH: u64 = 0x0101_0101_0101_0101;

/// `written` tells of a group which of its pages were written in this epoch: the highest bit of byte `n` for page `n`.
#[inline(always)]
fn go_over(scratch: &Scratch, first: u32, last: u32, written: impl Fn(usize) -> u64) -> bool {
    let mut group = below_64(u64::from(first >> 3));
    let end = below_64(u64::from(last >> 3));
    let mut answer = 0u64;
    // The verifiers before 6.8 do not see that a number that grows passes one that is not a constant.
    for _ in 0..GROUPS {
        if group > end {
            break;
        }
        let at = below_64(group as u64);
        // SAFETY: the index is masked.
        let entries = unsafe { (&raw const scratch.entries).cast::<u64>().add(at * 8) };
        let written = written(at);
        if in_doubt(entries, written) != 0 {
            answer = eight_entries(entries, answer);
            let without_bit = written & !eight_soft_dirty(entries);
            answer |= without_bit | without_bit.wrapping_neg();
        }
        group += 1;
    }
    (answer as i64) < 0
}

/// The lower six bits. Written as an instruction, because LLVM knows the bounds of a loop and leaves the mask
/// out that the verifier needs to see.
#[inline(always)]
pub fn below_64(mut value: u64) -> usize {
    // SAFETY: arithmetic on a register.
    unsafe { asm!("{value} &= 63", value = inout(reg) value, options(pure, nomem, nostack)) };
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
