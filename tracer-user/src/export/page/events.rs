//! `GET /api/v1/events`: server-sent events.
//!
//! The answer begins at once, while sdtrace starts too, with a `health` event, and has another one every five seconds:
//! a page that hears none is cut off, and knows it. What happened before is fetched from the other paths.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::super::http::Exporter;
use super::super::source::Source;
use super::feed::{CLIENTS, Subscription};

/// How often a page is told that its connection lives.
pub const BEAT: Duration = Duration::from_secs(5);
/// How long a browser waits before it connects anew, if the server does not say otherwise.
const RETRY: Duration = Duration::from_secs(2);

/// How sdtrace is.
#[derive(Debug, Serialize)]
struct Health {
    ready: bool,
    starting: bool,
    reasons: Vec<String>,
    /// Seconds between two of these.
    beat_seconds: u64,
    version: &'static str,
}

/// What one page waits for.
struct Listening {
    source: Source,
    page: Subscription,
    beat: Interval,
}

impl Listening {
    /// The next event; `None` ends the answer: the page was too slow, or sdtrace ends.
    async fn next(mut self) -> Option<(Result<sse::Event, Infallible>, Self)> {
        let event = tokio::select! {
            event = self.page.next() => {
                let event = event?;
                sse::Event::default().event(event.kind).data(&*event.data)
            }
            _ = self.beat.tick() => self.health()?,
            () = self.source.changed_or_gone() => self.health()?,
        };
        Some((Ok(event), self))
    }

    fn health(&self) -> Option<sse::Event> {
        if self.source.is_ending() {
            return None;
        }
        let readiness = self.source.readiness();
        let health = Health {
            ready: readiness.ready,
            starting: readiness.starting,
            reasons: readiness.reasons,
            beat_seconds: BEAT.as_secs(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let data = serde_json::to_string(&health).unwrap_or_default();
        Some(sse::Event::default().event("health").data(data).retry(RETRY))
    }
}

/// Answers with events until the page closes, falls behind, or sdtrace ends.
pub async fn events(State(exporter): State<Exporter>) -> Response {
    let source = exporter.source;
    let Some(page) = source.feed().subscribe() else {
        let message = format!("{CLIENTS} pages are open, which is as many as sdtrace serves; close one");
        let body = Json(json!({"error": {"code": "too_many_clients", "message": message}}));
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            [(header::RETRY_AFTER, "10")],
            body,
        )
            .into_response();
    };
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let listening = Listening { source, page, beat };
    let headers = [(header::CACHE_CONTROL, "no-store")];
    (headers, Sse::new(stream::unfold(listening, Listening::next))).into_response()
}
