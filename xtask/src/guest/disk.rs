//! An ext4 disk for the guest: what a memory file system cannot stand in for.

use crate::provision::{HostProgram, ensure_programs, run_quietly};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Not on every user's PATH.
const MKFS: &str = "/usr/sbin/mkfs.ext4";

/// Room for a journal and for the few files of a test.
const BYTES: u64 = 64 << 20;

/// Makes an image with an empty ext4 file system at `path`. It is sparse: it takes the room that is written.
pub fn create(path: &Path) -> Result<PathBuf> {
    ensure_programs(&[HostProgram {
        name: MKFS,
        package: "e2fsprogs",
        why: "formats the guest's disk",
    }])?;
    fs::File::create(path)
        .and_then(|file| file.set_len(BYTES))
        .with_context(|| format!("cannot create {}", path.display()))?;
    // Without lazy initialisation no thread of the kernel writes to it later on.
    run_quietly(
        Command::new(MKFS)
            .args(["-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(path),
    )?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_ext4_and_sparse() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let image = create(&folder.path().join("disk")).unwrap();
        let bytes = fs::read(&image).unwrap();
        // s_magic of the superblock, which begins at byte 1024 (fs/ext4/ext4.h).
        assert_eq!(bytes[1024 + 0x38..1024 + 0x3a], [0x53, 0xef]);
        let metadata = fs::metadata(&image).unwrap();
        assert_eq!(metadata.len(), BYTES);
        assert!(metadata.blocks() * 512 < BYTES / 2);
    }
}
