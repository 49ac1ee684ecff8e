//! Direct reads under way, on kernels that only take references to the pages of a read and do not pin them. A clear takes
//! the soft-dirty bits of such pages like those of any other, and what the disk delivers afterwards sets none.
//!
//! `bio_set_pages_dirty` is called by the reading task just before it submits a `struct bio` whose pages are a user's
//! memory, `bio_check_pages_dirty` when that has come to an end, in an interrupt mostly. Where a task waits for its own
//! read in the kernel, two paths do without them: `__blkdev_direct_IO_simple` of block devices and `__blockdev_direct_IO`
//! of older file systems. There the read is the call.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::counters::Stage;

use crate::identity::current;
use crate::layout::*;
use crate::maps::{DIRECT_READS, DIRECT_READS_OF, add, stage};
use crate::memory::{Memory, Probed};
use crate::tracking;

/// A read between its submission and its end.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct DirectRead {
    mm: u64,
    bytes: u64,
}

/// What was read directly into one address space. Both only grow, so that what is under way is the difference.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct DirectReads {
    submitted: u64,
    completed: u64,
}

/// `bio_set_pages_dirty(bio)`.
#[inline(always)]
pub fn begins(bio: u64) {
    note(bio, u64::from(Probed::u32(bio, BIO_SIZE.load())));
}

/// The entry of a function that reads or writes what `iter` says. Where it does not wait, it has notes of its own for
/// each `struct bio` when it returns.
#[inline(always)]
pub fn task_begins(iter: u64) {
    if Probed::u32(iter, ITER_DIRECTION.load()) & 1 == 0 {
        // No address in the kernel is as small as the number of a thread.
        note(bpf_get_current_pid_tgid(), Probed::u64(iter, ITER_COUNT.load()));
    }
}

/// The return of such a function.
#[inline(always)]
pub fn task_ends() {
    ends(bpf_get_current_pid_tgid());
}

/// Notes a read that the current task begins. Of every address space: one that is cleared for the first time may have
/// reads under way. Threads of the kernel have none.
#[inline(always)]
fn note(read_key: u64, bytes: u64) {
    const BPF_NOEXIST: u64 = 1;
    let mm = Probed::u64(current(), TASK_MM.load());
    if mm == 0 {
        return;
    }
    tracking::note_direct_read();
    let read = DirectRead { mm, bytes };
    if DIRECT_READS_OF.get_ptr(mm).is_none() {
        // Another thread may be quicker.
        let _ = DIRECT_READS_OF.insert(mm, DirectReads::default(), BPF_NOEXIST);
    }
    // Of the last read with this key the end was not seen.
    ends(read_key);
    let Some(reads) = DIRECT_READS_OF.get_ptr_mut(mm) else {
        stage(Stage::DirectReadsFull);
        return;
    };
    if DIRECT_READS.insert(read_key, read, 0).is_err() {
        stage(Stage::DirectReadsFull);
        return;
    }
    // SAFETY: the verifier proves that `reads` is a map value.
    add(unsafe { &raw mut (*reads).submitted }, read.bytes);
}

/// `bio_check_pages_dirty(bio)`: everything is there.
#[inline(always)]
pub fn ends(read_key: u64) {
    if !tracking::anything_read_directly() {
        return;
    }
    let Some(found) = DIRECT_READS.get_ptr(read_key) else {
        return;
    };
    // SAFETY: the verifier proves that `found` is a map value.
    let read = unsafe { *found };
    let _ = DIRECT_READS.remove(read_key);
    if let Some(reads) = DIRECT_READS_OF.get_ptr_mut(read.mm) {
        // SAFETY: the verifier proves that `reads` is a map value.
        add(unsafe { &raw mut (*reads).completed }, read.bytes);
    }
}

/// Bytes that reads have delivered to an address space so far.
#[inline(always)]
pub fn completed(mm: u64) -> u64 {
    if !tracking::anything_read_directly() {
        return 0;
    }
    DIRECT_READS_OF.get_ptr(mm).map_or(0, |reads| {
        // SAFETY: the verifier proves that `reads` is a map value.
        unsafe { core::ptr::read_volatile(&raw const (*reads).completed) }
    })
}

/// Bytes that reads into an address space were submitted for so far. Less what was completed at some moment before, it
/// is what was under way then or has begun since.
#[inline(always)]
pub fn submitted(mm: u64) -> u64 {
    if !tracking::anything_read_directly() {
        return 0;
    }
    DIRECT_READS_OF.get_ptr(mm).map_or(0, |reads| {
        // SAFETY: the verifier proves that `reads` is a map value.
        unsafe { core::ptr::read_volatile(&raw const (*reads).submitted) }
    })
}

/// `exit_mmap(mm)`. A read that is under way still keeps its place, so that its end is not taken for that of a read into
/// the next address space with this pointer.
#[inline(always)]
pub fn address_space_ends(mm: u64) {
    if !tracking::anything_read_directly() {
        return;
    }
    let Some(reads) = DIRECT_READS_OF.get_ptr(mm) else {
        return;
    };
    // SAFETY: the verifier proves that `reads` is a map value.
    let reads = unsafe { *reads };
    if reads.submitted == reads.completed {
        let _ = DIRECT_READS_OF.remove(mm);
    }
}
