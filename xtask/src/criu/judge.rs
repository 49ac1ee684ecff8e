//! What must hold between CRIU, the target and sdtrace. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::compare::Reason;
use super::guest::{PRE_DUMPS, REASONS, Series, Step, Summary, THREADS};
use crate::suite::compare::skipped;
use crate::suite::exposition::Scrape;
use crate::suite::ledger::{Epoch, Ledger};

/// The checkpoints of one target, judged.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// Whether KSM ran, which makes soft-dirty lose writes.
    pub ksm: bool,
    /// One for each pre-dump and the dump.
    pub steps: Vec<JudgedStep>,
    /// Clears by CRIU of this target that sdtrace saw.
    pub clears_seen: usize,
    /// Pages whose restored content was compared with the target's.
    pub restored: u64,
    /// Pages that a restore would bring back with an old content: by area.
    pub stale: BTreeMap<String, usize>,
    /// What is not as it must be.
    pub failures: Vec<String>,
}

/// One pre-dump or dump.
#[derive(Debug, Serialize)]
pub struct JudgedStep {
    /// Writes that the target made since the step before.
    pub writes: u64,
    /// Pages that CRIU wrote, by why.
    pub written: BTreeMap<String, u64>,
    /// Pages that CRIU wrote and nothing explains.
    pub unexplained: Vec<String>,
    /// Pages that changed and that CRIU left out, by area.
    pub left_out: BTreeMap<String, usize>,
    /// By area: pages that changed, and write-notify faults that sdtrace counted there. Not for the first step, whose
    /// writes came before the first clear.
    pub faults: BTreeMap<String, (usize, u64)>,
}

/// Judges one target.
///
/// # Errors
/// If the ledger does not have it.
pub fn judge(series: &Series, ledger: &Ledger, scrape: &Scrape) -> Result<Judged> {
    let space = ledger
        .space_of(series.pid)
        .with_context(|| format!("the ledger has no address space of CRIU's target {}", series.pid))?;
    let by_criu = |epoch: &&Epoch| {
        let clear = epoch.clear.as_ref();
        epoch.opened_by == "clear" && clear.is_some_and(|clear| clear.tracker.comm == "criu")
    };
    let epochs: Vec<_> = space.epochs.iter().filter(by_criu).collect();
    let mut failures = Vec::new();
    // Each pre-dump and the dump read pagemap and clear, while the target is frozen.
    if epochs.len() != PRE_DUMPS + 1 || epochs.len() != space.epochs.len() {
        failures.push(format!(
            "CRIU cleared the target {} times; sdtrace has {} epochs, {} of them opened by criu",
            PRE_DUMPS + 1,
            space.epochs.len(),
            epochs.len()
        ));
    }
    let lost = skipped(scrape)?;
    let mut steps = Vec::new();
    for (number, step) in series.steps.iter().enumerate() {
        let before = number.checked_sub(1).and_then(|before| epochs.get(before));
        let faults = before.map_or_else(BTreeMap::new, |epoch| faults(step, epoch));
        failures.extend(
            differences(series, step, &faults, lost)
                .into_iter()
                .map(|difference| format!("step {}: {difference}", number + 1)),
        );
        steps.push(judged(step, faults));
    }
    let stale: BTreeMap<_, _> = series
        .stale
        .iter()
        .map(|(area, pages)| (area.clone(), pages.len()))
        .collect();
    let expected = if series.ksm { vec!["mergeable"] } else { vec![] };
    if !stale.keys().eq(expected) {
        failures.push(format!(
            "a restore would bring back old contents: {stale:?}{}",
            if series.ksm {
                ", and KSM should have cost pages of `mergeable` alone"
            } else {
                ""
            }
        ));
    }
    Ok(Judged {
        ksm: series.ksm,
        steps,
        clears_seen: epochs.len(),
        restored: series.restored,
        stale,
        failures,
    })
}

/// By area: pages that changed, and the faults of the rows that lie in it.
fn faults(step: &Step, epoch: &Epoch) -> BTreeMap<String, (usize, u64)> {
    let areas = step.known.areas.iter().map(|area| {
        let rows = epoch
            .vmas
            .iter()
            .filter(|vma| (area.start..area.end).contains(&vma.start.0));
        let faults = rows
            .map(|vma| if area.huge { vma.huge_faults } else { vma.faults })
            .sum();
        let changed = if area.huge {
            // One fault for the huge page, however many of its pages changed.
            usize::from(!area.changed.is_empty())
        } else {
            area.changed.len()
        };
        (area.name.clone(), (changed, faults))
    });
    areas.collect()
}

/// What is wrong with one step. KSM takes pages away and gives them back by faults of its own; what it may cost is
/// judged at the end, by content.
fn differences(
    series: &Series,
    step: &Step,
    faults: &BTreeMap<String, (usize, u64)>,
    lost: u64,
) -> Vec<String> {
    let mut found = Vec::new();
    if !step.comparison.unexplained.is_empty() {
        let pages: Vec<_> = step
            .comparison
            .unexplained
            .iter()
            .map(|page| format!("{page:#x}"))
            .collect();
        found.push(format!("nothing explains that CRIU wrote {}", pages.join(" ")));
    }
    if step.comparison.count(Reason::Changed) == 0 {
        found.push("CRIU wrote none of the pages that changed".to_owned());
    }
    let merged = |area: &str| series.ksm && area == "mergeable";
    for (area, pages) in &step.comparison.left_out {
        if !merged(area) {
            found.push(format!(
                "CRIU left out {} changed pages of `{area}`, the first at {:#x}",
                pages.len(),
                pages.first().copied().unwrap_or(0)
            ));
        }
    }
    for (area, (changed, faults)) in faults {
        let changed = *changed as u64;
        let huge = step
            .known
            .areas
            .iter()
            .any(|known| known.name == *area && known.huge);
        // Threads that write to a huge page at the same time fault side by side; only one of them finds it unchanged
        // (do_huge_pmd_wp_page looks again under the lock).
        let most = if huge { changed * THREADS as u64 } else { changed };
        if !merged(area) && !(changed.saturating_sub(lost)..=most).contains(faults) {
            found.push(format!(
                "{changed} pages of `{area}` changed, sdtrace counted {faults} write-notify faults there"
            ));
        }
    }
    found
}

fn judged(step: &Step, faults: BTreeMap<String, (usize, u64)>) -> JudgedStep {
    let mut written: BTreeMap<String, u64> = BTreeMap::new();
    for (reason, count) in &step.comparison.explained {
        let words = match reason {
            Reason::Excluded(words) => *words,
            other => REASONS
                .iter()
                .find(|(known, _)| known == other)
                .map_or("", |(_, words)| *words),
        };
        *written.entry(words.to_owned()).or_default() += count;
    }
    JudgedStep {
        writes: step.writes,
        written,
        unexplained: step
            .comparison
            .unexplained
            .iter()
            .map(|page| format!("{page:#x}"))
            .collect(),
        left_out: step
            .comparison
            .left_out
            .iter()
            .map(|(area, pages)| (area.clone(), pages.len()))
            .collect(),
        faults,
    }
}

/// The table that is printed.
#[must_use]
pub fn table(summary: &Summary) -> String {
    let mut text = format!("{} on {}\n", summary.criu, summary.kernel);
    for series in &summary.series {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}: {} clears by criu, {} epochs of sdtrace",
            if series.ksm { "with KSM" } else { "without KSM" },
            series.steps.len(),
            series.clears_seen
        );
        for (number, step) in series.steps.iter().enumerate() {
            let name = if number < PRE_DUMPS { "pre-dump" } else { "dump" };
            let _ = writeln!(text, "  {name} {}: written {:?}", number + 1, step.written);
            if !step.faults.is_empty() {
                let _ = writeln!(text, "    pages changed, faults seen: {:?}", step.faults);
            }
            if !step.left_out.is_empty() {
                let _ = writeln!(text, "    changed and left out: {:?}", step.left_out);
            }
        }
        let stale: usize = series.stale.values().sum();
        let _ = writeln!(
            text,
            "  a restore: {stale} of {} pages with an old content {:?}",
            series.restored, series.stale
        );
        for failure in &series.failures {
            let _ = writeln!(text, "  FAILED: {failure}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::criu::compare::{Area, Comparison, Known, PageSet};

    const CHANGED: [u64; 2] = [0x1000, 0x3000];

    fn step(written: &[u64]) -> Step {
        let known = Known {
            areas: vec![Area {
                name: "private".to_owned(),
                start: 0x1000,
                end: 0x5000,
                changed: CHANGED.into(),
                huge: false,
            }],
            ..Known::default()
        };
        let written: PageSet = written.iter().copied().collect();
        Step {
            comparison: Comparison::of(&known, &written),
            known,
            writes: 2,
        }
    }

    fn series() -> Series {
        Series {
            pid: 7,
            ksm: false,
            steps: vec![step(&CHANGED); PRE_DUMPS + 1],
            stale: BTreeMap::new(),
            restored: 4,
        }
    }

    /// A ledger with so many epochs, opened by this tracker, with so many faults each.
    fn ledger(epochs: usize, tracker: &str, faults: u64) -> Ledger {
        let sum = json!({ "faults": 0, "huge_faults": 0, "by_kind": {}, "outcomes": {}, "mprotects": 0 });
        let epochs: Vec<_> = (1..=epochs)
            .map(|number| {
                json!({ "number": number, "opened_by": "clear", "ended_by": null, "uncertain": false,
                    "clear": { "tracker": { "pid": 9, "comm": tracker }, "result": 2, "wait_seconds": null,
                        "hold_seconds": null, "armed_bytes": 0, "vmas": 1 },
                    "vmas_complete": true, "total": sum, "folded_vmas": 0, "vmas": [{
                        "start": "0x1000", "end": "0x5000", "flags": [], "page_prot_writable": false, "armed": true,
                        "armed_at_clear": true, "kind": "private_anon", "inode": null, "faults": faults,
                        "huge_faults": 0, "outcomes": {}, "mprotects": 0, "mprotect_changes": [] }] })
            })
            .collect();
        serde_json::from_value(json!({
            "format": 1, "complete": true, "incomplete": [], "total": sum, "unlinked_faults": 0, "pending": sum,
            "folded": { "sum": sum },
            "address_spaces": [{ "id": 1, "origin": "clear", "parent": null, "parent_epoch": null,
                "process": { "pid": 7, "comm": "oracle" }, "state": "live", "total": sum, "folded_epochs": 0,
                "unseen_epochs": 0, "epochs": epochs }]
        }))
        .unwrap()
    }

    fn failures(series: &Series, ledger: &Ledger) -> String {
        let scrape = Scrape::parse("sdtrace_missed_probe_runs_total{probe=\"x\",stage=\"recursion\"} 0\n");
        let judged = judge(series, ledger, &scrape.unwrap()).unwrap();
        judged.failures.join("; ")
    }

    #[test]
    fn agreement_passes() {
        assert_eq!(failures(&series(), &ledger(4, "criu", 2)), "");
    }

    #[test]
    fn epochs_must_be_crius_and_as_many() {
        for ledger in [ledger(3, "criu", 2), ledger(5, "criu", 2), ledger(4, "cat", 2)] {
            assert!(failures(&series(), &ledger).contains("CRIU cleared the target 4 times"));
        }
    }

    #[test]
    fn faults_must_be_as_many_as_changed_pages() {
        for faults in [1, 3] {
            assert!(failures(&series(), &ledger(4, "criu", faults)).contains("write-notify faults there"));
        }
    }

    #[test]
    fn pages_left_out_too_much_and_stale_are_told() {
        let ledger = ledger(4, "criu", 2);
        let mut lacking = series();
        lacking.steps[2] = step(&CHANGED[..1]);
        assert!(failures(&lacking, &ledger).contains("step 3: CRIU left out 1 changed pages"));
        let mut more = series();
        more.steps[1] = step(&[0x1000, 0x3000, 0x9000]);
        assert!(failures(&more, &ledger).contains("nothing explains that CRIU wrote 0x9000"));
        let mut stale = series();
        stale.stale.insert("private".to_owned(), vec![0x1000]);
        assert!(failures(&stale, &ledger).contains("old contents"));
    }

    #[test]
    fn ksm_must_cost_what_it_costs() {
        let mut merged = series();
        merged.ksm = true;
        assert!(failures(&merged, &ledger(4, "criu", 2)).contains("KSM should have cost"));
        merged.stale.insert("mergeable".to_owned(), vec![0x1000]);
        assert_eq!(failures(&merged, &ledger(4, "criu", 2)), "");
    }
}
