//! The child of the self-test: it maps, clears, writes and reports.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;

use anyhow::{Context as _, Result, ensure};
use io_uring::IoUring;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use tracer_common::flags::{from_smaps_names, smaps_names};
use tracer_common::{PAGE_SIZE, classify::VmaKind};

use super::self_test::{Mapping, Report};

/// Bit 55 of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const PAGEMAP_SOFT_DIRTY: u64 = 1 << 55;
const PAGES: u64 = 16;

/// A mapping of ours, which lives as long as the process.
struct Area {
    name: &'static str,
    kind: VmaKind,
    address: NonNull<u8>,
    writes: u64,
    rewrites: u64,
    mprotects: u64,
}

impl Area {
    fn new(name: &'static str, kind: VmaKind, flags: MapFlags) -> io::Result<Self> {
        let length = usize::try_from(PAGES * PAGE_SIZE).map_err(io::Error::other)?;
        // A page without access on each side keeps the VMA from merging with a neighbour.
        let page = usize::try_from(PAGE_SIZE).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice, never unmapped.
        let address = unsafe {
            let reserved = mmap_anonymous(
                std::ptr::null_mut(),
                length + 2 * page,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?;
            mmap_anonymous(
                reserved.cast::<u8>().add(page).cast(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                flags | MapFlags::FIXED,
            )?
        };
        let address = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        let mut area = Self {
            name,
            kind,
            address,
            writes: 0,
            rewrites: 0,
            mprotects: 0,
        };
        area.write(PAGES);
        area.writes = 0;
        Ok(area)
    }

    fn start(&self) -> u64 {
        self.address.as_ptr() as u64
    }

    /// Writes one byte into each of the first `pages` pages.
    fn write(&mut self, pages: u64) {
        self.poke(pages);
        self.writes += pages;
    }

    /// The same on pages that are soft-dirty already and write-protected again.
    fn rewrite(&mut self, pages: u64) {
        self.poke(pages);
        self.rewrites += pages;
    }

    fn poke(&mut self, pages: u64) {
        for page in 0..pages {
            let offset = usize::try_from(page * PAGE_SIZE).unwrap_or(0);
            // SAFETY: within the mapping, which is writable now.
            unsafe { self.address.add(offset).write_volatile(1) };
        }
    }

    fn protect(&mut self, flags: MprotectFlags) -> io::Result<()> {
        let length = usize::try_from(PAGES * PAGE_SIZE).map_err(io::Error::other)?;
        // SAFETY: our own mapping; nothing of it is borrowed.
        unsafe { mprotect(self.address.as_ptr().cast(), length, flags)? };
        self.mprotects += 1;
        Ok(())
    }

    fn soft_dirty_pages(&self, pagemap: &File) -> io::Result<u64> {
        let mut count = 0;
        for page in 0..PAGES {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, (self.start() / PAGE_SIZE + page) * 8)?;
            count += u64::from(u64::from_ne_bytes(entry) & PAGEMAP_SOFT_DIRTY != 0);
        }
        Ok(count)
    }
}

/// Plays the child: waits for a line, acts, prints a [`Report`] as one line of JSON, waits for the end of its
/// input.
///
/// # Errors
/// If the kernel refuses something; the parent then reports that the child said nothing.
pub fn play() -> Result<()> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;

    let mut areas = [
        Area::new("shared anonymous memory", VmaKind::SharedAnon, MapFlags::SHARED)?,
        Area::new(
            "private anonymous memory",
            VmaKind::PrivateAnon,
            MapFlags::PRIVATE,
        )?,
        Area::new("memory under mprotect", VmaKind::PrivateAnon, MapFlags::PRIVATE)?,
    ];
    let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    let clear = || fs::write("/proc/self/clear_refs", "4").context("/proc/self/clear_refs");
    // Before the first clear nothing was ever pinned here, before the second something was.
    clear()?;
    pin_for_a_moment(&areas[1])?;
    let ring = pin_for_good(&areas[0]);
    clear()?;
    let mut after_clear = Vec::new();
    for area in &areas {
        after_clear.push(area.soft_dirty_pages(&pagemap)?);
    }
    areas[0].write(5);
    areas[1].write(7);
    areas[2].protect(MprotectFlags::READ)?;
    areas[2].protect(MprotectFlags::READ | MprotectFlags::WRITE)?;
    areas[2].write(3);
    share_with_a_child()?;
    areas[1].rewrite(7);

    let smaps = fs::read_to_string("/proc/self/smaps").context("/proc/self/smaps")?;
    let mut mappings = Vec::new();
    for (area, soft_dirty_after_clear) in areas.iter().zip(after_clear) {
        let start = area.start();
        mappings.push(Mapping {
            name: area.name.to_owned(),
            start,
            end: start + PAGES * PAGE_SIZE,
            file: file_in(&smaps, start, start + PAGES * PAGE_SIZE)?,
            flags: flags_in(&smaps, start, start + PAGES * PAGE_SIZE)?,
            kind: area.kind.label().to_owned(),
            writes: area.writes,
            rewrites: area.rewrites,
            soft_dirty: area.soft_dirty_pages(&pagemap)?,
            soft_dirty_after_clear,
            mprotects: area.mprotects,
        });
    }
    let mut output = io::stdout().lock();
    let comm = fs::read_to_string("/proc/self/comm").context("/proc/self/comm")?;
    let report = Report {
        comm: comm.trim_end_matches('\n').to_owned(),
        mappings,
        pinned: if ring.is_some() { PINNED * PAGE_SIZE } else { 0 },
    };
    serde_json::to_writer(&mut output, &report)?;
    output.write_all(b"\n")?;
    output.flush()?;
    io::stdin().read_line(&mut line)?;
    Ok(())
}

/// Pages of shared memory that stay pinned, if that is possible.
const PINNED: u64 = 2;

fn part_of(area: &Area, pages: u64) -> Result<libc::iovec> {
    Ok(libc::iovec {
        iov_base: area.address.as_ptr().cast(),
        iov_len: usize::try_from(pages * PAGE_SIZE)?,
    })
}

/// `process_vm_readv` pins the pages that it reads from (`pin_user_pages_remote`) as long as it copies.
fn pin_for_a_moment(area: &Area) -> Result<()> {
    let mut copy = [0u8; 8];
    let to = libc::iovec {
        iov_base: copy.as_mut_ptr().cast(),
        iov_len: copy.len(),
    };
    let mut from = part_of(area, 1)?;
    from.iov_len = copy.len();
    // SAFETY: reads our own memory into a buffer of ours; the kernel checks both.
    let got = unsafe { libc::process_vm_readv(libc::getpid(), &raw const to, 1, &raw const from, 1, 0) };
    ensure!(
        got == 8,
        "process_vm_readv of its own memory: {}",
        io::Error::last_os_error()
    );
    Ok(())
}

/// Has `io_uring` pin the first pages; `None` where there is no `io_uring` for us. They are pinned as long as the ring
/// lives.
fn pin_for_good(area: &Area) -> Option<IoUring> {
    let ring = IoUring::new(1).ok()?;
    let buffer = part_of(area, PINNED).ok()?;
    // SAFETY: the mapping lives as long as the process.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.ok()?;
    Some(ring)
}

/// Forks a child that exits at once. The fork write-protects our private pages, whose entries stay soft-dirty.
fn share_with_a_child() -> Result<()> {
    // SAFETY: the child calls nothing but _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: ends the child without running what we registered.
        unsafe { libc::_exit(0) }
    }
    ensure!(pid > 0, "fork: {}", io::Error::last_os_error());
    // SAFETY: waits for the child of above and wants no status.
    let waited = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    ensure!(waited == pid, "waitpid: {}", io::Error::last_os_error());
    Ok(())
}

/// Device and inode number of the VMA `[start, end)`, with one space between them.
fn file_in(smaps: &str, start: u64, end: u64) -> Result<String> {
    let head = format!("{start:x}-{end:x} ");
    let line = smaps.lines().find(|line| line.starts_with(&head));
    let mut words = line
        .with_context(|| format!("smaps has no VMA {head}"))?
        .split_whitespace()
        .skip(3);
    let (device, inode) = (words.next(), words.next());
    let device = device.with_context(|| format!("smaps shows no device for {head}"))?;
    let inode = inode.with_context(|| format!("smaps shows no inode for {head}"))?;
    Ok(format!("{device} {inode}"))
}

/// The decoded `VmFlags` names of the VMA `[start, end)`.
fn flags_in(smaps: &str, start: u64, end: u64) -> Result<Vec<String>> {
    let head = format!("{start:x}-{end:x} ");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&head));
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags:"));
    let flags = flags.with_context(|| format!("smaps has no VMA {head}with flags"))?;
    Ok(smaps_names(from_smaps_names(flags.split_whitespace()))
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_right_vma_is_found() {
        let smaps = "1000-2000 rw-p 00000000 00:00 0 \nVmFlags: rd\n\
                     2000-3000 rw-s 00000000 00:01 1045                    /dev/zero (deleted)\nVmFlags: rd sh\n";
        assert_eq!(file_in(smaps, 0x1000, 0x2000).unwrap(), "00:00 0");
        assert_eq!(file_in(smaps, 0x2000, 0x3000).unwrap(), "00:01 1045");
        assert!(file_in(smaps, 0x1000, 0x3000).is_err());
    }

    #[test]
    fn the_flags_of_the_right_vma_are_found() {
        let smaps = "1000-2000 rw-p 0 0:0 0\nSize: 4 kB\nVmFlags: rd wr mr sd\n\
                     2000-3000 r--s 0 0:0 0\nSize: 4 kB\nVmFlags: rd sh mr\n";
        assert_eq!(flags_in(smaps, 0x1000, 0x2000).unwrap(), ["rd", "wr", "sd"]);
        assert_eq!(flags_in(smaps, 0x2000, 0x3000).unwrap(), ["rd", "sh"]);
        assert!(flags_in(smaps, 0x1000, 0x3000).is_err());
    }
}
