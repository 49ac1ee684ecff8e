//! Everything that is read at a scrape.

use tracer_common::counters::{Counter, Stage};

use super::process::ProcessUse;
use super::workloads::TopWorkloads;
use crate::detectors;
use crate::export::page::feed::FeedCounts;
use crate::ledger::Summary;
use crate::probes::counters::CounterSums;
use crate::probes::missed::MissedRuns;
use crate::probes::verdict::{Mechanism, ProbeVerdict, Verdict};

/// How full a map of the kernel side is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUsage {
    /// Name, as the label has it.
    pub map: &'static str,
    /// Entries in use.
    pub entries: u64,
    /// Entries that there are.
    pub capacity: u64,
}

/// How far sdtrace's own readings of pagemap came, by address space and turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditCounts {
    /// Read to the end.
    pub complete: u64,
    /// Left for the next turn.
    pub unfinished: u64,
    /// The process was gone, or must not be read.
    pub gone: u64,
    /// Bytes of address space.
    pub bytes: u64,
    /// Time.
    pub nanoseconds: u64,
}

impl AuditCounts {
    /// Adds another reading.
    pub fn add(&mut self, other: &Self) {
        self.complete += other.complete;
        self.unfinished += other.unfinished;
        self.gone += other.gone;
        self.bytes += other.bytes;
        self.nanoseconds += other.nanoseconds;
    }
}

/// What verify read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyCounts {
    /// Samples that were drawn, one for each epoch of an address space.
    pub drawn: u64,
    /// Samples without a page: there was no clean one, or nothing more might be read.
    pub empty: u64,
    /// Samples that the process was gone for.
    pub gone: u64,
    /// Attempts that there was no room for.
    pub no_room: u64,
    /// Pages that were ever sampled.
    pub sampled_pages: u64,
    /// Pages in the samples of now.
    pub kept_pages: u64,
    /// Bytes of memory.
    pub bytes: u64,
    /// Time.
    pub nanoseconds: u64,
}

/// What became of the lines of the incident log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoggedIncidents {
    /// Written.
    pub written: u64,
    /// Not written, because too many were waiting.
    pub dropped: u64,
    /// Not written, because the file could not be written.
    pub failed: u64,
}

/// What stood where at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The counters of the programs.
    pub counters: CounterSums,
    /// The ledger in numbers.
    pub ledger: Summary,
    /// The detectors in numbers.
    pub detection: detectors::Summary,
    /// Lines of the incident log.
    pub incidents: LoggedIncidents,
    /// sdtrace's own readings of pagemap.
    pub audits: AuditCounts,
    /// What verify read.
    pub verify: VerifyCounts,
    /// What became of each probe.
    pub verdicts: Vec<ProbeVerdict>,
    /// Runs that the kernel skipped.
    pub missed: Vec<MissedRuns>,
    /// The maps.
    pub maps: Vec<MapUsage>,
    /// Records from the ring buffer that could not be decoded.
    pub undecodable: u64,
    /// Whether return probes measure how long faults take.
    pub fault_times_measured: bool,
    /// Processes that could not be read when sdtrace looked for armed ones at its start.
    pub unreadable_at_start: u64,
    /// The account by workload, if it was asked for.
    pub workloads: Option<TopWorkloads>,
    /// What the process takes, if /proc tells.
    pub process: Option<ProcessUse>,
    /// The pages that are open.
    pub feed: FeedCounts,
    /// Whether write faults are watched now.
    pub writes_watched: bool,
    /// How often that was begun anew.
    pub write_watch_attaches: u64,
    /// Whether `/readyz` says yes.
    pub ready: bool,
}

impl Reading {
    /// A stage's count.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> u64 {
        self.counters.get(Counter::Stage(stage))
    }

    /// A reading that has something of everything, for the documentation.
    #[must_use]
    pub fn example() -> Self {
        Self {
            verdicts: vec![ProbeVerdict {
                probe: "do_wp_page".to_owned(),
                required: true,
                verdict: Verdict::Attached {
                    mechanism: Mechanism::Fentry,
                },
                fell_back_because: None,
            }],
            missed: vec![MissedRuns {
                program: "do_wp_page_fentry".to_owned(),
                stage: "recursion".to_owned(),
                count: Some(0),
            }],
            maps: vec![MapUsage {
                map: "rows",
                entries: 0,
                capacity: 0,
            }],
            fault_times_measured: true,
            workloads: Some(TopWorkloads::example()),
            process: Some(ProcessUse::default()),
            ..Self::default()
        }
    }
}
