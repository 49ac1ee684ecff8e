//! The workload, driven line by line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::workload::report::{Answer, Report};

/// A running workload. It ends when this is dropped.
#[derive(Debug)]
pub struct Actor {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Actor {
    /// Starts a scene and waits until its memory is set up.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(scene: &str) -> Result<Self> {
        let mut child = Command::new("workload")
            .arg(scene)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the program workload")?;
        let output = BufReader::new(child.stdout.take().context("the workload has an output")?);
        let mut actor = Self {
            input: child.stdin.take(),
            output,
            child,
        };
        actor.ready()?;
        Ok(actor)
    }

    /// Waits until its memory is set up, as it says at the start and again after an exec.
    ///
    /// # Errors
    /// If it says something else.
    pub fn ready(&mut self) -> Result<()> {
        let pid = self.pid();
        match self.answer()? {
            Answer::Ready { pid: own } if own == pid => Ok(()),
            other => bail!("process {pid} should be ready, it says {other:?}"),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it clear its own soft-dirty bits.
    ///
    /// # Errors
    /// If it cannot.
    pub fn clear_itself(&mut self) -> Result<()> {
        self.command("clear")?;
        self.cleared()
    }

    /// Clears its soft-dirty bits from here.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn clear_from_here(&mut self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.pid());
        std::fs::write(&path, "4").with_context(|| path)?;
        self.command("cleared")?;
        self.cleared()
    }

    fn cleared(&mut self) -> Result<()> {
        let answer = self.answer()?;
        ensure!(
            answer == Answer::Cleared,
            "the workload should have cleared, it says {answer:?}"
        );
        Ok(())
    }

    /// Lets it act, and returns what it did since the last clear.
    ///
    /// # Errors
    /// If it could not.
    pub fn act(&mut self) -> Result<Report> {
        self.command("act")?;
        match self.answer()? {
            Answer::Acted(report) => Ok(report),
            other => bail!("the workload should have acted, it says {other:?}"),
        }
    }

    /// Ends it and waits until it is gone.
    ///
    /// # Errors
    /// If it ended badly.
    pub fn end(mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "the workload ended with {status}");
        Ok(())
    }

    fn command(&mut self, word: &str) -> Result<()> {
        let input = self.input.as_mut().context("the workload's input is open")?;
        writeln!(input, "{word}").context("the workload went away")
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer = serde_json::from_str(&line).with_context(|| format!("the workload says {line:?}"))?;
        match answer {
            Answer::Failed(why) => bail!("the workload failed: {why}"),
            answer => Ok(answer),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.input = None;
        // It ends by itself when its input does; one that hangs must not outlive the test.
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
