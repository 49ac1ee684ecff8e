//! Entry points of the audit, of the record of writes and of the hooks on what destroys bits.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, kprobe, kretprobe, raw_tracepoint};
use aya_ebpf::programs::{
    BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext,
};
use tracer_common::audit::Reader;
use tracer_common::pages::PageCause;

use crate::audit::{self, Bench};
use crate::files::{self, Place};
use crate::layout::*;
use crate::memory::{Arguments, Direct, Memory, Probed, bit, trampoline_value};
use crate::{calls, causes, clears, direct, pages, tracking, writes};

/// Two entry points of one body: a fentry program and a kprobe program, with the arguments of the function that
/// the layout found.
macro_rules! entry_points {
    ($fentry:ident $kprobe:ident $count:ident |$($name:ident: $position:ident),*| $body:block) => {
        entry_points!($fentry $kprobe $count |; $($name: $position),*| $body);
    };
    // What stands before the semicolon is a pointer to a structure.
    ($fentry:ident $kprobe:ident $count:ident |$($pointer:ident: $place:ident),*; $($name:ident: $position:ident),*| $body:block) => {
        #[fentry]
        fn $fentry(context: FEntryContext) -> u32 {
            let wanted = 0 $(| bit($place.load()))* $(| bit($position.load()))*;
            let arguments = Arguments::<8>::of_trampoline(context.as_ptr(), wanted);
            $(let $pointer = Direct::number(arguments.at($place.load()));)*
            $(let $name = arguments.at($position.load());)*
            $body;
            0
        }

        #[kprobe]
        fn $kprobe(context: ProbeContext) -> u32 {
            let arguments = Arguments::<8>::of_registers(context.regs, $count.load());
            $(let $pointer = arguments.at($place.load());)*
            $(let $name = arguments.at($position.load());)*
            $body;
            0
        }
    };
}

/// Two exit points of one body that wants the return value only.
macro_rules! exit_points {
    ($fexit:ident $kretprobe:ident $count:ident |$answer:ident| $body:block) => {
        #[fexit]
        fn $fexit(context: FExitContext) -> u32 {
            let count = $count.load();
            let $answer = Arguments::<8>::of_trampoline(context.as_ptr(), bit(count)).at(count);
            $body;
            0
        }

        #[kretprobe]
        fn $kretprobe(context: RetProbeContext) -> u32 {
            let $answer = context.ret::<u64>();
            $body;
            0
        }
    };
}

// The audit: clear_refs_pte_range, pagemap_pmd_range, pagemap_pte_hole and their kin for PAGEMAP_SCAN.

entry_points!(clear_refs_pte_range_fentry clear_refs_pte_range_kprobe ARGS_CLEAR_REFS_PTE_RANGE
    |pmd: ARG_CLEAR_REFS_PTE_RANGE_PMD, addr: ARG_CLEAR_REFS_PTE_RANGE_ADDR, end: ARG_CLEAR_REFS_PTE_RANGE_END| { clears::reached_pages(pmd, addr, end); });

entry_points!(clear_refs_pte_range_pins_fentry clear_refs_pte_range_pins_kprobe ARGS_CLEAR_REFS_PTE_RANGE
    |pmd: ARG_CLEAR_REFS_PTE_RANGE_PMD, addr: ARG_CLEAR_REFS_PTE_RANGE_ADDR, end: ARG_CLEAR_REFS_PTE_RANGE_END| { clears::looks_for_pins(pmd, addr, end); });

entry_points!(pagemap_pmd_range_fentry pagemap_pmd_range_kprobe ARGS_PAGEMAP_PMD_RANGE
|pmd: ARG_PAGEMAP_PMD_RANGE_PMD, addr: ARG_PAGEMAP_PMD_RANGE_ADDR, end: ARG_PAGEMAP_PMD_RANGE_END, walk: ARG_PAGEMAP_PMD_RANGE_WALK| {
    if let Some(scratch) = audit::told(Bench::Pagemap, Reader::Pagemap, walk, addr) {
        let chunk = pages::find(scratch.site.key.birth, addr);
        audit::page_table(scratch, chunk, pmd, addr, end);
    }
});

entry_points!(pagemap_pte_hole_fentry pagemap_pte_hole_kprobe ARGS_PAGEMAP_PTE_HOLE
|start: ARG_PAGEMAP_PTE_HOLE_START, end: ARG_PAGEMAP_PTE_HOLE_END, walk: ARG_PAGEMAP_PTE_HOLE_WALK| {
    if let Some(scratch) = audit::told(Bench::PagemapHole, Reader::Pagemap, walk, start) {
        audit::hole(scratch, start, end);
    }
});

entry_points!(pagemap_scan_pmd_entry_fentry pagemap_scan_pmd_entry_kprobe ARGS_PAGEMAP_SCAN_PMD_ENTRY
|pmd: ARG_PAGEMAP_SCAN_PMD_ENTRY_PMD, start: ARG_PAGEMAP_SCAN_PMD_ENTRY_START, end: ARG_PAGEMAP_SCAN_PMD_ENTRY_END, walk: ARG_PAGEMAP_SCAN_PMD_ENTRY_WALK| {
    if let Some(scratch) = audit::told(Bench::Scan, Reader::Scan, walk, start) {
        let chunk = pages::find(scratch.site.key.birth, start);
        audit::page_table(scratch, chunk, pmd, start, end);
    }
});

entry_points!(pagemap_scan_pte_hole_fentry pagemap_scan_pte_hole_kprobe ARGS_PAGEMAP_SCAN_PTE_HOLE
|start: ARG_PAGEMAP_SCAN_PTE_HOLE_START, end: ARG_PAGEMAP_SCAN_PTE_HOLE_END, walk: ARG_PAGEMAP_SCAN_PTE_HOLE_WALK| {
    if let Some(scratch) = audit::told(Bench::ScanHole, Reader::Scan, walk, start) {
        audit::hole(scratch, start, end);
    }
});

entry_points!(vma_set_page_prot_fentry vma_set_page_prot_kprobe ARGS_VMA_SET_PAGE_PROT
    |vma: ARG_VMA_SET_PAGE_PROT_VMA| { clears::arms(vma); });

// handle_mm_fault(vma, address, flags, regs): every fault of the machine comes by. Its arguments are at constant
// places, which the loader checks.

#[fexit]
fn handle_mm_fault_fexit(context: FExitContext) -> u32 {
    if tracking::anything() {
        let flags = trampoline_value::<2>(context.as_ptr()) as u32;
        if flags & FLAG_WRITE.load() != 0 {
            let vma = trampoline_value::<0>(context.as_ptr());
            let address = trampoline_value::<1>(context.as_ptr());
            let answer = trampoline_value::<4>(context.as_ptr()) as u32;
            writes::returned::<Direct>(vma, address, answer);
        }
    }
    0
}

#[kprobe]
fn handle_mm_fault_kprobe(context: ProbeContext) -> u32 {
    if tracking::anything() {
        let arguments = Arguments::<4>::of_registers(context.regs, 3);
        if arguments.at(2) as u32 & FLAG_WRITE.load() != 0 {
            writes::entered(arguments.at(0), arguments.at(1));
        }
    }
    0
}

#[kretprobe]
fn handle_mm_fault_kretprobe(context: RetProbeContext) -> u32 {
    if tracking::anything() {
        writes::left(context.ret::<u32>());
    }
    0
}

// What destroys bits or makes entries writable, for the causes.

entry_points!(remove_migration_pte_fentry remove_migration_pte_kprobe ARGS_REMOVE_MIGRATION_PTE
    |vma: ARG_REMOVE_MIGRATION_PTE_VMA, addr: ARG_REMOVE_MIGRATION_PTE_ADDR| { causes::arrives(vma, addr); });

exit_points!(remove_migration_pte_fexit remove_migration_pte_kretprobe ARGS_REMOVE_MIGRATION_PTE
|answer| {
    let _ = answer;
    causes::arrived();
});

#[btf_tracepoint(function = "remove_migration_pte")]
fn remove_migration_pte_btf(context: BtfTracePointContext) -> u32 {
    causes::page_arrives(context.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "remove_migration_pte")]
fn remove_migration_pte_raw(context: RawTracePointContext) -> u32 {
    causes::page_arrives(context.arg(0));
    0
}

entry_points!(try_to_unmap_one_fentry try_to_unmap_one_kprobe ARGS_TRY_TO_UNMAP_ONE
    |vma: ARG_TRY_TO_UNMAP_ONE_VMA, address: ARG_TRY_TO_UNMAP_ONE_ADDRESS, flags: ARG_TRY_TO_UNMAP_ONE_FLAGS| { causes::unmaps(vma, address, flags as u32); });

entry_points!(try_to_migrate_one_fentry try_to_migrate_one_kprobe ARGS_TRY_TO_MIGRATE_ONE
    |vma: ARG_TRY_TO_MIGRATE_ONE_VMA, address: ARG_TRY_TO_MIGRATE_ONE_ADDRESS| { causes::departs(vma, address); });

entry_points!(try_to_merge_one_page_fentry try_to_merge_one_page_kprobe ARGS_TRY_TO_MERGE_ONE_PAGE
    |vma: ARG_TRY_TO_MERGE_ONE_PAGE_VMA, page: ARG_TRY_TO_MERGE_ONE_PAGE_PAGE| { causes::merges(vma, page); });

entry_points!(split_huge_pmd_fentry split_huge_pmd_kprobe ARGS_SPLIT_HUGE_PMD
    |vma: ARG_SPLIT_HUGE_PMD_VMA, address: ARG_SPLIT_HUGE_PMD_ADDRESS| { causes::touches(vma, address, true, PageCause::Split); });

entry_points!(collapse_file_fentry collapse_file_kprobe ARGS_COLLAPSE_FILE
|file: ARG_COLLAPSE_FILE_FILE; start: ARG_COLLAPSE_FILE_START| {
    tracking::note_collapsing(bpf_get_current_pid_tgid());
    calls::file_collapse(file, start);
});

exit_points!(collapse_file_fexit collapse_file_kretprobe ARGS_COLLAPSE_FILE
|answer| {
    let _ = answer;
    tracking::note_collapsing(0);
});

entry_points!(collapse_pte_mapped_thp_fentry collapse_pte_mapped_thp_kprobe ARGS_COLLAPSE_PTE_MAPPED_THP
    |mm: ARG_COLLAPSE_PTE_MAPPED_THP_MM; addr: ARG_COLLAPSE_PTE_MAPPED_THP_ADDR| { causes::of_mm(mm, addr, true, PageCause::Collapse); });

entry_points!(unmap_mapping_range_fentry unmap_mapping_range_kprobe ARGS_UNMAP_MAPPING_RANGE
    |mapping: ARG_UNMAP_MAPPING_RANGE_MAPPING, start: ARG_UNMAP_MAPPING_RANGE_START, length: ARG_UNMAP_MAPPING_RANGE_LENGTH| { calls::file_hole(mapping, start, length); });

entry_points!(do_madvise_fentry do_madvise_kprobe ARGS_DO_MADVISE
    |mm: ARG_DO_MADVISE_MM; start: ARG_DO_MADVISE_START, length: ARG_DO_MADVISE_LENGTH, advice: ARG_DO_MADVISE_BEHAVIOR| { calls::madvise(mm, start, length, advice as u32); });

exit_points!(do_madvise_fexit do_madvise_kretprobe ARGS_DO_MADVISE
    |answer| { calls::returned(i64::from(answer as i32)); });

entry_points!(sys_mremap_fentry sys_mremap_kprobe ARGS_SYS_MREMAP
    |registers: ARG_SYS_MREMAP_REGS| { calls::mremap(registers); });

exit_points!(sys_mremap_fexit sys_mremap_kretprobe ARGS_SYS_MREMAP
    |answer| { calls::returned(answer as i64); });

entry_points!(userfaultfd_ioctl_fentry userfaultfd_ioctl_kprobe ARGS_USERFAULTFD_IOCTL
    |file: ARG_USERFAULTFD_IOCTL_FILE, command: ARG_USERFAULTFD_IOCTL_CMD, argument: ARG_USERFAULTFD_IOCTL_ARG| { calls::userfault(file, command as u32, argument); });

exit_points!(userfaultfd_ioctl_fexit userfaultfd_ioctl_kretprobe ARGS_USERFAULTFD_IOCTL
    |answer| { calls::returned(answer as i64); });

#[fentry]
fn uprobe_write_opcode_fentry(context: FEntryContext) -> u32 {
    let wanted = bit(ARG_UPROBE_WRITE_OPCODE_MM.load())
        | bit(ARG_UPROBE_WRITE_OPCODE_VMA.load())
        | bit(ARG_UPROBE_WRITE_OPCODE_ADDRESS.load());
    breakpoint(
        &Arguments::<8>::of_trampoline(context.as_ptr(), wanted),
        Direct::number,
    )
}

#[kprobe]
fn uprobe_write_opcode_kprobe(context: ProbeContext) -> u32 {
    let count = ARGS_UPROBE_WRITE_OPCODE.load();
    breakpoint(&Arguments::<8>::of_registers(context.regs, count), |pointer| {
        pointer
    })
}

#[inline(always)]
fn breakpoint(arguments: &Arguments<8>, number: impl Fn(u64) -> u64) -> u32 {
    let is_vma = ARG_UPROBE_WRITE_OPCODE_MM.load() == ABSENT;
    let position = if is_vma {
        ARG_UPROBE_WRITE_OPCODE_VMA.load()
    } else {
        ARG_UPROBE_WRITE_OPCODE_MM.load()
    };
    let address = arguments.at(ARG_UPROBE_WRITE_OPCODE_ADDRESS.load());
    calls::breakpoint(number(arguments.at(position)), is_vma, address);
    0
}

exit_points!(uprobe_write_opcode_fexit uprobe_write_opcode_kretprobe ARGS_UPROBE_WRITE_OPCODE
    |answer| { calls::returned(i64::from(answer as i32)); });

entry_points!(sys_madvise_fentry sys_madvise_kprobe ARGS_SYS_MADVISE
    |registers: ARG_SYS_MADVISE_REGS| { calls::sys_madvise(registers); });

exit_points!(sys_madvise_fexit sys_madvise_kretprobe ARGS_SYS_MADVISE
    |answer| { calls::returned(answer.cast_signed()); });

entry_points!(remove_migration_pmd_fentry remove_migration_pmd_kprobe ARGS_REMOVE_MIGRATION_PMD
    |walk: ARG_REMOVE_MIGRATION_PMD_PVMW;| { causes::huge_page_arrives(walk); });

// generic_perform_write(iocb, i), up to 5.18 generic_perform_write(file, i, pos)

#[fentry]
fn generic_perform_write_fentry(context: FEntryContext) -> u32 {
    let wanted = bit(ARG_GENERIC_PERFORM_WRITE_FILE.load())
        | bit(ARG_GENERIC_PERFORM_WRITE_IOCB.load())
        | bit(ARG_GENERIC_PERFORM_WRITE_ITER.load())
        | bit(ARG_GENERIC_PERFORM_WRITE_POS.load());
    perform_write::<Direct>(&Arguments::<8>::of_trampoline(context.as_ptr(), wanted))
}

#[kprobe]
fn generic_perform_write_kprobe(context: ProbeContext) -> u32 {
    let count = ARGS_GENERIC_PERFORM_WRITE.load();
    perform_write::<Probed>(&Arguments::<8>::of_registers(context.regs, count))
}

#[inline(always)]
fn perform_write<M: Memory>(arguments: &Arguments<8>) -> u32 {
    let iter = arguments.at(ARG_GENERIC_PERFORM_WRITE_ITER.load());
    if ARG_GENERIC_PERFORM_WRITE_IOCB.load() == ABSENT {
        let file = arguments.at(ARG_GENERIC_PERFORM_WRITE_FILE.load());
        let place = Place::At(arguments.at(ARG_GENERIC_PERFORM_WRITE_POS.load()));
        files::write_begins::<M>(file, place, iter);
    } else {
        let iocb = arguments.at(ARG_GENERIC_PERFORM_WRITE_IOCB.load());
        files::write_begins::<M>(M::u64(iocb, KIOCB_FILE.load()), Place::Of(iocb), iter);
    }
    0
}

exit_points!(generic_perform_write_fexit generic_perform_write_kretprobe ARGS_GENERIC_PERFORM_WRITE
    |answer| { files::write_ends(answer.cast_signed()); });

// iomap_file_buffered_write(iocb, iter, ops, …)

#[fentry]
fn iomap_file_buffered_write_fentry(context: FEntryContext) -> u32 {
    let wanted =
        bit(ARG_IOMAP_FILE_BUFFERED_WRITE_IOCB.load()) | bit(ARG_IOMAP_FILE_BUFFERED_WRITE_ITER.load());
    iomap_write::<Direct>(&Arguments::<8>::of_trampoline(context.as_ptr(), wanted))
}

#[kprobe]
fn iomap_file_buffered_write_kprobe(context: ProbeContext) -> u32 {
    let count = ARGS_IOMAP_FILE_BUFFERED_WRITE.load();
    iomap_write::<Probed>(&Arguments::<8>::of_registers(context.regs, count))
}

#[inline(always)]
fn iomap_write<M: Memory>(arguments: &Arguments<8>) -> u32 {
    let iocb = arguments.at(ARG_IOMAP_FILE_BUFFERED_WRITE_IOCB.load());
    let iter = arguments.at(ARG_IOMAP_FILE_BUFFERED_WRITE_ITER.load());
    files::write_begins::<M>(M::u64(iocb, KIOCB_FILE.load()), Place::Of(iocb), iter);
    0
}

exit_points!(iomap_file_buffered_write_fexit iomap_file_buffered_write_kretprobe ARGS_IOMAP_FILE_BUFFERED_WRITE
    |answer| { files::write_ends(answer.cast_signed()); });

// Direct reads.

entry_points!(bio_set_pages_dirty_fentry bio_set_pages_dirty_kprobe ARGS_BIO_SET_PAGES_DIRTY
    |bio: ARG_BIO_SET_PAGES_DIRTY_BIO;| { direct::begins(bio); });

entry_points!(bio_check_pages_dirty_fentry bio_check_pages_dirty_kprobe ARGS_BIO_CHECK_PAGES_DIRTY
    |bio: ARG_BIO_CHECK_PAGES_DIRTY_BIO;| { direct::ends(bio); });

entry_points!(blkdev_direct_io_simple_fentry blkdev_direct_io_simple_kprobe ARGS_BLKDEV_DIRECT_IO_SIMPLE
    |iter: ARG_BLKDEV_DIRECT_IO_SIMPLE_ITER| { direct::task_begins(iter); });

exit_points!(blkdev_direct_io_simple_fexit blkdev_direct_io_simple_kretprobe ARGS_BLKDEV_DIRECT_IO_SIMPLE
|answer| {
    let _ = answer;
    direct::task_ends();
});

entry_points!(blockdev_direct_io_fentry blockdev_direct_io_kprobe ARGS_BLOCKDEV_DIRECT_IO
    |iter: ARG_BLOCKDEV_DIRECT_IO_ITER| { direct::task_begins(iter); });

exit_points!(blockdev_direct_io_fexit blockdev_direct_io_kretprobe ARGS_BLOCKDEV_DIRECT_IO
|answer| {
    let _ = answer;
    direct::task_ends();
});
