//! What the daemon tells the programs at run time, in the one entry of the settings map.

use bytemuck::{Pod, Zeroable};

/// Names that `--comm` can filter by.
pub const MAX_COMMS: usize = 8;
/// Cgroups that `--cgroup` can filter by.
pub const MAX_CGROUPS: usize = 8;
/// Processes that `--pid` can filter by.
pub const MAX_PIDS: usize = 32;

/// [`Settings::mode`]: nothing new is tracked.
pub const MODE_IDLE: u32 = 0;
/// [`Settings::mode`]: only the process [`Settings::self_test_pid`] is tracked.
pub const MODE_SELF_TEST: u32 = 1;
/// [`Settings::mode`]: everything that the filters let through is tracked.
pub const MODE_LIVE: u32 = 2;

/// The entry of the settings map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Settings {
    /// One of the `MODE_` constants.
    pub mode: u32,
    /// 1: every fault of a tracked address space goes through the ring buffer.
    pub trace_faults: u32,
    /// Process id of the daemon in the initial pid namespace; 0 until the programs have met the daemon.
    pub own_initial_pid: u32,
    /// Process id of the self-test's child in the daemon's pid namespace.
    pub self_test_pid: u32,
    /// Level of the daemon's pid namespace, 0 for the initial one.
    pub namespace_level: u32,
    /// Filters in use; with all three 0 everything is tracked.
    pub pids: u32,
    /// See [`Settings::pids`].
    pub comms: u32,
    /// See [`Settings::pids`].
    pub cgroups: u32,
    /// Address of the daemon's `pid_namespace` in the kernel.
    pub namespace: u64,
    /// Ids of the cgroups that pass; descendants pass too.
    pub cgroup_ids: [u64; MAX_CGROUPS],
    /// Process ids that pass, in the daemon's pid namespace.
    pub pid_list: [u32; MAX_PIDS],
    /// Names that pass, zero padded.
    pub comm_list: [[u8; 16]; MAX_COMMS],
}
