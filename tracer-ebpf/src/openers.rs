//! Who has cleared and lives: when another process clears, the daemon cannot find out any more whether the one before it was
//! gone by then, or went afterwards.

use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;

use crate::identity::current;
use crate::layout::*;
use crate::memory::{Memory, Probed};

/// The start of each process that has cleared and lives, by its address space. Without room for one it counts as alive.
#[map]
static OPENERS: HashMap<u64, u64> = HashMap::with_max_entries(4096, 0);

/// Notes the current process; its address space and its start.
#[inline(always)]
pub fn note() -> (u64, u64) {
    let task = current();
    let mm = Probed::u64(task, TASK_MM.load());
    let leader = Probed::u64(task, TASK_GROUP_LEADER.load());
    let start = Probed::u64(leader, TASK_START_BOOTTIME.load());
    if OPENERS.insert(mm, start, 0).is_ok() {
        (mm, start)
    } else {
        (0, 0)
    }
}

/// Whether the process lives that [`note`] has noted so.
#[inline(always)]
pub fn is_there(mm: u64, start: u64) -> bool {
    if mm == 0 {
        return true;
    }
    let Some(noted) = OPENERS.get_ptr(mm) else {
        return false;
    };
    // SAFETY: the verifier proves that `noted` is a map value.
    unsafe { *noted == start }
}

/// `exit_mmap(mm)`: its last user is gone.
#[inline(always)]
pub fn leaves(mm: u64) {
    let _ = OPENERS.remove(mm);
}
