//! Content verification: what it has shown, for the dashboard of a node, and what it costs, for the one about sdtrace.

use super::model::{Kind, Panel, query};

/// What it has shown.
pub(super) fn shown() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Lines,
            "Verified pages",
            "Pages of 4 KiB whose content was compared while their bit said clean, once for each epoch, and those of them \
             that had changed. Nothing without --verify-pages.",
            "pages/s",
            vec![
                query(
                    "sum(rate(softdirty_verified_pages_total{@}[$__rate_interval]))",
                    "compared",
                ),
                query(
                    "sum(rate(softdirty_verified_missed_pages_total{@}[$__rate_interval]))",
                    "changed",
                ),
            ],
        ),
        Panel::new(
            Kind::Lines,
            "Bound on the miss rate",
            "The share of clean pages whose content has changed in their epoch is at most this, with 95 % confidence, from all \
             verified pages since sdtrace started.",
            "percentunit",
            vec![query(
                "max by (instance) (softdirty_verified_miss_rate_bound{@})",
                "{{instance}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Sampled pages left out",
            "Sampled pages that say nothing, by reason: written (the kernel tracked it), zeroed or dropped (content that was \
             thrown away), cleared (a clear came first), unsure (something was lost that may have told of one).",
            "pages/s",
            vec![query(
                "sum by (reason) (rate(sdtrace_verify_left_out_pages_total{@}[$__rate_interval])) > 0",
                "{{reason}}",
            )],
        ),
    ]
}

/// What it costs.
pub(super) fn cost() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Stacked,
            "Samples",
            "Samples of epochs: drawn, empty (no clean page, or the budget was used up), gone (the process had ended), no_room \
             (too many at the same time).",
            "turns/s",
            vec![query(
                "sum by (result) (rate(sdtrace_verify_samples_total{@}[$__rate_interval]))",
                "{{result}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Sampled pages",
            "Pages drawn in a second.",
            "pages/s",
            vec![query(
                "sum by (instance) (rate(sdtrace_verify_sampled_pages_total{@}[$__rate_interval]))",
                "{{instance}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Pages in samples",
            "Pages whose digests are kept; 24 bytes each.",
            "none",
            vec![query(
                "sum by (instance) (sdtrace_verify_kept_pages{@})",
                "{{instance}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Memory read",
            "Bytes of the memory of tracked processes that are read in a second; --verify-budget bounds it.",
            "Bps",
            vec![query(
                "sum by (instance) (rate(sdtrace_verify_bytes_total{@}[$__rate_interval]))",
                "{{instance}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Time for verify",
            "Share of one processor that verify takes.",
            "percentunit",
            vec![query(
                "sum by (instance) (rate(sdtrace_verify_seconds_total{@}[$__rate_interval]))",
                "{{instance}}",
            )],
        ),
    ]
}
