//! Pages that go to swap and come back.

use std::thread;
use std::time::{Duration, Instant};

use super::disk::directory;
use super::prelude::*;

pub(super) const ALL: &[Scenario] = &[
    Scenario::control(
        "anon-swap-out",
        swap_out,
        "Writes private pages after the clear, then has them swapped out.",
    )
    .disruptive(),
    Scenario::control(
        "anon-swap-in",
        swap_in,
        "Writes private pages, has them swapped out, reads them back, and looks.",
    )
    .disruptive(),
    Scenario::control(
        "anon-swapped-then-write",
        swapped_then_write,
        "Clears while private pages are in swap, reads them back, then writes them.",
    )
    .disruptive(),
    Scenario::new(
        "shared-swap-out",
        Class::B,
        "shared-zap",
        shared_swap_out,
        "Writes shared pages after the clear, then has them swapped out.",
    )
    .disruptive(),
];

/// MiB of swap that are enough for the few pages here.
const SWAP: u32 = 16;

/// Has the kernel reclaim `area`, until none of its pages is present.
pub(super) fn page_out(area: Area) -> Result<(), Stop> {
    const PATIENCE: Duration = Duration::from_secs(15);
    let this = Tracked::this()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        area.advise(libc::MADV_PAGEOUT).needs("MADV_PAGEOUT")?;
        let left = this
            .entries(area)?
            .into_iter()
            .filter(|entry| entry.present())
            .count();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Stop::Inconclusive(format!(
                "{left} of {} pages were not swapped out",
                area.pages()
            )));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn written_and_out(bench: &Bench) -> Result<(Before, Epoch), Stop> {
    bench.host()?.swap(SWAP, || directory(bench))?;
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    page_out(before.area())?;
    let swapped = Tracked::this()?
        .entries(before.area())?
        .into_iter()
        .filter(|entry| Entry::swapped(*entry))
        .count();
    if swapped == PAGES {
        Ok((before, epoch))
    } else {
        Err(Stop::Inconclusive(format!(
            "{swapped} of {PAGES} pages are in swap"
        )))
    }
}

fn swap_out(bench: &Bench) -> Found {
    let (before, epoch) = written_and_out(bench)?;
    epoch.judge(&before, PAGES)
}

fn swap_in(bench: &Bench) -> Found {
    let (before, epoch) = written_and_out(bench)?;
    before.area().read_each();
    epoch.judge(&before, PAGES)
}

fn swapped_then_write(bench: &Bench) -> Found {
    bench.host()?.swap(SWAP, || directory(bench))?;
    let before = populated(private(PAGES)?);
    page_out(before.area())?;
    let epoch = Epoch::open()?;
    before.area().read_each();
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    epoch.judge(&before, PAGES)
}

fn shared_swap_out(bench: &Bench) -> Found {
    bench.host()?.swap(SWAP, || directory(bench))?;
    let before = populated(shared(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    page_out(before.area())?;
    epoch.judge(&before, PAGES)
}
