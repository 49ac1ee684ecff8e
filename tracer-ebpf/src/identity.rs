//! Who a task is, as sdtrace's own pid namespace sees it. Rare paths only: everything goes through a helper.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use tracer_common::records::TaskIdentity;
use tracer_common::settings::{
    CGROUP_DEPTH, MAX_CGROUPS, MAX_COMMS, MAX_PIDS, MODE_LIVE, MODE_SELF_TEST, Settings,
};

use crate::layout::*;
use crate::maps::{OWN, SETTINGS};
use crate::memory::{Memory, Probed};

/// The current task.
#[inline(always)]
pub fn current() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// The number of a `struct pid` in sdtrace's own namespace, 0 where it has none (`pid_nr_ns`).
#[inline(always)]
fn number(pid: u64) -> u32 {
    let Some(own) = OWN.get(0) else { return 0 };
    let level = own.level;
    if pid == 0 || Probed::u32(pid, PID_LEVEL.load()) < level {
        return 0;
    }
    let entry = pid + u64::from(PID_NUMBERS.load()) + u64::from(level) * u64::from(UPID_SIZE.load());
    if Probed::u64(entry, UPID_NS.load()) != own.namespace {
        return 0;
    }
    Probed::u32(entry, UPID_NR.load())
}

/// Level and address of the pid namespace that a task itself lives in (`task_active_pid_ns`).
#[inline(always)]
pub fn namespace_of(task: u64) -> (u32, u64) {
    let pid = Probed::u64(task, TASK_THREAD_PID.load());
    let level = Probed::u32(pid, PID_LEVEL.load());
    let entry = pid + u64::from(PID_NUMBERS.load()) + u64::from(level) * u64::from(UPID_SIZE.load());
    (level, Probed::u64(entry, UPID_NS.load()))
}

/// Fills in who `task` is; a task of 0 leaves everything 0.
#[inline(always)]
pub fn identify(task: u64, identity: &mut TaskIdentity) {
    if task == 0 {
        return;
    }
    let leader = Probed::u64(task, TASK_GROUP_LEADER.load());
    identity.pid = number(Probed::u64(leader, TASK_THREAD_PID.load()));
    identity.tid = number(Probed::u64(task, TASK_THREAD_PID.load()));
    identity.initial_pid = Probed::u32(task, TASK_TGID.load());
    identity.start_ns = Probed::u64(leader, TASK_START_BOOTTIME.load());
    Probed::read(leader, TASK_COMM.load(), &mut identity.comm);
}

/// The task behind a file of `/proc/PID/`, 0 if it is gone (`proc_pid(inode)`, then `pid_task`).
#[inline(always)]
pub fn task_of_proc_file(file: u64) -> u64 {
    let inode = Probed::u64(file, FILE_INODE.load());
    if inode == 0 {
        return 0;
    }
    let proc_inode = inode - u64::from(PROC_INODE_VFS_INODE.load());
    let pid = Probed::u64(proc_inode, PROC_INODE_PID.load());
    if pid == 0 {
        return 0;
    }
    // `pid->tasks[PIDTYPE_PID].first` is a link inside the task, `task->pid_links[PIDTYPE_PID]`.
    let link = Probed::u64(pid, PID_TASKS.load());
    if link == 0 {
        0
    } else {
        link - u64::from(TASK_PID_LINKS.load())
    }
}

/// Whether the filters let the address space of `task` through.
#[inline(always)]
pub fn passes(task: u64) -> bool {
    let Some(settings) = SETTINGS.get(0) else {
        return false;
    };
    let mut identity = TaskIdentity::default();
    if settings.mode == MODE_SELF_TEST {
        identify(task, &mut identity);
        return identity.pid != 0 && identity.pid == settings.self_test_pid;
    }
    if settings.mode != MODE_LIVE {
        return false;
    }
    if settings.pids | settings.comms | settings.cgroups == 0 {
        return true;
    }
    identify(task, &mut identity);
    pid_passes(settings, identity.pid)
        && comm_passes(settings, &identity.comm)
        && cgroup_passes(settings, task)
}

/// Whether a fork of a tracked address space is tracked: it has its parent's name and cgroup, but not its pid.
#[inline(always)]
pub fn fork_passes(task: u64) -> bool {
    let Some(settings) = SETTINGS.get(0) else {
        return false;
    };
    if settings.mode == MODE_LIVE && settings.pids == 0 {
        return true;
    }
    let mut identity = TaskIdentity::default();
    identify(task, &mut identity);
    settings.mode == MODE_LIVE && pid_passes(settings, identity.pid)
}

#[inline(always)]
fn pid_passes(settings: &Settings, pid: u32) -> bool {
    if settings.pids == 0 {
        return true;
    }
    let mut found = false;
    for index in 0..MAX_PIDS {
        found |= (index as u32) < settings.pids && settings.pid_list[index] == pid;
    }
    found && pid != 0
}

#[inline(always)]
fn comm_passes(settings: &Settings, comm: &[u8; 16]) -> bool {
    if settings.comms == 0 {
        return true;
    }
    let (low, high) = halves(comm);
    let mut found = false;
    for index in 0..MAX_COMMS {
        let (wanted_low, wanted_high) = halves(&settings.comm_list[index]);
        found |= (index as u32) < settings.comms && low == wanted_low && high == wanted_high;
    }
    found
}

#[inline(always)]
fn halves(comm: &[u8; 16]) -> (u64, u64) {
    let words = u128::from_ne_bytes(*comm);
    (words as u64, (words >> 64) as u64)
}

/// Compares the task's cgroup of the unified hierarchy, and those above it, with the wanted ones. The id of a
/// cgroup is the inode number of its folder.
#[inline(always)]
fn cgroup_passes(settings: &Settings, task: u64) -> bool {
    if settings.cgroups == 0 {
        return true;
    }
    let set = Probed::u64(task, TASK_CGROUPS.load());
    let mut cgroup = Probed::u64(set, CSS_SET_DFL_CGRP.load());
    for _ in 0..CGROUP_DEPTH {
        if cgroup == 0 {
            return false;
        }
        let id = Probed::u64(Probed::u64(cgroup, CGROUP_KN.load()), KERNFS_NODE_ID.load());
        for index in 0..MAX_CGROUPS {
            if (index as u32) < settings.cgroups && settings.cgroup_ids[index] == id {
                return true;
            }
        }
        let parent = Probed::u64(cgroup + u64::from(CGROUP_SELF.load()), CSS_PARENT.load());
        cgroup = if parent == 0 {
            0
        } else {
            parent - u64::from(CGROUP_SELF.load())
        };
    }
    false
}
