//! sdtrace as systemd starts it: without root, with the capabilities of the unit, and with a socket to report to.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

/// The unit that is shipped.
pub const UNIT: &str = include_str!("../../../packaging/systemd/sdtrace.service");
/// The drop-in for machines that allow more.
pub const LEAST_PRIVILEGE: &str = include_str!("../../../packaging/systemd/least-privilege.conf");

/// A user that owns nothing, as `DynamicUser` gives one.
const NOBODY: u32 = 61_184;

/// The capabilities that a unit file gives; an empty assignment forgets the ones before it.
///
/// # Errors
/// If it gives none, or one that there is not.
pub fn ambient_capabilities(unit: &str) -> Result<CapabilitySet> {
    let mut all = CapabilitySet::empty();
    for line in unit.lines() {
        let Some(names) = line.strip_prefix("AmbientCapabilities=") else {
            continue;
        };
        if names.trim().is_empty() {
            all = CapabilitySet::empty();
        }
        for name in names.split_whitespace() {
            let flag = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
            all |= flag.with_context(|| format!("there is no {name}"))?;
        }
    }
    ensure!(!all.is_empty(), "the unit gives no capability");
    Ok(all)
}

/// Makes a command run as nobody with these capabilities and no other, ambient and bounding.
pub fn unprivileged(command: &mut Command, capabilities: CapabilitySet) {
    // SAFETY: the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(move || confine(capabilities)) };
}

fn confine(capabilities: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !capabilities.contains(one) {
            // A number that this kernel does not know is an error, and no capability.
            let _ = rustix::thread::remove_capability_from_bounding_set(one);
        }
    }
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    let sets = CapabilitySets {
        effective: capabilities,
        permitted: capabilities,
        inheritable: capabilities,
    };
    rustix::thread::set_capabilities(None, sets)?;
    for one in capabilities.iter() {
        rustix::thread::configure_capability_in_ambient_set(one, true)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// The socket that `NOTIFY_SOCKET` names, and what came.
#[derive(Debug)]
pub struct Notifications {
    socket: UnixDatagram,
    /// What came, in order.
    pub met: Vec<String>,
}

impl Notifications {
    /// Binds the socket where everybody can write to it.
    ///
    /// # Errors
    /// If it cannot.
    pub fn bind(path: &str) -> Result<Self> {
        let _ = fs::remove_file(path);
        let socket = UnixDatagram::bind(path).with_context(|| path.to_owned())?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self {
            socket,
            met: Vec::new(),
        })
    }

    /// Waits until `count` messages that begin so have come.
    ///
    /// # Errors
    /// If they do not within 20 s.
    pub fn wait_for(&mut self, beginning: &str, count: usize) -> Result<()> {
        let start = Instant::now();
        loop {
            let met = self.met.iter().filter(|line| line.starts_with(beginning)).count();
            if met >= count {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(20) {
                bail!(
                    "{met} of {count} messages {beginning} came; these did: {:?}",
                    self.met
                );
            }
            let mut buffer = [0; 4096];
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    self.met.extend(text.lines().map(str::to_owned));
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error).context("the notification socket"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_gives_what_sdtrace_needs_and_the_drop_in_less() {
        let unit = ambient_capabilities(UNIT).unwrap();
        let least = ambient_capabilities(LEAST_PRIVILEGE).unwrap();
        assert_eq!(unit, least | CapabilitySet::SYS_ADMIN);
        assert_eq!(
            least,
            CapabilitySet::BPF
                | CapabilitySet::PERFMON
                | CapabilitySet::SYS_PTRACE
                | CapabilitySet::DAC_READ_SEARCH
        );
        // What is ambient must be within the bounds, or systemd refuses to start it.
        for text in [UNIT, LEAST_PRIVILEGE] {
            let lines =
                |key: &str| -> Vec<&str> { text.lines().filter_map(|line| line.strip_prefix(key)).collect() };
            assert_eq!(lines("AmbientCapabilities="), lines("CapabilityBoundingSet="));
        }
        assert!(ambient_capabilities("AmbientCapabilities=CAP_NONSENSE").is_err());
        assert!(ambient_capabilities("AmbientCapabilities=CAP_BPF\nAmbientCapabilities=\n").is_err());
    }
}
