//! Mappings and files in memory.

use std::ffi::{CString, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::OnceLock;

pub use libc::{
    MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_EXEC, PROT_NONE,
    PROT_READ, PROT_WRITE,
};

use super::{check, check_long};

/// `PROT_READ | PROT_WRITE`.
pub const READ_WRITE: c_int = PROT_READ | PROT_WRITE;

/// The size of a page in bytes.
pub fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // SAFETY: sysconf has no memory arguments.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).expect("the page size is known")
    })
}

/// Pages mapped for a scenario. Copying it copies the name of the range, not the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    start: usize,
    pages: usize,
}

impl Area {
    /// Reserves address space for `pages` pages aligned to `align` bytes, with at least one inaccessible page on either
    /// side, so that no mapping placed in it can be merged with a neighbour that the scenario did not put there.
    pub fn reserve(pages: usize, align: usize) -> io::Result<Self> {
        let page = page_size();
        let align = align.max(page);
        let length = pages * page + align + 2 * page;
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        let start = raw_map(0, length, PROT_NONE, flags, -1, 0)?;
        let first = (start + page).next_multiple_of(align);
        Ok(Self { start: first, pages })
    }

    /// Replaces what lies in this range by a new mapping.
    pub fn place(self, prot: c_int, flags: c_int, file: Option<(BorrowedFd<'_>, usize)>) -> io::Result<Self> {
        let (fd, offset) = file.map_or((-1, 0), |(fd, offset)| (fd.as_raw_fd(), offset));
        raw_map(self.start, self.len(), prot, flags | MAP_FIXED, fd, offset)?;
        Ok(self)
    }

    /// The mapping that the kernel itself places, for callers that need one of its own choosing (hugetlb, rings).
    pub fn anywhere(
        length: usize,
        prot: c_int,
        flags: c_int,
        file: Option<(BorrowedFd<'_>, usize)>,
    ) -> io::Result<Self> {
        let (fd, offset) = file.map_or((-1, 0), |(fd, offset)| (fd.as_raw_fd(), offset));
        let start = raw_map(0, length, prot, flags, fd, offset)?;
        Ok(Self {
            start,
            pages: length.div_ceil(page_size()),
        })
    }

    /// Names a range that the kernel mapped into this process on its own (stack, heap, AIO ring).
    pub fn of_kernel(start: usize, pages: usize) -> Self {
        Self { start, pages }
    }

    /// `count` pages of this area, from page `first` on.
    pub fn part(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.pages, "the part lies inside the area");
        Self {
            start: self.start + first * page_size(),
            pages: count,
        }
    }

    /// The address of the first byte.
    pub fn start(self) -> usize {
        self.start
    }

    /// The number of pages.
    pub fn pages(self) -> usize {
        self.pages
    }

    /// The length in bytes.
    pub fn len(self) -> usize {
        self.pages * page_size()
    }

    /// The address as a pointer.
    pub fn pointer(self) -> *mut c_void {
        self.start as *mut c_void
    }

    pub(super) fn byte(self, page: usize, offset: usize) -> *mut u8 {
        assert!(
            page < self.pages && offset < page_size(),
            "the byte lies inside the area"
        );
        (self.start + page * page_size() + offset) as *mut u8
    }

    /// Writes the first byte of one page with a store instruction.
    pub fn write(self, page: usize, value: u8) {
        // SAFETY: the byte is inside a mapping of this process that holds no Rust object.
        unsafe { self.byte(page, 0).write_volatile(value) }
    }

    /// Writes the first byte of every page.
    pub fn write_each(self, value: u8) {
        (0..self.pages).for_each(|page| self.write(page, value));
    }

    /// Writes every byte of every page.
    pub fn fill(self, value: u8) {
        for page in 0..self.pages {
            // SAFETY: the page is inside a mapping of this process that holds no Rust object.
            unsafe { self.byte(page, 0).write_bytes(value, page_size()) }
        }
    }

    /// Reads the first byte of one page with a load instruction.
    pub fn read(self, page: usize) -> u8 {
        // SAFETY: as for `write`.
        unsafe { self.byte(page, 0).read_volatile() }
    }

    /// Reads one byte of every page, which is enough to have the kernel map it.
    pub fn read_each(self) {
        (0..self.pages).for_each(|page| {
            self.read(page);
        });
    }

    /// Copies the whole content through this mapping.
    pub fn contents(self) -> Vec<u8> {
        let mut copy = vec![0; self.len()];
        for (page, into) in copy.chunks_exact_mut(page_size()).enumerate() {
            // SAFETY: source and destination are page_size() bytes each, and the copy is a Rust buffer of its own.
            unsafe {
                self.byte(page, 0)
                    .copy_to_nonoverlapping(into.as_mut_ptr(), page_size());
            }
        }
        copy
    }

    /// mprotect(2).
    pub fn protect(self, prot: c_int) -> io::Result<()> {
        // SAFETY: the range belongs to a scenario; no Rust object lives in it.
        check(unsafe { libc::mprotect(self.pointer(), self.len(), prot) }).map(drop)
    }

    /// madvise(2).
    pub fn advise(self, advice: c_int) -> io::Result<()> {
        // SAFETY: as for `protect`.
        check(unsafe { libc::madvise(self.pointer(), self.len(), advice) }).map(drop)
    }

    /// mlock(2).
    pub fn lock(self) -> io::Result<()> {
        // SAFETY: as for `protect`.
        check(unsafe { libc::mlock(self.pointer(), self.len()) }).map(drop)
    }

    /// munlock(2).
    pub fn unlock(self) -> io::Result<()> {
        // SAFETY: as for `protect`.
        check(unsafe { libc::munlock(self.pointer(), self.len()) }).map(drop)
    }

    /// munmap(2).
    pub fn unmap(self) -> io::Result<()> {
        // SAFETY: as for `protect`.
        check(unsafe { libc::munmap(self.pointer(), self.len()) }).map(drop)
    }

    /// mremap(2) onto the address of `to`, which is replaced.
    pub fn move_to(self, to: Self, extra_flags: c_int) -> io::Result<Self> {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | extra_flags;
        // SAFETY: both ranges belong to a scenario; no Rust object lives in them.
        let moved = unsafe { libc::mremap(self.pointer(), self.len(), to.len(), flags, to.pointer()) };
        if moved == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(to)
        }
    }

    /// mremap(2) that makes the mapping longer without moving it.
    pub fn grow_in_place(self, pages: usize) -> io::Result<Self> {
        // SAFETY: as for `move_to`; without MREMAP_MAYMOVE the kernel only takes free addresses.
        let grown = unsafe { libc::mremap(self.pointer(), self.len(), pages * page_size(), 0) };
        if grown == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self {
                start: self.start,
                pages,
            })
        }
    }

    /// `move_pages(2)`: asks for every page of the area to be moved to NUMA node `node`. Gives how many are there.
    pub fn to_node(self, node: c_int) -> io::Result<usize> {
        const MPOL_MF_MOVE: c_int = 2;
        let addresses: Vec<usize> = (0..self.pages).map(|page| self.part(page, 1).start).collect();
        let nodes = vec![node; self.pages];
        let mut status = vec![-1; self.pages];
        // SAFETY: the three arrays have `pages` elements each.
        check_long(unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                self.pages,
                addresses.as_ptr(),
                nodes.as_ptr(),
                status.as_mut_ptr(),
                MPOL_MF_MOVE,
            )
        })?;
        Ok(status.iter().filter(|status| **status == node).count())
    }

    /// The kernel writes `data` into page `page` by read(2) from `file`, which must deliver exactly a page.
    pub fn read_from(self, page: usize, file: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        // SAFETY: the page is inside a mapping that holds no Rust object.
        let got = unsafe { libc::pread(file.as_raw_fd(), self.byte(page, 0).cast(), page_size(), offset) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// vmsplice(2): the content of a pipe goes into page `page`.
    pub fn vmsplice_from(self, page: usize, pipe: BorrowedFd<'_>) -> io::Result<usize> {
        let into = libc::iovec {
            iov_base: self.byte(page, 0).cast(),
            iov_len: page_size(),
        };
        // SAFETY: one iovec, which covers one page of a mapping that holds no Rust object.
        let got = unsafe { libc::vmsplice(pipe.as_raw_fd(), &raw const into, 1, 0) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }
}

fn raw_map(
    start: usize,
    length: usize,
    prot: c_int,
    flags: c_int,
    fd: RawFd,
    offset: usize,
) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: MAP_FIXED is only passed for addresses that `Area::reserve` got for the scenario.
    let at = unsafe { libc::mmap(start as *mut c_void, length, prot, flags, fd, offset) };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(at as usize)
    }
}

/// An anonymous file in memory; `flags` as for `memfd_create(2)`.
pub fn memfd(pages: usize, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: the name is a valid C string.
    let fd = check(unsafe { libc::memfd_create(c"battery".as_ptr(), flags | libc::MFD_CLOEXEC) })?;
    // SAFETY: the descriptor is new and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    truncate(&fd, pages)?;
    Ok(fd)
}

/// Gives a file the length of `pages` pages.
pub fn truncate(file: &impl AsRawFd, pages: usize) -> io::Result<()> {
    let length = libc::off_t::try_from(pages * page_size()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::ftruncate(file.as_raw_fd(), length) }).map(drop)
}

/// fallocate(2) with `FALLOC_FL_PUNCH_HOLE`.
pub fn punch_hole(file: &impl AsRawFd, pages: usize) -> io::Result<()> {
    let length = libc::off_t::try_from(pages * page_size()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, length) }).map(drop)
}

/// The kind of file system that `path` lies on (`f_type` of statfs(2)).
pub fn file_system(path: &Path) -> io::Result<i64> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a valid C string, and the kernel fills the structure.
    check(unsafe { libc::statfs(path.as_ptr(), &raw mut about) })?;
    Ok(about.f_type)
}

/// write(2) of the first page of `from`.
pub fn write_page(file: &impl AsRawFd, from: Area) -> io::Result<()> {
    // SAFETY: one page of a mapping that holds no Rust object.
    let wrote = unsafe { libc::write(file.as_raw_fd(), from.byte(0, 0).cast(), page_size()) };
    if usize::try_from(wrote) == Ok(page_size()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
