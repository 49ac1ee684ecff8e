//! How address spaces come and go: fork, exec, exit, and the adoption of those that were armed before.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_user};
use aya_log_ebpf::debug;
use tracer_common::records::{ExecRecord, ExitRecord, Header, Kind, TaskIdentity, TrackRecord, VERSION};
use tracer_common::tracked::{Boundary, ORIGIN_ADOPTED, ORIGIN_FORK, Tracked, birth_id};

use crate::identity::{current, fork_passes, identify, namespace_of, passes, task_of_proc_file};
use crate::layout::*;
use crate::maps::{MOVED, OWN, SETTINGS, send};
use crate::memory::{Memory, Probed};
use crate::{direct, interest, openers, paging, tracking};

#[inline(always)]
fn header<T>(kind: Kind) -> Header {
    Header {
        kind: kind as u16,
        version: VERSION,
        size: size_of::<T>() as u32,
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
    }
}

#[inline(always)]
fn new_birth() -> u64 {
    // SAFETY: the helpers have no preconditions.
    unsafe { birth_id(bpf_ktime_get_ns(), bpf_get_smp_processor_id()) }
}

/// Tracepoint `sched_process_fork(parent, child)`: the child has its address space and has not run yet.
#[inline(always)]
pub fn forked(parent: u64, child: u64) {
    if !tracking::anything() {
        return;
    }
    let parent_mm = Probed::u64(parent, TASK_MM.load());
    let mm = Probed::u64(child, TASK_MM.load());
    if mm == 0 || mm == parent_mm {
        return;
    }
    let Some(found) = tracking::get(parent_mm) else {
        return;
    };
    // SAFETY: the verifier proves that `found` is a map value.
    let parent = unsafe { *found };
    if !fork_passes(child) {
        return;
    }
    let tracked = Tracked {
        birth: new_birth(),
        boundary: Boundary::complete(1),
        epoch: 1,
        origin: ORIGIN_FORK,
        ..Tracked::default()
    };
    if !tracking::start::<Probed>(mm, &tracked) {
        return;
    }
    let mut record = TrackRecord {
        header: header::<TrackRecord>(Kind::Track),
        birth: tracked.birth,
        parent: parent.birth,
        parent_epoch: parent.epoch,
        origin: ORIGIN_FORK,
        target: TaskIdentity::default(),
    };
    debug!(
        (),
        "address space {} is a fork of {}", record.birth, record.parent
    );
    identify(child, &mut record.target);
    send(&record);
}

/// `begin_new_exec`: the current process is about to leave its address space.
#[inline(always)]
pub fn execs() {
    if !tracking::anything() {
        return;
    }
    let task = current();
    let Some(found) = tracking::get(Probed::u64(task, TASK_MM.load())) else {
        return;
    };
    let mut record = ExecRecord {
        header: header::<ExecRecord>(Kind::Exec),
        // SAFETY: the verifier proves that `found` is a map value.
        birth: unsafe { (*found).birth },
        task: TaskIdentity::default(),
    };
    identify(task, &mut record.task);
    send(&record);
}

/// `exit_mmap(mm)`: the last user is gone. From here on the pointer may be reused.
#[inline(always)]
pub fn exits<M: Memory>(mm: u64) {
    direct::address_space_ends(mm);
    if !tracking::anything() {
        return;
    }
    openers::leaves(mm);
    let Some(found) = tracking::get(mm) else { return };
    // SAFETY: the verifier proves that `found` is a map value.
    let tracked = unsafe { *found };
    tracking::stop::<M>(mm);
    if tracking::anything_moved() {
        let _ = MOVED.remove(tracked.birth);
    }
    debug!(
        (),
        "address space {} ends in epoch {}", tracked.birth, tracked.epoch
    );
    send(&ExitRecord {
        header: header::<ExitRecord>(Kind::Exit),
        birth: tracked.birth,
        epoch: tracked.epoch,
        padding: 0,
    });
}

/// `pagemap_read(file, buf, …)`. By the daemon itself: an address space to adopt, or the daemon's own, which tells the
/// programs who the daemon is. By another process: somebody is about to track perhaps.
#[inline(always)]
pub fn reads_pagemap(file: u64, buffer: u64) {
    let Some(settings) = SETTINGS.get(0) else { return };
    let ours = settings.handshake != 0 && begins_with(buffer, settings.handshake);
    let mm = Probed::u64(file, FILE_PRIVATE_DATA.load());
    if ours && introduces(mm) {
        return;
    }
    let interest = if ours { None } else { interest::wanted() };
    let wanted = if ours {
        mm != 0 && tracking::get(mm).is_none()
    } else {
        interest.is_some()
    };
    if !wanted {
        return;
    }
    let target = task_of_proc_file(file);
    if !passes(target) {
        return;
    }
    match interest {
        Some(interest) => interest::note(interest),
        None => adopt(mm, target),
    }
}

/// Whether the user's buffer begins with this word.
#[inline(always)]
fn begins_with(buffer: u64, expected: u64) -> bool {
    let mut word = 0u64;
    // SAFETY: the helper checks the address and writes eight bytes.
    let error = unsafe {
        bpf_probe_read_user(
            core::ptr::from_mut(&mut word).cast(),
            8,
            buffer as *const core::ffi::c_void,
        )
    };
    error == 0 && word == expected
}

/// Learns who the daemon is at its first read, which is of its own pagemap. Returns whether this was it.
#[inline(always)]
fn introduces(mm: u64) -> bool {
    let Some(own) = OWN.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: the verifier proves that `own` is a map value; only the daemon's own reads come here.
    let own = unsafe { &mut *own };
    if own.namespace != 0 {
        return false;
    }
    tracking::note_filter_address();
    paging::note();
    let task = current();
    let (level, namespace) = namespace_of(task);
    own.level = level;
    own.initial_pid = Probed::u32(task, TASK_TGID.load());
    own.mm_of_file = mm;
    own.mm_of_task = Probed::u64(task, TASK_MM.load());
    own.namespace = namespace;
    true
}

/// Tracks an address space that was armed before.
#[inline(always)]
fn adopt(mm: u64, target: u64) {
    let tracked = Tracked {
        birth: new_birth(),
        boundary: Boundary::complete(1),
        epoch: 1,
        origin: ORIGIN_ADOPTED,
        ..Tracked::default()
    };
    if !tracking::start::<Probed>(mm, &tracked) {
        return;
    }
    let mut record = TrackRecord {
        header: header::<TrackRecord>(Kind::Track),
        birth: tracked.birth,
        parent: 0,
        parent_epoch: 0,
        origin: ORIGIN_ADOPTED,
        target: TaskIdentity::default(),
    };
    identify(target, &mut record.target);
    send(&record);
}
