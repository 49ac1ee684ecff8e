//! Processes, cgroups and clocks of the machine, as /proc and the system calls tell.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use procfs::process::{MMapPath, Process};
use rustix::time::{ClockId, clock_gettime};

use crate::detectors::{Mapping, Mappings, Range};
use crate::ledger::{Clock, ProcessDetails, ProcessInfo};
use crate::workload::{self, IdPrefix, Search};

/// Where the unified hierarchy is mounted on nearly every machine.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Asks /proc.
#[derive(Clone, Copy, Debug, Default)]
pub struct Procfs;

impl ProcessInfo for Procfs {
    fn look_up(&self, pid: u32, start_ns: u64) -> Option<ProcessDetails> {
        let process = Process::new(i32::try_from(pid).ok()?).ok()?;
        let stat = process.stat().ok()?;
        if stat.starttime != start_ns / nanoseconds_per_tick() {
            return None;
        }
        let cgroups = process.cgroups().ok()?;
        // Hierarchy 0 is the unified one.
        let cgroup = cgroups.0.iter().min_by_key(|cgroup| cgroup.hierarchy)?;
        Some(ProcessDetails {
            comm: stat.comm,
            cgroup: cgroup.pathname.clone(),
        })
    }
}

impl Mappings for Procfs {
    fn mappings(&self, pid: u32, start_ns: u64) -> Option<Vec<Mapping>> {
        let process = Process::new(i32::try_from(pid).ok()?).ok()?;
        let maps = process.maps().ok()?;
        // Asked afterwards: a process that took the pid over in between started later.
        if process.stat().ok()?.starttime != start_ns / nanoseconds_per_tick() {
            return None;
        }
        let mapping = |map: procfs::process::MemoryMap| Mapping {
            range: Range {
                start: map.address.0,
                end: map.address.1,
            },
            offset: map.offset,
            inode: map.inode,
            path: match map.pathname {
                MMapPath::Path(path) => Some(path.to_string_lossy().into_owned()),
                MMapPath::Other(name) => Some(name),
                _ => None,
            },
        };
        Some(maps.into_iter().map(mapping).collect())
    }
}

/// /proc counts the start of a process in clock ticks, 100 a second on every architecture that matters here.
pub(crate) fn nanoseconds_per_tick() -> u64 {
    1_000_000_000 / procfs::ticks_per_second()
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn monotonic_ns(&self) -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
    }

    fn unix_ns(&self, monotonic_ns: u64) -> u64 {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let now = self.monotonic_ns();
        let wall = u64::try_from(wall).unwrap_or(u64::MAX);
        wall.saturating_sub(now).saturating_add(monotonic_ns)
    }
}

/// The inode number of our pid namespace, by which `ls -l /proc/PID/ns/pid` names it too.
///
/// # Errors
/// If /proc is not mounted.
pub fn pid_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

/// The release of the running kernel, as `uname -r` prints it.
#[must_use]
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The id of a cgroup of the unified hierarchy: the inode number of its folder (kernfs, since 5.5). The path is
/// either that of the folder or the one that `/proc/PID/cgroup` shows.
///
/// # Errors
/// One line that says what to give instead.
pub fn cgroup_id(path: &Path) -> Result<u64> {
    let folder: PathBuf = if path.starts_with(CGROUP_ROOT) {
        path.to_owned()
    } else {
        Path::new(CGROUP_ROOT).join(path.strip_prefix("/").unwrap_or(path))
    };
    let metadata = fs::metadata(&folder).with_context(|| {
        format!(
            "--cgroup {}: {} cannot be read; give a path below {CGROUP_ROOT}, as /proc/PID/cgroup shows it",
            path.display(),
            folder.display()
        )
    })?;
    if !metadata.is_dir() {
        bail!("--cgroup {}: {} is no folder", path.display(), folder.display());
    }
    // A folder of a version 1 hierarchy, or of a tmpfs above several, has an inode number too, but no process
    // is in it as far as the unified hierarchy knows.
    if !folder.join("cgroup.controllers").exists() {
        bail!(
            "--cgroup {}: {} does not lie in a cgroup version 2 hierarchy; mount one there, or filter by --pid or --comm",
            path.display(),
            folder.display()
        );
    }
    Ok(metadata.ino())
}

/// The id of the cgroup of a running container.
///
/// # Errors
/// One line that says what to give instead.
pub fn container_cgroup_id(wanted: &IdPrefix) -> Result<u64> {
    let root = Path::new(CGROUP_ROOT);
    let mut paths = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        // Cgroups come and go while we look.
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
        if let Ok(below) = folder.strip_prefix(root) {
            paths.push(format!("/{}", below.display()));
        }
    }
    match workload::find(paths.iter().map(String::as_str), wanted) {
        Search::Found(path) => cgroup_id(Path::new(&path)).with_context(|| format!("--container {wanted}")),
        Search::Nothing => bail!(
            "--container {wanted}: no container with this id runs here; `docker ps`, `podman ps` or `crictl ps` shows \
             which do, and in a container of its own sdtrace needs the host's {CGROUP_ROOT}"
        ),
        Search::Several(ids) => {
            bail!(
                "--container {wanted}: give more digits, it fits {}",
                ids.join(" and ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_find_ourselves_and_nobody_else_with_our_pid() {
        let pid = std::process::id();
        let ticks = Process::myself().unwrap().stat().unwrap().starttime;
        let start_ns = ticks * nanoseconds_per_tick() + 5;
        let details = Procfs.look_up(pid, start_ns).unwrap();
        assert!(details.cgroup.starts_with('/'), "{details:?}");
        assert_eq!(Procfs.look_up(pid, start_ns + 1_000_000_000), None);
    }

    #[test]
    fn a_container_that_does_not_run_is_named() {
        let wanted = "0123456789abcdef".parse().unwrap();
        let error = format!("{:#}", container_cgroup_id(&wanted).unwrap_err());
        assert!(
            error.contains("--container 0123456789abcdef: no container with this id"),
            "{error}"
        );
    }

    #[test]
    fn the_clocks_agree() {
        let clock = SystemClock;
        let now = clock.monotonic_ns();
        let wall = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
        assert!(clock.unix_ns(now).abs_diff(wall) < 1_000_000_000);
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_named() {
        let error = format!("{:#}", cgroup_id(Path::new("/no.slice")).unwrap_err());
        assert!(
            error.contains("--cgroup /no.slice: /sys/fs/cgroup/no.slice cannot be read"),
            "{error}"
        );
    }
}
