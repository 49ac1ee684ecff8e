//! Which pages were written: every write fault that the kernel has handled, page by page.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::counters::Stage;
use tracer_common::flags::{PTE_SOFT_DIRTY, VM_HUGETLB, VM_PFNMAP, VM_SOFTDIRTY};
use tracer_common::pages::{RACED, tag};

use crate::layout::*;
use crate::maps::{TASK_SLOT_COUNT, WRITE_SLOTS, add, stage};
use crate::memory::{Memory, Probed};
use crate::{pages, paging, tracking};

/// A write fault between its entry and its return, where the return does not know the arguments.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct WriteUnderWay {
    thread: u64,
    vma: u64,
    address: u64,
}

/// The entry of `handle_mm_fault` for a write.
#[inline(always)]
pub fn entered(vma: u64, address: u64) {
    if !tracking::perhaps::<Probed>(Probed::u64(vma, VMA_MM.load())) {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let Some(slot) = WRITE_SLOTS.get_ptr_mut(thread as u32 & (TASK_SLOT_COUNT - 1)) else {
        return;
    };
    // SAFETY: the verifier proves that `slot` is a map value.
    let slot = unsafe { &mut *slot };
    if slot.thread != 0 {
        // The other's return will find the note of this one; or it is this thread's, and the kernel had no
        // instance of the return probe left for it.
        stage(Stage::WriteSlotTaken);
    }
    slot.vma = vma;
    slot.address = address;
    slot.thread = thread;
}

/// The return of `handle_mm_fault` where its arguments are not at hand.
#[inline(always)]
pub fn left(answer: u32) {
    let thread = bpf_get_current_pid_tgid();
    let Some(slot) = WRITE_SLOTS.get_ptr_mut(thread as u32 & (TASK_SLOT_COUNT - 1)) else {
        return;
    };
    // SAFETY: the verifier proves that `slot` is a map value.
    let slot = unsafe { &mut *slot };
    if slot.thread != thread {
        return;
    }
    slot.thread = 0;
    returned::<Probed>(slot.vma, slot.address, answer);
}

/// The return of `handle_mm_fault(vma, address, flags, regs)` for a write.
#[inline(always)]
pub fn returned<M: Memory>(vma: u64, address: u64, answer: u32) {
    if answer & (FAULT_RETRY_MASK.load() | FAULT_ERROR_MASK.load()) != 0 {
        return;
    }
    let mm = M::u64(vma, VMA_MM.load());
    if tracking::perhaps::<M>(mm) {
        note::<M>(mm, vma, address);
    }
}

/// The kernel may answer that it handled a fault and have done nothing: another thread was quicker, or the fault
/// was a NUMA hint; then it comes again. So the entry is asked. A write that has reached it left the soft-dirty
/// bit there before this note is made: whoever finds the note may expect the bit.
#[inline(never)]
fn note<M: Memory>(mm: u64, vma: u64, address: u64) {
    let Some(tracked) = tracking::get(mm) else { return };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let tracked = unsafe { &mut *tracked };
    let epoch = tracked.boundary.epoch_of(address, tracked.epoch);
    if epoch == 0 || M::u64(vma, VMA_FLAGS.load()) & (VM_SOFTDIRTY | VM_HUGETLB | VM_PFNMAP) != 0 {
        return;
    }
    let Some(leaf) = paging::leaf(mm, address) else {
        stage(Stage::WriteUnsettled);
        return;
    };
    if leaf.entry & PTE_SOFT_DIRTY == 0 {
        stage(Stage::WriteUnsettled);
        return;
    }
    // A clear that takes the bit between these two lines has been walking since before them, or begins after the
    // mark is there and takes it away too.
    let mut mark = tag(epoch);
    if tracked.boundary.is_walking() {
        mark |= RACED;
        stage(Stage::WriteRaced);
    }
    if !pages::mark_written(tracked.birth, address, leaf.huge, epoch, mark) {
        return;
    }
    stage(Stage::WriteNoted);
    add(&raw mut tracked.writes_since_read, 1);
    let walking = mark & RACED != 0 || tracked.boundary.is_walking();
    if walking && paging::leaf(mm, address).is_none_or(|leaf| leaf.entry & PTE_SOFT_DIRTY == 0) {
        // The clear has taken the bit meanwhile: the write came before it.
        pages::mark_written(tracked.birth, address, leaf.huge, epoch, 0);
    }
}
