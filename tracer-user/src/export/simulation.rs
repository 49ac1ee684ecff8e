//! The ledger, the detectors and the server without a kernel: records and rows come from a kernel in miniature. It shows
//! how the exporters behave with thousands of address spaces, and serves where no kernel can be traced. What it says about
//! any real process is nothing.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::api::recent::Recent;
use super::api::view::View;
use super::metrics::reading::{MapUsage, Reading};
use super::page::changes::Changes;
use super::page::map::{Known, STATES};
use super::source::{Owner, Readiness, Request};
use crate::detectors::{self, Detectors, Mapping, Mappings, Sample};
use crate::ledger::simulated::{Kernel, Shared};
use crate::ledger::{Clock as _, Ledger, Limits, Surroundings};
use crate::probes::Written;
use crate::probes::counters::CounterSums;

/// How often the rows are looked at, as in the daemon.
const PERIOD: Duration = Duration::from_secs(1);
/// The ring buffer never fills.
const RING: usize = usize::MAX;

/// How large the simulated machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Tracked address spaces.
    pub address_spaces: usize,
    /// VMAs of each.
    pub vmas: usize,
    /// Epochs of each: as many clears.
    pub epochs: u32,
}

/// A daemon whose kernel is simulated.
pub struct Simulation {
    kernel: Shared,
    ledger: Ledger,
    detectors: Detectors,
    recent: Recent,
    changes: Changes,
}

/// Simulated processes have no files.
struct NoMappings;

impl Mappings for NoMappings {
    fn mappings(&self, _: u32, _: u64) -> Option<Vec<Mapping>> {
        None
    }
}

impl Simulation {
    /// A machine on which each address space was cleared and written a few times. One in ten has exposed pages in each
    /// epoch, one in a hundred is cleared by a second tracker in between.
    #[must_use]
    pub fn new(size: Size) -> Self {
        let rows = size
            .address_spaces
            .saturating_mul(size.vmas)
            .saturating_mul(3)
            .max(1024);
        let kernel = Kernel::new(u32::try_from(rows).unwrap_or(u32::MAX), RING);
        let mut simulation = Self {
            kernel: Shared(Rc::new(RefCell::new(kernel))),
            ledger: Ledger::new(Limits::default()),
            detectors: Detectors::new(detectors::Limits::default()),
            recent: Recent::default(),
            changes: Changes::default(),
        };
        simulation.detectors.note_losses(&Sample::default());
        for _ in 0..size.address_spaces {
            simulation.kernel.0.borrow_mut().spawn(size.vmas.max(1));
        }
        for epoch in 1..=size.epochs {
            for at in 0..size.address_spaces {
                simulation.one_epoch(at, epoch);
            }
            simulation.kernel.0.borrow_mut().pass(1_000_000_000);
            simulation.turn(true);
        }
        simulation
    }

    fn one_epoch(&mut self, at: usize, epoch: u32) {
        let mut kernel = self.kernel.0.borrow_mut();
        let tracker = if at % 100 == 7 && epoch.is_multiple_of(3) {
            2
        } else {
            1
        };
        kernel.clear(at, tracker);
        for vma in 0..3 {
            kernel.fault(at, vma, false, true);
        }
        if at % 10 == 3 {
            kernel.expose(at, at % 50 + 1);
        }
    }

    /// Lets a process be cleared by its tracker, as the next pre-dump would.
    pub fn clear(&mut self, at: usize) {
        self.kernel.0.borrow_mut().clear(at, 1);
    }

    /// Takes in what has happened, as the daemon's loop does: with a look at all rows, or at those of what was cleared.
    pub fn turn(&mut self, all_rows: bool) {
        let now_ns = self.kernel.monotonic_ns();
        let records = self.kernel.0.borrow_mut().take_records(usize::MAX);
        let mut kernel = self.kernel.clone();
        for record in &records {
            self.ledger.apply(record, &self.kernel, now_ns);
        }
        if all_rows {
            let errors = self.ledger.look(&mut kernel, &self.kernel, now_ns);
            debug_assert!(errors.is_empty(), "{errors:?}");
        } else {
            self.ledger.look_at_cleared(&self.kernel, now_ns);
        }
        for record in &records {
            self.detectors.apply(record, &self.ledger);
        }
        self.detectors.note_losses(&Sample {
            missed_runs: 0,
            ..Sample::default()
        });
        self.detectors.settle(&self.ledger, now_ns);
        for (birth, epoch) in self.detectors.touched() {
            self.changes.epoch(birth, epoch);
        }
        for incident in self.detectors.incidents(&self.ledger, &NoMappings, &self.kernel) {
            self.changes.incident(&incident);
            self.recent.note(incident);
        }
        let mut changes = std::mem::take(&mut self.changes);
        changes.tell(&self.view(), Instant::now());
        self.changes = changes;
    }

    fn view(&self) -> View<'_> {
        View {
            ledger: &self.ledger,
            detectors: &self.detectors,
            incidents: &self.recent,
            clock: &self.kernel,
        }
    }

    /// What the agent knows, but for the pages that were written, which the kernel side counts.
    fn map(&self, id: u64) -> Option<Known> {
        let (newest, more_vmas) = self.ledger.newest(id, STATES)?;
        let detection = self.detectors.detection(newest.birth, newest.epoch);
        Some(Known {
            newest,
            more_vmas,
            written: Written::default(),
            detection,
        })
    }

    /// Answers a question, as the daemon's owner of the ledger does.
    pub fn answer(&mut self, request: Request) {
        self.turn(!matches!(request, Request::Look(_)));
        // Whoever asked may have gone; that is no matter.
        match request {
            Request::Reading(answer) => drop(answer.send(self.reading())),
            Request::Dump(answer) => {
                let dump = self.ledger.dump(0, 0, &Surroundings::default(), &self.kernel);
                drop(answer.send(dump));
            }
            Request::Map(id, answer) => drop(answer.send(self.map(id))),
            Request::Look(look) => look.answer(&self.view()),
        }
    }

    fn reading(&self) -> Reading {
        let ledger = self.ledger.summary();
        let rows = ledger.rows;
        Reading {
            counters: CounterSums::default(),
            ledger,
            detection: self.detectors.summary(),
            maps: vec![MapUsage {
                map: "rows",
                entries: rows,
                capacity: rows,
            }],
            ..Reading::default()
        }
    }

    /// Owns the ledger, which is ready, until the exporters are gone; `at_turn` may do something in each period.
    pub async fn own(mut self, mut owner: Owner, mut at_turn: impl FnMut(&mut Self)) {
        self.changes = Changes::new(owner.feed.clone());
        let mut period = tokio::time::interval(PERIOD);
        loop {
            tokio::select! {
                request = owner.requests.recv() => match request {
                    Some(request) => self.answer(request),
                    None => return,
                },
                _ = period.tick() => {
                    at_turn(&mut self);
                    self.kernel.0.borrow_mut().pass(1_000_000_000);
                    self.turn(true);
                }
            }
            owner.pulse.beat(Instant::now());
        }
    }

    /// Owns the ledger on a thread of its own until the exporters are gone; returns when it is built.
    ///
    /// # Panics
    /// If the machine cannot start a thread.
    pub fn own_on_a_thread(size: Size, owner: Owner, at_turn: impl FnMut(&mut Self) + Send + 'static) {
        let (built, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            let simulation = Self::new(size);
            owner.readiness.send_replace(Readiness::of(Vec::new()));
            let _ = built.send(());
            runtime
                .expect("a runtime")
                .block_on(simulation.own(owner, at_turn));
        });
        wait.recv().expect("the simulation was built");
    }
}
