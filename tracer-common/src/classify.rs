//! Names for what a fault was, what kind of VMA it hit, and what an mprotect changed.

use crate::flags::{PTE_WRITE, VM_SHARED, VM_SOFTDIRTY, VM_WRITE, is_armed};

/// The kind of a VMA, as far as soft-dirty tracking treats kinds differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum VmaKind {
    /// Private anonymous memory.
    PrivateAnon = 0,
    /// Shared memory without a path: `MAP_SHARED | MAP_ANONYMOUS`, memfd, System V.
    SharedAnon = 1,
    /// A private mapping of a file.
    PrivateFile = 2,
    /// A shared mapping of a file, on tmpfs too.
    SharedFile = 3,
}

impl VmaKind {
    /// Every kind, in the order of the discriminants.
    pub const ALL: [Self; 4] = [
        Self::PrivateAnon,
        Self::SharedAnon,
        Self::PrivateFile,
        Self::SharedFile,
    ];

    /// The kind of a VMA with `vm_flags`; `has_ops` is whether `vma->vm_ops` is set (without it the VMA is
    /// anonymous, `vma_is_anonymous()`), `kernel_tmpfs` whether its file lies on the kernel's own tmpfs mount.
    #[inline(always)]
    #[must_use]
    pub const fn of(vm_flags: u64, has_ops: bool, kernel_tmpfs: bool) -> Self {
        let shared = vm_flags & VM_SHARED != 0;
        if shared {
            if kernel_tmpfs {
                Self::SharedAnon
            } else {
                Self::SharedFile
            }
        } else if has_ops {
            Self::PrivateFile
        } else {
            Self::PrivateAnon
        }
    }

    /// The kind with this discriminant.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        Self::ALL.get(usize::from(raw)).copied()
    }

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::PrivateAnon => "private_anon",
            Self::SharedAnon => "shared_anon",
            Self::PrivateFile => "private_file",
            Self::SharedFile => "shared_file",
        }
    }
}

/// What the VMA's own state was when a write-notify fault hit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ProtectionState {
    /// `VM_SOFTDIRTY` clear, `vm_page_prot` without write: the state that tracking needs.
    Armed = 0,
    /// `VM_SOFTDIRTY` clear, but `vm_page_prot` lets PTEs be born writable: the bug of 2014 and its kin.
    ArmedWritable = 1,
}

impl ProtectionState {
    /// Every state, in the order of the discriminants.
    pub const ALL: [Self; 2] = [Self::Armed, Self::ArmedWritable];

    /// The state of an armed VMA with this `vm_page_prot`.
    #[inline(always)]
    #[must_use]
    pub const fn of(page_prot: u64) -> Self {
        if page_prot & PTE_WRITE != 0 {
            Self::ArmedWritable
        } else {
            Self::Armed
        }
    }

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::ArmedWritable => "armed_writable_page_prot",
        }
    }
}

/// How a fault that entered `do_wp_page` or `do_huge_pmd_wp_page` in a tracked address space ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    /// A write-notify fault, handled: the page is soft-dirty from now on.
    Handled = 0,
    /// `FAULT_FLAG_UNSHARE`: the page was copied for a reader (a pin), nothing was written.
    Unshare = 1,
    /// `VM_FAULT_RETRY`: not handled, it will come again and is counted then.
    Retry = 2,
    /// Copy-on-write of a page that was soft-dirty already, after a fork for instance.
    AlreadySoftDirty = 3,
    /// The kernel answered with an error (out of memory, a signal).
    Failed = 4,
    /// `VM_FAULT_FALLBACK` of a huge fault: the PMD was split and the fault goes on in `do_wp_page`.
    Fallback = 5,
    /// The VMA still carries `VM_SOFTDIRTY`: everything in it counts as changed, nothing is tracked.
    NotArmed = 6,
}

impl Outcome {
    /// Every outcome, in the order of the discriminants.
    pub const ALL: [Self; 7] = [
        Self::Handled,
        Self::Unshare,
        Self::Retry,
        Self::AlreadySoftDirty,
        Self::Failed,
        Self::Fallback,
        Self::NotArmed,
    ];

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Handled => "handled",
            Self::Unshare => "unshare",
            Self::Retry => "retry",
            Self::AlreadySoftDirty => "already_soft_dirty",
            Self::Failed => "failed",
            Self::Fallback => "fallback",
            Self::NotArmed => "not_armed",
        }
    }

    /// Decides from what was known at the fault and from what the kernel answered. Without a return probe
    /// (`answer` is then 0) a retry is told apart by its second coming, see [`is_second_coming`].
    #[inline(always)]
    #[must_use]
    pub const fn of(fault: FaultFacts, answer: u32, masks: FaultMasks) -> Self {
        if answer & masks.retry != 0 && answer & masks.completed == 0 {
            return Self::Retry;
        }
        if answer & masks.error != 0 {
            return Self::Failed;
        }
        if answer & masks.fallback != 0 {
            return Self::Fallback;
        }
        if fault.flags & masks.unshare != 0 {
            return Self::Unshare;
        }
        if !is_armed(fault.vm_flags) {
            return Self::NotArmed;
        }
        if fault.was_soft_dirty {
            return Self::AlreadySoftDirty;
        }
        Self::Handled
    }
}

/// What a fault looked like when it entered.
#[derive(Clone, Copy, Debug)]
pub struct FaultFacts {
    /// `vm_fault::flags`.
    pub flags: u32,
    /// `vm_area_struct::vm_flags`.
    pub vm_flags: u64,
    /// Whether the entry that faulted (`orig_pte`, `orig_pmd`) was soft-dirty already.
    pub was_soft_dirty: bool,
}

/// The running kernel's values of the bits in `vm_fault_t` and `vm_fault::flags`; 0 where it has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultMasks {
    /// `VM_FAULT_RETRY`.
    pub retry: u32,
    /// `VM_FAULT_COMPLETED` (6.0): handled, although the lock was dropped.
    pub completed: u32,
    /// `VM_FAULT_ERROR`.
    pub error: u32,
    /// `VM_FAULT_FALLBACK`.
    pub fallback: u32,
    /// `FAULT_FLAG_UNSHARE` (6.0).
    pub unshare: u32,
    /// `FAULT_FLAG_TRIED`.
    pub tried: u32,
    /// `FAULT_FLAG_VMA_LOCK` (6.4).
    pub vma_lock: u32,
}

/// Whether an answer leaves open if the fault was handled. Before `VM_FAULT_COMPLETED` (6.0) the kernel answered
/// `VM_FAULT_RETRY` also when it had made the page writable and then throttled the writer
/// (`fault_dirty_shared_page`): such a fault does not come again. It is to be counted as handled; if it does come
/// again, that coming is the retry.
#[inline(always)]
#[must_use]
pub const fn retry_may_be_handled(answer: u32, masks: FaultMasks) -> bool {
    masks.completed == 0 && answer & masks.retry != 0
}

/// Whether a fault that enters is the second coming of the one this task entered last. The kernel retries
/// after `VM_FAULT_RETRY` either with `FAULT_FLAG_TRIED`, or, when the first try ran under the VMA's own lock,
/// once more without `FAULT_FLAG_VMA_LOCK` (`do_user_addr_fault`). The caller has checked that both faults
/// have the same task, page and epoch.
#[inline(always)]
#[must_use]
pub const fn is_second_coming(last_flags: u32, flags: u32, masks: FaultMasks) -> bool {
    flags & masks.tried != 0 || (last_flags & masks.vma_lock != 0 && flags & masks.vma_lock == 0)
}

/// What one `mprotect_fixup` changed; a call may change more than one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum MprotectChange {
    /// `VM_WRITE` came.
    GainedWrite = 0,
    /// `VM_WRITE` went.
    LostWrite = 1,
    /// The VMA grew beyond the range of the call: a neighbour was merged.
    Merged = 2,
    /// A range that carried `VM_SOFTDIRTY` lies in a VMA without it now: its writes since the clear are lost.
    SoftDirtyLost = 3,
    /// None of these (exec, pkey, split only).
    Other = 4,
}

impl MprotectChange {
    /// Every change, in the order of the discriminants.
    pub const ALL: [Self; 5] = [
        Self::GainedWrite,
        Self::LostWrite,
        Self::Merged,
        Self::SoftDirtyLost,
        Self::Other,
    ];

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::GainedWrite => "gained_write",
            Self::LostWrite => "lost_write",
            Self::Merged => "merged",
            Self::SoftDirtyLost => "softdirty_lost",
            Self::Other => "other",
        }
    }

    /// This change's bit in a set of changes.
    #[inline(always)]
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// A VMA's range and flags at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmaState {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// `vm_flags`.
    pub flags: u64,
}

/// The set of [`MprotectChange`] bits of one successful call over `[start, end)` that turned `before` into
/// `after`. `fresh_neighbour` says whether a neighbour that the VMA may have merged with still carried
/// `VM_SOFTDIRTY`: `.0` the one below, `.1` the one above.
#[inline(always)]
#[must_use]
pub const fn mprotect_changes(
    before: VmaState,
    after: VmaState,
    range: (u64, u64),
    fresh_neighbour: (bool, bool),
) -> u32 {
    let mut changes = 0;
    if before.flags & VM_WRITE == 0 && after.flags & VM_WRITE != 0 {
        changes |= MprotectChange::GainedWrite.bit();
    }
    if before.flags & VM_WRITE != 0 && after.flags & VM_WRITE == 0 {
        changes |= MprotectChange::LostWrite.bit();
    }
    // With unchanged flags nothing was split, so the VMA may be larger than the range without any merge.
    let (low, high) = if before.flags == after.flags {
        (before.start, before.end)
    } else {
        (range.0, range.1)
    };
    let grew_down = after.start < low;
    let grew_up = after.end > high;
    if grew_down || grew_up {
        changes |= MprotectChange::Merged.bit();
    }
    if is_armed(after.flags) {
        let own = before.flags & VM_SOFTDIRTY != 0;
        let below = grew_down && fresh_neighbour.0;
        let above = grew_up && fresh_neighbour.1;
        if own || below || above {
            changes |= MprotectChange::SoftDirtyLost.bit();
        }
    }
    if changes == 0 {
        changes = MprotectChange::Other.bit();
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::VM_READ;

    const MASKS: FaultMasks = FaultMasks {
        retry: 0x400,
        completed: 0x4000,
        error: 0x873,
        fallback: 0x800_0000,
        unshare: 0x400,
        tried: 0x20,
        vma_lock: 0x1000,
    };
    const ARMED: FaultFacts = FaultFacts {
        flags: 1,
        vm_flags: VM_READ | VM_WRITE,
        was_soft_dirty: false,
    };

    #[test]
    fn a_write_to_a_clean_page_of_an_armed_vma_is_handled() {
        assert_eq!(Outcome::of(ARMED, 0, MASKS), Outcome::Handled);
    }

    #[test]
    fn benign_faults_have_names_of_their_own() {
        assert_eq!(Outcome::of(ARMED, 0x400, MASKS), Outcome::Retry);
        assert_eq!(Outcome::of(ARMED, 0x4000 | 0x400, MASKS), Outcome::Handled);
        assert_eq!(Outcome::of(ARMED, 0x2, MASKS), Outcome::Failed);
        assert_eq!(Outcome::of(ARMED, MASKS.fallback, MASKS), Outcome::Fallback);
        assert_eq!(
            Outcome::of(
                FaultFacts {
                    flags: 0x400,
                    ..ARMED
                },
                0,
                MASKS
            ),
            Outcome::Unshare
        );
        assert_eq!(
            Outcome::of(
                FaultFacts {
                    was_soft_dirty: true,
                    ..ARMED
                },
                0,
                MASKS
            ),
            Outcome::AlreadySoftDirty
        );
        assert_eq!(
            Outcome::of(
                FaultFacts {
                    vm_flags: VM_WRITE | VM_SOFTDIRTY,
                    ..ARMED
                },
                0,
                MASKS
            ),
            Outcome::NotArmed
        );
    }

    #[test]
    fn without_an_unshare_flag_in_the_kernel_the_bit_means_nothing() {
        let masks = FaultMasks { unshare: 0, ..MASKS };
        assert_eq!(
            Outcome::of(
                FaultFacts {
                    flags: 0x401,
                    ..ARMED
                },
                0,
                masks
            ),
            Outcome::Handled
        );
    }

    #[test]
    fn a_retry_is_ambiguous_only_where_the_kernel_cannot_say_completed() {
        let old = FaultMasks {
            completed: 0,
            ..MASKS
        };
        assert!(retry_may_be_handled(0x400, old));
        assert!(!retry_may_be_handled(0x4, old));
        assert!(!retry_may_be_handled(0x400, MASKS));
    }

    #[test]
    fn a_retry_is_recognised_by_its_second_coming() {
        assert!(is_second_coming(0x1, 0x21, MASKS));
        assert!(is_second_coming(0x1001, 0x1, MASKS));
        assert!(!is_second_coming(0x1, 0x1, MASKS));
        assert!(!is_second_coming(0x1001, 0x1001, MASKS));
    }

    fn vma(start: u64, end: u64, flags: u64) -> VmaState {
        VmaState { start, end, flags }
    }

    #[test]
    fn gaining_and_losing_write() {
        let before = vma(0, 4, VM_READ);
        let after = vma(0, 4, VM_READ | VM_WRITE);
        assert_eq!(
            mprotect_changes(before, after, (0, 4), (false, false)),
            MprotectChange::GainedWrite.bit()
        );
        assert_eq!(
            mprotect_changes(after, before, (0, 4), (true, true)),
            MprotectChange::LostWrite.bit()
        );
    }

    #[test]
    fn an_unchanged_vma_larger_than_the_range_is_no_merge() {
        let same = vma(0, 9, VM_READ);
        assert_eq!(
            mprotect_changes(same, same, (2, 4), (true, true)),
            MprotectChange::Other.bit()
        );
    }

    #[test]
    fn a_split_is_no_merge() {
        let before = vma(0, 9, VM_READ);
        let after = vma(2, 4, VM_READ | VM_WRITE);
        assert_eq!(
            mprotect_changes(before, after, (2, 4), (true, true)),
            MprotectChange::GainedWrite.bit()
        );
    }

    #[test]
    fn an_armed_vma_that_swallows_a_fresh_neighbour_loses_the_bit() {
        let before = vma(0, 4, VM_READ);
        let after = vma(0, 8, VM_READ | VM_WRITE);
        let merged = MprotectChange::GainedWrite.bit() | MprotectChange::Merged.bit();
        assert_eq!(mprotect_changes(before, after, (0, 4), (true, false)), merged);
        assert_eq!(
            mprotect_changes(before, after, (0, 4), (false, true)),
            merged | MprotectChange::SoftDirtyLost.bit()
        );
    }

    #[test]
    fn a_merge_that_keeps_the_bit_loses_nothing() {
        let before = vma(4, 8, VM_READ);
        let after = vma(0, 8, VM_READ | VM_WRITE | VM_SOFTDIRTY);
        assert_eq!(
            mprotect_changes(before, after, (4, 8), (true, false)),
            MprotectChange::GainedWrite.bit() | MprotectChange::Merged.bit()
        );
    }

    #[test]
    fn kinds_follow_sharing_and_backing() {
        assert_eq!(VmaKind::of(0, false, false), VmaKind::PrivateAnon);
        assert_eq!(VmaKind::of(VM_SHARED, true, true), VmaKind::SharedAnon);
        assert_eq!(VmaKind::of(VM_SHARED, true, false), VmaKind::SharedFile);
        assert_eq!(VmaKind::of(0, true, true), VmaKind::PrivateFile);
    }
}
