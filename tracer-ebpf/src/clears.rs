//! Clears: from the entry of `clear_refs_write` over each VMA it walks to its return.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_user};
use aya_log_ebpf::debug;
use tracer_common::audit::{RangeCause, Reader};
use tracer_common::counters::Stage;
use tracer_common::flags::{VM_HUGETLB, VM_MAYWRITE, VM_PFNMAP, VM_WRITE};
use tracer_common::records::{
    Blind, CLEAR_FILTERED, CLEAR_REACHED_NOTHING, CLEAR_TRACKED, CLEAR_UNTRACKED, ClearRecord, Header, Kind,
    VERSION,
};
use tracer_common::table::{VmaKey, clear_cell, clear_mark};
use tracer_common::tracked::{Boundary, ORIGIN_CLEAR, Tracked, birth_id};

use crate::audit::{self, Bench, Site, pinned};
use crate::identity::{current, identify, passes, task_of_proc_file};
use crate::layout::*;
use crate::maps::{CLEARS, FRESH, send, stage};
use crate::memory::{Memory, Probed};
use crate::ranges::{self, Range};
use crate::{direct, files, openers, pages, rows, tracking};

/// `CLEAR_REFS_SOFT_DIRTY` of `fs/proc/task_mmu.c`: what the user writes, and `clear_refs_private::type`.
const SOFT_DIRTY: u32 = 4;

/// A clear between its entry and its return.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct ClearUnderWay {
    /// The VMA that the walk is in, in the epoch that ends there.
    site: Site,
    audited_pages: u64,
    writes_after_read: u64,
    /// Flags of the VMA that the walk is in.
    flags: u64,
    /// Bytes that direct reads had delivered when the walk began.
    reads_completed: u64,
    blind_bytes: [u64; Blind::ALL.len()],
    /// Pinned pages that were not told yet: the newest run of them, or several runs and what lies between them.
    pinned_start: u64,
    pinned_end: u64,
    audited_vmas: u32,
    read_epoch: u32,
    /// Whether the VMA that the walk is in was armed before.
    audit: u32,
    /// Whether the address space had ever pinned pages.
    ever_pinned: u32,
    entry_ns: u64,
    first_walk_ns: u64,
    file: u64,
    /// The user's buffer.
    buffer: u64,
    mm: u64,
    birth: u64,
    armed_bytes: u64,
    epoch: u32,
    vmas: u32,
    status: u32,
    origin: u32,
    /// Whether the process that made the clear before this one has ended.
    opener_gone: u32,
    /// Runs of pinned pages that were told.
    pinned_runs: u32,
}

/// So many runs of pinned pages are told one by one.
const PINNED_RUNS: u32 = 64;

/// The entry of `clear_refs_write(file, buf, …)`.
#[inline(always)]
pub fn entry(file: u64, buffer: u64) {
    stage(Stage::ClearEntry);
    tracking::clear_enters();
    let clear = ClearUnderWay {
        // SAFETY: the helper has no preconditions.
        entry_ns: unsafe { bpf_ktime_get_ns() },
        file,
        buffer,
        status: CLEAR_REACHED_NOTHING,
        ..ClearUnderWay::default()
    };
    if CLEARS.insert(bpf_get_current_pid_tgid(), clear, 0).is_err() {
        stage(Stage::ClearsFull);
        tracking::clear_returns();
    }
}

/// `vma_set_page_prot(vma)`: within a clear, the kernel calls it for each VMA that it takes `VM_SOFTDIRTY` from,
/// before it walks. What was written there in the epoch that ends is told by that flag, not by the entries.
#[inline(always)]
pub fn arms(vma: u64) {
    if !tracking::any_clear() {
        return;
    }
    let Some(clear) = CLEARS.get_ptr(bpf_get_current_pid_tgid()) else {
        return;
    };
    // SAFETY: the verifier proves that `clear` is a map value.
    let entry_ns = unsafe { (*clear).entry_ns };
    if FRESH.insert(vma, entry_ns, 0).is_err() {
        stage(Stage::FreshFull);
    }
}

/// Whether the clear found this VMA fresh.
#[inline(always)]
fn was_fresh(clear: &ClearUnderWay, vma: u64) -> bool {
    let Some(noted) = FRESH.get_ptr(vma) else {
        return false;
    };
    // SAFETY: the verifier proves that `noted` is a map value.
    let noted = unsafe { *noted };
    let _ = FRESH.remove(vma);
    // An older note is of a clear that was killed before it walked.
    noted == clear.entry_ns
}

/// `clear_refs_test_walk(start, end, walk)`: the clear has reached a VMA. Its lock and the mm's are held, so
/// this moment is the boundary between the epochs of that VMA.
#[inline(always)]
pub fn reached_vma(walk: u64) {
    let Some(clear) = CLEARS.get_ptr_mut(bpf_get_current_pid_tgid()) else {
        return;
    };
    // SAFETY: the verifier proves that `clear` is a map value; only this thread uses it.
    let clear = unsafe { &mut *clear };
    // `walk->private` points to a `struct clear_refs_private`, whose first member is the type.
    if Probed::u32(Probed::u64(walk, MM_WALK_PRIVATE.load()), 0) != SOFT_DIRTY {
        return;
    }
    let vma = Probed::u64(walk, MM_WALK_VMA.load());
    let end = Probed::u64(vma, VMA_END.load());
    if clear.first_walk_ns == 0 {
        // SAFETY: the helper has no preconditions.
        clear.first_walk_ns = unsafe { bpf_ktime_get_ns() };
        clear.mm = Probed::u64(walk, MM_WALK_MM.load());
        clear.reads_completed = direct::completed(clear.mm);
        open_epoch(clear, end);
    }
    clear.vmas += 1;
    let fresh = was_fresh(clear, vma);
    clear.audit = 0;
    if clear.status != CLEAR_TRACKED {
        return;
    }
    if let Some(tracked) = tracking::get(clear.mm) {
        // SAFETY: the verifier proves that `tracked` is a map value.
        unsafe { (*tracked).boundary = Boundary::at(end, clear.epoch) };
    }
    let key = rows::key_of::<Probed>(clear.birth, vma);
    clear.flags = key.flags;
    let tracks = key.flags & (VM_PFNMAP | VM_HUGETLB) == 0;
    if tracks {
        clear.armed_bytes += end - key.start;
    }
    let blind = blind_because(&key, vma);
    if let Some(sum) = clear.blind_bytes.get_mut(blind as usize & 7) {
        *sum += end - key.start;
        tell_blind(clear, blind, key.start, end);
    }
    files::mapped(&key, vma, clear.first_walk_ns);
    let number = rows::find_or_create(&key, vma);
    let Some(row) = rows::get(number) else {
        return;
    };
    clear.site = Site {
        vma,
        key,
        end,
        epoch: clear.epoch.wrapping_sub(1),
        reader: Reader::Clear as u32,
        cleared: u32::from(clear.epoch > 2 || clear.origin == ORIGIN_CLEAR),
        padding: 0,
    };
    if tracks && !fresh && clear.epoch > 1 {
        clear.audit = 1;
        clear.audited_vmas += 1;
        audit::whole_vma(&clear.site, number);
    }
    // SAFETY: the verifier proves that `row` is a map value.
    unsafe {
        rows::refresh(row, &key, vma);
        (*row).armed_epoch = clear.epoch;
        (*row).end = end;
        (*row).clears[clear_cell(clear.epoch)] = clear_mark(end, clear.epoch);
        // A file without an inode of its own shares one with strangers, see `rows::Backing`.
        (*row).shared_mappings = if (*row).inode == 0 {
            0
        } else {
            rows::shared_mappings(key.flags, vma)
        };
    }
}

/// Why soft-dirty cannot track this VMA, as a [`Blind`]; something beyond if it can.
#[inline(always)]
fn blind_because(key: &VmaKey, vma: u64) -> u32 {
    if key.flags & (VM_WRITE | VM_MAYWRITE) == 0 {
        return u32::MAX;
    }
    if key.flags & VM_HUGETLB != 0 {
        return Blind::Hugetlb as u32;
    }
    if key.flags & VM_PFNMAP != 0 {
        return Blind::Pfnmap as u32;
    }
    let ring = AIO_RING_VM_OPS.load();
    if ring != 0 && Probed::u64(vma, VMA_OPS.load()) == ring {
        return Blind::AioRing as u32;
    }
    if audit::born_writable(key) {
        return Blind::PageProtection as u32;
    }
    u32::MAX
}

/// `clear_refs_pte_range(pmd, addr, end, walk)`: the clear is about to take the bits of these pages.
#[inline(always)]
pub fn reached_pages(pmd: u64, addr: u64, end: u64) {
    let Some(clear) = CLEARS.get_ptr_mut(bpf_get_current_pid_tgid()) else {
        return;
    };
    // SAFETY: the verifier proves that `clear` is a map value; only this thread uses it.
    let clear = unsafe { &mut *clear };
    if clear.status != CLEAR_TRACKED || clear.first_walk_ns == 0 {
        return;
    }
    let mut chunk = pages::find(clear.birth, addr);
    if clear.audit != 0
        && let Some(scratch) = audit::scratch(Bench::Clear)
    {
        clear.audited_pages += end.wrapping_sub(addr) >> 12;
        scratch.site = clear.site;
        audit::page_table(scratch, chunk, pmd, addr, end);
    }
    if chunk == pages::NONE {
        // A write may have made one meanwhile.
        chunk = pages::find(clear.birth, addr);
    }
    audit::forget_marks(chunk, addr, end, clear.epoch);
}

/// The same moment: which of these pages are pinned. A program of its own, see [`pinned`].
#[inline(always)]
pub fn looks_for_pins(pmd: u64, addr: u64, end: u64) {
    let Some(clear) = CLEARS.get_ptr_mut(bpf_get_current_pid_tgid()) else {
        return;
    };
    // SAFETY: the verifier proves that `clear` is a map value; only this thread uses it.
    let clear = unsafe { &mut *clear };
    if clear.status != CLEAR_TRACKED || clear.first_walk_ns == 0 {
        return;
    }
    let Some(pinned) = pinned::pages(clear.mm, clear.flags, pmd, addr, end) else {
        return;
    };
    clear.blind_bytes[Blind::Pinned as usize] += pinned.bytes;
    if clear.pinned_end != pinned.start && clear.pinned_end != 0 && clear.pinned_runs < PINNED_RUNS {
        tell_blind(clear, Blind::Pinned as u32, clear.pinned_start, clear.pinned_end);
        clear.pinned_runs += 1;
        clear.pinned_end = 0;
    }
    if clear.pinned_end == 0 {
        clear.pinned_start = pinned.start;
    }
    clear.pinned_end = pinned.end;
}

/// Tells where the clear met memory that soft-dirty cannot track.
#[inline(always)]
fn tell_blind(clear: &ClearUnderWay, blind: u32, start: u64, end: u64) {
    ranges::tell(Range {
        detail: blind,
        initial_tid: bpf_get_current_pid_tgid() as u32,
        ..Range::of(
            RangeCause::Blind,
            clear.birth,
            clear.epoch,
            start,
            end.wrapping_sub(start),
        )
    });
}

#[inline(always)]
fn open_epoch(clear: &mut ClearUnderWay, first_end: u64) {
    clear.ever_pinned = u32::from(pinned::ever(clear.mm));
    if let Some(tracked) = tracking::get(clear.mm) {
        // SAFETY: the verifier proves that `tracked` is a map value; mmap_lock is held for writing, so no
        // other clear of this address space runs.
        let tracked = unsafe { &mut *tracked };
        clear.birth = tracked.birth;
        clear.origin = tracked.origin;
        clear.epoch = tracked.epoch + 1;
        clear.read_epoch = tracked.read_epoch;
        clear.writes_after_read = tracked.writes_since_read;
        clear.opener_gone = u32::from(!openers::is_there(tracked.opener_mm, tracked.opener_start));
        (tracked.opener_mm, tracked.opener_start) = openers::note();
        tracked.boundary = Boundary::at(first_end, clear.epoch);
        tracked.epoch = clear.epoch;
        clear.status = CLEAR_TRACKED;
        return;
    }
    if !passes(task_of_proc_file(clear.file)) {
        clear.status = CLEAR_FILTERED;
        return;
    }
    // SAFETY: the helper has no preconditions.
    clear.birth = birth_id(clear.first_walk_ns, unsafe { bpf_get_smp_processor_id() });
    clear.origin = ORIGIN_CLEAR;
    clear.epoch = 1;
    let (opener_mm, opener_start) = openers::note();
    let tracked = Tracked {
        birth: clear.birth,
        opener_mm,
        opener_start,
        boundary: Boundary::at(first_end, 1),
        epoch: 1,
        origin: ORIGIN_CLEAR,
        ..Tracked::default()
    };
    clear.status = if tracking::start::<Probed>(clear.mm, &tracked) {
        CLEAR_TRACKED
    } else {
        CLEAR_UNTRACKED
    };
}

/// The return of `clear_refs_write`.
#[inline(always)]
pub fn returned(result: i64) {
    let thread = bpf_get_current_pid_tgid();
    let Some(found) = CLEARS.get_ptr(thread) else {
        stage(Stage::OrphanReturn);
        return;
    };
    stage(Stage::ClearReturn);
    tracking::clear_returns();
    // SAFETY: the verifier proves that `found` is a map value; only this thread uses it.
    let clear = unsafe { &*found };
    finish(clear, result);
    let _ = CLEARS.remove(thread);
}

#[inline(always)]
fn finish(clear: &ClearUnderWay, result: i64) {
    if clear.status == CLEAR_TRACKED
        && let Some(tracked) = tracking::get(clear.mm)
    {
        // SAFETY: the verifier proves that `tracked` is a map value.
        unsafe { (*tracked).boundary = Boundary::complete(clear.epoch) };
        if clear.pinned_end != 0 {
            tell_blind(clear, Blind::Pinned as u32, clear.pinned_start, clear.pinned_end);
        }
    }
    if clear.first_walk_ns == 0 && !asked_for_soft_dirty(clear.buffer) {
        return;
    }
    if clear.first_walk_ns == 0 {
        stage(Stage::ClearFailed);
    }
    let mut record = ClearRecord {
        header: Header {
            kind: Kind::Clear as u16,
            version: VERSION,
            size: size_of::<ClearRecord>() as u32,
            // SAFETY: the helper has no preconditions.
            time_ns: unsafe { bpf_ktime_get_ns() },
        },
        birth: if clear.status == CLEAR_TRACKED {
            clear.birth
        } else {
            0
        },
        result,
        entry_ns: clear.entry_ns,
        first_walk_ns: clear.first_walk_ns,
        armed_bytes: clear.armed_bytes,
        epoch: clear.epoch,
        vmas: clear.vmas,
        status: clear.status,
        origin: clear.origin,
        audited_vmas: clear.audited_vmas,
        read_epoch: clear.read_epoch,
        audited_pages: clear.audited_pages,
        writes_after_read: clear.writes_after_read,
        blind_bytes: clear.blind_bytes,
        opener_gone: clear.opener_gone,
        ever_pinned: clear.ever_pinned,
        ..ClearRecord::default()
    };
    record.direct_read_bytes = direct::submitted(clear.mm).wrapping_sub(clear.reads_completed);
    record.blind_bytes[Blind::Pinned as usize] += record.direct_read_bytes;
    debug!(
        (),
        "a clear of address space {} opened epoch {}, {} VMAs", record.birth, record.epoch, record.vmas
    );
    identify(current(), &mut record.tracker);
    identify(task_of_proc_file(clear.file), &mut record.target);
    send(&record);
}

/// Whether the user wrote a 4, with white space around it perhaps. Only asked when no VMA was reached.
#[inline(always)]
fn asked_for_soft_dirty(buffer: u64) -> bool {
    for index in 0..4 {
        let mut byte = 0u8;
        // SAFETY: the helper checks the address and writes one byte.
        let error = unsafe {
            bpf_probe_read_user(
                core::ptr::from_mut(&mut byte).cast(),
                1,
                (buffer + index) as *const _,
            )
        };
        if error != 0 {
            return false;
        }
        if !matches!(byte, b' ' | b'\t' | b'\n') {
            return byte == b'4';
        }
    }
    false
}
