//! Another process's address space, read as a tracker reads it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};

use crate::workload::proc::PAGE;

/// Bit 55 of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const SOFT_DIRTY: u64 = 1 << 55;

/// A VMA as /proc/PID/maps lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// Rights, such as `rw-p`.
    pub rights: String,
    /// File or special name; empty for anonymous memory.
    pub name: String,
}

/// The VMAs of a process.
///
/// # Errors
/// If it is gone.
pub fn vmas(pid: u32) -> Result<Vec<Vma>> {
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.lines()
        .map(|line| parse(line).with_context(|| format!("{path}: {line}")))
        .collect()
}

fn parse(line: &str) -> Option<Vma> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?.to_owned();
    Some(Vma {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        rights,
        // Offset, device and inode number come before the name.
        name: words.skip(3).collect::<Vec<_>>().join(" "),
    })
}

/// The pagemap of a process.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn open(pid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/pagemap")).map(Self)
    }

    /// Addresses of the pages of `range` that are soft-dirty.
    ///
    /// # Errors
    /// What the kernel says. It gives no entries beyond the end of user memory.
    pub fn soft_dirty(&self, range: Range<u64>) -> io::Result<Vec<u64>> {
        let page = PAGE as u64;
        let count = usize::try_from((range.end - range.start) / page).map_err(io::Error::other)?;
        let mut entries = vec![0; count * 8];
        self.0.read_exact_at(&mut entries, range.start / page * 8)?;
        let entries = entries
            .chunks_exact(8)
            .filter_map(|entry| entry.try_into().ok().map(u64::from_ne_bytes));
        Ok((range.start..)
            .step_by(PAGE)
            .zip(entries)
            .filter(|(_, entry)| entry & SOFT_DIRTY != 0)
            .map(|(address, _)| address)
            .collect())
    }
}

/// Clears the soft-dirty bits of a process.
///
/// # Errors
/// What the kernel says.
pub fn clear(pid: u32) -> io::Result<()> {
    // Opened and written in one breath, as trackers do: the file belongs to a process, not to its memory.
    OpenOptions::new()
        .write(true)
        .open(format!("/proc/{pid}/clear_refs"))?
        .write_all(b"4")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f00-8f00 rw-s 00001000 00:01 1029    /dev/shm/a b (deleted)";
        let vma = parse(line).unwrap();
        assert_eq!((vma.start, vma.end), (0x7f00, 0x8f00));
        assert_eq!(
            (vma.rights.as_str(), vma.name.as_str()),
            ("rw-s", "/dev/shm/a b (deleted)")
        );
        assert_eq!(parse("1000-2000 r--p 0 00:00 0").unwrap().name, "");
        assert!(parse("nonsense").is_none());
        assert!(vmas(std::process::id()).unwrap().len() > 3);
    }
}
