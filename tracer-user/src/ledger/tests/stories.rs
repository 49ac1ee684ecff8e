//! What happens, told step by step.

use super::*;

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
