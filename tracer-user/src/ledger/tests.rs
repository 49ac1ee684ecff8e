//! The ledger against the simulated kernel: the sums are exact whatever happens, and so is every epoch that the
//! ledger does not call uncertain.

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_certain_epoch_is_exact(steps in prop::collection::vec(step(), 1..250)) {
        let mut world = World::new(1024, 100_000, generous());
        for step in &steps {
            world.take(step);
        }
        world.come_to_rest();
        world.assert_sums();
        prop_assert_eq!(world.ledger.pending(), super::Counts::default());
        let dump = world.dump();
        prop_assert!(dump.complete, "{:?}", dump.incomplete);
        let kernel = world.kernel.0.borrow();
        prop_assert_eq!(found(&dump), expected(&dump, &kernel.truth));
    }

    #[test]
    fn epochs_are_certain_if_the_daemon_looks_often(
        steps in prop::collection::vec(step(), 1..250), every in 1usize..12,
    ) {
        let mut world = World::new(1024, 100_000, generous());
        let mut clears = 0;
        for step in &steps {
            world.take(step);
            clears += usize::from(matches!(step, Step::Clear(..)));
            if clears >= every.min(5) {
                clears = 0;
                world.look_at_cleared(usize::MAX);
            }
        }
        world.come_to_rest();
        world.assert_sums();
        let dump = world.dump();
        for space in &dump.address_spaces {
            for epoch in &space.epochs {
                prop_assert!(!epoch.uncertain, "epoch {} of {}", epoch.number, space.id);
                prop_assert!(epoch.opened_by != "unseen");
            }
        }
        let kernel = world.kernel.0.borrow();
        prop_assert_eq!(found(&dump), expected(&dump, &kernel.truth));
        // Everything is listed, so the whole truth was compared.
        let listed: (u64, u64) = found(&dump).values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        prop_assert_eq!(listed, (kernel.counters.faults(), kernel.counters.huge_faults()));
    }

    #[test]
    fn sums_are_exact_with_losses_and_little_memory(
        steps in prop::collection::vec(step(), 1..400), rows in 1u32..24, ring in 0usize..12,
    ) {
        let limits = Limits { ended_address_spaces: 1, closed_epochs: 2, vmas: 8 };
        let mut world = World::new(rows, ring, limits);
        for step in &steps {
            world.take(step);
            if matches!(step, Step::Look(_)) {
                world.assert_sums();
            }
        }
        world.come_to_rest();
        world.assert_sums();
        let lost = world.kernel.0.borrow().stages.values().any(|&count| count > 0);
        prop_assert_eq!(world.ledger.summary().incomplete, lost);
        prop_assert_eq!(world.ledger.pending(), super::Counts::default());
        // Nothing that has ended is still taken for alive, and its rows are free again.
        let mut live = super::LiveAddressSpaces::live_births(&mut world.kernel).unwrap();
        live.sort_unstable();
        let dump = world.dump();
        let mut listed: Vec<u64> =
            dump.address_spaces.iter().filter(|space| space.state == "live").map(|space| space.birth).collect();
        listed.sort_unstable();
        if !lost {
            prop_assert_eq!(&listed, &live);
        }
        prop_assert!(listed.iter().all(|birth| live.contains(birth)));
        prop_assert_eq!(dump.rows.used as usize + world.kernel.0.borrow().free_rows(), rows as usize);
        prop_assert!(dump.address_spaces.iter().filter(|space| space.state == "ended").count() <= 1);
        prop_assert!(dump.address_spaces.iter().all(|space| space.epochs.len() <= 3));
    }
}

/// The founding case: 256 pages of a shared mapping are written after a clear.
#[test]
fn an_epoch_shows_the_writes_made_in_it() {
    let mut world = World::new(64, 64, Limits::default());
    world.take(&Step::Spawn(2));
    world.take(&Step::Clear(0, 7));
    for _ in 0..256 {
        world.take(&Step::Fault {
            space: 0,
            vma: 1,
            huge: false,
            finish: true,
        });
    }
    world.take(&Step::Clear(0, 7));
    world.take(&Step::Fault {
        space: 0,
        vma: 1,
        huge: true,
        finish: true,
    });
    world.take(&Step::Clear(0, 8));
    world.take(&Step::End(0, true));
    world.look(usize::MAX);
    world.kernel.0.borrow_mut().pass(2_000_000_000);
    world.look(usize::MAX);
    let dump = world.dump();
    let space = &dump.address_spaces[0];
    assert_eq!(
        (space.id, space.origin.as_str(), space.state.as_str()),
        (1, "clear", "ended")
    );
    let process = space.process.as_ref().unwrap();
    assert_eq!(process.initial_pid, 101);
    let seen: Vec<_> = space
        .epochs
        .iter()
        .map(|epoch| {
            (
                epoch.total.faults,
                epoch.total.huge_faults,
                epoch.ended_by.clone().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (256, 0, "clear_same_tracker".to_owned()),
            (0, 1, "clear_other_tracker".to_owned()),
            (0, 0, "exec".to_owned()),
        ]
    );
    let first = &space.epochs[0];
    assert_eq!(first.clear.as_ref().unwrap().wait_seconds, Some(1e-8));
    let vma = first.vmas.iter().find(|vma| vma.faults > 0).unwrap();
    assert_eq!((vma.start, vma.end, vma.faults), (0x2000, 0x3000, 256));
    assert_eq!(vma.flags, ["rd", "wr"]);
    assert!(vma.page_prot_writable && vma.armed);
    assert_eq!(
        dump.total.by_kind["private_file"]["armed_writable_page_prot"],
        256
    );
    assert_eq!(dump.total.by_kind["huge"]["armed_writable_page_prot"], 1);
}

#[test]
fn the_vmas_of_an_epoch_are_complete_if_the_daemon_looked_in_time() {
    let mut world = World::new(64, 64, Limits::default());
    world.take(&Step::Spawn(2));
    world.take(&Step::Clear(0, 7));
    world.look_at_cleared(usize::MAX);
    // One more than a row remembers: of the first of them it is not known any more which VMAs it met.
    for _ in 0..=CLEAR_MARKS {
        world.take(&Step::Clear(0, 7));
    }
    world.look_at_cleared(usize::MAX);
    let dump = world.dump();
    let seen: Vec<_> = dump.address_spaces[0]
        .epochs
        .iter()
        .map(|epoch| {
            (
                epoch.vmas_complete,
                epoch.vmas.iter().filter(|vma| vma.armed_at_clear).count(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [(true, 2), (false, 0), (true, 2), (true, 2), (true, 2), (true, 2)]
    );
}

#[test]
fn the_vmas_of_a_process_that_is_gone_at_the_first_look_are_complete() {
    let mut world = World::new(64, 64, Limits::default());
    world.take(&Step::Spawn(2));
    world.take(&Step::Clear(0, 7));
    world.take(&Step::End(0, false));
    world.look_at_cleared(usize::MAX);
    let epoch = &world.dump().address_spaces[0].epochs[0];
    assert!(epoch.vmas_complete && epoch.vmas.iter().all(|vma| vma.armed_at_clear));
}

#[test]
fn a_fork_has_an_epoch_of_its_own_and_knows_its_parent() {
    let mut world = World::new(64, 64, Limits::default());
    world.take(&Step::Spawn(1));
    world.take(&Step::Clear(0, 7));
    world.take(&Step::Clear(0, 7));
    world.take(&Step::Fork(0));
    world.take(&Step::Fault {
        space: 1,
        vma: 0,
        huge: false,
        finish: true,
    });
    world.look(usize::MAX);
    let dump = world.dump();
    let child = &dump.address_spaces[1];
    assert_eq!(
        (child.origin.as_str(), child.parent, child.parent_epoch),
        ("fork", Some(1), Some(2))
    );
    assert_eq!(
        (child.epochs[0].opened_by.as_str(), child.total.faults),
        ("fork", 1)
    );
    assert_eq!(
        child.process.as_ref().unwrap().cgroup.as_deref(),
        Some("/test.slice")
    );
    assert_eq!(dump.address_spaces[0].total.faults, 0);
}

#[test]
fn a_tracker_that_clears_faster_than_the_daemon_wakes_makes_epochs_uncertain() {
    let mut world = World::new(64, 64, Limits::default());
    world.take(&Step::Spawn(1));
    for _ in 0..9 {
        world.take(&Step::Clear(0, 7));
        world.take(&Step::Fault {
            space: 0,
            vma: 0,
            huge: false,
            finish: true,
        });
    }
    world.look(usize::MAX);
    let dump = world.dump();
    let uncertain: Vec<_> = dump.address_spaces[0]
        .epochs
        .iter()
        .filter(|epoch| epoch.uncertain)
        .map(|epoch| epoch.number)
        .collect();
    assert_eq!(uncertain, [1, 9]);
    assert_eq!(dump.total.faults, 9);
}

#[test]
fn a_lost_exit_is_found_out_from_the_kernel_s_list() {
    let mut world = World::new(64, 1, Limits::default());
    world.take(&Step::Spawn(1));
    world.take(&Step::Clear(0, 7));
    world.take(&Step::End(0, false));
    for _ in 0..6 {
        world.look(usize::MAX);
        world.kernel.0.borrow_mut().pass(1_000_000_000);
    }
    let dump = world.dump();
    assert_eq!(dump.address_spaces[0].state, "ended");
    assert_eq!(
        dump.address_spaces[0].epochs[0].ended_by.as_deref(),
        Some("unknown")
    );
    let reasons: Vec<_> = dump
        .incomplete
        .iter()
        .map(|reason| reason.reason.as_str())
        .collect();
    assert_eq!(reasons, ["ring_full", "missing_exits"]);
}

#[test]
fn the_dump_survives_json() {
    let mut world = World::new(64, 64, Limits::default());
    world.take(&Step::Spawn(3));
    world.take(&Step::Clear(0, 7));
    world.take(&Step::Fault {
        space: 0,
        vma: 1,
        huge: false,
        finish: true,
    });
    world.look(usize::MAX);
    let dump = world.dump();
    let text = serde_json::to_string(&dump).unwrap();
    assert!(text.contains(r#""start":"0x2000""#), "{text}");
    assert_eq!(serde_json::from_str::<dump::Dump>(&text).unwrap(), dump);
}
