//! What is attached in the kernel, from the kernel's own lists.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Everything that tracing leaves in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Ids of all loaded eBPF programs.
    pub programs: BTreeSet<u32>,
    /// Lines of ftrace's list of functions that something is attached to.
    pub functions: Vec<String>,
    /// Lines of the list of kprobes.
    pub kprobes: Vec<String>,
}

impl Attached {
    /// What is attached now.
    ///
    /// # Errors
    /// If a list cannot be read.
    pub fn now() -> Result<Self> {
        Ok(Self {
            programs: programs()?,
            functions: lines("/sys/kernel/tracing/enabled_functions")?,
            kprobes: lines("/sys/kernel/debug/kprobes/list")?,
        })
    }

    /// Sees that something of sdtrace is attached, or these lists would prove nothing afterwards.
    ///
    /// # Errors
    /// If nothing is.
    pub fn ensure_more_than(&self, before: &Self) -> Result<()> {
        let new = self.programs.difference(&before.programs).count();
        ensure!(new >= 8, "sdtrace runs, and only {new} programs are loaded");
        ensure!(
            self.functions.len() + self.kprobes.len() > before.functions.len() + before.kprobes.len(),
            "sdtrace runs, and the kernel lists nothing more than before: {self:?}"
        );
        Ok(())
    }

    /// Waits until nothing more is attached than `before`: the kernel frees in the background.
    ///
    /// # Errors
    /// Names what is left.
    pub fn wait_until_gone(before: &Self) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let now = Self::now()?;
            if now == *before {
                return Ok(start.elapsed());
            }
            if start.elapsed() > Duration::from_secs(10) {
                bail!("left behind: {now:?}; before there was {before:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Lines of both lists that name this function: nothing is attached to it if there are none.
///
/// # Errors
/// If a list cannot be read.
pub fn on(function: &str) -> Result<Vec<String>> {
    let mut found = lines("/sys/kernel/tracing/enabled_functions")?;
    found.extend(lines("/sys/kernel/debug/kprobes/list")?);
    // `handle_mm_fault (1) …` and `ffffffff81280f60  k  handle_mm_fault+0x0    [FTRACE]`.
    found.retain(|line| line.split([' ', '+']).any(|word| word == function));
    Ok(found)
}

fn lines(path: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The beginning of `union bpf_attr` for `BPF_PROG_GET_NEXT_ID`.
#[repr(C)]
struct NextId {
    start: u32,
    next: u32,
    open_flags: u32,
}

fn programs() -> Result<BTreeSet<u32>> {
    /// From `enum bpf_cmd` of include/uapi/linux/bpf.h.
    const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
    let mut ids = BTreeSet::new();
    let mut request = NextId {
        start: 0,
        next: 0,
        open_flags: 0,
    };
    loop {
        // SAFETY: the attribute is ours, and its size is given.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_GET_NEXT_ID,
                &raw mut request,
                size_of::<NextId>(),
            )
        };
        if result != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::ENOENT) {
                return Ok(ids);
            }
            return Err(error).context("bpf(BPF_PROG_GET_NEXT_ID)");
        }
        ids.insert(request.next);
        request.start = request.next;
    }
}
