//! userfaultfd(2): pages that a monitor puts in place.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::prelude::*;

const ZERO: &str = "userfaultfd-zeropage";
const MOVE: &str = "userfaultfd-move";

pub(super) const ALL: &[Scenario] = &[
    Scenario::control(
        "uffd-copy",
        copy,
        "Discards pages after the clear and fills them by UFFDIO_COPY.",
    ),
    Scenario::new(
        "uffd-zeropage",
        Class::C,
        ZERO,
        zeropage,
        "Discards pages after the clear and fills them by UFFDIO_ZEROPAGE.",
    ),
    Scenario::control(
        "uffd-move-page",
        |_| moved(Look::Destination, false),
        "Moves pages onto discarded ones by UFFDIO_MOVE.",
    ),
    Scenario::new(
        "uffd-move-zero-page",
        Class::C,
        MOVE,
        |_| moved(Look::Destination, true),
        "Moves zero pages onto discarded ones by UFFDIO_MOVE.",
    ),
    Scenario::new(
        "uffd-move-source",
        Class::C,
        "discard",
        |_| moved(Look::Source, false),
        "Looks at where UFFDIO_MOVE took pages from.",
    ),
    Scenario::control(
        "uffd-wp-sync",
        wp_sync,
        "Writes pages that userfaultfd write-protects and a monitor thread releases.",
    ),
    Scenario::control(
        "uffd-wp-async",
        wp_async,
        "Writes pages under userfaultfd's asynchronous write protection.",
    ),
];

fn copy(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let from = private(PAGES)?;
    from.fill(NEW);
    let fault = sys::UserFault::open(0).needs("userfaultfd")?;
    fault
        .register(before.area(), sys::UFFD_MISSING)
        .needs("userfaultfd")?;
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().advise(libc::MADV_DONTNEED).works("MADV_DONTNEED")?;
    fault.copy(before.area(), from).works("UFFDIO_COPY")?;
    epoch.judge(&before, PAGES)
}

fn zeropage(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let fault = sys::UserFault::open(0).needs("userfaultfd")?;
    fault
        .register(before.area(), sys::UFFD_MISSING)
        .needs("userfaultfd")?;
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().advise(libc::MADV_DONTNEED).works("MADV_DONTNEED")?;
    fault.zero(before.area()).works("UFFDIO_ZEROPAGE")?;
    epoch.judge(&before, PAGES)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Source,
    Destination,
}

fn moved(look: Look, zero_pages: bool) -> Found {
    let destination = populated(private(PAGES)?);
    let source = private(PAGES)?;
    if zero_pages {
        source.read_each();
    } else {
        source.fill(NEW);
    }
    let fault = sys::UserFault::open(sys::UFFD_FEATURE_MOVE).needs("UFFD_FEATURE_MOVE")?;
    fault
        .register(destination.area(), sys::UFFD_MISSING)
        .needs("userfaultfd")?;
    let epoch = Epoch::open()?;
    epoch.armed(destination.area())?;
    epoch.armed(source)?;
    destination
        .area()
        .advise(libc::MADV_DONTNEED)
        .works("MADV_DONTNEED")?;
    fault
        .move_pages(destination.area(), source)
        .works("UFFDIO_MOVE")?;
    match look {
        Look::Destination => epoch.judge(&destination, PAGES),
        Look::Source => epoch.judge_discarded(&Before::known(source, NEW), PAGES),
    }
}

fn wp_sync(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let area = before.area();
    let fault = sys::UserFault::open(sys::UFFD_FEATURE_WP).needs("userfaultfd write protection")?;
    fault
        .register(area, sys::UFFD_WRITE_PROTECT)
        .needs("userfaultfd write protection")?;
    fault.protect(area, true).works("UFFDIO_WRITEPROTECT")?;
    let released = AtomicUsize::new(0);
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    thread::scope(|scope| {
        let monitor = scope.spawn(|| -> std::io::Result<()> {
            for _ in 0..PAGES {
                let address = usize::try_from(fault.next_fault()?).map_err(std::io::Error::other)?;
                let page = area.part((address - area.start()) / page_size(), 1);
                fault.protect(page, false)?;
                released.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        area.write_each(NEW);
        monitor
            .join()
            .map_err(|_| Stop::Failed("the monitor thread panicked".into()))?
            .works("the monitor thread")
    })?;
    if released.load(Ordering::Relaxed) != PAGES {
        return Err(Stop::Inconclusive(
            "not every write was seen by the monitor".into(),
        ));
    }
    epoch.judge(&before, PAGES)
}

fn wp_async(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let area = before.area();
    let fault = sys::UserFault::open(sys::UFFD_FEATURE_WP_ASYNC).needs("UFFD_FEATURE_WP_ASYNC")?;
    fault
        .register(area, sys::UFFD_WRITE_PROTECT)
        .needs("userfaultfd write protection")?;
    fault.protect(area, true).works("UFFDIO_WRITEPROTECT")?;
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    area.write_each(NEW);
    epoch.judge(&before, PAGES)
}
