//! Shared memory written by somebody else, or unmapped and mapped again with its data kept.

use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

use super::prelude::*;

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "shared-zap-refault",
        Class::B,
        "shared-zap",
        zap,
        "Writes shared pages after the clear, then zaps them by MADV_DONTNEED, which keeps the data.",
    ),
    Scenario::new(
        "shared-other-process",
        Class::C,
        "other-mapper",
        other_process,
        "Has another process write the same memory through a mapping of its own.",
    ),
    Scenario::new(
        "shared-second-mapping",
        Class::C,
        "other-mapper",
        second_mapping,
        "Writes the same memory through a second mapping of the same process.",
    ),
    Scenario::new(
        "fork-child-shared",
        Class::C,
        "other-mapper",
        forked_child,
        "Has a forked child write the shared mapping that it inherited.",
    ),
    Scenario::new(
        "shared-write-syscall",
        Class::C,
        "file-write",
        write_syscall,
        "Changes a mapped memory file by write(2).",
    ),
];

fn zap(_: &Bench) -> Found {
    let before = populated(shared(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    before.area().advise(libc::MADV_DONTNEED).works("MADV_DONTNEED")?;
    epoch.judge(&before, PAGES)
}

fn other_process(_: &Bench) -> Found {
    let (file, area) = shared_file(PAGES)?;
    let before = populated(area);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    sys::in_child(|| {
        let own = Area::reserve(PAGES, 0)?.place(READ_WRITE, MAP_SHARED, Some((file.as_fd(), 0)))?;
        own.write_each(NEW);
        Ok(())
    })?;
    epoch.judge(&before, PAGES)
}

fn second_mapping(_: &Bench) -> Found {
    let (file, area) = shared_file(PAGES)?;
    let before = populated(area);
    let second = Area::reserve(PAGES, 0)?
        .place(READ_WRITE, MAP_SHARED, Some((file.as_fd(), 0)))
        .works("mmap")?;
    second.read_each();
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    second.write_each(NEW);
    epoch.judge(&before, PAGES)
}

fn forked_child(_: &Bench) -> Found {
    let before = populated(shared(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    sys::in_child(|| {
        before.area().write_each(NEW);
        Ok(())
    })?;
    epoch.judge(&before, PAGES)
}

fn write_syscall(_: &Bench) -> Found {
    let (file, area) = shared_file(PAGES)?;
    let before = populated(area);
    let file = fs::File::from(file);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    file.write_all_at(&vec![NEW; area.len()], 0)
        .works("writing the file")?;
    epoch.judge(&before, PAGES)
}
