//! Where the running kernel keeps things: offsets, values and argument positions from its BTF, which the loader
//! puts in place before the programs are verified. The verifier sees them as constants.

use aya_ebpf::Global;

macro_rules! globals {
    ($($type:ty { $($name:ident),* $(,)? })*) => {
        $($(
            #[unsafe(no_mangle)]
            pub static $name: Global<$type> = Global::new(<$type>::MAX);
        )*)*
    };
}

/// Stands for an offset or a position that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

globals! {
    u32 {
        VM_FAULT_VMA, VM_FAULT_ADDRESS, VM_FAULT_FLAGS, VM_FAULT_ORIG_PTE, VM_FAULT_ORIG_PMD,
        VMA_START, VMA_END, VMA_MM, VMA_PAGE_PROT, VMA_FLAGS, VMA_OPS, VMA_FILE, VMA_NEXT,
        MM_WALK_MM, MM_WALK_VMA, MM_WALK_PRIVATE,
        TASK_MM, TASK_TGID, TASK_COMM, TASK_THREAD_PID, TASK_GROUP_LEADER, TASK_START_BOOTTIME,
        TASK_CGROUPS, TASK_PID_LINKS,
        CSS_SET_DFL_CGRP, CGROUP_KN, CGROUP_SELF, CSS_PARENT, KERNFS_NODE_ID,
        PID_LEVEL, PID_NUMBERS, PID_TASKS, UPID_NR, UPID_NS, UPID_SIZE,
        PROC_INODE_PID, PROC_INODE_VFS_INODE,
        FILE_INODE, FILE_PRIVATE_DATA,
        INODE_SB, INODE_NUMBER, SUPER_FLAGS, SUPER_MAGIC, SUPER_DEV,
        FAULT_RETRY_MASK, FAULT_COMPLETED_MASK, FAULT_FALLBACK_MASK, FAULT_ERROR_MASK,
        FLAG_UNSHARE, FLAG_TRIED, FLAG_VMA_LOCK,
        ARGS_CLEAR_REFS_WRITE, ARG_CLEAR_REFS_WRITE_FILE, ARG_CLEAR_REFS_WRITE_BUF,
        ARGS_CLEAR_REFS_TEST_WALK, ARG_CLEAR_REFS_TEST_WALK_WALK,

        ARGS_DO_HUGE_PMD_WP_PAGE, ARG_DO_HUGE_PMD_WP_PAGE_VMF, ARG_DO_HUGE_PMD_WP_PAGE_ORIG_PMD,
        ARGS_MPROTECT_FIXUP, ARG_MPROTECT_FIXUP_VMA, ARG_MPROTECT_FIXUP_PPREV, ARG_MPROTECT_FIXUP_START,
        ARG_MPROTECT_FIXUP_END, ARG_MPROTECT_FIXUP_NEWFLAGS,
        ARGS_EXIT_MMAP, ARG_EXIT_MMAP_MM,
        ARGS_BEGIN_NEW_EXEC,
        ARGS_PAGEMAP_READ, ARG_PAGEMAP_READ_FILE, ARG_PAGEMAP_READ_BUF,
        // How sdtrace itself was set up.
        FAULT_RETURN, TRACE_FAULTS,
    }
}
