//! Host settings that a disruptive scenario changes, and the guard process that puts them back.
//!
//! The guard is started before the scenario, in a session of its own, and reads a pipe whose only writers are the runner
//! and the scenario. *Before* each change the scenario writes into it how to undo the change. When the last writer is gone
//! (the scenario ended, crashed, was killed, or the terminal's Ctrl-C ended everything), the guard reads the end of the
//! pipe, undoes in reverse order, and exits with 1 if something could not be undone.

use std::fs;
use std::io::{self, BufRead as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use super::oracle::Tracked;
use super::outcome::{Needs as _, Stop};
use super::sys::{self, Area};

/// How to undo one change.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// Write the old value back.
    Write {
        /// A file of /proc/sys or /sys.
        path: PathBuf,
        /// What it held.
        value: String,
    },
    /// Take a swap device or file out of use again.
    SwapOff {
        /// Its path.
        device: PathBuf,
    },
    /// Remove a file made for the battery.
    RemoveFile {
        /// Its path.
        path: PathBuf,
    },
    /// Give a page frame that was taken out of use back to the host.
    Unpoison {
        /// Its number.
        frame: u64,
    },
    /// Remove a zram device made for the battery.
    RemoveZram {
        /// Its number.
        number: u32,
    },
}

impl Undo {
    fn apply(&self) -> io::Result<()> {
        match self {
            // The change announced may have been refused, or undone by the scenario itself.
            Self::Write { path, value }
                if fs::read_to_string(path).is_ok_and(|now| chosen(now.trim()) == value) =>
            {
                Ok(())
            }
            Self::Write { path, value } => fs::write(path, value),
            Self::SwapOff { device } => match sys::swap_off(device) {
                // The change announced was never made: it is not in use, or there was no right to take it into use either.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => Ok(()),
                other => other,
            },
            Self::RemoveFile { path } => match fs::remove_file(path) {
                // The change announced was never made.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
            // The change announced was never made.
            Self::Unpoison { frame } if !poisoned(*frame)? => Ok(()),
            Self::Unpoison { frame } => fs::write(Unpoison::open()?.file(), frame.to_string()),
            Self::RemoveZram { number } => {
                fs::write(format!("/sys/block/zram{number}/reset"), "1")?;
                fs::write("/sys/class/zram-control/hot_remove", number.to_string())
            }
        }
    }
}

/// The body of the guard process.
pub fn guard() -> ExitCode {
    sys::detach_from_terminal();
    let mut undo: Vec<Undo> = Vec::new();
    let mut sound = true;
    for line in io::stdin().lock().lines() {
        match line.and_then(|line| Ok(serde_json::from_str(&line)?)) {
            Ok(one) => undo.push(one),
            Err(error) => {
                eprintln!("sdtrace battery: the guard could not read how to undo a change: {error}");
                sound = false;
            }
        }
    }
    for one in undo.iter().rev() {
        if let Err(error) = one.apply() {
            eprintln!("sdtrace battery: could not restore the host: {one:?}: {error}");
            sound = false;
        }
    }
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The guard as the runner sees it.
#[derive(Debug)]
pub struct Guard {
    process: Child,
    pipe: OwnedFd,
}

impl Guard {
    /// Starts it.
    ///
    /// # Errors
    /// The pipe or the process could not be made.
    pub fn start(program: &Path) -> io::Result<Self> {
        let (read, write) = sys::pipe()?;
        let process = Command::new(program)
            .args(["battery", "--guard"])
            .stdin(Stdio::from(read))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { process, pipe: write })
    }

    /// The scenario's end of the pipe.
    ///
    /// # Errors
    /// No descriptor was free.
    pub fn pipe(&self) -> io::Result<OwnedFd> {
        self.pipe.try_clone()
    }

    /// Closes the runner's end, and waits until everything is undone.
    ///
    /// # Errors
    /// What the guard could not undo; its own messages say more.
    pub fn finish(mut self) -> Result<(), String> {
        drop(self.pipe);
        match self.process.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!(
                "the host could not be restored ({status}); see the messages above"
            )),
            Err(error) => Err(format!("waiting for the guard: {error}")),
        }
    }
}

/// The scenario's side: announces a change to the guard, then makes it.
#[derive(Debug)]
pub struct Host {
    guard: fs::File,
}

impl Host {
    /// Over the guard's pipe, which the runner gave this process as standard input.
    pub fn inherited() -> Self {
        Self {
            guard: sys::inherited(0).into(),
        }
    }

    fn announce(&self, undo: &Undo) -> Result<(), Stop> {
        let mut line = serde_json::to_string(undo).map_err(|error| Stop::Failed(error.to_string()))?;
        line.push('\n');
        (&self.guard)
            .write_all(line.as_bytes())
            .works("telling the guard")
    }

    /// Writes a setting, after the guard knows the old value.
    pub fn set(&self, path: &str, value: &str) -> Result<(), Stop> {
        let old = fs::read_to_string(path).needs(path)?;
        self.announce(&Undo::Write {
            path: path.into(),
            value: chosen(old.trim()).into(),
        })?;
        fs::write(path, value).needs(&format!("writing {value} to {path}"))
    }

    /// Has the frame of a present page taken out of use (`MADV_SOFT_OFFLINE`), if it can be given back afterwards.
    pub fn soft_offline(&self, page: Area) -> Result<(), Stop> {
        let frame = || -> Result<u64, Stop> { Ok(Tracked::this()?.entries(page)?[0].frame()) };
        // Nothing else gives a frame back.
        let unpoison = Unpoison::open().needs("debugfs")?;
        fs::metadata(unpoison.file())
            .needs("page frames cannot be given back (CONFIG_MEMORY_FAILURE, modprobe hwpoison-inject)")?;
        let old = frame()?;
        if old == 0 {
            return Err(Stop::NotSupported(
                "page frames are not shown without CAP_SYS_ADMIN".into(),
            ));
        }
        self.announce(&Undo::Unpoison { frame: old })?;
        page.advise(libc::MADV_SOFT_OFFLINE).needs("MADV_SOFT_OFFLINE")?;
        if frame()? == old || !poisoned(old).works("/proc/kpageflags")? {
            return Err(Stop::Inconclusive("the page stayed in its frame".into()));
        }
        Ok(())
    }

    /// Takes `megabytes` MiB of swap into use, unless there is swap already: on a new zram device, or in a file of
    /// `directory` where there is no zram.
    pub fn swap(
        &self,
        megabytes: u32,
        directory: impl FnOnce() -> Result<PathBuf, Stop>,
    ) -> Result<(), Stop> {
        if fs::read_to_string("/proc/swaps")
            .works("/proc/swaps")?
            .lines()
            .count()
            > 1
        {
            return Ok(());
        }
        let lacking = match self.swap_on_zram(megabytes) {
            Err(Stop::NotSupported(why)) => why,
            other => return other,
        };
        match directory().and_then(|directory| self.swap_in_file(megabytes, &directory)) {
            Err(Stop::NotSupported(why)) => Err(Stop::NotSupported(format!(
                "no swap is in use, no zram device can be made (modprobe zram): {lacking}, and no swap file: {why}"
            ))),
            other => other,
        }
    }

    fn swap_on_zram(&self, megabytes: u32) -> Result<(), Stop> {
        let control = "/sys/class/zram-control/hot_add";
        let number = fs::read_to_string(control)
            .needs(control)?
            .trim()
            .parse()
            .map_err(|error| Stop::Failed(format!("{control}: {error}")))?;
        self.announce(&Undo::RemoveZram { number })?;
        let device = PathBuf::from(format!("/dev/zram{number}"));
        size_zram(number, megabytes)?;
        fs::OpenOptions::new()
            .write(true)
            .open(&device)
            .and_then(|mut file| file.write_all(&swap_header(megabytes)))
            .needs("formatting the zram device")?;
        self.swap_on(&device)
    }

    fn swap_in_file(&self, megabytes: u32, directory: &Path) -> Result<(), Stop> {
        let path = directory.join(format!("sdtrace-battery-{}.swap", std::process::id()));
        if fs::symlink_metadata(&path).is_ok() {
            // Somebody else's, which must not be removed.
            return Err(Stop::NotSupported(format!("{} is in the way", path.display())));
        }
        self.announce(&Undo::RemoveFile { path: path.clone() })?;
        // Written whole, because a swap file must have no holes; readable by nobody else, as memory goes there.
        let mut content = swap_header(megabytes);
        content.resize(megabytes as usize * 1024 * 1024, 0);
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(&content)?;
                file.sync_all()
            })
            .needs(&path.display().to_string())?;
        self.swap_on(&path)
    }

    fn swap_on(&self, device: &Path) -> Result<(), Stop> {
        self.announce(&Undo::SwapOff {
            device: device.to_owned(),
        })?;
        sys::swap_on(device).needs("swapon")
    }
}

/// debugfs' file that gives poisoned frames back (mm/hwpoison-inject.c), reached without a mount point.
struct Unpoison {
    debugfs: OwnedFd,
}

impl Unpoison {
    fn open() -> io::Result<Self> {
        Ok(Self {
            debugfs: sys::detached_mount(c"debugfs", &[])?,
        })
    }

    fn file(&self) -> PathBuf {
        format!("/proc/self/fd/{}/hwpoison/unpoison-pfn", self.debugfs.as_raw_fd()).into()
    }
}

/// Whether a page frame is out of use: `KPF_HWPOISON` of /proc/kpageflags.
fn poisoned(frame: u64) -> io::Result<bool> {
    const HWPOISON: u64 = 1 << 19;
    let mut flags = [0; 8];
    fs::File::open("/proc/kpageflags")?.read_exact_at(&mut flags, frame * 8)?;
    Ok(u64::from_ne_bytes(flags) & HWPOISON != 0)
}

/// Gives a new zram device its size, with the first compressor that is loaded: the kernel lists those too that it
/// would have to load first.
fn size_zram(number: u32, megabytes: u32) -> Result<(), Stop> {
    let file = |name: &str| format!("/sys/block/zram{number}/{name}");
    let listed = fs::read_to_string(file("comp_algorithm")).works("comp_algorithm")?;
    let preferred = std::iter::once(chosen(listed.trim()));
    let others = listed.split_whitespace().filter(|word| !word.starts_with('['));
    let mut last = Ok(());
    for algorithm in preferred.chain(others) {
        last = fs::write(file("comp_algorithm"), algorithm)
            .and_then(|()| fs::write(file("disksize"), format!("{megabytes}M")));
        if last.is_ok() {
            break;
        }
    }
    last.needs("giving a zram device its size")
}

/// The value to write back: of a choice shown as `always [madvise] never`, the chosen word.
fn chosen(shown: &str) -> &str {
    match (shown.find('['), shown.find(']')) {
        (Some(open), Some(close)) if open < close => &shown[open + 1..close],
        _ => shown,
    }
}

/// The first page of a swap area (`union swap_header` of include/linux/swap.h).
fn swap_header(megabytes: u32) -> Vec<u8> {
    let page = sys::page_size();
    let mut header = vec![0; page];
    let last_page = u32::try_from((megabytes as usize) * 1024 * 1024 / page - 1).expect("a few MiB");
    header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&last_page.to_ne_bytes());
    header[page - 10..].copy_from_slice(b"SWAPSPACE2");
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_is_put_back() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("100"), "100");
    }

    #[test]
    fn a_swap_header_has_its_mark_at_the_end_of_the_page() {
        let header = swap_header(1);
        assert_eq!(header.len(), sys::page_size());
        assert!(header.ends_with(b"SWAPSPACE2"));
    }

    #[test]
    fn a_setting_is_put_back_and_one_that_holds_its_value_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("setting");
        fs::write(&path, "1\n").expect("writes");
        let undo = Undo::Write {
            path: path.clone(),
            value: "0".into(),
        };
        undo.apply().expect("is put back");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "0");
        fs::write(&path, "always [madvise] never\n").expect("writes");
        Undo::Write {
            path: path.clone(),
            value: "madvise".into(),
        }
        .apply()
        .expect("holds it");
        assert_eq!(
            fs::read_to_string(&path).expect("reads"),
            "always [madvise] never\n"
        );
        // A folder in the file's place can be neither read nor written, like a setting without rights to it.
        fs::remove_file(&path).expect("removes");
        fs::create_dir(&path).expect("makes a folder");
        assert!(undo.apply().is_err(), "what cannot be put back is said");
    }

    #[test]
    fn a_file_is_removed_and_one_that_was_never_made_is_not_missed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "").expect("writes");
        let undo = Undo::RemoveFile { path: path.clone() };
        undo.apply().expect("is removed");
        assert!(!path.exists());
        undo.apply().expect("is gone");
    }

    #[test]
    fn undo_survives_the_pipe() {
        let undo = Undo::Write {
            path: "/x".into(),
            value: "a\nb".into(),
        };
        let line = serde_json::to_string(&undo).expect("serialises");
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Undo>(&line).expect("parses"), undo);
    }
}
