//! sdtrace itself: the real binary, started, asked over HTTP, and ended.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::exposition::Scrape;
use super::ledger::Ledger;

/// How long sdtrace may take to become ready: under emulation most of it goes to attaching. By the guest's clock, which was
/// seen to run six times too fast after a boot on a busy host; the host's own timeout for the guest is shorter.
const START: Duration = Duration::from_mins(30);

/// A running sdtrace; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    address: SocketAddr,
    log: String,
}

impl Daemon {
    /// Starts `sdtrace run --listen LISTEN` with these arguments more, and waits until it is ready. Its log goes to `log`.
    ///
    /// # Errors
    /// With the end of its log if it does not become ready.
    pub fn start(listen: SocketAddr, arguments: &[&str], log: &str) -> Result<Self> {
        let mut command = Command::new("sdtrace");
        command
            .arg("run")
            .args(["--listen", &listen.to_string()])
            .args(arguments);
        Self::start_by(command, listen, log)
    }

    /// The same with a command of the caller's own, which makes sdtrace listen there.
    ///
    /// # Errors
    /// With the end of its log if it does not become ready.
    pub fn start_by(mut command: Command, listen: SocketAddr, log: &str) -> Result<Self> {
        let file = File::create(log).with_context(|| log.to_owned())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot start sdtrace")?;
        let mut address = listen;
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let mut daemon = Self {
            child,
            address,
            log: log.to_owned(),
        };
        let start = Instant::now();
        loop {
            if let Some(status) = daemon.child.try_wait()? {
                bail!(
                    "sdtrace ended with {status} instead of becoming ready; it said: {}",
                    daemon.said()
                );
            }
            if get(address, "/readyz").is_ok_and(|answer| answer.status == 200) {
                return Ok(daemon);
            }
            if start.elapsed() > START {
                bail!("sdtrace is not ready after {START:?}; it said: {}", daemon.said());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The text of a path.
    ///
    /// # Errors
    /// If the answer is not 200.
    pub fn get(&self, path: &str) -> Result<String> {
        fetch(self.address, path)
    }

    /// One scrape.
    ///
    /// # Errors
    /// If it does not answer or cannot be read.
    pub fn scrape(&self) -> Result<Scrape> {
        Scrape::parse(&self.get("/metrics")?)
    }

    /// The ledger.
    ///
    /// # Errors
    /// If it does not answer or cannot be read.
    pub fn ledger(&self) -> Result<Ledger> {
        let text = self.get("/debug/ledger")?;
        serde_json::from_str(&text).context("the ledger cannot be read")
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    /// If it does not end within 20 s.
    pub fn end(mut self, signal: Signal) -> Result<ExitStatus> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("sdtrace has a process id")?, signal)?;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "sdtrace runs on 20 s after {signal:?}; it said: {}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer of the HTTP server.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Text.
    pub body: String,
}

/// Asks for a path and expects the status 200.
///
/// # Errors
/// If there is no answer or another status.
pub fn fetch(address: SocketAddr, path: &str) -> Result<String> {
    let answer = get(address, path)?;
    ensure!(
        answer.status == 200,
        "{path} answers {}: {}",
        answer.status,
        answer.body.trim()
    );
    Ok(answer.body)
}

/// Asks for a path, with HTTP 1.0: the answer ends with the connection.
///
/// # Errors
/// If there is no answer.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .with_context(|| format!("no answer for {path}"))?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("the answer has no end of its head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.with_context(|| format!("the answer begins with {:?}", head.lines().next()))?,
        body: body.to_owned(),
    })
}

/// How a short run of sdtrace ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Lines on standard error.
    pub errors: Vec<String>,
    /// Standard output.
    pub output: String,
}

/// Runs sdtrace to its end.
///
/// # Errors
/// If it cannot be started, or does not end within a minute.
pub fn run_to_the_end(arguments: &[&str], environment: &[(&str, &str)], user: Option<u32>) -> Result<Ended> {
    let mut command = Command::new("sdtrace");
    command
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let mut child = command.spawn().context("cannot start sdtrace")?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > START {
            child.kill()?;
            bail!("`sdtrace {}` runs on for {START:?}", arguments.join(" "));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output()?;
    Ok(Ended {
        code: output.status.code(),
        errors: String::from_utf8_lossy(&output.stderr)
            .lines()
            .map(str::to_owned)
            .collect(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
    })
}
