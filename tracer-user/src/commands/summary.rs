//! What `run --for` says at its end.

use std::fmt::Write as _;

use serde::Serialize;
use tracer_common::classify::{Outcome, ProtectionState};
use tracer_common::counters::{Counter, Stage};

use crate::export::metrics::reading::Reading;
use crate::ledger::{EndReason, fault_counter, fault_kind_labels};

/// Handled faults of one kind and state.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Faults {
    kind: &'static str,
    state: &'static str,
    count: u64,
}

/// The numbers of the summary.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    tracked_address_spaces: u64,
    open_epochs: u64,
    ended_epochs: Vec<(&'static str, u64)>,
    write_notify_faults: u64,
    by_kind: Vec<Faults>,
    other_outcomes: Vec<(&'static str, u64)>,
    unlinked_faults: u64,
    lost_records: u64,
    missed_probe_runs: u64,
    probes_whose_missed_runs_are_not_counted: usize,
    ledger_complete: bool,
    /// Pages whose content was compared, with --verify-pages.
    verified_pages: u64,
    verified_missed_pages: u64,
}

impl Summary {
    pub(super) fn of(reading: &Reading) -> Self {
        let count = |counter| reading.counters.get(counter);
        let mut by_kind = Vec::new();
        for (at, kind) in fault_kind_labels().into_iter().enumerate() {
            for state in ProtectionState::ALL {
                by_kind.push(Faults {
                    kind,
                    state: state.label(),
                    count: count(fault_counter(at, state)),
                });
            }
        }
        by_kind.retain(|faults| faults.count > 0);
        let others = Outcome::ALL
            .into_iter()
            .filter(|&outcome| outcome != Outcome::Handled);
        let ended = EndReason::ALL
            .iter()
            .map(|reason| reason.label())
            .zip(reading.ledger.ended);
        Self {
            tracked_address_spaces: reading.ledger.live.iter().sum(),
            open_epochs: reading.ledger.open,
            ended_epochs: ended.filter(|&(_, count)| count > 0).collect(),
            write_notify_faults: by_kind.iter().map(|faults| faults.count).sum(),
            by_kind,
            other_outcomes: others
                .map(|outcome| (outcome.label(), count(Counter::Outcome(outcome))))
                .filter(|&(_, count)| count > 0)
                .collect(),
            unlinked_faults: count(Counter::Stage(Stage::Unlinked)),
            lost_records: count(Counter::Stage(Stage::RingFull)) + reading.undecodable,
            missed_probe_runs: reading.missed.iter().filter_map(|missed| missed.count).sum(),
            probes_whose_missed_runs_are_not_counted: reading
                .missed
                .iter()
                .filter(|missed| missed.count.is_none())
                .count(),
            ledger_complete: !reading.ledger.incomplete,
            verified_pages: reading.detection.verified.pages,
            verified_missed_pages: reading.detection.verified.missed,
        }
    }

    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, count: u64| {
            let _ = writeln!(text, "{name:<44} {count:>12}");
        };
        line("tracked address spaces", self.tracked_address_spaces);
        line("open epochs", self.open_epochs);
        for (reason, count) in &self.ended_epochs {
            line(&format!("epochs ended by {reason}"), *count);
        }
        line("write-notify faults", self.write_notify_faults);
        for faults in &self.by_kind {
            line(&format!("  {}, {}", faults.kind, faults.state), faults.count);
        }
        for (outcome, count) in &self.other_outcomes {
            line(&format!("other faults: {outcome}"), *count);
        }
        line("faults linked to no VMA", self.unlinked_faults);
        line("lost records", self.lost_records);
        line("missed probe runs", self.missed_probe_runs);
        let uncounted = self.probes_whose_missed_runs_are_not_counted as u64;
        line("probes whose missed runs nobody counts", uncounted);
        if self.verified_pages > 0 {
            line("verified pages", self.verified_pages);
            line("  changed and not soft-dirty", self.verified_missed_pages);
        }
        let complete = if self.ledger_complete {
            "complete"
        } else {
            "INCOMPLETE"
        };
        let _ = writeln!(text, "{:<44} {complete:>12}", "ledger");
        text
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::classify::VmaKind;

    use super::*;
    use crate::probes::counters::CounterSums;

    #[test]
    fn the_summary_adds_up() {
        let reading = Reading {
            counters: CounterSums::of([
                (Counter::Fault(VmaKind::SharedAnon, ProtectionState::Armed), 250),
                (Counter::HugeFault(ProtectionState::Armed), 6),
                (Counter::Outcome(Outcome::Handled), 256),
                (Counter::Outcome(Outcome::Unshare), 2),
                (Counter::Stage(Stage::RingFull), 1),
            ]),
            undecodable: 1,
            ..Reading::default()
        };
        let summary = Summary::of(&reading);
        assert_eq!((summary.write_notify_faults, summary.lost_records), (256, 2));
        assert_eq!(summary.other_outcomes, [("unshare", 2)]);
        let table = summary.table();
        assert!(table.contains("shared_anon, armed"), "{table}");
        assert!(table.lines().all(|line| line.len() == 57), "{table}");
    }
}
