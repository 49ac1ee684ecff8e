use std::collections::BTreeSet;
use std::path::Path;

use tracer_common::classify::{Outcome, ProtectionState, VmaKind};
use tracer_common::counters::{Counter, Stage};
use tracer_common::records::{CLEAR_TRACKED, Header};

use super::*;
use crate::probes::counters::CounterSums;

fn metrics() -> Metrics {
    Metrics::new(&Facts {
        kernel: "6.1.0-test".to_owned(),
        started: UNIX_EPOCH + Duration::from_secs(1000),
    })
    .unwrap()
}

fn value(text: &str, sample: &str) -> f64 {
    let line = text
        .lines()
        .find(|line| {
            line.strip_prefix(sample)
                .is_some_and(|rest| rest.starts_with(' '))
        })
        .unwrap_or_else(|| panic!("no sample {sample} in\n{text}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn every_label_value_is_there_from_the_start() {
    let text = metrics().render(Reading::default()).unwrap();
    for sample in [
        r#"softdirty_clears_total{result="failed"}"#,
        r#"softdirty_write_notify_faults_total{kind="huge",state="armed_writable_page_prot"}"#,
        r#"softdirty_faults_total{outcome="retry"}"#,
        r#"softdirty_mprotects_total{change="softdirty_lost"}"#,
        r#"softdirty_tracked_address_spaces{origin="adopted"}"#,
        r#"softdirty_epochs{state="open"}"#,
        r#"softdirty_epochs_ended_total{reason="clear_other_tracker"}"#,
        r#"sdtrace_lost_records_total{stage="ring_full"}"#,
        r#"softdirty_missed_writes_total{cause="ksm-merge",evidence="observed"}"#,
        r#"softdirty_exposed_pages{cause="migration-race"}"#,
        r#"softdirty_blind_bytes{reason="hugetlb"}"#,
        r#"softdirty_epochs_total{verdict="trusted"}"#,
        r#"softdirty_unknown_epochs_total{reason="pages_full"}"#,
        r#"softdirty_hazards_total{cause="foreign-clear"}"#,
        r#"softdirty_dropped_pages_total{reason="madv_dontneed"}"#,
        r#"sdtrace_incidents_logged_total{result="dropped"}"#,
        "softdirty_clear_wait_seconds_count",
        "sdtrace_fault_times_measured",
    ] {
        assert!(value(&text, sample).abs() < f64::EPSILON, "{sample}");
    }
    assert!(!text.contains("softdirty_fault_handling_seconds"));
    assert!((value(&text, "sdtrace_start_time_seconds") - 1000.0).abs() < f64::EPSILON);
    assert!((value(&text, r#"sdtrace_kernel_info{release="6.1.0-test"}"#) - 1.0).abs() < f64::EPSILON);
}

#[test]
fn counters_of_the_kernel_appear_under_their_labels() {
    let reading = Reading {
        counters: CounterSums::of([
            (Counter::Fault(VmaKind::SharedAnon, ProtectionState::Armed), 256),
            (Counter::HugeFault(ProtectionState::Armed), 1),
            (Counter::Outcome(Outcome::Unshare), 3),
            (Counter::Stage(Stage::RingFull), 4),
            (Counter::FaultTime(0), 5),
            (Counter::FaultTime(1), 6),
            (Counter::FaultTime(24), 7),
            (Counter::FaultTimeSum, 1_500_000_000),
        ]),
        ..Reading::example()
    };
    let text = metrics().render(reading).unwrap();
    for (sample, expected) in [
        (
            r#"softdirty_write_notify_faults_total{kind="shared_anon",state="armed"}"#,
            256.0,
        ),
        (
            r#"softdirty_write_notify_faults_total{kind="huge",state="armed"}"#,
            1.0,
        ),
        (r#"softdirty_faults_total{outcome="unshare"}"#, 3.0),
        (r#"sdtrace_lost_records_total{stage="ring_full"}"#, 4.0),
        (
            r#"softdirty_fault_handling_seconds_bucket{le="0.000000128"}"#,
            5.0,
        ),
        (
            r#"softdirty_fault_handling_seconds_bucket{le="0.000000256"}"#,
            11.0,
        ),
        (r#"softdirty_fault_handling_seconds_bucket{le="+Inf"}"#, 18.0),
        ("softdirty_fault_handling_seconds_count", 18.0),
        ("softdirty_fault_handling_seconds_sum", 1.5),
    ] {
        assert!(
            (value(&text, sample) - expected).abs() < 1e-12,
            "{sample}\n{text}"
        );
    }
}

#[test]
fn a_clear_is_counted_with_its_wait_and_hold() {
    let metrics = metrics();
    let mut clear = ClearRecord {
        header: Header {
            time_ns: 3_000_001_000,
            ..Header::default()
        },
        entry_ns: 1000,
        first_walk_ns: 1_000_001_000,
        status: CLEAR_TRACKED,
        result: 1,
        ..ClearRecord::default()
    };
    metrics.count_clear(&clear);
    (clear.result, clear.first_walk_ns) = (-4, 0);
    metrics.count_clear(&clear);
    let text = metrics.render(Reading::default()).unwrap();
    for (sample, expected) in [
        (r#"softdirty_clears_total{result="tracked"}"#, 1.0),
        (r#"softdirty_clears_total{result="failed"}"#, 1.0),
        ("softdirty_clear_wait_seconds_sum", 1.0),
        ("softdirty_clear_hold_seconds_sum", 2.0),
        ("softdirty_clear_hold_seconds_count", 1.0),
    ] {
        assert!((value(&text, sample) - expected).abs() < 1e-9, "{sample}");
    }
}

#[test]
fn a_kernel_that_does_not_count_skipped_runs_is_named_so() {
    let mut reading = Reading::example();
    reading.missed[0].count = None;
    let text = metrics().render(reading).unwrap();
    let labels = r#"{probe="do_wp_page_fentry",stage="recursion"}"#;
    assert!(value(&text, &format!("sdtrace_missed_probe_runs_counted{labels}")).abs() < f64::EPSILON);
}

#[test]
fn names_are_unique_and_described() {
    let all = Reading::example();
    let families = [
        observed::families(&all),
        detected::families(&all),
        own::families(&all),
        workloads::families(&all),
    ]
    .concat();
    let names: BTreeSet<_> = families.iter().map(|family| family.name().to_owned()).collect();
    assert_eq!(names.len(), families.len());
    for family in &families {
        assert!(family.help().ends_with('.'), "{}", family.name());
        let prefix = ["softdirty_", "sdtrace_"]
            .iter()
            .any(|prefix| family.name().starts_with(prefix));
        assert!(prefix, "{}", family.name());
    }
}

#[test]
fn the_documentation_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        committed,
        documentation().unwrap(),
        "run `cargo run -p tracer-user -- metrics-docs > docs/metrics.md`"
    );
}
