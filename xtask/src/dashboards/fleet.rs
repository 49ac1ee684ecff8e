//! Which nodes and workloads have epochs that cannot be trusted, and why.

use super::model::{Dashboard, Kind, Panel, Section, query};

/// Leads from a node's name to its page.
const NODE: &str =
    "/d/sdtrace-node?${datasource:queryparam}&${__url_time_range}&var-instance=${__data.fields.instance}";

/// The dashboard.
#[must_use]
pub fn dashboard() -> Dashboard {
    Dashboard {
        uid: "sdtrace-fleet",
        title: "sdtrace / Fleet",
        description: "Which nodes and workloads have epochs that cannot be trusted, and by what cause.",
        one_node: false,
        sections: vec![
            Section {
                title: "Now, and in the chosen time",
                panels: now(),
            },
            Section {
                title: "Nodes",
                panels: nodes(),
            },
            Section {
                title: "Verdicts and causes",
                panels: causes(),
            },
            Section {
                title: "Workloads (only with --top-workloads)",
                panels: workloads(),
            },
        ],
    }
}

fn now() -> Vec<Panel> {
    let number =
        |title, description, unit, queries| Panel::new(Kind::Number, title, description, unit, queries);
    vec![
        number(
            "Nodes",
            "Scraped nodes, and those among them on which sdtrace is ready: its probes are attached and tested. What is \
             missing here is not watched.",
            "none",
            vec![query("count(up{@})", "scraped"), query("sum(sdtrace_ready{@})", "ready")],
        ),
        number(
            "Broken epochs",
            "Epochs that finished in the chosen time and in which a write was missed: an incremental dump of them lacks data.",
            "none",
            vec![query(r#"sum(increase(softdirty_epochs_total{@, verdict="broken"}[$__range]))"#, "broken")],
        )
        .steps("green", &[(0.5, "red")]),
        number(
            "Suspect epochs",
            "Share of the epochs that finished in the chosen time about which sdtrace cannot say that nothing was missed.",
            "percentunit",
            vec![query(
                r#"sum(increase(softdirty_epochs_total{@, verdict="suspect"}[$__range])) / sum(increase(softdirty_epochs_total{@}[$__range]))"#,
                "suspect",
            )],
        )
        .steps("green", &[(0.1, "orange")]),
        number(
            "Missed pages",
            "Pages of 4 KiB whose write was missed in the chosen time, once for each epoch.",
            "none",
            vec![query("sum(increase(softdirty_missed_writes_total{@}[$__range]))", "missed")],
        )
        .steps("green", &[(0.5, "red")]),
        number(
            "Exposed pages",
            "Pages of 4 KiB of open epochs whose next write will be missed.",
            "none",
            vec![query("sum(softdirty_exposed_pages{@})", "exposed")],
        )
        .steps("green", &[(0.5, "orange")]),
        number(
            "Blind memory",
            "Memory of tracked processes that soft-dirty cannot track. It must be dumped in full each time.",
            "bytes",
            vec![query("sum(softdirty_blind_bytes{@})", "blind")],
        ),
    ]
}

fn nodes() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Table(vec!["cluster", "job", "instance"]),
            "Nodes by verdict",
            "Epochs that finished in the chosen time by verdict, pages that were missed, and what stands now. The name of a \
             node leads to its page.",
            "none",
            vec![
                query(r#"sum by (cluster, job, instance) (increase(softdirty_epochs_total{@, verdict="broken"}[$__range]))"#, "broken epochs"),
                query(r#"sum by (cluster, job, instance) (increase(softdirty_epochs_total{@, verdict="suspect"}[$__range]))"#, "suspect epochs"),
                query(r#"sum by (cluster, job, instance) (increase(softdirty_epochs_total{@, verdict="trusted"}[$__range]))"#, "trusted epochs"),
                query("sum by (cluster, job, instance) (increase(softdirty_missed_writes_total{@}[$__range]))", "missed pages"),
                query("sum by (cluster, job, instance) (softdirty_exposed_pages{@})", "exposed pages"),
                query("sum by (cluster, job, instance) (softdirty_blind_bytes{@})", "blind memory"),
                query("sum by (cluster, job, instance) (softdirty_tracked_address_spaces{@})", "address spaces"),
            ],
        )
        .column("blind memory", "bytes")
        .link("instance", "This node", NODE),
        Panel::new(
            Kind::Table(vec!["cluster", "job", "instance", "cause"]),
            "Nodes by cause",
            "What happened in the chosen time on which node, by cause: pages missed (4 KiB, once for each epoch), pages found \
             exposed, epochs with a hazard. docs/causes.md tells what each cause is and what to do.",
            "none",
            vec![
                query("sum by (cluster, job, instance, cause) (increase(softdirty_missed_writes_total{@}[$__range])) > 0", "missed pages"),
                query("sum by (cluster, job, instance, cause) (increase(softdirty_exposed_pages_total{@}[$__range])) > 0", "exposed pages"),
                query("sum by (cluster, job, instance, cause) (increase(softdirty_hazards_total{@}[$__range])) > 0", "epochs with a hazard"),
            ],
        )
        .link("instance", "This node", NODE),
        Panel::new(
            Kind::Table(vec!["severity", "alertname", "cluster", "job", "instance"]),
            "Alerts that fire",
            "Alerts of dashboards/rules.yml that fire now. The name of an alert leads to its page in the runbook. It is empty \
             if Prometheus does not evaluate these rules.",
            "none",
            vec![query(
                r#"max by (severity, alertname, cluster, job, instance) (ALERTS{@, service="sdtrace", alertstate="firing"})"#,
                "fires",
            )],
        )
        .link("alertname", "What to do", "${runbook}#${__data.fields.alertname}")
        .link("instance", "This node", NODE),
    ]
}

fn causes() -> Vec<Panel> {
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
            "Missed pages by cause",
            "Pages of 4 KiB whose write was missed, once for each epoch, by the mechanism that made the kernel miss it.",
            "pages/s",
            vec![query(
                "sum by (cause) (rate(softdirty_missed_writes_total{@}[$__rate_interval])) > 0",
                "{{cause}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Why epochs are suspect: hazards",
            "Epochs in which something happened that can hide a write from the tracker, once for each cause.",
            "epochs/s",
            vec![query(
                "sum by (cause) (rate(softdirty_hazards_total{@}[$__rate_interval])) > 0",
                "{{cause}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Why epochs are suspect: checks not completed",
            "Finished epochs with a check that could not be completed, once for each reason. Reasons are explained in \
             docs/detectors.md.",
            "epochs/s",
            vec![query(
                "sum by (reason) (rate(softdirty_unknown_epochs_total{@}[$__rate_interval])) > 0",
                "{{reason}}",
            )],
        ),
        Panel::new(
            Kind::Stacked,
            "Exposed pages by cause",
            "Pages of 4 KiB of open epochs whose page-table entry lets the next write through unseen.",
            "none",
            vec![query("sum by (cause) (softdirty_exposed_pages{@})", "{{cause}}")],
        ),
        Panel::new(
            Kind::Stacked,
            "Blind memory by reason",
            "Memory of tracked processes that soft-dirty cannot track, as of their newest clears.",
            "bytes",
            vec![query("sum by (reason) (softdirty_blind_bytes{@})", "{{reason}}")],
        ),
        Panel::new(
            Kind::Lines,
            "Broken epochs by node",
            "The ten nodes on which most epochs were found broken.",
            "epochs/s",
            vec![query(
                r#"topk(10, sum by (cluster, job, instance) (rate(softdirty_epochs_total{@, verdict="broken"}[$__rate_interval])))"#,
                "{{instance}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Longest clears by node",
            "For each of the ten worst nodes, how long one clear in a hundred keeps the target's page faults and mmap calls \
             out: it holds mmap_lock so long.",
            "s",
            vec![query(
                "topk(10, histogram_quantile(0.99, sum by (cluster, job, instance, le) (rate(softdirty_clear_hold_seconds_bucket{@}[$__rate_interval]))))",
                "{{instance}}",
            )],
        ),
    ]
}

fn workloads() -> Vec<Panel> {
    vec![
        Panel::new(
            Kind::Table(vec!["cluster", "job", "instance", "workload_kind", "workload"]),
            "Workloads",
            "Containers and systemd units that are tracked, with what they did in the chosen time. `other` is everything that \
             has no series of its own. Broken and suspect are finished epochs; `sdtrace dump` names the processes.",
            "none",
            vec![
                query("sum by (cluster, job, instance, workload_kind, workload) (softdirty_workload_address_spaces{@})", "address spaces"),
                query("sum by (cluster, job, instance, workload_kind, workload) (increase(softdirty_workload_epochs_total{@}[$__range]))", "epochs"),
                query("sum by (cluster, job, instance, workload_kind, workload) (increase(softdirty_workload_verdicts_total{@,verdict=\"broken\"}[$__range]))", "broken"),
                query("sum by (cluster, job, instance, workload_kind, workload) (increase(softdirty_workload_verdicts_total{@,verdict=\"suspect\"}[$__range]))", "suspect"),
                query("sum by (cluster, job, instance, workload_kind, workload) (increase(softdirty_workload_clears_total{@}[$__range]))", "clears"),
                query("sum by (cluster, job, instance, workload_kind, workload) (increase(softdirty_workload_write_notify_faults_total{@}[$__range]))", "write-notify faults"),
            ],
        )
        .link("instance", "This node", NODE),
        Panel::new(
            Kind::Lines,
            "Write-notify faults by workload",
            "The ten workloads with the most write-notify faults: what tracking costs them.",
            "faults/s",
            vec![query(
                "topk(10, sum by (workload) (rate(softdirty_workload_write_notify_faults_total{@}[$__rate_interval])))",
                "{{workload}}",
            )],
        ),
        Panel::new(
            Kind::Lines,
            "Workloads left to other",
            "How often a workload got no series of its own because as many as --top-workloads says had one.",
            "workloads/s",
            vec![query("sum by (instance) (rate(sdtrace_workload_overflow_total{@}[$__rate_interval]))", "{{instance}}")],
        ),
    ]
}
