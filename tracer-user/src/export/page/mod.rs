//! The live page: one document, its style and its scripts, all in the binary. It asks `/api/v1` of the same origin, and
//! nothing else, which its Content-Security-Policy makes sure of.

pub mod changes;
pub mod events;
pub mod feed;
pub mod map;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::http::Exporter;

/// Nothing but what this server gives out; no inline script or style, no frame, no form.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
struct Asset {
    name: &'static str,
    kind: &'static str,
    content: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $kind:literal) => {
        Asset {
            name: $name,
            kind: $kind,
            content: include_bytes!(concat!("assets/", $name)),
        }
    };
}

const DOCUMENT: Asset = asset!("index.html", "text/html; charset=utf-8");

const ASSETS: [Asset; 13] = [
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("parts.css", "text/css; charset=utf-8"),
    asset!("process.css", "text/css; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
    asset!("theme.js", "text/javascript; charset=utf-8"),
    asset!("main.js", "text/javascript; charset=utf-8"),
    asset!("api.js", "text/javascript; charset=utf-8"),
    asset!("words.js", "text/javascript; charset=utf-8"),
    asset!("list.js", "text/javascript; charset=utf-8"),
    asset!("detail.js", "text/javascript; charset=utf-8"),
    asset!("map.js", "text/javascript; charset=utf-8"),
    asset!("timeline.js", "text/javascript; charset=utf-8"),
    asset!("causes.js", "text/javascript; charset=utf-8"),
];

/// The page's paths, and its events. (The map is an answer of the API like others.)
pub fn router() -> Router<Exporter> {
    Router::new()
        .route(
            "/",
            get(|headers: HeaderMap| async move { answer(&DOCUMENT, &headers) }),
        )
        .route("/page/{name}", get(file))
        .route("/api/v1/events", get(events::events))
}

async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => answer(asset, &headers),
        None => (StatusCode::NOT_FOUND, "the page has no such file\n").into_response(),
    }
}

/// The tag of a file: another one for another content (FNV-1a; it only has to differ between two versions).
fn tag(content: &[u8]) -> String {
    let hash = content.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("\"{hash:016x}\"")
}

fn answer(asset: &'static Asset, headers: &HeaderMap) -> Response {
    let tag = tag(asset.content);
    // Asked for each time, sent once for each version: nobody looks at the page of an older sdtrace.
    let known = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| known == tag.as_str());
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        asset.content.into_response()
    };
    let all: [(HeaderName, &str); 7] = [
        (header::CONTENT_TYPE, asset.kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, &tag),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in all {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests;
