//! Whatever happens, by chance.

use proptest::prelude::*;

use super::*;

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
        prop_assert_eq!(world.ledger.pending(), crate::ledger::Counts::default());
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
        prop_assert_eq!(world.ledger.pending(), crate::ledger::Counts::default());
        // Nothing that has ended is still taken for alive, and its rows are free again.
        let mut live = crate::ledger::LiveAddressSpaces::live_births(&mut world.kernel).unwrap();
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
