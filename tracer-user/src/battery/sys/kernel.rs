//! Other interfaces of the kernel that a scenario needs: detached mounts, swap, AIO, perf events.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use io_uring::IoUring;

use super::{Area, check, check_long};

fn owned(fd: usize) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: every caller passes a descriptor that a system call has just made and that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A file system of its own that is attached nowhere, so that no mount table changes (fsopen(2), Linux 5.2).
/// Its files are reached under `/proc/self/fd/N/`.
pub fn detached_mount(kind: &CStr, options: &[(&CStr, &CStr)]) -> io::Result<OwnedFd> {
    const SET_STRING: i32 = 1;
    const CREATE: i32 = 6;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: all strings are valid C strings, and the kernel copies them.
    unsafe {
        let context = owned(check_long(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1))?)?;
        let fd = context.as_raw_fd();
        for (key, value) in options {
            check_long(libc::syscall(
                libc::SYS_fsconfig,
                fd,
                SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            ))?;
        }
        check_long(libc::syscall(libc::SYS_fsconfig, fd, CREATE, null, null, 0))?;
        owned(check_long(libc::syscall(libc::SYS_fsmount, fd, 1, 0))?)
    }
}

fn path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// swapon(2).
pub fn swap_on(device: &Path) -> io::Result<()> {
    let device = path(device)?;
    // SAFETY: the path is a valid C string.
    check(unsafe { libc::swapon(device.as_ptr(), 0) }).map(drop)
}

/// swapoff(2).
pub fn swap_off(device: &Path) -> io::Result<()> {
    let device = path(device)?;
    // SAFETY: the path is a valid C string.
    check(unsafe { libc::swapoff(device.as_ptr()) }).map(drop)
}

/// The AIO completion ring of a new context, and the context's id.
///
/// The id is the address at which the kernel mapped the ring (fs/aio.c, `aio_setup_ring`).
pub fn aio_context() -> io::Result<(u64, Area)> {
    let mut context = 0_u64;
    // SAFETY: the kernel writes the id to the variable.
    check_long(unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut context) })?;
    let start = usize::try_from(context).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((context, Area::of_kernel(start, 1)))
}

/// `struct iocb` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

const IOCB_CMD_PREAD: u16 = 0;

/// Submits one AIO read of a byte of `file`, whose completion the kernel then writes into the ring.
pub fn aio_read(context: u64, file: BorrowedFd<'_>) -> io::Result<()> {
    let mut byte = [0_u8];
    let mut iocb = Iocb {
        opcode: IOCB_CMD_PREAD,
        fd: file.as_raw_fd().cast_unsigned(),
        buffer: byte.as_mut_ptr() as u64,
        bytes: 1,
        ..Iocb::default()
    };
    let mut list = [&raw mut iocb];
    // SAFETY: one control block, whose buffer outlives the read: a read of a memory file is done when io_submit returns.
    check_long(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) }).map(drop)
}

/// A new AIO context of one entry, where its ring does not matter.
pub fn aio_queue() -> io::Result<u64> {
    aio_context().map(|(context, _)| context)
}

/// Submits one AIO read that fills `area` from the beginning of `file`.
pub fn aio_start(context: u64, file: BorrowedFd<'_>, area: Area) -> io::Result<()> {
    let mut iocb = Iocb {
        opcode: IOCB_CMD_PREAD,
        fd: file.as_raw_fd().cast_unsigned(),
        buffer: area.start() as u64,
        bytes: area.len() as u64,
        ..Iocb::default()
    };
    let mut list = [&raw mut iocb];
    // SAFETY: one control block, which the kernel copies; its buffer is a mapping that lives as long as the scenario's
    // process and holds no Rust object.
    check_long(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) }).map(drop)
}

/// Waits for the one read that was started, and gives the number of bytes read.
pub fn aio_finish(context: u64) -> io::Result<usize> {
    // struct io_event of linux/aio_abi.h: data, obj, res, res2.
    let mut event = [0_i64; 4];
    // SAFETY: room for one event.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_io_getevents,
            context,
            1,
            1,
            event.as_mut_ptr(),
            std::ptr::null::<libc::timespec>(),
        )
    })?;
    usize::try_from(event[2]).map_err(|_| {
        let errno = i32::try_from(-event[2]).unwrap_or(libc::EIO);
        io::Error::from_raw_os_error(errno)
    })
}

/// The numbers of `struct perf_event_attr` (`include/uapi/linux/perf_event.h`) that are used here, as 64-bit words.
fn perf_event(kind: u32, config: u64, config1: u64, config2: u64) -> io::Result<OwnedFd> {
    const WORDS: usize = 14;
    const CLOSE_ON_EXEC: u64 = 1 << 3;
    let mut attributes = [0_u64; WORDS];
    attributes[0] = u64::from(kind) | ((WORDS as u64 * 8) << 32);
    attributes[1] = config;
    attributes[7] = config1;
    attributes[8] = config2;
    // SAFETY: the attributes are as long as their size field says, and outlive the call, as does what they point to.
    owned(check_long(unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes.as_ptr(),
            0,
            -1,
            -1,
            CLOSE_ON_EXEC,
        )
    })?)
}

/// A perf event of this process that never counts anything, for its ring buffer.
pub fn perf_dummy() -> io::Result<OwnedFd> {
    // PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY.
    perf_event(1, 9, 0, 0)
}

/// A uprobe at `offset` of `file`, active in this process for as long as the descriptor is open.
pub fn uprobe(file: &Path, offset: u64) -> io::Result<OwnedFd> {
    let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
    let kind = kind.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
    let file = path(file)?;
    perf_event(kind, 0, file.as_ptr() as u64, offset)
}

/// Pins a buffer for fixed reads of this ring.
pub fn register_buffer(ring: &IoUring, area: Area) -> io::Result<()> {
    let buffer = libc::iovec {
        iov_base: area.pointer(),
        iov_len: area.len(),
    };
    // SAFETY: the buffer is a mapping that lives as long as the scenario's process, as does the ring.
    unsafe { ring.submitter().register_buffers(&[buffer]) }
}

/// Submits one entry and waits for its completion.
pub fn submit(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> io::Result<()> {
    // SAFETY: the entry's buffer is a mapping that lives as long as the scenario's process.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1).map(drop)
}

/// The ring's descriptor, for as long as the ring lives.
pub fn borrow(ring: &IoUring) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the ring's own and lives as long as the borrow of it.
    unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }
}
