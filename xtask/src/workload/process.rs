//! Making processes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, ensure};
use rustix::pipe::pipe;

use super::report::Report;

/// A child that has reported and waits; it exits when this is dropped.
#[derive(Debug)]
pub struct Child {
    /// What it did.
    pub report: Report,
    pid: libc::pid_t,
    /// Its standard of living: the child exits when this end of the pipe closes.
    hold: Option<OwnedFd>,
}

impl Child {
    /// Lets it exit and waits for that.
    ///
    /// # Errors
    /// If it ended otherwise than it should.
    pub fn end(mut self) -> Result<()> {
        self.hold = None;
        let status = wait(self.pid)?;
        self.pid = 0;
        ensure!(status == 0, "the child ended with status {status:#x}");
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.hold = None;
        if self.pid != 0 {
            // Nobody is left who could be told.
            let _ = wait(self.pid);
        }
    }
}

/// Waits for a child and returns its wait status.
///
/// # Errors
/// What waitpid says.
pub fn wait(pid: libc::pid_t) -> Result<i32> {
    let mut status = 0;
    // SAFETY: `status` is ours.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    ensure!(waited == pid, "waitpid: {}", std::io::Error::last_os_error());
    Ok(status)
}

/// Forks; the child does `what`, tells its report, and waits until the parent drops it.
///
/// # Errors
/// If the fork fails or the child cannot do it.
pub fn forked(what: impl FnOnce() -> Result<Report>) -> Result<Child> {
    let (reader, writer) = pipe()?;
    let (hold_reader, hold) = pipe()?;
    // SAFETY: this process has one thread, so the child may do what it likes.
    let pid = unsafe { libc::fork() };
    ensure!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        drop((reader, hold));
        let status = i32::from(tell(what, writer).is_err());
        // The end of the pipe is the parent's word.
        let _ = File::from(hold_reader).read(&mut [0]);
        // SAFETY: ends the child without running what the parent registered.
        unsafe { libc::_exit(status) }
    }
    drop((writer, hold_reader));
    let mut text = String::new();
    File::from(reader).read_to_string(&mut text)?;
    let report: Result<Report, String> =
        serde_json::from_str(&text).with_context(|| format!("the child said {text:?}"))?;
    Ok(Child {
        report: report.map_err(anyhow::Error::msg).context("in the child")?,
        pid,
        hold: Some(hold),
    })
}

fn tell(what: impl FnOnce() -> Result<Report>, writer: OwnedFd) -> Result<()> {
    let report = what().map_err(|error| format!("{error:#}"));
    let text = serde_json::to_vec(&report)?;
    File::from(writer).write_all(&text)?;
    Ok(())
}
