//! What the agent tells the live page: changes as they come, and the map of one address space when it is asked for.

use std::time::Instant;

use super::agent::Agent;
use crate::export::api::view::View;
use crate::export::page::map::{CHUNKS, Known, STATES};
use crate::processes::SystemClock;

impl Agent {
    /// What others may look at.
    pub(super) fn view(&self) -> View<'_> {
        View {
            ledger: &self.ledger,
            detectors: &self.detectors,
            incidents: &self.recent,
            clock: &SystemClock,
        }
    }

    /// Tells the open pages what has changed.
    pub(super) fn tell_pages(&mut self) {
        let mut changes = std::mem::take(&mut self.changes);
        changes.tell(&self.view(), Instant::now());
        self.changes = changes;
    }

    /// What is known of the newest epoch of an address space.
    pub(super) fn map(&self, id: u64) -> Option<Known> {
        let (newest, more_vmas) = self.ledger.newest(id, STATES)?;
        let written = self
            .kernel
            .probes
            .pages()
            .written(newest.birth, newest.epoch, CHUNKS);
        let detection = self.detectors.detection(newest.birth, newest.epoch);
        Some(Known {
            newest,
            more_vmas,
            written,
            detection,
        })
    }
}
