//! What the eBPF programs need of the kernel: one row a global. The name of a row is the name of the global in the
//! eBPF object.

use super::ABSENT;

/// How a global's value is made from the kernel's names for it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// The offset of the first of these members that exists. If the programs read a fixed number of bytes there,
    /// the member must have exactly that size.
    Member { size: Option<u32> },
    /// The size of the first of these structs that exists.
    StructSize,
    /// The values of all these enumerators, or-ed.
    Mask,
    /// A mask with one bit, whose number is the value of the first of these enumerators that exists.
    Bit,
    /// The address of the first of these variables that exists, from the kernel's symbols.
    Address,
}

/// What a global is when the kernel does not have its source.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fallback {
    /// The layout is refused.
    Refuse,
    /// This value.
    Value(u64),
}

/// One global of the eBPF object.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: &'static str,
    pub kind: Kind,
    /// The kernel's names: paths of members, structs or enumerators.
    pub sources: &'static [&'static str],
    pub fallback: Fallback,
    /// Whether the global is a `u64`.
    pub wide: bool,
}

const fn required(name: &'static str, kind: Kind, sources: &'static [&'static str]) -> Entry {
    Entry {
        name,
        kind,
        sources,
        fallback: Fallback::Refuse,
        wide: false,
    }
}

/// A member that is read whole, as an integer or pointer of `size` bytes.
const fn offset(name: &'static str, size: u32, paths: &'static [&'static str]) -> Entry {
    required(name, Kind::Member { size: Some(size) }, paths)
}

/// A member that is itself a struct or an array, so only its place matters.
const fn place(name: &'static str, paths: &'static [&'static str]) -> Entry {
    required(name, Kind::Member { size: None }, paths)
}

const fn mask(name: &'static str, enumerators: &'static [&'static str]) -> Entry {
    required(name, Kind::Mask, enumerators)
}

/// A VMA flag. Since 6.19 its bit number is an enumerator (`DECLARE_VMA_BIT` in `include/linux/mm.h`); before, it
/// was a `#define` there, which BTF does not have. 5.10's defines and 7.3's enumerators agree for all used here.
const fn vma_flag(name: &'static str, enumerator: &'static [&'static str], define: u64) -> Entry {
    Entry {
        wide: true,
        ..required(name, Kind::Bit, enumerator).or(define)
    }
}

/// The address of a variable of the kernel; 0 where it has none or hides it.
const fn variable(name: &'static str, symbols: &'static [&'static str]) -> Entry {
    Entry {
        wide: true,
        ..required(name, Kind::Address, symbols).or(0)
    }
}

impl Entry {
    /// [`ABSENT`] where the kernel has no such member.
    const fn optional(self) -> Self {
        self.or(ABSENT as u64)
    }

    const fn or(self, value: u64) -> Self {
        Self {
            fallback: Fallback::Value(value),
            ..self
        }
    }
}

pub(super) const GLOBALS: &[Entry] = &[
    offset("VM_FAULT_VMA", 8, &["vm_fault.vma"]),
    offset("VM_FAULT_ADDRESS", 8, &["vm_fault.address"]),
    offset("VM_FAULT_FLAGS", 4, &["vm_fault.flags"]),
    offset("VM_FAULT_ORIG_PTE", 8, &["vm_fault.orig_pte"]),
    // 5.10 hands the PMD to do_huge_pmd_wp_page as an argument; since 5.14 (5db4f15c4fd7) it lies here.
    offset("VM_FAULT_ORIG_PMD", 8, &["vm_fault.orig_pmd"]).optional(),
    offset("VMA_START", 8, &["vm_area_struct.vm_start"]),
    offset("VMA_END", 8, &["vm_area_struct.vm_end"]),
    offset("VMA_MM", 8, &["vm_area_struct.vm_mm"]),
    offset("VMA_PAGE_PROT", 8, &["vm_area_struct.vm_page_prot"]),
    // A union of a const vm_flags with __vm_flags since 6.3, with `vma_flags_t flags` since 6.19.
    offset(
        "VMA_FLAGS",
        8,
        &[
            "vm_area_struct.vm_flags",
            "vm_area_struct.__vm_flags",
            "vm_area_struct.flags",
        ],
    ),
    offset("VMA_OFFSET", 8, &["vm_area_struct.vm_pgoff"]),
    offset("VMA_OPS", 8, &["vm_area_struct.vm_ops"]),
    offset("VMA_FILE", 8, &["vm_area_struct.vm_file"]),
    // The list of VMAs gave way to the maple tree in 6.1.
    offset("VMA_NEXT", 8, &["vm_area_struct.vm_next"]).optional(),
    offset("MM_WALK_MM", 8, &["mm_walk.mm"]),
    offset("MM_WALK_VMA", 8, &["mm_walk.vma"]),
    offset("MM_WALK_PRIVATE", 8, &["mm_walk.private"]),
    offset("MAPPED_WALK_VMA", 8, &["page_vma_mapped_walk.vma"]),
    offset("MAPPED_WALK_ADDRESS", 8, &["page_vma_mapped_walk.address"]),
    offset("MM_PGD", 8, &["mm_struct.pgd"]),
    // Whether the address space has ever pinned pages: up to 5.13 a member of its own, then the bit MMF_HAS_PINNED among
    // the flags (a458b76a4174), a #define; the self-test proves its number.
    offset("MM_HAS_PINNED", 4, &["mm_struct.has_pinned"]).optional(),
    offset("MM_FLAGS", 8, &["mm_struct.flags"]),
    required("PAGE_STRUCT_SIZE", Kind::StructSize, &["page"]),
    offset("PAGE_FLAGS", 8, &["page.flags"]),
    // Bit 0 says that the page is a tail. The rest is the head's address; since 7.0 it may be a mask of addresses.
    offset(
        "PAGE_COMPOUND_HEAD",
        8,
        &["page.compound_head", "page.compound_info"],
    ),
    offset("PAGE_MAPCOUNT", 4, &["page._mapcount"]),
    offset("PAGE_REFCOUNT", 4, &["page._refcount"]),
    // How often a compound page is pinned stands in its third page up to 5.17, then in its second, and since 6.1 that is
    // a member of struct folio.
    offset("FOLIO_PINCOUNT", 4, &["folio._pincount"]).optional(),
    offset("SECOND_PAGE_PINCOUNT", 4, &["page.compound_pincount"]).optional(),
    offset("THIRD_PAGE_PINCOUNT", 4, &["page.hpage_pinned_refcount"]).optional(),
    offset("SECOND_PAGE_ORDER", 1, &["page.compound_order"]).optional(),
    // Where a page keeps its place in its mapping; renamed in 6.16 for the way to struct folio.
    offset("PAGE_INDEX", 8, &["page.index", "page.__folio_index"]),
    // Only with CONFIG_USERFAULTFD.
    offset("USERFAULTFD_MM", 8, &["userfaultfd_ctx.mm"]).optional(),
    // Only with CONFIG_MEMCG.
    offset("MM_OWNER", 8, &["mm_struct.owner"]).optional(),
    offset("TASK_MM", 8, &["task_struct.mm"]),
    offset("TASK_PID", 4, &["task_struct.pid"]),
    offset("TASK_TGID", 4, &["task_struct.tgid"]),
    offset("TASK_COMM", 16, &["task_struct.comm"]),
    offset("TASK_THREAD_PID", 8, &["task_struct.thread_pid"]),
    offset("TASK_GROUP_LEADER", 8, &["task_struct.group_leader"]),
    // Renamed in 5.5 (cf25e24db61c).
    offset(
        "TASK_START_BOOTTIME",
        8,
        &["task_struct.start_boottime", "task_struct.real_start_time"],
    ),
    offset("TASK_FLAGS", 4, &["task_struct.flags"]),
    offset("TASK_CGROUPS", 8, &["task_struct.cgroups"]),
    place("TASK_PID_LINKS", &["task_struct.pid_links"]),
    offset("CSS_SET_DFL_CGRP", 8, &["css_set.dfl_cgrp"]),
    offset("CGROUP_KN", 8, &["cgroup.kn"]),
    place("CGROUP_SELF", &["cgroup.self"]),
    offset("CSS_PARENT", 8, &["cgroup_subsys_state.parent"]),
    offset("KERNFS_NODE_ID", 8, &["kernfs_node.id"]),
    offset("PID_LEVEL", 4, &["pid.level"]),
    // One element in 5.10, a flexible array later: its size says nothing.
    place("PID_NUMBERS", &["pid.numbers"]),
    place("PID_TASKS", &["pid.tasks"]),
    offset("UPID_NR", 4, &["upid.nr"]),
    offset("UPID_NS", 8, &["upid.ns"]),
    required("UPID_SIZE", Kind::StructSize, &["upid"]),
    offset("PROC_INODE_PID", 8, &["proc_inode.pid"]),
    place("PROC_INODE_VFS_INODE", &["proc_inode.vfs_inode"]),
    offset("FILE_INODE", 8, &["file.f_inode"]),
    offset("FILE_MAPPING", 8, &["file.f_mapping"]),
    offset("MAPPING_HOST", 8, &["address_space.host"]),
    offset("MAPPING_WRITABLE", 4, &["address_space.i_mmap_writable"]),
    place("MAPPING_VMAS", &["address_space.i_mmap"]),
    offset("KIOCB_FILE", 8, &["kiocb.ki_filp"]),
    offset("KIOCB_POS", 8, &["kiocb.ki_pos"]),
    offset("ITER_COUNT", 8, &["iov_iter.count"]),
    // Bit 0 is set for a write (ITER_SOURCE); in 5.10 the lowest bit of `type`.
    place("ITER_DIRECTION", &["iov_iter.data_source", "iov_iter.type"]),
    // Only with CONFIG_BLOCK.
    offset("BIO_SIZE", 4, &["bio.bi_iter.bi_size"]).optional(),
    // Since 6.5 direct reads pin their pages, and a clear leaves pinned private pages soft-dirty; before, they only
    // take references (a7e689dd1c06).
    required("BIO_PAGES_ARE_PINNED", Kind::Bit, &["BIO_PAGE_PINNED"]).or(0),
    offset("FILE_PRIVATE_DATA", 8, &["file.private_data"]),
    offset("INODE_SB", 8, &["inode.i_sb"]),
    offset("INODE_NUMBER", 8, &["inode.i_ino"]),
    offset("SUPER_FLAGS", 8, &["super_block.s_flags"]),
    offset("SUPER_MAGIC", 8, &["super_block.s_magic"]),
    offset("SUPER_DEV", 4, &["super_block.s_dev"]),
    // enum vm_fault_reason
    mask("FAULT_RETRY_MASK", &["VM_FAULT_RETRY"]),
    // Since 6.0 (d92725256b4f); older kernels never return it.
    mask("FAULT_COMPLETED_MASK", &["VM_FAULT_COMPLETED"]).or(0),
    mask("FAULT_FALLBACK_MASK", &["VM_FAULT_FALLBACK"]),
    // What include/linux/mm_types.h calls VM_FAULT_ERROR, without FALLBACK.
    mask(
        "FAULT_ERROR_MASK",
        &[
            "VM_FAULT_OOM",
            "VM_FAULT_SIGBUS",
            "VM_FAULT_HWPOISON",
            "VM_FAULT_HWPOISON_LARGE",
            "VM_FAULT_SIGSEGV",
        ],
    ),
    // enum fault_flag; in 5.10 still `#define`s of include/linux/mm.h.
    mask("FLAG_WRITE", &["FAULT_FLAG_WRITE"]).or(0x01),
    mask("FLAG_TRIED", &["FAULT_FLAG_TRIED"]).or(0x20),
    // Since 5.19 and 6.4; older kernels never set them.
    mask("FLAG_UNSHARE", &["FAULT_FLAG_UNSHARE"]).or(0),
    mask("FLAG_VMA_LOCK", &["FAULT_FLAG_VMA_LOCK"]).or(0),
    // enum ttu_flags; gone with 5.14, when try_to_migrate_one became a function of its own (a98a2f0c8ce1).
    mask("TTU_MIGRATION_MASK", &["TTU_MIGRATION"]).or(0),
    variable("PAGE_OFFSET_BASE", &["page_offset_base"]),
    variable("MEMORY_ENCRYPTION_MASK", &["sme_me_mask"]),
    // Without it the kernel has four levels of page tables only.
    variable("PGDIR_SHIFT", &["pgdir_shift"]),
    variable("HUGE_ZERO_PFN", &["huge_zero_pfn"]),
    variable("AIO_RING_VM_OPS", &["aio_ring_vm_ops"]),
    variable("VMEMMAP_BASE", &["vmemmap_base"]),
    Entry {
        wide: true,
        ..required("PG_HEAD_MASK", Kind::Bit, &["PG_head"])
    },
    vma_flag("VM_READ_MASK", &["VMA_READ_BIT"], 0x0000_0001),
    vma_flag("VM_WRITE_MASK", &["VMA_WRITE_BIT"], 0x0000_0002),
    vma_flag("VM_SHARED_MASK", &["VMA_SHARED_BIT"], 0x0000_0008),
    vma_flag("VM_MAYWRITE_MASK", &["VMA_MAYWRITE_BIT"], 0x0000_0020),
    vma_flag("VM_PFNMAP_MASK", &["VMA_PFNMAP_BIT"], 0x0000_0400),
    vma_flag("VM_HUGETLB_MASK", &["VMA_HUGETLB_BIT"], 0x0040_0000),
    // The bit has its number whether or not the kernel has CONFIG_MEM_SOFT_DIRTY.
    vma_flag("VM_SOFTDIRTY_MASK", &["VMA_SOFTDIRTY_BIT"], 0x0800_0000),
    vma_flag("VM_MIXEDMAP_MASK", &["VMA_MIXEDMAP_BIT"], 0x1000_0000),
];
