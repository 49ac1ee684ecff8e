//! Holds the ledger against what the workload did. Pure: every way to differ has a test.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::exposition::Scrape;
use super::ledger::{Epoch, Ledger, Space, Vma};
use crate::workload::report::{AreaReport, Report, State};

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

/// Holds every area of a report against one epoch. Of the faults as many may be missing as the kernel said it
/// `skipped`.
///
/// # Errors
/// Names the first difference.
pub fn areas(report: &Report, epoch: &Epoch, skipped: u64) -> Result<()> {
    for area in &report.areas {
        rows(area, epoch, skipped).with_context(|| format!("{} of process {}", area.name, report.pid))?;
        ensure!(
            area.written == area.soft_dirty,
            "{} of process {}: {} pages were written, pagemap shows {} soft-dirty",
            area.name,
            report.pid,
            area.written,
            area.soft_dirty
        );
    }
    Ok(())
}

/// Holds one area against the rows that lie in it.
fn rows(area: &AreaReport, epoch: &Epoch, skipped: u64) -> Result<()> {
    let mut found: Vec<&Vma> = epoch
        .vmas
        .iter()
        .filter(|vma| (area.start..area.end).contains(&vma.start.0))
        .collect();
    for state in &area.states {
        let at = found
            .iter()
            .position(|vma| vma.start.0 == state.start && sorted(&vma.flags) == state.flags);
        let Some(at) = at else {
            bail!(
                "no row at {:#x} with flags {:?}; there are {}",
                state.start,
                state.flags,
                list(&found)
            );
        };
        let mut state = state.clone();
        let vma = found.swap_remove(at);
        if !epoch.vmas_complete {
            // What its clear met is then not known, as the ledger says.
            state.armed_at_clear = vma.armed_at_clear;
        }
        for (shown, true_one) in [
            (vma.faults, &mut state.faults),
            (vma.huge_faults, &mut state.huge_faults),
        ] {
            if shown < *true_one && *true_one - shown <= skipped {
                *true_one = shown;
            }
        }
        row(vma, area, &state)?;
    }
    ensure!(found.is_empty(), "rows that nothing explains: {}", list(&found));
    Ok(())
}

fn row(vma: &Vma, area: &AreaReport, state: &State) -> Result<()> {
    let mut outcomes = vma.outcomes.clone();
    outcomes.retain(|_, count| *count > 0);
    let retries = outcomes.remove("retry").unwrap_or(0);
    ensure!(
        retries <= state.retries_at_most,
        "{retries} retries, at most {} can be",
        state.retries_at_most
    );
    let pairs = [
        ("end", hex(vma.end.0), hex(state.end)),
        ("kind", vma.kind.clone(), area.kind.clone()),
        ("faults", vma.faults.to_string(), state.faults.to_string()),
        (
            "huge faults",
            vma.huge_faults.to_string(),
            state.huge_faults.to_string(),
        ),
        (
            "mprotects",
            vma.mprotects.to_string(),
            state.mprotects.to_string(),
        ),
        (
            "mprotect changes",
            format!("{:?}", sorted(&vma.mprotect_changes)),
            format!("{:?}", state.mprotect_changes),
        ),
        (
            "outcomes",
            format!("{outcomes:?}"),
            format!("{:?}", state.outcomes),
        ),
        (
            "armed at the clear",
            vma.armed_at_clear.to_string(),
            state.armed_at_clear.to_string(),
        ),
        ("armed", vma.armed.to_string(), true.to_string()),
        (
            "writable page_prot",
            vma.page_prot_writable.to_string(),
            false.to_string(),
        ),
    ];
    let mut differences: Vec<String> = pairs
        .iter()
        .filter(|(_, shown, true_one)| shown != true_one)
        .map(|(what, shown, true_one)| format!("{what} {shown}, true is {true_one}"))
        .collect();
    if area.inode.is_some() && vma.inode != area.inode {
        differences.push(format!("inode {:?}, true is {:?}", vma.inode, area.inode));
    }
    ensure!(
        differences.is_empty(),
        "the row at {} with flags {:?} shows {}",
        vma.start,
        vma.flags,
        differences.join("; ")
    );
    Ok(())
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names
}

fn list(rows: &[&Vma]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|vma| {
            format!(
                "{}-{} {} {:?} faults {} huge {} mprotects {} {:?} {:?}",
                vma.start,
                vma.end,
                vma.kind,
                vma.flags,
                vma.faults,
                vma.huge_faults,
                vma.mprotects,
                vma.mprotect_changes,
                vma.outcomes
            )
        })
        .collect();
    if rows.is_empty() {
        "none".to_owned()
    } else {
        rows.join(", ")
    }
}

/// The newest address space of the report's process, with its newest epoch.
///
/// # Errors
/// If the ledger has none.
pub fn newest<'a>(ledger: &'a Ledger, report: &Report) -> Result<(&'a Space, &'a Epoch)> {
    let space = ledger
        .space_of(report.pid)
        .with_context(|| format!("the ledger has no address space of process {}", report.pid))?;
    let epoch = space
        .epochs
        .last()
        .with_context(|| format!("process {} has no epoch", report.pid))?;
    ensure!(
        space.state != "live" || epoch.vmas_complete,
        "sdtrace was asked for the ledger and has not looked at the newest epoch of process {}",
        report.pid
    );
    Ok((space, epoch))
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

    use super::*;

    fn report() -> Report {
        Report {
            pid: 7,
            children: Vec::new(),
            areas: vec![AreaReport {
                name: "area".to_owned(),
                start: 0x1000,
                end: 0x3000,
                kind: "shared_anon".to_owned(),
                inode: None,
                written: 2,
                soft_dirty: 2,
                states: vec![State {
                    start: 0x1000,
                    end: 0x3000,
                    flags: vec!["rd".to_owned(), "wr".to_owned()],
                    armed_at_clear: true,
                    faults: 2,
                    ..State::default()
                }],
            }],
        }
    }

    fn vma() -> serde_json::Value {
        json!({
            "start": "0x1000", "end": "0x3000", "flags": ["rd", "wr"], "page_prot_writable": false, "armed": true,
            "armed_at_clear": true, "kind": "shared_anon", "inode": null, "faults": 2, "huge_faults": 0,
            "outcomes": {}, "mprotects": 0, "mprotect_changes": []
        })
    }

    fn epoch(vmas: &serde_json::Value) -> Epoch {
        let sum = json!({ "faults": 2, "huge_faults": 0, "mprotects": 0, "outcomes": {},
            "by_kind": { "shared_anon": { "armed": 2 } } });
        serde_json::from_value(json!({
            "number": 1, "opened_by": "clear", "clear": null, "ended_by": null, "uncertain": false, "vmas_complete": true,
            "total": sum, "folded_vmas": 0, "vmas": vmas
        }))
        .unwrap()
    }

    #[test]
    fn what_is_equal_passes() {
        let epoch = epoch(&json!([vma()]));
        areas(&report(), &epoch, 0).unwrap();
        assert_eq!(epoch.added_up(), epoch.total);
    }

    #[test]
    fn every_difference_fails() {
        for (field, value) in [
            ("start", json!("0x2000")),
            ("end", json!("0x2000")),
            ("flags", json!(["rd"])),
            ("page_prot_writable", json!(true)),
            ("armed", json!(false)),
            ("armed_at_clear", json!(false)),
            ("kind", json!("private_anon")),
            ("faults", json!(3)),
            ("huge_faults", json!(1)),
            ("outcomes", json!({ "retry": 1 })),
            ("outcomes", json!({ "unshare": 1 })),
            ("mprotects", json!(1)),
            ("mprotect_changes", json!(["merged"])),
        ] {
            let mut row = vma();
            row[field] = value;
            assert!(areas(&report(), &epoch(&json!([row])), 0).is_err(), "{field}");
        }
        assert!(areas(&report(), &epoch(&json!([])), 0).is_err(), "a missing row");
        let mut second = vma();
        second["start"] = json!("0x2000");
        assert!(
            areas(&report(), &epoch(&json!([vma(), second])), 0).is_err(),
            "a row too many"
        );
        let mut missed = report();
        missed.areas[0].soft_dirty = 1;
        assert!(
            areas(&missed, &epoch(&json!([vma()])), 0).is_err(),
            "a write that the kernel missed"
        );
    }

    #[test]
    fn what_the_kernel_said_it_skipped_may_be_missing() {
        let mut row = vma();
        row["faults"] = json!(1);
        let epoch = epoch(&json!([row]));
        areas(&report(), &epoch, 1).unwrap();
        assert!(areas(&report(), &epoch, 0).is_err());
        let mut more = vma();
        more["faults"] = json!(3);
        assert!(areas(&report(), &self::epoch(&json!([more])), 9).is_err());
    }

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
