//! Which address spaces are tracked, and the filter that keeps all others off at the cost of a few loads.

use core::cell::UnsafeCell;

use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use tracer_common::counters::Stage;
use tracer_common::tracked::Tracked;

use crate::maps::{add, stage};
use crate::memory::Memory;

/// Tracked address spaces by the address of their `mm_struct`. The loader sets the number of entries.
#[map]
static TRACKED: HashMap<u64, Tracked> = HashMap::with_max_entries(1, 0);

const CELLS: usize = 4096;

/// Words that every program reads and adds to.
#[repr(C)]
struct Filter {
    /// Number of tracked address spaces: while it is 0 a fault costs one load.
    tracked: UnsafeCell<u64>,
    /// Noted faults that have not returned: while it is 0 the return of a fault costs one load.
    under_way: UnsafeCell<u64>,
    /// Clears between their entry and their return.
    clears: UnsafeCell<u64>,
    /// 1 from the first time that a tracked address space moved pages.
    moved: UnsafeCell<u64>,
    /// The thread that collapses a file's pages into a huge one, 0 if none does: khugepaged, or one in madvise.
    collapsing: UnsafeCell<u64>,
    /// 1 from the first direct read that was seen.
    direct_reads: UnsafeCell<u64>,
    /// Address of this structure, for programs that the verifier does not let compute with it.
    address: UnsafeCell<u64>,
    /// Tracked address spaces by a few bits of their address. A cell of 0 proves that none is meant.
    cells: [UnsafeCell<u64>; CELLS],
}

// SAFETY: words are read by volatile loads and changed by atomic additions; `address` gets one value only.
unsafe impl Sync for Filter {}

#[unsafe(no_mangle)]
static FILTER: Filter = Filter {
    tracked: UnsafeCell::new(0),
    under_way: UnsafeCell::new(0),
    clears: UnsafeCell::new(0),
    moved: UnsafeCell::new(0),
    collapsing: UnsafeCell::new(0),
    direct_reads: UnsafeCell::new(0),
    address: UnsafeCell::new(0),
    cells: [const { UnsafeCell::new(0) }; CELLS],
};

/// Where the filter lies, as a pointer.
#[inline(always)]
pub fn filter_address() -> u64 {
    core::ptr::from_ref(&FILTER) as u64
}

/// Where the filter lies, as the number that [`note_filter_address`] has left.
#[inline(always)]
pub fn noted_filter_address() -> u64 {
    // SAFETY: a plain load of a word of ours.
    unsafe { core::ptr::read_volatile(FILTER.address.get()) }
}

/// Leaves the filter's address where it reads as a number. Done at the daemon's first handshake, before
/// anything is tracked.
#[inline(always)]
pub fn note_filter_address() {
    // SAFETY: a plain store to a word of ours, always of the same value.
    unsafe { core::ptr::write_volatile(FILTER.address.get(), filter_address()) };
}

/// An `mm_struct` is aligned to 64 bytes, so the lower six bits of its address say nothing.
#[inline(always)]
fn cell<M: Memory>(mm: u64) -> *mut u64 {
    let index = (M::distance(mm) >> 6) as usize & (CELLS - 1);
    // SAFETY: the index is masked.
    unsafe { FILTER.cells.as_ptr().add(index).cast_mut().cast() }
}

/// Whether any address space is tracked.
#[inline(always)]
pub fn anything() -> bool {
    // SAFETY: a plain load of a word that is only changed by atomic additions.
    unsafe { core::ptr::read_volatile(FILTER.tracked.get()) != 0 }
}

/// Whether any noted fault has not returned yet.
#[inline(always)]
pub fn any_fault_under_way() -> bool {
    // SAFETY: a plain load of a word that is only changed by atomic additions.
    unsafe { core::ptr::read_volatile(FILTER.under_way.get()) != 0 }
}

/// A fault was noted and will return.
#[inline(always)]
pub fn fault_enters() {
    add(FILTER.under_way.get(), 1);
}

/// Whether any clear is under way.
#[inline(always)]
pub fn any_clear() -> bool {
    // SAFETY: a plain load of a word that is only changed by atomic additions.
    unsafe { core::ptr::read_volatile(FILTER.clears.get()) != 0 }
}

/// A clear has entered.
#[inline(always)]
pub fn clear_enters() {
    add(FILTER.clears.get(), 1);
}

/// A clear has returned.
#[inline(always)]
pub fn clear_returns() {
    add(FILTER.clears.get(), 1u64.wrapping_neg());
}

/// The thread that collapses pages.
#[inline(always)]
pub fn collapsing() -> u64 {
    // SAFETY: a plain load of a word of ours.
    unsafe { core::ptr::read_volatile(FILTER.collapsing.get()) }
}

/// Notes the thread that collapses pages, 0 for none. Of two at a time the later is known: khugepaged is one thread,
/// and madvise tells of itself.
#[inline(always)]
pub fn note_collapsing(thread: u64) {
    // SAFETY: a plain store to a word of ours.
    unsafe { core::ptr::write_volatile(FILTER.collapsing.get(), thread) };
}

/// Whether any tracked address space has ever moved pages.
#[inline(always)]
pub fn anything_moved() -> bool {
    // SAFETY: a plain load of a word of ours.
    unsafe { core::ptr::read_volatile(FILTER.moved.get()) != 0 }
}

/// A tracked address space has moved pages.
#[inline(always)]
pub fn note_move() {
    // SAFETY: a plain store to a word of ours, always of the same value.
    unsafe { core::ptr::write_volatile(FILTER.moved.get(), 1) };
}

/// Whether any direct read has been seen.
#[inline(always)]
pub fn anything_read_directly() -> bool {
    // SAFETY: a plain load of a word of ours.
    unsafe { core::ptr::read_volatile(FILTER.direct_reads.get()) != 0 }
}

/// A direct read was seen.
#[inline(always)]
pub fn note_direct_read() {
    // SAFETY: a plain store to a word of ours, always of the same value.
    unsafe { core::ptr::write_volatile(FILTER.direct_reads.get(), 1) };
}

/// A noted fault has returned.
#[inline(always)]
pub fn fault_returns() {
    add(FILTER.under_way.get(), 1u64.wrapping_neg());
}

/// Whether this address space may be tracked; false is certain.
#[inline(always)]
pub fn perhaps<M: Memory>(mm: u64) -> bool {
    // SAFETY: a plain load of a word that is only changed by atomic additions.
    unsafe { core::ptr::read_volatile(cell::<M>(mm)) != 0 }
}

/// What is kept about this address space, if it is tracked.
#[inline(always)]
pub fn get(mm: u64) -> Option<*mut Tracked> {
    TRACKED.get_ptr_mut(mm)
}

/// Starts to track an address space. Returns false if the map is full or if it is tracked already.
#[inline(always)]
pub fn start<M: Memory>(mm: u64, tracked: &Tracked) -> bool {
    const BPF_NOEXIST: u64 = 1;
    // The filter first: no fault may pass it by once the entry is there.
    add(cell::<M>(mm), 1);
    if TRACKED.insert(mm, tracked, BPF_NOEXIST).is_err() {
        add(cell::<M>(mm), 1u64.wrapping_neg());
        stage(Stage::TrackedFull);
        return false;
    }
    add(FILTER.tracked.get(), 1);
    true
}

/// Stops tracking an address space.
#[inline(always)]
pub fn stop<M: Memory>(mm: u64) {
    if TRACKED.remove(mm).is_ok() {
        add(cell::<M>(mm), 1u64.wrapping_neg());
        add(FILTER.tracked.get(), 1u64.wrapping_neg());
    }
}
