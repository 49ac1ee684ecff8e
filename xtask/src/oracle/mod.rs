//! A process that knows which of its pages changed: the truth that a tracker's reading of soft-dirty bits is held against.
//!
//! `soak oracle` maps memory of several kinds and lets many threads write to it. Each thread notes a page in a ledger
//! before it changes it. On `pause` all of them stop between two writes, so that what the ledger holds then is exactly
//! what changed since `forget`, whatever the kernel's bits say. It takes one command a line and answers each with one
//! line of JSON:
//!
//! | command | answer |
//! |---|---|
//! | `go` | the threads write |
//! | `pause` | they stand still; so it begins |
//! | `changed` | pages that changed since `forget`, standing still |
//! | `verify` | pages whose content is not what was written last |
//! | `content` | the first eight bytes that each page should have |
//! | `forget` | a clear came: the ledger begins anew |

mod client;
mod memory;
mod threads;

pub use client::{Oracle, Settings};
pub use memory::AreaInfo;

use std::io::{self, BufRead as _, Write as _};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use memory::Memories;
use threads::Writers;

/// Pages `from..to` of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// First page.
    pub from: usize,
    /// First page after them.
    pub to: usize,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// The memory is set up, the threads stand still.
    Ready { pid: u32, areas: Vec<AreaInfo> },
    /// Done.
    Done,
    /// Writes that were made since the last `go`.
    Paused { writes: u64 },
    /// Changed pages of each area.
    Changed(Vec<Vec<Pages>>),
    /// Pages of each area whose content is wrong.
    Verified(Vec<Vec<Pages>>),
    /// The first eight bytes of each page of each area.
    Content(Vec<Vec<u64>>),
    /// Something did not work.
    Failed(String),
}

/// Serves commands until the input ends.
///
/// # Errors
/// What went wrong; it has been told on standard output too.
pub fn serve(settings: Settings) -> Result<()> {
    let outcome = perform(settings);
    if let Err(error) = &outcome {
        tell(&Answer::Failed(format!("{error:#}")))?;
    }
    outcome
}

fn perform(settings: Settings) -> Result<()> {
    let memories = Memories::map(settings.pages, settings.mergeable)?;
    let writers = Writers::start(&memories, settings.threads, Duration::from_millis(settings.pace))?;
    tell(&Answer::Ready {
        pid: std::process::id(),
        areas: memories.info(),
    })?;
    for line in io::stdin().lock().lines() {
        let answer = match line?.trim() {
            "go" => {
                writers.go();
                Answer::Done
            }
            "pause" => Answer::Paused {
                writes: writers.pause()?,
            },
            "changed" => Answer::Changed(memories.changed()),
            "verify" => Answer::Verified(memories.wrong()),
            "content" => Answer::Content(memories.content()),
            "forget" => {
                memories.forget();
                Answer::Done
            }
            other => bail!("`{other}` is no command; there are: go, pause, changed, verify, content, forget"),
        };
        tell(&answer)?;
    }
    Ok(())
}

fn tell(answer: &Answer) -> Result<()> {
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, answer)?;
    output.write_all(b"\n")?;
    output.flush()?;
    Ok(())
}
