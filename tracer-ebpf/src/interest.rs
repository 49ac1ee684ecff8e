//! Who is about to track something: a tracker reads pagemap before its first clear. See [`tracer_common::interest`].

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tracer_common::interest::{Interest, WISH_NOTHING, WISH_RECORD, WISH_TIME};
use tracer_common::records::{Header, InterestRecord, Kind, TaskIdentity, VERSION};

use crate::identity::{current, identify};
use crate::maps::{INTEREST, OWN, send};

/// Where to note that the current task reads pagemap, if the daemon wants to know and it is not the daemon's own read.
#[inline(always)]
pub fn wanted() -> Option<*mut Interest> {
    let interest = INTEREST.get_ptr_mut(0)?;
    // SAFETY: the verifier proves that `interest` is a map value; the daemon changes this word as a whole.
    if unsafe { (&raw const (*interest).wish).read_volatile() } == WISH_NOTHING {
        return None;
    }
    let own = OWN.get(0)?;
    (own.initial_pid != (bpf_get_current_pid_tgid() >> 32) as u32).then_some(interest)
}

/// Notes it, and tells the daemon if it has not been told since it asked.
#[inline(always)]
pub fn note(interest: *mut Interest) {
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the verifier proves that `interest` is a map value. No exchange before 5.12: two tasks at a time both tell.
    let tell = unsafe {
        (&raw mut (*interest).last_ns).write_volatile(now_ns);
        let wish = &raw mut (*interest).wish;
        let tell = wish.read_volatile() == WISH_RECORD;
        if tell {
            wish.write_volatile(WISH_TIME);
        }
        tell
    };
    if !tell {
        return;
    }
    let mut record = InterestRecord {
        header: Header {
            kind: Kind::Interest as u16,
            version: VERSION,
            size: size_of::<InterestRecord>() as u32,
            time_ns: now_ns,
        },
        reader: TaskIdentity::default(),
    };
    identify(current(), &mut record.reader);
    send(&record);
}
