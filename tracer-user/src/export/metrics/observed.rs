//! What is observed: the families whose names begin with `softdirty_`.

use prometheus::proto::MetricFamily;
use tracer_common::classify::{MprotectChange, Outcome, ProtectionState};
use tracer_common::counters::Counter;
use tracer_common::histogram::FAULT_TIME;

use super::family::{Family, histogram};
use super::reading::Reading;
use crate::ledger::{EndReason, Origin, fault_counter, fault_kind_labels};

pub(super) fn families(reading: &Reading) -> Vec<MetricFamily> {
    let ledger = &reading.ledger;
    let count = |counter| reading.counters.get(counter);
    let mut families = vec![
        Family::gauge(
            "softdirty_tracked_address_spaces",
            "Live address spaces that are tracked, by origin: clear was met at its first clear, adopted was \
             armed before sdtrace started, fork was forked from a tracked one, unknown if the record that \
             would tell was lost.",
        )
        .by("origin", Origin::ALL.iter().map(|origin| origin.label()).zip(ledger.live)),
        Family::gauge(
            "softdirty_epochs",
            "Epochs in the ledger: open until the next clear, exec or exit; closing while what they counted is \
             still taken in; settled when that is final. Older ones are not kept, see sdtrace_ledger_folded_total.",
        )
        .by(
            "state",
            [("open", ledger.open), ("closing", ledger.closing), ("settled", ledger.settled)],
        ),
        Family::counter(
            "softdirty_epochs_ended_total",
            "Epochs that ended, by reason: a clear by the same tracker, by another one, the first clear of an \
             adopted or forked address space, exec, exit; unknown if the record was lost.",
        )
        .by("reason", EndReason::ALL.iter().map(|reason| reason.label()).zip(ledger.ended)),
        faults(reading),
        Family::counter(
            "softdirty_faults_total",
            "Write faults on write-protected pages of tracked address spaces, by outcome; only handled ones are \
             write-notify faults.",
        )
        .by(
            "outcome",
            Outcome::ALL.iter().map(|&outcome| (outcome.label(), count(Counter::Outcome(outcome)))),
        ),
        Family::counter(
            "softdirty_mprotects_total",
            "Successful mprotect_fixup calls on armed VMAs by what they changed; one call may count under \
             several changes. softdirty_lost: a range with VM_SOFTDIRTY became part of a VMA without it, so \
             its writes since the clear are lost.",
        )
        .by(
            "change",
            MprotectChange::ALL.iter().map(|&change| (change.label(), count(Counter::Mprotect(change)))),
        ),
    ];
    if reading.fault_times_measured {
        families.push(fault_times(reading));
    }
    families
}

fn faults(reading: &Reading) -> MetricFamily {
    let mut family = Family::counter(
        "softdirty_write_notify_faults_total",
        "Handled write-notify faults, by kind of VMA (huge: on a PMD, one for 512 pages) and by the state of \
         its vm_page_prot: armed keeps writes out, armed_writable_page_prot lets page-table entries be born \
         writable, so that later writes are missed.",
    );
    for (at, kind) in fault_kind_labels().into_iter().enumerate() {
        for state in ProtectionState::ALL {
            let count = reading.counters.get(fault_counter(at, state));
            family.add(&[("kind", kind), ("state", state.label())], count);
        }
    }
    family.done()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "bounds are powers of two, which floats hold exactly; the sum is rounded by less than 1e-15 of itself"
)]
fn fault_times(reading: &Reading) -> MetricFamily {
    let seconds = |ns: u64| ns as f64 / 1e9;
    let buckets = (0..FAULT_TIME.count).map(|bucket| {
        let bound = FAULT_TIME.upper_bound(bucket).map(seconds);
        (bound, reading.counters.get(Counter::FaultTime(bucket)))
    });
    histogram(
        "softdirty_fault_handling_seconds",
        "From the entry to the return of the handler of a handled write-notify fault. Only there where return \
         probes are attached to it, see sdtrace_fault_times_measured.",
        buckets,
        seconds(reading.counters.get(Counter::FaultTimeSum)),
    )
}
