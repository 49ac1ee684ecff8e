//! The HTTP server: `/metrics`, `/healthz`, `/readyz`, `/debug/ledger`, `/api/v1`, and the live page at `/`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::TcpListener;

use super::metrics::Metrics;
use super::page;
use super::source::{Source, Unanswered};

/// The version of the text format that Prometheus reads.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long a client may leave what was sent to it untaken.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server can ask.
#[derive(Clone)]
pub struct Exporter {
    /// The ledger.
    pub source: Source,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Binds the address, so that a port in use is known before anything is attached.
///
/// # Errors
/// One line that says what to do.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "another program listens there, choose another port with --listen",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address, see `ip address`",
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
            _ => return anyhow::anyhow!("cannot listen on {address}: {error}"),
        };
        anyhow::anyhow!("cannot listen on {address}: {remedy}")
    })
}

/// Serves until `end` is ready.
///
/// # Errors
/// If the listener breaks.
pub async fn serve(
    listener: TcpListener,
    exporter: Exporter,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // A page whose reader has stopped must not keep its connection for ever: what it does not take in this time, the
    // kernel gives up.
    let listener = listener.tap_io(|connection| {
        let patience = u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX);
        if let Err(error) = set_tcp_user_timeout(connection, patience) {
            tracing::debug!(%error, "a connection has no timeout");
        }
    });
    axum::serve(listener, router(exporter))
        .with_graceful_shutdown(end)
        .await
}

fn router(exporter: Exporter) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/debug/ledger", get(ledger))
        .merge(super::api::router())
        .merge(page::router())
        .with_state(exporter)
}

async fn metrics(State(exporter): State<Exporter>) -> Response {
    let start = Instant::now();
    let mut reading = match exporter.source.reading().await {
        Ok(reading) => reading,
        Err(why) => return unavailable(why),
    };
    reading.ready = exporter.source.readiness().ready;
    let rendered = exporter.metrics.render(reading);
    exporter.metrics.note_scrape(start.elapsed());
    match rendered {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

/// Whether the main loop turns over. While sdtrace starts it is healthy and not ready.
async fn health(State(exporter): State<Exporter>) -> Response {
    match exporter.source.health() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn readiness(State(exporter): State<Exporter>) -> Response {
    let readiness = exporter.source.readiness();
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness)).into_response()
}

async fn ledger(State(exporter): State<Exporter>) -> Response {
    match exporter.source.dump().await {
        Ok(dump) => Json(dump).into_response(),
        Err(why) => unavailable(why),
    }
}

fn unavailable(why: Unanswered) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::export::client;
    use crate::export::metrics::Facts;
    use crate::export::metrics::reading::Reading;
    use crate::export::source::{Owner, Readiness, Request, channel};

    async fn served() -> (String, Owner) {
        let (source, owner) = channel();
        let facts = Facts {
            kernel: "test".to_owned(),
            started: UNIX_EPOCH,
        };
        let metrics = Arc::new(Metrics::new(&facts).unwrap());
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(
            listener,
            Exporter { source, metrics },
            std::future::pending(),
        ));
        (url, owner)
    }

    async fn status(url: &str, path: &str) -> (u16, String) {
        let answer = client::get(&format!("{url}{path}"), Duration::from_secs(10))
            .await
            .unwrap();
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    #[tokio::test]
    async fn a_daemon_that_starts_is_healthy_and_not_ready() {
        let (url, _owner) = served().await;
        assert_eq!(status(&url, "/healthz").await.0, 200);
        let (code, body) = status(&url, "/readyz").await;
        assert_eq!((code, body.contains("being attached")), (503, true), "{body}");
        assert_eq!(status(&url, "/metrics").await.0, 503);
        assert_eq!(status(&url, "/nowhere").await.0, 404);
    }

    #[tokio::test]
    async fn a_ready_daemon_answers() {
        let (url, mut owner) = served().await;
        owner.readiness.send(Readiness::of(Vec::new())).unwrap();
        let answering = tokio::spawn(async move {
            while let Some(request) = owner.requests.recv().await {
                if let Request::Reading(answer) = request {
                    let _ = answer.send(Reading::default());
                }
            }
        });
        let (code, body) = status(&url, "/readyz").await;
        assert_eq!((code, body.as_str()), (200, r#"{"ready":true,"reasons":[]}"#));
        let (code, body) = status(&url, "/metrics").await;
        assert_eq!(
            (code, body.contains("\nsdtrace_ready 1\n")),
            (200, true),
            "{body}"
        );
        answering.abort();
    }

    #[tokio::test]
    async fn a_broken_probe_and_an_ended_ledger_are_named() {
        let (url, owner) = served().await;
        owner
            .readiness
            .send(Readiness::of(vec!["do_huge_pmd_wp_page is broken".to_owned()]))
            .unwrap();
        let (code, body) = status(&url, "/readyz").await;
        assert_eq!(
            (code, body.contains("do_huge_pmd_wp_page")),
            (503, true),
            "{body}"
        );
        drop(owner);
        assert_eq!(status(&url, "/healthz").await.0, 503);
        assert_eq!(status(&url, "/debug/ledger").await.0, 503);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_what_to_do() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(listener.local_addr().unwrap())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("another port with --listen"), "{error}");
    }
}
