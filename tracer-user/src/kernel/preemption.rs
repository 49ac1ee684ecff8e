//! Whether the running kernel takes the CPU from code of its own, eBPF programs included.
//!
//! A fentry program runs with migration off and preemption on. Where it is preempted, every task that runs on that
//! CPU meanwhile finds the program busy, and the kernel skips it there (`__bpf_prog_enter_recur`).
//! A kprobe program runs with preemption off (`trace_call_bpf`).

use std::fs;

use serde::{Deserialize, Serialize};

/// What the kernel says of its preemption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preemption {
    /// Programs run to their end: `none` or `voluntary`.
    Never,
    /// Programs can be preempted: `full`, `lazy` or `rt`.
    Possible,
    /// Nothing that could be read tells; taken for possible.
    Unknown,
}

impl Preemption {
    /// Asks the running kernel.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let mode = fs::read_to_string("/sys/kernel/debug/sched/preempt").ok();
        let version = fs::read_to_string("/proc/sys/kernel/version").ok();
        Self::told_by(mode.as_deref(), version.as_deref())
    }

    /// From `/sys/kernel/debug/sched/preempt`, where the mode in force stands in parentheses, and else from
    /// `/proc/sys/kernel/version`, which names what the kernel was built for (`UTS_VERSION`).
    #[must_use]
    pub fn told_by(mode: Option<&str>, version: Option<&str>) -> Self {
        let in_force = mode.and_then(|text| {
            let (_, from) = text.split_once('(')?;
            from.split_once(')').map(|(mode, _)| mode)
        });
        match in_force {
            Some("none" | "voluntary") => return Self::Never,
            Some("full" | "lazy") => return Self::Possible,
            _ => {}
        }
        match version {
            // Which of its modes is in force is not said.
            Some(version) if version.contains("PREEMPT_DYNAMIC") => Self::Unknown,
            Some(version) if version.contains("PREEMPT") => Self::Possible,
            // Kernels name preemption in their version, so one that does not has none.
            Some(version) if version.starts_with('#') => Self::Never,
            _ => Self::Unknown,
        }
    }

    /// Whether it has to be reckoned with.
    #[must_use]
    pub const fn is_possible(self) -> bool {
        !matches!(self, Self::Never)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_in_force_decides() {
        let dynamic = Some("#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1 (2026-11-12)\n");
        for (mode, expected) in [
            (Some("none (voluntary) full \n"), Preemption::Never),
            (Some("(none) voluntary full \n"), Preemption::Never),
            (Some("none voluntary full (lazy) \n"), Preemption::Possible),
            (Some("(full) lazy \n"), Preemption::Possible),
            (Some("(something new)"), Preemption::Unknown),
            (None, Preemption::Unknown),
        ] {
            assert_eq!(Preemption::told_by(mode, dynamic), expected, "{mode:?}");
        }
    }

    #[test]
    fn without_a_mode_the_version_tells() {
        for (version, expected) in [
            (Some("#1 SMP Debian 5.10.262-1 (2026-10-11)\n"), Preemption::Never),
            (Some("#1 SMP PREEMPT_RT Debian"), Preemption::Possible),
            (Some("#1 SMP PREEMPT Debian"), Preemption::Possible),
            (Some("odd"), Preemption::Unknown),
            (None, Preemption::Unknown),
        ] {
            assert_eq!(Preemption::told_by(None, version), expected, "{version:?}");
        }
    }
}
