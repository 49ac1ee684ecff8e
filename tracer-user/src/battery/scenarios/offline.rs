//! A page frame taken out of use while its page is tracked: the content goes to another frame.

use super::prelude::*;

pub(super) const ALL: &[Scenario] = &[
    Scenario::control(
        "soft-offline-after-write",
        |bench| soft_offline(bench, Offlined::After),
        "Writes, then has the page frames taken out of use (MADV_SOFT_OFFLINE), which moves the pages.",
    )
    .disruptive(),
    Scenario::control(
        "soft-offline-before-write",
        |bench| soft_offline(bench, Offlined::Before),
        "Has the page frames taken out of use after the clear, then writes.",
    )
    .disruptive(),
];

/// Each takes a page frame from the host until it is given back.
const FRAMES: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Offlined {
    Before,
    After,
}

fn soft_offline(bench: &Bench, offlined: Offlined) -> Found {
    let host = bench.host()?;
    let before = populated(private(FRAMES)?);
    let area = before.area();
    let epoch = Epoch::open()?;
    epoch.armed(area)?;
    if offlined == Offlined::After {
        area.write_each(NEW);
    }
    for page in 0..FRAMES {
        host.soft_offline(area.part(page, 1))?;
    }
    if offlined == Offlined::Before {
        area.write_each(NEW);
    }
    epoch.judge(&before, FRAMES)
}
