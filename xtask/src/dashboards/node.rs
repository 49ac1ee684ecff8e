//! One node: its epochs and what was found in them, clears and faults and what they cost.

use super::model::{Dashboard, Kind, Panel, Section, query};
use super::verify;

/// The dashboard.
#[must_use]
pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "sdtrace-node",
        title: "sdtrace / Node",
        description: "One node: its epochs and what was found in them, its clears and faults and what they cost.",
        one_node: true,
        sections: vec![
            Section {
                title: "Now",
                panels: now(),
            },
            Section {
                title: "Epochs",
                panels: epochs(),
            },
            Section {
                title: "What was found",
                panels: found(),
            },
            Section {
                title: "Verify",
                panels: verify::shown(),
            },
            Section {
                title: "Clears",
                panels: clears(),
            },
            Section {
                title: "Faults",
                panels: faults(),
            },
        ],
    }
}

fn now() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Text,
            "Kernel",
            "Release of the traced kernel.",
            "none",
            vec![query("max by (release) (sdtrace_kernel_info{@})", "{{release}}")],
        ),
        Panel::new(
            Kind::Number,
            "sdtrace",
            "Whether sdtrace is ready: its probes are attached and tested. /readyz says why not.",
            "none",
            vec![query("min(sdtrace_ready{@})", "ready")],
        )
        .words(&[("1", "ready", "green"), ("0", "not ready", "red")]),
        Panel::new(
            Kind::Number,
            "Open epochs",
            "Open epochs by the verdict that they have so far.",
            "none",
            vec![query("sum by (verdict) (softdirty_open_epochs{@})", "{{verdict}}")],
        )
        .size(6, 4),
        Panel::new(
            Kind::Number,
            "Tracked",
            "Live address spaces that are tracked.",
            "none",
            vec![query("sum(softdirty_tracked_address_spaces{@})", "address spaces")],
        ),
        Panel::new(
            Kind::Number,
            "Exposed, blind",
            "Memory of open epochs whose next write will be missed, and memory that soft-dirty cannot track at all.",
            "bytes",
            vec![
                query("4096 * sum(softdirty_exposed_pages{@})", "exposed"),
                query("sum(softdirty_blind_bytes{@})", "blind"),
            ],
        )
        .size(6, 4),
    ]
}

fn epochs() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Stacked,
            "Finished epochs by verdict",
            "trusted: every check complete, nothing found. suspect: something can have been missed, or a check could not be \
             completed. broken: a write was missed.",
            "epochs/s",
            vec![query(
                "sum by (verdict) (rate(softdirty_epochs_total{@}[$__rate_interval]))",
                "{{verdict}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Checks that could not be completed",
            "Finished epochs that cannot be trusted because a check was not complete, once for each reason; docs/detectors.md \
             explains them.",
            "epochs/s",
            vec![query(
                "sum by (reason) (rate(softdirty_unknown_epochs_total{@}[$__rate_interval])) > 0",
                "{{reason}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Ends of epochs",
            "Why epochs ended. clear_other_tracker: another process cleared, the next run of CRIU or a second tracker.",
            "epochs/s",
            vec![query(
                "sum by (reason) (rate(softdirty_epochs_ended_total{@}[$__rate_interval]))",
                "{{reason}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Tracked address spaces",
            "Live address spaces by origin: met at their first clear, armed before sdtrace started, or forked from a tracked one.",
            "none",
            vec![query(
                "sum by (origin) (softdirty_tracked_address_spaces{@})",
                "{{origin}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Epochs in the ledger",
            "How many epochs sdtrace has in memory: open, closing while what they counted is taken in, settled.",
            "none",
            vec![query("sum by (state) (softdirty_epochs{@})", "{{state}}")],
        ),
        Panel::new(
            Kind::Stacked,
            "Open epochs by verdict",
            "The verdict that open epochs have so far.",
            "none",
            vec![query(
                "sum by (verdict) (softdirty_open_epochs{@})",
                "{{verdict}}",
            )],
        ),
    ]
}

fn found() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Stacked,
            "Missed pages",
            "Pages of 4 KiB whose write was missed, once for each epoch, by cause and evidence: observed (a write was seen \
             and its bit was seen gone) or proved (the content changed).",
            "pages/s",
            vec![query(
                "sum by (cause, evidence) (rate(softdirty_missed_writes_total{@}[$__rate_interval])) > 0",
                "{{cause}} {{evidence}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Exposed pages",
            "Pages of 4 KiB of open epochs whose page-table entry lets the next write through unseen.",
            "none",
            vec![query("sum by (cause) (softdirty_exposed_pages{@})", "{{cause}}")],
        ),
        Panel::new(
            Kind::Stacked,
            "Pages found exposed",
            "Pages of 4 KiB that were found exposed, once for each epoch, by cause. One that is found missed later counts here, \
             too.",
            "pages/s",
            vec![query(
                "sum by (cause) (rate(softdirty_exposed_pages_total{@}[$__rate_interval])) > 0",
                "{{cause}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Hazards",
            "Epochs in which something happened that can hide a write from the tracker, once for each cause.",
            "epochs/s",
            vec![query(
                "sum by (cause) (rate(softdirty_hazards_total{@}[$__rate_interval])) > 0",
                "{{cause}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Blind memory",
            "Memory of tracked processes that soft-dirty cannot track, as of their newest clears, by reason.",
            "bytes",
            vec![query("sum by (reason) (softdirty_blind_bytes{@})", "{{reason}}")],
        ),
        Panel::new(
            Kind::Stacked,
            "Dropped pages",
            "Pages of 4 KiB that targets threw away themselves, populated or not. No missed writes: the tracker sees them as not \
             present.",
            "pages/s",
            vec![query(
                "sum by (reason) (rate(softdirty_dropped_pages_total{@}[$__rate_interval])) > 0",
                "{{reason}}",
            )],
        ),
    ]
}

fn clears() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Stacked,
            "Clears by result",
            "tracked opened an epoch; filtered and untracked worked but are left out; reached_nothing met no address space; \
             failed returned an error.",
            "clears/s",
            vec![query(
                "sum by (result) (rate(softdirty_clears_total{@}[$__rate_interval]))",
                "{{result}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Clear stall",
            "How long a clear keeps the target's page faults and mmap calls out: from its first VMA to its return it holds \
             mmap_lock.",
            "s",
            vec![
                query(
                    "histogram_quantile(0.5, sum by (le) (rate(softdirty_clear_hold_seconds_bucket{@}[$__rate_interval])))",
                    "median",
                ),
                query(
                    "histogram_quantile(0.99, sum by (le) (rate(softdirty_clear_hold_seconds_bucket{@}[$__rate_interval])))",
                    "99 %",
                ),
                query(
                    "sum(rate(softdirty_clear_hold_seconds_sum{@}[$__rate_interval])) / sum(rate(softdirty_clear_hold_seconds_count{@}[$__rate_interval]))",
                    "mean",
                ),
            ],
        ),
        Panel::new(
            Kind::Heatmap,
            "Clear stall, all of it",
            "The distribution over time of how long clears keep the target out.",
            "s",
            vec![query(
                "sum by (le) (increase(softdirty_clear_hold_seconds_bucket{@}[$__rate_interval]))",
                "{{le}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Wait for the target",
            "How long clears wait before their first VMA: mostly for mmap_lock, which the target holds.",
            "s",
            vec![
                query(
                    "histogram_quantile(0.5, sum by (le) (rate(softdirty_clear_wait_seconds_bucket{@}[$__rate_interval])))",
                    "median",
                ),
                query(
                    "histogram_quantile(0.99, sum by (le) (rate(softdirty_clear_wait_seconds_bucket{@}[$__rate_interval])))",
                    "99 %",
                ),
            ],
        ),
    ]
}

fn faults() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Stacked,
            "Write-notify faults by kind of VMA",
            "Handled write faults on write-protected pages of armed VMAs. One in huge stands for 512 pages.",
            "faults/s",
            vec![query(
                "sum by (kind) (rate(softdirty_write_notify_faults_total{@}[$__rate_interval]))",
                "{{kind}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Faults by flags of the VMA",
            "By what vm_page_prot of the armed VMA says. armed_writable_page_prot lets page-table entries be born writable, so \
             that later writes are missed: there should be none.",
            "faults/s",
            vec![query(
                "sum by (state) (rate(softdirty_write_notify_faults_total{@}[$__rate_interval]))",
                "{{state}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Write faults by outcome",
            "All write faults on write-protected pages of tracked address spaces; only handled ones are write-notify faults. \
             docs/detectors.md explains the outcomes.",
            "faults/s",
            vec![query(
                "sum by (outcome) (rate(softdirty_faults_total{@}[$__rate_interval]))",
                "{{outcome}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Cost of a fault",
            "From the entry to the return of the handler of a write-notify fault, probes included. Only where return probes \
             are attached.",
            "s",
            vec![
                query(
                    "histogram_quantile(0.5, sum by (le) (rate(softdirty_fault_handling_seconds_bucket{@}[$__rate_interval])))",
                    "median",
                ),
                query(
                    "histogram_quantile(0.99, sum by (le) (rate(softdirty_fault_handling_seconds_bucket{@}[$__rate_interval])))",
                    "99 %",
                ),
                query(
                    "sum(rate(softdirty_fault_handling_seconds_sum{@}[$__rate_interval])) / sum(rate(softdirty_fault_handling_seconds_count{@}[$__rate_interval]))",
                    "mean",
                ),
            ],
        ),
        Panel::new(
            Kind::Lines,
            "Time spent in faults",
            "Seconds of processor time in a second that targets spend in write-notify faults: what tracking takes from them.",
            "percentunit",
            vec![query(
                "sum(rate(softdirty_fault_handling_seconds_sum{@}[$__rate_interval]))",
                "of one processor",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Mprotect calls on armed VMAs",
            "By what they changed; one call may count more than once. softdirty_lost: writes since the clear are lost with the \
             flag.",
            "calls/s",
            vec![query(
                "sum by (change) (rate(softdirty_mprotects_total{@}[$__rate_interval]))",
                "{{change}}",
            )],
        ),
    ]
}
