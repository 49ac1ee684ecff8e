//! The oracle, driven line by line.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{Answer, AreaInfo, Pages};

/// Descriptors below this one are not handed on.
const INHERITED: libc::c_int = 64;

/// What an oracle is like.
#[derive(Clone, Copy, Debug, Args)]
pub struct Settings {
    /// Threads that write.
    #[arg(long, default_value_t = 8)]
    pub threads: usize,
    /// Pages of each area (the huge one has 512).
    #[arg(long, default_value_t = 512)]
    pub pages: usize,
    /// Milliseconds that a thread naps between two bursts of writes.
    #[arg(long, default_value_t = 5)]
    pub pace: u64,
    /// Also an area with `MADV_MERGEABLE` whose pages get equal contents.
    #[arg(long)]
    pub mergeable: bool,
}

impl Settings {
    fn arguments(self) -> Vec<String> {
        let mut arguments = vec![
            format!("--threads={}", self.threads),
            format!("--pages={}", self.pages),
            format!("--pace={}", self.pace),
        ];
        arguments.extend(self.mergeable.then(|| "--mergeable".to_owned()));
        arguments
    }
}

/// A running oracle; killed when dropped.
#[derive(Debug)]
pub struct Oracle {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Its areas.
    pub areas: Vec<AreaInfo>,
}

impl Oracle {
    /// Starts `PROGRAM oracle` in a session of its own and waits until its memory is set up.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(program: impl AsRef<OsStr>, settings: Settings) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .arg("oracle")
            .args(settings.arguments())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // SAFETY: between fork and exec only async-signal-safe calls are made: setsid and fcntl, which neither allocate
        // nor lock.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                // What init left open is nothing that a checkpoint should find here. One that is not open is as good.
                for file in 3..INHERITED {
                    libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC);
                }
                Ok(())
            });
        }
        let mut child = command.spawn().context("cannot start the oracle")?;
        let mut oracle = Self {
            input: child.stdin.take().context("the oracle has an input")?,
            output: BufReader::new(child.stdout.take().context("the oracle has an output")?),
            child,
            areas: Vec::new(),
        };
        match oracle.answer()? {
            Answer::Ready { pid, areas } if pid == oracle.pid() => oracle.areas = areas,
            other => bail!("the oracle should be ready, it says {other:?}"),
        }
        Ok(oracle)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it write.
    ///
    /// # Errors
    /// If it is gone or failed.
    pub fn go(&mut self) -> Result<()> {
        self.expect_done("go")
    }

    /// Returns when it stands still, with the number of writes that it made.
    ///
    /// # Errors
    /// If it is gone or failed.
    pub fn pause(&mut self) -> Result<u64> {
        match self.ask("pause")? {
            Answer::Paused { writes } => Ok(writes),
            other => bail!("the oracle should stand still, it says {other:?}"),
        }
    }

    /// The pages of each area that changed since [`Self::forget`].
    ///
    /// # Errors
    /// If it is gone or failed.
    pub fn changed(&mut self) -> Result<Vec<Vec<Pages>>> {
        match self.ask("changed")? {
            Answer::Changed(areas) => Ok(areas),
            other => bail!("the oracle should tell what changed, it says {other:?}"),
        }
    }

    /// Lets it compare its memory with what it wrote.
    ///
    /// # Errors
    /// If a page has another content: then the ledger is no truth, or the kernel lost data.
    pub fn verify(&mut self) -> Result<()> {
        match self.ask("verify")? {
            Answer::Verified(wrong) if wrong.iter().all(Vec::is_empty) => Ok(()),
            Answer::Verified(wrong) => bail!("pages of the oracle lost their content: {wrong:?}"),
            other => bail!("the oracle should verify, it says {other:?}"),
        }
    }

    /// The first eight bytes that each page of each area should have.
    ///
    /// # Errors
    /// If it is gone or failed.
    pub fn content(&mut self) -> Result<Vec<Vec<u64>>> {
        match self.ask("content")? {
            Answer::Content(content) => Ok(content),
            other => bail!("the oracle should tell its content, it says {other:?}"),
        }
    }

    /// Tells it that a clear came.
    ///
    /// # Errors
    /// If it is gone or failed.
    pub fn forget(&mut self) -> Result<()> {
        self.expect_done("forget")
    }

    fn expect_done(&mut self, command: &str) -> Result<()> {
        match self.ask(command)? {
            Answer::Done => Ok(()),
            other => bail!("the oracle was told to {command}, it says {other:?}"),
        }
    }

    fn ask(&mut self, command: &str) -> Result<Answer> {
        writeln!(self.input, "{command}").context("the oracle went away")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        match serde_json::from_str(&line).with_context(|| format!("the oracle says {line:?}"))? {
            Answer::Failed(why) => bail!("the oracle failed: {why}"),
            answer => Ok(answer),
        }
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // It may have ended by itself, or was killed by what checkpointed it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
