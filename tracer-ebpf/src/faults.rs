//! Write-notify faults: `do_wp_page` and its sibling for huge pages.
//!
//! At the entry the fault is noted with the state of its VMA; at the return, when the kernel's answer is known,
//! it is counted. Where no return probe is attached to `do_wp_page` (kprobe mode, unless asked for: a
//! kretprobe costs every fault of the machine), it is counted at the entry and a fault that the kernel retries
//! is recognised when it comes again.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tracer_common::classify::{
    FaultFacts, FaultMasks, Outcome, ProtectionState, VmaKind, is_second_coming, retry_may_be_handled,
};
use tracer_common::counters::{Counter, Stage};
use tracer_common::flags::{PTE_SOFT_DIRTY, is_armed};
use tracer_common::histogram::FAULT_TIME;
use tracer_common::records::{FaultRecord, Header, Kind, VERSION};
use tracer_common::table::epoch_cell;

use crate::layout::*;
use crate::maps::{TASK_SLOT_COUNT, TASK_SLOTS, add, count, count_by, send, stage};
use crate::memory::Memory;
use crate::{rows, tracking};

/// The fault that a thread is in, or was in last.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TaskSlot {
    /// `bpf_get_current_pid_tgid()` of the thread.
    thread: u64,
    /// When the fault entered, monotonic nanoseconds.
    entry_ns: u64,
    mm: u64,
    address: u64,
    /// `orig_pte` or `orig_pmd`.
    entry: u64,
    vma_start: u64,
    vm_flags: u64,
    page_prot: u64,
    /// Row of the VMA's state.
    row: u32,
    /// `vm_fault::flags`.
    fault_flags: u32,
    /// Epoch at the entry.
    epoch: u32,
    /// How far the fault is: [`IDLE`], [`ENTERED`], [`COUNTED`] or [`REPEATED`].
    progress: u16,
    huge: u16,
}

/// The fault is over, or was counted at its entry.
const IDLE: u16 = 0;
/// It has entered; its return is awaited.
const ENTERED: u16 = 1;
/// It has returned `VM_FAULT_RETRY` and was counted, see [`retry_may_be_handled`].
const COUNTED: u16 = 2;
/// It was counted and has come again; its return is awaited.
const REPEATED: u16 = 3;

/// Whether the fault is on a PTE or on a PMD.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// `do_wp_page`
    Pte,
    /// `do_huge_pmd_wp_page`
    Pmd,
}

#[inline(always)]
fn masks() -> FaultMasks {
    FaultMasks {
        retry: FAULT_RETRY_MASK.load(),
        completed: FAULT_COMPLETED_MASK.load(),
        error: FAULT_ERROR_MASK.load(),
        fallback: FAULT_FALLBACK_MASK.load(),
        unshare: FLAG_UNSHARE.load(),
        tried: FLAG_TRIED.load(),
        vma_lock: FLAG_VMA_LOCK.load(),
    }
}

#[inline(always)]
fn slot_of(thread: u64) -> Option<*mut TaskSlot> {
    TASK_SLOTS.get_ptr_mut(thread as u32 & (TASK_SLOT_COUNT - 1))
}

/// The entry of a fault; `orig_pmd` is the argument of that name where the kernel passes it (5.10).
#[inline(always)]
pub fn entry<M: Memory>(vmf: u64, level: Level, orig_pmd: Option<u64>, has_return: bool) {
    let vma = M::u64(vmf, VM_FAULT_VMA.load());
    let mm = M::u64(vma, VMA_MM.load());
    if tracking::perhaps::<M>(mm) {
        if level == Level::Pte {
            note::<M, false>(vmf, orig_pmd, has_return);
        } else {
            note::<M, true>(vmf, orig_pmd, has_return);
        }
    }
}

/// A function of its own, so that a fault that the filter keeps off saves no registers for what it never does.
#[inline(never)]
fn note<M: Memory, const HUGE: bool>(vmf: u64, orig_pmd: Option<u64>, has_return: bool) {
    let level = if HUGE { Level::Pmd } else { Level::Pte };
    let vma = M::u64(vmf, VM_FAULT_VMA.load());
    let mm = M::u64(vma, VMA_MM.load());
    let Some(tracked) = tracking::get(mm) else {
        return;
    };
    // SAFETY: the verifier proves that `tracked` is a map value.
    let tracked = unsafe { &*tracked };
    stage(if level == Level::Pte {
        Stage::FaultEntry
    } else {
        Stage::HugeEntry
    });

    let address = M::u64(vmf, VM_FAULT_ADDRESS.load());
    let epoch = tracked.boundary.epoch_of(address, tracked.epoch);
    if epoch == 0 {
        // Its VMA has not been reached by the first clear yet: nothing was tracked there.
        return;
    }
    let key = rows::key_of::<M>(tracked.birth, vma);
    let row = if is_armed(key.flags) {
        rows::find_or_create(&key, vma)
    } else {
        rows::NONE
    };
    let pte = match (level, orig_pmd) {
        (Level::Pte, _) => M::u64(vmf, VM_FAULT_ORIG_PTE.load()),
        (Level::Pmd, Some(pmd)) => pmd,
        (Level::Pmd, None) => M::u64(vmf, VM_FAULT_ORIG_PMD.load()),
    };
    let thread = bpf_get_current_pid_tgid();
    let Some(slot) = slot_of(thread) else { return };
    // SAFETY: the verifier proves that `slot` is a map value.
    let slot = unsafe { &mut *slot };
    let fault_flags = M::u32(vmf, VM_FAULT_FLAGS.load());

    let page = |address: u64| address & !0xfff;
    let same_again = slot.thread == thread
        && page(slot.address) == page(address)
        && slot.epoch == epoch
        && slot.mm == mm
        && is_second_coming(slot.fault_flags, fault_flags, masks());
    let again = same_again && (!has_return || slot.progress == COUNTED);
    if again {
        // The first coming was counted and stands for this fault.
        account_outcome(Outcome::Retry, row);
        slot.fault_flags = fault_flags;
        if has_return {
            slot.progress = REPEATED;
            tracking::fault_enters();
        }
        return;
    }
    if has_return {
        if slot.progress & ENTERED == 0 {
            tracking::fault_enters();
        } else if slot.thread != thread {
            // Its own return never came, or will find the note of another.
            stage(Stage::SlotTaken);
        } else if slot.progress == ENTERED {
            // This thread's last fault is over, but the kernel skipped its return: another task was preempted on
            // this CPU inside that very program (`prog->active`). It is counted now, in the way of the mode without
            // a return probe.
            let split = slot.huge != 0 && !HUGE && slot.mm == mm && slot.address >> 21 == address >> 21;
            if same_again {
                account_outcome(Outcome::Retry, slot.row);
            } else if split {
                // A huge page that could not be written as a whole: now comes the small one.
                account_outcome(Outcome::Fallback, slot.row);
            } else {
                account(slot, 0, slot.epoch);
            }
        }
    }
    slot.thread = thread;
    slot.mm = mm;
    slot.address = address;
    slot.entry = pte;
    slot.vma_start = key.start;
    slot.vm_flags = key.flags;
    slot.page_prot = key.page_prot;
    slot.row = row;
    slot.fault_flags = fault_flags;
    slot.epoch = epoch;
    slot.huge = u16::from(level == Level::Pmd);
    if has_return {
        slot.progress = ENTERED;
        // SAFETY: the helper has no preconditions.
        slot.entry_ns = unsafe { bpf_ktime_get_ns() };
    } else {
        slot.progress = IDLE;
        account(slot, 0, epoch);
    }
}

/// The return of a fault that `entry` noted.
#[inline(never)]
pub fn returned(answer: u32, level: Level) {
    let thread = bpf_get_current_pid_tgid();
    let Some(slot) = slot_of(thread) else { return };
    // SAFETY: the verifier proves that `slot` is a map value.
    let slot = unsafe { &mut *slot };
    let awaited = slot.progress & ENTERED != 0;
    if slot.thread != thread || !awaited || slot.huge != u16::from(level == Level::Pmd) {
        return;
    }
    let repeated = slot.progress == REPEATED;
    let ambiguous = retry_may_be_handled(answer, masks());
    slot.progress = if ambiguous { COUNTED } else { IDLE };
    tracking::fault_returns();
    stage(if level == Level::Pte {
        Stage::FaultReturn
    } else {
        Stage::HugeReturn
    });
    if repeated {
        return;
    }
    let answer = if ambiguous {
        answer & !FAULT_RETRY_MASK.load()
    } else {
        answer
    };
    // SAFETY: the helper has no preconditions.
    let elapsed = unsafe { bpf_ktime_get_ns() }.saturating_sub(slot.entry_ns);
    // From 6.4 on a fault under its VMA's own lock may run while a clear walks: it belongs to the epoch in
    // which it ends.
    let epoch = match tracking::get(slot.mm) {
        // SAFETY: the verifier proves that the pointer is a map value.
        Some(tracked) => unsafe { (*tracked).boundary.epoch_of(slot.address, (*tracked).epoch) },
        None => slot.epoch,
    };
    if account(slot, answer, epoch) == Outcome::Handled {
        count(Counter::FaultTime(FAULT_TIME.index(elapsed)));
        count_by(Counter::FaultTimeSum.cell(), elapsed);
    }
}

/// Counts a fault by how it ended.
#[inline(always)]
fn account(slot: &TaskSlot, answer: u32, epoch: u32) -> Outcome {
    let facts = FaultFacts {
        flags: slot.fault_flags,
        vm_flags: slot.vm_flags,
        was_soft_dirty: slot.entry & PTE_SOFT_DIRTY != 0,
    };
    let outcome = Outcome::of(facts, answer, masks());
    if TRACE_FAULTS.load() != 0 {
        trace(slot, outcome, epoch);
    }
    if outcome != Outcome::Handled {
        account_outcome(outcome, slot.row);
        return outcome;
    }
    count(Counter::Outcome(Outcome::Handled));
    let state = ProtectionState::of(slot.page_prot);
    let mut kind = VmaKind::PrivateAnon as u32;
    if let Some(row) = rows::get(slot.row) {
        // SAFETY: the verifier proves that `row` is a map value.
        unsafe {
            kind = (*row).kind;
            let cells = if slot.huge != 0 {
                &raw mut (*row).huge_faults
            } else {
                &raw mut (*row).faults
            };
            // First the epoch, then the count: the daemon reads them the other way round.
            (*row).last_fault_epoch = epoch;
            add(cells.cast::<u64>().add(epoch_cell(epoch)), 1);
        }
    } else {
        stage(Stage::Unlinked);
    }
    if slot.huge != 0 {
        count(Counter::HugeFault(state));
    } else {
        // The kinds lie one after the other, `kind` states apart.
        let states = ProtectionState::ALL.len() as u32;
        count_by(
            Counter::Fault(VmaKind::PrivateAnon, state).cell() + (kind & 3) * states,
            1,
        );
    }
    outcome
}

#[inline(always)]
fn account_outcome(outcome: Outcome, row: u32) {
    count(Counter::Outcome(outcome));
    if let Some(row) = rows::get(row) {
        // SAFETY: the verifier proves that `row` is a map value; `Outcome` has as many values as cells.
        unsafe { add((&raw mut (*row).outcomes).cast::<u64>().add(outcome as usize), 1) };
    }
}

#[inline(always)]
fn trace(slot: &TaskSlot, outcome: Outcome, epoch: u32) {
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let birth = match tracking::get(slot.mm) {
        // SAFETY: the verifier proves that the pointer is a map value.
        Some(tracked) => unsafe { (*tracked).birth },
        None => 0,
    };
    send(&FaultRecord {
        header: Header {
            kind: Kind::Fault as u16,
            version: VERSION,
            size: size_of::<FaultRecord>() as u32,
            time_ns,
        },
        birth,
        address: slot.address,
        vma_start: slot.vma_start,
        vm_flags: slot.vm_flags,
        page_prot: slot.page_prot,
        entry: slot.entry,
        epoch,
        outcome: outcome as u32,
        huge: u32::from(slot.huge),
        initial_tid: slot.thread as u32,
    });
}
