//! `GET /api/v1/processes/{id}/map`: the address space of one process, VMA by VMA, with the pages that were written in
//! the newest epoch, and those whose writes were or can be missed.
//!
//! What is mapped now comes from `/proc/PID/maps`, read on a thread that may block; what the clear met, what was written
//! and what was found comes from the ledger's task. [`build`] joins the two and is pure.

pub mod build;
mod layout;

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::detectors::{Detection, Hex, IncidentRange, Range, Verdict};
use crate::export::api::error::ApiError;
use crate::export::api::no_process;
use crate::export::api::query::{Asked, Named, ProcessPath};
use crate::export::http::Exporter;
use crate::ledger::Newest;
use crate::probes::Written;

/// VMAs of one answer.
pub const VMAS: usize = 4_096;
/// VMA states that the ledger's task hands over.
pub const STATES: usize = 2 * VMAS;
/// Pieces of 2 MiB with written pages that it hands over: 8 GiB.
pub const CHUNKS: usize = 4_096;
/// Ranges of written pages of one answer.
pub const WRITTEN: usize = 4_096;
/// How long /proc may take: a process that holds its `mmap_lock` makes its readers wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the ledger's task knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The newest epoch.
    pub newest: Newest,
    /// There are more VMA states.
    pub more_vmas: bool,
    /// What was written in it.
    pub written: Written,
    /// What the detectors say.
    pub detection: Option<Detection>,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// Addresses.
    pub range: Range,
    /// `rwxp` or `rwxs`, as the kernel prints it.
    pub permissions: String,
    /// Name.
    pub name: Option<String>,
    /// A file is mapped.
    pub file: bool,
}

/// The map of an address space. Addresses are hexadecimal strings.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Map {
    /// The address space.
    pub id: u64,
    /// Number of the newest epoch; 0 if none was seen.
    pub epoch: u32,
    /// Its verdict so far.
    pub verdict: Option<Verdict>,
    /// Where the VMAs come from: `proc` (what is mapped now) or `ledger` (what the newest epoch met; the process is gone,
    /// cannot be seen from here, or did not answer in time).
    pub layout: &'static str,
    /// Bytes that are mapped, those that are not listed included.
    pub mapped_bytes: u64,
    /// By address.
    pub vmas: Vec<Vma>,
    /// Pages whose write fault was handled in this epoch.
    pub written: Pages,
    /// What was found, by cause and evidence.
    pub found: Vec<Found>,
    /// VMAs or pieces with written pages were left out, because there are more than an answer holds.
    pub truncated: bool,
}

/// A VMA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Vma {
    /// First address.
    pub start: Hex,
    /// First address behind.
    pub end: Hex,
    /// `private_anon`, `shared_anon`, `private_file`, `shared_file`, or `special` (the kernel's own).
    pub kind: String,
    /// `rwxp`, as /proc prints it.
    pub permissions: String,
    /// `armed` (writes are being tracked), `blind` (soft-dirty cannot track it), `fresh` (mapped after the clear, reads as
    /// dirty as a whole), `read_only` (cannot be written), `special`, or `unknown` (the ledger does not tell).
    pub state: &'static str,
    /// Why it is blind.
    pub blind: Option<&'static str>,
    /// Name of the file, `[heap]`, `[stack]` and the like.
    pub name: Option<String>,
    /// Pages written in this epoch.
    pub written_pages: u64,
    /// Pages with a missed write.
    pub missed_pages: u64,
    /// Pages whose next write would be missed.
    pub exposed_pages: u64,
}

/// A set of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Pages {
    /// Number of pages, exact.
    pub pages: u64,
    /// Where.
    pub ranges: Vec<IncidentRange>,
    /// Ranges were joined over gaps of up to so many pages to keep the list short: it has more than was written, never
    /// less. 0: nothing was joined.
    pub joined_pages: u64,
    /// Marks of an epoch long ago may be among them.
    pub doubtful: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Found {
    /// The cause, see `/api/v1/causes`.
    pub cause: String,
    /// `proved`, `observed`, `exposed` or `hazard`.
    pub evidence: &'static str,
    /// Pages.
    pub pages: u64,
    /// Where.
    pub ranges: Vec<IncidentRange>,
}

/// A part of the address space.
#[derive(Clone, Copy, Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MapQuery {
    /// First address; the beginning if it is not given.
    #[serde(default)]
    #[schemars(with = "Hex")]
    start: Option<Hex>,
    /// First address behind; the end if it is not given. Not above `start` it shows nothing.
    #[serde(default)]
    #[schemars(with = "Hex")]
    end: Option<Hex>,
}

/// Answers with the map of one address space; `start` and `end` limit it to a part.
///
/// # Errors
/// If there is no such address space, or nobody who knows.
pub async fn map(
    State(exporter): State<Exporter>,
    Named(path): Named<ProcessPath>,
    Asked(query): Asked<MapQuery>,
) -> Result<Json<Map>, ApiError> {
    let id = path.id.get();
    let start = query.start.map_or(0, |start| start.0);
    let end = query.end.map_or(u64::MAX, |end| end.0);
    // A description of the API cannot say that one number lies below another: a window the wrong way round is empty.
    let window = Range {
        start,
        end: end.max(start),
    };
    let known = exporter
        .source
        .map(id)
        .await?
        .ok_or_else(|| no_process(path.id))?;
    let mapped = match known.newest.process.filter(|_| known.newest.live) {
        Some((pid, start_ns)) => {
            let reading = tokio::task::spawn_blocking(move || layout::read(pid, start_ns));
            timeout(PATIENCE, reading)
                .await
                .ok()
                .and_then(Result::ok)
                .flatten()
        }
        None => None,
    };
    Ok(Json(build::map(id, &known, mapped, window)))
}
