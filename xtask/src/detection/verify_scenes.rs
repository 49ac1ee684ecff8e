//! The processes of [`super::verify`]: memory that changes past its page tables, and memory that does not.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use io_uring::{IoUring, opcode, types};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::Advice;

use super::scenes::{advise, step, told};
use crate::workload::area::Area;
use crate::workload::proc::{PAGE, clear_own};

/// Pages of each piece of memory, but for the pinned buffer and the ring.
pub const PAGES: usize = 64;
/// Pages of the pinned buffer.
pub const PINNED: usize = 16;

/// A file that a scene maps shared, for others to map or write; they remove it.
#[must_use]
pub fn path_of_shared(pid: u32) -> PathBuf {
    format!("/tmp/verify-{pid}").into()
}

fn shared_file() -> Result<(File, Area)> {
    let path = path_of_shared(std::process::id());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    let area = Area::file("file", "shared_file", &file, PAGES)?;
    fill(&area, 1);
    Ok((file, area))
}

/// Writes every byte.
fn fill(area: &Area, byte: u8) {
    for page in 0..area.pages() {
        // SAFETY: a page of our own mapping, which nothing refers to.
        unsafe { area.pointer(page).write_bytes(byte, PAGE) };
    }
}

/// Four kinds of memory change in one epoch, none of them through its page-table entries: memory that another process
/// maps, too; a buffer that is pinned for `io_uring`; the ring of an AIO context; a file that is written by write(2).
pub fn past_the_tables() -> Result<()> {
    let (_file, mapped) = shared_file()?;
    let written_file = memory_file("written")?;
    let written = Area::file("written", "shared_anon", &written_file, PAGES)?;
    fill(&written, 1);
    let pinned = Area::shared("pinned", PINNED)?;
    fill(&pinned, 1);
    let source = memory_file("source")?;
    source.write_all_at(&vec![2; PINNED * PAGE], 0)?;
    let mut ring = IoUring::new(8).context("io_uring_setup")?;
    let length = PINNED * PAGE;
    let buffer = libc::iovec {
        iov_base: pinned.pointer(0).cast(),
        iov_len: length,
    };
    // SAFETY: the mapping lives as long as the process.
    unsafe { ring.submitter().register_buffers(&[buffer])? };
    let context = aio_context()?;
    // Whoever maps the file, too, does it now.
    step(&told(&[])?)?;
    clear_own()?;
    step(&told(&[(&mapped, 0), (&written, 0), (&pinned, 0)])?)?;
    written_file.write_all_at(&vec![2; PAGES * PAGE], 0)?;
    let entry = opcode::ReadFixed::new(
        types::Fd(source.as_raw_fd()),
        pinned.pointer(0),
        u32::try_from(length)?,
        0,
    )
    .build();
    // SAFETY: file and buffer live until the read is done.
    unsafe { ring.submission().push(&entry)? };
    ring.submit_and_wait(1)?;
    let read = ring
        .completion()
        .next()
        .context("the read has not ended")?
        .result();
    ensure!(
        usize::try_from(read) == Ok(length),
        "the read gave {read} of {length} bytes"
    );
    aio_read(context, &source)?;
    let (all, some) = (PAGES as u64, PINNED as u64);
    step(&told(&[(&mapped, all), (&written, all), (&pinned, some)])?)
}

/// Nothing but a file that it maps shared; nobody else maps it when it clears.
pub fn late_mapper() -> Result<()> {
    let (_file, mapped) = shared_file()?;
    clear_own()?;
    step(&told(&[(&mapped, 0)])?)
}

/// Everything that the kernel tracks or that is thrown away: writes to private and shared memory, `MADV_DONTNEED`, a
/// hole in a file, memory that nobody touches, and a mapping in the place of another.
pub fn nothing_missed() -> Result<()> {
    let private = Area::private("written", PAGES)?;
    let shared = Area::shared("written", PAGES)?;
    let dropped = Area::private("dropped", PAGES)?;
    let holed_file = memory_file("holed")?;
    let holed = Area::file("holed", "shared_anon", &holed_file, PAGES)?;
    let untouched = Area::private("untouched", PAGES)?;
    let again = Area::private("mapped again", PAGES)?;
    for area in [&private, &shared, &dropped, &holed, &untouched, &again] {
        fill(area, 1);
    }
    clear_own()?;
    step(&told(&[(&untouched, 0)])?)?;
    fill(&private, 2);
    fill(&shared, 2);
    advise(&dropped, Advice::LinuxDontNeed)?;
    dropped.read(0..PAGES / 2);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&holed_file, hole, 0, (PAGES * PAGE) as u64)?;
    holed.read(0..PAGES / 2);
    // SAFETY: in the place of a mapping of our own, which nothing refers to.
    let mapped = unsafe {
        rustix::mm::mmap_anonymous(
            again.pointer(0).cast(),
            PAGES * PAGE,
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::FIXED,
        )?
    };
    ensure!(mapped.cast() == again.pointer(0), "mmap chose another place");
    fill(&again, 3);
    step(&told(&[(&untouched, 0)])?)
}

/// Writes something else after each clear, in epochs that are a few readings long: whoever takes what was read before a
/// clear for what it was after it tells of a missed write.
pub fn write_and_clear() -> Result<()> {
    const TIME: Duration = Duration::from_secs(10);
    let private = Area::private("private", PAGES)?;
    let shared = Area::shared("shared", PAGES)?;
    let start = Instant::now();
    let mut round = 0u8;
    while start.elapsed() < TIME {
        clear_own()?;
        thread::sleep(Duration::from_millis(u64::from(round % 40)));
        round = round.wrapping_add(1);
        let (one, other) = if round.is_multiple_of(2) {
            (&private, &shared)
        } else {
            (&shared, &private)
        };
        fill(one, round.max(1));
        thread::sleep(Duration::from_millis(u64::from(round % 7)));
        fill(other, round.max(1));
    }
    step(&told(&[(&private, 0)])?)
}

fn memory_file(name: &str) -> Result<File> {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(file);
    file.set_len((PAGES * PAGE) as u64)?;
    Ok(file)
}

/// A new AIO context; its ring is a page that the kernel maps.
fn aio_context() -> Result<u64> {
    let mut context = 0u64;
    // SAFETY: the kernel writes the context's id to the variable.
    let error = unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut context) };
    ensure!(error == 0, "io_setup: {}", std::io::Error::last_os_error());
    // Present, and not only mapped: what is not there is not sampled.
    // SAFETY: the id is the address at which the kernel has mapped the ring (aio_setup_ring).
    let _ = unsafe { (context as *const u8).read_volatile() };
    Ok(context)
}

/// `struct iocb` of `linux/aio_abi.h`, for a little-endian machine.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    event_file: u32,
}

/// Reads a byte of a memory file (`IOCB_CMD_PREAD`); the kernel writes the completion into the ring before it returns.
fn aio_read(context: u64, file: &File) -> Result<()> {
    let mut byte = [0u8];
    let mut control = Iocb {
        file: u32::try_from(file.as_raw_fd())?,
        buffer: byte.as_mut_ptr() as u64,
        bytes: 1,
        ..Iocb::default()
    };
    let mut list = [&raw mut control];
    // SAFETY: one control block, which like its buffer outlives the read.
    let submitted = unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) };
    ensure!(submitted == 1, "io_submit: {}", std::io::Error::last_os_error());
    Ok(())
}
