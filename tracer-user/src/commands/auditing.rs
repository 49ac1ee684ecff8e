//! The part of [`Agent`] that starts audits of our own and verify, and takes in what they found.

use super::agent::{Agent, Rows};
use super::audits::{Demand, Finished};
use super::own_audit::{self, Target};
use super::verify::Order;
use crate::detectors::LedgerView as _;
use crate::detectors::verify::Reading;
use crate::ledger::Clock as _;
use crate::processes::SystemClock;

impl Agent {
    /// Starts sdtrace's own audit, unless one is under way.
    pub(super) fn start_audit(&mut self, demand: Demand) {
        let (mut targets, mut orders) = (Vec::new(), Vec::new());
        for (birth, epoch) in self.ledger.live() {
            let space = self.ledger.describe(birth);
            let Some(owner) = space.and_then(|space| space.owner).filter(|owner| owner.pid != 0) else {
                continue;
            };
            let (pid, start_ns) = (owner.pid, owner.start_ns);
            let verify = self.detectors.to_verify(birth);
            targets.push(Target {
                birth,
                epoch,
                pid,
                start_ns,
                from: 0,
                verify: verify
                    .filter(|(of, _)| *of == epoch)
                    .map_or_else(Vec::new, |(_, ranges)| ranges),
            });
            let areas = if self.audits.wants_sample(birth, epoch) {
                match self.detectors.to_sample(birth) {
                    Some((of, areas)) if of == epoch => areas,
                    _ => continue,
                }
            } else {
                Vec::new()
            };
            orders.push(Order {
                birth,
                epoch,
                pid,
                start_ns,
                areas,
            });
        }
        // By birth: the ledger's order is that of its numbers.
        targets.sort_unstable_by_key(|target| target.birth);
        orders.sort_unstable_by_key(|order| order.birth);
        self.audits.start(demand, targets, orders);
    }

    /// Answers whoever has waited for an audit long enough.
    pub(super) fn answer_without_audit(&mut self) {
        self.turn(Rows::All);
        for answer in self.audits.take_waiting() {
            drop(answer.send(self.dump()));
        }
    }

    /// Takes in what an audit of our own has read. The records of what the programs found meanwhile come first.
    pub(super) fn audited(&mut self, done: Finished) {
        // Rows tell of a clear that began before the reading was over, so all are looked at before it is judged.
        let all = !done.answers.is_empty() || !done.readings.is_empty();
        self.turn(if all { Rows::All } else { Rows::Cleared });
        let now_ns = SystemClock.monotonic_ns();
        for (target, pages) in &done.read.seen {
            for page in pages {
                self.detectors.seen_in_pagemap(
                    target.birth,
                    target.epoch,
                    page.address,
                    page.present,
                    page.soft_dirty,
                    now_ns,
                );
            }
        }
        if done.audited {
            for (target, result) in &done.read.results {
                match result {
                    own_audit::Result::Complete => self.detectors.note_audit(target.birth, true),
                    own_audit::Result::UpTo(_) => self.detectors.note_audit(target.birth, false),
                    // Its exit tells, or it cannot be seen from here.
                    own_audit::Result::Gone => {}
                }
            }
        }
        self.judge(&done.readings);
        self.detect(self.losses(), now_ns);
        for answer in done.answers {
            drop(answer.send(self.dump()));
        }
        if self.audits.is_waited_for() {
            self.start_audit(Demand::Dump);
        } else if self.audits.take_verify_again() {
            self.start_audit(Demand::Verify);
        } else if self.audits.take_sample_again() {
            self.start_audit(Demand::Sample);
        }
    }

    /// Takes in what verify has read.
    fn judge(&mut self, readings: &[Reading]) {
        if readings.iter().any(|reading| !reading.changed.is_empty()) {
            // A file of /proc for each program; but whether a clear was not seen must be known before a miss is told.
            self.read_missed();
            self.detectors.note_losses(&self.sample(self.losses()));
        }
        for reading in readings {
            self.detectors.verified(reading, &self.ledger);
        }
    }
}
