//! A booted guest: its serial lines, its end.

use super::console::{Finding, Lines, judge};
use super::qemu::Process;
use super::{GuestFolder, forward, interrupt};
use crate::provision::run_quietly;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// What runs over ttyS0, ttyS1, ttyS2, and over ttyS3 where there is no network card.
pub(super) const LINES: [&str; 4] = ["console", "command", "control", "forward"];

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended with this status (128 + signal if a signal ended it).
    Exited(u8),
    /// The kernel panicked or hit a fault of its own; the line that says so.
    Panicked(String),
    /// A CPU or a task got stuck; the line that says so.
    LockedUp(String),
    /// The time was over; what the guest was doing.
    TimedOut(Phase),
    /// The user asked to stop, and the command did not end by itself.
    Interrupted,
    /// The emulator ended without a word from the guest; its messages.
    Died(String),
}

/// How far a guest got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The kernel had not reached user space.
    Booting,
    /// The command was running.
    Running,
    /// The command had ended; /out was being carried over.
    Finishing,
}

/// What a guest's run gave.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// From the emulator's start to user space.
    pub boot: Option<Duration>,
    /// From the emulator's start to its end.
    pub total: Duration,
    /// `uname -r` of the guest.
    pub release: Option<String>,
    /// Warnings of the kernel.
    pub warnings: Vec<String>,
    /// What init complained about.
    pub problems: Vec<String>,
    /// Everything that the kernel wrote to its console.
    pub console: String,
}

/// What it takes to start.
pub(super) struct Boot {
    pub arguments: Vec<String>,
    pub sockets: Vec<PathBuf>,
    /// Ports to carry over the fourth line, each with the guest's.
    pub listeners: Vec<(TcpListener, u16)>,
    pub folder: GuestFolder,
    pub out: Option<(PathBuf, PathBuf)>,
    pub timeout: Duration,
    pub output: Box<dyn Write + Send>,
}

enum Event {
    Control(String),
    Finding(Finding),
    Problem(String),
}

/// A guest that has been started.
pub struct Running {
    process: Process,
    control: UnixStream,
    events: Receiver<Event>,
    readers: Vec<JoinHandle<()>>,
    console: Arc<Mutex<String>>,
    folder: GuestFolder,
    out: Option<(PathBuf, PathBuf)>,
    started: Instant,
    deadline: Instant,
    interrupts_seen: usize,
    progress: Progress,
}

#[derive(Default)]
struct Progress {
    boot: Option<Duration>,
    release: Option<String>,
    command_started: bool,
    status: Option<u8>,
    out: Option<Result<(), String>>,
    done: Option<Instant>,
    death: Option<(Outcome, Instant)>,
    interrupted: bool,
    warnings: Vec<String>,
    problems: Vec<String>,
}

/// How long a dying kernel may go on writing its trace.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// How long power-off may take.
const POWER_OFF: Duration = Duration::from_secs(5);

impl Running {
    pub(super) fn start(boot: Boot) -> Result<Self> {
        interrupt::install();
        let listeners: Vec<UnixListener> = boot
            .sockets
            .iter()
            .map(|path| {
                UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))
            })
            .collect::<Result<_>>()?;
        let started = Instant::now();
        let log = boot.folder.path().join("emulator.log");
        let mut process = Process::start(&boot.arguments, &log)?;
        let mut streams = Vec::new();
        for listener in &listeners {
            streams.push(accept(listener, &mut process, &log)?);
        }
        let forward_stream = streams.split_off(3).pop();
        let [console_stream, command_stream, control] = <[UnixStream; 3]>::try_from(streams)
            .map_err(|_| anyhow::anyhow!("at least three serial lines are wired"))?;
        let (sender, events) = channel();
        let console = Arc::new(Mutex::new(String::new()));
        let mut readers = vec![
            spawn_console_reader(console_stream, Arc::clone(&console), sender.clone()),
            spawn_command_reader(command_stream, boot.output),
            spawn_control_reader(control.try_clone()?, sender.clone()),
        ];
        if let Some(stream) = forward_stream {
            let (writing, listeners) = (stream.try_clone()?, boot.listeners);
            readers.push(spawn(move || {
                if let Err(error) = forward::host(stream, writing, listeners) {
                    let _ = sender.send(Event::Problem(format!("forwarded ports ended: {error}")));
                }
            }));
        }
        Ok(Self {
            process,
            control,
            events,
            readers,
            console,
            folder: boot.folder,
            out: boot.out,
            started,
            deadline: started + boot.timeout,
            interrupts_seen: interrupt::count(),
            progress: Progress::default(),
        })
    }

    /// Sends SIGINT to the command, as Ctrl-C on a terminal would.
    pub fn interrupt_command(&mut self) -> Result<()> {
        self.control
            .write_all(b"interrupt\n")
            .context("the guest is gone")
    }

    /// Takes in what happened, for at most `patience`. Returns false once the guest has ended.
    pub fn step(&mut self, patience: Duration) -> Result<bool> {
        match self.events.recv_timeout(patience) {
            Ok(event) => self.take(event),
            // The lines are closed: the emulator is ending.
            Err(RecvTimeoutError::Disconnected) => sleep(patience),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if self.process.has_ended()? {
            return Ok(false);
        }
        let now = Instant::now();
        self.follow_interrupts()?;
        let dead = self
            .progress
            .death
            .as_ref()
            .is_some_and(|(_, at)| now > *at + LAST_WORDS);
        let hangs = self.progress.done.is_some_and(|at| now > at + POWER_OFF);
        if now > self.deadline && self.progress.death.is_none() && self.progress.done.is_none() {
            self.progress.death = Some((Outcome::TimedOut(self.phase()), now));
            self.process.kill();
        } else if dead || hangs {
            self.process.kill();
        }
        Ok(true)
    }

    /// Whether the command has been started in the guest.
    #[must_use]
    pub fn command_started(&self) -> bool {
        self.progress.command_started
    }

    /// Waits for the end. The first Ctrl-C goes to the command, the second ends the guest.
    pub fn wait(mut self) -> Result<Report> {
        while self.step(Duration::from_millis(20))? {}
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                bail!("a reader of the guest's serial lines panicked");
            }
        }
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
        let total = self.started.elapsed();
        let outcome = self.outcome()?;
        if matches!(outcome, Outcome::Exited(_)) {
            self.unpack_out()?;
        }
        let console = std::mem::take(&mut *self.console.lock().unwrap_or_else(PoisonError::into_inner));
        let Progress {
            boot,
            release,
            warnings,
            problems,
            ..
        } = self.progress;
        Ok(Report {
            outcome,
            boot,
            total,
            release,
            warnings,
            problems,
            console,
        })
    }

    fn follow_interrupts(&mut self) -> Result<()> {
        let asked = interrupt::count();
        if asked == self.interrupts_seen {
            return Ok(());
        }
        self.interrupts_seen = asked;
        if self.progress.command_started && self.progress.status.is_none() && !self.progress.interrupted {
            self.progress.interrupted = true;
            self.interrupt_command()?;
        } else if self.progress.status.is_none() {
            self.progress
                .death
                .get_or_insert((Outcome::Interrupted, Instant::now()));
            self.process.kill();
        }
        Ok(())
    }

    fn phase(&self) -> Phase {
        match (&self.progress.status, self.progress.command_started) {
            (Some(_), _) => Phase::Finishing,
            (None, true) => Phase::Running,
            (None, false) => Phase::Booting,
        }
    }

    fn take(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Finding(Finding::Panic(line)) => {
                self.progress.death.get_or_insert((Outcome::Panicked(line), now));
            }
            Event::Finding(Finding::LockUp(line)) => {
                self.progress.death.get_or_insert((Outcome::LockedUp(line), now));
            }
            Event::Finding(Finding::Warning(line)) => self.progress.warnings.push(line),
            Event::Problem(problem) => self.progress.problems.push(problem),
            Event::Control(line) => self.progress.hear(&line, now.duration_since(self.started), now),
        }
    }

    fn outcome(&self) -> Result<Outcome> {
        if let Some((outcome, _)) = &self.progress.death {
            return Ok(outcome.clone());
        }
        match (self.progress.status, self.progress.done) {
            (Some(status), Some(_)) => Ok(Outcome::Exited(status)),
            _ => Ok(Outcome::Died(
                fs::read_to_string(self.folder.path().join("emulator.log"))?
                    .trim()
                    .to_owned(),
            )),
        }
    }

    /// Unpacks what the guest put on its disk.
    fn unpack_out(&self) -> Result<()> {
        let Some((image, folder)) = &self.out else {
            return Ok(());
        };
        match &self.progress.out {
            Some(Ok(())) => {}
            Some(Err(reason)) => bail!("the guest's /out could not be carried over: {reason}"),
            None => bail!("the guest found no disk to bring its /out back on"),
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        run_quietly(
            Command::new("tar")
                .arg("-x")
                .arg("--no-same-owner")
                .arg("-f")
                .arg(image)
                .arg("-C")
                .arg(folder),
        )?;
        Ok(())
    }
}

impl Progress {
    /// One line of what init tells.
    fn hear(&mut self, line: &str, since_start: Duration, now: Instant) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "booted" => {
                self.boot = Some(since_start);
                self.release = rest.split_whitespace().nth(1).map(str::to_owned);
            }
            "started" => self.command_started = true,
            "exit" => self.status = rest.trim().parse().ok(),
            "out" => {
                self.out = Some(if rest == "ok" {
                    Ok(())
                } else {
                    Err(rest.trim_start_matches("failed ").to_owned())
                });
            }
            "problem" => self.problems.push(rest.to_owned()),
            "done" => self.done = Some(now),
            _ => self.problems.push(format!("unexpected word from init: {line}")),
        }
    }
}

/// Waits for the emulator to connect; it does so at its start, or ends.
fn accept(listener: &UnixListener, process: &mut Process, log: &std::path::Path) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("cannot accept the emulator's serial line"),
        }
        if process.has_ended()? {
            bail!(
                "the emulator did not start: {}",
                fs::read_to_string(log).unwrap_or_default().trim()
            );
        }
        sleep(Duration::from_millis(2));
    }
}

fn spawn_console_reader(
    stream: UnixStream,
    console: Arc<Mutex<String>>,
    events: Sender<Event>,
) -> JoinHandle<()> {
    let mut lines = Lines::default();
    spawn_reader(stream, move |bytes| {
        for line in lines.feed(bytes) {
            if let Some(finding) = judge(&line) {
                // The receiver lives until the readers have ended.
                let _ = events.send(Event::Finding(finding));
            }
            let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
            console.push_str(&line);
            console.push('\n');
        }
    })
}

fn spawn_command_reader(stream: UnixStream, mut output: Box<dyn Write + Send>) -> JoinHandle<()> {
    let mut broken = false;
    spawn_reader(stream, move |bytes| {
        // A reader that went away (`| head`) must not stop the guest.
        if !broken {
            broken = output.write_all(bytes).and_then(|()| output.flush()).is_err();
        }
    })
}

fn spawn_control_reader(stream: UnixStream, events: Sender<Event>) -> JoinHandle<()> {
    let mut lines = Lines::default();
    spawn_reader(stream, move |bytes| {
        for line in lines.feed(bytes) {
            let _ = events.send(Event::Control(line));
        }
    })
}

fn spawn_reader(mut stream: UnixStream, mut take: impl FnMut(&[u8]) + Send + 'static) -> JoinHandle<()> {
    spawn(move || {
        let mut buffer = [0; 16 * 1024];
        // The line ends when the emulator does.
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            take(&buffer[..length]);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inits_words_are_understood() {
        let mut progress = Progress::default();
        let now = Instant::now();
        for line in [
            "booted 2.71 6.1.0-50-cloud-amd64",
            "started",
            "exit 7",
            "out failed no space",
            "done",
        ] {
            progress.hear(line, Duration::from_secs(3), now);
        }
        assert_eq!(progress.release.as_deref(), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(progress.boot, Some(Duration::from_secs(3)));
        assert!(progress.command_started);
        assert_eq!(progress.status, Some(7));
        assert_eq!(progress.out, Some(Err("no space".into())));
        assert!(progress.done.is_some());
        assert!(progress.problems.is_empty());
    }

    #[test]
    fn garbled_words_become_problems() {
        let mut progress = Progress::default();
        progress.hear("ex", Duration::ZERO, Instant::now());
        assert_eq!(progress.problems, ["unexpected word from init: ex"]);
        assert_eq!(progress.status, None);
    }
}
