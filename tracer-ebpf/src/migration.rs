//! Writable migration entries: which of the swap types is theirs?
//!
//! A clear takes the soft-dirty bit from a writable migration entry and leaves it writable (`clear_soft_dirty` of
//! `fs/proc/task_mmu.c`): the page comes back exposed, unless the kernel makes it
//! dirty on that occasion (`pte_mkdirty` of `remove_migration_pte` in 6.1, `pmd_mkdirty` of `remove_migration_pmd` from 6.1 on),
//! which sets soft-dirty as well. The number of their type depends on the kernel's configuration and
//! is in no type information (`SWP_MIGRATION_WRITE` of `include/linux/swap.h`), so it is learnt from pages that were writable
//! when they departed.

use core::cell::UnsafeCell;

use tracer_common::flags::{PTE_PRESENT, PTE_PROTNONE, PTE_SWAP_SOFT_DIRTY};

use crate::maps::add;

/// The type is in the upper five bits of an entry that is not present (x86: `__swp_type`).
const TYPE_SHIFT: u32 = 59;
/// So many pages must have shown a type before it is believed: fork or mprotect may make an entry readable while its page
/// is on its way.
const ENOUGH: u64 = 8;

#[repr(C)]
struct Types {
    /// How many pages that departed writable had an entry of this type.
    seen: [UnsafeCell<u64>; 32],
    /// The type of writable migration entries, plus one; 0: not known yet.
    writable: UnsafeCell<u64>,
}

// SAFETY: words are read by volatile loads and changed by atomic additions or stores of a whole word.
unsafe impl Sync for Types {}

#[unsafe(no_mangle)]
static TYPES: Types = Types {
    seen: [const { UnsafeCell::new(0) }; 32],
    writable: UnsafeCell::new(0),
};

/// An entry that gives way to a page which was writable. Of the migration types the writable one is the highest.
#[inline(always)]
pub fn learn(entry: u64) {
    let kind = (entry >> TYPE_SHIFT) & 31;
    // SAFETY: the index is masked.
    let seen: *mut u64 = unsafe { TYPES.seen.as_ptr().add(kind as usize).cast_mut().cast() };
    add(seen, 1);
    // SAFETY: plain loads and a store of words of ours.
    unsafe {
        if core::ptr::read_volatile(seen) >= ENOUGH
            && kind + 1 > core::ptr::read_volatile(TYPES.writable.get())
        {
            core::ptr::write_volatile(TYPES.writable.get(), kind + 1);
        }
    }
}

/// What [`difference`] compares entries with; 0 while it is not known.
#[inline(always)]
pub fn known() -> u64 {
    // SAFETY: a plain load of a word of ours.
    unsafe { core::ptr::read_volatile(TYPES.writable.get()) }
}

/// 0 if the entry is a writable migration entry without the soft-dirty bit; `known` is what [`known`] said, not 0.
#[inline(always)]
pub fn difference(entry: u64, known: u64) -> u64 {
    const MASK: u64 = 31 << TYPE_SHIFT | PTE_PRESENT | PTE_PROTNONE | PTE_SWAP_SOFT_DIRTY;
    (entry ^ (known.wrapping_sub(1) << TYPE_SHIFT)) & MASK
}
