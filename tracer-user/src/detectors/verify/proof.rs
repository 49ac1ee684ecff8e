//! From a changed content to a finding: is it a missed write, of which cause, and is it certain?

use std::collections::BTreeMap;

use tracer_common::audit::Reader;
use tracer_common::counters::Stage;
use tracer_common::flags::{VM_HUGETLB, VM_MAYWRITE, VM_PFNMAP, VM_READ, VM_SHADOW_STACK, VM_WRITE};
use tracer_common::pages::CHUNK_SIZE;
use tracer_common::records::Blind;

use super::{Area, Changed, LeftOut, Reading};
use crate::detectors::cause::{Cause, Evidence};
use crate::detectors::epoch::Epoch;
use crate::detectors::findings::{PAGE, PageFinding, Rank, Sight};
use crate::detectors::ranges::Range;
use crate::detectors::verdict::Unknown;
use crate::detectors::worked::{VmaAtClear, Work};
use crate::detectors::{Detectors, LedgerView, Space};

/// Bits of `vm_flags` (include/linux/mm.h). A driver's mapping: reading it may do something to a device.
const VM_IO: u64 = 0x4000;
/// Page frames with and without pages.
const VM_MIXEDMAP: u64 = 0x1000_0000;
/// Reading a page that is not there would wait for the target's own fault handler.
const VM_UFFD_MISSING: u64 = 0x200;
/// It cannot be made larger: what drivers and the kernel map.
const VM_DONTEXPAND: u64 = 0x4_0000;

/// Whatever may have kept a clear from being told.
const HIDES_A_CLEAR: [Unknown; 6] = [
    Unknown::MissedProbeRuns,
    Unknown::MissingRecords,
    Unknown::Undecodable,
    Unknown::Lost(Stage::ClearsFull),
    Unknown::Lost(Stage::OrphanReturn),
    Unknown::Lost(Stage::SlotTaken),
];

/// Whether the pages of a VMA may be read and say something: memory that can be written and that soft-dirty tracks.
fn is_sampled(flags: u64) -> bool {
    let never = VM_IO | VM_PFNMAP | VM_MIXEDMAP | VM_HUGETLB | VM_UFFD_MISSING | VM_SHADOW_STACK;
    flags & VM_READ != 0 && flags & (VM_WRITE | VM_MAYWRITE) != 0 && flags & never == 0
}

/// Whether a reading of epoch `number` was over before anything of that epoch was cleared. The rows tell of a clear
/// before it takes the first bit (`clear_refs_test_walk`), so they know of one whose record is still to come.
fn is_of_its_epoch(space: &Space, reading: &Reading, newest_met: u32) -> bool {
    match space.epochs.range(reading.epoch + 1..).next() {
        Some((&number, next)) => next
            .opened_by_clear()
            .is_some_and(|clear| number == reading.epoch + 1 && clear.entry_ns >= reading.done_ns),
        None => newest_met <= reading.epoch,
    }
}

/// The mechanism behind a changed page, as far as anything is known that worked there.
fn cause_of(epoch: &Epoch, vma: &VmaAtClear, page: Range) -> Cause {
    let hazard = |cause| {
        let found = epoch.findings.incidents.get(&(cause, Evidence::Hazard));
        found.is_some_and(|found| found.ranges.overlaps(page))
    };
    let ranges = [
        Cause::FileWrite,
        Cause::UserfaultfdZeropage,
        Cause::UserfaultfdMove,
        Cause::VmaMerge,
        Cause::MremapGrow,
        Cause::SharedReadFault,
    ];
    if let Some(cause) = ranges.into_iter().find(|&cause| hazard(cause)) {
        return cause;
    }
    if epoch.worked.on(Work::UserfaultMovedHere, page) {
        return Cause::UserfaultfdMove;
    }
    if epoch.worked.on(Work::MovedHere, page) {
        return Cause::MremapTableMove;
    }
    let blind = |blind: Blind| epoch.blind[blind as usize] > 0;
    // Its file has an inode of its own (aio_private_file); other rings of the kernel's are files of the anonymous inode.
    let is_ring = vma.is_shared() && vma.inode != 0 && vma.key.flags & VM_DONTEXPAND != 0;
    if is_ring && blind(Blind::AioRing) {
        return Cause::AioRing;
    }
    if epoch.aliased.overlaps(page) {
        return Cause::OtherMapper;
    }
    // Where reads under way are delivered to is not known.
    if blind(Blind::Pinned) && (epoch.blind_ranges.overlaps(page) || epoch.blind_nowhere > 0) {
        return Cause::PinnedBuffer;
    }
    Cause::Unknown
}

impl Detectors {
    /// The newest epoch of an address space and the memory of it that a sample may be drawn from, unless it is not known
    /// what the clear met.
    #[must_use]
    pub fn to_sample(&self, birth: u64) -> Option<(u32, Vec<Area>)> {
        let (&number, epoch) = self.spaces.get(&birth)?.epochs.iter().next_back()?;
        let at_clear = epoch.at_clear.as_ref()?;
        if !epoch.is_open() || epoch.opened_by_clear().is_none() {
            return None;
        }
        let areas = at_clear
            .vmas()
            .filter(|vma| is_sampled(vma.key.flags))
            .flat_map(|vma| {
                let shared = vma.is_shared();
                let parts = at_clear.intact.within(vma.range());
                parts.into_iter().map(move |range| Area { range, shared })
            });
        Some((number, areas.collect()))
    }

    /// Takes in what was found when sampled pages were read again. Everything that happened before the reading was over
    /// must have been taken in before: records, rows and losses.
    pub fn verified(&mut self, reading: &Reading, ledger: &dyn LedgerView) {
        for (sum, pages) in self.totals.left_out.iter_mut().zip(reading.left_out) {
            *sum += pages;
        }
        let newest_met = ledger.newest_met(reading.birth);
        let Some(space) = self.spaces.get_mut(&reading.birth) else {
            return;
        };
        let in_time = is_of_its_epoch(space, reading, newest_met);
        let epoch = space.epochs.get_mut(&reading.epoch);
        let first = reading.changed.iter().filter(|changed| changed.first).count() as u64;
        let Some(epoch) = epoch.filter(|epoch| in_time && !epoch.finished) else {
            self.totals.left_out[LeftOut::Cleared as usize] += reading.compared;
            return;
        };
        if HIDES_A_CLEAR
            .iter()
            .any(|reason| epoch.unknown.contains_key(reason))
        {
            self.totals.left_out[LeftOut::Unsure as usize] += reading.compared;
            return;
        }
        let (proved, dropped) = epoch.prove(&reading.changed);
        self.totals.left_out[LeftOut::Dropped as usize] += dropped;
        epoch.verified_pages += reading.compared - dropped.min(reading.compared);
        epoch.verified_missed += first - dropped.min(first);
        self.totals.verified_pages += reading.compared - dropped.min(reading.compared);
        self.totals.verified_missed += first - dropped.min(first);
        if proved.is_empty() {
            return;
        }
        for ((start, found), vma) in proved {
            let sight = Sight {
                vma: Some(&vma.facts()),
                reader: Some(Reader::Own),
                at_ns: reading.done_ns,
            };
            let unlisted = epoch.findings.unlisted;
            let counted = epoch.findings.pages(start, &found, sight, &mut self.budget);
            epoch.note_unknown(Unknown::FindingsFull, epoch.findings.unlisted - unlisted);
            self.totals.count(&counted);
        }
        self.touched.insert((reading.birth, reading.epoch));
    }
}

/// Pages of one chunk, by its address, and the VMA that they lie in.
type Proved = Vec<((u64, Vec<PageFinding>), VmaAtClear)>;

impl Epoch {
    /// What the changed pages prove, by chunk and VMA, and how many of those that were not told before prove nothing
    /// because the target threw their content away.
    fn prove(&self, changed: &[Changed]) -> (Proved, u64) {
        let Some(at_clear) = &self.at_clear else {
            return (Proved::new(), 0);
        };
        let mut proved = BTreeMap::new();
        let mut dropped = 0;
        for &Changed { address, first } in changed {
            let page = Range::of(address, PAGE);
            if self.dropped.iter().any(|ranges| ranges.overlaps(page)) {
                dropped += u64::from(first);
                continue;
            }
            // It is read again every time, because a cause may come to be known later. What no state is kept for counts
            // when it is told for the first time.
            if !first && !self.findings.knows(address) {
                continue;
            }
            let Some(vma) = at_clear.overlapping(page).next() else {
                continue;
            };
            let chunk = address & !(CHUNK_SIZE - 1);
            let finding = PageFinding {
                page: usize::try_from((address - chunk) / PAGE).unwrap_or(0),
                rank: Rank::Proved,
                cause: cause_of(self, vma, page),
            };
            proved
                .entry((chunk, vma.key.start))
                .or_insert_with(|| ((chunk, Vec::new()), *vma))
                .0
                .1
                .push(finding);
        }
        (proved.into_values().collect(), dropped)
    }
}
