//! Bits of page-table entries and of `vm_area_struct::vm_flags`, as the kernel defines them.
//!
//! The PTE bits come from `arch/x86/include/asm/pgtable_types.h`, the VMA bits from `include/linux/mm.h`.
//! They were `#define`s up to 6.18, so BTF does not carry them there; where a kernel has them as an enum the
//! loader takes them from BTF, and the self-test compares the decoded flags with `/proc/self/smaps`.

/// `_PAGE_PRESENT`.
pub const PTE_PRESENT: u64 = 1 << 0;
/// `_PAGE_USER`: user space may reach the page.
pub const PTE_USER: u64 = 1 << 2;
/// `_PAGE_RW`: the processor lets a write through.
pub const PTE_WRITE: u64 = 1 << 1;
/// `_PAGE_SOFT_DIRTY` of a present entry.
pub const PTE_SOFT_DIRTY: u64 = 1 << 11;

/// `_PAGE_DIRTY`: the processor has written through the entry.
pub const PTE_DIRTY: u64 = 1 << 6;
/// `_PAGE_PSE` of a PMD entry: it maps a huge page.
pub const PTE_HUGE: u64 = 1 << 7;
/// `_PAGE_PROTNONE`: the page is there, but for now no access is let through (`PROT_NONE`, a NUMA hint). Together with
/// [`PTE_PRESENT`] it is what the kernel calls present (`pte_present`); the bits keep their meaning.
pub const PTE_PROTNONE: u64 = 1 << 8;
/// `_PAGE_SPECIAL`: no page descriptor; in a private VMA the zero page.
pub const PTE_SPECIAL: u64 = 1 << 9;
/// `_PAGE_SWP_SOFT_DIRTY`: soft-dirty of an entry that is not present.
pub const PTE_SWAP_SOFT_DIRTY: u64 = 1 << 1;
/// The page frame in an entry, memory encryption aside.
pub const PTE_FRAME: u64 = 0x000f_ffff_ffff_f000;

/// `VM_READ`.
pub const VM_READ: u64 = 0x1;
/// `VM_WRITE`.
pub const VM_WRITE: u64 = 0x2;
/// `VM_EXEC`.
pub const VM_EXEC: u64 = 0x4;
/// `VM_SHARED`.
pub const VM_SHARED: u64 = 0x8;
/// `VM_MAYWRITE`.
pub const VM_MAYWRITE: u64 = 0x20;
/// `VM_PFNMAP`.
pub const VM_PFNMAP: u64 = 0x400;
/// `VM_ACCOUNT`: the VMA counts against the limit of committed memory.
pub const VM_ACCOUNT: u64 = 0x0010_0000;
/// `VM_HUGETLB`.
pub const VM_HUGETLB: u64 = 0x0040_0000;
/// `VM_SHADOW_STACK` (6.6, x86): of anonymous private memory no older kernel uses this bit for anything.
pub const VM_SHADOW_STACK: u64 = 1 << 37;
/// `VM_SOFTDIRTY`: set on a VMA that no clear has reached yet. Clear means armed.
pub const VM_SOFTDIRTY: u64 = 0x0800_0000;

/// `MMF_HAS_PINNED` of `mm_struct::flags`: `FOLL_PIN` has run on the address space; never cleared.
pub const MMF_HAS_PINNED: u64 = 1 << 27;
/// `GUP_PIN_COUNTING_BIAS` of `include/linux/mm.h`: what a pin adds to the reference count of a page that is no
/// compound one.
pub const PIN_BIAS: u64 = 1 << 10;

/// `SB_KERNMOUNT` of `include/linux/fs.h`: a file system that only the kernel mounted. Shared anonymous
/// memory, memfd and System V shared memory are files of such a tmpfs.
pub const SB_KERNMOUNT: u64 = 1 << 22;
/// `TMPFS_MAGIC` of `include/uapi/linux/magic.h`.
pub const TMPFS_MAGIC: u64 = 0x0102_1994;

/// `ANON_INODE_FS_MAGIC` of `include/uapi/linux/magic.h`: files without a file system share one inode there.
pub const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;

/// The two-letter names that `/proc/PID/smaps` prints in `VmFlags`, for the bits that sdtrace decodes.
pub const SMAPS_NAMES: [(u64, &str); 8] = [
    (VM_READ, "rd"),
    (VM_WRITE, "wr"),
    (VM_EXEC, "ex"),
    (VM_SHARED, "sh"),
    (VM_MAYWRITE, "mw"),
    (VM_PFNMAP, "pf"),
    (VM_HUGETLB, "ht"),
    (VM_SOFTDIRTY, "sd"),
];

/// The `VmFlags` names of the bits in `vm_flags` that sdtrace decodes, in the kernel's order.
pub fn smaps_names(vm_flags: u64) -> impl Iterator<Item = &'static str> {
    SMAPS_NAMES
        .iter()
        .filter(move |(bit, _)| vm_flags & bit != 0)
        .map(|&(_, name)| name)
}

/// The decoded bits that a `VmFlags` line of smaps names; every name that sdtrace does not decode is passed
/// over.
#[must_use]
pub fn from_smaps_names<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    names
        .filter_map(|name| SMAPS_NAMES.iter().find(|&&(_, known)| known == name))
        .fold(0, |flags, &(bit, _)| flags | bit)
}

/// Whether a VMA with these flags is armed: its pages are being tracked.
#[must_use]
pub const fn is_armed(vm_flags: u64) -> bool {
    vm_flags & VM_SOFTDIRTY == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn smaps_names_round_trip(vm_flags: u64) {
            let decoded = SMAPS_NAMES.iter().fold(0, |all, (bit, _)| all | bit);
            prop_assert_eq!(from_smaps_names(smaps_names(vm_flags)), vm_flags & decoded);
        }
    }

    #[test]
    fn unknown_smaps_names_are_passed_over() {
        assert_eq!(from_smaps_names("rd wr zz ac".split(' ')), VM_READ | VM_WRITE);
    }
}
