//! What the detectors found.

use prometheus::proto::MetricFamily;

use super::family::Family;
use super::reading::Reading;

pub(super) fn families(reading: &Reading) -> Vec<MetricFamily> {
    let found = &reading.detection;
    let mut missed = Family::counter(
        "softdirty_missed_writes_total",
        "Pages whose write was missed, once for each epoch: observed if a write was seen and its bit was seen gone, \
         proved if the content changed (only with --verify-pages). One that was observed first and proved later counts \
         as observed. Those of unknown_cause are counted when their epoch is over, because a cause may be found until \
         then.",
    );
    for &(cause, evidence, pages) in &found.missed {
        missed.add(&[("cause", cause.label()), ("evidence", evidence.label())], pages);
    }
    vec![
        missed.done(),
        Family::gauge(
            "softdirty_exposed_pages",
            "Pages of open epochs whose page-table entry is writable without the soft-dirty bit: the next write will \
             be missed.",
        )
        .by("cause", found.exposed.iter().map(|&(cause, pages)| (cause.label(), pages))),
        Family::counter(
            "softdirty_exposed_pages_total",
            "Pages that were found exposed, once for each epoch. A page that is found missed later counts there too.",
        )
        .by("cause", found.exposed_total.iter().map(|&(cause, pages)| (cause.label(), pages))),
        Family::counter(
            "softdirty_hazards_total",
            "Epochs in which something happened that can hide writes or changes of content from the tracker, once \
             for each cause.",
        )
        .by("cause", found.hazards.iter().map(|&(cause, epochs)| (cause.label(), epochs))),
        Family::gauge(
            "softdirty_blind_bytes",
            "Bytes of live tracked address spaces that soft-dirty cannot track, as of their newest clears.",
        )
        .by("reason", found.blind_bytes.iter().map(|&(reason, bytes)| (reason.label(), bytes))),
        Family::counter(
            "softdirty_dropped_pages_total",
            "Pages of 4 KiB that targets threw away, once for each epoch, populated or not; no missed writes.",
        )
        .by("reason", found.dropped.iter().map(|&(reason, pages)| (reason.label(), pages))),
        Family::counter(
            "softdirty_epochs_total",
            "Finished epochs by verdict: trusted (every check complete, nothing found), suspect (exposed, blind, a \
             hazard, or a check that could not be completed), broken (a missed write).",
        )
        .by("verdict", found.verdicts.iter().map(|&(verdict, epochs)| (verdict.label(), epochs))),
        Family::gauge("softdirty_open_epochs", "Open epochs by the verdict that they have so far.")
            .by("verdict", found.open.iter().map(|&(verdict, epochs)| (verdict.label(), epochs))),
        Family::counter(
            "softdirty_unknown_epochs_total",
            "Finished epochs with a check that could not be completed, once for each reason.",
        )
        .by("reason", found.unknown.iter().map(|&(reason, epochs)| (reason.label(), epochs))),
        Family::counter(
            "sdtrace_findings_not_kept_total",
            "Given up by the detectors: late (a record that came after its epoch was finished), page_states (reports \
             of pages beyond the bound, only their ranges are kept), epoch_ranges (finished epochs that keep their \
             counts only).",
        )
        .by(
            "what",
            [("late", found.late), ("page_states", found.unlisted), ("epoch_ranges", found.folded)],
        ),
        Family::counter(
            "sdtrace_own_audits_total",
            "Address spaces whose turn it was in sdtrace's own audit: complete (read to the end), unfinished (left for \
             the next turn by the budget) or gone.",
        )
        .by(
            "result",
            [
                ("complete", reading.audits.complete),
                ("unfinished", reading.audits.unfinished),
                ("gone", reading.audits.gone),
            ],
        ),
        Family::counter("sdtrace_own_audit_bytes_total", "Bytes of address space that sdtrace's own audit has read.")
            .single(reading.audits.bytes),
        Family::counter(
            "sdtrace_own_audit_seconds_total",
            "Time that sdtrace's own audit has spent on reading.",
        )
        .seconds(reading.audits.nanoseconds),
        Family::counter(
            "sdtrace_incidents_logged_total",
            "Lines for the incident log: written, dropped (too many were waiting) or failed (the file could not be \
             written).",
        )
        .by(
            "result",
            [
                ("written", reading.incidents.written),
                ("dropped", reading.incidents.dropped),
                ("failed", reading.incidents.failed),
            ],
        ),
    ]
}
