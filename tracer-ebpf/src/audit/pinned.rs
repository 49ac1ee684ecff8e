//! Pinned pages, for which soft-dirty is blind: who pinned them writes them without their page-table entries.
//!
//! A clear leaves private pages of 4 KiB that are pinned soft-dirty (`pte_is_pinned` of `fs/proc/task_mmu.c`). It
//! looks neither at huge pages nor at shared memory, so these are looked at here, in the way of
//! `folio_maybe_dma_pinned`, just before the clear takes their bits.

use tracer_common::counters::Stage;
use tracer_common::descriptors::{TAIL, head_of, is_pinned, upright};
use tracer_common::flags::{
    MMF_HAS_PINNED, PIN_BIAS, PTE_HUGE, PTE_PRESENT, PTE_PROTNONE, PTE_SPECIAL, VM_MAYWRITE, VM_SHARED,
    VM_WRITE,
};
use tracer_common::pages::{CHUNK_SIZE, PAGES};

use super::{Bench, DESCRIPTOR, Scratch, scratch};
use crate::layout::*;
use crate::maps::stage;
use crate::memory::{Memory, Probed};
use crate::paging;

/// Whether the address space has ever pinned pages: without that none has to be looked at.
#[inline(always)]
pub fn ever(mm: u64) -> bool {
    let own = MM_HAS_PINNED.load();
    if own != ABSENT {
        return Probed::u32(mm, own) != 0;
    }
    Probed::u64(mm, MM_FLAGS.load()) & MMF_HAS_PINNED != 0
}

/// Pinned pages within one chunk.
pub struct Pinned {
    pub bytes: u64,
    /// Of the first one.
    pub start: u64,
    /// Behind the last one.
    pub end: u64,
}

/// What of `[addr, end)`, which `*pmd` maps in a VMA with these flags, is pinned, so that a clear is blind for it.
#[inline(always)]
pub fn pages(mm: u64, flags: u64, pmd: u64, addr: u64, end: u64) -> Option<Pinned> {
    /// What makes an entry one that is present (`pmd_present`).
    const THERE: u64 = PTE_PRESENT | PTE_PROTNONE | PTE_HUGE;
    if flags & (VM_WRITE | VM_MAYWRITE) == 0 || !ever(mm) {
        return None;
    }
    let entry = Probed::u64(pmd, 0);
    let huge = entry & PTE_HUGE != 0;
    if entry == 0 || (entry & THERE != 0 && !huge && flags & VM_SHARED == 0) {
        return None;
    }
    let Some(scratch) = scratch(Bench::Pins) else {
        stage(Stage::PinsUnread);
        return None;
    };
    let pins_at = pincount();
    scratch.pins_at = u64::from(pins_at);
    // Without `THERE` it is a huge page on its way elsewhere.
    if entry & THERE == 0 || paging::descriptors() == 0 || pins_at == ABSENT {
        stage(Stage::PinsUnread);
        return None;
    }
    if huge {
        return huge_page(scratch, entry).then_some(Pinned {
            bytes: end.wrapping_sub(addr),
            start: addr,
            end,
        });
    }
    let count = end.wrapping_sub(addr) >> 12;
    let first = (addr >> 12) & (PAGES as u64 - 1);
    put(&mut scratch.range_start, first);
    put(&mut scratch.range_end, first.wrapping_add(count));
    if !paging::copy((&raw mut scratch.entries).cast(), 4096, paging::table_of(entry)) {
        stage(Stage::PinsUnread);
        return None;
    }
    small_pages(scratch);
    if get(&scratch.pinned) == 0 {
        return None;
    }
    let chunk = addr & !(CHUNK_SIZE - 1);
    Some(Pinned {
        bytes: get(&scratch.pinned) << 12,
        start: chunk + (get(&scratch.pinned_first) << 12),
        end: chunk + (get(&scratch.pinned_behind) << 12),
    })
}

/// Where the count of pins of a compound page lies from the descriptor of its first page; [`ABSENT`] if nowhere.
#[inline(always)]
fn pincount() -> u32 {
    let size = PAGE_STRUCT_SIZE.load();
    if FOLIO_PINCOUNT.load() != ABSENT {
        FOLIO_PINCOUNT.load()
    } else if SECOND_PAGE_PINCOUNT.load() != ABSENT {
        SECOND_PAGE_PINCOUNT.load() + size
    } else if THIRD_PAGE_PINCOUNT.load() != ABSENT {
        THIRD_PAGE_PINCOUNT.load() + 2 * size
    } else {
        ABSENT
    }
}

/// Whether the huge page of this PMD entry is pinned, in whole or in part.
#[inline(always)]
fn huge_page(scratch: &mut Scratch, entry: u64) -> bool {
    // A PMD entry has a bit of its own (PAT) where the frame of a PTE begins.
    let frame = frame_of(entry) & !(PAGES as u64 - 1);
    let symbol = HUGE_ZERO_PFN.load();
    if symbol != 0 && frame == Probed::u64(symbol, 0) {
        // Nobody writes the zero page, pinned or not.
        return false;
    }
    put(&mut scratch.unread, 0);
    put(&mut scratch.pinned, 0);
    put(&mut scratch.compound, 0);
    look_at(scratch, frame);
    if get(&scratch.unread) != 0 || get(&scratch.compound) == 0 {
        // Its descriptor could not be read; or each of its small pages has pins of its own, as DAX has it.
        stage(Stage::PinsUnread);
        return false;
    }
    get(&scratch.pinned) != 0
}

/// Counts the pinned pages of the range whose entries lie in the scratch.
///
/// What is found goes to the scratch and not to registers, and what is compared is read anew each time: the verifier
/// takes no notice of what is in a map, so behind each branch its two ways are one again. And there is no function
/// in this program but itself, since up to 6.2 the verifier follows every way in a program with functions
/// (`mark_chain_precision`).
#[inline(always)]
fn small_pages(scratch: &mut Scratch) {
    put(&mut scratch.unread, 0);
    put(&mut scratch.pinned, 0);
    for page in 0..PAGES {
        let entry = get(&scratch.entries[page]);
        if entry == 0 || (page as u64) < get(&scratch.range_start) || page as u64 >= get(&scratch.range_end) {
            continue;
        }
        if entry & (PTE_PRESENT | PTE_PROTNONE) == 0 {
            // A page of shared memory that has no page here has no entry either; so it is one under migration, unless
            // it is of the highest swap type: a note about what is not there (`SWP_PTE_MARKER`).
            if entry >> 59 != 31 {
                put(&mut scratch.unread, 1);
            }
            continue;
        }
        // Special entries have no descriptor (`vm_normal_page`), so nobody can pin what they map.
        if entry & PTE_SPECIAL == 0 {
            let before = get(&scratch.pinned);
            look_at(scratch, frame_of(entry));
            if get(&scratch.pinned) != before {
                put(&mut scratch.pinned_behind, page as u64 + 1);
                if before == 0 {
                    put(&mut scratch.pinned_first, page as u64);
                }
            }
        }
    }
    if get(&scratch.unread) != 0 {
        stage(Stage::PinsUnread);
    }
}

/// The number of the page frame in an entry.
#[inline(always)]
fn frame_of(entry: u64) -> u64 {
    (upright(entry) & paging::frame_mask()) >> 12
}

/// Looks whether the page with this frame is pinned, and counts it if it is.
#[inline(always)]
fn look_at(scratch: &mut Scratch, frame: u64) {
    let size = PAGE_STRUCT_SIZE.load();
    let page = paging::descriptors().wrapping_add(frame.wrapping_mul(u64::from(size)));
    if !Probed::read(page, 0, &mut scratch.descriptor) {
        put(&mut scratch.unread, 1);
        return;
    }
    let info = get(&scratch.descriptor[word_at(PAGE_COMPOUND_HEAD.load())]);
    let flags = get(&scratch.descriptor[word_at(PAGE_FLAGS.load())]);
    if info & TAIL == 0 && flags & PG_HEAD_MASK.load() == 0 {
        let references = half_at(&scratch.descriptor, PAGE_REFCOUNT.load());
        let mapcount = half_at(&scratch.descriptor, PAGE_MAPCOUNT.load()).cast_signed();
        if is_pinned(references, mapcount) {
            count(scratch);
        }
        return;
    }
    put(&mut scratch.compound, 1);
    let head = head_of(page, info);
    if THIRD_PAGE_PINCOUNT.load() != ABSENT {
        // A compound page of two pages has no third one, and is pinned by its references like one alone.
        let mut order = 0u8;
        let mut references = 0u32;
        if !Probed::read(head, size + SECOND_PAGE_ORDER.load(), &mut order)
            || !Probed::read(head, PAGE_REFCOUNT.load(), &mut references)
        {
            put(&mut scratch.unread, 1);
            return;
        }
        if order < 2 {
            if u64::from(references) >= PIN_BIAS {
                count(scratch);
            }
            return;
        }
    }
    let mut pins = 0i32;
    if !Probed::read(head.wrapping_add(get(&scratch.pins_at)), 0, &mut pins) {
        put(&mut scratch.unread, 1);
    } else if pins > 0 {
        count(scratch);
    }
}

#[inline(always)]
fn count(scratch: &mut Scratch) {
    let before = get(&scratch.pinned);
    put(&mut scratch.pinned, before + 1);
}

/// The index of the word of a descriptor at this offset.
#[inline(always)]
fn word_at(offset: u32) -> usize {
    (offset as usize / 8) & (DESCRIPTOR / 8 - 1)
}

/// The four bytes of a descriptor at this offset.
#[inline(always)]
fn half_at(descriptor: &[u64; DESCRIPTOR / 8], offset: u32) -> u32 {
    let halves = descriptor.as_ptr().cast::<u32>();
    // SAFETY: the offset is masked.
    unsafe {
        halves
            .add((offset as usize / 4) & (DESCRIPTOR / 4 - 1))
            .read_volatile()
    }
}

#[inline(always)]
fn get(word: &u64) -> u64 {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::read_volatile(word) }
}

#[inline(always)]
fn put(word: &mut u64, value: u64) {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::write_volatile(word, value) };
}
