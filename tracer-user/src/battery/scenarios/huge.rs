//! Transparent huge pages, hugetlb, KSM: pages that are not plain 4 KiB pages of their own.

use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use super::prelude::*;

pub(super) const ALL: &[Scenario] = &[
    Scenario::control(
        "control-thp",
        thp,
        "Writes every 4 KiB of a private transparent huge page.",
    ),
    Scenario::control(
        "thp-one-byte",
        thp_one_byte,
        "Writes one byte into a huge page, which marks all of it.",
    ),
    Scenario::control(
        "thp-split-after-write",
        thp_split,
        "Writes a huge page, then splits it by mprotect of one page.",
    ),
    Scenario::control(
        "anon-collapse-after-write",
        anon_collapse,
        "Writes private 4 KiB pages, then collapses them into a huge page (MADV_COLLAPSE).",
    ),
    Scenario::new(
        "thp-split-zero-debugfs",
        Class::B,
        "thp-zero-subpages",
        split_zero_debugfs,
        "Zeroes half of a huge page after the clear, then has debugfs split it.",
    ),
    Scenario::new(
        "thp-split-zero-shrinker",
        Class::B,
        "thp-zero-subpages",
        split_zero_shrinker,
        "Zeroes half of a huge page after the clear, then has the shrinker of underused huge pages split it.",
    )
    .disruptive(),
    Scenario::new(
        "shmem-thp-split",
        Class::B,
        "shared-thp-split",
        shmem_split,
        "Writes a huge page of a shared file after the clear, then splits it by mprotect of one page.",
    ),
    Scenario::new(
        "shmem-collapse",
        Class::B,
        "shared-collapse",
        shmem_collapse,
        "Writes shared 4 KiB pages after the clear, then collapses them into a huge page (MADV_COLLAPSE).",
    ),
    Scenario::new(
        "ksm-merge",
        Class::B,
        "ksm-merge",
        |bench| ksm(bench, NEW),
        "Writes the same data to all pages after the clear and lets KSM merge them.",
    )
    .disruptive(),
    Scenario::new(
        "ksm-zero-page",
        Class::B,
        "ksm-merge",
        |bench| ksm(bench, 0),
        "Writes zeros after the clear and lets KSM put the zero page in place (use_zero_pages).",
    )
    .disruptive(),
    Scenario::new(
        "hugetlb-private",
        Class::C,
        "hugetlb",
        |bench| hugetlb(bench, MAP_PRIVATE),
        "Writes a private hugetlb page after the clear.",
    )
    .disruptive(),
    Scenario::new(
        "hugetlb-shared",
        Class::C,
        "hugetlb",
        |bench| hugetlb(bench, MAP_SHARED),
        "Writes a shared hugetlb page after the clear.",
    )
    .disruptive(),
];

fn thp(_: &Bench) -> Found {
    let area = huge_private()?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    needs_huge(area, "AnonHugePages")?;
    area.write_each(NEW);
    epoch.judge(&Before::known(area, OLD), area.pages())
}

fn thp_one_byte(_: &Bench) -> Found {
    let area = huge_private()?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    needs_huge(area, "AnonHugePages")?;
    area.write(7, NEW);
    epoch.judge(&Before::known(area, OLD), 1)
}

fn thp_split(_: &Bench) -> Found {
    let area = huge_private()?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    needs_huge(area, "AnonHugePages")?;
    area.write_each(NEW);
    area.part(3, 1).protect(PROT_READ).works("mprotect")?;
    epoch.judge(&Before::known(area, OLD), area.pages())
}

/// `MADV_COLLAPSE`, Linux 6.1.
const COLLAPSE: i32 = 25;

fn anon_collapse(_: &Bench) -> Found {
    let pages = huge_pages()?;
    let area = place(
        Area::reserve(pages, pages * page_size())?,
        MAP_PRIVATE | MAP_ANONYMOUS,
    )?;
    area.advise(libc::MADV_NOHUGEPAGE).needs("MADV_NOHUGEPAGE")?;
    let before = populated(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    area.advise(libc::MADV_HUGEPAGE).needs("MADV_HUGEPAGE")?;
    area.advise(COLLAPSE).needs("MADV_COLLAPSE")?;
    needs_huge(area, "AnonHugePages")?;
    epoch.judge(&before, pages)
}

/// A huge page of which the second half was zeroed in this epoch, and what it held before.
fn half_zeroed() -> Result<(Area, Before, Epoch), Stop> {
    let area = huge_private()?;
    let before = Before::known(area, OLD);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    let half = area.pages() / 2;
    area.part(half, half).fill(0);
    needs_huge(area, "AnonHugePages")?;
    Ok((area, before, epoch))
}

/// An error if the kernel did not do what was to be looked at.
fn needs_split(area: Area) -> Result<(), Stop> {
    match smaps(area, "AnonHugePages")? {
        0 => Ok(()),
        _ => Err(Stop::NotSupported(
            "the kernel did not split the huge page".into(),
        )),
    }
}

fn split_zero_debugfs(_: &Bench) -> Found {
    let debugfs = sys::detached_mount(c"debugfs", &[]).needs("mounting debugfs")?;
    let file = format!("/proc/self/fd/{}/split_huge_pages", debugfs.as_raw_fd());
    let (area, before, epoch) = half_zeroed()?;
    let request = format!(
        "{},{:#x},{:#x}",
        std::process::id(),
        area.start(),
        area.start() + area.len()
    );
    fs::write(&file, request).needs("debugfs split_huge_pages of one process")?;
    needs_split(area)?;
    epoch.judge(&before, area.pages() / 2)
}

fn split_zero_shrinker(bench: &Bench) -> Found {
    const PATIENCE: Duration = Duration::from_secs(10);
    let host = bench.host()?;
    let underused = "/sys/kernel/mm/transparent_hugepage/shrink_underused";
    if fs::metadata(underused).is_err() {
        return Err(Stop::NotSupported(
            "this kernel does not split underused huge pages".into(),
        ));
    }
    host.set(underused, "1")?;
    host.set(
        "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none",
        "100",
    )?;
    let (area, before, epoch) = half_zeroed()?;
    let deadline = Instant::now() + PATIENCE;
    // Dropping reclaimable slab runs every shrinker; it leaves nothing to be put back.
    while smaps(area, "AnonHugePages")? > 0 && Instant::now() < deadline {
        fs::write("/proc/sys/vm/drop_caches", "2").needs("drop_caches")?;
    }
    needs_split(area)?;
    epoch.judge(&before, area.pages() / 2)
}

fn shmem_split(_: &Bench) -> Found {
    let pages = huge_pages()?;
    let mount =
        sys::detached_mount(c"tmpfs", &[(c"huge", c"always")]).needs("mounting a tmpfs with huge=always")?;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(format!("/proc/self/fd/{}/file", mount.as_raw_fd()))
        .works("a file on tmpfs")?;
    sys::truncate(&file, pages)?;
    let room = Area::reserve(pages, pages * page_size())?;
    let before = populated(
        room.place(READ_WRITE, MAP_SHARED, Some((file.as_fd(), 0)))
            .works("mmap")?,
    );
    let area = before.area();
    needs_huge(area, "ShmemPmdMapped")?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    needs_huge(area, "ShmemPmdMapped")?;
    area.part(3, 1).protect(PROT_READ).works("mprotect")?;
    epoch.judge(&before, pages)
}

fn shmem_collapse(_: &Bench) -> Found {
    let pages = huge_pages()?;
    let file = sys::memfd(pages, 0).needs("memfd_create")?;
    let room = Area::reserve(pages, pages * page_size())?;
    let before = populated(
        room.place(READ_WRITE, MAP_SHARED, Some((file.as_fd(), 0)))
            .works("mmap")?,
    );
    let area = before.area();
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    area.advise(COLLAPSE).needs("MADV_COLLAPSE of shared memory")?;
    epoch.judge(&before, pages)
}

fn ksm(bench: &Bench, value: u8) -> Found {
    const PATIENCE: Duration = Duration::from_secs(30);
    let host = bench.host()?;
    let number = |name: &str| -> Result<u64, Stop> {
        let path = format!("/sys/kernel/mm/ksm/{name}");
        let text = fs::read_to_string(&path).needs("this kernel has no KSM")?;
        text.trim()
            .parse()
            .map_err(|error| Stop::Failed(format!("{path}: {error}")))
    };
    number("run")?;
    let before = populated(private(PAGES)?);
    let area = before.area();
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.fill(value);
    area.advise(libc::MADV_MERGEABLE).needs("MADV_MERGEABLE")?;
    host.set(
        "/sys/kernel/mm/ksm/use_zero_pages",
        if value == 0 { "1" } else { "0" },
    )?;
    host.set("/sys/kernel/mm/ksm/pages_to_scan", "10000")?;
    host.set("/sys/kernel/mm/ksm/sleep_millisecs", "1")?;
    host.set("/sys/kernel/mm/ksm/run", "1")?;
    // A page is merged in the second pass that finds it unchanged; the third makes sure.
    let passes = number("full_scans")? + 4;
    let deadline = Instant::now() + PATIENCE;
    while number("full_scans")? < passes {
        if Instant::now() > deadline {
            return Err(Stop::Inconclusive("KSM made no four passes in time".into()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    // Stopped, so that no page is merged between the two looks at the bit.
    fs::write("/sys/kernel/mm/ksm/run", "0").works("stopping KSM")?;
    epoch.judge(&before, PAGES)
}

fn hugetlb(bench: &Bench, sharing: i32) -> Found {
    let pool = "/proc/sys/vm/nr_hugepages";
    let size = smallest_pool_page()?;
    let host = bench.host()?;
    let old: u64 = fs::read_to_string(pool)
        .needs("this kernel has no hugetlb")?
        .trim()
        .parse()
        .map_err(|error| Stop::Failed(format!("{pool}: {error}")))?;
    host.set(pool, &(old + 1).to_string())?;
    let flags = sharing | MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let area = Area::anywhere(size, READ_WRITE, flags, None).needs("a hugetlb page")?;
    let before = populated(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    let found = epoch.judge(&before, area.pages());
    // Given back before the guard makes the pool smaller again.
    area.unmap()?;
    found
}

/// The size in bytes of a page of the default pool, which `/proc/sys/vm/nr_hugepages` is about.
fn smallest_pool_page() -> Result<usize, Stop> {
    let text = fs::read_to_string("/proc/meminfo").works("/proc/meminfo")?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix("Hugepagesize:")?
                .split_whitespace()
                .next()?
                .parse::<usize>()
                .ok()
        })
        .map(|kilobytes| kilobytes * 1024)
        .ok_or_else(|| Stop::NotSupported("this kernel has no hugetlb".into()))
}
