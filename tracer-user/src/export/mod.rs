//! What leaves sdtrace: metrics, health, the ledger as JSON.

pub mod client;
pub mod http;
pub mod metrics;
pub mod pulse;
pub mod source;
