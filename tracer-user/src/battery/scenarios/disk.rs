//! Files on a disk's file system: only these have writeback, reclaim without swap, and reads past the page cache.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::super::oracle::Change;
use super::prelude::*;
use super::swap::page_out;

pub(super) const ALL: &[Scenario] = &[
    Scenario::control(
        "control-shared-disk",
        shared_disk,
        "Writes a shared mapping of a file on disk.",
    ),
    Scenario::control(
        "disk-writeback",
        writeback,
        "Writes a shared mapping of a file on disk, then has fsync(2) write it back, which write-protects the pages.",
    ),
    Scenario::new(
        "disk-reclaim",
        Class::B,
        "shared-zap",
        reclaim,
        "Writes a shared mapping of a file on disk after the clear, writes it back, then has the pages reclaimed.",
    ),
    Scenario::control(
        "direct-read",
        direct_read,
        "Has an O_DIRECT read from disk fill private pages.",
    ),
    Scenario::new(
        "direct-read-in-flight",
        Class::C,
        "pinned-buffer",
        in_flight,
        "Clears while an O_DIRECT read from disk into private pages is on its way, so that some of it lands after the clear.",
    )
    .race(2),
];

/// File systems that lie on a disk, whose shared mappings have `page_mkwrite` and whose `O_DIRECT` goes past the page
/// cache. (That of tmpfs, 6.6 and later, does not.)
const DISK: [(i64, &str); 5] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0xF2F5_2010, "f2fs"),
    (0xCA45_1A4E, "bcachefs"),
];

fn is_on_disk(directory: &Path) -> std::io::Result<bool> {
    let kind = sys::file_system(directory)?;
    Ok(DISK.iter().any(|(magic, _)| *magic == kind))
}

/// The directory to use: the one asked for, else the first usual one that lies on a disk.
pub(super) fn directory(bench: &Bench) -> Result<PathBuf, Stop> {
    let names = || DISK.map(|(_, name)| name).join(", ");
    if let Some(asked) = bench.directory() {
        return if is_on_disk(asked).needs(&asked.display().to_string())? {
            Ok(asked.to_owned())
        } else {
            Err(Stop::NotSupported(format!(
                "{} lies on none of {}",
                asked.display(),
                names()
            )))
        };
    }
    let mut usual = vec![std::env::temp_dir(), "/tmp".into(), "/var/tmp".into()];
    usual.dedup();
    usual
        .iter()
        // One that cannot be looked at is none that can be used.
        .find(|directory| is_on_disk(directory).unwrap_or(false))
        .cloned()
        .ok_or_else(|| {
            let looked: Vec<_> = usual.iter().map(|one| one.display().to_string()).collect();
            Stop::NotSupported(format!(
                "{} lie on none of {}; name a directory that does by --directory",
                looked.join(", "),
                names()
            ))
        })
}

/// A file on disk without a name, so that nothing is left of it however this process ends.
fn file(bench: &Bench, flags: i32) -> Result<File, Stop> {
    let directory = directory(bench)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | flags)
        .open(&directory)
        .needs(&format!("a file in {}", directory.display()))
}

/// Such a file, mapped shared.
pub(super) fn mapped(bench: &Bench) -> Result<(File, Area), Stop> {
    let file = file(bench, 0)?;
    sys::truncate(&file, PAGES)?;
    let area = Area::reserve(PAGES, 0)?
        .place(READ_WRITE, MAP_SHARED, Some((file.as_fd(), 0)))
        .works("mmap")?;
    Ok((file, area))
}

/// Pages written in a new epoch, and the file that they belong to.
fn written(bench: &Bench) -> Result<(File, Before, Epoch), Stop> {
    let (file, area) = mapped(bench)?;
    let before = populated(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    Ok((file, before, epoch))
}

fn shared_disk(bench: &Bench) -> Found {
    let (_file, before, epoch) = written(bench)?;
    epoch.judge(&before, PAGES)
}

fn writeback(bench: &Bench) -> Found {
    let (file, before, epoch) = written(bench)?;
    file.sync_data().works("fdatasync")?;
    epoch.judge(&before, PAGES)
}

fn reclaim(bench: &Bench) -> Found {
    let (file, before, epoch) = written(bench)?;
    // Only what is clean is reclaimed at once.
    file.sync_data().works("fdatasync")?;
    page_out(before.area())?;
    epoch.judge(&before, PAGES)
}

fn direct_read(bench: &Bench) -> Found {
    let source = file(bench, libc::O_DIRECT)?;
    // O_DIRECT wants an aligned buffer: an area's pages are.
    let new = private(PAGES)?;
    new.fill(NEW);
    for _ in 0..PAGES {
        sys::write_page(&source, new).needs("writing a file with O_DIRECT")?;
    }
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    for page in 0..PAGES {
        let offset = i64::try_from(page * page_size()).expect("a small file");
        before
            .area()
            .read_from(page, source.as_fd(), offset)
            .works("pread with O_DIRECT")?;
    }
    epoch.judge(&before, PAGES)
}

/// How much is read at once: more than a disk delivers before the clear.
const IN_FLIGHT_PAGES: usize = 4096;

fn in_flight(bench: &Bench) -> Found {
    let mut written = file(bench, 0)?;
    written
        .write_all(&vec![NEW; IN_FLIGHT_PAGES * page_size()])
        .and_then(|()| written.sync_all())
        .needs("a file on disk")?;
    let source = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", written.as_raw_fd()))
        .needs("opening it with O_DIRECT")?;
    let area = private(IN_FLIGHT_PAGES)?;
    area.advise(libc::MADV_NOHUGEPAGE).needs("MADV_NOHUGEPAGE")?;
    // Submitted by AIO, which holds the pages before it returns; io_uring may leave that to a worker for later.
    let context = sys::aio_queue().needs("io_setup")?;
    bench.rounds(|_| {
        area.fill(OLD);
        sys::aio_start(context, source.as_fd(), area).works("submitting the read")?;
        let epoch = Epoch::open()?;
        // What has landed by now may have landed before the clear; only what differs later came after it.
        let before = Before::read(area);
        let got = sys::aio_finish(context).works("the read with O_DIRECT")?;
        if got != area.len() {
            return Err(Stop::Failed(format!(
                "the read gave {got} of {} bytes",
                area.len()
            )));
        }
        let tally = judge(&Tracked::this()?, &before, Change::Written)?;
        epoch.uncut()?;
        if tally.changed == 0 {
            return Err(Stop::Inconclusive("all was read before the clear".into()));
        }
        Ok(tally)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_no_disk() {
        assert!(!is_on_disk(Path::new("/proc")).expect("is there"));
        assert!(is_on_disk(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn a_directory_that_was_asked_for_is_not_replaced_by_another() {
        let bench = Bench::new(1, false, Some("/proc".into()));
        assert!(
            matches!(directory(&bench), Err(Stop::NotSupported(why)) if why.starts_with("/proc lies on none"))
        );
    }
}
