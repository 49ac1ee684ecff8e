//! What the target did beside what sdtrace counted, kind by kind. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::suite::ledger::{Epoch, Ledger, Vma};
use crate::workload::report::{AreaReport, Report};

/// Rows of the table, in its order.
const ROWS: [&str; 8] = [
    "private_anon",
    "shared_anon",
    "private_file",
    "shared_file",
    "huge",
    "after fork",
    "already soft-dirty",
    "mprotect calls",
];

/// Counts by row.
type Counts = BTreeMap<&'static str, u64>;

/// Both sides' counts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    target: Counts,
    sdtrace: Counts,
    /// Reports whose epochs have not been looked up yet.
    open: Vec<Report>,
    /// Epochs of the target that were looked up.
    looked_up: u32,
}

/// The row that writes of a process to memory of this kind belong to.
fn row_of(kind: &str, child: bool) -> &'static str {
    if child {
        return "after fork";
    }
    ROWS.into_iter()
        .find(|row| *row == kind)
        .unwrap_or("private_anon")
}

fn add(counts: &mut Counts, row: &'static str, count: u64) {
    *counts.entry(row).or_default() += count;
}

fn count_report(counts: &mut Counts, report: &Report, child: bool) {
    for area in &report.areas {
        for state in &area.states {
            add(counts, row_of(&area.kind, child), state.faults);
            add(counts, "huge", state.huge_faults);
            let already = state.outcomes.get("already_soft_dirty");
            add(counts, "already soft-dirty", already.copied().unwrap_or(0));
            add(counts, "mprotect calls", state.mprotects);
        }
    }
    for child in &report.children {
        count_report(counts, child, true);
    }
}

fn count_epoch(counts: &mut Counts, areas: &[AreaReport], epoch: &Epoch, child: bool) {
    let inside = |vma: &&Vma| {
        areas
            .iter()
            .any(|area| (area.start..area.end).contains(&vma.start.0))
    };
    for vma in epoch.vmas.iter().filter(inside) {
        add(counts, row_of(&vma.kind, child), vma.faults);
        add(counts, "huge", vma.huge_faults);
        let already = vma.outcomes.get("already_soft_dirty");
        add(counts, "already soft-dirty", already.copied().unwrap_or(0));
        add(counts, "mprotect calls", vma.mprotects);
    }
}

impl Tally {
    /// Takes in what the target did in one epoch.
    pub fn did(&mut self, report: Report) {
        count_report(&mut self.target, &report, false);
        self.open.push(report);
    }

    /// Whether enough was done that the ledger should be asked before it gives old epochs up.
    #[must_use]
    pub fn wants_a_look(&self) -> bool {
        self.open.len() >= 8
    }

    /// Takes in what the ledger says about everything the target did since the last look. The reports are those of
    /// the target's epochs, one after the other.
    pub fn saw(&mut self, ledger: &Ledger) {
        let mut seen = BTreeSet::new();
        for report in std::mem::take(&mut self.open) {
            self.looked_up += 1;
            let epochs = ledger
                .space_of(report.pid)
                .into_iter()
                .flat_map(|space| &space.epochs);
            for epoch in epochs.filter(|epoch| epoch.number == self.looked_up) {
                count_epoch(&mut self.sdtrace, &report.areas, epoch, false);
            }
            for child in &report.children {
                for space in ledger.spaces_of(child.pid).filter(|space| seen.insert(space.id)) {
                    for epoch in &space.epochs {
                        count_epoch(&mut self.sdtrace, &child.areas, epoch, true);
                    }
                }
            }
        }
    }

    /// Whether both sides agree in every row.
    #[must_use]
    pub fn equal(&self) -> bool {
        ROWS.iter()
            .all(|row| self.target.get(row) == self.sdtrace.get(row))
    }

    /// Sum of the target's writes that should each have been one fault.
    #[must_use]
    pub fn written(&self) -> u64 {
        ROWS[..6].iter().filter_map(|row| self.target.get(row)).sum()
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{:<20}{:>12}{:>12}\n", "write-notify faults", "target", "sdtrace");
        for row in ROWS {
            let count = |counts: &Counts| counts.get(row).copied().unwrap_or(0);
            let (target, sdtrace) = (count(&self.target), count(&self.sdtrace));
            let verdict = if target == sdtrace { "equal" } else { "NOT EQUAL" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{row:<20}{target:>12}{sdtrace:>12}  {verdict}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workload::report::State;

    fn report(faults: u64) -> Report {
        Report {
            pid: 7,
            children: Vec::new(),
            areas: vec![AreaReport {
                name: "area".to_owned(),
                start: 0x1000,
                end: 0x3000,
                kind: "shared_anon".to_owned(),
                inode: None,
                written: faults,
                soft_dirty: faults,
                states: vec![State {
                    faults,
                    ..State::default()
                }],
            }],
        }
    }

    fn ledger(epochs: &[(u32, u64)]) -> Ledger {
        let sum = json!({ "faults": 0, "huge_faults": 0, "by_kind": {}, "outcomes": {}, "mprotects": 0 });
        let epochs: Vec<_> = epochs
            .iter()
            .map(|(number, faults)| {
                json!({ "number": number, "opened_by": "clear", "clear": null, "ended_by": null, "uncertain": false,
                    "vmas_complete": true, "total": sum, "folded_vmas": 0, "vmas": [{
                        "start": "0x1000", "end": "0x3000", "flags": [], "page_prot_writable": false, "armed": true,
                        "armed_at_clear": true, "kind": "shared_anon", "inode": null, "faults": faults,
                        "huge_faults": 0, "outcomes": {}, "mprotects": 0, "mprotect_changes": [] }] })
            })
            .collect();
        serde_json::from_value(json!({
            "format": 1, "complete": true, "incomplete": [], "total": sum, "unlinked_faults": 0, "pending": sum,
            "folded": { "sum": sum },
            "address_spaces": [{ "id": 1, "origin": "clear", "parent": null, "parent_epoch": null,
                "process": { "pid": 7, "comm": "workload" }, "state": "live", "total": sum, "folded_epochs": 0,
                "unseen_epochs": 0, "epochs": epochs }]
        }))
        .unwrap()
    }

    #[test]
    fn each_epoch_is_taken_once() {
        let mut tally = Tally::default();
        tally.did(report(2));
        tally.did(report(3));
        tally.saw(&ledger(&[(1, 2), (2, 3)]));
        assert!(tally.equal(), "{}", tally.table());
        tally.did(report(4));
        tally.saw(&ledger(&[(1, 2), (2, 3), (3, 4)]));
        assert!(tally.equal(), "{}", tally.table());
        assert_eq!(tally.written(), 9);
    }

    #[test]
    fn a_difference_shows_in_its_row() {
        let mut tally = Tally::default();
        tally.did(report(2));
        tally.saw(&ledger(&[(1, 1)]));
        assert!(!tally.equal());
        let table = tally.table();
        assert!(table.contains("shared_anon") && table.contains("NOT EQUAL"));
    }
}
