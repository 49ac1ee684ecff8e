//! Starting and ending.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::suite::actor::Actor;
use crate::suite::attached::{self, Attached};
use crate::suite::{Suite, compare, verdicts};

pub fn starts(suite: &mut Suite) -> Result<()> {
    let mut actor = Actor::start("shared")?;
    actor.clear_itself()?;
    suite.adopted = Some(actor);
    suite.start(&[])?;
    Attached::now()?.ensure_more_than(&suite.before)
}

pub fn verdicts_are_as_expected(suite: &mut Suite) -> Result<()> {
    verdicts::check(&suite.daemon()?.scrape()?, &suite.options.attach, &suite.series)
}

/// After everything that was played: no loss is counted, and the ledger is whole. What `/metrics` says at the end goes
/// to the host, where promtool reads it.
pub fn nothing_was_lost(suite: &mut Suite) -> Result<()> {
    let text = suite.daemon()?.get("/metrics")?;
    std::fs::write(suite.options.out.join("metrics"), &text)?;
    let (scrape, ledger) = suite.look()?;
    compare::consistent(&ledger, &scrape)?;
    let lost: Vec<_> = scrape
        .all("sdtrace_lost_records_total", &[])
        .filter(|(_, value)| *value != 0.0)
        .collect();
    ensure!(lost.is_empty(), "lost: {lost:?}");
    ensure!(
        ledger.unlinked_faults == 0,
        "{} faults without a row",
        ledger.unlinked_faults
    );
    let incomplete = scrape.count("sdtrace_ledger_incomplete", &[])?;
    ensure!(
        incomplete == u64::from(!ledger.complete),
        "the gauge for an incomplete ledger is {incomplete}"
    );
    ensure!(scrape.count("sdtrace_ready", &[])? == 1, "sdtrace is not ready");
    Ok(())
}

pub fn sigterm_detaches(suite: &mut Suite) -> Result<()> {
    let daemon = suite.daemon.take().context("sdtrace is not running")?;
    let said = daemon.said();
    let status = daemon.end(Signal::TERM)?;
    ensure!(
        status.code() == Some(0),
        "sdtrace ended with {status} after SIGTERM; it had said: {said}"
    );
    Attached::wait_until_gone(&suite.before).map(|_| ())
}

/// Ended by force, sdtrace cannot tidy up: the kernel must. Before that, a filter leaves a process out.
pub fn kill_detaches(suite: &mut Suite) -> Result<()> {
    suite.start(&["--comm", "somebody-else"])?;
    Attached::now()?.ensure_more_than(&suite.before)?;
    let before = suite.daemon()?.scrape()?;
    let mut actor = Actor::start("private")?;
    actor.clear_itself()?;
    actor.act()?;
    let (after, ledger) = suite.look()?;
    let count = |name, labels| -> Result<u64> { Ok(after.sum(name, labels)? - before.sum(name, labels)?) };
    let filtered = count("softdirty_clears_total", &[("result", "filtered")])?;
    let faults = count("softdirty_faults_total", &[])?;
    ensure!(
        (filtered, faults, ledger.address_spaces.len()) == (1, 0, 0),
        "of a process that the filter leaves out: {filtered} clears, {faults} faults, {} address spaces",
        ledger.address_spaces.len()
    );
    // Its own clear and its look at its own pagemap are no reason to watch the faults of the machine.
    let watching = attached::on("handle_mm_fault")?;
    ensure!(
        watching.is_empty(),
        "a process that the filter leaves out has them attached: {watching:?}"
    );
    actor.end()?;
    let status = suite
        .daemon
        .take()
        .context("sdtrace is not running")?
        .end(Signal::KILL)?;
    ensure!(
        status.signal() == Some(9),
        "sdtrace ended with {status} after SIGKILL"
    );
    Attached::wait_until_gone(&suite.before).map(|_| ())
}
