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
    PTE_DIRTY, PTE_HUGE, PTE_PRESENT, PTE_SOFT_DIRTY, PTE_SPECIAL, PTE_SWAP_SOFT_DIRTY, PTE_WRITE,
    VM_HUGETLB, VM_PFNMAP, VM_SHARED, VM_SOFTDIRTY, VM_WRITE,
};
use tracer_common::pages::{CHUNK_SIZE, PAGES, PageSet, TAG_MASK, tag};
use tracer_common::records::{Header, Kind, VERSION};
use tracer_common::table::VmaKey;
use tracer_common::tracked::ORIGIN_CLEAR;

use crate::layout::*;
use crate::maps::{MOVED, OWN, RECORDS, SCRATCH, stage};
use crate::memory::{Memory, Probed};
use crate::{pages, paging, rows, tracking};

/// Groups of eight pages in a chunk.
const GROUPS: usize = PAGES / 8;
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
    /// The VMA, filled in before anything is tested in it.
    pub site: Site,
    /// First address of the chunk.
    address: u64,
    /// Address of the page table; 0 if there is none to read.
    table: u64,
    first: u32,
    last: u32,
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

/// Tests `[addr, end)` of the page table that `*pmd` points to.
#[inline(always)]
pub fn page_table(scratch: &mut Scratch, pmd: u64, addr: u64, end: u64) {
    stage(Stage::AuditChunk);
    let entry = Probed::u64(pmd, 0);
    let first = ((addr >> 12) & (PAGES as u64 - 1)) as u32;
    let count = ((end.wrapping_sub(addr) >> 12) & (2 * PAGES as u64 - 1)) as u32;
    if count == 0 || count > PAGES as u32 {
        return;
    }
    let last = (first + count - 1) & (PAGES as u32 - 1);
    let chunk = pages::find(scratch.site.key.birth, addr);
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
        objects(scratch, chunk, first, last, tag(scratch.site.epoch))
    };
    if !objection && !moved_here(&scratch.site, addr) {
        return;
    }
    scratch.huge = u32::from(huge);
    scratch.hole = 0;
    scratch.entries[PAGES] = entry;
    look(scratch, addr, first, last, chunk);
}

/// A part of a VMA without page table: what was written there, and is shared, is out of the page table.
///
/// A pagemap read walks 2 MiB at a time, so a hole is one chunk. `PAGEMAP_SCAN` may meet longer ones: only the
/// first chunk is looked at, and another with marks is counted.
#[inline(always)]
pub fn hole(scratch: &mut Scratch, addr: u64, end: u64) {
    const LONGEST: u64 = 512;
    if scratch.site.key.flags & VM_SHARED == 0 {
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
    if chunk == pages::NONE {
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
    scratch.entries[PAGES] = 0;
    let first = ((addr >> 12) & (PAGES as u64 - 1)) as u32;
    let last = ((to.wrapping_sub(1) >> 12) & (PAGES as u64 - 1)) as u32;
    look(scratch, addr, first, last, chunk);
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
    let soft_dirty = entry
        & if present {
            PTE_SOFT_DIRTY
        } else {
            PTE_SWAP_SOFT_DIRTY
        }
        != 0;
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
/// ends, so what it says of a page outside is found to be nothing later. A function of its own for its share of the stack.
#[inline(never)]
fn objects(scratch: &Scratch, chunk: u32, first: u32, last: u32, mark: u8) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let marks = u64::from(mark) * EACH;
    let chunk = pages::get(chunk);
    let mut group = below_64(u64::from(first >> 3));
    let end = below_64(u64::from(last >> 3));
    let mut answer = 0u64;
    // The verifiers before 6.8 do not see that a number that grows passes one that is not a constant.
    for _ in 0..GROUPS {
        if group > end {
            break;
        }
        let at = below_64(group as u64);
        // SAFETY: the index is masked.
        let entries = unsafe { (&raw const scratch.entries).cast::<u64>().add(at * 8) };
        answer = eight_entries(entries, answer);
        if let Some(chunk) = chunk {
            // SAFETY: the verifier proves that `chunk` is a map value; the index is masked.
            let word =
                unsafe { core::ptr::read_volatile((&raw const (*chunk).written).cast::<u64>().add(at)) };
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
fn look(scratch: &mut Scratch, addr: u64, first: u32, last: u32, chunk: u32) {
    scratch.address = addr & !(CHUNK_SIZE - 1);
    scratch.first = first;
    scratch.last = last;
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
            for index in 0..GROUPS {
                scratch.written[index] = core::ptr::read_volatile(written.add(index));
                core::ptr::write_volatile(copy.add(index), core::ptr::read_volatile(causes.add(index)));
            }
        }
    } else {
        // SAFETY: as above.
        unsafe {
            let copy = (&raw mut (*record).causes).cast::<u64>();
            for index in 0..GROUPS {
                core::ptr::write_volatile(copy.add(index), 0);
            }
        }
    }
    if stale {
        for index in 0..GROUPS {
            zero(&mut scratch.written[index]);
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
    let (first, last) = (u64::from(scratch.first), u64::from(scratch.last));
    for word in 0..WORDS {
        scratch.looked_at[word] = bits_below(last + 1, word) & !bits_below(first, word);
    }
    let mut anything = 0;
    for group in 0..GROUPS {
        // SAFETY: `record` is reserved memory.
        anything |= unsafe { look_at_group(scratch, record, group) };
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
        rows::tell_facts(
            &raw mut (*record).vma,
            &scratch.site.key,
            scratch.site.end,
            scratch.site.vma,
        );
        (*record).address = scratch.address;
        (*record).epoch = scratch.site.epoch;
        (*record).reader = scratch.site.reader;
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

/// Stores a 0, but not as a part of a memset: a call of it takes a share of the stack.
#[inline(always)]
fn zero(word: &mut u64) {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::write_volatile(word, 0) };
}

/// Which pages of the chunk were moved here in this epoch.
#[inline(always)]
fn moved_pages(scratch: &mut Scratch) {
    for word in 0..WORDS {
        zero(&mut scratch.moved[word]);
    }
    if !tracking::anything_moved() {
        return;
    }
    let Some(moved) = MOVED.get_ptr(scratch.site.key.birth) else {
        return;
    };
    // SAFETY: the verifier proves that `moved` is a map value.
    let moved = unsafe { &*moved };
    if moved.epoch != scratch.site.epoch {
        return;
    }
    for range in 0..MOVED_RANGES {
        // As numbers of pages from the beginning of the chunk; those before it are negative.
        let [start, end] = moved.ranges[range];
        let page = |address: u64| (address.wrapping_sub(scratch.address) as i64 >> 12) as u64;
        let (start, end) = (page(start), page(end));
        for word in 0..WORDS {
            scratch.moved[word] |= bits_below(end, word) & !bits_below(start, word);
        }
    }
}

/// Looks at the eight pages of a group. Returns 0 if nothing is to be reported of them.
///
/// # Safety
/// `record` must be reserved and `group` below 64.
#[inline(always)]
unsafe fn look_at_group(scratch: &Scratch, record: *mut PagesRecord, group: usize) -> u64 {
    let wanted = u64::from(tag(scratch.site.epoch));
    let marks = scratch.written[group];
    let (mut exposed, mut dirty, mut clean, mut written, mut raced) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let (mut present, mut none, mut special) = (0u64, 0u64, 0u64);
    // Eight copies of the same lines instead of a loop: the verifiers before 6.3 go back over every turn of a loop
    // in a program with functions, and 512 turns take them minutes.
    macro_rules! page {
        ($($bit:literal)*) => {$(
            let entry = scratch.entries[group * 8 + $bit];
            let mark = marks >> ($bit * 8);
            let is_present = entry & 1;
            let is_clean = (((entry >> 11) & is_present) | ((entry >> 1) & !entry & 1)) ^ 1;
            let is_written = zero_as_one((mark ^ wanted) & u64::from(TAG_MASK));
            present |= is_present << $bit;
            clean |= is_clean << $bit;
            written |= is_written << $bit;
            raced |= ((mark >> 7) & is_written) << $bit;
            exposed |= ((entry >> 1) & is_present & is_clean) << $bit;
            dirty |= ((entry / PTE_DIRTY) & 1) << $bit;
            none |= zero_as_one(entry) << $bit;
            special |= ((entry / PTE_SPECIAL) & is_present) << $bit;
        )*};
    }
    page!(0 1 2 3 4 5 6 7);
    let byte = |words: &[u64; WORDS]| {
        // SAFETY: there are as many groups as bytes; page `n` is bit `n % 8` of byte `n / 8` on a little-endian machine.
        u64::from(unsafe { words.as_ptr().cast::<u8>().add(group).read_volatile() })
    };
    let looked_at = byte(&scratch.looked_at);
    let moved = byte(&scratch.moved) & present & clean & looked_at;
    let lost = written & clean & looked_at;
    exposed &= looked_at;
    // SAFETY: the caller's, and as above.
    unsafe {
        let put = |set: *mut PageSet, bits: u64| set.cast::<u8>().add(group).write_volatile(bits as u8);
        put(&raw mut (*record).looked_at, looked_at);
        put(&raw mut (*record).exposed, exposed);
        put(&raw mut (*record).exposed_dirty, exposed & dirty);
        put(&raw mut (*record).lost, lost);
        put(&raw mut (*record).raced, lost & raced);
        put(&raw mut (*record).moved, moved);
        put(&raw mut (*record).none, none & looked_at);
        put(&raw mut (*record).zero, special & looked_at);
    }
    exposed | lost | moved
}

/// The pages of a word of a set that lie before the page with this number, as bits. Without a branch: between 0 and
/// 64 by the sign of a difference, and the shift in two halves, since a shift by 64 is one by 0.
#[inline(always)]
fn bits_below(page: u64, word: usize) -> u64 {
    let mut count = page.wrapping_sub(word as u64 * 64);
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{sign} = {count}",
            "{sign} s>>= 63",
            "{sign} ^= -1",
            "{count} &= {sign}",
            "{count} += -64",
            "{sign} = {count}",
            "{sign} s>>= 63",
            "{count} &= {sign}",
            "{count} += 64",
            count = inout(reg) count,
            sign = out(reg) _,
            options(pure, nomem, nostack),
        );
    }
    let half = count >> 1;
    ((1u64 << (half & 63)) << ((count - half) & 63)).wrapping_sub(1)
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
            core::ptr::write_volatile(causes, core::ptr::read_volatile(causes) & keep);
        }
        word += 1;
    }
}

/// `pagemap_pmd_range` and `pagemap_scan_pmd_entry`: somebody is about to be told.
#[inline(always)]
pub fn told(bench: Bench, reader: Reader, walk: u64, at: u64) -> Option<&'static mut Scratch> {
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
    whole_vma(&scratch.site);
    Some(scratch)
}

/// Reports, once an epoch, a VMA that is not what the clear met, or whose protection lets entries be born
/// writable. A function of its own for its share of the stack.
#[inline(never)]
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
