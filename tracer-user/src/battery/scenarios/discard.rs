//! Content that the target itself throws away: the pages become zero, and the tracker sees them as not present.

use super::prelude::*;

const CAUSE: &str = "discard";

/// `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE`, Linux 6.13.
const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "dontneed-private",
        Class::C,
        CAUSE,
        |_| dontneed(|_| ()),
        "Discards private pages by MADV_DONTNEED after the clear.",
    ),
    Scenario::new(
        "dontneed-private-read",
        Class::C,
        CAUSE,
        |_| dontneed(Area::read_each),
        "The same, and reads them, which maps the zero page.",
    ),
    Scenario::control(
        "dontneed-then-write",
        dontneed_write,
        "Discards private pages after the clear, then writes them.",
    ),
    Scenario::new(
        "punch-hole",
        Class::C,
        CAUSE,
        punch_hole,
        "Punches a hole into a mapped memory file after the clear.",
    ),
    Scenario::new(
        "truncate-and-extend",
        Class::C,
        CAUSE,
        truncate,
        "Truncates a mapped memory file and extends it again.",
    ),
    Scenario::new(
        "madv-guard",
        Class::C,
        CAUSE,
        guard,
        "Installs guard markers over private pages after the clear and removes them again.",
    ),
];

fn dontneed(touch: impl FnOnce(Area)) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().advise(libc::MADV_DONTNEED).works("MADV_DONTNEED")?;
    touch(before.area());
    epoch.judge_discarded(&before, PAGES)
}

fn dontneed_write(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().advise(libc::MADV_DONTNEED).works("MADV_DONTNEED")?;
    before.area().write_each(NEW);
    epoch.judge(&before, PAGES)
}

fn punch_hole(_: &Bench) -> Found {
    let (file, area) = shared_file(PAGES)?;
    let before = populated(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    sys::punch_hole(&file, PAGES).needs("FALLOC_FL_PUNCH_HOLE")?;
    epoch.judge_discarded(&before, PAGES)
}

fn truncate(_: &Bench) -> Found {
    let (file, area) = shared_file(PAGES)?;
    let before = populated(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    sys::truncate(&file, 0)?;
    sys::truncate(&file, PAGES)?;
    epoch.judge_discarded(&before, PAGES)
}

fn guard(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().advise(GUARD_INSTALL).needs("MADV_GUARD_INSTALL")?;
    before.area().advise(GUARD_REMOVE).works("MADV_GUARD_REMOVE")?;
    epoch.judge_discarded(&before, PAGES)
}
