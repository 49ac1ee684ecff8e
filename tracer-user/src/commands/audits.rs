//! When sdtrace's own audit and verify run: on a period, when pages were moved, after a clear, and before a dump; one at a
//! time.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::own_audit::{Done, Job, Rotation, Schedule, Target, read};
use super::verify::{self, Order, Settings, Verifier};
use crate::detectors::verify::Reading;
use crate::export::metrics::reading::{AuditCounts, VerifyCounts};
use crate::ledger::dump::Dump;

/// How long whoever asks for a dump waits for the audit.
const BEFORE_A_DUMP: Duration = Duration::from_secs(2);
/// How long at most, if the audit is held up.
const LONGEST_WAIT: Duration = Duration::from_millis(3_500);
/// Reading once in a period may take this share of it: one part in so many. What is left comes first the next time.
const SHARE: u32 = 20;
/// The longest look at what was moved.
const LONGEST: Duration = Duration::from_secs(10);
/// Verify may take this share of a period, or this time at a dump and after a clear.
const VERIFY_SHARE: u32 = 10;
const VERIFY_ON_DEMAND: Duration = Duration::from_secs(1);

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
    /// An epoch has begun: its sample only.
    Sample,
    /// Pages were moved over others: those only.
    Verify,
    /// Somebody waits for a dump: everything.
    Dump,
}

/// An audit that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) read: Done,
    /// What verify found.
    pub(super) readings: Vec<Reading>,
    /// Address spaces were read from their beginning on.
    pub(super) audited: bool,
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
    sample_again: bool,
    /// What verify is asked for, if it is; and its state, which the one that is running has.
    settings: Option<Settings>,
    verifier: Option<Verifier>,
    /// Who waits for a dump that no running audit was started for.
    waiting: Vec<oneshot::Sender<Dump>>,
    answer_by: Option<Instant>,
    pub(super) counts: AuditCounts,
    pub(super) verify_counts: VerifyCounts,
}

impl Audits {
    pub(super) fn new(schedule: Schedule, settings: Settings) -> Self {
        let settings = (settings.pages > 0).then_some(settings);
        Self {
            schedule: (!schedule.period.is_zero()).then_some(schedule),
            settings,
            verifier: settings.map(Verifier::new),
            ..Self::default()
        }
    }

    /// Whether there is neither an audit nor verify.
    pub(super) const fn is_off(&self) -> bool {
        self.schedule.is_none() && self.settings.is_none()
    }

    /// Whether page tables are audited.
    pub(super) const fn audits(&self) -> bool {
        self.schedule.is_some()
    }

    /// Whether contents are verified.
    pub(super) const fn verifies(&self) -> bool {
        self.settings.is_some()
    }

    /// Whether verify has no sample of this epoch, as far as is known now.
    pub(super) fn wants_sample(&self, birth: u64, epoch: u32) -> bool {
        self.verifier
            .as_ref()
            .is_some_and(|verifier| verifier.wants(birth, epoch))
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

    /// Starts one of these targets, in ascending order of birth, unless another is running. `orders` are those of verify,
    /// in the same order.
    pub(super) fn start(&mut self, demand: Demand, targets: Vec<Target>, orders: Vec<Order>) {
        if self.is_off() {
            return;
        }
        if self.running.is_some() {
            self.verify_again |= demand == Demand::Verify;
            self.sample_again |= demand == Demand::Sample;
            return;
        }
        let now = Instant::now();
        let job = Job {
            content: self.content(demand, orders),
            ..self.audit(demand, targets, now)
        };
        if matches!(demand, Demand::Periodic | Demand::Dump) {
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

    fn audit(&self, demand: Demand, targets: Vec<Target>, now: Instant) -> Job {
        let mut job = Job {
            targets: Vec::new(),
            only_verify: false,
            budget: 0,
            until: now,
            content: None,
        };
        let Some(schedule) = self.schedule else { return job };
        match demand {
            Demand::Periodic => {
                job.targets = self.rotation.order(targets);
                job.budget = schedule.budget;
                job.until = now + schedule.period / SHARE;
            }
            Demand::Sample => {}
            Demand::Verify => {
                job.targets = targets;
                job.targets.retain(|target| !target.verify.is_empty());
                job.only_verify = true;
                job.budget = schedule.budget;
                job.until = now + LONGEST;
            }
            Demand::Dump => {
                job.targets = targets;
                job.budget = u64::MAX;
                job.until = now + BEFORE_A_DUMP;
            }
        }
        job
    }

    fn content(&mut self, demand: Demand, orders: Vec<Order>) -> Option<verify::Job> {
        let period = self.schedule.map(|schedule| schedule.period);
        let (compare, time) = match demand {
            Demand::Verify => return None,
            Demand::Periodic => (true, period.unwrap_or(VERIFY_ON_DEMAND) / VERIFY_SHARE),
            Demand::Sample => (false, VERIFY_ON_DEMAND),
            Demand::Dump => (true, VERIFY_ON_DEMAND),
        };
        Some(verify::Job {
            verifier: self.verifier.take()?,
            orders,
            compare,
            time,
        })
    }

    /// Ready when the one that is running has ended.
    pub(super) async fn done(&mut self) -> Finished {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let mut read = (&mut running.reading).await.unwrap_or_else(|error| {
            tracing::error!(%error, "an audit of our own broke off");
            Done::default()
        });
        let running = self.running.take();
        self.counts.add(&read.counts);
        let content = read.content.take();
        let readings = content.map(|content| {
            self.verify_counts = content.verifier.counts;
            self.verifier = Some(content.verifier);
            content.readings
        });
        if self.verifier.is_none() {
            self.verifier = self.settings.map(Verifier::new);
        }
        if self.waiting.is_empty() {
            self.answer_by = None;
        }
        let demand = running.as_ref().map(|running| running.demand);
        if demand == Some(Demand::Periodic) {
            self.rotation.note(&read.results);
        }
        Finished {
            read,
            readings: readings.unwrap_or_default(),
            audited: matches!(demand, Some(Demand::Periodic | Demand::Dump)),
            answers: running.map_or_else(Vec::new, |running| running.answers),
        }
    }

    /// Whether pages were moved while another audit was running; asked once.
    pub(super) fn take_verify_again(&mut self) -> bool {
        std::mem::take(&mut self.verify_again)
    }

    /// Whether an epoch began while another audit was running; asked once.
    pub(super) fn take_sample_again(&mut self) -> bool {
        std::mem::take(&mut self.sample_again)
    }
}
