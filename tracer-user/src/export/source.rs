//! Where the exporters get their answers from: the task that owns the probes and the ledger.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::api::view::View;
use super::metrics::reading::Reading;
use super::page::feed::Feed;
use super::page::map::Known;
use super::pulse::{LONGEST_TURN, Pulse};
use crate::ledger::dump::Dump;

/// How long the start may take: seconds on hardware, up to one minute in an emulated machine.
const LONGEST_START: Duration = Duration::from_mins(5);
/// How long an answer may take; looking at a full table takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question to the task that owns the probes. It takes in all waiting records before it answers.
#[derive(Debug)]
pub enum Request {
    /// What a scrape needs.
    Reading(oneshot::Sender<Reading>),
    /// The whole ledger.
    Dump(oneshot::Sender<Dump>),
    /// A look at a small part of it.
    Look(Look),
    /// What is known about the newest epoch of the address space with this id; `None` if there is none.
    Map(u64, oneshot::Sender<Option<Known>>),
}

/// A question that is answered where the ledger lives.
pub struct Look(Box<dyn FnOnce(&View<'_>) + Send>);

impl Look {
    /// Answers it. It must not take long: no record is taken in meanwhile.
    pub fn answer(self, view: &View<'_>) {
        (self.0)(view);
    }
}

impl fmt::Debug for Look {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Look")
    }
}

/// Whether sdtrace does what it was started for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Everything that was asked for works.
    pub ready: bool,
    /// Why not, one line each.
    pub reasons: Vec<String>,
    /// Whether the probes are being attached still, so that there is nothing to ask for yet.
    #[serde(skip)]
    pub starting: bool,
}

impl Readiness {
    /// Before the probes are attached.
    #[must_use]
    pub fn starting() -> Self {
        Self {
            ready: false,
            reasons: vec!["the probes are being attached".to_owned()],
            starting: true,
        }
    }

    /// With these reasons against it.
    #[must_use]
    pub fn of(reasons: Vec<String>) -> Self {
        Self {
            ready: reasons.is_empty(),
            reasons,
            starting: false,
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The probes are not attached yet.
    #[error("sdtrace is starting: the probes are being attached")]
    Starting,
    /// The task that owns the probes has ended.
    #[error("sdtrace is ending")]
    Gone,
    /// It does not answer in time.
    #[error("the ledger does not answer within 5 s")]
    Late,
}

/// The exporters' end.
#[derive(Clone, Debug)]
pub struct Source {
    requests: mpsc::Sender<Request>,
    readiness: watch::Receiver<Readiness>,
    pulse: Pulse,
    feed: Feed,
}

/// The owner's end.
#[derive(Debug)]
pub struct Owner {
    /// Questions to answer.
    pub requests: mpsc::Receiver<Request>,
    /// To say how things stand.
    pub readiness: watch::Sender<Readiness>,
    /// To show that the main loop turns over and takes in the records of the ring buffer.
    pub pulse: Pulse,
    /// To tell open pages what changes.
    pub feed: Feed,
}

/// Both ends. At most 16 questions wait; more wait outside.
#[must_use]
pub fn channel() -> (Source, Owner) {
    with_pulse(Pulse::default())
}

fn with_pulse(pulse: Pulse) -> (Source, Owner) {
    let (ask, asked) = mpsc::channel(16);
    let (tell, told) = watch::channel(Readiness::starting());
    let feed = Feed::default();
    let source = Source {
        requests: ask,
        readiness: told,
        pulse: pulse.clone(),
        feed: feed.clone(),
    };
    let owner = Owner {
        requests: asked,
        readiness: tell,
        pulse,
        feed,
    };
    (source, owner)
}

impl Source {
    /// How things stand.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        if self.requests.is_closed() {
            return Readiness::of(vec![Unanswered::Gone.to_string()]);
        }
        let mut readiness = self.readiness.borrow().clone();
        if !readiness.starting
            && let Err(why) = self.health()
        {
            readiness.ready = false;
            readiness
                .reasons
                .push(format!("records are not taken from the ring buffer: {why}"));
        }
        readiness
    }

    /// Whether the main loop turns over, or the start is under way.
    ///
    /// # Errors
    /// One line that says why not, and what to do.
    pub fn health(&self) -> Result<(), String> {
        if self.requests.is_closed() {
            return Err(Unanswered::Gone.to_string());
        }
        let age = self.pulse.age(Instant::now());
        if self.readiness.borrow().starting {
            if age > LONGEST_START {
                return Err(format!(
                    "the start has taken {} s and is not over; restart sdtrace with --log-level debug",
                    age.as_secs()
                ));
            }
        } else if age > LONGEST_TURN {
            return Err(format!(
                "the main loop turned over {} s ago last, it should every second; restart sdtrace if it stays so",
                age.as_secs()
            ));
        }
        Ok(())
    }

    /// Whether the task that owns the probes has ended.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.requests.is_closed()
    }

    /// Waits until the readiness is another one.
    pub async fn changed(&mut self) {
        if self.readiness.changed().await.is_err() {
            // The owner is gone, nothing changes any more.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the readiness is another one, or the task that owns the probes has ended.
    pub async fn changed_or_gone(&mut self) {
        drop(self.readiness.changed().await);
    }

    /// What changes.
    #[must_use]
    pub const fn feed(&self) -> &Feed {
        &self.feed
    }

    /// What is known about the newest epoch of an address space.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn map(&self, id: u64) -> Result<Option<Known>, Unanswered> {
        self.ask(|answer| Request::Map(id, answer)).await
    }

    /// What a scrape needs.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn reading(&self) -> Result<Reading, Unanswered> {
        self.ask(Request::Reading).await
    }

    /// The whole ledger.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn dump(&self) -> Result<Dump, Unanswered> {
        self.ask(Request::Dump).await
    }

    /// Has the owner of the ledger look something up: a page, never everything.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn look<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        // Whoever asked may have gone; that is no matter.
        self.ask(|answer| Request::Look(Look(Box::new(|view| drop(answer.send(question(view)))))))
            .await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Unanswered> {
        if self.readiness.borrow().starting {
            return Err(Unanswered::Starting);
        }
        let (answer, answered) = oneshot::channel();
        let asking = async {
            self.requests
                .send(request(answer))
                .await
                .map_err(|_| Unanswered::Gone)?;
            answered.await.map_err(|_| Unanswered::Gone)
        };
        tokio::time::timeout(PATIENCE, asking)
            .await
            .unwrap_or(Err(Unanswered::Late))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_loop_that_hangs_is_neither_healthy_nor_ready() {
        let (source, owner) = with_pulse(Pulse::aged(LONGEST_TURN + Duration::from_secs(1)));
        assert_eq!(source.health(), Ok(()), "it starts");
        owner.readiness.send(Readiness::of(Vec::new())).unwrap();
        let why = source.health().unwrap_err();
        assert!(why.contains("the main loop turned over 16 s ago"), "{why}");
        let readiness = source.readiness();
        assert!(!readiness.ready, "{readiness:?}");
        assert!(readiness.reasons[0].contains("ring buffer"), "{readiness:?}");
        owner.pulse.beat(Instant::now());
        assert_eq!(source.health(), Ok(()));
        assert!(source.readiness().ready);
        drop(owner);
        assert!(source.health().is_err() && !source.readiness().ready);
    }

    #[test]
    fn a_start_that_hangs_is_not_healthy() {
        let (source, _owner) = with_pulse(Pulse::aged(LONGEST_START + Duration::from_secs(1)));
        let why = source.health().unwrap_err();
        assert!(why.starts_with("the start has taken 301 s"), "{why}");
    }
}
