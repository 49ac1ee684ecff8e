//! The record of a range that something worked on.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tracer_common::audit::{RangeCause, RangeRecord};
use tracer_common::counters::Stage;
use tracer_common::records::{Header, Kind, VERSION};

use crate::maps::{RECORDS, stage};

/// What worked on which range. `from` is where its pages were before.
#[derive(Clone, Copy)]
pub struct Range {
    pub birth: u64,
    pub epoch: u32,
    pub start: u64,
    pub length: u64,
    pub from: u64,
    pub from_length: u64,
    /// A [`RangeCause`] as a number: what a map holds is one.
    pub cause: u32,
    pub detail: u32,
    pub initial_tid: u32,
}

impl Range {
    /// A range that nothing was moved to.
    #[inline(always)]
    pub const fn of(cause: RangeCause, birth: u64, epoch: u32, start: u64, length: u64) -> Self {
        Self {
            birth,
            epoch,
            start,
            length,
            from: 0,
            from_length: 0,
            cause: cause as u32,
            detail: 0,
            initial_tid: 0,
        }
    }
}

/// Tells of a range. In reserved memory, because not every caller has room for the record on its stack.
#[inline(always)]
pub fn tell(range: Range) {
    let Some(mut reserved) = RECORDS.reserve::<RangeRecord>(0) else {
        stage(Stage::RingFull);
        return;
    };
    reserved.write(RangeRecord {
        header: Header {
            kind: Kind::Range as u16,
            version: VERSION,
            size: size_of::<RangeRecord>() as u32,
            // SAFETY: the helper has no preconditions.
            time_ns: unsafe { bpf_ktime_get_ns() },
        },
        birth: range.birth,
        start: range.start,
        length: range.length,
        from: range.from,
        from_length: range.from_length,
        epoch: range.epoch,
        cause: range.cause,
        detail: range.detail,
        initial_tid: range.initial_tid,
    });
    reserved.submit(0);
}
