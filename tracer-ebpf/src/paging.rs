//! Page tables, read through the kernel's direct map of all memory (x86-64).

use core::cell::UnsafeCell;
use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use tracer_common::flags::{PTE_FRAME, PTE_HUGE, PTE_PRESENT};

use crate::layout::*;
use crate::memory::{Memory, Probed};

/// What the kernel decides when it boots.
#[repr(C)]
struct Paging {
    /// Where the direct map begins; 0 as long as that is not known.
    direct_map: UnsafeCell<u64>,
    /// Bits of an entry that hold the page frame, without those of memory encryption.
    frame_mask: UnsafeCell<u64>,
    /// 1 with five levels of page tables.
    five_levels: UnsafeCell<u64>,
    /// Where the descriptors of all page frames begin (`vmemmap`); 0 as long as that is not known.
    descriptors: UnsafeCell<u64>,
}

// SAFETY: the words are read by volatile loads, and get one value only, before anything is tracked.
unsafe impl Sync for Paging {}

static PAGING: Paging = Paging {
    direct_map: UnsafeCell::new(0),
    frame_mask: UnsafeCell::new(0),
    five_levels: UnsafeCell::new(0),
    descriptors: UnsafeCell::new(0),
};

/// Finds out where page tables are. Done at the daemon's first handshake, before anything is tracked.
#[inline(always)]
pub fn note() {
    let symbol = |address: u64| if address == 0 { 0 } else { Probed::u64(address, 0) };
    let encryption = symbol(MEMORY_ENCRYPTION_MASK.load());
    // `pgdir_shift` is an int.
    let shift = symbol(PGDIR_SHIFT.load()) as u32;
    // SAFETY: plain stores to words of ours, always of the same values.
    unsafe {
        core::ptr::write_volatile(PAGING.frame_mask.get(), PTE_FRAME & !encryption);
        core::ptr::write_volatile(PAGING.five_levels.get(), u64::from(shift == 48));
        core::ptr::write_volatile(PAGING.descriptors.get(), symbol(VMEMMAP_BASE.load()));
        core::ptr::write_volatile(PAGING.direct_map.get(), symbol(PAGE_OFFSET_BASE.load()));
    }
}

/// Where the direct map begins; 0 if that is not known, and then no page table can be read.
#[inline(always)]
pub fn direct_map() -> u64 {
    // SAFETY: a plain load of a word of ours.
    unsafe { core::ptr::read_volatile(PAGING.direct_map.get()) }
}

/// Where the descriptors of all page frames begin; 0 if that is not known, and then none can be read.
#[inline(always)]
pub fn descriptors() -> u64 {
    // SAFETY: a plain load of a word of ours.
    unsafe { core::ptr::read_volatile(PAGING.descriptors.get()) }
}

/// The bits of an entry that hold the page frame.
#[inline(always)]
pub fn frame_mask() -> u64 {
    // SAFETY: a plain load of a word of ours.
    unsafe { core::ptr::read_volatile(PAGING.frame_mask.get()) }
}

/// The page table, or huge page, that an entry points to, as an address.
#[inline(always)]
pub fn table_of(entry: u64) -> u64 {
    (entry & frame_mask()).wrapping_add(direct_map())
}

/// The number of the page frame in an entry.
#[inline(always)]
pub fn frame_of(entry: u64) -> u64 {
    (entry & frame_mask()) >> 12
}

/// Copies `bytes` (at most 4096) of kernel memory.
#[inline(always)]
pub fn copy(to: *mut u64, bytes: u32, from: u64) -> bool {
    // SAFETY: the verifier proves that `to` has room for 4096 bytes; the helper checks the source.
    unsafe { bpf_probe_read_kernel(to.cast(), bytes, from as *const c_void) == 0 }
}

/// A present entry that maps a page.
#[derive(Clone, Copy)]
pub struct Leaf {
    /// The PTE, or the PMD entry of a huge page.
    pub entry: u64,
    pub huge: bool,
}

#[inline(always)]
fn step(table: u64, address: u64, shift: u32) -> u64 {
    let index = (address >> shift) & 511;
    Probed::u64(table.wrapping_add(index * 8), 0)
}

/// The entry that maps `address` in an address space; `None` if none does now.
#[inline(always)]
pub fn leaf(mm: u64, address: u64) -> Option<Leaf> {
    entry(mm, address).filter(|leaf| leaf.entry & PTE_PRESENT != 0)
}

/// The entry that maps `address`, or the one of its page table that does not.
#[inline(always)]
pub fn entry(mm: u64, address: u64) -> Option<Leaf> {
    let entry = middle(mm, address);
    if entry & PTE_PRESENT == 0 {
        return None;
    }
    if entry & PTE_HUGE != 0 {
        return Some(Leaf { entry, huge: true });
    }
    let entry = step(table_of(entry), address, 12);
    Some(Leaf { entry, huge: false })
}

/// The entry of the page table of `address`, or of the huge page there (PMD); 0 if there is none.
#[inline(always)]
pub fn middle(mm: u64, address: u64) -> u64 {
    if direct_map() == 0 {
        return 0;
    }
    let mut table = Probed::u64(mm, MM_PGD.load());
    // SAFETY: a plain load of a word of ours.
    if unsafe { core::ptr::read_volatile(PAGING.five_levels.get()) } != 0 {
        let entry = step(table, address, 48);
        if entry & PTE_PRESENT == 0 {
            return 0;
        }
        table = table_of(entry);
    }
    let entry = step(table, address, 39);
    if entry & PTE_PRESENT == 0 {
        return 0;
    }
    let entry = step(table_of(entry), address, 30);
    if entry & PTE_PRESENT == 0 || entry & PTE_HUGE != 0 {
        return 0;
    }
    step(table_of(entry), address, 21)
}
