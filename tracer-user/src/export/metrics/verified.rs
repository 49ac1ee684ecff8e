//! What verify has shown, and what it costs; all 0 without --verify-pages.

use prometheus::proto::MetricFamily;

use super::family::Family;
use super::reading::Reading;

pub(super) fn families(reading: &Reading) -> Vec<MetricFamily> {
    let found = &reading.detection;
    let work = &reading.verify;
    vec![
        Family::counter(
            "softdirty_verified_pages_total",
            "Sampled pages whose content was compared while their bit said clean, once for each epoch.",
        )
        .single(found.verified.pages),
        Family::counter(
            "softdirty_verified_missed_pages_total",
            "Of the verified pages, those whose content had changed.",
        )
        .single(found.verified.missed),
        Family::gauge(
            "softdirty_verified_miss_rate_bound",
            "Upper bound, with 95 % confidence, of the share of clean pages whose content has changed in their epoch, \
             from all verified pages since the start: 3 / n of n pages without a miss. 1 if there are none.",
        )
        .fraction(found.verified.miss_rate_bound),
        Family::counter(
            "sdtrace_verify_samples_total",
            "Samples of an epoch: drawn, empty (no clean page that could be read, or the budget was used up), gone (the \
             process had ended) or no_room (tries while there were too many samples).",
        )
        .by(
            "result",
            [
                ("drawn", work.drawn),
                ("empty", work.empty),
                ("gone", work.gone),
                ("no_room", work.no_room),
            ],
        ),
        Family::counter("sdtrace_verify_sampled_pages_total", "Pages that were drawn.").single(work.sampled_pages),
        Family::gauge(
            "sdtrace_verify_kept_pages",
            "Pages in the samples of now; 24 bytes of memory each.",
        )
        .single(work.kept_pages),
        Family::counter(
            "sdtrace_verify_left_out_pages_total",
            "Sampled pages that say nothing: written (the kernel tracked a write), other_page (the file's page took \
             their place), zeroed (content that was thrown away reads so, too), unreadable, cleared (a clear came \
             before the reading was over), dropped (the target threw the content away), unsure (something was lost \
             that may have told of a clear).",
        )
        .by(
            "reason",
            found.left_out.iter().map(|&(reason, pages)| (reason.label(), pages)),
        ),
        Family::counter("sdtrace_verify_bytes_total", "Bytes of memory of tracked processes that were read.")
            .single(work.bytes),
        Family::counter("sdtrace_verify_seconds_total", "Time that verify has spent on reading and comparing.")
            .seconds(work.nanoseconds),
    ]
}
