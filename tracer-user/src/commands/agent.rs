//! The task that owns the probes and the ledger: it takes in records, looks at the rows, and answers the
//! exporters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tracer_common::counters::{Counter, Stage};
use tracer_common::records::Record;

use super::audits::{Audits, Demand, due};
use super::fault_log::log_fault;
use super::health::unavailable;
use super::incident_log::IncidentLog;
use super::own_audit::Schedule;
use super::traced::{Kernel, records_to_wait_for};
use super::verify::Settings;
use crate::detectors::{self, Detectors, LedgerView as _, Sample};
use crate::export::api::recent::Recent;
use crate::export::metrics::Metrics;
use crate::export::metrics::process::ProcessUse;
use crate::export::metrics::reading::{MapUsage, Reading};
use crate::export::metrics::workloads::Workloads;
use crate::export::page::changes::Changes;
use crate::export::pulse::Pulse;
use crate::export::source::{Owner, Request};
use crate::ledger::dump::Dump;
use crate::ledger::{Clock as _, Ledger, Limits, Losses, Surroundings};
use crate::probes::demand::{LINGER, WatchWrites, WriteDemand};
use crate::probes::missed::MissedRuns;
use crate::probes::verdict::Mechanism;
use crate::probes::{PageOwner, Probes, mechanism_of};
use crate::processes::{Procfs, SystemClock};

/// How often all rows are looked at. Those of address spaces that were cleared are looked at when the record comes.
const PERIOD: Duration = Duration::from_secs(1);
/// How often epochs are finished.
const SETTLING: Duration = Duration::from_millis(500);
/// How often skipped runs of probes are read, at most, while epochs end.
const MISSED_PERIOD: Duration = Duration::from_millis(100);
/// Taking in records may take this share of one CPU: one part in so many.
const SHARE: u32 = 20;
/// The longest pause after a look. Eight clears of one address space within it make two epochs share a cell.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// Which rows a turn looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// All: once a second, and before anything is told.
    All,
    /// Those of address spaces that were cleared since.
    Cleared,
}

/// Owns the probes and the ledger.
pub(super) struct Agent {
    pub(super) kernel: Kernel,
    pub(super) ledger: Ledger,
    metrics: Arc<Metrics>,
    surroundings: Surroundings,
    fault_times_measured: bool,
    records: Vec<Record>,
    missed: Vec<MissedRuns>,
    /// When the reading of these began, and when that was by the other clock.
    missed_at_ns: u64,
    missed_at: Option<Instant>,
    /// Write faults under way before the newest records were taken in: what has left since was told by one of them.
    writes_under_way: Vec<(u64, u32)>,
    pulse: Pulse,
    workloads: Option<Workloads>,
    pub(super) detectors: Detectors,
    incident_log: IncidentLog,
    /// The newest incidents, for the API.
    pub(super) recent: Recent,
    /// When epochs were finished last.
    settled_at: Option<Instant>,
    pub(super) audits: Audits,
    /// Probes that are needed and not attached.
    pub(super) unavailable: u64,
    /// When write faults are watched.
    pub(super) demand: WriteDemand,
    pub(super) changes: Changes,
}

impl Agent {
    pub(super) fn new(
        probes: Probes,
        limits: Limits,
        fault_return: bool,
        metrics: Arc<Metrics>,
        surroundings: Surroundings,
    ) -> Self {
        let mechanism = mechanism_of(probes.verdicts(), "do_wp_page");
        Self {
            fault_times_measured: mechanism == Some(Mechanism::Fentry) || fault_return,
            unavailable: unavailable(probes.verdicts()),
            kernel: Kernel::new(probes),
            ledger: Ledger::new(limits),
            metrics,
            surroundings,
            records: Vec::new(),
            missed: Vec::new(),
            writes_under_way: Vec::new(),
            missed_at_ns: 0,
            missed_at: None,
            pulse: Pulse::default(),
            workloads: None,
            detectors: Detectors::new(detectors::Limits::default()),
            incident_log: IncidentLog::default(),
            recent: Recent::default(),
            settled_at: None,
            audits: Audits::default(),
            demand: WriteDemand::new(WatchWrites::Always, LINGER),
            changes: Changes::default(),
        }
    }

    /// Reads the pagemap of tracked processes on this schedule, and verifies contents as these settings say.
    pub(super) fn with_own_audit(mut self, schedule: Schedule, verify: Settings) -> Self {
        self.audits = Audits::new(schedule, verify);
        self
    }

    /// Watches write faults on this demand, where that can be ended and begun again.
    pub(super) fn with_demand(mut self, demand: WriteDemand) -> Self {
        if self.kernel.probes.can_stop_watching_writes() {
            self.demand = demand;
        } else {
            tracing::warn!(
                "this kernel does not let write faults go unwatched: they are watched always, or never"
            );
        }
        self
    }

    /// Writes incidents there.
    pub(super) fn with_incident_log(mut self, log: IncidentLog) -> Self {
        self.incident_log = log;
        self
    }

    /// Keeps account by workload, with series for this many.
    pub(super) fn with_top_workloads(mut self, most: Option<u16>) -> Self {
        self.workloads = most.map(|most| Workloads::new(usize::from(most)));
        if self.workloads.is_some() {
            self.ledger.keep_departed();
        }
        self
    }

    /// Works until `end` is ready; then takes in what is left and says how things stand.
    ///
    /// # Errors
    /// If the ring buffer cannot be waited for.
    pub(super) async fn work(mut self, mut owner: Owner, end: impl Future<Output = ()>) -> Result<Reading> {
        let waiting =
            records_to_wait_for(&self.kernel.probes).context("the ring buffer cannot be waited for")?;
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.pulse = owner.pulse.clone();
        self.changes = Changes::new(owner.feed.clone());
        self.pulse.beat(Instant::now());
        self.tell_readiness(&owner.readiness);
        // What was lost before anything is tracked concerns no epoch.
        self.read_missed();
        self.detectors.note_losses(&self.sample(self.losses()));
        let mut end = std::pin::pin!(end);
        loop {
            let (due_at, answer_by) = (self.audits.due_at(), self.audits.answer_by());
            tokio::select! {
                biased;
                () = &mut end => break,
                Some(request) = owner.requests.recv() => self.answer(request),
                done = self.audits.done() => self.audited(done),
                // What comes once a second comes before records, which can be there always.
                _ = period.tick() => {
                    self.turn(Rows::All);
                    self.sweep();
                    self.tell_readiness(&owner.readiness);
                }
                () = due(due_at) => self.start_audit(Demand::Periodic),
                () = due(answer_by) => self.answer_without_audit(),
                ready = waiting.readable() => {
                    ready.context("the ring buffer cannot be waited for")?.clear_ready();
                    self.turn_and_rest(&mut owner).await;
                }
            }
        }
        self.read_missed();
        self.turn(Rows::All);
        self.incident_log.finish();
        Ok(self.reading())
    }

    /// A turn, then a pause in which only questions are answered: a tracker that clears in a tight loop must not
    /// make us look at the rows all the time.
    async fn turn_and_rest(&mut self, owner: &mut Owner) {
        let start = Instant::now();
        self.turn(Rows::Cleared);
        let pause = (start.elapsed() * (SHARE - 1)).min(LONGEST_PAUSE);
        let rest = tokio::time::sleep(pause);
        let mut rest = std::pin::pin!(rest);
        loop {
            tokio::select! {
                () = &mut rest => return,
                Some(request) = owner.requests.recv() => self.answer(request),
                done = self.audits.done() => self.audited(done),
            }
        }
    }

    /// Has the detectors draw their conclusions, and tells them.
    pub(super) fn detect(&mut self, mut losses: Losses, now_ns: u64) {
        let due = self.settled_at.is_none_or(|at| at.elapsed() >= SETTLING);
        // An epoch is finished only after the skipped runs of probes have been read. The oftener they are read, the fewer
        // epochs does a skipped run concern.
        let old = self.missed_at.is_none_or(|at| at.elapsed() >= MISSED_PERIOD);
        if (due || old) && self.detectors.is_anything_over(now_ns) {
            self.read_missed();
            losses = self.losses();
        }
        self.detectors.note_losses(&self.sample(losses));
        if due {
            self.settled_at = Some(Instant::now());
            self.detectors.settle(&self.ledger, now_ns);
        }
        for (birth, epoch) in self.detectors.touched() {
            self.changes.epoch(birth, epoch);
        }
        for incident in self.detectors.incidents(&self.ledger, &Procfs, &SystemClock) {
            self.incident_log.log(&incident);
            self.changes.incident(&incident);
            self.recent.note(incident);
        }
        self.tell_pages();
        if self.audits.audits() && !self.detectors.take_moved().is_empty() {
            self.start_audit(Demand::Verify);
        }
    }

    pub(super) fn read_missed(&mut self) {
        self.missed_at_ns = SystemClock.monotonic_ns();
        self.missed_at = Some(Instant::now());
        self.missed = self.kernel.probes.missed_runs();
    }

    /// What was lost so far, for the detectors.
    pub(super) fn sample(&self, losses: Losses) -> Sample {
        let missing = ["missing_records", "missing_exits", "inconsistent"];
        let ledger = self.ledger.incomplete();
        Sample {
            missing_records: ledger
                .iter()
                .filter(|reason| missing.contains(&reason.reason))
                .map(|reason| reason.count)
                .sum(),
            stages: losses.stages,
            undecodable: losses.undecodable,
            missed_runs: losses.missed_runs,
            missed_runs_at_ns: self.missed_at_ns,
            unavailable_probes: self.unavailable,
            uncounted_probes: losses.uncounted_probes,
            watched_since_ns: self.demand.watched_since_ns(),
            writes_under_way: self.writes_under_way.clone(),
        }
    }

    /// Gives records of pages back whose epochs are over.
    fn sweep(&mut self) {
        let ledger = &self.ledger;
        let newest: HashMap<u64, u32> = ledger.live().into_iter().collect();
        if let Err(error) = self.kernel.probes.sweep_pages(|birth| match newest.get(&birth) {
            Some(&newest) => PageOwner::Live(newest),
            None if ledger.knows(birth) => PageOwner::Ended,
            None => PageOwner::Unknown,
        }) {
            tracing::warn!(
                error = format!("{error:#}"),
                "records of pages are kept for another try"
            );
        }
    }

    /// Takes in all waiting records, then looks at the rows.
    pub(super) fn turn(&mut self, rows: Rows) {
        let mut records = std::mem::take(&mut self.records);
        self.writes_under_way = self.kernel.probes.writes_under_way();
        self.kernel.probes.drain(&mut records);
        self.watch_on_demand(&records);
        let now_ns = SystemClock.monotonic_ns();
        let mut cleared = false;
        for record in &records {
            match record {
                Record::Clear(clear) => {
                    cleared = true;
                    self.metrics.count_clear(clear);
                    self.changes.epoch(clear.birth, clear.epoch);
                }
                Record::Track(track) => self.changes.space(track.birth),
                Record::Exit(exit) => self.changes.epoch(exit.birth, exit.epoch),
                Record::Fault(fault) => log_fault(fault),
                Record::Exec(_)
                | Record::Pages(_)
                | Record::Vma(_)
                | Record::Range(_)
                | Record::Interest(_) => {}
            }
            self.ledger.apply(record, &Procfs, now_ns);
        }
        let losses = self.losses();
        self.ledger.note_losses(losses.clone(), now_ns);
        match rows {
            Rows::All => {
                for error in self.ledger.look(&mut self.kernel, &Procfs, now_ns) {
                    tracing::warn!(error = format!("{error:#}"), "a row is kept for another try");
                }
            }
            Rows::Cleared => self.ledger.look_at_cleared(&self.kernel, now_ns),
        }
        // After the look: the detectors ask which VMAs a clear met, and rows tell.
        for record in records.drain(..) {
            self.detectors.apply(&record, &self.ledger);
        }
        self.records = records;
        self.detect(losses, now_ns);
        if cleared && self.audits.verifies() {
            self.start_audit(Demand::Sample);
        }
        let finished = self.detectors.take_finished();
        if let Some(workloads) = &mut self.workloads {
            for (birth, verdict) in finished {
                let details = self.ledger.describe(birth).and_then(|space| space.details);
                workloads.finished(details.as_ref().map(|details| details.cgroup.as_str()), verdict);
            }
            for departed in self.ledger.take_departed() {
                workloads.depart(&departed);
            }
        }
        self.pulse.beat(Instant::now());
    }

    pub(super) fn losses(&self) -> Losses {
        let sums = self.kernel.probes.counters().sums();
        let late = self.kernel.probes.pages().lost();
        let stages = Stage::ALL.map(|stage| {
            let more = if stage == Stage::PagesStale { late } else { 0 };
            (stage, sums.get(Counter::Stage(stage)) + more)
        });
        let missed = || self.missed.iter().filter(|missed| missed.concerns_epochs());
        Losses {
            stages: stages.into_iter().collect(),
            undecodable: self.kernel.probes.undecoded(),
            missed_runs: missed().filter_map(|missed| missed.count).sum(),
            uncounted_probes: missed().filter(|missed| missed.count.is_none()).count() as u64,
        }
    }

    fn answer(&mut self, request: Request) {
        // A file of /proc for each program: too much for every turn.
        let reads_all = !matches!(request, Request::Look(_) | Request::Map(..));
        if reads_all {
            self.read_missed();
        }
        // For a look: clears and findings of this moment; what other rows counted may be a second old.
        let looks = matches!(request, Request::Look(_));
        self.turn(if looks { Rows::Cleared } else { Rows::All });
        if let Some(workloads) = &mut self.workloads {
            workloads.update(self.ledger.tallies());
        }
        // Whoever asked may have gone; that is no matter.
        match request {
            Request::Reading(answer) => drop(answer.send(self.reading())),
            Request::Dump(answer) if self.audits.is_off() => drop(answer.send(self.dump())),
            Request::Map(id, answer) => drop(answer.send(self.map(id))),
            Request::Dump(answer) => {
                self.audits.wait(answer);
                self.start_audit(Demand::Dump);
            }
            Request::Look(look) => look.answer(&self.view()),
        }
    }

    fn reading(&self) -> Reading {
        let ledger = self.ledger.summary();
        let limits = self.kernel.probes.limits();
        let maps = vec![
            MapUsage {
                map: "address_spaces",
                entries: ledger.live.iter().sum(),
                capacity: u64::from(limits.address_spaces),
            },
            MapUsage {
                map: "rows",
                entries: ledger.rows,
                capacity: u64::from(limits.rows),
            },
        ];
        Reading {
            counters: self.kernel.probes.counters().sums(),
            ledger,
            verdicts: self.kernel.probes.verdicts().to_vec(),
            missed: self.missed.clone(),
            maps,
            undecodable: self.kernel.probes.undecoded(),
            fault_times_measured: self.fault_times_measured,
            unreadable_at_start: self.kernel.probes.unreadable_at_start as u64,
            workloads: self.workloads.as_ref().map(Workloads::top),
            detection: self.detectors.summary(),
            incidents: self.incident_log.counts(),
            audits: self.audits.counts,
            verify: self.audits.verify_counts,
            process: ProcessUse::now(),
            feed: self.changes.feed().counts(),
            writes_watched: self.kernel.probes.can_watch_writes() && self.demand.is_watched(),
            write_watch_attaches: self.demand.attaches(),
            ready: false,
        }
    }

    pub(super) fn dump(&self) -> Dump {
        let unlinked = self
            .kernel
            .probes
            .counters()
            .sums()
            .get(Counter::Stage(Stage::Unlinked));
        let mut dump = self.ledger.dump(
            self.kernel.probes.limits().rows,
            unlinked,
            &self.surroundings,
            &SystemClock,
        );
        for space in &mut dump.address_spaces {
            for epoch in &mut space.epochs {
                epoch.detection = self.detectors.detection(space.birth, epoch.number);
            }
        }
        dump
    }
}
