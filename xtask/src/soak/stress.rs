//! stress-ng, in a cgroup of its own that can be frozen.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::features::Features;

/// What runs, one of each. Chosen by trial under 6.12 (stress-ng 0.15.06, as the user nobody): left out are those that need
/// privileges (userfaultfd), that take all memory until somebody is killed (bigheap, stack, mmapfork), that need swap
/// (pageswap), and mlock, which gives up when its limit is lifted. `mremap` keeps below 2 MiB: moving a whole page table
/// loses soft-dirty bits on every kernel, with nothing switched on.
const STRESSORS: [&[&str]; 10] = [
    &["--vm", "1", "--vm-bytes", "24m"],
    &["--mmap", "1", "--mmap-bytes", "16m"],
    &["--mremap", "1", "--mremap-bytes", "1m"],
    &["--brk", "1"],
    &["--fork", "1"],
    &["--shm", "1", "--shm-bytes", "4m"],
    &["--mprotect", "1"],
    &["--malloc", "1", "--malloc-bytes", "8m"],
    &["--memfd", "1", "--memfd-bytes", "8m"],
    &["--clone", "1", "--clone-max", "16"],
];
/// What loses written pages by design: `MADV_PAGEOUT` of shared memory, and `MADV_DONTNEED` between two writes to a shared
/// file, to make a fault of it. Only where losses are wanted.
const LOSERS: [&str; 4] = ["--madvise", "1", "--fault", "1"];
/// Otherwise several of them give memory advice at random, `MADV_PAGEOUT` of shared memory among it: that takes written pages
/// out of the page table, and their bits with them, as reclaim does.
const NO_ADVICE: &str = "--no-madvise";
/// Private writable memory that one process may have: brk and malloc stop there instead of taking all there is.
const MOST_DATA: u64 = 96 << 20;
/// Debian's user nobody: it may not take pages offline or change the machine.
const NOBODY: u32 = 65534;
/// Microseconds of processor time that all of them together get, of so many. On an emulated machine twelve stressors that
/// take what they can leave nothing to tracker and sdtrace, and one round takes seconds.
const PROCESSOR: &str = "75000 100000";
const CGROUP: &str = "/sys/fs/cgroup/stress";
const FOLDER: &str = "/tmp/stress";
/// `PR_SET_MEMORY_MERGE` (6.4 and later): all memory of this process and its children is for KSM.
const PR_SET_MEMORY_MERGE: libc::c_int = 67;

/// A running stress-ng.
#[derive(Debug)]
pub struct Stress {
    child: Child,
    log: PathBuf,
    frozen: File,
}

impl Stress {
    /// Starts it for `time`.
    ///
    /// # Errors
    /// If it cannot be started or has no cgroup that can be frozen.
    pub fn start(time: Duration, features: Features, out: &Path) -> Result<Self> {
        fs::create_dir_all(CGROUP).context("cannot create a cgroup (cgroup v2 at /sys/fs/cgroup)")?;
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu")
            .context("cgroups cannot share out CPUs")?;
        fs::write(format!("{CGROUP}/cpu.max"), PROCESSOR).context("the stressors cannot be bounded")?;
        let members = OpenOptions::new()
            .write(true)
            .open(format!("{CGROUP}/cgroup.procs"))
            .context("the cgroup has no cgroup.procs")?;
        let frozen = OpenOptions::new()
            .write(true)
            .open(format!("{CGROUP}/cgroup.freeze"))
            .context("this kernel's cgroups cannot be frozen")?;
        fs::create_dir_all(FOLDER)?;
        std::os::unix::fs::chown(FOLDER, Some(NOBODY), Some(NOBODY))?;
        let log = out.join("stress-ng.log");
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new("stress-ng");
        command
            .args(["--temp-path", FOLDER, "--metrics-brief", "--oomable", "--timeout"])
            .arg(time.as_secs().to_string())
            .args(STRESSORS.iter().copied().flatten())
            .args(match features {
                Features::Off => &[NO_ADVICE][..],
                Features::On => &LOSERS[..],
            })
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        let merge = features == Features::On;
        // SAFETY: between fork and exec only async-signal-safe calls are made: write, prctl, setrlimit and the setting of
        // ids, which neither allocate nor lock.
        unsafe {
            command.pre_exec(move || {
                (&members).write_all(b"0")?;
                if merge {
                    // Older kernels cannot; there only memory that asks for it is merged.
                    libc::prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
                }
                let limit = libc::rlimit {
                    rlim_cur: MOST_DATA,
                    rlim_max: MOST_DATA,
                };
                let refused = libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) != 0
                    || libc::setgroups(0, std::ptr::null()) != 0
                    || libc::setgid(NOBODY) != 0
                    || libc::setuid(NOBODY) != 0;
                if refused {
                    Err(io::Error::last_os_error())
                } else {
                    Ok(())
                }
            });
        }
        let child = command.spawn().context("cannot start stress-ng")?;
        Ok(Self { child, log, frozen })
    }

    /// Freezes all of its processes and returns their ids once they stand still.
    ///
    /// # Errors
    /// If they do not within some seconds.
    pub fn freeze(&mut self) -> Result<Vec<u32>> {
        self.frozen.write_all(b"1").context("cannot freeze stress-ng")?;
        let start = Instant::now();
        loop {
            let events = fs::read_to_string(format!("{CGROUP}/cgroup.events"))?;
            if events.lines().any(|line| line == "frozen 1") {
                break;
            }
            if start.elapsed() > Duration::from_secs(20) {
                self.thaw()?;
                bail!("stress-ng does not freeze");
            }
            thread::sleep(Duration::from_millis(1));
        }
        let members = fs::read_to_string(format!("{CGROUP}/cgroup.procs"))?;
        members
            .lines()
            .map(|line| line.parse().context("cgroup.procs"))
            .collect()
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn thaw(&mut self) -> Result<()> {
        self.frozen.write_all(b"0").context("cannot thaw stress-ng")
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end, and returns how many rounds each stressor did.
    ///
    /// # Errors
    /// If it does not end, or failed.
    pub fn end(mut self) -> Result<Vec<(String, u64)>> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(
                start.elapsed() < Duration::from_mins(1),
                "stress-ng runs on after its time"
            );
            thread::sleep(Duration::from_millis(50));
        };
        let text = fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())?;
        ensure!(
            status.success(),
            "stress-ng ended with {status}: {}",
            failures(&text)
        );
        Ok(rounds(&text))
    }
}

impl Drop for Stress {
    fn drop(&mut self) {
        // Everything in the cgroup, if it has not ended by itself. Kernels before 5.14 have no such file.
        let _ = self.thaw();
        let _ = fs::write(format!("{CGROUP}/cgroup.kill"), "1");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines in which it complains.
fn failures(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains(" fail:") || line.contains(" error:"))
        .collect();
    lines.join(" | ")
}

/// Stressor and rounds, from its table of metrics.
fn rounds(text: &str) -> Vec<(String, u64)> {
    let names: Vec<_> = STRESSORS
        .iter()
        .filter_map(|words| words.first()?.strip_prefix("--"))
        .collect();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_once(" metrc: ")?.1.split_whitespace().skip(1);
            let name = words.next().filter(|name| names.contains(name))?;
            Some((name.to_owned(), words.next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
stress-ng: info:  [172] setting to a 3 second run per stressor
stress-ng: metrc: [172] stressor       bogo ops real time
stress-ng: metrc: [172] vm                35572      3.35      1.97
stress-ng: metrc: [172] mremap              507      3.01      0.08
stress-ng: metrc: [172] miscellaneous metrics:
stress-ng: metrc: [172] mremap             98071.05 nanosecs per mremap call
stress-ng: fail:  [343] shm: it broke
";

    #[test]
    fn its_table_is_read() {
        assert_eq!(
            rounds(SAID),
            [("vm".to_owned(), 35572), ("mremap".to_owned(), 507)]
        );
        assert_eq!(failures(SAID), "stress-ng: fail:  [343] shm: it broke");
    }
}
