//! A piece of memory whose writes are counted.

use std::ffi::c_void;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::ptr::{NonNull, null_mut};

use anyhow::{Context as _, Result, ensure};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect};

use super::proc::{PAGE, clear_own, soft_dirty_pages, vma};
use super::report::{AreaReport, State};

/// Pages in a huge page.
pub const HUGE_PAGES: usize = 512;
const HUGE: usize = HUGE_PAGES * PAGE;

/// A mapping of ours, which lives as long as the process.
#[derive(Clone, Debug)]
pub struct Area {
    name: &'static str,
    kind: &'static str,
    shared: bool,
    inode: Option<u64>,
    address: NonNull<u8>,
    pages: usize,
    written: u64,
    states: Vec<State>,
}

// SAFETY: the memory belongs to the process for good; concurrent access is by volatile bytes of disjoint pages.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// `MAP_PRIVATE | MAP_ANONYMOUS`
    ///
    /// # Errors
    /// What mmap says.
    pub fn private(name: &'static str, pages: usize) -> Result<Self> {
        Self::map(name, "private_anon", MapFlags::PRIVATE, None, pages, PAGE)
    }

    /// `MAP_SHARED | MAP_ANONYMOUS`
    ///
    /// # Errors
    /// What mmap says.
    pub fn shared(name: &'static str, pages: usize) -> Result<Self> {
        Self::map(name, "shared_anon", MapFlags::SHARED, None, pages, PAGE)
    }

    /// One huge page, private.
    ///
    /// # Errors
    /// What mmap and madvise say.
    pub fn huge(name: &'static str) -> Result<Self> {
        Self::map(name, "private_anon", MapFlags::PRIVATE, None, HUGE_PAGES, HUGE)
    }

    /// A mapping of `file`, `MAP_SHARED` or `MAP_PRIVATE`; a memfd counts as shared anonymous memory.
    ///
    /// # Errors
    /// What mmap says.
    pub fn file(name: &'static str, kind: &'static str, file: &File, pages: usize) -> Result<Self> {
        let flags = if kind == "private_file" {
            MapFlags::PRIVATE
        } else {
            MapFlags::SHARED
        };
        file.set_len((pages * PAGE) as u64)?;
        let mut area = Self::map(name, kind, flags, Some(file), pages, PAGE)?;
        area.inode = Some(file.metadata()?.ino());
        Ok(area)
    }

    fn map(
        name: &'static str,
        kind: &'static str,
        flags: MapFlags,
        file: Option<&File>,
        pages: usize,
        align: usize,
    ) -> Result<Self> {
        let length = pages * PAGE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // A page without access on each side keeps the VMA from merging with a neighbour.
        // SAFETY: a new mapping at an address of the kernel's choice, never unmapped.
        let reserved = unsafe {
            mmap_anonymous(
                null_mut(),
                length + align + 2 * PAGE,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let offset = (reserved as usize + PAGE).next_multiple_of(align) - reserved as usize;
        let place: *mut c_void = reserved.cast::<u8>().wrapping_add(offset).cast();
        // SAFETY: within the reservation, which nothing uses yet.
        let address = unsafe {
            match file {
                Some(file) => mmap(
                    place,
                    length,
                    protection,
                    flags | MapFlags::FIXED,
                    file.as_fd(),
                    0,
                )?,
                None => mmap_anonymous(place, length, protection, flags | MapFlags::FIXED)?,
            }
        };
        let advice = if align == HUGE {
            Advice::LinuxHugepage
        } else {
            Advice::LinuxNoHugepage
        };
        // SAFETY: our own mapping; the advice changes no content.
        unsafe { madvise(address, length, advice)? };
        Ok(Self {
            name,
            kind,
            shared: flags.contains(MapFlags::SHARED),
            inode: None,
            address: NonNull::new(address.cast()).context("mmap gave address 0")?,
            pages,
            written: 0,
            states: Vec::new(),
        })
    }

    /// First byte.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.page(0)
    }

    /// First byte of a page, or of what follows the last one.
    #[must_use]
    pub fn page(&self, page: usize) -> u64 {
        (self.address.as_ptr() as usize + page * PAGE) as u64
    }

    /// Number of pages.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.pages
    }

    /// A pointer to the first byte of a page.
    #[must_use]
    pub fn pointer(&self, page: usize) -> *mut u8 {
        self.address.as_ptr().wrapping_add(page * PAGE)
    }

    /// Reads a byte of each of `pages`.
    pub fn read(&self, pages: Range<usize>) {
        for page in pages {
            // SAFETY: within the mapping, which is readable.
            let _ = unsafe { self.pointer(page).read_volatile() };
        }
    }

    /// Writes a byte into each of `pages` and returns how many writes that were. Does not count them.
    #[must_use]
    pub fn poke(&self, pages: Range<usize>) -> u64 {
        let count = pages.len() as u64;
        for page in pages {
            // SAFETY: within the mapping, which is writable.
            unsafe { self.pointer(page).write_volatile(1) };
        }
        count
    }

    /// Writes a byte into each of `pages`, none of which was written since the clear, and counts them.
    pub fn write(&mut self, pages: Range<usize>) -> u64 {
        let count = self.poke(pages);
        self.written += count;
        count
    }

    /// Counts pages that were written elsewhere: by threads, or by another task in the same memory.
    pub fn count_written(&mut self, pages: u64) {
        self.written += pages;
    }

    /// mprotect of `pages`.
    ///
    /// # Errors
    /// What mprotect says.
    pub fn protect(&self, pages: Range<usize>, write: bool) -> Result<()> {
        let flags = if write {
            MprotectFlags::READ | MprotectFlags::WRITE
        } else {
            MprotectFlags::READ
        };
        // SAFETY: our own mapping; nothing of it is borrowed.
        unsafe { mprotect(self.pointer(pages.start).cast(), pages.len() * PAGE, flags)? };
        Ok(())
    }

    /// The state of an armed VMA over `pages`, writable or not, with nothing counted yet.
    #[must_use]
    pub fn state(&self, pages: &Range<usize>, writable: bool) -> State {
        let flags = [("mw", true), ("rd", true), ("sh", self.shared), ("wr", writable)];
        State {
            start: self.page(pages.start),
            end: self.page(pages.end),
            flags: flags
                .into_iter()
                .filter(|(_, on)| *on)
                .map(|(name, _)| name.to_owned())
                .collect(),
            ..State::default()
        }
    }

    /// The state of the whole area, writable, as a clear met it, with `faults`.
    #[must_use]
    pub fn armed(&self, faults: u64) -> State {
        State {
            armed_at_clear: true,
            faults,
            ..self.state(&(0..self.pages), true)
        }
    }

    /// Says that the ledger should list this state.
    pub fn expect(&mut self, state: State) {
        self.states.push(state);
    }

    /// Pages that pagemap shows soft-dirty now.
    ///
    /// # Errors
    /// If pagemap cannot be read.
    pub fn soft_dirty(&self) -> Result<u64> {
        soft_dirty_pages(self.start(), self.pages)
    }

    /// Forgets what was counted: a clear came.
    pub fn reset(&mut self) {
        self.written = 0;
        self.states.clear();
    }

    /// Sees that the kernel shows the VMA at the beginning of the area as the last state says.
    ///
    /// # Errors
    /// If smaps shows something else: then the workload is wrong about itself.
    fn check(&self) -> Result<()> {
        let Some(last) = self.states.iter().rfind(|state| state.start == self.start()) else {
            return Ok(());
        };
        let (end, flags) = vma(last.start)?;
        let flags: Vec<_> = flags.into_iter().filter(|flag| flag != "sd").collect();
        ensure!(
            flags == last.flags,
            "{}: smaps shows {flags:?} to {end:#x}, the workload thinks {last:?}",
            self.name
        );
        Ok(())
    }

    /// What was done to it.
    ///
    /// # Errors
    /// If the kernel's own view cannot be had or contradicts.
    pub fn report(&self) -> Result<AreaReport> {
        self.check()?;
        Ok(AreaReport {
            name: self.name.to_owned(),
            start: self.start(),
            end: self.page(self.pages),
            kind: self.kind.to_owned(),
            inode: self.inode,
            written: self.written,
            soft_dirty: self.soft_dirty()?,
            states: self.states.clone(),
        })
    }
}

/// Clears our own bits, and forgets what was counted in `areas`.
///
/// # Errors
/// What the kernel says.
pub fn clear(areas: &mut [&mut Area]) -> Result<()> {
    clear_own()?;
    for area in areas {
        area.reset();
    }
    Ok(())
}
