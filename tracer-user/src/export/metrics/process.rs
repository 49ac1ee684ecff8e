//! What sdtrace itself takes, under the names that Prometheus' own client libraries use.

use procfs::process::Process;
use prometheus::proto::MetricFamily;

use super::family::Family;
use super::reading::Reading;

/// What the process has and has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUse {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Time on a processor, in user and kernel mode.
    pub cpu_nanoseconds: u64,
    /// Open file descriptors.
    pub open_fds: u64,
}

impl ProcessUse {
    /// As /proc tells now; `None` if it does not.
    #[must_use]
    pub fn now() -> Option<Self> {
        let process = Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let ticks = stat.utime + stat.stime;
        Some(Self {
            resident_bytes: stat.rss * procfs::page_size(),
            cpu_nanoseconds: ticks * (1_000_000_000 / procfs::ticks_per_second()),
            open_fds: u64::try_from(process.fd_count().ok()?).ok()?,
        })
    }
}

pub(super) fn families(reading: &Reading) -> Vec<MetricFamily> {
    let Some(process) = reading.process else {
        return Vec::new();
    };
    vec![
        Family::gauge("process_resident_memory_bytes", "Resident memory of sdtrace.")
            .single(process.resident_bytes),
        Family::counter(
            "process_cpu_seconds_total",
            "Time that sdtrace has spent on processors, in user and kernel mode.",
        )
        .seconds(process.cpu_nanoseconds),
        Family::gauge("process_open_fds", "Open file descriptors of sdtrace.").single(process.open_fds),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_tells_what_this_process_takes() {
        let process = ProcessUse::now().unwrap();
        assert!(process.resident_bytes > 1 << 20, "{process:?}");
        assert!(process.open_fds > 2, "{process:?}");
    }
}
