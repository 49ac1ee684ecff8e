//! Hooks on what works on page-table entries one by one: they mark the page, so that a finding there has a name.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::counters::Stage;
use tracer_common::flags::{
    PTE_PRESENT, PTE_PROTNONE, PTE_SOFT_DIRTY, PTE_WRITE, VM_HUGETLB, VM_PFNMAP, VM_SOFTDIRTY,
};
use tracer_common::pages::PageCause;

use crate::layout::*;
use crate::maps::{ARRIVALS, stage};
use crate::memory::{Memory, Probed};
use crate::{migration, pages, paging, tracking};

/// A mechanism touches the page at `address` of `vma`.
#[inline(always)]
pub fn touches(vma: u64, address: u64, huge: bool, cause: PageCause) {
    if !tracking::anything() {
        return;
    }
    of_mm(Probed::u64(vma, VMA_MM.load()), address, huge, cause);
}

/// A mechanism touches the page at `address` of an address space.
#[inline(always)]
pub fn of_mm(mm: u64, address: u64, huge: bool, cause: PageCause) {
    if tracking::anything() && tracking::perhaps::<Probed>(mm) {
        pages::mark_cause(mm, address, huge, cause as u32);
    }
}

/// A migration is about to take the page at `address` of `vma` out of the page table.
#[inline(always)]
pub fn departs(vma: u64, address: u64) {
    if !tracking::anything() {
        return;
    }
    let mm = Probed::u64(vma, VMA_MM.load());
    if !tracking::perhaps::<Probed>(mm) {
        return;
    }
    let (mut huge, mut cause) = (false, PageCause::Departure);
    if let Some(leaf) = paging::leaf(mm, address) {
        huge = leaf.huge;
        if huge {
            cause = PageCause::HugeMigration;
        } else if leaf.entry & PTE_WRITE != 0 {
            cause = PageCause::WritableDeparture;
        }
    }
    pages::mark_cause(mm, address, huge, cause as u32);
}

/// `remove_migration_pte(folio, vma, addr, arg)`: the migration entry gives way to the page. The entry of a page that
/// departed writable is a writable one, and shows the type of those.
#[inline(always)]
pub fn arrives(vma: u64, address: u64) {
    if !tracking::anything() {
        return;
    }
    let mm = Probed::u64(vma, VMA_MM.load());
    if !tracking::perhaps::<Probed>(mm) {
        return;
    }
    if pages::departed_writable(mm, address)
        && let Some(entry) = paging::entry(mm, address)
        && !entry.huge
        && entry.entry & (PTE_PRESENT | PTE_PROTNONE) == 0
        && entry.entry != 0
    {
        migration::learn(entry.entry);
    }
    pages::mark_cause(mm, address, false, PageCause::Migration as u32);
    let thread = bpf_get_current_pid_tgid();
    // One that is there already: the kernel had no instance of the return probe left for its return.
    let left_over = ARRIVALS.get_ptr(thread).is_some();
    let arrival = Arrival {
        mm,
        vma,
        address,
        unsure: 0,
    };
    let full = ARRIVALS.insert(thread, arrival, 0).is_err();
    if left_over || full {
        stage(Stage::CallsFull);
    }
}

/// A page that a migration is putting back.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Arrival {
    mm: u64,
    vma: u64,
    address: u64,
    /// The last page that was marked while a clear was walking; 0: none.
    unsure: u64,
}

/// The return of `remove_migration_pte`: is the page exposed? Asked here and now, because its entry may be write-protected before
/// anybody looks (fork, mprotect, a hint of NUMA balancing), and what was written until then has left no trace.
#[inline(always)]
pub fn arrived() {
    if !tracking::anything() {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let Some(found) = ARRIVALS.get_ptr(thread) else {
        return;
    };
    // SAFETY: the verifier proves that `found` is a map value.
    let Arrival {
        mm,
        vma,
        address,
        unsure,
    } = unsafe { *found };
    let _ = ARRIVALS.remove(thread);
    if !is_armed(vma) {
        return;
    }
    if unsure != 0 {
        pages::name_exposed(mm, address, unsure);
    }
    let Some(leaf) = exposed(mm, address) else { return };
    let walking = pages::mark_exposed(mm, address, leaf.huge);
    if walking && exposed(mm, address).is_none() {
        // A clear has come by between, and its look before: in its epoch the page is as it should be.
        pages::take_exposed_back(mm, address, leaf.huge);
    }
}

/// Tracepoint `migrate:remove_migration_pte(addr, pte, order)`, in the function of that name: the entry of one page has been made.
/// A large folio that is mapped page by page has one call for all of its pages, at the address of the first, and one of these for
/// each; `order` is that of the folio for its first page only (`compound_order` of a tail page). Kernels without the tracepoint have
/// no such folios but huge pages.
#[inline(always)]
pub fn page_arrives(address: u64) {
    if !tracking::anything() {
        return;
    }
    let Some(found) = ARRIVALS.get_ptr_mut(bpf_get_current_pid_tgid()) else {
        return;
    };
    // SAFETY: the verifier proves that `found` is a map value; it belongs to this thread.
    let arrival = unsafe { &mut *found };
    let mm = arrival.mm;
    if address == arrival.address {
        // Looked at when the function returns.
        return;
    }
    if is_armed(arrival.vma) && exposed(mm, address).is_some() {
        if pages::mark_exposed_at_once(mm, address) {
            arrival.unsure = address;
        }
    } else {
        pages::mark_cause(mm, address, false, PageCause::Migration as u32);
    }
}

/// Whether soft-dirty tracks the pages of a VMA.
#[inline(always)]
fn is_armed(vma: u64) -> bool {
    Probed::u64(vma, VMA_FLAGS.load()) & (VM_SOFTDIRTY | VM_HUGETLB | VM_PFNMAP) == 0
}

/// The entry of a page, if it lets writes through unseen.
#[inline(always)]
fn exposed(mm: u64, address: u64) -> Option<paging::Leaf> {
    paging::leaf(mm, address).filter(|leaf| leaf.entry & (PTE_WRITE | PTE_SOFT_DIRTY) == PTE_WRITE)
}

/// `remove_migration_pmd(pvmw, new)`: the same for a huge page.
#[inline(always)]
pub fn huge_page_arrives(walk: u64) {
    if tracking::anything() {
        let vma = Probed::u64(walk, MAPPED_WALK_VMA.load());
        let address = Probed::u64(walk, MAPPED_WALK_ADDRESS.load());
        touches(vma, address, true, PageCause::HugeMigration);
    }
}

/// `try_to_unmap_one(page, vma, address, flags)`: reclaim, or a collapse that needs the page for itself; before 5.14
/// a migration too.
#[inline(always)]
pub fn unmaps(vma: u64, address: u64, flags: u32) {
    if !tracking::anything() {
        return;
    }
    if flags & TTU_MIGRATION_MASK.load() != 0 {
        departs(vma, address);
        return;
    }
    let collapses = tracking::collapsing() == bpf_get_current_pid_tgid();
    let cause = if collapses {
        PageCause::Collapse
    } else {
        PageCause::Reclaim
    };
    of_mm(Probed::u64(vma, VMA_MM.load()), address, false, cause);
}

/// `try_to_merge_one_page(vma, page, kpage)`: KSM does not say the address; it follows from the page's place in
/// its mapping (`vma_address`).
#[inline(always)]
pub fn merges(vma: u64, page: u64) {
    if !tracking::anything() {
        return;
    }
    let mm = Probed::u64(vma, VMA_MM.load());
    if !tracking::perhaps::<Probed>(mm) {
        return;
    }
    let index = Probed::u64(page, PAGE_INDEX.load());
    let offset = index.wrapping_sub(Probed::u64(vma, VMA_OFFSET.load()));
    let address = Probed::u64(vma, VMA_START.load()).wrapping_add(offset << 12);
    pages::mark_cause(mm, address, false, PageCause::Ksm as u32);
}
