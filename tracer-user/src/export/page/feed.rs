//! What changes, for the pages that are open: the task that owns the ledger publishes, each page has a bounded share.
//!
//! Nobody looks at the ledger for it. While no page is open, publishing costs one load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;
use tokio::sync::broadcast;

/// Pages that may be open at once.
pub const CLIENTS: usize = 32;
/// Events that may wait for one page; one that lets more wait is dropped.
const WAITING: usize = 256;

/// One event, encoded once for all pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `process`, `epoch` or `incident`.
    pub kind: &'static str,
    /// One line of JSON.
    pub data: Arc<str>,
}

/// What became of the pages that asked for events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedCounts {
    /// Pages that are open.
    pub clients: u64,
    /// Pages that were dropped because they did not keep up.
    pub slow: u64,
    /// Pages that were refused because too many were open.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Counts {
    clients: AtomicUsize,
    slow: AtomicU64,
    refused: AtomicU64,
}

/// The feed; both ends hold one.
#[derive(Clone, Debug)]
pub struct Feed {
    events: broadcast::Sender<Event>,
    counts: Arc<Counts>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            events: broadcast::Sender::new(WAITING),
            counts: Arc::default(),
        }
    }
}

impl Feed {
    /// Whether anybody listens: what nobody hears need not be made.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.events.receiver_count() > 0
    }

    /// Tells every open page. Never waits.
    pub fn publish(&self, kind: &'static str, value: &impl Serialize) {
        if !self.is_heard() {
            return;
        }
        match serde_json::to_string(value) {
            // The last page may have gone just now.
            Ok(data) => drop(self.events.send(Event {
                kind,
                data: data.into(),
            })),
            Err(error) => tracing::error!(%error, kind, "an event cannot be written"),
        }
    }

    /// What became of the pages so far.
    #[must_use]
    pub fn counts(&self) -> FeedCounts {
        FeedCounts {
            clients: self.counts.clients.load(Ordering::Relaxed) as u64,
            slow: self.counts.slow.load(Ordering::Relaxed),
            refused: self.counts.refused.load(Ordering::Relaxed),
        }
    }

    /// One more page; `None` if too many are open.
    #[must_use]
    pub fn subscribe(&self) -> Option<Subscription> {
        let room = self
            .counts
            .clients
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |clients| {
                (clients < CLIENTS).then_some(clients + 1)
            });
        if room.is_err() {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Subscription {
            events: self.events.subscribe(),
            counts: Arc::clone(&self.counts),
        })
    }
}

/// One page's share.
#[derive(Debug)]
pub struct Subscription {
    events: broadcast::Receiver<Event>,
    counts: Arc<Counts>,
}

impl Subscription {
    /// The next event; `None` if this page did not keep up, or if there will be none any more.
    pub async fn next(&mut self) -> Option<Event> {
        match self.events.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.counts.slow.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.counts.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_that_keeps_up_gets_everything_in_order() {
        let feed = Feed::default();
        feed.publish("process", &0);
        let mut page = feed.subscribe().unwrap();
        assert!(feed.is_heard());
        for number in 1..=2 * WAITING {
            feed.publish("process", &number);
            let event = page.next().await.unwrap();
            assert_eq!((event.kind, &*event.data), ("process", &*number.to_string()));
        }
        drop(page);
        assert!(!feed.is_heard());
        assert_eq!(feed.counts(), FeedCounts::default());
    }

    #[tokio::test]
    async fn a_slow_page_is_dropped_and_counted_and_holds_up_nobody() {
        let feed = Feed::default();
        let mut slow = feed.subscribe().unwrap();
        let mut other = feed.subscribe().unwrap();
        for number in 0..=WAITING {
            feed.publish("incident", &number);
            assert!(other.next().await.is_some());
        }
        assert_eq!(slow.next().await, None);
        drop(slow);
        let counts = feed.counts();
        assert_eq!((counts.slow, counts.clients), (1, 1));
    }

    #[test]
    fn only_so_many_pages_are_let_in() {
        let feed = Feed::default();
        let mut pages: Vec<_> = (0..CLIENTS).map(|_| feed.subscribe().unwrap()).collect();
        assert!(feed.subscribe().is_none());
        assert_eq!(feed.counts().refused, 1);
        pages.pop();
        assert!(feed.subscribe().is_some());
    }
}
