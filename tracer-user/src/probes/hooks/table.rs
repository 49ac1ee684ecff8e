//! Every hook: one entry a probed function.

use super::{Hook, HookProgram, Site};

macro_rules! program {
    ($name:literal, $site:ident) => {
        HookProgram {
            name: $name,
            site: Site::$site,
        }
    };
}

/// Every probe of a running daemon, in the order in which they are attached: those that end an epoch before
/// those that open one.
pub const HOOKS: &[Hook] = &[
    Hook {
        target: "exit_mmap",
        required: true,
        fentry: &[program!("exit_mmap_fentry", Entry)],
        kprobe: &[program!("exit_mmap_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        target: "begin_new_exec",
        required: true,
        fentry: &[program!("begin_new_exec_fentry", Entry)],
        kprobe: &[program!("begin_new_exec_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        target: "sched_process_fork",
        required: true,
        fentry: &[program!("sched_process_fork_btf", Tracepoint)],
        kprobe: &[program!("sched_process_fork_raw", Tracepoint)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        target: "mprotect_fixup",
        required: true,
        fentry: &[
            program!("mprotect_fixup_fexit", Return),
            program!("mprotect_fixup_fentry", Entry),
        ],
        kprobe: &[
            program!("mprotect_fixup_kretprobe", Return),
            program!("mprotect_fixup_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        target: "do_wp_page",
        required: true,
        fentry: &[
            program!("do_wp_page_fexit", Return),
            program!("do_wp_page_fentry", Entry),
        ],
        kprobe: &[
            program!("do_wp_page_kretprobe", Return),
            program!("do_wp_page_kprobe", Entry),
        ],
        return_on_request: true,
        fixed: &[("ARGS_DO_WP_PAGE", 1), ("ARG_DO_WP_PAGE_VMF", 0)],
    },
    Hook {
        // Absent from a kernel without transparent huge pages, which then has none of these faults.
        target: "do_huge_pmd_wp_page",
        required: false,
        fentry: &[
            program!("do_huge_pmd_wp_page_fexit", Return),
            program!("do_huge_pmd_wp_page_fentry", Entry),
        ],
        kprobe: &[
            program!("do_huge_pmd_wp_page_kretprobe", Return),
            program!("do_huge_pmd_wp_page_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names the migration race, and notes the pages that come back exposed.
        target: "remove_migration_pte",
        required: false,
        fentry: &[
            program!("remove_migration_pte_fexit", Return),
            program!("remove_migration_pte_fentry", Entry),
        ],
        kprobe: &[
            program!("remove_migration_pte_kretprobe", Return),
            program!("remove_migration_pte_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The same for each page of a large folio.
        target: "migrate:remove_migration_pte",
        required: false,
        fentry: &[program!("remove_migration_pte_btf", Tracepoint)],
        kprobe: &[program!("remove_migration_pte_raw", Tracepoint)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names shared memory that reclaim takes out of the page table.
        target: "try_to_unmap_one",
        required: false,
        fentry: &[program!("try_to_unmap_one_fentry", Entry)],
        kprobe: &[program!("try_to_unmap_one_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Tells that a page without entry may be on its way to another frame.
        target: "try_to_migrate_one",
        required: false,
        fentry: &[program!("try_to_migrate_one_fentry", Entry)],
        kprobe: &[program!("try_to_migrate_one_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names KSM; absent without CONFIG_KSM.
        target: "try_to_merge_one_page",
        required: false,
        fentry: &[program!("try_to_merge_one_page_fentry", Entry)],
        kprobe: &[program!("try_to_merge_one_page_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names the split of a huge page.
        target: "__split_huge_pmd",
        required: false,
        fentry: &[program!("split_huge_pmd_fentry", Entry)],
        kprobe: &[program!("split_huge_pmd_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Tells the collapse of shared memory from reclaim: both take pages out of the page table.
        target: "collapse_file",
        required: false,
        fentry: &[
            program!("collapse_file_fexit", Return),
            program!("collapse_file_fentry", Entry),
        ],
        kprobe: &[
            program!("collapse_file_kretprobe", Return),
            program!("collapse_file_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names the collapse of shared memory into a huge page.
        target: "collapse_pte_mapped_thp",
        required: false,
        fentry: &[program!("collapse_pte_mapped_thp_fentry", Entry)],
        kprobe: &[program!("collapse_pte_mapped_thp_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names uprobes, and is the only one to see that they write.
        target: "uprobe_write_opcode",
        required: false,
        fentry: &[
            program!("uprobe_write_opcode_fexit", Return),
            program!("uprobe_write_opcode_fentry", Entry),
        ],
        kprobe: &[
            program!("uprobe_write_opcode_kretprobe", Return),
            program!("uprobe_write_opcode_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names what is thrown away, and what is not.
        target: "do_madvise",
        required: false,
        fentry: &[
            program!("do_madvise_fexit", Return),
            program!("do_madvise_fentry", Entry),
        ],
        kprobe: &[
            program!("do_madvise_kretprobe", Return),
            program!("do_madvise_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The same where the compiler has inlined do_madvise.
        target: "__x64_sys_madvise",
        required: false,
        fentry: &[
            program!("sys_madvise_fexit", Return),
            program!("sys_madvise_fentry", Entry),
        ],
        kprobe: &[
            program!("sys_madvise_kretprobe", Return),
            program!("sys_madvise_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names the migration race of huge pages; absent without huge pages.
        target: "remove_migration_pmd",
        required: false,
        fentry: &[program!("remove_migration_pmd_fentry", Entry)],
        kprobe: &[program!("remove_migration_pmd_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Tells where pages were moved to.
        target: "__x64_sys_mremap",
        required: false,
        fentry: &[
            program!("sys_mremap_fexit", Return),
            program!("sys_mremap_fentry", Entry),
        ],
        kprobe: &[
            program!("sys_mremap_kretprobe", Return),
            program!("sys_mremap_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names what userfaultfd puts into place or moves.
        target: "userfaultfd_ioctl",
        required: false,
        fentry: &[
            program!("userfaultfd_ioctl_fexit", Return),
            program!("userfaultfd_ioctl_fentry", Entry),
        ],
        kprobe: &[
            program!("userfaultfd_ioctl_kretprobe", Return),
            program!("userfaultfd_ioctl_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names holes in files.
        target: "unmap_mapping_range",
        required: false,
        fentry: &[program!("unmap_mapping_range_fentry", Entry)],
        kprobe: &[program!("unmap_mapping_range_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Names files that are written while they are mapped.
        target: "generic_perform_write",
        required: false,
        fentry: &[
            program!("generic_perform_write_fexit", Return),
            program!("generic_perform_write_fentry", Entry),
        ],
        kprobe: &[
            program!("generic_perform_write_kretprobe", Return),
            program!("generic_perform_write_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The same for XFS and others; absent without a file system that needs it.
        target: "iomap_file_buffered_write",
        required: false,
        fentry: &[
            program!("iomap_file_buffered_write_fexit", Return),
            program!("iomap_file_buffered_write_fentry", Entry),
        ],
        kprobe: &[
            program!("iomap_file_buffered_write_kretprobe", Return),
            program!("iomap_file_buffered_write_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // A direct read ends. Before its beginning: an end that is not seen would keep its memory blind.
        target: "bio_check_pages_dirty",
        required: false,
        fentry: &[program!("bio_check_pages_dirty_fentry", Entry)],
        kprobe: &[program!("bio_check_pages_dirty_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The same for one of a block device that its task waits for.
        target: "__blkdev_direct_IO_simple",
        required: false,
        fentry: &[
            program!("blkdev_direct_io_simple_fexit", Return),
            program!("blkdev_direct_io_simple_fentry", Entry),
        ],
        kprobe: &[
            program!("blkdev_direct_io_simple_kretprobe", Return),
            program!("blkdev_direct_io_simple_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The same for older file systems.
        target: "__blockdev_direct_IO",
        required: false,
        fentry: &[
            program!("blockdev_direct_io_fexit", Return),
            program!("blockdev_direct_io_fentry", Entry),
        ],
        kprobe: &[
            program!("blockdev_direct_io_kretprobe", Return),
            program!("blockdev_direct_io_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // A direct read begins.
        target: "bio_set_pages_dirty",
        required: false,
        fentry: &[program!("bio_set_pages_dirty_fentry", Entry)],
        kprobe: &[program!("bio_set_pages_dirty_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // Which pages were written. Every fault of the machine comes by, so it is attached on demand.
        target: "handle_mm_fault",
        required: false,
        fentry: &[program!("handle_mm_fault_fexit", Return)],
        kprobe: &[
            program!("handle_mm_fault_kretprobe", Return),
            program!("handle_mm_fault_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[
            ("ARG_HANDLE_MM_FAULT_VMA", 0),
            ("ARG_HANDLE_MM_FAULT_ADDRESS", 1),
            ("ARG_HANDLE_MM_FAULT_FLAGS", 2),
            ("ARGS_HANDLE_MM_FAULT", 4),
        ],
    },
    Hook {
        // Tells a clear which VMAs were fresh.
        target: "vma_set_page_prot",
        required: false,
        fentry: &[program!("vma_set_page_prot_fentry", Entry)],
        kprobe: &[program!("vma_set_page_prot_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The audit before the clear.
        target: "clear_refs_pte_range",
        required: false,
        fentry: &[
            program!("clear_refs_pte_range_fentry", Entry),
            program!("clear_refs_pte_range_pins_fentry", Entry),
        ],
        kprobe: &[
            program!("clear_refs_pte_range_kprobe", Entry),
            program!("clear_refs_pte_range_pins_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The audit when a tracker is told.
        target: "pagemap_pmd_range",
        required: false,
        fentry: &[program!("pagemap_pmd_range_fentry", Entry)],
        kprobe: &[program!("pagemap_pmd_range_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The same where a whole page table is missing.
        target: "pagemap_pte_hole",
        required: false,
        fentry: &[program!("pagemap_pte_hole_fentry", Entry)],
        kprobe: &[program!("pagemap_pte_hole_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The same for PAGEMAP_SCAN.
        target: "pagemap_scan_pmd_entry",
        required: false,
        fentry: &[program!("pagemap_scan_pmd_entry_fentry", Entry)],
        kprobe: &[program!("pagemap_scan_pmd_entry_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        // The same where a whole page table is missing.
        target: "pagemap_scan_pte_hole",
        required: false,
        fentry: &[program!("pagemap_scan_pte_hole_fentry", Entry)],
        kprobe: &[program!("pagemap_scan_pte_hole_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        target: "clear_refs_write",
        required: true,
        fentry: &[
            program!("clear_refs_write_fexit", Return),
            program!("clear_refs_write_fentry", Entry),
        ],
        kprobe: &[
            program!("clear_refs_write_kretprobe", Return),
            program!("clear_refs_write_kprobe", Entry),
        ],
        return_on_request: false,
        fixed: &[],
    },
    Hook {
        target: "clear_refs_test_walk",
        required: true,
        fentry: &[program!("clear_refs_test_walk_fentry", Entry)],
        kprobe: &[program!("clear_refs_test_walk_kprobe", Entry)],
        return_on_request: false,
        fixed: &[],
    },
];

/// While sdtrace starts, it tells the programs who the daemon is, and adopts address spaces that were armed before. After
/// that it tells who is about to track, if write faults are watched on demand; else it goes.
pub const START_HOOK: Hook = Hook {
    target: "pagemap_read",
    required: true,
    fentry: &[program!("pagemap_read_fentry", Entry)],
    kprobe: &[program!("pagemap_read_kprobe", Entry)],
    return_on_request: false,
    fixed: &[],
};
