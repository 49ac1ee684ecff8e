//! What the daemon tells the programs at run time, and what they tell it about itself.

use bytemuck::{Pod, Zeroable};

/// Names that `--comm` can filter by.
pub const MAX_COMMS: usize = 8;
/// Cgroups that `--cgroup` can filter by.
pub const MAX_CGROUPS: usize = 8;
/// Processes that `--pid` can filter by.
pub const MAX_PIDS: usize = 32;
/// Levels of cgroups above a task's own that are compared with `--cgroup`.
pub const CGROUP_DEPTH: usize = 16;

/// [`Settings::mode`]: nothing new is tracked.
pub const MODE_IDLE: u32 = 0;
/// [`Settings::mode`]: only the process [`Settings::self_test_pid`] is tracked.
pub const MODE_SELF_TEST: u32 = 1;
/// [`Settings::mode`]: everything that the filters let through is tracked.
pub const MODE_LIVE: u32 = 2;

/// The one entry of the settings map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Settings {
    /// One of the `MODE_` constants.
    pub mode: u32,
    /// Process id of the self-test's child in the daemon's pid namespace.
    pub self_test_pid: u32,
    /// A random number that only the daemon knows. A read of a pagemap file into a buffer that begins with it
    /// is the daemon's own and makes the programs adopt that address space. 0: adopt nothing.
    pub handshake: u64,
    /// Filters in use; with all three 0 everything is tracked.
    pub pids: u32,
    /// See [`Settings::pids`].
    pub comms: u32,
    /// See [`Settings::pids`].
    pub cgroups: u32,
    /// Keeps the next field aligned.
    pub padding: u32,
    /// Ids of the cgroups that pass; descendants pass too.
    pub cgroup_ids: [u64; MAX_CGROUPS],
    /// Process ids that pass, in the daemon's pid namespace.
    pub pid_list: [u32; MAX_PIDS],
    /// Names that pass, zero padded.
    pub comm_list: [[u8; 16]; MAX_COMMS],
}

/// What the programs learned about the daemon at its first handshake: user space cannot see its own pid in the
/// initial namespace, nor how deep its own namespace lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Own {
    /// Address of the daemon's `pid_namespace`; 0 before the handshake.
    pub namespace: u64,
    /// Its level, 0 for the initial namespace.
    pub level: u32,
    /// Process id of the daemon in the initial pid namespace.
    pub initial_pid: u32,
    /// The daemon's `mm_struct`, as the pagemap file names it.
    pub mm_of_file: u64,
    /// The daemon's `mm_struct`, as its task names it; the two must be equal.
    pub mm_of_task: u64,
}
