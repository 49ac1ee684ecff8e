//! The records of pages: finding and creating them, and marking pages in them.

use core::arch::asm;

use tracer_common::counters::Stage;
use tracer_common::flags::{PTE_HUGE, PTE_PRESENT, PTE_SOFT_DIRTY, PTE_WRITE};
use tracer_common::pages::{
    CHUNK_SHIFT, ChunkKey, PAGES, PageCause, PageChunk, RACED, TAG_MASK, TAG_TRUSTED, cause_mark, tag,
};

use crate::audit::zero_as_one;
use crate::maps::{CHUNK_INDEX, CHUNKS, FREE_CHUNKS, stage};
use crate::memory::{Memory, Probed};
use crate::{paging, tracking};

/// No record.
pub const NONE: u32 = u32::MAX;

/// The number of the record of the chunk that `address` lies in; [`NONE`] without one.
#[inline(always)]
pub fn find(birth: u64, address: u64) -> u32 {
    let key = ChunkKey {
        birth,
        number: address >> CHUNK_SHIFT,
    };
    match CHUNK_INDEX.get_ptr(key) {
        // SAFETY: the verifier proves that the pointer is a map value.
        Some(number) => unsafe { *number },
        None => NONE,
    }
}

/// The record with this number.
#[inline(always)]
pub fn get(number: u32) -> Option<*mut PageChunk> {
    CHUNKS.get_ptr_mut(number)
}

/// The record of the chunk that `address` lies in, for a mark of `epoch`.
#[inline(always)]
fn for_mark(birth: u64, address: u64, epoch: u32) -> Option<*mut PageChunk> {
    let mut number = find(birth, address);
    if number == NONE {
        number = create(birth, address);
    }
    let chunk = get(number)?;
    // SAFETY: the verifier proves that `chunk` is a map value.
    unsafe {
        let noted = (*chunk).noted_epoch;
        if noted != epoch {
            // The daemon gives records back whose marks are old. If it has not come to that, old marks would pass
            // for new ones.
            if noted != 0 && epoch.wrapping_sub(noted) > TAG_TRUSTED {
                (*chunk).stale = 1;
                stage(Stage::PagesStale);
            }
            (*chunk).noted_epoch = epoch;
        }
    }
    Some(chunk)
}

#[inline(never)]
fn create(birth: u64, address: u64) -> u32 {
    const BPF_NOEXIST: u64 = 1;
    let key = ChunkKey {
        birth,
        number: address >> CHUNK_SHIFT,
    };
    let Ok(Some(number)) = FREE_CHUNKS.pop() else {
        stage(Stage::PagesFull);
        return NONE;
    };
    let Some(chunk) = get(number) else { return NONE };
    // The daemon zeroed the record before it put it on the stack of free ones.
    // SAFETY: the verifier proves that `chunk` is a map value; only this program has its number.
    unsafe { (*chunk).key = key };
    if CHUNK_INDEX.insert(key, number, BPF_NOEXIST).is_ok() {
        return number;
    }
    // Another CPU made the same record meanwhile, or the index is full.
    // SAFETY: as above.
    unsafe { (*chunk).key = ChunkKey::default() };
    let _ = FREE_CHUNKS.push(number, 0);
    let number = find(birth, address);
    if number == NONE {
        stage(Stage::PagesFull);
    }
    number
}

/// Stores one mark, for the page at `address` or, if it is huge, for all pages of its chunk.
#[inline(always)]
fn store(bytes: *mut u8, address: u64, huge: bool, mark: u8) {
    if huge {
        let word = u64::from(mark) * 0x0101_0101_0101_0101;
        for index in 0..PAGES / 8 {
            // SAFETY: the array has `PAGES` bytes and is aligned to eight.
            unsafe { core::ptr::write_volatile(bytes.cast::<u64>().add(index), word) };
        }
    } else {
        let page = (address >> 12) as usize & (PAGES - 1);
        // SAFETY: the index is masked.
        unsafe { core::ptr::write_volatile(bytes.add(page), mark) };
    }
}

/// Marks a page as written. Returns false if there was no record to mark it in.
#[inline(always)]
pub fn mark_written(birth: u64, address: u64, huge: bool, epoch: u32, mark: u8) -> bool {
    let Some(chunk) = for_mark(birth, address, epoch) else {
        return false;
    };
    // SAFETY: the verifier proves that `chunk` is a map value.
    store(unsafe { (&raw mut (*chunk).written).cast() }, address, huge, mark);
    true
}

/// Marks a page as touched by a mechanism, if its address space is tracked.
#[inline(never)]
pub fn mark_cause(mm: u64, address: u64, huge: bool, cause: u32) {
    let Some(tracked) = tracking::get(mm) else { return };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let (birth, epoch) = unsafe {
        let tracked = &*tracked;
        (tracked.birth, tracked.boundary.epoch_of(address, tracked.epoch))
    };
    let Some(chunk) = for_mark(birth, address, epoch) else {
        return;
    };
    let Some(cause) = PageCause::from_raw(cause as u8) else {
        return;
    };
    // SAFETY: the verifier proves that `chunk` is a map value.
    unsafe {
        (*chunk).caused = 1;
        if matches!(
            cause,
            PageCause::Departure | PageCause::WritableDeparture | PageCause::HugeMigration
        ) {
            (*chunk).departed_epoch = epoch;
        }
    }
    if !huge && cause.is_migration() {
        let page = (address >> 12) as usize & (PAGES - 1);
        // SAFETY: the verifier proves that `chunk` is a map value; the index is masked.
        let before = unsafe {
            (&raw const (*chunk).causes)
                .cast::<u8>()
                .add(page)
                .read_volatile()
        };
        if before == cause_mark(PageCause::ExposedArrival, epoch) {
            return;
        }
    }
    // SAFETY: the verifier proves that `chunk` is a map value.
    store(
        unsafe { (&raw mut (*chunk).causes).cast() },
        address,
        huge,
        cause_mark(cause, epoch),
    );
}

/// Marks a page that came back from a migration exposed: whatever becomes of its entry until somebody looks, a write may have gone
/// by unseen. What is known to be written stays so. Returns whether a clear is walking over the address space.
#[inline(never)]
pub fn mark_exposed(mm: u64, address: u64, huge: bool) -> bool {
    exchange(mm, address, huge, PageCause::ExposedArrival, true)
}

/// The same for a page whose page table is locked. While a clear is walking it may be the clear's turn next, and then the page was
/// exposed in the epoch before only: so it is marked without the name, which [`name_exposed`] gives.
#[inline(never)]
pub fn mark_exposed_at_once(mm: u64, address: u64) -> bool {
    exchange(mm, address, false, PageCause::ExposedArrival, false)
}

/// Takes the mark of [`mark_exposed`] back.
#[inline(never)]
pub fn take_exposed_back(mm: u64, address: u64, huge: bool) -> bool {
    exchange(mm, address, huge, PageCause::Migration, true)
}

/// The lower nine bits. Written as an instruction, because LLVM knows the bounds of a loop and leaves the mask out that the verifier
/// needs to see.
#[inline(always)]
fn below_512(mut value: u64) -> usize {
    // SAFETY: arithmetic on a register.
    unsafe { asm!("{value} &= 511", value = inout(reg) value, options(pure, nomem, nostack)) };
    value as usize
}

/// Names the pages from `first` to `last`, of one page table, that came back exposed while a clear was walking and still are: the clear
/// had come by before.
#[inline(never)]
pub fn name_exposed(mm: u64, first: u64, last: u64) {
    const OF_INTEREST: u64 = PTE_PRESENT | PTE_WRITE | PTE_SOFT_DIRTY;
    let Some(tracked) = tracking::get(mm) else { return };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let (birth, epoch) = unsafe {
        let tracked = &*tracked;
        (tracked.birth, tracked.boundary.epoch_of(first, tracked.epoch))
    };
    let pmd = paging::middle(mm, first);
    if pmd & PTE_PRESENT == 0 || pmd & PTE_HUGE != 0 {
        return;
    }
    let Some(chunk) = get(find(birth, first)) else {
        return;
    };
    let table = paging::table_of(pmd);
    let perhaps = u64::from(tag(epoch) | RACED);
    let name = u64::from(cause_mark(PageCause::ExposedArrival, epoch));
    let (from, to) = (
        (first >> 12) & (PAGES as u64 - 1),
        (last >> 12) & (PAGES as u64 - 1),
    );
    for page in 0..PAGES as u64 {
        let at = from.wrapping_add(page);
        if at > to || at >= PAGES as u64 {
            break;
        }
        let entry = Probed::u64(table.wrapping_add(at * 8), 0);
        let at = below_512(at);
        // Without a branch, for the verifiers that go back over every turn of a loop.
        // SAFETY: the verifier proves that `chunk` is a map value; the index is masked.
        unsafe {
            let mark = (&raw const (*chunk).written).cast::<u8>().add(at).read_volatile();
            let is_so = zero_as_one((entry ^ (PTE_PRESENT | PTE_WRITE)) & OF_INTEREST)
                & zero_as_one(u64::from(mark) ^ perhaps);
            let causes: *mut u8 = (&raw mut (*chunk).causes).cast();
            let before = u64::from(causes.add(at).read_volatile());
            let after = before ^ ((before ^ name) & (is_so * 0xff));
            causes.add(at).write_volatile(after as u8);
        }
    }
}

#[inline(always)]
fn exchange(mm: u64, address: u64, huge: bool, cause: PageCause, sure: bool) -> bool {
    let Some(tracked) = tracking::get(mm) else {
        return false;
    };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let (birth, epoch, walking) = unsafe {
        let tracked = &*tracked;
        let boundary = &tracked.boundary;
        (
            tracked.birth,
            boundary.epoch_of(address, tracked.epoch),
            boundary.is_walking(),
        )
    };
    if epoch == 0 {
        return false;
    }
    let Some(chunk) = for_mark(birth, address, epoch) else {
        return false;
    };
    let (clean, perhaps) = (0, tag(epoch) | RACED);
    let (before, after) = if cause as u32 == PageCause::ExposedArrival as u32 {
        (clean, perhaps)
    } else {
        (perhaps, clean)
    };
    let cause = if sure || !walking {
        cause
    } else {
        PageCause::Migration
    };
    let page = (address >> 12) as usize & (PAGES - 1);
    // SAFETY: the verifier proves that `chunk` is a map value; the index is masked.
    unsafe {
        let written: *mut u8 = (&raw mut (*chunk).written).cast();
        let mark = written.add(page).read_volatile();
        // Marks of older epochs are none.
        let mark = if mark & TAG_MASK == tag(epoch) {
            mark
        } else {
            clean
        };
        if mark == before {
            store(written, address, huge, after);
        }
        if !huge {
            (*chunk).caused = 1;
            let causes: *mut u8 = (&raw mut (*chunk).causes).cast();
            causes.add(page).write_volatile(cause_mark(cause, epoch));
        }
    }
    walking
}

/// Whether a migration took the page at `address` out of the page table in this epoch, and it was writable.
#[inline(never)]
pub fn departed_writable(mm: u64, address: u64) -> bool {
    let Some(tracked) = tracking::get(mm) else {
        return false;
    };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let (birth, epoch) = unsafe {
        let tracked = &*tracked;
        (tracked.birth, tracked.boundary.epoch_of(address, tracked.epoch))
    };
    let Some(chunk) = get(find(birth, address)) else {
        return false;
    };
    let page = (address >> 12) as usize & (PAGES - 1);
    // SAFETY: the verifier proves that `chunk` is a map value; the index is masked.
    let mark = unsafe {
        (&raw const (*chunk).causes)
            .cast::<u8>()
            .add(page)
            .read_volatile()
    };
    mark == cause_mark(PageCause::WritableDeparture, epoch)
}

/// Whether migrations took pages of this chunk out of the page table in `epoch` or the one before: their entries may be there
/// still.
#[inline(always)]
pub fn may_be_migrating(number: u32, epoch: u32) -> bool {
    let Some(chunk) = get(number) else { return false };
    // SAFETY: the verifier proves that `chunk` is a map value.
    let departed = unsafe { (*chunk).departed_epoch };
    departed != 0 && departed.wrapping_add(1) >= epoch
}
