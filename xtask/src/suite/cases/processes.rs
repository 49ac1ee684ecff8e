//! Address spaces and epochs: how they begin and end, and whose they are.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::suite::actor::Actor;
use crate::suite::ledger::{Ledger, Space};
use crate::suite::scene::Clear;
use crate::suite::{Suite, compare};

/// A process that cleared itself before sdtrace started, and writes after.
pub fn armed_before_the_start_is_adopted(suite: &mut Suite) -> Result<()> {
    let mut actor = suite
        .adopted
        .take()
        .context("no process was armed before the start")?;
    let before = suite.daemon()?.scrape()?;
    let mut report = actor.act()?;
    let (after, ledger) = suite.look()?;
    compare::consistent(&ledger, &after)?;
    let (space, epoch) = compare::newest(&ledger, &report)?;
    ensure!(
        space.origin == "adopted" && epoch.opened_by == "adopted" && epoch.number == 1,
        "origin {}, epoch {} opened by {}",
        space.origin,
        epoch.number,
        epoch.opened_by
    );
    // Nobody saw the clear.
    for state in report.areas.iter_mut().flat_map(|area| &mut area.states) {
        state.armed_at_clear = false;
    }
    compare::areas(&report, epoch, suite.skipped(&after)?)?;
    compare::growth(&before, &after, &[&report])?;

    actor.clear_from_here()?;
    let report = actor.act()?;
    let (after, ledger) = suite.look()?;
    compare::consistent(&ledger, &after)?;
    let (space, epoch) = compare::newest(&ledger, &report)?;
    compare::areas(&report, epoch, suite.skipped(&after)?)?;
    let ended: Vec<_> = space
        .epochs
        .iter()
        .map(|epoch| epoch.ended_by.as_deref())
        .collect();
    ensure!(
        ended == [Some("clear_first"), None],
        "the epochs ended by {ended:?}"
    );
    actor.end()
}

/// We clear, not the process itself; then the process does.
pub fn clear_by_another_process_is_attributed(suite: &mut Suite) -> Result<()> {
    let mut played = suite.check_scene("private", Clear::FromHere)?;
    let actor = &mut played.actor;
    actor.clear_from_here()?;
    actor.act()?;
    actor.clear_itself()?;
    let report = actor.act()?;
    let (after, ledger) = suite.look()?;
    compare::consistent(&ledger, &after)?;
    let (space, epoch) = compare::newest(&ledger, &report)?;
    compare::areas(&report, epoch, suite.skipped(&after)?)?;
    let us = std::process::id();
    let shown: Vec<_> = space
        .epochs
        .iter()
        .map(|epoch| {
            let tracker = epoch.clear.as_ref().and_then(|clear| clear.tracker.pid);
            (tracker, epoch.ended_by.as_deref())
        })
        .collect();
    let expected = [
        (Some(us), Some("clear_same_tracker")),
        (Some(us), Some("clear_other_tracker")),
        (Some(report.pid), None),
    ];
    ensure!(
        shown == expected,
        "epochs by and ended by {shown:?}, true is {expected:?}"
    );
    played.actor.end()
}

/// The same writes without a clear.
pub fn untracked_process_adds_nothing(suite: &mut Suite) -> Result<()> {
    let played = suite.play("everything", Clear::Nobody)?;
    let writes: u64 = played.report.areas.iter().map(|area| area.written).sum();
    ensure!(writes > 1000, "the workload wrote {writes} pages only");
    compare::nothing_counted(&played.before, &played.after)?;
    compare::consistent(&played.ledger, &played.after)?;
    ensure!(
        played.ledger.space_of(played.report.pid).is_none(),
        "the ledger has an address space of process {}, which nobody cleared",
        played.report.pid
    );
    played.actor.end()
}

/// Exec ends the epoch; the new program, which nobody cleared, is not tracked.
pub fn exec_ends_the_epoch(suite: &mut Suite) -> Result<()> {
    let mut played = suite.play("exec", Clear::Itself)?;
    played.actor.ready()?;
    let ledger = wait_for_end(suite, played.report.pid)?;
    let (space, epoch) = compare::newest(&ledger, &played.report)?;
    ensure!(
        epoch.ended_by.as_deref() == Some("exec") && space.epochs.len() == 1,
        "the epoch ended by {:?}",
        epoch.ended_by
    );
    compare::areas(&played.report, epoch, played.skipped)?;
    let before = suite.daemon()?.scrape()?;
    played.actor.act()?;
    let (after, ledger) = suite.look()?;
    compare::nothing_counted(&before, &after)?;
    compare::consistent(&ledger, &after)?;
    ensure!(
        ledger.spaces_of(played.report.pid).count() == 1,
        "the new program is tracked"
    );
    played.actor.end()
}

/// Exit ends the epoch, and what it counted stays.
pub fn exit_ends_the_epoch(suite: &mut Suite) -> Result<()> {
    let played = suite.play("seed", Clear::Itself)?;
    let live =
        |scrape: &crate::suite::exposition::Scrape| scrape.sum("softdirty_tracked_address_spaces", &[]);
    let during = live(&played.after)?;
    played.actor.end()?;
    let ledger = wait_for_end(suite, played.report.pid)?;
    let (_, epoch) = compare::newest(&ledger, &played.report)?;
    ensure!(
        epoch.ended_by.as_deref() == Some("exit"),
        "the epoch ended by {:?}",
        epoch.ended_by
    );
    compare::areas(&played.report, epoch, played.skipped)?;
    let (after, ledger) = suite.look()?;
    compare::consistent(&ledger, &after)?;
    ensure!(
        live(&after)? + 1 == during,
        "{during} address spaces were tracked, now {}",
        live(&after)?
    );
    Ok(())
}

/// Waits until the ledger knows that the process's only address space is gone.
fn wait_for_end(suite: &Suite, pid: u32) -> Result<Ledger> {
    let start = Instant::now();
    loop {
        let ledger = suite.daemon()?.ledger()?;
        let space = ledger
            .space_of(pid)
            .context("the address space is not in the ledger")?;
        if space.state == "ended" {
            return Ok(ledger);
        }
        if start.elapsed() > Duration::from_secs(5) {
            bail!(
                "the address space of process {pid} is gone for 5 s, the ledger says {}",
                space.state
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Twenty processes one after the other: twenty address spaces with ids of their own.
pub fn reused_mm_is_a_new_address_space(suite: &mut Suite) -> Result<()> {
    let played = suite.play("reuse", Clear::Nobody)?;
    let children = &played.report.children;
    let last = children.last().context("there were no children")?;
    let ledger = wait_for_end(suite, last.pid)?;
    let mut ids = BTreeSet::new();
    for child in children {
        let spaces: Vec<&Space> = ledger.spaces_of(child.pid).collect();
        ensure!(
            spaces.len() == 1,
            "process {} has {} address spaces in the ledger",
            child.pid,
            spaces.len()
        );
        let (space, epoch) = compare::newest(&ledger, child)?;
        ids.insert(space.id);
        compare::areas(child, epoch, played.skipped)?;
        ensure!(
            space.origin == "clear" && epoch.number == 1 && epoch.ended_by.as_deref() == Some("exit"),
            "origin {}, epoch {} ended by {:?}",
            space.origin,
            epoch.number,
            epoch.ended_by
        );
    }
    ensure!(
        ids.len() == children.len() && children.len() == 20,
        "{} ids for {} children",
        ids.len(),
        children.len()
    );
    let (after, ledger) = suite.look()?;
    compare::consistent(&ledger, &after)?;
    played.actor.end()
}

/// Ten epochs, in each of which one page more is written than in the one before.
pub fn each_epoch_has_its_own_counts(suite: &mut Suite) -> Result<()> {
    const ROUNDS: usize = 10;
    let mut actor = Actor::start("epochs")?;
    let mut reports = Vec::new();
    for _ in 0..ROUNDS {
        actor.clear_from_here()?;
        reports.push(actor.act()?);
        // sdtrace rests for at most 20 ms after it looked. Eight clears in that time would use the same cell of a
        // row twice, and the ledger would say that it is uncertain.
        std::thread::sleep(Duration::from_millis(100));
    }
    let (after, ledger) = suite.look()?;
    compare::consistent(&ledger, &after)?;
    let space = ledger
        .space_of(actor.pid())
        .context("the ledger has no such address space")?;
    ensure!(
        space.epochs.len() == ROUNDS && space.unseen_epochs == 0,
        "{} epochs are listed, {} unseen; there were {ROUNDS}",
        space.epochs.len(),
        space.unseen_epochs
    );
    for (epoch, report) in space.epochs.iter().zip(&reports) {
        ensure!(
            !epoch.uncertain && epoch.vmas_complete,
            "epoch {} is uncertain or incomplete",
            epoch.number
        );
        compare::areas(report, epoch, suite.skipped(&after)?)
            .with_context(|| format!("epoch {}", epoch.number))?;
    }
    actor.end()
}
