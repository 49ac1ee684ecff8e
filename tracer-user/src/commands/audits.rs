//! When sdtrace's own audit runs: on a period, when pages were moved, and before a dump; one at a time.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::own_audit::{Done, Job, Rotation, Schedule, Target, read};
use crate::export::metrics::reading::AuditCounts;
use crate::ledger::dump::Dump;

/// How long whoever asks for a dump waits for the audit.
const BEFORE_A_DUMP: Duration = Duration::from_secs(2);
/// How long at most, if the audit is held up.
const LONGEST_WAIT: Duration = Duration::from_millis(3_500);
/// Reading once in a period may take this share of it: one part in so many. What is left comes first the next time.
const SHARE: u32 = 20;
/// The longest look at what was moved.
const LONGEST: Duration = Duration::from_secs(10);

/// Ready at that time; without one, never.
pub(super) async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Why an audit is started, from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Demand {
    /// Its time has come.
    Periodic,
    /// Pages were moved over others: those only.
    Verify,
    /// Somebody waits for a dump: everything.
    Dump,
}

/// An audit that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) read: Done,
    pub(super) only_verify: bool,
    /// Who waited for it.
    pub(super) answers: Vec<oneshot::Sender<Dump>>,
}

#[derive(Debug)]
struct Running {
    demand: Demand,
    reading: JoinHandle<Done>,
    answers: Vec<oneshot::Sender<Dump>>,
}

/// The audits of our own.
#[derive(Debug, Default)]
pub(super) struct Audits {
    schedule: Option<Schedule>,
    rotation: Rotation,
    running: Option<Running>,
    started: Option<Instant>,
    /// Demanded while another one was running.
    verify_again: bool,
    /// Who waits for a dump that no running audit was started for.
    waiting: Vec<oneshot::Sender<Dump>>,
    answer_by: Option<Instant>,
    pub(super) counts: AuditCounts,
}

impl Audits {
    pub(super) fn new(schedule: Schedule) -> Self {
        Self {
            schedule: (!schedule.period.is_zero()).then_some(schedule),
            ..Self::default()
        }
    }

    /// Whether there are none.
    pub(super) const fn is_off(&self) -> bool {
        self.schedule.is_none()
    }

    /// When it is time for the next one, if one is to come.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let schedule = self.schedule.filter(|_| self.running.is_none())?;
        Some(
            self.started
                .map_or_else(Instant::now, |started| started + schedule.period),
        )
    }

    /// Remembers who waits for a dump.
    pub(super) fn wait(&mut self, answer: oneshot::Sender<Dump>) {
        self.waiting.push(answer);
        self.answer_by
            .get_or_insert_with(|| Instant::now() + LONGEST_WAIT);
    }

    /// Whether somebody waits for a dump that no running audit was started for.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// When those who wait get their answer even if no audit has ended: a target can hold its lock for long.
    pub(super) const fn answer_by(&self) -> Option<Instant> {
        self.answer_by
    }

    /// Everybody who waits, for an answer now.
    pub(super) fn take_waiting(&mut self) -> Vec<oneshot::Sender<Dump>> {
        self.answer_by = None;
        let mut answers = std::mem::take(&mut self.waiting);
        if let Some(running) = &mut self.running {
            answers.append(&mut running.answers);
        }
        answers
    }

    /// Starts one of these targets, in ascending order of birth, unless another is running.
    pub(super) fn start(&mut self, demand: Demand, targets: Vec<Target>) {
        let Some(schedule) = self.schedule else { return };
        if self.running.is_some() {
            self.verify_again |= demand == Demand::Verify;
            return;
        }
        let now = Instant::now();
        let job = match demand {
            Demand::Periodic => Job {
                targets: self.rotation.order(targets),
                only_verify: false,
                budget: schedule.budget,
                until: now + schedule.period / SHARE,
            },
            Demand::Verify => Job {
                targets: targets
                    .into_iter()
                    .filter(|target| !target.verify.is_empty())
                    .collect(),
                only_verify: true,
                budget: schedule.budget,
                until: now + LONGEST,
            },
            Demand::Dump => Job {
                targets,
                only_verify: false,
                budget: u64::MAX,
                until: now + BEFORE_A_DUMP,
            },
        };
        if demand != Demand::Verify {
            self.started = Some(now);
        }
        self.running = Some(Running {
            demand,
            reading: tokio::task::spawn_blocking(move || read(job)),
            answers: if demand == Demand::Dump {
                std::mem::take(&mut self.waiting)
            } else {
                Vec::new()
            },
        });
    }

    /// Ready when the one that is running has ended.
    pub(super) async fn done(&mut self) -> Finished {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let read = (&mut running.reading).await.unwrap_or_else(|error| {
            tracing::error!(%error, "an audit of our own broke off");
            Done::default()
        });
        let running = self.running.take();
        self.counts.add(&read.counts);
        if self.waiting.is_empty() {
            self.answer_by = None;
        }
        let demand = running.as_ref().map(|running| running.demand);
        if demand == Some(Demand::Periodic) {
            self.rotation.note(&read.results);
        }
        Finished {
            read,
            only_verify: demand == Some(Demand::Verify),
            answers: running.map_or_else(Vec::new, |running| running.answers),
        }
    }

    /// Whether pages were moved while another audit was running; asked once.
    pub(super) fn take_verify_again(&mut self) -> bool {
        std::mem::take(&mut self.verify_again)
    }
}
