//! Classes C and D, and what VMAs tell as a whole: nobody saw a missed write, but one could hide here.

use tracer_common::audit::{Reader, VMA_BORN_WRITABLE, VMA_CHANGED, VmaRecord};
use tracer_common::classify::VmaKind;
use tracer_common::flags::{
    PTE_WRITE, VM_EXEC, VM_HUGETLB, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE, is_armed,
};
use tracer_common::records::{ClearRecord, TaskIdentity};
use tracer_common::table::VmaKey;

use super::cause::Cause;
use super::epoch::Epoch;
use super::findings::{PAGE, Sight};
use super::ranges::{Range, RangeSet};
use super::verdict::Unknown;
use super::worked::{Remap, Work};

/// `VM_GROWSDOWN` of include/linux/mm.h: a stack, which grows over addresses that nothing was mapped at.
const VM_GROWSDOWN: u64 = 0x100;

/// Whether page-table entries of an armed VMA with this key may be born writable, so that writes to them are
/// never seen. Huge pages of hugetlb and page frames without a page are blind in any case, see
/// [`tracer_common::records::Blind`].
pub(super) fn born_writable(key: &VmaKey) -> bool {
    is_armed(key.flags)
        && key.flags & VM_SHARED != 0
        && key.flags & VM_WRITE != 0
        && key.flags & (VM_HUGETLB | VM_PFNMAP) == 0
        && key.page_prot & PTE_WRITE != 0
}

/// Hazards that came up for the first time in their epoch, for the counters.
pub(super) type New = Vec<Cause>;

/// Takes in the state of a VMA. `merged` are the VMAs that have swallowed a fresh range in some epoch.
pub(super) fn vma(epoch: &mut Epoch, record: &VmaRecord, merged: &mut RangeSet) -> New {
    let mut new = New::new();
    let key = &record.vma.key;
    let whole = Range {
        start: key.start,
        end: record.vma.end,
    };
    let sight = Sight {
        vma: Some(&record.vma),
        reader: Reader::from_raw(record.reader),
        at_ns: record.header.time_ns,
    };
    if record.state & VMA_CHANGED != 0
        && is_armed(key.flags)
        && key.flags & VM_GROWSDOWN == 0
        && epoch.opened_by_clear().is_some()
    {
        match epoch.new_addresses(record) {
            Some(parts) => {
                let kind = u8::try_from(record.vma.kind).ok().and_then(VmaKind::from_raw);
                for part in parts {
                    new.extend(new_range(epoch, part, kind, sight));
                }
                if epoch.fresh.overlaps(whole) {
                    merged.insert_bounded(whole, MERGED);
                }
            }
            None => epoch.note_unknown(Unknown::VmasUnknown, 1),
        }
    }
    if record.state & VMA_BORN_WRITABLE != 0 && born_writable(key) {
        let cause = if merged.overlaps(whole) {
            Cause::VmaMerge
        } else {
            Cause::SharedReadFault
        };
        if epoch.findings.hazard(cause, whole, sight) {
            new.push(cause);
        }
    }
    new
}

/// VMAs that are remembered to have swallowed a fresh range, for each address space.
pub(super) const MERGED: usize = 256;

/// A part of an armed VMA that was not in it at the clear. mremap puts pages where others were, and marks the ones
/// that it moves one by one; what nobody moved there was mapped after the clear, carried `VM_SOFTDIRTY`, and has
/// lost it. Of a mapping made after the clear and then moved here, the pages that it had are marked, and the others
/// have lost their bit with `VM_SOFTDIRTY`: a look at them tells which.
fn new_range(epoch: &mut Epoch, part: Range, kind: Option<VmaKind>, sight: Sight<'_>) -> New {
    let mut new = New::new();
    let moved = epoch.worked.ranges(Work::MovedHere).within(part);
    let fresh: Vec<Range> = moved
        .iter()
        .flat_map(|range| epoch.moved_fresh.within(*range))
        .flat_map(|range| epoch.hiding(range, kind))
        .collect();
    for range in fresh {
        epoch.look_at(range);
    }
    let grown = epoch.worked.ranges(Work::Grown).within(part);
    let mut left = RangeSet::default();
    left.insert(part);
    for range in moved {
        left.remove(range);
    }
    for range in grown {
        left.remove(range);
        new.extend(hidden(epoch, Cause::MremapGrow, range, kind, sight));
    }
    for range in left.iter() {
        epoch.fresh.insert_bounded(range, MERGED);
        new.extend(hidden(epoch, Cause::VmaMerge, range, kind, sight));
    }
    new
}

/// A range in which content can hide is a hazard.
fn hidden(
    epoch: &mut Epoch,
    cause: Cause,
    range: Range,
    kind: Option<VmaKind>,
    sight: Sight<'_>,
) -> Option<Cause> {
    let mut first = false;
    for part in epoch.hiding(range, kind) {
        first |= epoch.findings.hazard(cause, part, sight);
    }
    first.then_some(cause)
}

/// Takes in an mremap. In-place growth over what was mapped at the clear is a hazard at once; after a move, only a
/// look at the pages tells which of them moved.
pub(super) fn remap(epoch: &mut Epoch, remap: &Remap, at_ns: u64) -> New {
    let sight = Sight {
        vma: None,
        reader: None,
        at_ns,
    };
    let Some(at_clear) = &epoch.at_clear else {
        if epoch.opened_by_clear().is_some() {
            epoch.note_unknown(Unknown::VmasUnknown, 1);
        }
        return New::new();
    };
    // A mapping that was made after the clear carries VM_SOFTDIRTY wherever it goes.
    // So does one that took the place of a reservation: what cannot be accessed at the clear and was not made accessible
    // by mprotect has nothing to move.
    let reserved = at_clear
        .overlapping(remap.source)
        .all(|vma| vma.key.flags & (VM_READ | VM_WRITE | VM_EXEC) == 0)
        && !epoch.worked.on(Work::Protect, remap.source);
    if reserved || !at_clear.intact.overlaps(remap.source) {
        epoch.moved_fresh.insert_bounded(remap.moved_here, MERGED);
        epoch.seen.remove(remap.moved_here);
        return New::new();
    }
    epoch.moved_fresh.remove(remap.moved_here);
    epoch.seen.remove(remap.moved_here);
    let kind = at_clear.kind_at(remap.source.start);
    let replaced = at_clear.mapped(remap.moved_here);
    let grown = hidden(epoch, Cause::MremapGrow, remap.grown, kind, sight);
    for range in replaced.iter() {
        epoch.look_at(range);
    }
    grown.into_iter().collect()
}

/// What the clear that ends `epoch` tells about it.
pub(super) fn closing_clear(epoch: &mut Epoch, number: u32, clear: &ClearRecord) -> New {
    let mut new = New::new();
    let sight = Sight {
        vma: None,
        reader: None,
        at_ns: clear.entry_ns,
    };
    let mut note = |cause, pages| {
        if epoch.findings.hazard_without_range(cause, pages, sight) {
            new.push(cause);
        }
    };
    if clear.read_epoch == number && clear.writes_after_read > 0 {
        note(Cause::ReadClearGap, clear.writes_after_read);
    }
    // Some trackers are a new process each time, CRIU's pre-dumps for one: after the process that opened the epoch has
    // ended, one of the same name that clears what has been read in this epoch takes over from it.
    let takes_over = |opened: &ClearRecord| {
        clear.opener_gone != 0 && opened.tracker.comm == clear.tracker.comm && clear.read_epoch == number
    };
    if let Some(opened) = epoch.opened_by_clear()
        && !same_process(&opened.tracker, &clear.tracker)
        && !takes_over(opened)
        && epoch.findings.hazard_without_range(Cause::ForeignClear, 1, sight)
    {
        new.push(Cause::ForeignClear);
    }
    epoch.audited = Some((clear.audited_vmas, clear.audited_pages));
    new
}

/// What the clear that opens `epoch` tells about it: a clear that worked and met no VMA tracks nothing.
pub(super) fn opening_clear(epoch: &mut Epoch, clear: &ClearRecord) -> New {
    let sight = Sight {
        vma: None,
        reader: None,
        at_ns: clear.header.time_ns,
    };
    let nothing = clear.result > 0 && clear.vmas == 0;
    if nothing && epoch.findings.hazard_without_range(Cause::NoSupport, 1, sight) {
        return vec![Cause::NoSupport];
    }
    New::new()
}

/// Takes in `UFFDIO_ZEROPAGE`: the zero page without its bit where the clear had met a VMA.
pub(super) fn userfault_zero(epoch: &mut Epoch, range: Range, at_ns: u64) -> New {
    let sight = Sight {
        vma: None,
        reader: None,
        at_ns,
    };
    let mapped = match &epoch.at_clear {
        Some(at_clear) => at_clear.mapped(range),
        None => return New::new(),
    };
    let mut new = New::new();
    for part in mapped.iter() {
        if epoch.findings.hazard(Cause::UserfaultfdZeropage, part, sight) {
            new.push(Cause::UserfaultfdZeropage);
        }
    }
    new
}

/// What somebody who read pagemap saw of one page that had been moved here: present, and its bit.
pub(super) fn verified(epoch: &mut Epoch, page: u64, present: bool, soft_dirty: bool, at_ns: u64) -> New {
    let range = Range::of(page, PAGE);
    if !epoch.to_verify.contains(page) {
        return New::new();
    }
    epoch.has_seen(range);
    let sight = Sight {
        vma: None,
        reader: Some(Reader::Own),
        at_ns,
    };
    // What mremap moved with a whole page table is reported by the audit, and what is not there was never moved.
    let cause = epoch.untouched(range);
    if soft_dirty || (present && cause != Cause::UserfaultfdMove) {
        return New::new();
    }
    if epoch.findings.hazard(cause, range, sight) {
        vec![cause]
    } else {
        New::new()
    }
}

/// Takes in `UFFDIO_MOVE` onto what the clear had met: a look at the pages tells which of them carry their bit.
pub(super) fn userfault_move(epoch: &mut Epoch, range: Range) {
    let mapped = match &epoch.at_clear {
        Some(at_clear) => at_clear.mapped(range),
        None => return,
    };
    epoch.seen.remove(range);
    for part in mapped.iter() {
        epoch.look_at(part);
    }
}

/// Whether two records name the same process.
pub(super) fn same_process(one: &TaskIdentity, other: &TaskIdentity) -> bool {
    (one.initial_pid, one.start_ns) == (other.initial_pid, other.start_ns)
}
