//! Proof that soft-dirty tracking works: a child of ours clears its own bits, writes, and reads them back. That
//! `clear_refs` takes a 4 proves nothing: a kernel without support takes it too.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::probes::self_test::{Mapping, Report, SUBCOMMAND};

/// What the round trip showed for one kind of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct RoundTrip {
    /// Which memory.
    pub(super) memory: String,
    /// Whether exactly the written pages read soft-dirty, and none before.
    pub(super) works: bool,
    /// What was seen.
    pub(super) seen: String,
}

/// Makes the round trip, for each kind of memory that the child has.
pub(super) fn round_trips() -> Result<Vec<RoundTrip>> {
    let program = std::env::current_exe().context("sdtrace cannot find its own executable")?;
    let mut child = Command::new(program)
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("the child for the round trip cannot be started")?;
    if let Some(mut input) = child.stdin.take() {
        // A child that is gone already says why below.
        let _ = input.write_all(b"go\n");
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let report: Report = serde_json::from_slice(&output.stdout).context("the child's report is garbled")?;
    Ok(report.mappings.iter().map(judge).collect())
}

fn judge(mapping: &Mapping) -> RoundTrip {
    let Mapping {
        writes,
        soft_dirty,
        soft_dirty_after_clear,
        ..
    } = *mapping;
    RoundTrip {
        memory: mapping.name.clone(),
        works: soft_dirty_after_clear == 0 && soft_dirty == writes && writes > 0,
        seen: format!(
            "{soft_dirty_after_clear} pages soft-dirty after the clear, {soft_dirty} after {writes} were written"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(soft_dirty_after_clear: u64, soft_dirty: u64) -> Mapping {
        Mapping {
            name: "private anonymous memory".to_owned(),
            start: 0,
            end: 0,
            file: String::new(),
            flags: Vec::new(),
            kind: String::new(),
            writes: 5,
            rewrites: 0,
            soft_dirty,
            soft_dirty_after_clear,
            mprotects: 0,
        }
    }

    #[test]
    fn only_exactly_the_written_pages_prove_it() {
        assert!(judge(&mapping(0, 5)).works);
        // No support: the bit is never set. s390 without it, or a clear that does nothing: always set.
        for (after_clear, after_writes) in [(0, 0), (0, 4), (16, 16), (1, 5)] {
            assert!(!judge(&mapping(after_clear, after_writes)).works);
        }
    }
}
