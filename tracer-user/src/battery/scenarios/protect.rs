//! mprotect(2) that makes pages writable again.

use std::os::fd::AsFd as _;

use super::disk::mapped;
use super::prelude::*;

const CAUSE: &str = "mprotect-upgrade";

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "mprotect-private",
        Class::A,
        CAUSE,
        |_| toggled(private(PAGES)?, PROT_READ),
        "Makes private anonymous pages read-only and writable again after the clear, then writes.",
    ),
    Scenario::new(
        "mprotect-shared",
        Class::A,
        CAUSE,
        |_| toggled(shared(PAGES)?, PROT_READ),
        "The same with shared anonymous pages.",
    ),
    Scenario::new(
        "mprotect-ramfs",
        Class::A,
        CAUSE,
        |_| toggled(ramfs()?, PROT_READ),
        "The same with a shared file whose file system has page_mkwrite (ramfs).",
    ),
    Scenario::new(
        "mprotect-ramfs-exec",
        Class::A,
        CAUSE,
        ramfs_exec,
        "Makes writable pages of such a file executable too after the clear, then writes.",
    ),
    Scenario::new(
        "mprotect-disk",
        Class::A,
        CAUSE,
        |bench| toggled(mapped(bench)?.1, PROT_READ),
        "Makes shared pages of a file on disk read-only and writable again after the clear, then writes.",
    ),
    Scenario::new(
        "mprotect-none-disk",
        Class::A,
        CAUSE,
        |bench| toggled(mapped(bench)?.1, PROT_NONE),
        "Makes such pages inaccessible and writable again after the clear, then writes.",
    ),
    Scenario::new(
        "mprotect-none-private",
        Class::A,
        CAUSE,
        |_| toggled(private(PAGES)?, PROT_NONE),
        "Makes private pages inaccessible and writable again after the clear, then writes.",
    ),
    Scenario::new(
        "mprotect-thp",
        Class::A,
        CAUSE,
        thp,
        "Makes a private huge page read-only and writable again after the clear, then writes it all.",
    ),
    Scenario::new(
        "uffd-wp-resolve",
        Class::A,
        CAUSE,
        uffd_resolve,
        "Has userfaultfd write-protect pages and take that back after the clear, then writes.",
    ),
];

/// Takes all rights but these away and gives them back.
fn toggled(area: Area, left: i32) -> Found {
    let before = populated(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.protect(left).works("mprotect")?;
    area.protect(READ_WRITE).works("mprotect")?;
    area.write_each(NEW);
    epoch.judge(&before, area.pages())
}

/// A file on a ramfs of its own, mapped shared.
fn ramfs() -> Result<Area, Stop> {
    let mount = sys::detached_mount(c"ramfs", &[]).needs("mounting a ramfs")?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(format!("/proc/self/fd/{}/file", mount.as_raw_fd()))
        .works("a file on ramfs")?;
    sys::truncate(&file, PAGES)?;
    Area::reserve(PAGES, 0)?
        .place(READ_WRITE, MAP_SHARED, Some((file.as_fd(), 0)))
        .works("mmap")
}

fn ramfs_exec(_: &Bench) -> Found {
    let before = populated(ramfs()?);
    let area = before.area();
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.protect(READ_WRITE | sys::PROT_EXEC)
        .needs("mprotect to executable")?;
    area.write_each(NEW);
    epoch.judge(&before, area.pages())
}

fn thp(_: &Bench) -> Found {
    let area = huge_private()?;
    let before = Before::known(area, OLD);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.protect(PROT_READ).works("mprotect")?;
    area.protect(READ_WRITE).works("mprotect")?;
    needs_huge(area, "AnonHugePages")?;
    area.write_each(NEW);
    epoch.judge(&before, area.pages())
}

fn uffd_resolve(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let area = before.area();
    let fault = sys::UserFault::open(sys::UFFD_FEATURE_WP).needs("userfaultfd")?;
    fault
        .register(area, sys::UFFD_WRITE_PROTECT)
        .needs("userfaultfd write protection")?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    fault.protect(area, true).works("UFFDIO_WRITEPROTECT")?;
    fault.protect(area, false).works("UFFDIO_WRITEPROTECT")?;
    area.write_each(NEW);
    epoch.judge(&before, PAGES)
}
