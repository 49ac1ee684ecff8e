//! What a soak gave, as JSON and as a table, and whether it is as it must be. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::features::{Counters, Features};
use super::tracker::{OracleEpoch, OracleSeen, Tracked};
use super::verdicts::Examined;
use crate::suite::exposition::Scrape;
use crate::suite::ledger::Ledger;

/// The whole result.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// `uname -r`.
    pub kernel: String,
    /// How sdtrace attached.
    pub attach: String,
    /// Whether the features that make soft-dirty lose writes were at work.
    pub features: Option<Features>,
    /// How long it ran.
    pub seconds: f64,
    /// The tracker's account.
    pub tracker: Tracked,
    /// The oracle's account.
    pub oracle: OracleSeen,
    /// sdtrace's account.
    pub sdtrace: Sdtrace,
    /// What it did to the machine.
    pub host: Host,
    /// Rounds of each stressor.
    pub stressors: BTreeMap<String, u64>,
    /// What is not as it must be; empty when all is well.
    pub failures: Vec<String>,
}

/// What sdtrace said: growth of its metrics, by their labels.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sdtrace {
    /// Clears, by result.
    pub clears: BTreeMap<String, u64>,
    /// Ended epochs, by reason.
    pub epochs_ended: BTreeMap<String, u64>,
    /// Write faults, by outcome.
    pub faults: BTreeMap<String, u64>,
    /// Epochs, by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Missed writes, by cause and evidence.
    pub missed_writes: BTreeMap<String, u64>,
    /// Exposed pages, by cause.
    pub exposed_pages: BTreeMap<String, u64>,
    /// Epochs with a hazard, by cause.
    pub hazards: BTreeMap<String, u64>,
    /// Epochs with a check that could not be completed, by reason.
    pub unknown: BTreeMap<String, u64>,
    /// Pages that the stressors threw away themselves, by reason.
    pub dropped_pages: BTreeMap<String, u64>,
    /// Why epochs were not trusted, from the dumps.
    pub examined: Examined,
    /// Lost records, by stage; only what is not 0.
    pub lost_records: BTreeMap<String, u64>,
    /// Runs of probes that the kernel skipped, by probe and stage; only what is not 0.
    pub missed_probe_runs: BTreeMap<String, u64>,
    /// Why the ledger is incomplete.
    pub incomplete: BTreeMap<String, u64>,
    /// Epochs of the oracle that were found in the ledger.
    pub oracle_epochs_found: u64,
    /// Pages of the oracle that changed in those epochs.
    pub oracle_changed_pages: u64,
    /// Write-notify faults that the ledger has there.
    pub oracle_faults: u64,
    /// Those epochs in which the two differ, told one by one up to a bound.
    pub oracle_differences: Vec<String>,
}

/// What sdtrace cost, and what the kernel's features did meanwhile.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Host {
    /// Resident memory of sdtrace: seconds since the start, KiB.
    pub rss: Vec<(f64, u64)>,
    /// The most it ever was, in KiB.
    pub rss_peak_kib: u64,
    /// Processor time that sdtrace took, in seconds.
    pub cpu_seconds: f64,
    /// Of that, what it took for dumps of the whole ledger, which nobody asks for so often.
    pub dump_seconds: f64,
    /// How many of those there were.
    pub dumps: u64,
    /// Processor time by thread, by their names.
    pub thread_seconds: BTreeMap<String, f64>,
    /// Scrapes that were made.
    pub scrapes: u64,
    /// Questions, scrapes included, that sdtrace did not answer in its time.
    pub unanswered: u64,
    /// The most VMA states that were in use in sdtrace's table.
    pub rows_peak: u64,
    /// The most address spaces that were tracked at a time.
    pub address_spaces_peak: u64,
    /// The slowest scrape, in seconds.
    pub slowest_scrape_seconds: f64,
    /// Growth of the kernel's counters of those features.
    pub counters: Counters,
}

/// Differences between oracle and ledger that are told one by one.
const TOLD: usize = 32;
/// What a metric grew by, by the values of its labels, in the order of their names; without what did not grow.
#[must_use]
pub fn growth(before: &Scrape, after: &Scrape, name: &str) -> BTreeMap<String, u64> {
    let values = |scrape: &Scrape| -> BTreeMap<String, f64> {
        scrape
            .all(name, &[])
            .map(|(labels, value)| {
                let words: Vec<_> = labels.values().map(String::as_str).collect();
                (words.join("/"), value)
            })
            .collect()
    };
    let earlier = values(before);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters are whole and far below 2^53; one that fell counts as 0"
    )]
    values(after)
        .into_iter()
        .map(|(labels, value)| {
            let grown = value - earlier.get(&labels).copied().unwrap_or(0.0);
            (labels, grown.max(0.0) as u64)
        })
        .filter(|(_, grown)| *grown > 0)
        .collect()
}

impl Sdtrace {
    /// From the scrapes at the beginning and at the end.
    #[must_use]
    pub fn new(before: &Scrape, after: &Scrape, ledger: &Ledger) -> Self {
        let grown = |name| growth(before, after, name);
        Self {
            clears: grown("softdirty_clears_total"),
            epochs_ended: grown("softdirty_epochs_ended_total"),
            faults: grown("softdirty_faults_total"),
            verdicts: grown("softdirty_epochs_total"),
            missed_writes: grown("softdirty_missed_writes_total"),
            exposed_pages: grown("softdirty_exposed_pages_total"),
            hazards: grown("softdirty_hazards_total"),
            unknown: grown("softdirty_unknown_epochs_total"),
            dropped_pages: grown("softdirty_dropped_pages_total"),
            lost_records: grown("sdtrace_lost_records_total"),
            missed_probe_runs: grown("sdtrace_missed_probe_runs_total"),
            incomplete: ledger
                .incomplete
                .iter()
                .map(|reason| (reason.reason.clone(), reason.count))
                .collect(),
            ..Self::default()
        }
    }

    /// Holds the ledger's faults of the oracle's epochs against the pages that changed. Epochs before `from`, and the
    /// two newest, which are still being taken in, are left out. Returns the first that is not judged yet.
    pub fn hold_against(&mut self, ledger: &Ledger, pid: u32, recent: &[OracleEpoch], from: u64) -> u64 {
        let closed = recent.len().saturating_sub(2);
        let mut next = from;
        for told in recent[..closed].iter().filter(|epoch| epoch.number >= from) {
            next = told.number + 1;
            let mut epochs = ledger.space_of(pid).into_iter().flat_map(|space| &space.epochs);
            let Some(epoch) =
                epochs.rfind(|epoch| u64::from(epoch.number) == told.number && epoch.folded_vmas == 0)
            else {
                continue;
            };
            self.oracle_epochs_found += 1;
            for (start, end, changed) in &told.areas {
                let rows = epoch
                    .vmas
                    .iter()
                    .filter(|vma| (*start..*end).contains(&vma.start.0));
                let faults: u64 = rows.map(|vma| vma.faults).sum();
                self.oracle_changed_pages += changed;
                self.oracle_faults += faults;
                if faults != *changed && self.oracle_differences.len() < TOLD {
                    self.oracle_differences.push(format!(
                        "epoch {}: {changed} pages changed at {start:#x}, the ledger has {faults} faults",
                        told.number
                    ));
                }
            }
        }
        next
    }

    /// What it said, for the table.
    fn rows(&self) -> Vec<(String, String)> {
        let counts = [
            ("clears seen", &self.clears),
            ("epochs ended", &self.epochs_ended),
            ("faults", &self.faults),
            ("verdicts", &self.verdicts),
            ("missed writes told", &self.missed_writes),
            ("exposed pages", &self.exposed_pages),
            ("hazards", &self.hazards),
            ("unknown epochs", &self.unknown),
            ("dropped pages", &self.dropped_pages),
            ("lost records", &self.lost_records),
            ("skipped probe runs", &self.missed_probe_runs),
        ];
        let examined = &self.examined;
        let words = format!(
            "{} epochs, {} of them opened by a clear, {} of those unknown",
            examined.epochs, examined.of_clears, examined.unknown
        );
        let mut rows = vec![("examined".to_owned(), words)];
        rows.extend(counts.map(|(name, counts)| (name.to_owned(), format!("{counts:?}"))));
        let mut reasons: Vec<_> = examined.reasons.iter().collect();
        reasons.sort_by_key(|(_, epochs)| std::cmp::Reverse(**epochs));
        rows.extend(
            reasons
                .into_iter()
                .map(|(words, epochs)| (format!("{epochs:>7} epochs"), words.clone())),
        );
        rows
    }

    /// Clears with this result.
    #[must_use]
    pub fn clears_with(&self, result: &str) -> u64 {
        self.clears.get(result).copied().unwrap_or(0)
    }
}

impl Summary {
    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let features = match self.features {
            Some(Features::On) => "on",
            _ => "off",
        };
        let before = [
            (
                "kernel".to_owned(),
                format!(
                    "{}, {}, features {features}, {:.0} s",
                    self.kernel, self.attach, self.seconds
                ),
            ),
            (
                "tracker".to_owned(),
                format!(
                    "{} rounds, {} clears, {} pages read, {} soft-dirty; {:.1} s freezing, {:.1} s reading, {:.1} s with \
                     the oracle",
                    self.tracker.rounds,
                    self.tracker.clears,
                    self.tracker.pages_read,
                    self.tracker.soft_dirty_pages,
                    self.tracker.freeze_seconds,
                    self.tracker.read_seconds,
                    self.tracker.oracle_seconds
                ),
            ),
            (
                "oracle".to_owned(),
                format!(
                    "{} epochs, {} pages changed, {} missed {:?}",
                    self.oracle.epochs,
                    self.oracle.changed_pages,
                    self.oracle.missed(),
                    self.oracle.missed_pages
                ),
            ),
            (
                "oracle in the ledger".to_owned(),
                format!(
                    "{} epochs, {} pages changed, {} faults, {} differences",
                    self.sdtrace.oracle_epochs_found,
                    self.sdtrace.oracle_changed_pages,
                    self.sdtrace.oracle_faults,
                    self.sdtrace.oracle_differences.len()
                ),
            ),
        ];
        let after = [
            (
                "sdtrace's cost".to_owned(),
                format!(
                    "{} KiB at most, {:.1} s of processor time ({:.1} % of one CPU) and {:.1} s for {} dumps ({:?}), {} rows and {} address spaces at most, slowest of {} \
                     scrapes {:.3} s, {} unanswered",
                    self.host.rss_peak_kib,
                    self.host.cpu_seconds - self.host.dump_seconds,
                    100.0 * (self.host.cpu_seconds - self.host.dump_seconds) / self.seconds,
                    self.host.dump_seconds,
                    self.host.dumps,
                    self.host.thread_seconds,
                    self.host.rows_peak,
                    self.host.address_spaces_peak,
                    self.host.scrapes,
                    self.host.slowest_scrape_seconds,
                    self.host.unanswered
                ),
            ),
            (
                "the kernel's features".to_owned(),
                format!("{:?}", self.host.counters.0),
            ),
            ("stressors' rounds".to_owned(), format!("{:?}", self.stressors)),
        ];
        for (name, value) in before.into_iter().chain(self.sdtrace.rows()).chain(after) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<23}{value}");
        }
        for failure in &self.failures {
            let _ = writeln!(text, "FAILED: {failure}");
        }
        text
    }
}
