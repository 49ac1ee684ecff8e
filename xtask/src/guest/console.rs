//! Reads the kernel's console: what the guest died of, if it did.

/// What a line of the console says about the kernel's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The kernel gave up or hit a fault of its own ("Kernel panic", "Oops", "BUG:").
    Panic(String),
    /// A CPU or a task got stuck (soft lock-up, RCU stall, hung task).
    LockUp(String),
    /// The kernel warned and went on.
    Warning(String),
}

/// Every one of these ends a kernel that can be trusted.
const PANICS: [&str; 9] = [
    "Kernel panic - not syncing",
    "Oops: ",
    "BUG: unable to handle",
    "BUG: kernel NULL pointer dereference",
    "kernel BUG at ",
    "BUG: Bad page",
    "BUG: Bad rss-counter",
    "general protection fault, ",
    "stack segment: ",
];
const LOCK_UPS: [&str; 7] = [
    "BUG: soft lockup",
    "hard LOCKUP",
    "self-detected stall on CPU",
    "detected stalls on CPUs",
    "detected expedited stalls",
    "blocked for more than",
    "BUG: workqueue lockup",
];
const WARNINGS: [&str; 4] = ["WARNING: ", "BUG: ", "INFO: possible ", "refcount_t: "];

/// Judges one line of the console. User-space faults ("traps: prog[1] general protection fault ip:…") are none.
#[must_use]
pub fn judge(line: &str) -> Option<Finding> {
    let text = without_prefix(line);
    let found = |patterns: &[&str]| patterns.iter().any(|pattern| text.contains(pattern));
    if text.starts_with("traps: ") {
        None
    } else if found(&LOCK_UPS) {
        Some(Finding::LockUp(text.to_owned()))
    } else if found(&PANICS) {
        Some(Finding::Panic(text.to_owned()))
    } else if WARNINGS.iter().any(|pattern| text.starts_with(pattern)) {
        Some(Finding::Warning(text.to_owned()))
    } else {
        None
    }
}

/// The line without its time stamp `[    1.234567] ` or `[    1.234567][  T1] `, and without stray control characters.
fn without_prefix(line: &str) -> &str {
    let mut rest = line.trim();
    while let Some(inner) = rest.strip_prefix('[') {
        let Some((stamp, after)) = inner.split_once(']') else {
            break;
        };
        if !stamp
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || " .".contains(letter))
        {
            break;
        }
        rest = after.trim_start();
    }
    rest
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// The lines that `bytes` completes, without their ends.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.pending.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            lines.push(
                String::from_utf8_lossy(&line)
                    .trim_end_matches(['\r', '\n'])
                    .to_owned(),
            );
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_are_told_apart() {
        let panic = |line| matches!(judge(line), Some(Finding::Panic(_)));
        let lock_up = |line| matches!(judge(line), Some(Finding::LockUp(_)));
        assert!(panic(
            "[    3.141592] Kernel panic - not syncing: sysrq triggered crash"
        ));
        assert!(panic("[    3.1][   T12] Oops: 0002 [#1] PREEMPT SMP NOPTI"));
        assert!(panic(
            "[   12.0] BUG: kernel NULL pointer dereference, address: 0000000000000008"
        ));
        assert!(panic(
            "[   12.0] BUG: unable to handle page fault for address: ffffa00000000000"
        ));
        assert!(panic(
            "[   12.0] Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP"
        ));
        assert!(panic("[    9.0] kernel BUG at mm/memory.c:1234!"));
        assert!(lock_up(
            "[   60.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:77]"
        ));
        assert!(lock_up(
            "[   60.0] rcu: INFO: rcu_preempt self-detected stall on CPU"
        ));
        assert!(lock_up(
            "[   60.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"
        ));
        assert!(lock_up(
            "[  120.0] INFO: task dd:99 blocked for more than 120 seconds."
        ));
    }

    #[test]
    fn user_space_faults_and_quiet_lines_are_not_deaths() {
        assert_eq!(
            judge(
                "[    5.0] traps: prog[99] general protection fault ip:401000 sp:7ffe error:0 in prog[400000+1000]"
            ),
            None
        );
        assert_eq!(
            judge("[    5.0] prog[99]: segfault at 0 ip 0000000000401000 sp 00007ffe error 4"),
            None
        );
        assert_eq!(judge("[    0.0] Linux version 6.1.0 (debian)"), None);
        assert_eq!(judge(""), None);
        assert_eq!(judge("["), None);
    }

    #[test]
    fn warnings_are_noted_with_their_text() {
        let line = "[    5.0] WARNING: CPU: 0 PID: 1 at mm/rmap.c:10 foo+0x1/0x2";
        assert_eq!(
            judge(line),
            Some(Finding::Warning(
                "WARNING: CPU: 0 PID: 1 at mm/rmap.c:10 foo+0x1/0x2".into()
            ))
        );
    }

    #[test]
    fn lines_are_cut_wherever_the_bytes_were() {
        let mut lines = Lines::default();
        assert!(lines.feed(b"one").is_empty());
        assert_eq!(lines.feed(b" line\r\ntwo\nth"), ["one line", "two"]);
        assert_eq!(lines.feed(b"ree\n"), ["three"]);
    }
}
