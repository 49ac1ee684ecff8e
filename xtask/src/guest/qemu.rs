//! The emulator's command line and process.

use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Program name.
pub const QEMU: &str = "qemu-system-x86_64";

/// What the emulated machine is.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Virtual CPUs. They never run at the same instant: multi-threaded emulation crashes when probes are attached under
    /// load (the emulator's fault, seen with QEMU 7.2 and 10.0).
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// One guest instruction is one virtual nanosecond: times repeat from run to run.
    pub instruction_clock: bool,
    /// Two memory nodes with one CPU each.
    pub two_nodes: bool,
    /// Added to the kernel's command line.
    pub append: String,
}

/// A TCP port of the host's loopback that leads into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Port on 127.0.0.1 of the host.
    pub host: u16,
    /// Port in the guest.
    pub guest: u16,
}

/// Files and sockets of one boot.
#[derive(Debug)]
pub struct Wiring<'a> {
    /// Kernel image.
    pub kernel: &'a Path,
    /// Memory file system.
    pub initramfs: &'a Path,
    /// The sockets behind ttyS0, ttyS1, …; this process listens on them.
    pub serial_sockets: &'a [PathBuf],
    /// Raw image that the guest's /out comes back on.
    pub out_image: Option<&'a Path>,
    /// Raw image of the guest's disk.
    pub disk_image: Option<&'a Path>,
    /// Ports forwarded by a network card; none for kernels whose modules are gone.
    pub forwards: &'a [Forward],
    /// Whether there is a network card at all.
    pub network: bool,
}

/// Interrupt lines of ttyS0 to ttyS3. The PC's habit of sharing 4 and 3 between two ports each loses interrupts.
const SERIAL_INTERRUPTS: [u8; 4] = [4, 3, 5, 7];

/// The emulator's arguments.
#[must_use]
pub fn arguments(machine: &Machine, wiring: &Wiring<'_>) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-machine",
        "q35",
    ]
    .map(str::to_owned)
    .into();
    let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
    add("-accel", "tcg,thread=single".into());
    // QEMU 7.2 mis-emulates cmpxchg16b: kernels from 6.12 on crash at random.
    add("-cpu", "max,-cx16".into());
    add("-m", format!("{}M", machine.memory_mib));
    if machine.two_nodes {
        add("-smp", format!("{0},sockets={0}", machine.cpus));
        for node in 0..2 {
            add(
                "-object",
                format!(
                    "memory-backend-ram,size={}M,id=node{node}",
                    machine.memory_mib / 2
                ),
            );
            let (first, last) = if node == 0 {
                (0, machine.cpus / 2 - 1)
            } else {
                (machine.cpus / 2, machine.cpus - 1)
            };
            add(
                "-numa",
                format!("node,nodeid={node},memdev=node{node},cpus={first}-{last}"),
            );
        }
    } else {
        add("-smp", machine.cpus.to_string());
    }
    if machine.instruction_clock {
        add("-icount", "shift=0".into());
    }
    add("-kernel", wiring.kernel.display().to_string());
    add("-initrd", wiring.initramfs.display().to_string());
    add("-append", kernel_command_line(machine));
    for (index, (socket, interrupt)) in wiring.serial_sockets.iter().zip(SERIAL_INTERRUPTS).enumerate() {
        add(
            "-chardev",
            format!("socket,id=serial{index},path={}", escaped(socket)),
        );
        add(
            "-device",
            format!("isa-serial,chardev=serial{index},index={index},irq={interrupt}"),
        );
    }
    for (name, image) in [("out", wiring.out_image), ("disk", wiring.disk_image)] {
        if let Some(image) = image {
            let mut drive = format!(
                "if=none,id={name},format=raw,cache=unsafe,file={}",
                escaped(image)
            );
            if name == "disk" {
                // As slow as a disk may be (bytes per second): what is read from it is on its way for a while.
                drive.push_str(",throttling.bps-read=16777216");
            }
            add("-drive", drive);
            // The names of such disks swap between boots: they are told apart by their serial numbers.
            add("-device", format!("nvme,drive={name},serial=sdtrace-{name}"));
        }
    }
    if wiring.network {
        // restrict: the guest reaches nothing outside; only what the host forwards comes in.
        let mut network = "user,id=network,restrict=on".to_owned();
        for forward in wiring.forwards {
            let Forward { host, guest } = forward;
            // Writing to a String cannot fail.
            let _ = write!(network, ",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
        }
        add("-netdev", network);
        add("-device", "virtio-net-pci,netdev=network,romfile=".into());
    }
    arguments
}

fn kernel_command_line(machine: &Machine) -> String {
    // loglevel=5 shows warnings; a stuck CPU is reported after 60 s, since a busy host makes the emulator slow.
    let fixed = "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off tsc=reliable random.trust_cpu=on \
                 8250.nr_uarts=4 watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=60";
    [fixed, machine.append.as_str()].join(" ").trim_end().to_owned()
}

/// Commas separate options in QEMU's arguments; a doubled one stands for itself.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A running emulator, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it with its messages going to `log`. It dies with the thread that starts it, however that ends.
    pub fn start(arguments: &[String], log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let parent = rustix::process::getpid();
        let mut command = Command::new(QEMU);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // A group of its own: Ctrl-C on the terminal is for xtask, which ends the guest in order.
        command.process_group(0);
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl and getppid, through rustix, which
        // neither allocates nor locks.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                // The parent may have died before the request was in force.
                if rustix::process::getppid() != Some(parent) {
                    return Err(std::io::ErrorKind::BrokenPipe.into());
                }
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {QEMU}"))?;
        Ok(Self { child })
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self
            .child
            .try_wait()
            .context("cannot wait for the emulator")?
            .is_some())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            cpus: 2,
            memory_mib: 1024,
            instruction_clock: false,
            two_nodes: false,
            append: String::new(),
        }
    }

    fn line(machine: &Machine, network: bool) -> String {
        let wiring = Wiring {
            kernel: Path::new("/k/vmlinuz"),
            initramfs: Path::new("/r/initramfs"),
            serial_sockets: &["/r/0".into(), "/r/a,b".into()],
            out_image: Some(Path::new("/r/out")),
            disk_image: None,
            forwards: &[Forward {
                host: 9955,
                guest: 80,
            }],
            network,
        };
        arguments(machine, &wiring).join(" ")
    }

    #[test]
    fn what_the_emulator_gets_wrong_is_switched_off() {
        let line = line(&machine(), true);
        assert!(line.contains("-accel tcg,thread=single -cpu max,-cx16"));
        assert!(!line.contains("icount"));
    }

    #[test]
    fn ports_open_on_loopback_only() {
        assert!(line(&machine(), true).contains("restrict=on,hostfwd=tcp:127.0.0.1:9955-:80"));
        assert!(!line(&machine(), false).contains("hostfwd"));
    }

    #[test]
    fn commas_in_paths_survive() {
        assert!(line(&machine(), false).contains("socket,id=serial1,path=/r/a,,b"));
    }

    #[test]
    fn two_nodes_split_memory_and_cpus() {
        let line = line(
            &Machine {
                two_nodes: true,
                ..machine()
            },
            false,
        );
        assert!(line.contains("size=512M,id=node1 -numa node,nodeid=1,memdev=node1,cpus=1-1"));
    }
}
