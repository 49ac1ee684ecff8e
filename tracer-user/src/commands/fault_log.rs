//! `--trace-faults`: one line of the log for each fault.

use tracer_common::classify::Outcome;
use tracer_common::records::FaultRecord;

/// One line for each fault, with `--trace-faults`.
pub(super) fn log_fault(fault: &FaultRecord) {
    let outcome = usize::try_from(fault.outcome)
        .ok()
        .and_then(|at| Outcome::ALL.get(at));
    tracing::info!(
        target: "sdtrace::fault",
        time_ns = fault.header.time_ns,
        birth = fault.birth,
        initial_tid = fault.initial_tid,
        epoch = fault.epoch,
        address = format!("{:#x}", fault.address),
        vma_start = format!("{:#x}", fault.vma_start),
        vm_flags = format!("{:#x}", fault.vm_flags),
        page_prot = format!("{:#x}", fault.page_prot),
        entry = format!("{:#x}", fault.entry),
        huge = fault.huge != 0,
        outcome = outcome.map_or("unknown", |outcome| outcome.label()),
        "fault"
    );
}
