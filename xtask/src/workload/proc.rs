//! What the kernel itself says about our memory: smaps, pagemap, BTF.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};

/// Size of a page.
pub const PAGE: usize = 4096;

/// Bit 55 of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const PAGEMAP_SOFT_DIRTY: u64 = 1 << 55;

/// The flags that the ledger names.
const NAMED: [&str; 8] = ["rd", "wr", "ex", "sh", "mw", "pf", "ht", "sd"];

/// Clears our own soft-dirty bits.
///
/// # Errors
/// What the kernel says.
pub fn clear_own() -> Result<()> {
    fs::write("/proc/self/clear_refs", "4").context("/proc/self/clear_refs")
}

/// How many pages from `start` on pagemap shows soft-dirty.
///
/// # Errors
/// If pagemap cannot be read.
pub fn soft_dirty_pages(start: u64, pages: usize) -> Result<u64> {
    let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    let mut entries = vec![0; pages * 8];
    pagemap
        .read_exact_at(&mut entries, start / PAGE as u64 * 8)
        .context("/proc/self/pagemap")?;
    let dirty = entries
        .chunks_exact(8)
        .filter_map(|entry| entry.try_into().ok().map(u64::from_ne_bytes))
        .filter(|entry| entry & PAGEMAP_SOFT_DIRTY != 0);
    Ok(dirty.count() as u64)
}

/// The lines of smaps about the VMA that begins at `start`.
fn smaps_of(start: u64) -> Result<(u64, String)> {
    let smaps = fs::read_to_string("/proc/self/smaps").context("/proc/self/smaps")?;
    find(&smaps, start).with_context(|| format!("smaps shows no VMA at {start:#x}"))
}

fn find(smaps: &str, start: u64) -> Option<(u64, String)> {
    let head = format!("{start:x}-");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&head));
    let (end, _) = lines.next()?.strip_prefix(&head)?.split_once(' ')?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let mut text = String::new();
    for line in lines {
        text.push_str(line);
        text.push('\n');
        if line.starts_with("VmFlags:") {
            break;
        }
    }
    Some((end, text))
}

/// End and flags (those that the ledger names, sorted) of the VMA that begins at `start`.
///
/// # Errors
/// If smaps shows no such VMA.
pub fn vma(start: u64) -> Result<(u64, Vec<String>)> {
    let (end, text) = smaps_of(start)?;
    let flags = text.lines().find_map(|line| line.strip_prefix("VmFlags:"));
    let mut flags: Vec<String> = flags
        .context("smaps shows no VmFlags")?
        .split_whitespace()
        .filter(|name| NAMED.contains(name))
        .map(str::to_owned)
        .collect();
    flags.sort_unstable();
    Ok((end, flags))
}

/// KiB of huge pages in the VMA that begins at `start`.
///
/// # Errors
/// If smaps shows no such VMA.
pub fn huge_kib(start: u64) -> Result<u64> {
    let (_, text) = smaps_of(start)?;
    let field = text.lines().find_map(|line| line.strip_prefix("AnonHugePages:"));
    let field = field.context("smaps shows no AnonHugePages")?;
    let number = field.trim().trim_end_matches("kB").trim();
    number.parse().with_context(|| format!("AnonHugePages: {field}"))
}

/// Whether the kernel's type information knows a name: tells what a kernel can do without asking for its version.
///
/// # Errors
/// If the kernel has no BTF.
pub fn kernel_knows(name: &str) -> Result<bool> {
    let btf = fs::read("/sys/kernel/btf/vmlinux").context("/sys/kernel/btf/vmlinux")?;
    let wanted = [name.as_bytes(), b"\0"].concat();
    Ok(btf.windows(wanted.len()).any(|window| window == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_vma_is_found() {
        let smaps = "1000-2000 rw-p 0 0:0 0\nAnonHugePages: 0 kB\nVmFlags: rd wr\n\
                     2000-5000 r--s 0 0:0 0\nAnonHugePages: 2048 kB\nVmFlags: rd sh\n6000-7000 r\n";
        let (end, text) = find(smaps, 0x2000).unwrap();
        assert_eq!(end, 0x5000);
        assert!(text.contains("2048") && text.ends_with("VmFlags: rd sh\n"));
        assert!(find(smaps, 0x3000).is_none());
    }

    #[test]
    fn a_kernel_without_btf_is_an_error_not_a_no() {
        if fs::metadata("/sys/kernel/btf/vmlinux").is_err() {
            assert!(kernel_knows("x").is_err());
        }
    }
}
