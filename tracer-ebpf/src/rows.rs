//! Finding and creating the row of a VMA state.

use tracer_common::audit::VmaFacts;
use tracer_common::classify::VmaKind;
use tracer_common::counters::Stage;
use tracer_common::flags::{ANON_INODE_FS_MAGIC, SB_KERNMOUNT, TMPFS_MAGIC, VM_SHARED};
use tracer_common::table::{VmaKey, VmaRow};

use crate::layout::*;
use crate::maps::{FREE_ROWS, ROW_INDEX, ROWS, stage};
use crate::memory::{Memory, Probed};

/// No row.
pub const NONE: u32 = u32::MAX;

/// Reads what identifies the present state of `vma` in the address space `birth`.
#[inline(always)]
pub fn key_of<M: Memory>(birth: u64, vma: u64) -> VmaKey {
    VmaKey {
        birth,
        start: M::u64(vma, VMA_START.load()),
        flags: M::u64(vma, VMA_FLAGS.load()),
        page_prot: M::u64(vma, VMA_PAGE_PROT.load()),
    }
}

/// The number of the row for `key`, made from `vma` if there is none yet; [`NONE`] if the table is full.
#[inline(always)]
pub fn find_or_create(key: &VmaKey, vma: u64) -> u32 {
    if let Some(row) = ROW_INDEX.get_ptr(key) {
        // SAFETY: the verifier proves that the pointer is a map value.
        return unsafe { *row };
    }
    create(key, vma)
}

#[inline(always)]
fn create(key: &VmaKey, vma: u64) -> u32 {
    const BPF_NOEXIST: u64 = 1;
    let Ok(Some(number)) = FREE_ROWS.pop() else {
        stage(Stage::RowsFull);
        return NONE;
    };
    let Some(row) = get(number) else { return NONE };
    let backing = Backing::of(vma);
    // The daemon zeroed the row before it put it on the stack of free ones.
    // SAFETY: the verifier proves that `row` is a map value; only this program has its number.
    unsafe {
        (*row).end = Probed::u64(vma, VMA_END.load());
        (*row).inode = backing.inode;
        (*row).device = backing.device;
        (*row).kind = backing.kind(key.flags);
        (*row).offset = Probed::u64(vma, VMA_OFFSET.load());
        // The key last: the daemon takes a row with a birth for a row in use.
        (*row).key = *key;
    }
    if ROW_INDEX.insert(key, number, BPF_NOEXIST).is_ok() {
        return number;
    }
    // Another CPU made the same row meanwhile, or the index is full.
    // SAFETY: as above.
    unsafe {
        *row = VmaRow::default();
    }
    let _ = FREE_ROWS.push(number, 0);
    let Some(row) = ROW_INDEX.get_ptr(key) else {
        stage(Stage::RowsFull);
        return NONE;
    };
    // SAFETY: the verifier proves that the pointer is a map value.
    unsafe { *row }
}

/// Brings what a row says of the mapped file up to date: another file may be mapped at the same place by now.
///
/// # Safety
/// `row` must be a row of `key`.
#[inline(always)]
pub unsafe fn refresh(row: *mut VmaRow, key: &VmaKey, vma: u64) {
    let file = Probed::u64(vma, VMA_FILE.load());
    let inode = if file == 0 {
        0
    } else {
        Probed::u64(Probed::u64(file, FILE_INODE.load()), INODE_NUMBER.load())
    };
    // SAFETY: the caller's.
    unsafe {
        (*row).offset = Probed::u64(vma, VMA_OFFSET.load());
        if (*row).inode != inode {
            let backing = Backing::of(vma);
            (*row).inode = backing.inode;
            (*row).device = backing.device;
            (*row).kind = backing.kind(key.flags);
        }
    }
}

/// The row with this number.
#[inline(always)]
pub fn get(number: u32) -> Option<*mut VmaRow> {
    ROWS.get_ptr_mut(number)
}

/// Leaves everything about a VMA that a finding in it tells in `facts`, which may lie in a record that is reserved
/// in the ring buffer.
///
/// # Safety
/// `facts` must be writable.
#[inline(always)]
pub unsafe fn tell_facts(facts: *mut VmaFacts, key: &VmaKey, end: u64, vma: u64) {
    let backing = Backing::of(vma);
    // SAFETY: the caller's.
    unsafe {
        (*facts).key.birth = key.birth;
        (*facts).key.start = key.start;
        (*facts).key.flags = key.flags;
        (*facts).key.page_prot = key.page_prot;
        (*facts).end = end;
        (*facts).offset = Probed::u64(vma, VMA_OFFSET.load());
        (*facts).inode = backing.inode;
        (*facts).device = backing.device;
        (*facts).kind = backing.kind(key.flags);
    }
}

/// Shared mappings of the file that a VMA maps (`i_mmap_writable`), this one included; 0 for a private VMA.
#[inline(always)]
pub fn shared_mappings(flags: u64, vma: u64) -> u32 {
    if flags & VM_SHARED == 0 {
        return 0;
    }
    let mapping = Probed::u64(Probed::u64(vma, VMA_FILE.load()), FILE_MAPPING.load());
    Probed::u32(mapping, MAPPING_WRITABLE.load())
}

/// What a VMA maps.
struct Backing {
    has_ops: bool,
    kernel_tmpfs: bool,
    inode: u64,
    device: u32,
}

impl Backing {
    #[inline(always)]
    fn kind(&self, flags: u64) -> u32 {
        VmaKind::of(flags, self.has_ops, self.kernel_tmpfs) as u32
    }

    #[inline(always)]
    fn of(vma: u64) -> Self {
        let file = Probed::u64(vma, VMA_FILE.load());
        let has_ops = Probed::u64(vma, VMA_OPS.load()) != 0;
        if file == 0 {
            return Self {
                has_ops,
                kernel_tmpfs: false,
                inode: 0,
                device: 0,
            };
        }
        let inode = Probed::u64(file, FILE_INODE.load());
        let superblock = Probed::u64(inode, INODE_SB.load());
        let magic = Probed::u64(superblock, SUPER_MAGIC.load());
        if magic == ANON_INODE_FS_MAGIC {
            // Rings of io_uring and perf, KVM and others: all of them share one inode, which says nothing.
            return Self {
                has_ops,
                kernel_tmpfs: false,
                inode: 0,
                device: 0,
            };
        }
        let kernel_tmpfs =
            Probed::u64(superblock, SUPER_FLAGS.load()) & SB_KERNMOUNT != 0 && magic == TMPFS_MAGIC;
        Self {
            has_ops,
            kernel_tmpfs,
            inode: Probed::u64(inode, INODE_NUMBER.load()),
            device: Probed::u32(superblock, SUPER_DEV.load()),
        }
    }
}
