//! The look at the pages of a chunk one by one, after the quick test has objected.

use core::arch::asm;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tracer_common::audit::PagesRecord;
use tracer_common::counters::Stage;
use tracer_common::flags::{PTE_DIRTY, PTE_HUGE, PTE_PROTNONE, PTE_SPECIAL};
use tracer_common::pages::{PageSet, TAG_MASK, tag};
use tracer_common::records::{Header, Kind, VERSION};

use super::quick::zero_as_one;
use super::{GROUPS, Scratch, WORDS};
use crate::maps::{RECORDS, stage};
use crate::{pages, rows};

/// Looks at the pages one by one, as [`reread`](super::reread) has found them, and reports what is not as it should be.
#[inline(never)]
pub fn look_at_pages(scratch: &mut Scratch, chunk: u32) -> u64 {
    let Some(mut reserved) = RECORDS.reserve::<PagesRecord>(0) else {
        stage(Stage::RingFull);
        return 0;
    };
    let record = reserved.as_mut_ptr();
    // SAFETY: `record` is reserved memory.
    let copy = unsafe { (&raw mut (*record).causes).cast::<u64>() };
    if let Some(chunk) = pages::get(chunk) {
        for index in 0..GROUPS {
            // SAFETY: the verifier proves that `chunk` is a map value; as above.
            unsafe {
                let causes = (&raw const (*chunk).causes).cast::<u64>();
                core::ptr::write_volatile(copy.add(index), core::ptr::read_volatile(causes.add(index)));
            }
        }
    } else {
        for index in 0..GROUPS {
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(copy.add(index), 0) };
        }
    }
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
        (*record).migrating = u32::from(pages::may_be_migrating(chunk, scratch.site.epoch));
        (*record).padding = 0;
    }
    stage(Stage::AuditFinding);
    reserved.submit(0);
    1
}

const _: () = assert!(PTE_PROTNONE == PTE_HUGE << 1);

/// Looks at the eight pages of a group. Returns 0 if nothing is to be reported of them.
///
/// # Safety
/// `record` must be reserved and `group` below 64.
#[inline(always)]
unsafe fn look_at_group(scratch: &Scratch, record: *mut PagesRecord, group: usize) -> u64 {
    let wanted = u64::from(tag(scratch.site.epoch));
    let marks = scratch.written[group];
    let (mut exposed, mut dirty, mut clean, mut written, mut raced) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let (mut none, mut special) = (0u64, 0u64);
    // Eight copies of the same lines instead of a loop: the verifiers before 6.3 go back over every turn of a loop
    // in a program with functions, and 512 turns take them minutes.
    macro_rules! page {
        ($($bit:literal)*) => {$(
            let entry = without_note(scratch.entries[group * 8 + $bit]);
            let mark = marks >> ($bit * 8);
            let is_present = is_there(entry);
            let is_clean = lacks_bit(entry);
            let is_written = zero_as_one((mark ^ wanted) & u64::from(TAG_MASK));
            clean |= is_clean << $bit;
            written |= is_written << $bit;
            raced |= ((mark >> 7) & is_written) << $bit;
            exposed |= ((entry >> 1) & entry & is_clean) << $bit;
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
    let moved = byte(&scratch.moved) & clean & looked_at;
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

/// The entry, or 0 if it is of the highest swap type and so stands for no page: a note about what is not there
/// (`SWP_PTE_MARKER`, since 5.19). Written as instructions for the same reason as `zero_as_one`.
#[inline(always)]
fn without_note(entry: u64) -> u64 {
    let mut answer = entry;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{keep} = {answer}",
            "{keep} >>= 59",
            "{keep} ^= 31",
            "{present} = {answer}",
            "{present} >>= 8",
            "{present} |= {answer}",
            "{present} &= 1",
            "{keep} |= {present}",
            "{keep} = -{keep}",
            "{keep} s>>= 63",
            "{answer} &= {keep}",
            answer = inout(reg) answer,
            keep = out(reg) _,
            present = out(reg) _,
            options(pure, nomem, nostack),
        );
    }
    answer
}

/// 1 if an entry is present (bit 0 or 8), else 0. Written as instructions for the same reason.
#[inline(always)]
fn is_there(entry: u64) -> u64 {
    let mut answer = entry;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{answer} >>= 8",
            "{answer} |= {entry}",
            "{answer} &= 1",
            answer = inout(reg) answer,
            entry = in(reg) entry,
            options(pure, nomem, nostack),
        );
    }
    answer
}

/// 1 if an entry is not soft-dirty, else 0: bit 11 if it is present (bit 0 or 8), bit 1 if it is not. Written as
/// instructions, because LLVM makes a branch of the choice.
#[inline(always)]
fn lacks_bit(entry: u64) -> u64 {
    let mut answer = entry;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "{present} = {entry}",
            "{present} >>= 8",
            "{present} |= {entry}",
            "{swapped} = {entry}",
            "{swapped} >>= 1",
            "{answer} >>= 11",
            "{answer} ^= {swapped}",
            "{answer} &= {present}",
            "{answer} ^= {swapped}",
            "{answer} ^= 1",
            "{answer} &= 1",
            answer = inout(reg) answer,
            entry = in(reg) entry,
            present = out(reg) _,
            swapped = out(reg) _,
            options(pure, nomem, nostack),
        );
    }
    answer
}

/// The pages of a word of a set that lie before the page with this number, as bits. Without a branch: between 0 and
/// 64 by the sign of a difference, and the shift in two halves, since a shift by 64 is one by 0.
#[inline(always)]
pub fn bits_below(page: u64, word: usize) -> u64 {
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
