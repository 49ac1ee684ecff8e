//! The audit: page tables are tested on the kernel's own walks, 2 MiB a call, under the locks that the walk holds.
//!
//! In an armed VMA a writable entry carries the soft-dirty bit, and so does the entry of a page whose write fault
//! was handled in this epoch. The quick test goes over a copy of the page table without a branch for each entry;
//! only when it objects are the pages looked at one by one.

mod look;
pub mod pinned;
mod quick;
mod reread;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tracer_common::audit::{Reader, VMA_BORN_WRITABLE, VMA_CHANGED, VmaRecord};
use tracer_common::counters::Stage;
use tracer_common::flags::{
    PTE_HUGE, PTE_PRESENT, PTE_WRITE, VM_HUGETLB, VM_PFNMAP, VM_SHARED, VM_SOFTDIRTY, VM_WRITE,
};
use tracer_common::pages::{CHUNK_SIZE, FORGET_PERIOD, PAGES};
use tracer_common::records::{Header, Kind, VERSION};
use tracer_common::table::{VmaKey, clear_cell, clear_mark};
use tracer_common::tracked::ORIGIN_CLEAR;

use self::look::look_at_pages;
pub use self::quick::zero_as_one;
use self::quick::{below_64, moved_here, objects, objects_to_all};
use crate::layout::*;
use crate::maps::{OWN, RECORDS, SCRATCH, stage};
use crate::memory::{Memory, Probed};
use crate::{interest, migration, pages, paging, rows, tracking};

/// Groups of eight pages in a chunk.
const GROUPS: usize = PAGES / 8;
/// Bytes that are read of the descriptor of a page.
const DESCRIPTOR: usize = 64;
/// Words of a set of pages.
const WORDS: usize = PAGES / 64;

/// Room for a page table, and what the look at its pages needs. In a map: a program's stack has 512 bytes.
#[repr(C)]
pub struct Scratch {
    /// Entries of the page table, the one of page `n` at `n`. Twice the room: the verifier does not see that the
    /// offset of a copy and its length add up to one table at most.
    entries: [u64; 2 * PAGES],
    /// Marks of writes, those of a group in a word.
    written: [u64; GROUPS],
    /// Pages within the VMA and the walk.
    looked_at: [u64; WORDS],
    /// Pages that were moved here.
    moved: [u64; WORDS],
    /// The descriptor of a page.
    descriptor: [u64; DESCRIPTOR / 8],
    /// The first page to look at, and the one behind the last.
    range_start: u64,
    range_end: u64,
    /// Where the count of pins of a compound page lies from the descriptor of its first page.
    pins_at: u64,
    /// How many pages are pinned, the first of them, and the one behind the last.
    pinned: u64,
    pinned_first: u64,
    pinned_behind: u64,
    /// Not 0 if the page is part of a compound page.
    compound: u64,
    /// Not 0 if it could not be read whether a page is pinned.
    unread: u64,
    /// The VMA, filled in before anything is tested in it.
    pub site: Site,
    /// First address of the chunk.
    address: u64,
    /// Address of the entry of the page table; 0 if it is to be looked for.
    pmd: u64,
    /// Address of the page table; 0 if there is none to read.
    table: u64,
    first: u32,
    last: u32,
    /// Not 0 if these are all pages of the page table.
    whole: u32,
    huge: u32,
    hole: u32,
    padding: u32,
}

/// Who may use a scratch at the same time on one CPU: programs can be preempted by each other, each of them not
/// by itself.
#[derive(Clone, Copy)]
pub enum Bench {
    Clear = 0,
    Pagemap = 1,
    Scan = 2,
    PagemapHole = 3,
    ScanHole = 4,
    Pins = 5,
}

/// Number of [`Bench`]es.
pub const BENCHES: u32 = 6;

/// A VMA at a moment of an epoch.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Site {
    pub vma: u64,
    pub key: VmaKey,
    pub end: u64,
    pub epoch: u32,
    pub reader: u32,
    /// Whether a clear opened the epoch: only then is it known which VMAs it met.
    pub cleared: u32,
    pub padding: u32,
}

/// Flags of VMAs that are not audited: fresh ones, and those that soft-dirty does not track.
const NOT_AUDITED: u64 = VM_SOFTDIRTY | VM_HUGETLB | VM_PFNMAP;

/// The scratch of a bench; `None` if page tables cannot be read on this kernel.
#[inline(always)]
pub fn scratch(bench: Bench) -> Option<&'static mut Scratch> {
    if paging::direct_map() == 0 {
        return None;
    }
    // SAFETY: the verifier proves that the pointer is a map value; it belongs to this program on this CPU.
    SCRATCH
        .get_ptr_mut(bench as u32)
        .map(|scratch| unsafe { &mut *scratch })
}

/// Tests `[addr, end)` of the page table that `*pmd` points to; `chunk` is the number of its record.
#[inline(always)]
pub fn page_table(scratch: &mut Scratch, chunk: u32, pmd: u64, addr: u64, end: u64) {
    stage(Stage::AuditChunk);
    let entry = Probed::u64(pmd, 0);
    let first = ((addr >> 12) & (PAGES as u64 - 1)) as u32;
    let count = ((end.wrapping_sub(addr) >> 12) & (2 * PAGES as u64 - 1)) as u32;
    if count == 0 || count > PAGES as u32 {
        return;
    }
    let last = (first + count - 1) & (PAGES as u32 - 1);
    let huge = entry & PTE_PRESENT == 0 || entry & PTE_HUGE != 0;
    let objection = if huge {
        // One entry for all: a huge page, or one on its way elsewhere.
        scratch.table = 0;
        objects_to_all(entry, chunk, scratch.site.epoch)
    } else {
        scratch.table = paging::table_of(entry);
        let offset = first as usize & (PAGES - 1);
        // SAFETY: the offset is masked, and twice a page table has room for one at any offset within the first.
        let to = unsafe { (&raw mut scratch.entries).cast::<u64>().add(offset) };
        if !paging::copy(to, count * 8, scratch.table.wrapping_add(u64::from(first) * 8)) {
            stage(Stage::AuditUnread);
            return;
        }
        (scratch.first, scratch.last) = (first, last);
        scratch.whole = u32::from(count == PAGES as u32);
        objects(scratch, chunk, scratch.site.epoch)
    };
    let migrating = migration::known() != 0 && pages::may_be_migrating(chunk, scratch.site.epoch);
    if !objection && !migrating && !moved_here(&scratch.site, addr) {
        return;
    }
    scratch.pmd = pmd;
    scratch.huge = u32::from(huge);
    scratch.hole = 0;
    look(scratch, addr, first, last, chunk);
}

/// A part of a VMA without page table: what was written there, and is shared, is out of the page table.
///
/// A pagemap read walks 2 MiB at a time, so a hole is one chunk. `PAGEMAP_SCAN` may meet longer ones: only the
/// first chunk is looked at, and another with marks is counted.
#[inline(always)]
pub fn hole(scratch: &mut Scratch, addr: u64, end: u64) {
    const LONGEST: u64 = 512;
    let moved = moved_here(&scratch.site, addr);
    if scratch.site.key.flags & VM_SHARED == 0 && !moved {
        // What is private and has no page is not there any more: dropped, and the tracker sees that.
        return;
    }
    let start = addr & !(CHUNK_SIZE - 1);
    let mut next = start + CHUNK_SIZE;
    for _ in 0..LONGEST {
        if next >= end {
            break;
        }
        if pages::find(scratch.site.key.birth, next) != pages::NONE {
            break;
        }
        next += CHUNK_SIZE;
    }
    if next < end {
        stage(Stage::HoleTooLong);
    }
    let chunk = pages::find(scratch.site.key.birth, addr);
    if chunk == pages::NONE && !moved {
        return;
    }
    let to = if start + CHUNK_SIZE < end {
        start + CHUNK_SIZE
    } else {
        end
    };
    scratch.table = 0;
    scratch.huge = 0;
    scratch.hole = 1;
    scratch.pmd = 0;
    let first = ((addr >> 12) & (PAGES as u64 - 1)) as u32;
    let last = ((to.wrapping_sub(1) >> 12) & (PAGES as u64 - 1)) as u32;
    look(scratch, addr, first, last, chunk);
}

/// Looks at the pages from `first` to `last`.
#[inline(always)]
fn look(scratch: &mut Scratch, addr: u64, first: u32, last: u32, chunk: u32) {
    scratch.address = addr & !(CHUNK_SIZE - 1);
    scratch.first = first;
    scratch.last = last;
    reread::marks(scratch, chunk);
    if !reread::entries(scratch) {
        stage(Stage::AuditUnread);
        return;
    }
    reread::moved(scratch);
    reread::migrating(scratch, chunk);
    look_at_pages(scratch, chunk);
}

/// Takes the marks of the pages in `[addr, end)`, which are those of record `chunk`, away: the clear is about to take their bits. What a mechanism has
/// done to them in the epoch that begins stays noted.
///
/// Marks of writes carry their epoch, so most need not be taken away: only those made in the epoch that begins before
/// the clear has come to their bits, and now and then all, before a number comes up again. Those of mechanisms have
/// room for three bits of it.
#[inline(always)]
pub fn forget_marks(chunk: u32, addr: u64, end: u64, epoch: u32) {
    let Some(chunk) = pages::get(chunk) else { return };
    // SAFETY: the verifier proves that `chunk` is a map value.
    let (noted, has_causes) = unsafe { ((*chunk).noted_epoch, (*chunk).caused != 0) };
    if noted != epoch && !has_causes && !epoch.is_multiple_of(FORGET_PERIOD) {
        return;
    }
    let first = (addr >> 12) & (PAGES as u64 - 1);
    let last = (end.wrapping_sub(1) >> 12) & (PAGES as u64 - 1);
    let (first_word, last_word) = (below_64(first >> 3), below_64(last >> 3));
    // The bytes of the first and the last word that belong to other VMAs stay.
    let keep_low = (1u64 << ((first & 7) * 8)).wrapping_sub(1);
    let keep_high = !(u64::MAX >> ((7 - (last & 7)) * 8));
    let mut word = first_word;
    for _ in 0..GROUPS {
        if word > last_word {
            break;
        }
        let mut keep = 0;
        if word == first_word {
            keep |= keep_low;
        }
        if word == last_word {
            keep |= keep_high;
        }
        let at = below_64(word as u64);
        // SAFETY: the verifier proves that `chunk` is a map value; the index is masked.
        unsafe {
            let written = (&raw mut (*chunk).written).cast::<u64>().add(at);
            let causes = (&raw mut (*chunk).causes).cast::<u64>().add(at);
            core::ptr::write_volatile(written, core::ptr::read_volatile(written) & keep);
            let marks = core::ptr::read_volatile(causes);
            core::ptr::write_volatile(causes, marks & (keep | causes_of(marks, epoch)));
        }
        word += 1;
    }
}

/// The bytes of a word of [`cause_mark`](tracer_common::pages::cause_mark)s that are of this epoch, all bits set.
#[inline(always)]
fn causes_of(marks: u64, epoch: u32) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // The upper three bits of a mark are the epoch's lower three. Where they agree the difference is 0, and adding
    // 0x7f leaves the highest bit clear; shifted by one it never carries into the next byte.
    let difference = (marks ^ (u64::from(epoch & 7) << 5).wrapping_mul(EACH)) & (EACH * 0xe0);
    let equal = !((difference >> 1).wrapping_add(EACH * 0x7f)) & (EACH * 0x80);
    (equal >> 7).wrapping_mul(0xff)
}

/// `pagemap_pmd_range` and `pagemap_scan_pmd_entry`: somebody is about to be told.
#[inline(always)]
pub fn told(bench: Bench, reader: Reader, walk: u64, at: u64) -> Option<&'static mut Scratch> {
    let mm = Probed::u64(walk, MM_WALK_MM.load());
    if !tracking::perhaps::<Probed>(mm) {
        // A read of pagemap is noted where it begins. Whose memory it is cannot be told here, so no filter is asked.
        if reader as u32 == Reader::Scan as u32
            && let Some(interest) = interest::wanted()
        {
            interest::note(interest);
        }
        return None;
    }
    let tracked = tracking::get(mm)?;
    // SAFETY: the verifier proves that `tracked` is a map value.
    let tracked = unsafe { &mut *tracked };
    let mut reader = reader;
    let own = OWN.get(0)?;
    if own.initial_pid == (bpf_get_current_pid_tgid() >> 32) as u32 {
        reader = Reader::Own;
    } else {
        tracked.read_epoch = tracked.epoch;
        tracked.writes_since_read = 0;
    }
    let epoch = tracked.boundary.epoch_of(at, tracked.epoch);
    let vma = Probed::u64(walk, MM_WALK_VMA.load());
    if epoch == 0 || vma == 0 {
        return None;
    }
    let scratch = scratch(bench)?;
    scratch.site.key = rows::key_of::<Probed>(tracked.birth, vma);
    if scratch.site.key.flags & NOT_AUDITED != 0 {
        return None;
    }
    scratch.site.vma = vma;
    scratch.site.end = Probed::u64(vma, VMA_END.load());
    scratch.site.epoch = epoch;
    scratch.site.reader = reader as u32;
    scratch.site.cleared = u32::from(epoch > 1 || tracked.origin == ORIGIN_CLEAR);
    let row = rows::find_or_create(&scratch.site.key, vma);
    whole_vma(&scratch.site, row);
    Some(scratch)
}

/// Reports, once an epoch and end, a VMA that is not what the clear met, or whose protection lets entries be born
/// writable. A function of its own for its share of the stack.
#[inline(never)]
pub fn whole_vma(site: &Site, row: u32) {
    let Some(row) = rows::get(row) else { return };
    // SAFETY: the verifier proves that `row` is a map value.
    let row = unsafe { &mut *row };
    let mut state = 0;
    if born_writable(&site.key) {
        state |= VMA_BORN_WRITABLE;
    }
    let met = row.clears[clear_cell(site.epoch)] == clear_mark(site.end, site.epoch);
    if site.cleared != 0 && !met {
        state |= VMA_CHANGED;
    }
    if state != 0 && (row.reported_epoch != site.epoch || row.reported_end != site.end) {
        row.reported_epoch = site.epoch;
        row.reported_end = site.end;
        report_vma(site, state);
    }
}

/// Whether entries of this armed VMA are born writable: `vma_wants_writenotify` should have said no.
#[inline(always)]
pub fn born_writable(key: &VmaKey) -> bool {
    const SHARED_WRITABLE: u64 = VM_SHARED | VM_WRITE;
    key.flags & SHARED_WRITABLE == SHARED_WRITABLE && key.page_prot & PTE_WRITE != 0
}

/// Reports the state of a VMA.
#[inline(always)]
fn report_vma(site: &Site, state: u32) {
    let Some(mut reserved) = RECORDS.reserve::<VmaRecord>(0) else {
        stage(Stage::RingFull);
        return;
    };
    let record = reserved.as_mut_ptr();
    // SAFETY: `record` is reserved memory; every member is written.
    unsafe {
        (*record).header = Header {
            kind: Kind::Vma as u16,
            version: VERSION,
            size: size_of::<VmaRecord>() as u32,
            time_ns: bpf_ktime_get_ns(),
        };
        rows::tell_facts(&raw mut (*record).vma, &site.key, site.end, site.vma);
        (*record).epoch = site.epoch;
        (*record).reader = site.reader;
        (*record).state = state;
        (*record).padding = 0;
    }
    reserved.submit(0);
}
