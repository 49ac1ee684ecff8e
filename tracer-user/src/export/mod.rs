//! What leaves sdtrace: metrics, health, the ledger as JSON, the JSON API.

pub mod api;
pub mod client;
pub mod http;
pub mod metrics;
pub mod page;
pub mod pulse;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
pub mod source;
