//! The ledger against the simulated kernel: the sums are exact whatever happens, and so is every epoch that the
//! ledger does not call uncertain.

mod random;
mod stories;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::prelude::*;
use tracer_common::table::{CLEAR_MARKS, VmaKey};

use super::simulated::{Kernel, Shared, Truth};
use super::{Ledger, Limits, Measure, Surroundings, dump};

#[derive(Clone, Debug)]
enum Step {
    Spawn(usize),
    Clear(usize, u32),
    Fault {
        space: usize,
        vma: usize,
        huge: bool,
        finish: bool,
    },
    Mprotect(usize, usize),
    Fork(usize),
    End(usize, bool),
    /// The daemon takes this many records, then looks at the rows.
    Look(usize),
    /// The daemon takes this many records, then looks at the rows of what was cleared.
    LookAtCleared(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (space, vma) = (0usize..6, 0usize..6);
    prop_oneof![
        2 => (1usize..6).prop_map(Step::Spawn),
        6 => (space.clone(), 1u32..3).prop_map(|(space, tracker)| Step::Clear(space, tracker)),
        16 => (space.clone(), vma.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(space, vma, huge, finish)| Step::Fault { space, vma, huge, finish }),
        2 => (space.clone(), vma).prop_map(|(space, vma)| Step::Mprotect(space, vma)),
        1 => space.clone().prop_map(Step::Fork),
        1 => (space, any::<bool>()).prop_map(|(space, exec)| Step::End(space, exec)),
        2 => (0usize..40).prop_map(Step::Look),
        4 => (0usize..40).prop_map(Step::LookAtCleared),
        2 => (1u64..3_000_000_000).prop_map(Step::Pass),
    ]
}

struct World {
    kernel: Shared,
    ledger: Ledger,
    /// When the ring buffer was last seen empty.
    drained_ns: u64,
    /// The faults of every address space that the ledger gave up, by its last word.
    departed: u64,
}

impl World {
    fn new(rows: u32, ring: usize, limits: Limits) -> Self {
        let mut ledger = Ledger::new(limits);
        ledger.keep_departed();
        Self {
            kernel: Shared(Rc::new(RefCell::new(Kernel::new(rows, ring)))),
            ledger,
            drained_ns: 0,
            departed: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        let mut kernel = self.kernel.0.borrow_mut();
        match *step {
            Step::Spawn(vmas) => kernel.spawn(vmas),
            Step::Clear(space, tracker) => kernel.clear(space, tracker),
            Step::Fault {
                space,
                vma,
                huge,
                finish,
            } => kernel.fault(space, vma, huge, finish),
            Step::Mprotect(space, vma) => kernel.mprotect(space, vma),
            Step::Fork(space) => kernel.fork(space),
            Step::End(space, by_exec) => kernel.end(space, by_exec),
            Step::Pass(ns) => kernel.pass(ns),
            Step::Look(records) => {
                drop(kernel);
                self.look(records);
            }
            Step::LookAtCleared(records) => {
                drop(kernel);
                self.look_at_cleared(records);
            }
        }
    }

    fn look_at_cleared(&mut self, wanted: usize) {
        let now = self.take_records(wanted);
        self.ledger.look_at_cleared(&self.kernel, now);
    }

    fn look(&mut self, wanted: usize) {
        let now = self.take_records(wanted);
        let mut kernel = self.kernel.clone();
        let errors = self.ledger.look(&mut kernel, &self.kernel, now);
        assert!(errors.is_empty(), "{errors:?}");
        for tally in self.ledger.take_departed() {
            // A record that comes very late makes an address space anew, which then departs again.
            self.departed += tally.measured[Measure::Faults as usize];
        }
    }

    /// What the daemon does before it looks at the rows; returns when that was.
    fn take_records(&mut self, wanted: usize) -> u64 {
        let (records, losses, now) = {
            let mut kernel = self.kernel.0.borrow_mut();
            // A record that stays away as long as the grace is taken for lost. The daemon empties the ring at every
            // look; this one may leave records behind, but not that long.
            let overdue = kernel.now >= self.drained_ns + super::RECORD_GRACE_NS / 2;
            let wanted = if overdue { usize::MAX } else { wanted };
            let records = kernel.take_records(wanted);
            if records.len() < wanted {
                self.drained_ns = kernel.now;
            }
            (records, kernel.losses(), kernel.now)
        };
        for record in &records {
            self.ledger.apply(record, &self.kernel, now);
        }
        self.ledger.note_losses(losses, now);
        now
    }

    fn assert_sums(&self) {
        let kernel = self.kernel.0.borrow();
        let mut total = self.ledger.total();
        total.add(&kernel.unlinked);
        assert_eq!(
            total, kernel.counters,
            "sum over the ledger and the kernel's counters"
        );
        let tallies = self.ledger.tallies();
        let present: u64 = tallies
            .map(|tally| tally.measured[Measure::Faults as usize])
            .sum();
        assert_eq!(
            present + self.departed + self.ledger.pending().faults(),
            self.ledger.total().faults(),
            "sum over the address spaces, also those that are gone"
        );
    }

    fn come_to_rest(&mut self) {
        self.kernel.0.borrow_mut().finish_all();
        for _ in 0..30 {
            self.look(usize::MAX);
            self.kernel.0.borrow_mut().pass(1_000_000_000);
        }
        self.look(usize::MAX);
    }

    fn dump(&self) -> dump::Dump {
        self.ledger.dump(64, 0, &Surroundings::default(), &self.kernel)
    }
}

/// Faults of every epoch that is listed and certain, as the ledger has them.
fn found(dump: &dump::Dump) -> Truth {
    let mut found = Truth::new();
    for space in &dump.address_spaces {
        for epoch in space
            .epochs
            .iter()
            .filter(|epoch| !epoch.uncertain && epoch.folded_vmas == 0)
        {
            for vma in epoch.vmas.iter().filter(|vma| vma.faults + vma.huge_faults > 0) {
                let key = VmaKey {
                    birth: space.birth,
                    start: vma.start,
                    flags: vma.vm_flags,
                    page_prot: vma.page_prot,
                };
                found.insert((space.birth, epoch.number, key), (vma.faults, vma.huge_faults));
            }
        }
    }
    found
}

/// The truth about the same epochs.
fn expected(dump: &dump::Dump, truth: &Truth) -> Truth {
    let listed: BTreeMap<(u64, u32), bool> = dump
        .address_spaces
        .iter()
        .flat_map(|space| {
            space.epochs.iter().map(|epoch| {
                (
                    (space.birth, epoch.number),
                    !epoch.uncertain && epoch.folded_vmas == 0,
                )
            })
        })
        .collect();
    truth
        .iter()
        .filter(|((birth, epoch, _), counts)| {
            **counts != (0, 0) && listed.get(&(*birth, *epoch)).copied().unwrap_or(false)
        })
        .map(|(key, counts)| (*key, *counts))
        .collect()
}

fn generous() -> Limits {
    Limits {
        ended_address_spaces: 1000,
        closed_epochs: 1000,
        vmas: 100_000,
    }
}
