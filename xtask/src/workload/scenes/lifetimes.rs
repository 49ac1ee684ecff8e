//! Exec, vfork, and address spaces that come and go.

use std::ffi::{CString, c_void};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::simple;
use crate::workload::area::{Area, clear};
use crate::workload::process::{forked, wait};
use crate::workload::report::Answer;
use crate::workload::{Scene, answer, report_of};

const PAGES: usize = 16;

/// Writes, reports, and becomes another program: the scene `private`, which nobody has cleared.
pub fn exec() -> Result<Box<dyn Scene>> {
    let area = Area::private("exec", PAGES)?;
    let _ = area.poke(0..PAGES);
    Ok(simple(area, |area| {
        let faults = area.write(0..PAGES);
        area.expect(area.armed(faults));
        answer(&Answer::Acted(report_of(vec![area], Vec::new())?))?;
        let error = Command::new("/proc/self/exe").arg("private").exec();
        Err(error).context("exec")
    }))
}

/// What the vfork child needs.
struct Borrowed {
    first: *mut u8,
    pages: usize,
    program: *const libc::c_char,
    arguments: [*const libc::c_char; 3],
}

/// Runs on a stack of its own in the parent's memory: writes, then leaves by exec.
extern "C" fn borrow(argument: *mut c_void) -> libc::c_int {
    // SAFETY: the parent waits (CLONE_VFORK), so what it lent us stays.
    let borrowed = unsafe { &*argument.cast::<Borrowed>() };
    for page in 0..borrowed.pages {
        // SAFETY: within the parent's area.
        unsafe { borrowed.first.wrapping_add(page * 4096).write_volatile(2) };
    }
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: all strings and arrays end as execve wants; on failure the child exits.
    unsafe {
        libc::execve(
            borrowed.program,
            borrowed.arguments.as_ptr(),
            environment.as_ptr(),
        );
        libc::_exit(127)
    }
}

/// A child that borrows the parent's memory writes to it and then execs. The writes are the parent's, whose
/// address space and epoch go on.
pub fn vfork() -> Result<Box<dyn Scene>> {
    let area = Area::private("vfork", PAGES)?;
    let _ = area.poke(0..PAGES);
    Ok(simple(area, |area| {
        const STACK: usize = 1 << 16;
        let program = CString::new("/proc/self/exe")?;
        let argument = CString::new("--nothing")?;
        let borrowed = Borrowed {
            first: area.pointer(0),
            pages: PAGES / 2,
            program: program.as_ptr(),
            arguments: [program.as_ptr(), argument.as_ptr(), std::ptr::null()],
        };
        let mut stack = vec![0u128; STACK / 16];
        let top = stack.as_mut_ptr_range().end;
        // SAFETY: the child runs `borrow` on a stack of its own while this thread waits for its exec.
        let pid = unsafe {
            libc::clone(
                borrow,
                top.cast(),
                libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
                (&raw const borrowed).cast_mut().cast(),
            )
        };
        ensure!(pid > 0, "clone: {}", std::io::Error::last_os_error());
        let status = wait(pid)?;
        if status != 0 {
            bail!("the child that borrowed our memory ended with status {status:#x}");
        }
        area.count_written((PAGES / 2) as u64);
        let own = area.write(PAGES / 2..PAGES);
        area.expect(area.armed(own + (PAGES / 2) as u64));
        Ok(Vec::new())
    }))
}

/// Children that clear themselves, write and exit, one after the other: the kernel uses the same `mm_struct` again
/// and again, each time for another address space.
pub fn reuse() -> Result<Box<dyn Scene>> {
    const CHILDREN: usize = 20;
    let area = Area::private("reuse", PAGES)?;
    let _ = area.poke(0..PAGES);
    Ok(simple(area, |area| {
        let mut reports = Vec::new();
        for child in 0..CHILDREN {
            let ended = forked(|| {
                let mut area = area.clone();
                clear(&mut [&mut area])?;
                let faults = area.write(0..1 + child % PAGES);
                area.expect(area.armed(faults));
                report_of(vec![&mut area], Vec::new())
            })?;
            reports.push(ended.report.clone());
            ended.end()?;
        }
        Ok(reports)
    }))
}
