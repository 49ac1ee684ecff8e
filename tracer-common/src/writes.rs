//! The write fault that a thread is in, where the return of the fault does not know its arguments (kretprobe).

use bytemuck::{Pod, Zeroable};

/// Places for write faults under way, a power of two; direct mapped by thread id.
pub const WRITE_SLOTS: u32 = 4096;

/// A write fault between its entry and its return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WriteUnderWay {
    /// `bpf_get_current_pid_tgid()` of the thread; 0 where none is under way. The kernel may skip the return; then it stays until
    /// the next write fault of a thread with this place.
    pub thread: u64,
    /// The VMA.
    pub vma: u64,
    /// The address that was written.
    pub address: u64,
    /// The address space.
    pub mm: u64,
    /// Its stable id.
    pub birth: u64,
    /// The epoch of the address at the entry.
    pub epoch: u32,
    /// Keeps the size a multiple of eight.
    pub padding: u32,
}
