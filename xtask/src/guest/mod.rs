//! Boots a Debian kernel under emulation, runs one command there and brings back its output, its files and its status.
//!
//! ```no_run
//! use xtask::guest::{Guest, Outcome};
//! use xtask::kernels::fetch::Kernels;
//!
//! # fn main() -> anyhow::Result<()> {
//! let kernel = Kernels::open()?.provide("6.1".parse().map_err(anyhow::Error::msg)?, false)?;
//! let report = Guest::new(kernel, ["uname", "-r"]).run(std::io::stdout())?;
//! assert_eq!(report.outcome, Outcome::Exited(0));
//! # Ok(())
//! # }
//! ```

pub mod console;
pub mod cpio;
mod disk;
pub mod forward;
pub mod frames;
pub mod initramfs;
pub mod interrupt;
pub mod qemu;
pub mod running;

use crate::failure::Usage;
use crate::kernels::fetch::Kernel;
use crate::kernels::modules::ModuleTree;
use crate::provision::apt::PrivateApt;
use crate::provision::{CacheLock, HostProgram, cache_dir, ensure_programs, place_atomically, say};
use crate::workspace::build_static;
use anyhow::{Context as _, Result, bail};
use initramfs::GuestFile;
use qemu::{Forward, Machine, Wiring};
pub use running::{Outcome, Report, Running};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// How long a guest may take, boot included, unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_mins(2);

/// A guest to be booted.
#[derive(Clone, Debug)]
pub struct Guest {
    kernel: Kernel,
    machine: Machine,
    environment: Vec<(String, String)>,
    files: Vec<GuestFile>,
    modules: Vec<String>,
    forwards: Vec<Forward>,
    out: Option<PathBuf>,
    disk: bool,
    timeout: Duration,
    command: Vec<OsString>,
}

impl Guest {
    /// A guest with one CPU and 1 GiB that runs `command` (looked up on the guest's PATH).
    pub fn new<Word: Into<OsString>>(kernel: Kernel, command: impl IntoIterator<Item = Word>) -> Self {
        Self {
            kernel,
            machine: Machine {
                cpus: 1,
                memory_mib: 1024,
                instruction_clock: false,
                two_nodes: false,
                append: String::new(),
            },
            environment: Vec::new(),
            files: Vec::new(),
            modules: Vec::new(),
            forwards: Vec::new(),
            out: None,
            disk: false,
            timeout: DEFAULT_TIMEOUT,
            command: command.into_iter().map(Into::into).collect(),
        }
    }

    /// Number of virtual CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.machine.cpus = cpus;
        self
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.machine.memory_mib = memory_mib;
        self
    }

    /// Counts instructions instead of host time: one is one virtual nanosecond.
    #[must_use]
    pub fn instruction_clock(mut self, on: bool) -> Self {
        self.machine.instruction_clock = on;
        self
    }

    /// Two memory nodes, the CPUs shared out between them.
    #[must_use]
    pub fn two_nodes(mut self, on: bool) -> Self {
        self.machine.two_nodes = on;
        self
    }

    /// Adds to the kernel's command line.
    #[must_use]
    pub fn append(mut self, words: &str) -> Self {
        if !self.machine.append.is_empty() {
            self.machine.append.push(' ');
        }
        self.machine.append.push_str(words);
        self
    }

    /// Sets a variable of the command's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts a file or folder of the host into the guest.
    #[must_use]
    pub fn file(mut self, local: impl Into<PathBuf>, guest: &str) -> Self {
        self.files.push(GuestFile {
            local: local.into(),
            guest: guest.to_owned(),
        });
        self
    }

    /// Inserts a module of the kernel's package, with what it depends on, before the command starts.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Makes port `guest` reachable as 127.0.0.1:`host`.
    #[must_use]
    pub fn forward(mut self, host: u16, guest: u16) -> Self {
        self.forwards.push(Forward { host, guest });
        self
    }

    /// Copies the guest's /out into this folder at the end, whatever the command's status.
    #[must_use]
    pub fn out(mut self, folder: impl Into<PathBuf>) -> Self {
        self.out = Some(folder.into());
        self
    }

    /// An empty ext4 disk, mounted at /var/tmp.
    #[must_use]
    pub fn disk(mut self, on: bool) -> Self {
        self.disk = on;
        self
    }

    /// How long it may take, boot included.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Boots, waits for the end, and tells how it came. The command's output goes to `output` as it comes.
    pub fn run(self, output: impl Write + Send + 'static) -> Result<Report> {
        self.start(output)?.wait()
    }

    /// Boots and returns at once. The emulator lives at most as long as the thread that calls this.
    pub fn start(self, output: impl Write + Send + 'static) -> Result<Running> {
        self.check()?;
        ensure_emulator()?;
        let busybox = provide_busybox()?;
        let mut wanted: Vec<&str> = self.modules.iter().map(String::as_str).collect();
        let tree = self.kernel.modules.as_deref().map(ModuleTree::open).transpose()?;
        let network = tree.as_ref().is_some_and(|tree| tree.contains("virtio_net"));
        let modules = match &tree {
            Some(tree) => {
                if network {
                    // virtio_pci is built into newer kernels.
                    wanted.extend(
                        ["virtio_pci", "virtio_net"]
                            .iter()
                            .filter(|name| tree.contains(name)),
                    );
                }
                tree.with_dependencies(&wanted)?
            }
            None if wanted.is_empty() => Vec::new(),
            None => bail!(
                "Debian no longer has the modules of kernel {} ({})",
                self.kernel.source.series,
                wanted.join(", ")
            ),
        };
        // Without a network card connections go over a serial line of their own.
        let by_serial = !network && !self.forwards.is_empty();
        let agent = if by_serial {
            Some(build_static("xtask", "forward-agent")?)
        } else {
            None
        };
        let mut listeners = Vec::new();
        for forward in self.forwards.iter().filter(|_| by_serial) {
            listeners.push((TcpListener::bind(("127.0.0.1", forward.host))?, forward.guest));
        }
        remove_leftovers();
        let folder = GuestFolder::create()?;
        let initramfs = folder.path().join("initramfs");
        initramfs::write(
            &initramfs,
            &initramfs::Content {
                busybox: &busybox,
                modules: &modules,
                environment: &self.environment,
                command: &self.command,
                files: &self.files,
                forward_agent: agent.as_deref(),
                disk: self.disk,
            },
        )?;
        let disk_image = self
            .disk
            .then(|| disk::create(&folder.path().join("disk.img")))
            .transpose()?;
        let out_image = folder.path().join("out.img");
        if self.out.is_some() {
            // Sparse: takes the room that the guest fills.
            fs::File::create(&out_image)?.set_len(OUT_IMAGE_BYTES)?;
        }
        let lines = running::LINES.iter().take(if by_serial { 4 } else { 3 });
        let sockets: Vec<PathBuf> = lines.map(|name| folder.path().join(name)).collect();
        let arguments = qemu::arguments(
            &self.machine,
            &Wiring {
                kernel: &self.kernel.image,
                initramfs: &initramfs,
                serial_sockets: &sockets,
                out_image: self.out.is_some().then_some(out_image.as_path()),
                disk_image: disk_image.as_deref(),
                forwards: &self.forwards,
                network,
            },
        );
        Running::start(running::Boot {
            arguments,
            sockets,
            listeners,
            folder,
            out: self.out.map(|folder| (out_image, folder)),
            timeout: self.timeout,
            output: Box::new(output),
        })
    }

    /// What can be told to be wrong before anything is started.
    fn check(&self) -> Result<()> {
        if self.command.is_empty() {
            return Err(Usage("no command for the guest; write it after --".into()).into());
        }
        if self.machine.cpus == 0 || self.machine.memory_mib < 256 {
            return Err(Usage("a guest needs at least one CPU and 256 MiB".into()).into());
        }
        if self.machine.two_nodes && (self.machine.cpus < 2 || !self.machine.cpus.is_multiple_of(2)) {
            return Err(Usage("two memory nodes need an even number of CPUs; add --smp 2".into()).into());
        }
        if self.machine.instruction_clock && self.machine.cpus != 1 {
            return Err(
                Usage("counting instructions needs one CPU; use --smp 1 with --icount".into()).into(),
            );
        }
        for file in &self.files {
            if !file.guest.starts_with('/') {
                return Err(Usage(format!("`{}` is no absolute path in the guest", file.guest)).into());
            }
        }
        for forward in &self.forwards {
            // The emulator would say so too, but in its own words and after the image was made.
            TcpListener::bind(("127.0.0.1", forward.host)).map_err(|error| {
                anyhow::anyhow!(
                    "port {} of 127.0.0.1 cannot be had: {error}; choose another",
                    forward.host
                )
            })?;
        }
        Ok(())
    }
}

/// Makes sure that the emulator is there, or tells how to install it; best before anything is downloaded.
pub fn ensure_emulator() -> Result<()> {
    ensure_programs(&[HostProgram {
        name: qemu::QEMU,
        package: "qemu-system-x86",
        why: "emulates the machine that guest kernels run on",
    }])
}

/// What a guest can bring back at most.
const OUT_IMAGE_BYTES: u64 = 4 << 30;

const FOLDER_PREFIX: &str = "sdtrace-guest-";
const OWNER_LOCK: &str = "owner.lock";

/// The temporary folder of one guest: its image, its sockets. Locked while its guest lives.
#[derive(Debug)]
pub(crate) struct GuestFolder {
    folder: TempDir,
    /// Held for its lock, which the kernel gives up whatever way the process ends.
    _owner: fs::File,
}

impl GuestFolder {
    fn create() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(FOLDER_PREFIX)
            .tempdir()
            .context("cannot create a temporary folder (set TMPDIR)")?;
        // Locked before it has the name that remove_leftovers looks for.
        let nascent = folder.path().join("owner.new");
        let owner =
            fs::File::create(&nascent).context("cannot write to the temporary folder (set TMPDIR)")?;
        owner.lock()?;
        fs::rename(&nascent, folder.path().join(OWNER_LOCK))?;
        Ok(Self {
            folder,
            _owner: owner,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folders of processes that were killed before they could.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let ours = entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX);
        let owner = fs::File::open(entry.path().join(OWNER_LOCK));
        if ours && owner.is_ok_and(|owner| owner.try_lock().is_ok()) {
            // It may be another user's: then it is theirs to remove.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The static busybox, from Debian's package in the cache.
fn provide_busybox() -> Result<PathBuf> {
    let folder = cache_dir()?.join("busybox");
    let find = |folder: &Path| {
        ["bin/busybox", "usr/bin/busybox"]
            .map(|place| folder.join(place))
            .into_iter()
            .find(|path| path.is_file())
    };
    if let Some(found) = find(&folder) {
        return Ok(found);
    }
    let _lock = CacheLock::acquire("busybox")?;
    if let Some(found) = find(&folder) {
        return Ok(found);
    }
    say("downloading busybox-static (the guests' shell and tools)");
    let apt = PrivateApt::open()?;
    if !apt.has_lists() {
        apt.update()?;
    }
    place_atomically(&folder, |content| apt.unpack_newest("busybox-static", content))?;
    find(&folder).context("the package busybox-static holds no bin/busybox")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::index::Candidate;

    fn guest() -> Guest {
        let source = Candidate {
            series: "6.1".parse().unwrap(),
            version: "6.1.1-1".into(),
            suite: "bookworm".into(),
            image: "linux-image".into(),
            modules: None,
        };
        let kernel = Kernel {
            source,
            release: "6.1.0".into(),
            image: "/boot/vmlinuz".into(),
            modules: None,
        };
        Guest::new(kernel, ["true"])
    }

    #[test]
    fn a_guest_that_cannot_be_is_refused_before_anything_starts() {
        assert!(guest().check().is_ok());
        for (wrong, words) in [
            (
                Guest {
                    command: Vec::new(),
                    ..guest()
                },
                "write it after --",
            ),
            (guest().cpus(0), "at least one CPU"),
            (guest().memory_mib(64), "256 MiB"),
            (guest().two_nodes(true), "--smp 2"),
            (guest().cpus(2).instruction_clock(true), "--smp 1"),
            (guest().file("/etc/hosts", "etc/hosts"), "no absolute path"),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(crate::failure::exit_code(&error), 2);
        }
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = guest().forward(port, 80).check().unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("port {port} of 127.0.0.1 cannot be had"))
        );
    }

    #[test]
    fn only_folders_without_an_owner_are_left_over() {
        let living = GuestFolder::create().unwrap();
        let dead = tempfile::Builder::new().prefix(FOLDER_PREFIX).tempdir().unwrap();
        fs::write(dead.path().join(OWNER_LOCK), "").unwrap();
        remove_leftovers();
        assert!(living.path().is_dir());
        assert!(!dead.path().exists());
    }
}
