//! The system calls of the battery: every `unsafe` line of it is here.
//!
//! The memory under test is never Rust memory. An [`Area`] names pages that this process mapped for a scenario and that
//! no Rust reference ever points to; it is read and written by volatile accesses and by system calls only. A scenario
//! runs in a process of its own, so an access that the kernel refuses ends that process by a signal, which the runner
//! reports, and corrupts nothing else.

mod kernel;
mod memory;
mod process;
mod userfault;

use std::ffi::{c_int, c_long};
use std::io;

pub use kernel::*;
pub use memory::*;
pub use process::*;
pub use userfault::*;

/// Turns the `-1` of a system call into the error it left in `errno`.
fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn check_long(result: c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
