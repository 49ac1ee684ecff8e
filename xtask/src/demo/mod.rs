//! `cargo xtask run`: sdtrace at work beside a tracker and a target whose writes are known.
//!
//! [`show`] is what runs, on this host or in a guest: it starts sdtrace, clears and reads the target in a loop, and ends
//! with a table. [`run`] chooses where.

pub mod show;
pub mod tally;

use crate::failure::Usage;
use crate::guest::{Guest, Outcome, interrupt};
use crate::kernels::Wanted;
use crate::kernels::fetch::Kernels;
use crate::provision::say;
use crate::suite::daemon;
use crate::workspace::{build_static, clean_command};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// The guest's kernel unless told otherwise: one that Debian backports to its stable release.
const KERNEL: &str = "6.12";

/// Port inside the guest.
const GUEST_PORT: u16 = 9955;

/// What the user asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A kernel to boot; without one, this host if its kernel can be traced.
    pub kernel: Option<Wanted>,
    /// How long; until Ctrl-C without it.
    pub duration: Option<Duration>,
    /// Port on 127.0.0.1.
    pub port: u16,
}

/// The three programs.
struct Programs {
    sdtrace: PathBuf,
    workload: PathBuf,
    demo: PathBuf,
}

/// Runs the demo and returns its exit code: 0 if sdtrace counted what the target did.
pub fn run(options: &Options) -> Result<ExitCode> {
    let address = SocketAddr::from(([127, 0, 0, 1], options.port));
    TcpListener::bind(address).map_err(|error| {
        Usage(format!(
            "cannot listen on {address} ({error}); choose another port with --port"
        ))
    })?;
    interrupt::install();
    let programs = Programs {
        sdtrace: build_static("tracer-user", "sdtrace")?,
        workload: build_static("xtask", "workload")?,
        demo: build_static("xtask", "demo")?,
    };
    if options.kernel.is_none() {
        match traceable(&programs.sdtrace)? {
            None => return on_this_host(&programs, options, address),
            Some(why) => say(&format!(
                "this host's kernel cannot be traced ({why}); booting one that can"
            )),
        }
    }
    in_a_guest(&programs, options, address)
}

/// Asks sdtrace whether it would work here; else says why not.
fn traceable(sdtrace: &Path) -> Result<Option<String>> {
    let output = Command::new(sdtrace)
        .arg("check")
        .stdin(Stdio::null())
        .output()
        .context("cannot start sdtrace")?;
    if output.status.success() {
        return Ok(None);
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    // The reasons are list items; the first says enough here.
    let reason = said
        .lines()
        .find_map(|line| line.strip_prefix("- "))
        .or_else(|| said.lines().rfind(|line| !line.trim().is_empty()))
        .unwrap_or("no reason given");
    Ok(Some(reason.trim().to_owned()))
}

/// Arguments of the demo program.
fn arguments(options: &Options, listen: SocketAddr) -> Vec<String> {
    let mut arguments = vec!["--listen".to_owned(), listen.to_string()];
    if let Some(duration) = options.duration {
        arguments.extend(["--for".to_owned(), duration.as_secs().to_string()]);
    }
    arguments
}

fn tell(address: SocketAddr) {
    println!("sdtrace is live: http://{address}/metrics (Ctrl-C ends it)");
}

fn is_live(address: SocketAddr) -> bool {
    daemon::get(address, "/readyz").is_ok_and(|answer| answer.status == 200)
}

fn on_this_host(programs: &Programs, options: &Options, address: SocketAddr) -> Result<ExitCode> {
    let mut folders: Vec<PathBuf> = [&programs.sdtrace, &programs.workload]
        .iter()
        .filter_map(|program| program.parent().map(Path::to_path_buf))
        .collect();
    folders.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let mut command = clean_command(&programs.demo);
    command
        .args(arguments(options, address))
        .env("PATH", std::env::join_paths(folders)?)
        .stdin(Stdio::null())
        // A group of its own: Ctrl-C is for us, who pass it on, and not for sdtrace before the last look at it.
        .process_group(0);
    let mut child = Ending(command.spawn().context("cannot start the demo")?);
    let (mut told, mut passed_on) = (false, false);
    loop {
        if let Some(status) = child.0.try_wait()? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(ExitCode::from(code.unwrap_or(1)));
        }
        if !told && is_live(address) {
            tell(address);
            told = true;
        }
        if !passed_on && interrupt::count() > 0 {
            child.signal(Signal::INT);
            passed_on = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A child that does not outlive us.
struct Ending(Child);

impl Ending {
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself, which is as good.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // It ends its own children when asked.
            self.signal(Signal::INT);
            let _ = self.0.wait();
        }
    }
}

fn in_a_guest(programs: &Programs, options: &Options, address: SocketAddr) -> Result<ExitCode> {
    let wanted = match options.kernel {
        Some(wanted) => wanted,
        None => KERNEL.parse().map_err(anyhow::Error::msg)?,
    };
    let kernel = Kernels::open()?.provide(wanted, false)?;
    say(&format!(
        "booting Debian's kernel {} under emulation; metrics in about 15 s",
        kernel.source.series
    ));
    let listen = SocketAddr::from(([0, 0, 0, 0], GUEST_PORT));
    let mut command = vec!["demo".to_owned()];
    command.extend(arguments(options, listen));
    let day = Duration::from_hours(24);
    let mut running = Guest::new(kernel, command)
        .cpus(2)
        .file(&programs.sdtrace, "/usr/bin/sdtrace")
        .file(&programs.workload, "/usr/bin/workload")
        .file(&programs.demo, "/usr/bin/demo")
        .forward(address.port(), GUEST_PORT)
        .timeout(
            options
                .duration
                .map_or(day, |duration| duration + Duration::from_mins(3)),
        )
        .start(std::io::stdout())?;
    // Until its server listens, a connection is opened and closed at once, or waits: both are no answer.
    while running.step(Duration::from_millis(50))? {
        if running.command_started() && is_live(address) {
            tell(address);
            break;
        }
    }
    let report = running.wait()?;
    for line in report.problems.iter().chain(&report.warnings) {
        say(&format!("guest: {line}"));
    }
    match report.outcome {
        Outcome::Exited(status) => Ok(ExitCode::from(status)),
        Outcome::Interrupted => Ok(ExitCode::from(130)),
        lost => {
            let lines: Vec<_> = report.console.lines().collect();
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{line}");
            }
            bail!("the guest was lost: {lost:?} (its console is above)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_a_usage_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = Options {
            kernel: None,
            duration: None,
            port: listener.local_addr().unwrap().port(),
        };
        let error = run(&options).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), 2);
        assert!(error.to_string().contains("--port"));
    }
}
