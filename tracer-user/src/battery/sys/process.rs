//! Processes, pipes, signals.

use std::ffi::c_int;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Area, check};

/// What a process made by [`fork`] is to its parent.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
}

impl Child {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Waits for the next change of state, a stop by ptrace included. `Some(code)` once it has exited.
    pub fn wait(&self) -> io::Result<Option<c_int>> {
        let mut status = 0;
        // SAFETY: the status is a local variable.
        check(unsafe { libc::waitpid(self.pid, &raw mut status, 0) })?;
        Ok(if libc::WIFEXITED(status) {
            Some(libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            Some(128 + libc::WTERMSIG(status))
        } else {
            None
        })
    }

    /// Ends it and waits for it.
    pub fn end(self) -> io::Result<()> {
        // SAFETY: no memory is passed; the child is not yet waited for, so the id is still its own.
        check(unsafe { libc::kill(self.pid, libc::SIGKILL) })?;
        while self.wait()?.is_none() {}
        Ok(())
    }
}

/// Runs `work` in a forked copy of this process, which then exits: with 0, or with 1 when `work` failed.
///
/// Only for processes with one thread: a scenario's process starts threads, if any, after its last fork.
pub fn fork(work: impl FnOnce() -> io::Result<()>) -> io::Result<Child> {
    // SAFETY: this process has one thread, so the copy has every lock in the state in which this thread left it.
    let pid = check(unsafe { libc::fork() })?;
    if pid == 0 {
        // SAFETY: no memory is passed. The copy must not outlive the scenario.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let code = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => {
                eprintln!("{error}");
                1
            }
            Err(_) => 101,
        };
        // SAFETY: ends the copy without running what belongs to the original (atexit handlers, destructors).
        unsafe { libc::_exit(code) }
    }
    Ok(Child { pid })
}

/// As [`fork`], and waits for it: an error if it failed.
pub fn in_child(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match fork(work)?.wait()? {
        Some(0) => Ok(()),
        code => Err(io::Error::other(format!("the forked process failed: {code:?}"))),
    }
}

/// Keeps this process, and every thread that it starts from now on, on the CPU on which it runs.
pub fn stay_on_this_cpu() -> io::Result<()> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(rustix::thread::sched_getcpu());
    Ok(rustix::thread::sched_setaffinity(None, &cpus)?)
}

/// Sleeps until a signal comes.
pub fn pause() {
    // SAFETY: no arguments.
    unsafe { libc::pause() };
}

/// prctl(`PR_SET_PDEATHSIG`): this process shall not outlive its parent.
pub fn die_with_parent() {
    // SAFETY: no memory is passed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// `process_vm_writev(2)`: writes `value` at the start of each page of `area` in process `pid`.
pub fn write_in(pid: u32, area: Area, value: u8) -> io::Result<()> {
    let mut byte = [value];
    let local = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    for page in 0..area.pages() {
        let remote = libc::iovec {
            iov_base: area.byte(page, 0).cast(),
            iov_len: 1,
        };
        // SAFETY: one local and one remote iovec of one byte; the remote one is memory of another process.
        let wrote = unsafe {
            libc::process_vm_writev(pid.cast_signed(), &raw const local, 1, &raw const remote, 1, 0)
        };
        if wrote != 1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// ptrace(`PTRACE_POKEDATA`) at the start of each page of `area` in process `pid`, which is attached to and let go again.
pub fn poke_in(pid: u32, area: Area, value: u8) -> io::Result<()> {
    let pid = pid.cast_signed();
    let request = |request, address: usize, data: usize| {
        // SAFETY: addresses are those of the other process; data is passed by value.
        match unsafe { libc::ptrace(request, pid, address, data) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    request(libc::PTRACE_ATTACH, 0, 0)?;
    let mut status = 0;
    // SAFETY: the status is a local variable.
    check(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) })?;
    for page in 0..area.pages() {
        request(
            libc::PTRACE_POKEDATA,
            area.part(page, 1).start(),
            usize::from(value),
        )?;
    }
    request(libc::PTRACE_DETACH, 0, 0)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP do not end this process but are noted, see [`interrupted`].
pub fn note_interrupts() -> io::Result<()> {
    let handler: extern "C" fn(c_int) = on_interrupt;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        if unsafe { libc::signal(signal, handler as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether one of these signals came.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// An inherited pipe end, by number.
pub fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the number comes from the runner, which opened the pipe for this process alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A pipe: read end, write end. Both are closed on exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the array has two elements; the descriptors are new and nobody else owns them.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// A new session of its own: signals from the terminal no longer reach this process; SIGINT, SIGTERM and SIGHUP are
/// ignored.
pub fn detach_from_terminal() {
    // SAFETY: no memory is passed; ignoring a signal runs no code of ours.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
}

/// prctl(`PR_SET_PTRACER`): any process may trace this one, where the Yama module would ask.
pub fn allow_tracers() {
    // SAFETY: no memory is passed. Without Yama the call fails, and nothing is needed.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
}
