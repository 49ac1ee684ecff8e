//! The audit: page tables are tested on the kernel's own walks, 2 MiB a call, under the locks that the walk holds.
//!
//! In an armed VMA a writable entry carries the soft-dirty bit, and so does the entry of a page whose write fault
//! was handled in this epoch. The quick test goes over a copy of the page table without a branch for each entry;
//! only when it objects are the pages looked at one by one.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use core::arch::asm;
use tracer_common::audit::{MOVED_RANGES, PagesRecord, Reader, VMA_BORN_WRITABLE, VMA_CHANGED, VmaRecord};
use tracer_common::counters::Stage;
use tracer_common::flags::{
    PTE_DIRTY, PTE_HUGE, PTE_PRESENT, PTE_SOFT_DIRTY, PTE_SPECIAL, PTE_SWAP_SOFT_DIRTY, PTE_WRITE, VM_HUGETLB,
    VM_PFNMAP, VM_SHARED, VM_SOFTDIRTY, VM_WRITE,
};
use tracer_common::pages::{CHUNK_SIZE, PAGES, TAG_MASK, tag};
use tracer_common::records::{Header, Kind, VERSION};
use tracer_common::table::VmaKey;
use tracer_common::tracked::ORIGIN_CLEAR;

use crate::layout::*;
use crate::maps::{MOVED, OWN, RECORDS, SCRATCH, send, stage};
use crate::memory::{Memory, Probed};
use crate::{pages, paging, rows, tracking};

/// Room for a page table, and what the look at its pages needs. In a map: a program's stack has 512 bytes.
#[repr(C)]
pub struct Scratch {
    /// Entries of the page table, the one of page `n` at `n`. Twice the room: the verifier does not see that the
    /// offset of a copy and its length add up to one table at most.
    entries: [u64; 2 * PAGES],
    written: [u64; PAGES / 8],
    moved: [u64; PAGES / 64],
    key: VmaKey,
    vma: u64,
    end: u64,
    /// First address of the chunk.
    address: u64,
    /// Address of the page table; 0 if there is none to read.
    table: u64,
    first: u32,
    last: u32,
    epoch: u32,
    reader: u32,
    huge: u32,
    hole: u32,
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
}

/// Number of [`Bench`]es.
pub const BENCHES: u32 = 5;

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

/// Tests `[addr, end)` of the page table that `*pmd` points to.
#[inline(always)]
pub fn page_table(bench: Bench, site: &Site, pmd: u64, addr: u64, end: u64) {
    if paging::direct_map() == 0 {
        return;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(bench as u32) else {
        return;
    };
    // SAFETY: the verifier proves that `scratch` is a map value; it belongs to this program on this CPU.
    let scratch = unsafe { &mut *scratch };
    stage(Stage::AuditChunk);
    let entry = Probed::u64(pmd, 0);
    let first = ((addr >> 12) & (PAGES as u64 - 1)) as u32;
    let count = ((end.wrapping_sub(addr) >> 12) & (2 * PAGES as u64 - 1)) as u32;
    if count == 0 || count > PAGES as u32 {
        return;
    }
    let last = (first + count - 1) & (PAGES as u32 - 1);
    let chunk = pages::find(site.key.birth, addr);
    let huge = entry & PTE_PRESENT == 0 || entry & PTE_HUGE != 0;
    let objection = if huge {
        // One entry for all: a huge page, or one on its way elsewhere.
        scratch.table = 0;
        objects_to_all(entry, chunk, site.epoch)
    } else {
        scratch.table = paging::table_of(entry);
        let offset = first as usize & (PAGES - 1);
        // SAFETY: the offset is masked, and twice a page table has room for one at any offset within the first.
        let to = unsafe { (&raw mut scratch.entries).cast::<u64>().add(offset) };
        if !paging::copy(to, count * 8, scratch.table.wrapping_add(u64::from(first) * 8)) {
            stage(Stage::AuditUnread);
            return;
        }
        objects(scratch, chunk, first, last, tag(site.epoch))
    };
    if !objection && !moved_here(site, addr) {
        return;
    }
    scratch.huge = u32::from(huge);
    scratch.hole = 0;
    scratch.entries[PAGES] = entry;
    look(scratch, site, addr, first, last, chunk);
}

/// A part of a VMA without page table: what was written there, and is shared, is out of the page table.
///
/// A pagemap read walks 2 MiB at a time, so a hole is one chunk. `PAGEMAP_SCAN` may meet longer ones: only the
/// first chunk is looked at, and another with marks is counted.
#[inline(always)]
pub fn hole(bench: Bench, site: &Site, addr: u64, end: u64) {
    const LONGEST: u64 = 512;
    if site.key.flags & VM_SHARED == 0 || paging::direct_map() == 0 {
        // What is private and has no page is not there any more: dropped, and the tracker sees that.
        return;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(bench as u32) else {
        return;
    };
    // SAFETY: as in `page_table`.
    let scratch = unsafe { &mut *scratch };
    let start = addr & !(CHUNK_SIZE - 1);
    let mut next = start + CHUNK_SIZE;
    for _ in 0..LONGEST {
        if next >= end {
            break;
        }
        if pages::find(site.key.birth, next) != pages::NONE {
            break;
        }
        next += CHUNK_SIZE;
    }
    if next < end {
        stage(Stage::HoleTooLong);
    }
    let chunk = pages::find(site.key.birth, addr);
    if chunk == pages::NONE {
        return;
    }
    let to = if start + CHUNK_SIZE < end { start + CHUNK_SIZE } else { end };
    scratch.table = 0;
    scratch.huge = 0;
    scratch.hole = 1;
    scratch.entries[PAGES] = 0;
    let first = ((addr >> 12) & (PAGES as u64 - 1)) as u32;
    let last = ((to.wrapping_sub(1) >> 12) & (PAGES as u64 - 1)) as u32;
    look(scratch, site, addr, first, last, chunk);
}

/// Whether pages were moved into this chunk in this epoch.
#[inline(always)]
fn moved_here(site: &Site, addr: u64) -> bool {
    if !tracking::anything_moved() {
        return false;
    }
    let Some(moved) = MOVED.get_ptr(site.key.birth) else {
        return false;
    };
    // SAFETY: the verifier proves that `moved` is a map value.
    let moved = unsafe { &*moved };
    if moved.epoch != site.epoch {
        return false;
    }
    let chunk = addr & !(CHUNK_SIZE - 1);
    for [start, end] in moved.ranges {
        if start < chunk + CHUNK_SIZE && end > chunk {
            return true;
        }
    }
    false
}

/// The test of a whole chunk by one entry.
#[inline(always)]
fn objects_to_all(entry: u64, chunk: u32, epoch: u32) -> bool {
    let present = entry & PTE_PRESENT != 0;
    let soft_dirty = entry & if present { PTE_SOFT_DIRTY } else { PTE_SWAP_SOFT_DIRTY } != 0;
    if soft_dirty {
        return false;
    }
    if present && entry & PTE_WRITE != 0 {
        return true;
    }
    let Some(chunk) = pages::get(chunk) else {
        return false;
    };
    // SAFETY: the verifier proves that `chunk` is a map value.
    unsafe { (*chunk).noted_epoch == epoch }
}

/// Eight entries: `answer` becomes negative if one of them is present, writable and not soft-dirty. `x - 1` is
/// negative for 0 only. Written as instructions, because LLVM makes a branch of it, and the verifier then cannot
/// follow all ways through 512 of them.
#[inline(always)]
fn eight_entries(entries: *const u64, mut answer: u64) -> u64 {
    macro_rules! entry {
        ($offset:literal) => {
            // SAFETY: the verifier proves that `entries` has eight words.
            unsafe {
                asm!(
                    concat!("{x} = *(u64 *)({entries} + ", $offset, ")"),
                    "{x} &= {mask}",
                    "{x} ^= {exposed}",
                    "{x} += -1",
                    "{answer} |= {x}",
                    x = out(reg) _,
                    entries = in(reg) entries,
                    answer = inout(reg) answer,
                    mask = const (PTE_PRESENT | PTE_WRITE | PTE_SOFT_DIRTY),
                    exposed = const (PTE_PRESENT | PTE_WRITE),
                    options(pure, readonly, nostack),
                );
            }
        };
    }
    entry!(0);
    entry!(8);
    entry!(16);
    entry!(24);
    entry!(32);
    entry!(40);
    entry!(48);
    entry!(56);
    answer
}

/// Of eight entries, those that are present and soft-dirty: the highest bit of byte `n` for entry `n`.
#[inline(always)]
fn eight_soft_dirty(entries: *const u64) -> u64 {
    let mut lanes = 0u64;
    macro_rules! entry {
        ($offset:literal $shift:literal) => {
            // SAFETY: the verifier proves that `entries` has eight words.
            unsafe {
                asm!(
                    concat!("{x} = *(u64 *)({entries} + ", $offset, ")"),
                    "{y} = {x}",
                    "{y} >>= 11",
                    "{x} &= {y}",
                    "{x} &= 1",
                    concat!("{x} <<= ", $shift),
                    "{lanes} |= {x}",
                    x = out(reg) _,
                    y = out(reg) _,
                    entries = in(reg) entries,
                    lanes = inout(reg) lanes,
                    options(pure, readonly, nostack),
                );
            }
        };
    }
    entry!(0 7);
    entry!(8 15);
    entry!(16 23);
    entry!(24 31);
    entry!(32 39);
    entry!(40 47);
    entry!(48 55);
    entry!(56 63);
    lanes
}

/// The quick test of the entries from page `first` to page `last`; goes to the next multiple of eight at both
/// ends, so what it says of a page outside is found to be nothing later.
#[inline(always)]
fn objects(scratch: &Scratch, chunk: u32, first: u32, last: u32, mark: u8) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let marks = u64::from(mark) * EACH;
    let chunk = pages::get(chunk);
    let mut group = (first >> 3) & 63;
    let end = (last >> 3) & 63;
    let mut answer = 0u64;
    while group <= end {
        let at = below_64(group.into());
        // SAFETY: the index is masked.
        let entries = unsafe { (&raw const scratch.entries).cast::<u64>().add(at * 8) };
        answer = eight_entries(entries, answer);
        if let Some(chunk) = chunk {
            // SAFETY: the verifier proves that `chunk` is a map value; the index is masked.
            let word = unsafe {
                core::ptr::read_volatile((&raw const (*chunk).written).cast::<u64>().add(at))
            };
            // A byte is 0 where the mark is that of this epoch; adding 0x7f then leaves its highest bit clear.
            let written = !((word ^ marks) & (EACH * 0x7f)).wrapping_add(EACH * 0x7f) & (EACH * 0x80);
            if written != 0 {
                let lost = written & !eight_soft_dirty(entries);
                answer |= lost | lost.wrapping_neg();
            }
        }
        group += 1;
    }
    (answer as i64) < 0
}

/// Leaves what `look` needs in the scratch.
#[inline(always)]
fn look(scratch: &mut Scratch, site: &Site, addr: u64, first: u32, last: u32, chunk: u32) {
    scratch.key = site.key;
    scratch.vma = site.vma;
    scratch.end = site.end;
    scratch.address = addr & !(CHUNK_SIZE - 1);
    scratch.first = first;
    scratch.last = last;
    scratch.epoch = site.epoch;
    scratch.reader = site.reader;
    look_at_pages(scratch, chunk);
}

/// Looks at the pages one by one and reports what is not as it should be.
///
/// First the marks of writes are copied, then the entries are read again: the bit is in an entry before its mark
/// is made, so a mark without a bit means that the bit was taken away.
#[inline(never)]
fn look_at_pages(scratch: &mut Scratch, chunk: u32) -> u64 {
    let Some(mut reserved) = RECORDS.reserve::<PagesRecord>(0) else {
        stage(Stage::RingFull);
        return 0;
    };
    let record = reserved.as_mut_ptr();
    let mut stale = true;
    if let Some(chunk) = pages::get(chunk) {
        // SAFETY: the verifier proves that `chunk` is a map value and `record` is reserved memory.
        unsafe {
            stale = (*chunk).stale != 0;
            let written = (&raw const (*chunk).written).cast::<u64>();
            let causes = (&raw const (*chunk).causes).cast::<u64>();
            let copy = (&raw mut (*record).causes).cast::<u64>();
            for index in 0..PAGES / 8 {
                scratch.written[index] = core::ptr::read_volatile(written.add(index));
                core::ptr::write_volatile(copy.add(index), core::ptr::read_volatile(causes.add(index)));
            }
        }
    } else {
        // SAFETY: as above.
        unsafe {
            let copy = (&raw mut (*record).causes).cast::<u64>();
            for index in 0..PAGES / 8 {
                core::ptr::write_volatile(copy.add(index), 0);
            }
        }
    }
    if stale {
        for index in 0..PAGES / 8 {
            scratch.written[index] = 0;
        }
    }
    if scratch.table == 0 {
        let mut entry = scratch.entries[PAGES];
        if entry & PTE_PRESENT != 0 && is_huge_zero(entry) {
            entry |= PTE_SPECIAL;
        }
        for index in 0..PAGES {
            scratch.entries[index] = entry;
        }
    } else if !paging::copy((&raw mut scratch.entries).cast(), 4096, scratch.table) {
        stage(Stage::AuditUnread);
        reserved.discard(0);
        return 0;
    }
    moved_pages(scratch);
    let mut anything = 0;
    for word in 0..PAGES / 64 {
        // SAFETY: `record` is reserved memory, `word` is below the length of its sets.
        anything |= unsafe { look_at_word(scratch, record, word) };
    }
    if anything == 0 {
        reserved.discard(0);
        return 0;
    }
    // SAFETY: as above; every member is written.
    unsafe {
        (*record).header = Header {
            kind: Kind::Pages as u16,
            version: VERSION,
            size: size_of::<PagesRecord>() as u32,
            time_ns: bpf_ktime_get_ns(),
        };
        (*record).vma = rows::facts_of(scratch.key, scratch.end, scratch.vma);
        (*record).address = scratch.address;
        (*record).epoch = scratch.epoch;
        (*record).reader = scratch.reader;
        (*record).huge = scratch.huge;
        (*record).hole = scratch.hole;
        let thread = bpf_get_current_pid_tgid();
        (*record).initial_pid = (thread >> 32) as u32;
        (*record).initial_tid = thread as u32;
    }
    stage(Stage::AuditFinding);
    reserved.submit(0);
    1
}

#[inline(always)]
fn is_huge_zero(entry: u64) -> bool {
    let symbol = HUGE_ZERO_PFN.load();
    // A PMD entry of a huge page has a bit of its own (PAT) where the frame of a PTE begins.
    symbol != 0 && paging::frame_of(entry) & !1 == Probed::u64(symbol, 0)
}

/// Which pages of the chunk were moved here in this epoch.
#[inline(always)]
fn moved_pages(scratch: &mut Scratch) {
    for word in 0..PAGES / 64 {
        scratch.moved[word] = 0;
    }
    if !tracking::anything_moved() {
        return;
    }
    let Some(moved) = MOVED.get_ptr(scratch.key.birth) else {
        return;
    };
    // SAFETY: the verifier proves that `moved` is a map value.
    let moved = unsafe { &*moved };
    if moved.epoch != scratch.epoch {
        return;
    }
    for range in 0..MOVED_RANGES {
        let [start, end] = moved.ranges[range];
        for word in 0..PAGES / 64 {
            let from = scratch.address + (word as u64) * (64 << 12);
            // Pages of this word below `start` and below `end`, as bits from the lowest up.
            let below = |limit: u64| {
                if limit <= from {
                    0
                } else if limit - from >= 64 << 12 {
                    u64::MAX
                } else {
                    (1u64 << (((limit - from) >> 12) & 63)).wrapping_sub(1)
                }
            };
            scratch.moved[word] |= below(end) & !below(start);
        }
    }
}

/// Looks at 64 pages. Returns 0 if nothing is to be reported of them.
#[inline(always)]
unsafe fn look_at_word(scratch: &Scratch, record: *mut PagesRecord, word: usize) -> u64 {
    let wanted = u64::from(tag(scratch.epoch));
    let (mut exposed, mut dirty, mut clean, mut written, mut raced) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let (mut present, mut none, mut special) = (0u64, 0u64, 0u64);
    for bit in 0..64usize {
        let page = (word * 64 + bit) & (PAGES - 1);
        let entry = scratch.entries[page];
        let mark = (scratch.written[page / 8] >> ((page % 8) * 8)) & 0xff;
        let is_present = entry & 1;
        let has_bit = ((entry >> 11) & is_present) | ((entry >> 1) & (is_present ^ 1) & 1);
        let is_clean = (has_bit ^ 1) & 1;
        let is_written = zero_as_one((mark ^ wanted) & u64::from(TAG_MASK));
        present |= is_present << bit;
        clean |= is_clean << bit;
        written |= is_written << bit;
        raced |= ((mark >> 7) & is_written) << bit;
        exposed |= ((entry >> 1) & is_present & is_clean) << bit;
        dirty |= ((entry / PTE_DIRTY) & 1) << bit;
        none |= zero_as_one(entry) << bit;
        special |= ((entry / PTE_SPECIAL) & is_present & 1) << bit;
    }
    let pages = (scratch.first as u64, scratch.last as u64);
    let base = word as u64 * 64;
    let up_to = |page: u64| {
        if page < base {
            0
        } else if page - base >= 64 {
            u64::MAX
        } else {
            (1u64 << ((page - base) & 63)).wrapping_sub(1)
        }
    };
    let looked_at = up_to(pages.1 + 1) & !up_to(pages.0);
    let moved = scratch.moved[word] & present & clean & looked_at;
    let lost = written & clean & looked_at;
    exposed &= looked_at;
    // SAFETY: the caller gives a record that is reserved and a word within its sets.
    unsafe {
        (*record).looked_at.0[word] = looked_at;
        (*record).exposed.0[word] = exposed;
        (*record).exposed_dirty.0[word] = exposed & dirty;
        (*record).lost.0[word] = lost;
        (*record).raced.0[word] = lost & raced;
        (*record).moved.0[word] = moved;
        (*record).none.0[word] = none & looked_at;
        (*record).zero.0[word] = special & looked_at;
    }
    exposed | lost | moved
}

/// The lower six bits. Written as an instruction, because LLVM knows the bounds of a loop and leaves the mask
/// out that the verifier needs to see.
#[inline(always)]
fn below_64(mut value: u64) -> usize {
    // SAFETY: arithmetic on a register.
    unsafe { asm!("{value} &= 63", value = inout(reg) value, options(pure, nomem, nostack)) };
    value as usize
}

/// 1 for 0, else 0, without a branch. Written as instructions for the same reason as `eight_entries`; up to 6.2
/// the verifier of a program with functions follows every way through a branch (`mark_chain_precision`).
#[inline(always)]
fn zero_as_one(value: u64) -> u64 {
    let mut answer = value;
    // SAFETY: arithmetic on a register.
    unsafe {
        asm!(
            "{answer} = -{answer}",
            "{answer} |= {value}",
            "{answer} >>= 63",
            "{answer} ^= 1",
            answer = inout(reg) answer,
            value = in(reg) value,
            options(pure, nomem, nostack),
        );
    }
    answer
}

/// Takes the marks of the pages in `[addr, end)` away: the clear is about to take their bits.
#[inline(always)]
pub fn forget_marks(birth: u64, addr: u64, end: u64) {
    let number = pages::find(birth, addr);
    let Some(chunk) = pages::get(number) else { return };
    let first = (addr >> 12) & (PAGES as u64 - 1);
    let last = (end.wrapping_sub(1) >> 12) & (PAGES as u64 - 1);
    let (first_word, last_word) = (first >> 3, last >> 3);
    // The bytes of the first and the last word that belong to other VMAs stay.
    let keep_low = (1u64 << ((first & 7) * 8)).wrapping_sub(1);
    let keep_high = !(u64::MAX >> ((7 - (last & 7)) * 8));
    let mut word = first_word & 63;
    while word <= last_word {
        let mut keep = 0;
        if word == first_word {
            keep |= keep_low;
        }
        if word == last_word {
            keep |= keep_high;
        }
        let at = below_64(word);
        // SAFETY: the verifier proves that `chunk` is a map value; the index is masked.
        unsafe {
            let written = (&raw mut (*chunk).written).cast::<u64>().add(at);
            let causes = (&raw mut (*chunk).causes).cast::<u64>().add(at);
            core::ptr::write_volatile(written, core::ptr::read_volatile(written) & keep);
            core::ptr::write_volatile(causes, core::ptr::read_volatile(causes) & keep);
        }
        word += 1;
    }
}

/// `pagemap_pmd_range` and `pagemap_scan_pmd_entry`: somebody is about to be told.
#[inline(always)]
pub fn told(reader: Reader, walk: u64, at: u64) -> Option<Site> {
    let mm = Probed::u64(walk, MM_WALK_MM.load());
    if !tracking::perhaps::<Probed>(mm) {
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
    let key = rows::key_of::<Probed>(tracked.birth, vma);
    if key.flags & NOT_AUDITED != 0 {
        return None;
    }
    let site = Site {
        vma,
        key,
        end: Probed::u64(vma, VMA_END.load()),
        epoch,
        reader: reader as u32,
        cleared: u32::from(epoch > 1 || tracked.origin == ORIGIN_CLEAR),
        padding: 0,
    };
    whole_vma(&site);
    Some(site)
}

/// Reports, once an epoch, a VMA that is not what the clear met, or whose protection lets entries be born
/// writable.
#[inline(always)]
pub fn whole_vma(site: &Site) {
    let row = rows::find_or_create(&site.key, site.vma);
    let Some(row) = rows::get(row) else { return };
    // SAFETY: the verifier proves that `row` is a map value.
    let row = unsafe { &mut *row };
    let mut state = 0;
    if born_writable(&site.key) {
        state |= VMA_BORN_WRITABLE;
    }
    if site.cleared != 0 && (row.armed_epoch != site.epoch || row.end != site.end) {
        state |= VMA_CHANGED;
    }
    if state != 0 && row.reported_epoch != site.epoch {
        row.reported_epoch = site.epoch;
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
pub fn report_vma(site: &Site, state: u32) {
    send(&VmaRecord {
        header: Header {
            kind: Kind::Vma as u16,
            version: VERSION,
            size: size_of::<VmaRecord>() as u32,
            // SAFETY: the helper has no preconditions.
            time_ns: unsafe { bpf_ktime_get_ns() },
        },
        vma: rows::facts_of(site.key, site.end, site.vma),
        epoch: site.epoch,
        reader: site.reader,
        state,
        padding: 0,
    });
}
