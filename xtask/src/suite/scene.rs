//! Plays a scene of the workload under a running sdtrace, and holds what sdtrace shows against it.

use anyhow::{Context as _, Result, ensure};

use super::Suite;
use super::actor::Actor;
use super::compare;
use super::exposition::Scrape;
use super::ledger::{Ledger, Process};
use crate::workload::report::Report;

/// Who clears the soft-dirty bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// The workload clears its own.
    Itself,
    /// We do: another process.
    FromHere,
    /// Nobody.
    Nobody,
}

/// A scene that has been played once, and what was seen of it. The workload is still there.
pub struct Played {
    pub actor: Actor,
    pub report: Report,
    pub before: Scrape,
    pub after: Scrape,
    pub ledger: Ledger,
    /// Probe runs that the kernel skipped meanwhile.
    pub skipped: u64,
}

impl Suite {
    /// Plays a scene once.
    pub fn play(&self, scene: &str, clear: Clear) -> Result<Played> {
        let mut actor = Actor::start(scene)?;
        let before = self.daemon()?.scrape()?;
        match clear {
            Clear::Itself => actor.clear_itself()?,
            Clear::FromHere => actor.clear_from_here()?,
            Clear::Nobody => {}
        }
        let report = actor.act()?;
        let (after, ledger) = self.look()?;
        Ok(Played {
            skipped: self.skipped(&after)?,
            actor,
            report,
            before,
            after,
            ledger,
        })
    }

    /// The metrics and the ledger of the same moment: nothing that is tracked does anything meanwhile.
    pub fn look(&self) -> Result<(Scrape, Ledger)> {
        let daemon = self.daemon()?;
        Ok((daemon.scrape()?, daemon.ledger()?))
    }

    /// Plays a scene that somebody clears, and holds everything against it.
    pub fn check_scene(&self, scene: &str, clear: Clear) -> Result<Played> {
        let played = self.play(scene, clear)?;
        played.check()?;
        let tracker = match clear {
            Clear::FromHere => std::process::id(),
            Clear::Itself | Clear::Nobody => played.report.pid,
        };
        played.check_clear(tracker)?;
        Ok(played)
    }
}

impl Played {
    /// Holds rows, sums and metrics against the report.
    pub fn check(&self) -> Result<()> {
        compare::consistent(&self.ledger, &self.after)?;
        let (parent, epoch) = compare::newest(&self.ledger, &self.report)?;
        compare::areas(&self.report, epoch, self.skipped)?;
        for child in &self.report.children {
            let (space, epoch) = compare::newest(&self.ledger, child)?;
            compare::areas(child, epoch, self.skipped).context("the child")?;
            let shown = (
                space.origin.as_str(),
                space.parent,
                space.parent_epoch,
                epoch.number,
            );
            ensure!(
                shown
                    == (
                        "fork",
                        Some(parent.id),
                        parent.epochs.last().map(|epoch| epoch.number),
                        1
                    ),
                "the child's address space has origin, parent, its epoch and own epoch {shown:?}"
            );
            ensure!(
                epoch.opened_by == "fork",
                "the child's epoch was opened by {}",
                epoch.opened_by
            );
        }
        let tracked: Vec<&Report> = [&self.report].into_iter().chain(&self.report.children).collect();
        compare::growth(&self.before, &self.after, &tracked)
    }

    /// Sees that the epoch of the report's process was opened by a clear of `tracker`.
    pub fn check_clear(&self, tracker: u32) -> Result<()> {
        let (space, epoch) = compare::newest(&self.ledger, &self.report)?;
        ensure!(space.state == "live", "the address space is {}", space.state);
        ensure!(
            epoch.opened_by == "clear" && epoch.ended_by.is_none() && epoch.number == 1,
            "epoch {} was opened by {}, ended by {:?}",
            epoch.number,
            epoch.opened_by,
            epoch.ended_by
        );
        let clear = epoch.clear.as_ref().context("the epoch has no clear")?;
        let comm = std::fs::read_to_string(format!("/proc/{tracker}/comm"))?;
        let expected = Process {
            pid: Some(tracker),
            comm: comm.trim_end().to_owned(),
        };
        ensure!(
            clear.tracker == expected,
            "the clear was done by {expected:?}, the ledger says {:?}",
            clear.tracker
        );
        ensure!(clear.result == 1, "the clear returned {}", clear.result);
        let armed: u64 = self.report.areas.iter().map(|area| area.end - area.start).sum();
        ensure!(
            clear.armed_bytes >= armed && clear.vmas as usize > self.report.areas.len(),
            "{armed} bytes in {} areas were armed, and more; the ledger says {} in {} VMAs",
            self.report.areas.len(),
            clear.armed_bytes,
            clear.vmas
        );
        for (what, seconds) in [("wait", clear.wait_seconds), ("hold", clear.hold_seconds)] {
            ensure!(
                seconds.is_some_and(|seconds| seconds > 0.0 && seconds < 10.0),
                "the clear's {what} is {seconds:?} s"
            );
        }
        let cleared = |scrape: &Scrape| scrape.count("softdirty_clears_total", &[("result", "tracked")]);
        let clears = cleared(&self.after)? - cleared(&self.before)?;
        ensure!(clears == 1, "the metric counts {clears} clears, there was 1");
        Ok(())
    }
}
