//! `sdtrace dump`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cli::DumpArgs;
use crate::export::client;
use crate::ledger::dump::Dump;

/// Prints the ledger of a running sdtrace.
pub(super) fn dump(arguments: &DumpArgs) -> Result<()> {
    let url = format!("{}/debug/ledger", arguments.url.trim_end_matches('/'));
    let patience = Duration::from_secs(arguments.timeout);
    let answer = super::runtime()?
        .block_on(client::get(&url, patience))
        .context("no ledger; is `sdtrace run` running, and is --url right?")?;
    let text = String::from_utf8_lossy(&answer.body);
    if answer.status != 200 {
        bail!("{url} answers {}: {}", answer.status, text.trim());
    }
    let ledger: Dump =
        serde_json::from_str(&text).with_context(|| format!("{url} answers something else than a ledger"))?;
    super::print(&(serde_json::to_string_pretty(&ledger)? + "\n"))
}
