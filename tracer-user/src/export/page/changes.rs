//! What has changed since the open pages were told: address spaces and epochs, each named once however often it changes.
//!
//! While no page is open nothing is kept. Telling is bounded in each turn; what is left over is told in the next.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::feed::Feed;
use crate::detectors::Incident;
use crate::export::api::model::{Epoch, Process};
use crate::export::api::view::View;

/// How often the pages are told.
const PERIOD: Duration = Duration::from_millis(250);
/// Address spaces, and epochs, that are told of at once.
const MOST: usize = 128;

/// What is to be told now.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    /// Births of address spaces.
    spaces: Vec<u64>,
    /// Births, and numbers of epochs.
    epochs: Vec<(u64, u32)>,
}

/// What an event tells of.
#[derive(Debug, Serialize)]
struct Told<T> {
    items: Vec<T>,
}

/// An epoch, and of which address space.
#[derive(Debug, Serialize)]
struct EpochOf {
    id: u64,
    epoch: Epoch,
}

/// What has changed.
#[derive(Debug, Default)]
pub struct Changes {
    feed: Feed,
    spaces: Queue<u64>,
    epochs: Queue<(u64, u32)>,
    told_at: Option<Instant>,
}

impl Changes {
    /// For the pages of this feed.
    #[must_use]
    pub fn new(feed: Feed) -> Self {
        Self {
            feed,
            ..Self::default()
        }
    }

    /// Where the pages listen.
    #[must_use]
    pub const fn feed(&self) -> &Feed {
        &self.feed
    }

    /// An address space is new, or another one than before.
    pub fn space(&mut self, birth: u64) {
        if birth != 0 && self.feed.is_heard() {
            self.spaces.put(birth);
        }
    }

    /// So is an epoch, and with it its address space.
    pub fn epoch(&mut self, birth: u64, number: u32) {
        self.space(birth);
        if birth != 0 && number != 0 && self.feed.is_heard() {
            self.epochs.put((birth, number));
        }
    }

    /// An incident was found, or is over: told at once.
    pub fn incident(&self, incident: &Incident) {
        self.feed.publish("incident", incident);
    }

    /// Tells the pages what is due.
    pub fn tell(&mut self, view: &View<'_>, now: Instant) {
        let due = self.due(now);
        let spaces = due.spaces.iter().filter_map(|&birth| view.ledger.id_of(birth));
        let items: Vec<Process> = spaces.filter_map(|id| view.listed(id)).collect();
        if !items.is_empty() {
            self.feed.publish("process", &Told { items });
        }
        let epochs = due.epochs.iter().filter_map(|&(birth, number)| {
            let id = view.ledger.id_of(birth)?;
            let epoch = view.listed_epoch(id, number)?;
            Some(EpochOf { id, epoch })
        });
        let items: Vec<_> = epochs.collect();
        if !items.is_empty() {
            self.feed.publish("epoch", &Told { items });
        }
    }

    /// What is to be told at `now`; nothing if the pages were told a moment ago.
    fn due(&mut self, now: Instant) -> Due {
        if !self.feed.is_heard() {
            self.spaces.clear();
            self.epochs.clear();
            return Due::default();
        }
        let waits = self.told_at.is_some_and(|at| now.duration_since(at) < PERIOD);
        if waits || (self.spaces.is_empty() && self.epochs.is_empty()) {
            return Due::default();
        }
        self.told_at = Some(now);
        Due {
            spaces: self.spaces.take(MOST),
            epochs: self.epochs.take(MOST),
        }
    }
}

/// Things that wait for their turn, each once, first come first served: what changes without pause does not keep the
/// others waiting.
#[derive(Debug)]
struct Queue<T> {
    order: VecDeque<T>,
    waiting: HashSet<T>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            waiting: HashSet::new(),
        }
    }
}

impl<T: Copy + Eq + Hash> Queue<T> {
    fn put(&mut self, thing: T) {
        if self.waiting.insert(thing) {
            self.order.push_back(thing);
        }
    }

    fn take(&mut self, most: usize) -> Vec<T> {
        let taken: Vec<T> = self.order.drain(..most.min(self.order.len())).collect();
        for thing in &taken {
            self.waiting.remove(thing);
        }
        taken
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn clear(&mut self) {
        self.order.clear();
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_for_nobody() {
        let mut changes = Changes::default();
        changes.epoch(7, 1);
        assert!(changes.spaces.is_empty() && changes.epochs.is_empty());
        let page = changes.feed().subscribe().unwrap();
        changes.epoch(7, 1);
        drop(page);
        assert_eq!(changes.due(Instant::now()), Due::default());
        assert!(changes.spaces.is_empty() && changes.epochs.is_empty());
    }

    #[test]
    fn each_change_is_told_once_and_a_flood_in_parts() {
        let mut changes = Changes::default();
        let _page = changes.feed().subscribe().unwrap();
        let start = Instant::now();
        for birth in 1..=MOST as u64 + 5 {
            changes.epoch(birth, 3);
            changes.epoch(birth, 3);
        }
        let due = changes.due(start);
        assert_eq!((due.spaces.len(), due.epochs.len()), (MOST, MOST));
        // The first has changed again: it waits behind those that have not had their turn.
        changes.space(1);
        assert_eq!(changes.due(start + PERIOD / 2), Due::default());
        let due = changes.due(start + PERIOD);
        assert_eq!(
            due.spaces,
            (1..=5)
                .map(|more| MOST as u64 + more)
                .chain([1])
                .collect::<Vec<_>>()
        );
        assert_eq!(changes.due(start + 3 * PERIOD), Due::default());
    }
}
