//! For each alert a node on which it must fire, and one that comes near and on which it must not: `promtool test rules`
//! reads the file that is made of them.

use super::rules::File;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

const HEAD: &str =
    "# Made by `cargo xtask generate` from xtask/src/dashboards/cases; read by `promtool test rules`.\n";

/// An alert, the node `a` on which it fires and the node `b` on which it is silent.
struct Case {
    alert: &'static str,
    /// When it is asked.
    at: &'static str,
    /// Series of the node on which it fires. `@` stands for the labels of its target.
    fires: &'static [(&'static str, &'static str)],
    /// Series of the node on which it is silent.
    silent: &'static [(&'static str, &'static str)],
    /// Labels of the alert beyond those of the target; `None` if it has no target either.
    labels: Option<&'static [(&'static str, &'static str)]>,
    /// What its words say of the value.
    value: &'static str,
}

/// A case that is asked after 30 minutes.
const fn case(
    alert: &'static str,
    fires: &'static [(&'static str, &'static str)],
    silent: &'static [(&'static str, &'static str)],
    labels: &'static [(&'static str, &'static str)],
) -> Case {
    Case {
        alert,
        at: "30m",
        fires,
        silent,
        labels: Some(labels),
        value: "",
    }
}

/// A value that stays.
const ALWAYS_0: &str = "0x200";
const ALWAYS_1: &str = "1x200";
/// A counter that grew once, after 20 minutes.
const GREW: &str = "7x20 9x180";
/// A counter that grew an hour before it is asked.
const GREW_LONG_AGO: &str = "0x5 9x195";

const CASES: &[Case] = &[
    case(
        "SoftDirtyBrokenEpochs",
        &[(r#"softdirty_epochs_total{@,verdict="broken"}"#, GREW)],
        &[
            (r#"softdirty_epochs_total{@,verdict="broken"}"#, GREW_LONG_AGO),
            (r#"softdirty_epochs_total{@,verdict="suspect"}"#, GREW),
            ("sdtrace_start_time_seconds{@}", ALWAYS_0),
        ],
        &[],
    ),
    // What sdtrace counted between its start and its first scrape.
    case(
        "SoftDirtyBrokenEpochs",
        &[
            (r#"softdirty_epochs_total{@,verdict="broken"}"#, "_x25 3x100"),
            ("sdtrace_start_time_seconds{@}", "_x25 1440x100"),
        ],
        // Prometheus was away, not sdtrace: what it counted before is known.
        &[
            (r#"softdirty_epochs_total{@,verdict="broken"}"#, "3 _x25 3x100"),
            ("sdtrace_start_time_seconds{@}", "0 _x25 0x100"),
        ],
        &[],
    ),
    case(
        "SoftDirtyUnknownCause",
        &[(
            r#"softdirty_missed_writes_total{@,cause="unknown_cause",evidence="observed"}"#,
            GREW,
        )],
        &[(
            r#"softdirty_missed_writes_total{@,cause="ksm-merge",evidence="observed"}"#,
            GREW,
        )],
        &[("cause", "unknown_cause")],
    ),
    Case {
        at: "100m",
        value: "75%",
        ..case(
            "SoftDirtySuspectEpochs",
            &[
                (r#"softdirty_epochs_total{@,verdict="suspect"}"#, "0+3x200"),
                (r#"softdirty_epochs_total{@,verdict="trusted"}"#, "0+1x200"),
            ],
            &[
                (r#"softdirty_epochs_total{@,verdict="suspect"}"#, "0+1x200"),
                (r#"softdirty_epochs_total{@,verdict="trusted"}"#, "0+2x200"),
            ],
            &[],
        )
    },
    Case {
        at: "100m",
        value: "50%",
        ..case(
            "SoftDirtyUnknownEpochs",
            &[
                (r#"softdirty_epochs_total{@,verdict="suspect"}"#, "0+2x200"),
                (
                    r#"softdirty_unknown_epochs_total{@,reason="ring_full"}"#,
                    "0+1x200",
                ),
            ],
            &[
                (r#"softdirty_epochs_total{@,verdict="suspect"}"#, "0+5x200"),
                (
                    r#"softdirty_unknown_epochs_total{@,reason="ring_full"}"#,
                    "0+1x200",
                ),
            ],
            &[("reason", "ring_full")],
        )
    },
    case(
        "SoftDirtyExposedPagesStanding",
        &[(r#"softdirty_exposed_pages{@,cause="migration-race"}"#, "5x200")],
        &[(
            r#"softdirty_exposed_pages{@,cause="migration-race"}"#,
            "5x19 0x3 5x180",
        )],
        &[("cause", "migration-race")],
    ),
    Case {
        at: "100m",
        value: "100Mi",
        ..case(
            "SoftDirtyBlindBytesGrown",
            &[(
                r#"softdirty_blind_bytes{@,reason="hugetlb"}"#,
                "0x60 104857600x140",
            )],
            &[
                (r#"softdirty_blind_bytes{@,reason="hugetlb"}"#, "104857600x200"),
                (r#"softdirty_blind_bytes{@,reason="pinned"}"#, "0x60 33554432x140"),
            ],
            &[("reason", "hugetlb")],
        )
    },
    case(
        "SoftDirtyForeignClear",
        &[(r#"softdirty_hazards_total{@,cause="foreign-clear"}"#, GREW)],
        &[(
            r#"softdirty_epochs_ended_total{@,reason="clear_other_tracker"}"#,
            GREW,
        )],
        &[],
    ),
    case(
        "SoftDirtyFaultUnderWritablePageProtection",
        &[(
            r#"softdirty_write_notify_faults_total{@,kind="shared_anon",state="armed_writable_page_prot"}"#,
            GREW,
        )],
        &[(
            r#"softdirty_write_notify_faults_total{@,kind="shared_anon",state="armed"}"#,
            GREW,
        )],
        &[("kind", "shared_anon")],
    ),
    case(
        "SoftDirtyBitLostByMprotect",
        &[(r#"softdirty_mprotects_total{@,change="softdirty_lost"}"#, GREW)],
        &[(r#"softdirty_mprotects_total{@,change="merged"}"#, GREW)],
        &[],
    ),
    Case {
        at: "40m",
        value: "5%",
        ..case(
            "SoftDirtyClearStall",
            &[
                (
                    r#"softdirty_clear_hold_seconds_bucket{@,le="0.524288"}"#,
                    "0+19x200",
                ),
                ("softdirty_clear_hold_seconds_count{@}", "0+20x200"),
            ],
            &[
                (
                    r#"softdirty_clear_hold_seconds_bucket{@,le="0.524288"}"#,
                    "0+199x200",
                ),
                ("softdirty_clear_hold_seconds_count{@}", "0+200x200"),
            ],
            &[],
        )
    },
    case(
        "SdtraceDown",
        &[("up{@}", ALWAYS_0)],
        &[("up{@}", "1x26 0x2 1x100")],
        &[],
    ),
    Case {
        labels: None,
        ..case(
            "SdtraceAbsent",
            &[(r#"up{job="node",instance="a"}"#, ALWAYS_1)],
            &[("up{@}", ALWAYS_0)],
            &[],
        )
    },
    case(
        "SdtraceNotReady",
        &[("sdtrace_ready{@}", ALWAYS_0)],
        &[("sdtrace_ready{@}", "1x26 0x2 1x100")],
        &[],
    ),
    Case {
        value: "3",
        ..case(
            "SdtraceRestarting",
            &[("sdtrace_start_time_seconds{@}", "0x5 300x5 600x5 900x100")],
            &[("sdtrace_start_time_seconds{@}", "0x5 300x5 600x100")],
            &[],
        )
    },
    case(
        "SdtraceProbeBroken",
        &[(
            r#"sdtrace_probe_verdict{@,probe="do_wp_page",mode="none",verdict="broken"}"#,
            ALWAYS_1,
        )],
        &[(
            r#"sdtrace_probe_verdict{@,probe="do_wp_page",mode="none",verdict="unsupported"}"#,
            ALWAYS_1,
        )],
        &[("probe", "do_wp_page")],
    ),
    case(
        "SdtraceLosingRecords",
        &[(r#"sdtrace_lost_records_total{@,stage="ring_full"}"#, GREW)],
        &[
            (r#"sdtrace_lost_records_total{@,stage="clear_failed"}"#, GREW),
            (
                r#"sdtrace_lost_records_total{@,stage="ring_full"}"#,
                GREW_LONG_AGO,
            ),
        ],
        &[("stage", "ring_full")],
    ),
    case(
        "SdtraceLedgerIncomplete",
        &[("sdtrace_ledger_incomplete{@}", ALWAYS_1)],
        &[("sdtrace_ledger_incomplete{@}", ALWAYS_0)],
        &[],
    ),
    case(
        "SdtraceProbeRunsMissed",
        &[(
            r#"softdirty_unknown_epochs_total{@,reason="missed_probe_runs"}"#,
            GREW,
        )],
        &[
            (
                r#"softdirty_unknown_epochs_total{@,reason="missed_probe_runs"}"#,
                GREW_LONG_AGO,
            ),
            (r#"softdirty_unknown_epochs_total{@,reason="forked"}"#, GREW),
        ],
        &[],
    ),
    Case {
        value: "90%",
        ..case(
            "SdtraceMapFilling",
            &[
                (r#"sdtrace_map_entries{@,map="rows"}"#, "90x200"),
                (r#"sdtrace_map_capacity{@,map="rows"}"#, "100x200"),
            ],
            &[
                (r#"sdtrace_map_entries{@,map="rows"}"#, "80x200"),
                (r#"sdtrace_map_capacity{@,map="rows"}"#, "100x200"),
            ],
            &[("map", "rows")],
        )
    },
    case(
        "SdtraceFindingsNotKept",
        &[(r#"sdtrace_findings_not_kept_total{@,what="page_states"}"#, GREW)],
        &[(r#"sdtrace_findings_not_kept_total{@,what="epoch_ranges"}"#, GREW)],
        &[("what", "page_states")],
    ),
    case(
        "SdtraceIncidentLogFailing",
        &[(r#"sdtrace_incidents_logged_total{@,result="failed"}"#, GREW)],
        &[(r#"sdtrace_incidents_logged_total{@,result="written"}"#, GREW)],
        &[("result", "failed")],
    ),
    Case {
        at: "130m",
        value: "75%",
        ..case(
            "SdtraceAuditBehind",
            &[
                (r#"sdtrace_own_audits_total{@,result="unfinished"}"#, "0+3x200"),
                (r#"sdtrace_own_audits_total{@,result="complete"}"#, "0+1x200"),
            ],
            &[
                (r#"sdtrace_own_audits_total{@,result="unfinished"}"#, "0+1x200"),
                (r#"sdtrace_own_audits_total{@,result="complete"}"#, "0+3x200"),
            ],
            &[],
        )
    },
    Case {
        value: "2s",
        ..case(
            "SdtraceScrapeSlow",
            &[("sdtrace_last_scrape_duration_seconds{@}", "2x200")],
            &[("sdtrace_last_scrape_duration_seconds{@}", "2x20 0.01x2 2x200")],
            &[],
        )
    },
    case(
        "SdtraceUnreadableProcesses",
        &[("sdtrace_unreadable_processes_at_start{@}", ALWAYS_1)],
        &[("sdtrace_unreadable_processes_at_start{@}", ALWAYS_0)],
        &[],
    ),
];

/// The file for `promtool test rules`.
pub fn file(rules: &File) -> Result<String> {
    for (name, _) in rules.alerts() {
        ensure!(
            CASES.iter().any(|case| case.alert == name),
            "the alert {name} has no case in xtask/src/dashboards/cases"
        );
    }
    let mut tests = Vec::new();
    for case in CASES {
        let series = |nodes: &[(&[(&str, &str)], &str)]| -> Vec<Value> {
            let all = nodes.iter().flat_map(|(series, node)| {
                let target = format!(r#"cluster="c",job="sdtrace",instance="{node}""#);
                series.iter().map(
                    move |(series, values)| json!({"series": series.replace('@', &target), "values": values}),
                )
            });
            all.collect()
        };
        // An alert without a target asks whether anything is there at all.
        let beside: &[_] = if case.labels.is_some() { case.silent } else { &[] };
        for (what, series, alerts) in [
            (
                "fires",
                series(&[(case.fires, "a"), (beside, "b")]),
                json!([expected(case, rules)?]),
            ),
            ("is silent", series(&[(case.silent, "b")]), json!([])),
        ] {
            tests.push(json!({
                "name": format!("{} {what}", case.alert),
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": alerts}],
            }));
        }
    }
    let groups: Vec<_> = rules.groups.iter().map(|group| &group.name).collect();
    let file = json!({
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "group_eval_order": groups,
        "tests": tests,
    });
    Ok(HEAD.to_owned() + &serde_yaml_ng::to_string(&file)?)
}

/// The alert as Prometheus sends it.
fn expected(case: &Case, rules: &File) -> Result<Value> {
    let (_, rule) = rules
        .alerts()
        .find(|(name, _)| *name == case.alert)
        .with_context(|| format!("there is no alert {}, which has a case", case.alert))?;
    let mut labels: Vec<(&str, &str)> = Vec::new();
    if let Some(own) = case.labels {
        labels.extend([("cluster", "c"), ("job", "sdtrace"), ("instance", "a")]);
        labels.extend(own);
    }
    labels.extend(
        rule.labels
            .iter()
            .map(|(label, value)| (label.as_str(), value.as_str())),
    );
    let annotations: serde_json::Map<_, _> = rule
        .annotations
        .iter()
        .map(|(name, template)| Ok((name.clone(), filled(template, &labels, case.value)?.into())))
        .collect::<Result<_>>()?;
    let labels: serde_json::Map<_, _> = labels
        .into_iter()
        .map(|(label, value)| (label.to_owned(), value.into()))
        .collect();
    Ok(json!({"exp_labels": labels, "exp_annotations": annotations}))
}

/// A template with its values.
fn filled(template: &str, labels: &[(&str, &str)], value: &str) -> Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").context("a template ends")?;
        text.push_str(before);
        let action = action.trim();
        text.push_str(if let Some(label) = action.strip_prefix("$labels.") {
            let found = labels.iter().find(|(name, _)| *name == label);
            found
                .with_context(|| format!("no label {label} for {template:?}"))?
                .1
        } else {
            ensure!(action.starts_with("$value"), "{action:?} in {template:?}");
            ensure!(!value.is_empty(), "the case of {template:?} says no value");
            value
        });
        rest = after;
    }
    Ok(text + rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboards::rules::committed;

    #[test]
    fn each_alert_has_a_case_and_each_case_an_alert() {
        let mut rules = committed().unwrap();
        file(&rules).unwrap();
        let alert = rules.groups[1].rules[0].alert.replace("SdtraceOther".to_owned());
        let error = file(&rules).unwrap_err().to_string();
        assert!(error.contains("SdtraceOther has no case"), "{error}");
        rules.groups[1].rules.remove(0);
        let error = file(&rules).unwrap_err().to_string();
        assert!(error.contains(&alert.unwrap()), "{error}");
    }

    #[test]
    fn templates_are_filled_or_refused() {
        let fill = |template, value| filled(template, &[("instance", "a")], value);
        assert_eq!(
            fill("{{ $labels.instance }}: {{ $value | humanize }}!", "3").unwrap(),
            "a: 3!"
        );
        for template in ["{{ $labels.probe }}", "{{ $value }}", "{{ now }}", "{{ open"] {
            assert!(fill(template, "").is_err(), "{template}");
        }
    }
}
