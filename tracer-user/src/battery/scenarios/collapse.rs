//! khugepaged, which collapses small pages into a huge one by itself.

use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use super::prelude::*;

pub(super) const ALL: &[Scenario] = &[
    Scenario::control(
        "khugepaged-anon",
        anon,
        "Writes every second private 4 KiB page after the clear, then waits until khugepaged has collapsed them.",
    )
    .disruptive(),
    Scenario::new(
        "khugepaged-shmem",
        Class::B,
        "shared-collapse",
        shmem,
        "Writes shared 4 KiB pages after the clear, then waits until khugepaged has collapsed them.",
    )
    .disruptive(),
];

/// Has khugepaged look at everything without pause, and allows it to look at this process.
fn hurry(bench: &Bench) -> Result<(), Stop> {
    let host = bench.host()?;
    let enabled = "/sys/kernel/mm/transparent_hugepage/enabled";
    let shown = fs::read_to_string(enabled).needs("this kernel has no transparent huge pages")?;
    if shown.contains("[never]") {
        host.set(enabled, "madvise")?;
    }
    let folder = "/sys/kernel/mm/transparent_hugepage/khugepaged";
    host.set(&format!("{folder}/alloc_sleep_millisecs"), "1")?;
    host.set(&format!("{folder}/pages_to_scan"), "100000")?;
    // Last, because this is what wakes it (scan_sleep_millisecs_store, mm/khugepaged.c).
    host.set(&format!("{folder}/scan_sleep_millisecs"), "1")?;
    // khugepaged knows the address spaces that asked for huge pages; on 5.10 madvise of shared memory does not tell it
    // (hugepage_madvise comes before the VMA's flag is set), this does.
    huge_private().map(drop)
}

/// Waits until `done` says so.
fn wait(mut done: impl FnMut() -> Result<bool, Stop>) -> Result<(), Stop> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > deadline {
            return Err(Stop::Inconclusive("khugepaged collapsed nothing in time".into()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn anon(bench: &Bench) -> Found {
    hurry(bench)?;
    let pages = huge_pages()?;
    let area = place(
        Area::reserve(pages, pages * page_size())?,
        MAP_PRIVATE | MAP_ANONYMOUS,
    )?;
    area.advise(libc::MADV_NOHUGEPAGE).needs("MADV_NOHUGEPAGE")?;
    let before = populated(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    (0..pages).step_by(2).for_each(|page| area.write(page, NEW));
    area.advise(libc::MADV_HUGEPAGE).needs("MADV_HUGEPAGE")?;
    wait(|| Ok(smaps(area, "AnonHugePages")? >= area.len()))?;
    epoch.judge(&before, pages / 2)
}

fn shmem(bench: &Bench) -> Found {
    hurry(bench)?;
    let pages = huge_pages()?;
    let mount =
        sys::detached_mount(c"tmpfs", &[(c"huge", c"advise")]).needs("mounting a tmpfs with huge=advise")?;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(format!("/proc/self/fd/{}/file", mount.as_raw_fd()))
        .works("a file on tmpfs")?;
    sys::truncate(&file, pages)?;
    let room = Area::reserve(pages, pages * page_size())?;
    // Not advised yet, so that it gets small pages.
    let before = populated(
        room.place(READ_WRITE, MAP_SHARED, Some((file.as_fd(), 0)))
            .works("mmap")?,
    );
    let area = before.area();
    let this = Tracked::this()?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    area.advise(libc::MADV_HUGEPAGE).needs("MADV_HUGEPAGE")?;
    // The page table goes away as a whole; newer kernels may put the huge page in its place at once.
    wait(|| {
        let gone = this.entries(area)?.into_iter().all(|entry| !entry.present());
        Ok(gone || smaps(area, "ShmemPmdMapped")? >= area.len())
    })?;
    epoch.judge(&before, pages)
}
