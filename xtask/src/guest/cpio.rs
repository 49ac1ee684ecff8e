//! Writes the archive that the kernel unpacks as its first file system: cpio, "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel).

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// A cpio archive in the making. Parent folders of whatever is added are made by themselves.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    written: u64,
    next_inode: u32,
    folders: BTreeSet<String>,
}

struct Header<'a> {
    path: &'a str,
    mode: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    /// An empty archive that goes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            next_inode: 1,
            folders: BTreeSet::new(),
        }
    }

    /// Adds a folder (0755) and its parents.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        if path.is_empty() || !self.folders.insert(path.to_owned()) {
            return Ok(());
        }
        self.header(&Header {
            path,
            mode: DIRECTORY | 0o755,
            size: 0,
            device: (0, 0),
        })
    }

    /// Adds a file with these permissions.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        // The format's size field has eight hexadecimal digits.
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} is 4 GiB or more")))?;
        self.header(&Header {
            path,
            mode: REGULAR | permissions,
            size,
            device: (0, 0),
        })?;
        self.put(content)?;
        self.align()
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        let size = u32::try_from(target.len()).map_err(io::Error::other)?;
        self.header(&Header {
            path,
            mode: SYMLINK | 0o777,
            size,
            device: (0, 0),
        })?;
        self.put(target.as_bytes())?;
        self.align()
    }

    /// Adds a character device (0600).
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        self.header(&Header {
            path,
            mode: CHARACTER_DEVICE | 0o600,
            size: 0,
            device: (major, minor),
        })
    }

    /// Writes the end mark and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.header(&Header {
            path: "TRAILER!!!",
            mode: 0,
            size: 0,
            device: (0, 0),
        })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn header(&mut self, header: &Header<'_>) -> io::Result<()> {
        let Header {
            path,
            mode,
            size,
            device: (major, minor),
        } = *header;
        let inode = self.next_inode;
        self.next_inode += 1;
        let name_size = path.len() + 1;
        // magic, inode, mode, uid, gid, links, mtime, size, device of the file, device it stands for, name, checksum.
        let text = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{major:08x}{minor:08x}\
             {name_size:08x}{0:08x}{path}\0",
            0, 1
        );
        self.put(text.as_bytes())?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Headers and contents start at multiples of four.
    fn align(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 4][..usize::try_from(missing).unwrap_or(0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode, content, device.
    type Entry = (String, u32, Vec<u8>, (u32, u32));

    /// Reads an archive back by the format's own rules.
    fn read(archive: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let header = std::str::from_utf8(&archive[at..at + 110]).unwrap();
            assert_eq!(&header[..6], "070701");
            let field =
                |index: usize| u32::from_str_radix(&header[6 + index * 8..14 + index * 8], 16).unwrap();
            let name_size = field(11) as usize;
            let name = &archive[at + 110..at + 110 + name_size];
            assert_eq!(name.last(), Some(&0));
            let path = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            let content_at = (at + 110 + name_size).next_multiple_of(4);
            let size = field(6) as usize;
            at = (content_at + size).next_multiple_of(4);
            if path == "TRAILER!!!" {
                assert_eq!(at, archive.len());
                return entries;
            }
            let content = archive[content_at..content_at + size].to_vec();
            entries.push((path, field(1), content, (field(9), field(10))));
        }
    }

    #[test]
    fn everything_comes_back_as_it_was_put_in() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/usr/bin/tool", 0o755, b"12345").unwrap();
        archive.symlink("/bin/sh", "busybox").unwrap();
        archive.character_device("/dev/console", 5, 1).unwrap();
        archive.folder("/usr/bin").unwrap();
        archive.file("init", 0o700, b"").unwrap();
        let entries = read(&archive.finish().unwrap());
        let expected: Vec<Entry> = vec![
            ("usr".into(), 0o040_755, vec![], (0, 0)),
            ("usr/bin".into(), 0o040_755, vec![], (0, 0)),
            ("usr/bin/tool".into(), 0o100_755, b"12345".to_vec(), (0, 0)),
            ("bin".into(), 0o040_755, vec![], (0, 0)),
            ("bin/sh".into(), 0o120_777, b"busybox".to_vec(), (0, 0)),
            ("dev".into(), 0o040_755, vec![], (0, 0)),
            ("dev/console".into(), 0o020_600, vec![], (5, 1)),
            ("init".into(), 0o100_700, vec![], (0, 0)),
        ];
        assert_eq!(entries, expected);
    }

    #[test]
    fn every_length_is_aligned() {
        for length in 0..9 {
            let mut archive = Archive::new(Vec::new());
            let content = vec![7; length];
            archive.file(&"n".repeat(length + 1), 0o644, &content).unwrap();
            archive.file("after", 0o644, b"x").unwrap();
            let entries = read(&archive.finish().unwrap());
            assert_eq!(entries[0].2, content);
            assert_eq!(entries[1].0, "after");
        }
    }
}
