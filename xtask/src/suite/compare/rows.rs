//! One epoch of the ledger, row by row.

use anyhow::{Context as _, Result, bail, ensure};

use super::super::ledger::{Epoch, Ledger, Space, Vma};
use crate::workload::report::{AreaReport, Report, State};

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixtures::{epoch, report, vma};
    use super::*;

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
}
