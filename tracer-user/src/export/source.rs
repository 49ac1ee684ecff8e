//! Where the exporters get their answers from: the task that owns the probes and the ledger.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::metrics::reading::Reading;
use crate::ledger::dump::Dump;

/// How long an answer may take; looking at a full table takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question to the task that owns the probes. It takes in all waiting records before it answers.
#[derive(Debug)]
pub enum Request {
    /// What a scrape needs.
    Reading(oneshot::Sender<Reading>),
    /// The whole ledger.
    Dump(oneshot::Sender<Dump>),
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
}

/// The owner's end.
#[derive(Debug)]
pub struct Owner {
    /// Questions to answer.
    pub requests: mpsc::Receiver<Request>,
    /// To say how things stand.
    pub readiness: watch::Sender<Readiness>,
}

/// Both ends. At most 16 questions wait; more wait outside.
#[must_use]
pub fn channel() -> (Source, Owner) {
    let (ask, asked) = mpsc::channel(16);
    let (tell, told) = watch::channel(Readiness::starting());
    let source = Source {
        requests: ask,
        readiness: told,
    };
    let owner = Owner {
        requests: asked,
        readiness: tell,
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
        self.readiness.borrow().clone()
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
