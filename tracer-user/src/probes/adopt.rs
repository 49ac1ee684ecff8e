//! Finding processes that were armed before sdtrace started.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

use tracer_common::flags::{VM_HUGETLB, VM_PFNMAP, VM_SHARED, VM_WRITE, from_smaps_names, is_armed};

/// Whether the text of `/proc/PID/smaps` shows a process whose soft-dirty bits were cleared: an ordinary private
/// writable VMA without `sd` among its flags.
///
/// Only such VMAs prove it. Special mappings (vvar, vdso, vsyscall) never carry the bit, a hugetlb or PFN mapping
/// is not tracked, and the stack loses the bit at every exec (`setup_arg_pages` gives `mprotect_fixup` flags
/// without it; seen on 5.10 to 7.3).
///
/// # Errors
/// If the text cannot be read; the process may have exited.
pub fn is_armed_process(smaps: impl BufRead) -> io::Result<bool> {
    let mut special = false;
    for line in smaps.lines() {
        let line = line?;
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let flags = from_smaps_names(flags.split_whitespace());
            let ordinary = flags & VM_WRITE != 0 && flags & (VM_SHARED | VM_PFNMAP | VM_HUGETLB) == 0;
            if ordinary && !special && is_armed(flags) {
                return Ok(true);
            }
        } else if line.as_bytes().first().is_some_and(u8::is_ascii_hexdigit)
            && line
                .split_whitespace()
                .next()
                .is_some_and(|range| range.contains('-'))
        {
            special = ["[stack]", "[vvar", "[vdso]", "[vsyscall]"]
                .iter()
                .any(|name| line.contains(name));
        }
    }
    Ok(false)
}

/// The pagemap files of all processes that are armed. Processes that exit meanwhile or may not be read are left
/// out; how many of the latter there were is the second value.
///
/// # Errors
/// If `/proc` itself cannot be read.
pub fn armed_processes() -> io::Result<(Vec<PathBuf>, usize)> {
    let mut found = Vec::new();
    let mut unreadable = 0;
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let armed = File::open(entry.path().join("smaps"))
            .and_then(|file| is_armed_process(BufReader::with_capacity(1 << 16, file)));
        match armed {
            Ok(true) => found.push(entry.path().join("pagemap")),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => unreadable += 1,
            Ok(false) | Err(_) => {}
        }
    }
    Ok((found, unreadable))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(text: &str) -> bool {
        is_armed_process(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_private_writable_vma_without_the_bit_proves_it() {
        assert!(armed(
            "1000-2000 rw-p 0 0:0 0 [heap]\nVmFlags: rd wr mr mw me ac\n"
        ));
        assert!(!armed(
            "1000-2000 rw-p 0 0:0 0 [heap]\nVmFlags: rd wr mr mw me ac sd\n"
        ));
    }

    #[test]
    fn special_and_untracked_mappings_prove_nothing() {
        assert!(!armed("1000-2000 r--p 0 0:0 0 [vvar]\nVmFlags: rd wr mr pf\n"));
        assert!(!armed(
            "1000-2000 rw-p 0 0:0 0 [stack]\nVmFlags: rd wr mr mw me gd ac\n"
        ));
        assert!(!armed("1000-2000 rw-p 0 0:0 0 [vdso]\nVmFlags: rd wr mr mw\n"));
        assert!(!armed("1000-2000 rw-s 0 0:0 0 /dev/x\nVmFlags: rd wr sh\n"));
        assert!(!armed("1000-2000 rw-p 0 0:0 0 /h\nVmFlags: rd wr ht\n"));
        assert!(!armed("1000-2000 r--p 0 0:0 0 /lib\nVmFlags: rd mr mw\n"));
    }

    #[test]
    fn a_kernel_thread_without_memory_is_not_armed() {
        assert!(!armed(""));
    }
}
