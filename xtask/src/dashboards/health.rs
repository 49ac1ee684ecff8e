//! sdtrace itself: what it loses, what its probes became, what it needs.

use super::model::{Dashboard, Kind, Panel, Section, query};
use super::verify;

/// The dashboard.
#[must_use]
pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "sdtrace-health",
        title: "sdtrace / Health of sdtrace",
        description: "sdtrace itself: what it loses on the way, what became of its probes, what it needs.",
        one_node: false,
        sections: vec![
            Section {
                title: "State",
                panels: state(),
            },
            Section {
                title: "Losses",
                panels: losses(),
            },
            Section {
                title: "Probes",
                panels: probes(),
            },
            Section {
                title: "Own audit and incident log",
                panels: audit(),
            },
            Section {
                title: "Verify",
                panels: verify::cost(),
            },
            Section {
                title: "Resources",
                panels: resources(),
            },
        ],
    }
}

fn state() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Table(vec!["cluster", "job", "instance", "version", "release"]),
            "Nodes",
            "Version and kernel of each node, when sdtrace started, whether it is ready, whether its ledger has everything \
             since then, and processes that it could not read at the start (not tracked before their next clear).",
            "none",
            vec![
                query("min by (cluster, job, instance) (sdtrace_ready{@})", "ready"),
                query("max by (cluster, job, instance) (sdtrace_ledger_incomplete{@})", "incomplete"),
                query("1000 * max by (cluster, job, instance) (sdtrace_start_time_seconds{@})", "started"),
                query("max by (cluster, job, instance) (sdtrace_unreadable_processes_at_start{@})", "not readable"),
                query("max by (cluster, job, instance) (sdtrace_fault_times_measured{@})", "fault times"),
                query("max by (cluster, job, instance, version) (sdtrace_build_info{@})", "version known"),
                query("max by (cluster, job, instance, release) (sdtrace_kernel_info{@})", "kernel known"),
            ],
        )
        .column("started", "dateTimeFromNow"),
        Panel::new(
            Kind::Lines,
            "Nodes that answer",
            "Nodes whose last scrape worked, and nodes on which sdtrace is ready.",
            "none",
            vec![query("sum(up{@})", "answer"), query("sum(sdtrace_ready{@})", "ready")],
        ),
        Panel::new(
            Kind::Lines,
            "Restarts",
            "Starts of sdtrace in the last hour, by node. Each one begins all counters anew and adopts what is armed.",
            "none",
            vec![query("changes(sdtrace_start_time_seconds{@}[1h])", "{{instance}}")],
        ),
    ]
}

fn losses() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Stacked,
            "Losses by stage",
            "What was lost on the way, by stage. clear_failed and mprotect_flags_differ are calls that did not do what was asked \
             for. Everything else forbids trust in the epochs of that time.",
            "records/s",
            vec![query("sum by (stage) (rate(sdtrace_lost_records_total{@}[$__rate_interval]))", "{{stage}}")],
        ),
        Panel::new(
            Kind::Stacked,
            "Skipped probe runs",
            "Runs of probes that the kernel skipped, by program and stage. Only counted where the table below says so.",
            "runs/s",
            vec![query(
                "sum by (probe, stage) (rate(sdtrace_missed_probe_runs_total{@}[$__rate_interval])) > 0",
                "{{probe}} {{stage}}",
            )],
        ),
        Panel::new(
            Kind::Bars,
            "Maps",
            "How full the maps shared with the kernel are. When one is full, what comes next is counted as lost.",
            "percentunit",
            vec![query("max by (map) (sdtrace_map_entries{@} / sdtrace_map_capacity{@})", "{{map}}")],
        )
        .steps("green", &[(0.8, "orange"), (0.95, "red")])
        .max(1.0),
        Panel::new(
            Kind::Stacked,
            "Given up by the detectors",
            "late: came after its epoch was finished. page_states: only ranges are kept, and the epoch is not trusted. \
             epoch_ranges: old epochs that keep their counts only.",
            "records/s",
            vec![query("sum by (what) (rate(sdtrace_findings_not_kept_total{@}[$__rate_interval]))", "{{what}}")],
        ),
        Panel::new(
            Kind::Stacked,
            "Folded by the ledger",
            "Old detail that was given up to keep memory bounded. The sums keep what it had counted: no loss.",
            "items/s",
            vec![query("sum by (what) (rate(sdtrace_ledger_folded_total{@}[$__rate_interval]))", "{{what}}")],
        ),
        Panel::new(
            Kind::Lines,
            "Ledgers that are not complete",
            "Nodes whose ledger does not tell everything since the start of sdtrace; /debug/ledger there says why.",
            "none",
            vec![query("sum(sdtrace_ledger_incomplete{@})", "nodes")],
        ),
    ]
}

fn probes() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Table(vec!["probe", "verdict", "mode"]),
            "Probes",
            "What became of each probe, and on how many nodes. unsupported: that kernel does not offer it; broken: the kernel \
             refused it. `sdtrace check` on the node says what it answered.",
            "none",
            vec![query("count by (probe, verdict, mode) (sdtrace_probe_verdict{@} == 1)", "nodes")],
        ),
        Panel::new(
            Kind::Lines,
            "Runs of the probes",
            "Runs of the hot probes, those of faults and mprotects in tracked address spaces only. Entries without returns are \
             under way or lost.",
            "runs/s",
            vec![query("sum by (run) (rate(sdtrace_probe_runs_total{@}[$__rate_interval]))", "{{run}}")],
        ),
        Panel::new(
            Kind::Lines,
            "Write faults watched",
            "Nodes on which the programs on handle_mm_fault are attached, which every fault of the machine comes by, and how often \
             they were attached in a second: something is tracked, or somebody reads pagemap.",
            "none",
            vec![
                query("sum(sdtrace_writes_watched{@})", "nodes"),
                query(
                    "sum(rate(sdtrace_write_watch_attaches_total{@}[$__rate_interval]))",
                    "attaches/s",
                ),
            ],
        ),
        Panel::new(
            Kind::Table(vec!["probe", "stage"]),
            "Are skipped runs counted?",
            "Nodes whose kernel counts the skipped runs of a program at a stage, and nodes where they may happen unseen.",
            "none",
            vec![
                query("sum by (probe, stage) (sdtrace_missed_probe_runs_counted{@})", "counted"),
                query("count by (probe, stage) (sdtrace_missed_probe_runs_counted{@})", "nodes"),
            ],
        )
        .size(12, 8),
    ]
}

fn audit() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Stacked,
            "Own audits",
            "Address spaces whose turn it was: read to the end, left for the next turn by the budget, or gone.",
            "turns/s",
            vec![query(
                "sum by (result) (rate(sdtrace_own_audits_total{@}[$__rate_interval]))",
                "{{result}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Address space read",
            "Bytes of address space in a second that sdtrace's own audit reads; --audit-budget bounds it.",
            "Bps",
            vec![query(
                "sum by (instance) (rate(sdtrace_own_audit_bytes_total{@}[$__rate_interval]))",
                "{{instance}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Time for own audits",
            "Share of one processor that sdtrace's own audit takes.",
            "percentunit",
            vec![query(
                "sum by (instance) (rate(sdtrace_own_audit_seconds_total{@}[$__rate_interval]))",
                "{{instance}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Incident log",
            "Lines by result. dropped: too many were waiting; failed: the file could not be written.",
            "lines/s",
            vec![query(
                "sum by (result) (rate(sdtrace_incidents_logged_total{@}[$__rate_interval]))",
                "{{result}}",
            )],
        ),
    ]
}

fn resources() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Lines,
            "Scrape time",
            "Time of a scrape as Prometheus sees it, the network included, and as sdtrace measures it.",
            "s",
            vec![
                query("max(scrape_duration_seconds{@})", "Prometheus, slowest node"),
                query(
                    "max(sdtrace_last_scrape_duration_seconds{@})",
                    "sdtrace, slowest node",
                ),
            ],
        ),
        Panel::new(
            Kind::Lines,
            "Series",
            "Samples of a scrape: series that a node costs Prometheus.",
            "none",
            vec![query("max(scrape_samples_scraped{@})", "largest node")],
        ),
        Panel::new(
            Kind::Lines,
            "Memory",
            "Resident memory of sdtrace by node. That of its maps belongs to the kernel and is not in it.",
            "bytes",
            vec![query("process_resident_memory_bytes{@}", "{{instance}}")],
        ),
        Panel::new(
            Kind::Lines,
            "Processor time",
            "Share of one processor that sdtrace takes; what its probes cost falls on the processes that they meet.",
            "percentunit",
            vec![query(
                "rate(process_cpu_seconds_total{@}[$__rate_interval])",
                "{{instance}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Live pages",
            "Live pages that are open on each node and get events.",
            "none",
            vec![query("sdtrace_page_clients{@}", "{{instance}}")],
        ),
        Panel::new(
            Kind::Stacked,
            "Live pages let go",
            "Live pages that sdtrace let go: slow ones did not take their events in time, refused ones were too many at once.",
            "pages/s",
            vec![query(
                "sum by (reason) (rate(sdtrace_page_clients_dropped_total{@}[$__rate_interval]))",
                "{{reason}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Open files",
            "File descriptors of sdtrace: one for each program, link and map, and a few more.",
            "none",
            vec![query("process_open_fds{@}", "{{instance}}")],
        ),
    ]
}
