//! Which pages were written: every write fault that the kernel has handled, page by page.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::audit::RangeCause;
use tracer_common::counters::Stage;
use tracer_common::flags::{PTE_SOFT_DIRTY, VM_HUGETLB, VM_PFNMAP, VM_SOFTDIRTY};
use tracer_common::pages::{RACED, tag};
use tracer_common::tracked::Tracked;
use tracer_common::writes::{WRITE_SLOTS, WriteUnderWay};

use crate::layout::*;
use crate::maps::{UNDER_WAY, add, stage};
use crate::memory::{Memory, Probed};
use crate::ranges::{self, Range};
use crate::{pages, paging, tracking};

/// The entry of `handle_mm_fault` for a write.
#[inline(always)]
pub fn entered(vma: u64, address: u64) {
    let mm = Probed::u64(vma, VMA_MM.load());
    if !tracking::perhaps::<Probed>(mm) {
        return;
    }
    let Some(tracked) = tracking::get(mm) else { return };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let tracked = unsafe { &*tracked };
    let thread = bpf_get_current_pid_tgid();
    let Some(slot) = UNDER_WAY.get_ptr_mut(thread as u32 & (WRITE_SLOTS - 1)) else {
        return;
    };
    // SAFETY: the verifier proves that `slot` is a map value.
    let slot = unsafe { &mut *slot };
    if slot.thread != 0 {
        // This thread's last return was skipped, because the kernel had no instance of the return probe left for it; or the
        // slot is another thread's, which will not find its note.
        late(slot);
    }
    slot.vma = vma;
    slot.address = address;
    slot.mm = mm;
    slot.birth = tracked.birth;
    slot.epoch = tracked.boundary.epoch_of(address, tracked.epoch);
    slot.thread = thread;
}

/// The return of `handle_mm_fault` where its arguments are not at hand.
#[inline(always)]
pub fn left(answer: u32) {
    let thread = bpf_get_current_pid_tgid();
    let Some(slot) = UNDER_WAY.get_ptr_mut(thread as u32 & (WRITE_SLOTS - 1)) else {
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

/// A write whose return was not seen. If the page is soft-dirty in the same epoch nothing is lost: the mark comes late, that is
/// all.
#[inline(never)]
fn late(slot: &WriteUnderWay) {
    let Some(tracked) = tracking::get(slot.mm) else {
        return;
    };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let tracked = unsafe { &mut *tracked };
    if tracked.birth != slot.birth {
        return;
    }
    let epoch = tracked.boundary.epoch_of(slot.address, tracked.epoch);
    // In another epoch the bit may be that of a later write.
    if epoch != 0 && !(mark(tracked, slot.mm, slot.address, epoch) && epoch == slot.epoch) {
        stage(Stage::WriteSlotTaken);
        tell_unreturned(slot);
    }
}

#[inline(always)]
fn tell_unreturned(slot: &WriteUnderWay) {
    ranges::tell(Range {
        initial_tid: slot.thread as u32,
        ..Range::of(
            RangeCause::WriteUnreturned,
            slot.birth,
            slot.epoch,
            slot.address & !0xfff,
            0x1000,
        )
    });
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
    if !mark(tracked, mm, address, epoch) {
        stage(Stage::WriteUnsettled);
    }
}

/// Marks the page as written if its entry is soft-dirty; returns whether it is.
#[inline(always)]
fn mark(tracked: &mut Tracked, mm: u64, address: u64, epoch: u32) -> bool {
    let Some(leaf) = paging::leaf(mm, address) else {
        return false;
    };
    if leaf.entry & PTE_SOFT_DIRTY == 0 {
        return false;
    }
    // A clear that takes the bit between these two lines has been walking since before them, or begins after the
    // mark is there and takes it away too.
    let mut mark = tag(epoch);
    if tracked.boundary.is_walking() {
        mark |= RACED;
        stage(Stage::WriteRaced);
    }
    if !pages::mark_written(tracked.birth, address, leaf.huge, epoch, mark) {
        // Told by the lack of a record.
        return true;
    }
    stage(Stage::WriteNoted);
    add(&raw mut tracked.writes_since_read, 1);
    let walking = mark & RACED != 0 || tracked.boundary.is_walking();
    if walking && paging::leaf(mm, address).is_none_or(|leaf| leaf.entry & PTE_SOFT_DIRTY == 0) {
        // The clear has taken the bit meanwhile: the write came before it.
        pages::mark_written(tracked.birth, address, leaf.huge, epoch, 0);
    }
    true
}
