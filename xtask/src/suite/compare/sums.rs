//! The ledger's sums against the metrics.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::super::exposition::Scrape;
use super::super::ledger::Ledger;
use crate::workload::report::Report;

/// Kinds of memory that only the workload's areas have: it links nothing in, so the counts of these are its own.
/// The others are also the kinds of its stack, heap and data.
const OWN_KINDS: [&str; 2] = ["shared_anon", "shared_file"];

/// What an incomplete ledger may say and still be held against the truth: the kernel skipped runs of a probe and counted
/// them (on a preemptible kernel every run of a trampoline program on a CPU where another task was preempted inside it).
const SKIPPED: &str = "missed_probe_runs";

/// Runs of probes that the kernel skipped so far, as far as it counts them.
///
/// # Errors
/// If `/metrics` does not tell.
pub fn skipped(scrape: &Scrape) -> Result<u64> {
    scrape.sum("sdtrace_missed_probe_runs_total", &[])
}

/// Sees that the ledger is complete, that it agrees with itself, and that the metrics are its sum.
///
/// # Errors
/// Names the first difference.
pub fn consistent(ledger: &Ledger, scrape: &Scrape) -> Result<()> {
    let announced = ledger.incomplete.iter().all(|reason| reason.reason == SKIPPED);
    ensure!(
        ledger.complete == ledger.incomplete.is_empty()
            && (ledger.complete || (announced && skipped(scrape)? > 0)),
        "the ledger says it is incomplete: {:?}",
        ledger.incomplete
    );
    sums_agree(ledger, scrape)
}

/// Sees that the ledger agrees with itself and that the metrics are its sum, whatever was lost before.
///
/// # Errors
/// Names the first difference.
pub fn sums_agree(ledger: &Ledger, scrape: &Scrape) -> Result<()> {
    ensure!(
        ledger.format == 1,
        "the ledger's format is {}, not 1",
        ledger.format
    );
    let total = ledger.total.without_zeros();
    let added_up = ledger.added_up();
    ensure!(
        added_up == total,
        "the ledger's parts add up to {added_up:?}, its total is {total:?}"
    );
    for space in &ledger.address_spaces {
        for epoch in space.epochs.iter().filter(|epoch| epoch.folded_vmas == 0) {
            let added_up = epoch.added_up();
            let total = epoch.total.without_zeros();
            ensure!(
                added_up == total,
                "the rows of epoch {} of address space {} add up to {added_up:?}, its total is {total:?}",
                epoch.number,
                space.id
            );
        }
    }
    let mut handled = 0;
    for (labels, value) in scrape.all("softdirty_write_notify_faults_total", &[]) {
        let (kind, state) = (label(labels, "kind")?, label(labels, "state")?);
        let in_ledger = total
            .by_kind
            .get(kind)
            .and_then(|states| states.get(state))
            .copied()
            .unwrap_or(0);
        let in_metrics = scrape.count(
            "softdirty_write_notify_faults_total",
            &[("kind", kind), ("state", state)],
        )?;
        handled += in_metrics;
        ensure!(
            in_metrics == in_ledger,
            "metric {kind}/{state} is {value}, the ledger adds up to {in_ledger} (and {} without a row)",
            ledger.unlinked_faults
        );
    }
    for (labels, value) in scrape.all("softdirty_faults_total", &[]) {
        let outcome = label(labels, "outcome")?;
        let in_metrics = scrape.count("softdirty_faults_total", &[("outcome", outcome)])?;
        let in_ledger = match outcome {
            "handled" => handled,
            // Faults in VMAs that are not armed have no rows.
            "not_armed" => in_metrics,
            other => total.outcomes.get(other).copied().unwrap_or(0),
        };
        ensure!(
            in_metrics == in_ledger,
            "metric outcome {outcome} is {value}, the ledger says {in_ledger}"
        );
    }
    Ok(())
}

fn label<'a>(labels: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str> {
    labels
        .get(name)
        .map(String::as_str)
        .with_context(|| format!("a series has no label {name}"))
}

/// Sees that what the metrics grew by is what the reports say. `tracked` are those of tracked processes.
///
/// # Errors
/// Names the first difference.
pub fn growth(before: &Scrape, after: &Scrape, tracked: &[&Report]) -> Result<()> {
    let slack = skipped(after)? - skipped(before)?;
    let name = "softdirty_write_notify_faults_total";
    let mut expected: BTreeMap<&str, u64> = OWN_KINDS.iter().map(|kind| (*kind, 0)).collect();
    expected.insert("huge", 0);
    let areas = || tracked.iter().flat_map(|report| &report.areas);
    for area in areas() {
        for state in &area.states {
            *expected.entry(area.kind.as_str()).or_default() += state.faults;
            *expected.entry("huge").or_default() += state.huge_faults;
        }
    }
    for (kind, expected) in expected {
        let labels = [("kind", kind)];
        let grown = after.sum(name, &labels)? - before.sum(name, &labels)?;
        let only_areas = kind == "huge" || OWN_KINDS.contains(&kind);
        ensure!(
            (grown <= expected && expected - grown <= slack) || (grown > expected && !only_areas),
            "metric {name}, kind {kind}, grew by {grown}; {expected} such writes were made"
        );
    }
    Ok(())
}

/// Sees that nothing was counted at all.
///
/// # Errors
/// Names what was.
pub fn nothing_counted(before: &Scrape, after: &Scrape) -> Result<()> {
    for name in [
        "softdirty_write_notify_faults_total",
        "softdirty_faults_total",
        "softdirty_mprotects_total",
        "softdirty_clears_total",
        "softdirty_epochs_ended_total",
    ] {
        for (labels, value) in after.all(name, &[]) {
            let labels: Vec<_> = labels
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect();
            let grown = value - before.get(name, &labels)?;
            ensure!(grown == 0.0, "{name} {labels:?} grew by {grown}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixtures::{report, vma};
    use super::*;

    fn scrape(shared: u64, private: u64, handled: u64) -> Scrape {
        Scrape::parse(&format!(
            "softdirty_write_notify_faults_total{{kind=\"shared_anon\",state=\"armed\"}} {shared}\n\
             softdirty_write_notify_faults_total{{kind=\"shared_file\",state=\"armed\"}} 0\n\
             softdirty_write_notify_faults_total{{kind=\"huge\",state=\"armed\"}} 0\n\
             softdirty_write_notify_faults_total{{kind=\"private_anon\",state=\"armed\"}} {private}\n\
             softdirty_faults_total{{outcome=\"handled\"}} {handled}\n\
             softdirty_mprotects_total 0\nsdtrace_missed_probe_runs_total 0\nsoftdirty_clears_total 0\nsoftdirty_epochs_ended_total 0\n"
        ))
        .unwrap()
    }

    fn ledger(epoch_faults: u64) -> Ledger {
        let sum = |count: u64| {
            json!({ "faults": count, "huge_faults": 0, "mprotects": 0, "outcomes": { "retry": 0 },
                "by_kind": { "shared_anon": { "armed": count } } })
        };
        serde_json::from_value(json!({
            "format": 1, "complete": true, "incomplete": [], "total": sum(2), "unlinked_faults": 0,
            "pending": sum(0), "folded": { "sum": sum(0) },
            "address_spaces": [{
                "id": 1, "origin": "clear", "parent": null, "parent_epoch": null, "process": null, "state": "live",
                "total": sum(2), "folded_epochs": 0, "unseen_epochs": 0,
                "epochs": [{ "number": 1, "opened_by": "clear", "clear": null, "ended_by": null, "uncertain": false, "vmas_complete": true,
                    "total": sum(epoch_faults), "folded_vmas": 0, "vmas": [vma()] }]
            }]
        }))
        .unwrap()
    }

    #[test]
    fn only_skipped_runs_excuse_an_incomplete_ledger() {
        let incomplete = |reason: &str| {
            let mut ledger = ledger(2);
            ledger.complete = false;
            ledger.incomplete = serde_json::from_value(json!([{ "reason": reason, "count": 1 }])).unwrap();
            ledger
        };
        let none = scrape(2, 0, 2);
        let some = Scrape::parse(
            "softdirty_write_notify_faults_total{kind=\"shared_anon\",state=\"armed\"} 2\n\
             sdtrace_missed_probe_runs_total 1\n",
        )
        .unwrap();
        consistent(&incomplete(SKIPPED), &some).unwrap();
        assert!(consistent(&incomplete(SKIPPED), &none).is_err());
        assert!(consistent(&incomplete("ring_full"), &some).is_err());
    }

    #[test]
    fn sums_must_agree() {
        consistent(&ledger(2), &scrape(2, 0, 2)).unwrap();
        assert!(
            consistent(&ledger(3), &scrape(2, 0, 2)).is_err(),
            "an epoch's total"
        );
        assert!(
            consistent(&ledger(2), &scrape(3, 0, 3)).is_err(),
            "the metric of a kind"
        );
        assert!(
            consistent(&ledger(2), &scrape(2, 0, 3)).is_err(),
            "the metric of an outcome"
        );
        let mut incomplete = ledger(2);
        incomplete.complete = false;
        assert!(consistent(&incomplete, &scrape(2, 0, 2)).is_err());
    }

    #[test]
    fn growth_is_exact_where_only_the_workload_writes() {
        let before = scrape(0, 0, 0);
        let report = report();
        growth(&before, &scrape(2, 9, 11), &[&report]).unwrap();
        assert!(growth(&before, &scrape(3, 9, 12), &[&report]).is_err());
        assert!(growth(&before, &scrape(1, 9, 10), &[&report]).is_err());
        nothing_counted(&before, &before).unwrap();
        assert!(nothing_counted(&before, &scrape(0, 1, 1)).is_err());
    }
}
