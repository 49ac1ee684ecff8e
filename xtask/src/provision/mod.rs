//! Brings what the machine lacks, and says what and why.

pub mod apt;
pub mod browser;
pub mod packagers;
pub mod programs;
pub mod promtool;
pub mod toolchain;

use crate::failure::Usage;
use anyhow::{Context as _, Result, bail};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, io};

/// The folder for everything that is downloaded: `$SDTRACE_CACHE`, `$XDG_CACHE_HOME/sdtrace` or `~/.cache/sdtrace`.
pub fn cache_dir() -> Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let dir = set("SDTRACE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("sdtrace")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/sdtrace")))
        .ok_or_else(|| Usage("no cache folder: set SDTRACE_CACHE or HOME".into()))?;
    fs::create_dir_all(&dir).with_context(|| {
        format!(
            "cannot create the cache folder {} (set SDTRACE_CACHE)",
            dir.display()
        )
    })?;
    dir.canonicalize()
        .with_context(|| format!("cannot resolve {}", dir.display()))
}

/// A lock on a part of the cache, held until dropped, so that two tasks started at once do not provision twice.
#[must_use]
pub struct CacheLock(File);

impl CacheLock {
    /// Waits for the lock named `part`.
    pub fn acquire(part: &str) -> Result<Self> {
        let path = cache_dir()?.join(format!("{part}.lock"));
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                say(&format!("waiting for another task that provisions ({part})"));
                file.lock()
                    .with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(Self(file))
    }
}

impl Drop for CacheLock {
    fn drop(&mut self) {
        // Closing the file would do the same; an error here changes nothing.
        let _ = self.0.unlock();
    }
}

/// One line to the user about what a task is doing. Standard error, because standard output belongs to results.
pub fn say(line: &str) {
    eprintln!("xtask: {line}");
}

/// A program that a task needs, and the Debian package that has it.
#[derive(Clone, Copy, Debug)]
pub struct HostProgram {
    /// Name looked up on PATH.
    pub name: &'static str,
    /// Debian package.
    pub package: &'static str,
    /// What it is needed for, in the words shown to the user.
    pub why: &'static str,
}

/// Makes sure that every program is there: installs the packages through apt when root, else names the exact command.
pub fn ensure_programs(programs: &[HostProgram]) -> Result<()> {
    let missing = || -> Vec<_> {
        programs
            .iter()
            .filter(|program| find_on_path(program.name).is_none())
            .collect()
    };
    if missing().is_empty() {
        return Ok(());
    }
    // Guests are started two at a time, and the other one may have installed them by now.
    let _lock = CacheLock::acquire("packages")?;
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let reasons: Vec<_> = missing
        .iter()
        .map(|program| format!("{} ({})", program.package, program.why))
        .collect();
    let mut packages: Vec<_> = missing.iter().map(|program| program.package).collect();
    packages.sort_unstable();
    packages.dedup();
    let command = format!(
        "apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if !rustix::process::geteuid().is_root() || find_on_path("apt-get").is_none() {
        return Err(Usage(format!("missing: {}; type: sudo {command}", reasons.join(", "))).into());
    }
    say(&format!("installing {}", reasons.join(", ")));
    let mut apt = Command::new("apt-get");
    // Something else on the machine may be installing just now.
    apt.args(["-o", "DPkg::Lock::Timeout=300"])
        .args(["install", "-y", "--no-install-recommends"])
        .args(&packages);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    if run_quietly(&mut apt).is_err() {
        // A machine whose package lists are empty or old: refresh them once and try again.
        run_quietly(Command::new("apt-get").arg("update"))?;
        run_quietly(&mut apt)?;
    }
    for program in missing {
        if find_on_path(program.name).is_none() {
            bail!(
                "{} was installed, but {} is still not on PATH",
                program.package,
                program.name
            );
        }
    }
    Ok(())
}

/// The first executable of that name on PATH. The system's own folders are always searched, since a user's PATH may
/// lack /usr/sbin.
#[must_use]
pub fn find_on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// Runs a command with its output kept back; on failure the error carries the command line and the end of its output.
pub fn run_quietly(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(20)..].join("\n  ");
    bail!(
        "`{}` failed ({}):\n  {tail}",
        command_line(command),
        output.status
    )
}

/// A command as one would type it, for messages.
fn command_line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Fills `destination` by `fill` in a folder beside it and renames it into place, so that what lies there is complete.
pub fn place_atomically(destination: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = destination
        .parent()
        .context("a destination in the cache has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let temporary = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(parent)
        .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
    let content = temporary.path().join("content");
    fs::create_dir(&content)?;
    fill(&content)?;
    match fs::remove_dir_all(destination) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", destination.display()));
        }
        _ => {}
    }
    fs::rename(&content, destination)
        .with_context(|| format!("cannot move the finished folder to {}", destination.display()))
}
