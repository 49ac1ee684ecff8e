//! The probed functions, and the arguments that the eBPF programs need of each: one row a function.

/// One probed function: the global that takes the number of its arguments, and the parameters whose position the
/// programs need.
#[derive(Debug)]
pub(super) struct Function {
    pub name: &'static str,
    pub count_global: &'static str,
    pub parameters: &'static [WantedParameter],
}

/// One argument that the programs read.
#[derive(Debug)]
pub(super) struct WantedParameter {
    /// Its name; alternatives are divided by `|`.
    pub name: &'static str,
    pub global: &'static str,
    /// Whether the probe is of no use without it.
    pub required: bool,
}

const fn function(
    name: &'static str,
    count_global: &'static str,
    parameters: &'static [WantedParameter],
) -> Function {
    Function {
        name,
        count_global,
        parameters,
    }
}

const fn needs(global: &'static str, name: &'static str) -> WantedParameter {
    WantedParameter {
        name,
        global,
        required: true,
    }
}

/// [`ABSENT`] where the function has no such parameter.
const fn may_have(global: &'static str, name: &'static str) -> WantedParameter {
    WantedParameter {
        name,
        global,
        required: false,
    }
}

pub(super) const FUNCTIONS: &[Function] = &[
    function(
        "clear_refs_write",
        "ARGS_CLEAR_REFS_WRITE",
        &[
            needs("ARG_CLEAR_REFS_WRITE_FILE", "file"),
            needs("ARG_CLEAR_REFS_WRITE_BUF", "buf"),
            needs("ARG_CLEAR_REFS_WRITE_COUNT", "count"),
            may_have("ARG_CLEAR_REFS_WRITE_PPOS", "ppos"),
        ],
    ),
    function(
        "clear_refs_test_walk",
        "ARGS_CLEAR_REFS_TEST_WALK",
        &[
            needs("ARG_CLEAR_REFS_TEST_WALK_START", "start"),
            needs("ARG_CLEAR_REFS_TEST_WALK_END", "end"),
            needs("ARG_CLEAR_REFS_TEST_WALK_WALK", "walk"),
        ],
    ),
    function(
        "do_wp_page",
        "ARGS_DO_WP_PAGE",
        &[needs("ARG_DO_WP_PAGE_VMF", "vmf")],
    ),
    // orig_pmd, a pmd_t by value, up to 5.13.
    function(
        "do_huge_pmd_wp_page",
        "ARGS_DO_HUGE_PMD_WP_PAGE",
        &[
            needs("ARG_DO_HUGE_PMD_WP_PAGE_VMF", "vmf"),
            may_have("ARG_DO_HUGE_PMD_WP_PAGE_ORIG_PMD", "orig_pmd"),
        ],
    ),
    // Five parameters in 5.10, six in 6.1 (tlb first), seven in 6.12 (vmi before it).
    function(
        "mprotect_fixup",
        "ARGS_MPROTECT_FIXUP",
        &[
            needs("ARG_MPROTECT_FIXUP_VMA", "vma"),
            may_have("ARG_MPROTECT_FIXUP_PPREV", "pprev"),
            needs("ARG_MPROTECT_FIXUP_START", "start"),
            needs("ARG_MPROTECT_FIXUP_END", "end"),
            needs("ARG_MPROTECT_FIXUP_NEWFLAGS", "newflags"),
        ],
    ),
    function("exit_mmap", "ARGS_EXIT_MMAP", &[needs("ARG_EXIT_MMAP_MM", "mm")]),
    function(
        "begin_new_exec",
        "ARGS_BEGIN_NEW_EXEC",
        &[needs("ARG_BEGIN_NEW_EXEC_BPRM", "bprm")],
    ),
    function(
        "pagemap_read",
        "ARGS_PAGEMAP_READ",
        &[
            needs("ARG_PAGEMAP_READ_FILE", "file"),
            needs("ARG_PAGEMAP_READ_BUF", "buf"),
            needs("ARG_PAGEMAP_READ_COUNT", "count"),
            needs("ARG_PAGEMAP_READ_PPOS", "ppos"),
        ],
    ),
    function(
        "clear_refs_pte_range",
        "ARGS_CLEAR_REFS_PTE_RANGE",
        &[
            needs("ARG_CLEAR_REFS_PTE_RANGE_PMD", "pmd"),
            needs("ARG_CLEAR_REFS_PTE_RANGE_ADDR", "addr"),
            needs("ARG_CLEAR_REFS_PTE_RANGE_END", "end"),
            needs("ARG_CLEAR_REFS_PTE_RANGE_WALK", "walk"),
        ],
    ),
    function(
        "pagemap_pmd_range",
        "ARGS_PAGEMAP_PMD_RANGE",
        &[
            needs("ARG_PAGEMAP_PMD_RANGE_PMD", "pmdp|pmd"),
            needs("ARG_PAGEMAP_PMD_RANGE_ADDR", "addr"),
            needs("ARG_PAGEMAP_PMD_RANGE_END", "end"),
            needs("ARG_PAGEMAP_PMD_RANGE_WALK", "walk"),
        ],
    ),
    function(
        "pagemap_pte_hole",
        "ARGS_PAGEMAP_PTE_HOLE",
        &[
            needs("ARG_PAGEMAP_PTE_HOLE_START", "start"),
            needs("ARG_PAGEMAP_PTE_HOLE_END", "end"),
            needs("ARG_PAGEMAP_PTE_HOLE_WALK", "walk"),
        ],
    ),
    // PAGEMAP_SCAN came with 6.7 (52526ca7fdb9).
    function(
        "pagemap_scan_pmd_entry",
        "ARGS_PAGEMAP_SCAN_PMD_ENTRY",
        &[
            needs("ARG_PAGEMAP_SCAN_PMD_ENTRY_PMD", "pmd"),
            needs("ARG_PAGEMAP_SCAN_PMD_ENTRY_START", "start"),
            needs("ARG_PAGEMAP_SCAN_PMD_ENTRY_END", "end"),
            needs("ARG_PAGEMAP_SCAN_PMD_ENTRY_WALK", "walk"),
        ],
    ),
    function(
        "pagemap_scan_pte_hole",
        "ARGS_PAGEMAP_SCAN_PTE_HOLE",
        &[
            needs("ARG_PAGEMAP_SCAN_PTE_HOLE_START", "addr"),
            needs("ARG_PAGEMAP_SCAN_PTE_HOLE_END", "end"),
            needs("ARG_PAGEMAP_SCAN_PTE_HOLE_WALK", "walk"),
        ],
    ),
    function(
        "handle_mm_fault",
        "ARGS_HANDLE_MM_FAULT",
        &[
            needs("ARG_HANDLE_MM_FAULT_VMA", "vma"),
            needs("ARG_HANDLE_MM_FAULT_ADDRESS", "address"),
            needs("ARG_HANDLE_MM_FAULT_FLAGS", "flags"),
        ],
    ),
    function(
        "vma_set_page_prot",
        "ARGS_VMA_SET_PAGE_PROT",
        &[needs("ARG_VMA_SET_PAGE_PROT_VMA", "vma")],
    ),
    function(
        "remove_migration_pte",
        "ARGS_REMOVE_MIGRATION_PTE",
        &[
            needs("ARG_REMOVE_MIGRATION_PTE_VMA", "vma"),
            needs("ARG_REMOVE_MIGRATION_PTE_ADDR", "addr"),
        ],
    ),
    function(
        "try_to_unmap_one",
        "ARGS_TRY_TO_UNMAP_ONE",
        &[
            needs("ARG_TRY_TO_UNMAP_ONE_VMA", "vma"),
            needs("ARG_TRY_TO_UNMAP_ONE_ADDRESS", "address"),
            needs("ARG_TRY_TO_UNMAP_ONE_FLAGS", "arg"),
        ],
    ),
    function(
        "try_to_migrate_one",
        "ARGS_TRY_TO_MIGRATE_ONE",
        &[
            needs("ARG_TRY_TO_MIGRATE_ONE_VMA", "vma"),
            needs("ARG_TRY_TO_MIGRATE_ONE_ADDRESS", "address"),
        ],
    ),
    function(
        "try_to_merge_one_page",
        "ARGS_TRY_TO_MERGE_ONE_PAGE",
        &[
            needs("ARG_TRY_TO_MERGE_ONE_PAGE_VMA", "vma"),
            needs("ARG_TRY_TO_MERGE_ONE_PAGE_PAGE", "page"),
        ],
    ),
    function(
        "__split_huge_pmd",
        "ARGS_SPLIT_HUGE_PMD",
        &[
            needs("ARG_SPLIT_HUGE_PMD_VMA", "vma"),
            needs("ARG_SPLIT_HUGE_PMD_ADDRESS", "address"),
        ],
    ),
    function(
        "collapse_file",
        "ARGS_COLLAPSE_FILE",
        &[
            needs("ARG_COLLAPSE_FILE_FILE", "file"),
            needs("ARG_COLLAPSE_FILE_START", "start"),
        ],
    ),
    function(
        "collapse_pte_mapped_thp",
        "ARGS_COLLAPSE_PTE_MAPPED_THP",
        &[
            needs("ARG_COLLAPSE_PTE_MAPPED_THP_MM", "mm"),
            needs("ARG_COLLAPSE_PTE_MAPPED_THP_ADDR", "addr"),
        ],
    ),
    // (auprobe, mm, vaddr, opcode) up to 6.15, then (auprobe, vma, opcode_vaddr, opcode, is_register).
    function(
        "uprobe_write_opcode",
        "ARGS_UPROBE_WRITE_OPCODE",
        &[
            may_have("ARG_UPROBE_WRITE_OPCODE_MM", "mm"),
            may_have("ARG_UPROBE_WRITE_OPCODE_VMA", "vma"),
            needs("ARG_UPROBE_WRITE_OPCODE_ADDRESS", "vaddr|opcode_vaddr"),
        ],
    ),
    function(
        "do_madvise",
        "ARGS_DO_MADVISE",
        &[
            needs("ARG_DO_MADVISE_MM", "mm"),
            needs("ARG_DO_MADVISE_START", "start"),
            needs("ARG_DO_MADVISE_LENGTH", "len_in"),
            needs("ARG_DO_MADVISE_BEHAVIOR", "behavior"),
        ],
    ),
    function(
        "unmap_mapping_range",
        "ARGS_UNMAP_MAPPING_RANGE",
        &[
            needs("ARG_UNMAP_MAPPING_RANGE_MAPPING", "mapping"),
            needs("ARG_UNMAP_MAPPING_RANGE_START", "holebegin"),
            needs("ARG_UNMAP_MAPPING_RANGE_LENGTH", "holelen"),
        ],
    ),
    // (file, i, pos) in 5.10, (iocb, i) since 6.1.
    function(
        "generic_perform_write",
        "ARGS_GENERIC_PERFORM_WRITE",
        &[
            may_have("ARG_GENERIC_PERFORM_WRITE_FILE", "file"),
            may_have("ARG_GENERIC_PERFORM_WRITE_IOCB", "iocb"),
            needs("ARG_GENERIC_PERFORM_WRITE_ITER", "i"),
            may_have("ARG_GENERIC_PERFORM_WRITE_POS", "pos"),
        ],
    ),
    function(
        "iomap_file_buffered_write",
        "ARGS_IOMAP_FILE_BUFFERED_WRITE",
        &[
            needs("ARG_IOMAP_FILE_BUFFERED_WRITE_IOCB", "iocb"),
            needs("ARG_IOMAP_FILE_BUFFERED_WRITE_ITER", "iter|i|from"),
        ],
    ),
    function(
        "bio_set_pages_dirty",
        "ARGS_BIO_SET_PAGES_DIRTY",
        &[needs("ARG_BIO_SET_PAGES_DIRTY_BIO", "bio")],
    ),
    function(
        "bio_check_pages_dirty",
        "ARGS_BIO_CHECK_PAGES_DIRTY",
        &[needs("ARG_BIO_CHECK_PAGES_DIRTY_BIO", "bio")],
    ),
    function(
        "__blkdev_direct_IO_simple",
        "ARGS_BLKDEV_DIRECT_IO_SIMPLE",
        &[needs("ARG_BLKDEV_DIRECT_IO_SIMPLE_ITER", "iter")],
    ),
    function(
        "__blockdev_direct_IO",
        "ARGS_BLOCKDEV_DIRECT_IO",
        &[needs("ARG_BLOCKDEV_DIRECT_IO_ITER", "iter")],
    ),
    function(
        "remove_migration_pmd",
        "ARGS_REMOVE_MIGRATION_PMD",
        &[needs("ARG_REMOVE_MIGRATION_PMD_PVMW", "pvmw")],
    ),
    function(
        "__x64_sys_madvise",
        "ARGS_SYS_MADVISE",
        &[needs("ARG_SYS_MADVISE_REGS", "regs|__unused")],
    ),
    // The system call has one argument, whose name in BTF depends on the compiler's choice among declarations.
    function(
        "__x64_sys_mremap",
        "ARGS_SYS_MREMAP",
        &[needs("ARG_SYS_MREMAP_REGS", "regs|__unused")],
    ),
    function(
        "userfaultfd_ioctl",
        "ARGS_USERFAULTFD_IOCTL",
        &[
            needs("ARG_USERFAULTFD_IOCTL_FILE", "file"),
            needs("ARG_USERFAULTFD_IOCTL_CMD", "cmd"),
            needs("ARG_USERFAULTFD_IOCTL_ARG", "arg"),
        ],
    ),
];
