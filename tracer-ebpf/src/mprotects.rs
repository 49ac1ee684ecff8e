//! `mprotect_fixup`: what it changes on armed VMAs.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::audit::Reader;
use tracer_common::classify::{MprotectChange, VmaState, mprotect_changes};
use tracer_common::counters::{Counter, Stage};
use tracer_common::flags::{VM_ACCOUNT, VM_SOFTDIRTY, is_armed};
use tracer_common::table::VmaKey;
use tracer_common::tracked::ORIGIN_CLEAR;

use crate::audit::{self, Site};
use crate::layout::*;
use crate::maps::{MPROTECTS, ROW_INDEX, count, stage};
use crate::memory::{Memory, Probed};
use crate::{calls, rows, tracking};

/// A call between its entry and its return.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct MprotectUnderWay {
    birth: u64,
    /// Where the kernel leaves the resulting VMA.
    pprev: u64,
    start: u64,
    end: u64,
    before: VmaState,
    /// `vm_page_prot` before.
    page_prot: u64,
    newflags: u64,
    fresh_below: u16,
    fresh_above: u16,
    epoch: u32,
    /// Whether a clear opened the epoch.
    cleared: u32,
    padding: u32,
}

#[inline(always)]
fn state_of(vma: u64) -> VmaState {
    VmaState {
        start: Probed::u64(vma, VMA_START.load()),
        end: Probed::u64(vma, VMA_END.load()),
        flags: Probed::u64(vma, VMA_FLAGS.load()),
    }
}

/// The entry of `mprotect_fixup(…, vma, pprev, start, end, newflags)`; `mmap_lock` is held for writing.
#[inline(always)]
pub fn entry(vma: u64, pprev: u64, start: u64, end: u64, newflags: u64) {
    if !tracking::anything() {
        return;
    }
    let mm = Probed::u64(vma, VMA_MM.load());
    let Some(tracked) = tracking::get(mm) else {
        return;
    };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let (birth, epoch, origin) = unsafe { ((*tracked).birth, (*tracked).epoch, (*tracked).origin) };
    stage(Stage::MprotectEntry);
    let before = state_of(vma);

    // `*pprev` is the VMA below the range, or `vma` itself when the range begins inside it.
    let below = state_of(Probed::u64(pprev, 0));
    let fresh_below = below.end == start && below.start < start && !is_armed(below.flags);
    let mut fresh_above = false;
    if VMA_NEXT.load() != ABSENT {
        let next = state_of(Probed::u64(vma, VMA_NEXT.load()));
        fresh_above = next.start == end && !is_armed(next.flags);
    }
    let call = MprotectUnderWay {
        birth,
        pprev,
        start,
        end,
        before,
        page_prot: Probed::u64(vma, VMA_PAGE_PROT.load()),
        newflags,
        fresh_below: u16::from(fresh_below),
        fresh_above: u16::from(fresh_above),
        epoch,
        cleared: u32::from(epoch > 1 || origin == ORIGIN_CLEAR),
        padding: 0,
    };
    if MPROTECTS.insert(bpf_get_current_pid_tgid(), call, 0).is_err() {
        stage(Stage::MprotectsFull);
    }
}

/// Whether the VMA above, which was merged into `after`, still carried `VM_SOFTDIRTY` before. Kernels before 6.1
/// link the VMAs, and the entry has looked. Later ones keep them in a maple tree; there the table of rows
/// answers: VMAs merge only if their flags are equal but for `VM_SOFTDIRTY`, so the armed state that the VMA
/// above had is known, and if neither a clear nor an mprotect nor a fault of this epoch met it, the VMA was fresh.
#[inline(always)]
fn was_fresh_above(call: &MprotectUnderWay, after: &VmaKey) -> bool {
    if VMA_NEXT.load() != ABSENT {
        return call.fresh_above != 0;
    }
    let armed = VmaKey {
        start: call.end,
        flags: after.flags & !VM_SOFTDIRTY,
        ..*after
    };
    let Some(number) = ROW_INDEX.get_ptr(armed) else {
        return true;
    };
    // SAFETY: the verifier proves that `number` is a map value.
    let Some(row) = rows::get(unsafe { *number }) else {
        return true;
    };
    // SAFETY: the verifier proves that `row` is a map value.
    let (met, made, faulted) =
        unsafe { ((*row).armed_epoch, (*row).mprotect_epoch, (*row).last_fault_epoch) };
    met != call.epoch && made != call.epoch && faulted != call.epoch
}

/// Notes what a call left of an armed VMA above its range: a VMA of its own now, as armed as before. Otherwise
/// [`was_fresh_above`] would take it for fresh when a later call joins it again.
#[inline(always)]
fn note_rest_above(call: &MprotectUnderWay, after: &VmaState, vma: u64) {
    let split = call.before.end > call.end && after.end == call.end;
    if !split || !is_armed(call.before.flags) {
        return;
    }
    let rest = VmaKey {
        birth: call.birth,
        start: call.end,
        flags: call.before.flags,
        page_prot: call.page_prot,
    };
    // What a VMA maps is the same for all its parts.
    if let Some(row) = rows::get(rows::find_or_create(&rest, vma)) {
        // SAFETY: the verifier proves that `row` is a map value; mmap_lock is held for writing.
        unsafe {
            (*row).end = call.before.end;
            (*row).mprotect_epoch = call.epoch;
        }
    }
}

/// The return of `mprotect_fixup`.
#[inline(always)]
pub fn returned(result: i32) {
    if !tracking::anything() {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let Some(found) = MPROTECTS.get_ptr(thread) else {
        return;
    };
    // SAFETY: the verifier proves that `found` is a map value.
    let call = unsafe { *found };
    let _ = MPROTECTS.remove(thread);
    stage(Stage::MprotectReturn);
    if result != 0 {
        return;
    }
    // On success the kernel leaves the VMA that covers the range in `*pprev`.
    let vma = Probed::u64(call.pprev, 0);
    let after = state_of(vma);
    if (after.flags ^ call.newflags) & !(VM_ACCOUNT | VM_SOFTDIRTY) != 0 {
        // The kernel gave the VMA other flags than we think it was asked for: an argument is misread, or a
        // security module changed them. The self-test refuses to start on it. Two flags are the kernel's own
        // affair: it charges private memory when it becomes writable, and a merge may bring VM_SOFTDIRTY.
        stage(Stage::MprotectFlagsDiffer);
    }
    if !is_armed(call.before.flags) && !is_armed(after.flags) {
        return;
    }
    note_rest_above(&call, &after, vma);
    let key = rows::key_of::<Probed>(call.birth, vma);
    let fresh = (call.fresh_below != 0, was_fresh_above(&call, &key));
    let changes = mprotect_changes(call.before, after, (call.start, call.end), fresh);
    for change in MprotectChange::ALL {
        if changes & change.bit() != 0 {
            count(Counter::Mprotect(change));
        }
    }
    if !is_armed(after.flags) {
        return;
    }
    calls::protected(call.birth, call.epoch, call.start, call.end, call.newflags);
    let number = rows::find_or_create(&key, vma);
    let site = Site {
        vma,
        key,
        end: after.end,
        epoch: call.epoch,
        reader: Reader::Mprotect as u32,
        cleared: call.cleared,
        padding: 0,
    };
    audit::whole_vma(&site, number);
    if let Some(row) = rows::get(number) {
        // SAFETY: the verifier proves that `row` is a map value; mmap_lock is held for writing.
        unsafe {
            (*row).end = after.end;
            (*row).mprotect_epoch = call.epoch;
            (*row).mprotect_changes |= changes;
            (*row).mprotects += 1;
        }
    }
}
