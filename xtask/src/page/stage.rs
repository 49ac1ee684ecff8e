//! In the guest: sdtrace, the processes that it traces, and a port over which the host says what happens next.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::detection::cases::Scene;
use crate::suite::daemon::Daemon;

/// Where sdtrace listens in the guest.
pub const PAGE_PORT: u16 = 9955;
/// Where the stage listens.
pub const CONTROL_PORT: u16 = 9956;
/// How long the host may take to say what it wants.
const WORD: Duration = Duration::from_secs(10);
/// Between two clears of one steady process.
const ROUND: Duration = Duration::from_secs(4);

/// A process that runs as long as it is kept.
struct Steady(Child);

impl Steady {
    fn start(name: &str, pages: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["steady", name, &pages.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("it has an output")?;
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "ready\n", "{name} ended early");
        Ok(Self(child))
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clears processes in turn until its sender is dropped.
fn track(pids: Vec<u32>) -> Result<Sender<()>> {
    let (keep, dropped) = channel::<()>();
    let pause = ROUND / u32::try_from(pids.len().max(1))?;
    thread::Builder::new().name("tracker".to_owned()).spawn(move || {
        for pid in pids.iter().cycle() {
            // Gone at the end of the play.
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "4");
            if dropped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    })?;
    Ok(keep)
}

struct Stage {
    out: PathBuf,
    daemon: Option<Daemon>,
    starts: u32,
    steady: Vec<Steady>,
    tracker: Option<Sender<()>>,
    scenes: Vec<Scene>,
}

impl Stage {
    fn start_daemon(&mut self) -> Result<()> {
        self.starts += 1;
        let log = self.out.join(format!("sdtrace-{}.log", self.starts));
        let listen = SocketAddr::from(([0, 0, 0, 0], PAGE_PORT));
        self.daemon = Some(Daemon::start(listen, &[], &log.to_string_lossy())?);
        Ok(())
    }

    fn stop_daemon(&mut self) -> Result<()> {
        let daemon = self.daemon.take().context("sdtrace does not run")?;
        let status = daemon.end(Signal::TERM)?;
        ensure!(status.success(), "sdtrace ended with {status}");
        Ok(())
    }

    /// Plays an act and tells what is known of it.
    fn act(&mut self, act: &str) -> Result<Value> {
        let mut words = act.split_whitespace();
        let name = words.next().unwrap_or_default();
        match name {
            "hello" => Ok(json!({})),
            "start" => self.start_daemon().map(|()| json!({})),
            "stop" => self.stop_daemon().map(|()| json!({})),
            "steady" => {
                for (name, pages) in [("cache", 512), ("index", 256), ("queue", 128)] {
                    self.steady.push(Steady::start(name, pages)?);
                }
                let pids: Vec<_> = self.steady.iter().map(|steady| steady.0.id()).collect();
                self.tracker = Some(track(pids.clone())?);
                Ok(json!({"pids": pids}))
            }
            "scene" => {
                let scene = Scene::start(words.next().context("which scene?")?)?;
                let told =
                    json!({"pid": scene.pid(), "missed": scene.told.missed, "ranges": scene.told.ranges});
                self.scenes.push(scene);
                Ok(told)
            }
            "battery" => {
                let scenarios = words.next().context("which scenarios?")?;
                let output = Command::new("sdtrace")
                    .args(["battery", "--disruptive", "--json", "--only", scenarios])
                    .stdin(Stdio::null())
                    .output()?;
                let said = String::from_utf8_lossy(&output.stderr);
                serde_json::from_slice(&output.stdout)
                    .with_context(|| format!("the battery ({}): {}", output.status, said.trim()))
            }
            _ => bail!("no act is called {name}"),
        }
    }
}

/// Serves the host until it says that the play is over.
///
/// # Errors
/// If the host cannot be listened to. What goes wrong in an act is told to the host.
pub fn run(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let listener = TcpListener::bind(("0.0.0.0", CONTROL_PORT))?;
    let mut stage = Stage {
        out: out.to_owned(),
        daemon: None,
        starts: 0,
        steady: Vec::new(),
        tracker: None,
        scenes: Vec::new(),
    };
    for connection in listener.incoming() {
        if !serve(&mut stage, connection?)? {
            break;
        }
    }
    Ok(())
}

/// One connection is one act: a line, and as the answer a line of JSON. Returns whether the play goes on.
fn serve(stage: &mut Stage, mut connection: TcpStream) -> Result<bool> {
    connection.set_read_timeout(Some(WORD))?;
    let mut line = String::new();
    // Whoever only looks whether anybody is here says nothing.
    if BufReader::new(&connection).read_line(&mut line).is_err() || line.is_empty() {
        return Ok(true);
    }
    let act = line.trim();
    let answer = if act == "end" {
        json!({})
    } else {
        stage
            .act(act)
            .unwrap_or_else(|error| json!({"error": format!("{error:#}")}))
    };
    // The host may have given up; it says so itself.
    let _ = writeln!(connection, "{answer}");
    Ok(act != "end")
}
