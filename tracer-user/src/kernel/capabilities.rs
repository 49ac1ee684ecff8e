//! Which privileges this process lacks for what sdtrace does, and what to do about each.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

/// A capability that sdtrace can need; the number is its bit (`include/uapi/linux/capability.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Capability {
    /// Opening `/proc/PID/pagemap` of other users' processes, a file that only its owner may read.
    CapDacReadSearch = 2,
    /// Reading `/proc/PID/pagemap`, `smaps` and memory of other users' processes.
    CapSysPtrace = 19,
    /// Everything that has no capability of its own; includes `CAP_BPF` and `CAP_PERFMON`.
    CapSysAdmin = 21,
    /// Exceeding resource limits.
    CapSysResource = 24,
    /// Tracing programs and perf events.
    CapPerfmon = 38,
    /// Loading programs and making maps.
    CapBpf = 39,
}

impl fmt::Display for Capability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::CapDacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::CapSysPtrace => "CAP_SYS_PTRACE",
            Self::CapSysAdmin => "CAP_SYS_ADMIN",
            Self::CapSysResource => "CAP_SYS_RESOURCE",
            Self::CapPerfmon => "CAP_PERFMON",
            Self::CapBpf => "CAP_BPF",
        })
    }
}

/// What to give a service that has too little; `packaging/systemd` holds such a one.
const THE_FOUR: &str =
    "give the service AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_SYS_PTRACE CAP_DAC_READ_SEARCH";

/// Why the effective capabilities could not be told.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CapabilityError {
    /// The text has no `CapEff` line.
    #[error("/proc/self/status has no CapEff line")]
    NoLine,
    /// The line is not a hexadecimal number.
    #[error("CapEff in /proc/self/status is `{0}`, not a hexadecimal number")]
    NotANumber(String),
}

/// The effective capabilities of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

/// What of the machine decides which capabilities are needed.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    /// Whether BPF memory counts against `RLIMIT_MEMLOCK`: [`super::config::charges_memlock`].
    pub memlock_is_charged: bool,
    /// The soft and hard limit of locked memory are unlimited.
    pub memlock_is_unlimited: bool,
    /// `kernel.perf_event_paranoid`, if it could be read.
    pub perf_event_paranoid: Option<i32>,
    /// Whether any probe may be attached as a kprobe.
    pub kprobes_wanted: bool,
}

/// A capability that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Which.
    pub capability: Capability,
    /// What fails without it.
    pub needed_for: &'static str,
    /// What can be done, besides running as root.
    pub remedy: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            capability,
            needed_for,
            remedy,
        } = self;
        write!(
            formatter,
            "{capability} is missing, needed for {needed_for}: run as root, or {remedy}"
        )
    }
}

impl Capabilities {
    /// Reads them from the text of `/proc/self/status`.
    ///
    /// # Errors
    /// If the text has no `CapEff` line with a hexadecimal number.
    pub fn from_status(status: &str) -> Result<Self, CapabilityError> {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let value = line.ok_or(CapabilityError::NoLine)?.trim();
        u64::from_str_radix(value, 16)
            .map(Self)
            .map_err(|_| CapabilityError::NotANumber(value.to_owned()))
    }

    /// Whether the process has a capability, by itself or as a part of another: the kernel's `bpf_capable()` and
    /// `perfmon_capable()` take `CAP_SYS_ADMIN` too, and `generic_permission()` takes `CAP_DAC_OVERRIDE`.
    #[must_use]
    pub fn has(self, capability: Capability) -> bool {
        const CAP_DAC_OVERRIDE: u32 = 1;
        let holds = |bit: u32| self.0 >> bit & 1 != 0;
        let included = match capability {
            Capability::CapBpf | Capability::CapPerfmon => holds(Capability::CapSysAdmin as u32),
            Capability::CapDacReadSearch => holds(CAP_DAC_OVERRIDE),
            Capability::CapSysPtrace | Capability::CapSysAdmin | Capability::CapSysResource => false,
        };
        holds(capability as u32) || included
    }

    /// What is needed in this situation and not there.
    #[must_use]
    pub fn missing(self, situation: &Situation) -> Vec<Missing> {
        let perf_is_closed = situation.perf_event_paranoid.is_some_and(|level| level > 2);
        let needs = [
            (
                true,
                Missing {
                    capability: Capability::CapBpf,
                    needed_for: "loading the eBPF programs",
                    remedy: THE_FOUR,
                },
            ),
            (
                true,
                Missing {
                    capability: Capability::CapPerfmon,
                    needed_for: "attaching them to kernel functions and reading kernel memory",
                    remedy: THE_FOUR,
                },
            ),
            (
                true,
                Missing {
                    capability: Capability::CapSysPtrace,
                    needed_for: "reading maps and pagemap of other users' processes",
                    remedy: THE_FOUR,
                },
            ),
            (
                true,
                Missing {
                    capability: Capability::CapDacReadSearch,
                    needed_for: "opening pagemap of other users' processes",
                    remedy: THE_FOUR,
                },
            ),
            (
                situation.memlock_is_charged && !situation.memlock_is_unlimited,
                Missing {
                    capability: Capability::CapSysResource,
                    needed_for: "raising the limit of locked memory, which this kernel charges BPF maps to",
                    remedy: "raise the limit before the start (ulimit -l unlimited, LimitMEMLOCK=infinity)",
                },
            ),
            // A patch of Debian's: above 2, perf_event_open wants CAP_SYS_ADMIN and nothing less.
            (
                situation.kprobes_wanted && perf_is_closed,
                Missing {
                    capability: Capability::CapSysAdmin,
                    needed_for: "kprobes while kernel.perf_event_paranoid is above 2",
                    remedy: "set sysctl kernel.perf_event_paranoid=2, or use --attach fentry",
                },
            ),
        ];
        needs
            .into_iter()
            .filter(|(needed, missing)| *needed && !self.has(missing.capability))
            .map(|(_, missing)| missing)
            .collect()
    }
}

/// Whether the text of `/proc/self/uid_map` is that of the initial user namespace. In any other one the capabilities
/// count inside it only, so that none of them lets a process load eBPF programs.
#[must_use]
pub fn is_initial_user_namespace(uid_map: &str) -> bool {
    uid_map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Capabilities = Capabilities(0x0000_01ff_ffff_ffff);
    const NONE: Capabilities = Capabilities(0);
    const PLAIN: Situation = Situation {
        memlock_is_charged: false,
        memlock_is_unlimited: false,
        perf_event_paranoid: Some(2),
        kprobes_wanted: true,
    };

    fn names(capabilities: Capabilities, situation: Situation) -> Vec<String> {
        capabilities
            .missing(&situation)
            .iter()
            .map(|missing| missing.capability.to_string())
            .collect()
    }

    fn with(capabilities: &[Capability]) -> Capabilities {
        Capabilities(
            capabilities
                .iter()
                .map(|&capability| 1 << capability as u32)
                .sum(),
        )
    }

    #[test]
    fn the_effective_set_is_read_and_nothing_else() {
        let status = "Name:\tsdtrace\nCapPrm:\t000001ffffffffff\nCapEff:\t0000008000080000\nCapBnd:\t0\n";
        let read = Capabilities::from_status(status).unwrap();
        assert_eq!(read, with(&[Capability::CapBpf, Capability::CapSysPtrace]));
        assert_eq!(
            Capabilities::from_status("Name:\tsdtrace\n"),
            Err(CapabilityError::NoLine)
        );
        let bad = CapabilityError::NotANumber("full".to_owned());
        assert_eq!(Capabilities::from_status("CapEff:\tfull\n"), Err(bad));
    }

    #[test]
    fn root_lacks_nothing_and_nobody_lacks_all_four() {
        let worst = Situation {
            memlock_is_charged: true,
            perf_event_paranoid: Some(3),
            ..PLAIN
        };
        assert_eq!(names(ROOT, worst), Vec::<String>::new());
        assert_eq!(
            names(NONE, PLAIN),
            ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]
        );
        let all = [
            "CAP_BPF",
            "CAP_PERFMON",
            "CAP_SYS_PTRACE",
            "CAP_DAC_READ_SEARCH",
            "CAP_SYS_RESOURCE",
            "CAP_SYS_ADMIN",
        ];
        assert_eq!(names(NONE, worst), all);
    }

    #[test]
    fn sys_admin_includes_bpf_and_perfmon_but_not_ptrace() {
        let lacking = ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"];
        assert_eq!(names(with(&[Capability::CapSysAdmin]), PLAIN), lacking);
        let dac_override = Capabilities(with(&[Capability::CapSysAdmin]).0 | 1 << 1);
        assert_eq!(names(dac_override, PLAIN), ["CAP_SYS_PTRACE"]);
    }

    #[test]
    fn a_closed_perf_matters_to_kprobes_only() {
        let four = with(&[
            Capability::CapDacReadSearch,
            Capability::CapBpf,
            Capability::CapPerfmon,
            Capability::CapSysPtrace,
        ]);
        let closed = Situation {
            perf_event_paranoid: Some(3),
            ..PLAIN
        };
        assert_eq!(names(four, closed), ["CAP_SYS_ADMIN"]);
        assert_eq!(
            names(
                four,
                Situation {
                    kprobes_wanted: false,
                    ..closed
                }
            ),
            Vec::<String>::new()
        );
        assert_eq!(
            names(
                four,
                Situation {
                    perf_event_paranoid: None,
                    ..closed
                }
            ),
            Vec::<String>::new()
        );
        let text = four.missing(&closed)[0].to_string();
        assert!(
            text.contains("CAP_SYS_ADMIN") && text.contains("--attach fentry"),
            "{text}"
        );
    }

    #[test]
    fn a_raised_memory_limit_replaces_sys_resource() {
        let four = with(&[
            Capability::CapDacReadSearch,
            Capability::CapBpf,
            Capability::CapPerfmon,
            Capability::CapSysPtrace,
        ]);
        let charged = Situation {
            memlock_is_charged: true,
            ..PLAIN
        };
        assert_eq!(names(four, charged), ["CAP_SYS_RESOURCE"]);
        assert_eq!(
            names(
                four,
                Situation {
                    memlock_is_unlimited: true,
                    ..charged
                }
            ),
            Vec::<String>::new()
        );
    }

    #[test]
    fn only_the_identity_map_is_the_initial_user_namespace() {
        assert!(is_initial_user_namespace("         0          0 4294967295\n"));
        assert!(!is_initial_user_namespace("         0       1000          1\n"));
        assert!(!is_initial_user_namespace(""));
    }
}
