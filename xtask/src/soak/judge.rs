//! What must hold after a soak. Pure: every way to fail has a test.

use std::collections::BTreeMap;

use super::features::Features;
use super::summary::{Summary, growth};
use crate::suite::exposition::Scrape;
use crate::suite::ledger::Ledger;

/// Resident memory may grow by this much in the second half of a long soak: by then the ledger is as full as it gets.
const GROWTH_KIB: u64 = 32 << 10;
/// Name of the oracle's process.
const ORACLE: &str = "soak ";
/// From so many seconds on a soak is long.
const LONG: f64 = 600.0;

/// Where the ledger and the metrics of the same moment contradict each other. Of the outcomes that are no write-notify
/// faults the metrics may tell more: those in VMAs that are not armed have no row in the ledger.
#[must_use]
pub fn disagreements(ledger: &Ledger, scrape: &Scrape) -> Vec<String> {
    let mut found = Vec::new();
    let total = ledger.total.without_zeros();
    if ledger.added_up() != total {
        found.push(format!(
            "the ledger's parts add up to {:?}, its total is {total:?}",
            ledger.added_up()
        ));
    }
    let nothing = Scrape::default();
    let faults = growth(&nothing, scrape, "softdirty_write_notify_faults_total");
    let in_ledger: BTreeMap<_, _> = total
        .by_kind
        .iter()
        .flat_map(|(kind, states)| {
            states
                .iter()
                .map(move |(state, count)| (format!("{kind}/{state}"), *count))
        })
        .collect();
    if faults != in_ledger {
        found.push(format!(
            "write-notify faults: the metrics say {faults:?}, the ledger {in_ledger:?}"
        ));
    }
    let outcomes = growth(&nothing, scrape, "softdirty_faults_total");
    for (outcome, count) in &total.outcomes {
        let told = outcomes.get(outcome).copied().unwrap_or(0);
        if told < *count {
            found.push(format!(
                "outcome {outcome}: the metrics say {told}, the ledger {count}"
            ));
        }
    }
    found
}

impl Summary {
    /// Everything that is not as it must be, whatever the features.
    pub fn judge(&mut self) {
        let mut failures = Vec::new();
        let mut check = |holds: bool, words: String| {
            if !holds {
                failures.push(words);
            }
        };
        let (tracker, sdtrace) = (&self.tracker, &self.sdtrace);
        let seen = sdtrace.clears_with("tracked")
            + sdtrace.clears_with("filtered")
            + sdtrace.clears_with("untracked")
            + sdtrace.clears_with("reached_nothing");
        check(
            tracker.clears == seen,
            format!("the tracker cleared {} times, sdtrace saw {seen}", tracker.clears),
        );
        check(
            tracker.failed_clears == sdtrace.clears_with("failed"),
            format!(
                "{} clears failed, sdtrace saw {}",
                tracker.failed_clears,
                sdtrace.clears_with("failed")
            ),
        );
        check(
            tracker.rounds >= 10 && tracker.soft_dirty_pages > 0 && self.oracle.epochs >= 10,
            format!(
                "only {} rounds over the stressors and {} over the oracle were made",
                tracker.rounds, self.oracle.epochs
            ),
        );
        check(
            sdtrace.lost_records.is_empty(),
            format!("records were lost: {:?}", sdtrace.lost_records),
        );
        check(
            sdtrace.oracle_epochs_found > 0,
            "no epoch of the oracle was found in the ledger".to_owned(),
        );
        if self.features == Some(Features::Off) {
            check(
                self.oracle.missed() == 0,
                format!(
                    "the kernel missed writes of the oracle though nothing that causes it was on: {:?}",
                    self.oracle.missed_pages
                ),
            );
            let (epochs, incidents) = sdtrace.examined.incidents();
            check(
                epochs == 0,
                format!(
                    "incidents though nothing that causes them was on: {}",
                    incidents.join("; ")
                ),
            );
            check(
                sdtrace.examined.unknown * 100 < sdtrace.examined.of_clears,
                format!(
                    "{} of {} epochs could not be checked: {:?}",
                    sdtrace.examined.unknown, sdtrace.examined.of_clears, sdtrace.unknown
                ),
            );
            // Its main thread answers the tracker between the reading and the clear. What the kernel skipped is held against
            // every process alike, and is bounded above.
            let allowed = [
                "hazard:read-clear-gap",
                "unknown:missed_probe_runs",
                "unknown:write_unreturned",
            ];
            let distrusted = sdtrace.examined.distrusted(ORACLE, &allowed);
            check(
                distrusted.is_empty(),
                format!(
                    "the oracle is an ordinary process, and is not trusted: {}",
                    distrusted.join("; ")
                ),
            );
            let skipped: u64 = sdtrace.missed_probe_runs.values().sum();
            let short = sdtrace.oracle_changed_pages.saturating_sub(sdtrace.oracle_faults);
            check(
                sdtrace.oracle_differences.is_empty()
                    || (sdtrace.oracle_faults <= sdtrace.oracle_changed_pages && short <= skipped),
                format!(
                    "the ledger's faults are not the oracle's changes (the kernel skipped {skipped} probe runs): {}",
                    sdtrace.oracle_differences.join("; ")
                ),
            );
        }
        let half = self
            .host
            .rss
            .iter()
            .find(|(seconds, _)| *seconds >= self.seconds / 2.0);
        if let (Some((_, early)), Some((_, late))) = (half, self.host.rss.last()) {
            check(
                self.seconds < LONG || *late <= early + GROWTH_KIB,
                format!("sdtrace grew from {early} to {late} KiB in the second half of the time"),
            );
        }
        if let Some(features) = self.features {
            failures.extend(self.host.counters.contradictions(features));
        }
        self.failures.extend(failures);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::soak::features::Counters;
    use crate::soak::summary::{Host, Sdtrace};
    use crate::soak::tracker::{OracleSeen, Tracked};
    use crate::soak::verdicts::Examined;

    fn one(name: &str, count: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([(name.to_owned(), count)])
    }

    /// A soak in which all went well.
    fn good() -> Summary {
        Summary {
            features: Some(Features::Off),
            seconds: 700.0,
            tracker: Tracked {
                rounds: 10,
                clears: 100,
                soft_dirty_pages: 5,
                ..Tracked::default()
            },
            oracle: OracleSeen {
                epochs: 10,
                changed_pages: 50,
                ..OracleSeen::default()
            },
            sdtrace: Sdtrace {
                clears: BTreeMap::from([("tracked".to_owned(), 98), ("reached_nothing".to_owned(), 2)]),
                oracle_epochs_found: 8,
                oracle_changed_pages: 40,
                oracle_faults: 40,
                examined: Examined {
                    epochs: 100,
                    of_clears: 90,
                    reasons: BTreeMap::from([
                        ("soak trusted".to_owned(), 7),
                        ("soak suspect: hazard:read-clear-gap".to_owned(), 1),
                        ("vm suspect: blind:writable_alias".to_owned(), 82),
                    ]),
                    ..Examined::default()
                },
                ..Sdtrace::default()
            },
            host: Host {
                rss: vec![(1.0, 1_000), (400.0, 50_000), (699.0, 51_000)],
                ..Host::default()
            },
            ..Summary::default()
        }
    }

    fn failures(change: impl FnOnce(&mut Summary)) -> String {
        let mut summary = good();
        change(&mut summary);
        summary.judge();
        summary.failures.join("; ")
    }

    #[test]
    fn a_good_soak_has_no_failures() {
        assert_eq!(failures(|_| ()), "");
    }

    #[test]
    fn every_way_to_fail_is_told() {
        type Change = fn(&mut Summary);
        let ways: [(Change, &str); 12] = [
            (
                |soak| {
                    let reasons = &mut soak.sdtrace.examined.reasons;
                    reasons.insert("vm broken: missed:shared-zap".to_owned(), 3);
                },
                "incidents though nothing that causes them was on: 3 of vm broken",
            ),
            (
                |soak| soak.sdtrace.examined.unknown = 1,
                "1 of 90 epochs could not be checked",
            ),
            (
                |soak| {
                    let reasons = &mut soak.sdtrace.examined.reasons;
                    reasons.insert("soak suspect: hazard:vma-merge".to_owned(), 2);
                },
                "is not trusted: 2 of soak suspect",
            ),
            (
                |soak| soak.tracker.clears += 1,
                "the tracker cleared 101 times, sdtrace saw 100",
            ),
            (
                |soak| soak.tracker.failed_clears = 1,
                "1 clears failed, sdtrace saw 0",
            ),
            (
                |soak| soak.oracle.epochs = 1,
                "only 10 rounds over the stressors and 1",
            ),
            (|soak| soak.tracker.soft_dirty_pages = 0, "only 10 rounds"),
            (
                |soak| soak.sdtrace.lost_records = one("ring_full", 3),
                "records were lost",
            ),
            (
                |soak| soak.sdtrace.oracle_epochs_found = 0,
                "no epoch of the oracle",
            ),
            (
                |soak| soak.oracle.missed_pages = one("private", 2),
                "the kernel missed writes",
            ),
            (
                |soak| soak.host.counters = Counters(one("pgmigrate_success", 4)),
                "the features were to be off",
            ),
            (
                |soak| soak.host.rss.push((700.0, 90_000)),
                "grew from 50000 to 90000 KiB",
            ),
        ];
        for (change, words) in ways {
            let told = failures(change);
            assert!(told.contains(words), "{words}: {told:?}");
        }
    }

    #[test]
    fn faults_may_differ_from_changes_only_by_what_the_kernel_skipped() {
        let differ = |faults: u64, skipped: u64| {
            failures(|soak| {
                soak.sdtrace.oracle_faults = faults;
                soak.sdtrace.oracle_differences = vec!["epoch 3".to_owned()];
                soak.sdtrace.missed_probe_runs = one("fault_entry/recursion", skipped);
            })
        };
        assert!(differ(39, 0).contains("are not the oracle's changes"));
        assert!(differ(39, 1).is_empty());
        assert!(differ(41, 5).contains("are not the oracle's changes"));
    }

    #[test]
    fn misses_and_odd_counts_are_no_failure_while_the_features_work() {
        let told = failures(|soak| {
            soak.features = Some(Features::On);
            soak.oracle.missed_pages = one("mergeable", 2);
            soak.sdtrace.oracle_differences = vec!["epoch 3".to_owned()];
            let counters = [("pgmigrate_success", 1), ("ksm_pages_shared", 1)];
            soak.host.counters = Counters(counters.map(|(name, count)| (name.to_owned(), count)).into());
        });
        assert_eq!(told, "");
    }

    #[test]
    fn ledger_and_metrics_must_agree() {
        let sum = json!({ "faults": 3, "huge_faults": 0, "mprotects": 0, "outcomes": { "retry": 2 },
            "by_kind": { "shared_anon": { "armed": 3 } } });
        let ledger: Ledger = serde_json::from_value(json!({
            "format": 1, "complete": true, "incomplete": [], "total": sum, "unlinked_faults": 0, "pending": sum,
            "folded": { "sum": { "faults": 0, "huge_faults": 0, "mprotects": 0, "outcomes": {}, "by_kind": {} } },
            "address_spaces": []
        }))
        .unwrap();
        let told = |faults: u64, retries: u64| {
            let text = format!(
                "softdirty_write_notify_faults_total{{kind=\"shared_anon\",state=\"armed\"}} {faults}\n\
                 softdirty_faults_total{{outcome=\"retry\"}} {retries}\n"
            );
            disagreements(&ledger, &Scrape::parse(&text).unwrap()).join("; ")
        };
        assert_eq!(told(3, 2), "");
        // Faults in VMAs that are not armed have no row.
        assert_eq!(told(3, 5), "");
        assert!(told(4, 2).contains("write-notify faults"));
        assert!(told(3, 1).contains("outcome retry"));
    }
}
