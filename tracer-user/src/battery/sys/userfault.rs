//! userfaultfd(2).

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{Area, check, check_long};

/// What a range is registered for: missing pages.
pub const UFFD_MISSING: u64 = 1;
/// What a range is registered for: write protection.
pub const UFFD_WRITE_PROTECT: u64 = 2;

/// Feature bits of `UFFDIO_API` (include/uapi/linux/userfaultfd.h).
pub const UFFD_FEATURE_WP: u64 = 1;
/// Write-protect faults are resolved by the kernel itself (6.7).
pub const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
/// `UFFDIO_MOVE` (6.8).
pub const UFFD_FEATURE_MOVE: u64 = 1 << 16;

/// A userfaultfd of this process.
#[derive(Debug)]
pub struct UserFault {
    fd: OwnedFd,
}

impl UserFault {
    /// Opens one with these features.
    pub fn open(features: u64) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = check_long(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: the descriptor is new and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let this = Self { fd };
        this.request(0xC018_AA3F, [0xAA, features, 0])?;
        Ok(this)
    }

    /// ioctl with a structure of 64-bit words, which every one of userfaultfd's is.
    fn request<const WORDS: usize>(&self, request: c_ulong, mut words: [u64; WORDS]) -> io::Result<()> {
        // SAFETY: the request's number says how many bytes the kernel reads and writes, which is what the array has.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), request, words.as_mut_ptr()) }).map(drop)
    }

    /// `UFFDIO_REGISTER`.
    pub fn register(&self, area: Area, mode: u64) -> io::Result<()> {
        self.request(0xC020_AA00, [area.start() as u64, area.len() as u64, mode, 0])
    }

    /// `UFFDIO_COPY`.
    pub fn copy(&self, to: Area, from: Area) -> io::Result<()> {
        self.request(
            0xC028_AA03,
            [to.start() as u64, from.start() as u64, to.len() as u64, 0, 0],
        )
    }

    /// `UFFDIO_ZEROPAGE`.
    pub fn zero(&self, area: Area) -> io::Result<()> {
        self.request(0xC020_AA04, [area.start() as u64, area.len() as u64, 0, 0])
    }

    /// `UFFDIO_MOVE`.
    pub fn move_pages(&self, to: Area, from: Area) -> io::Result<()> {
        self.request(
            0xC028_AA05,
            [to.start() as u64, from.start() as u64, to.len() as u64, 0, 0],
        )
    }

    /// `UFFDIO_WRITEPROTECT`: sets or takes away the protection.
    pub fn protect(&self, area: Area, protect: bool) -> io::Result<()> {
        self.request(
            0xC018_AA06,
            [area.start() as u64, area.len() as u64, u64::from(protect)],
        )
    }

    /// Waits for one fault, and gives the page's address.
    pub fn next_fault(&self) -> io::Result<u64> {
        // struct uffd_msg: 32 bytes; the address is the third word of the kind "page fault".
        let mut message = [0_u64; 4];
        // SAFETY: the buffer has 32 bytes.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), message.as_mut_ptr().cast(), 32) };
        if got == 32 {
            Ok(message[2])
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
