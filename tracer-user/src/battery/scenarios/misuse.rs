//! Data lost by the tracker's own doing, on every kernel.

use super::super::oracle::Change;
use super::prelude::*;

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "foreign-clear",
        Class::D,
        "foreign-clear",
        foreign_clear,
        "Writes after the clear; then another process clears too, before this tracker has looked.",
    ),
    Scenario::new(
        "write-before-next-clear",
        Class::D,
        "read-clear-gap",
        read_clear_gap,
        "Writes between the tracker's reading of pagemap and its next clear.",
    ),
];

/// The canary would call this epoch cut, which here is the point; so the pages are judged without it.
fn foreign_clear(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    clear_from_child().works("the foreign clear")?;
    if epoch.uncut().is_ok() {
        return Err(Stop::Inconclusive(
            "the foreign clear left the canary page soft-dirty".into(),
        ));
    }
    judge(&Tracked::this()?, &before, Change::Written)
}

fn read_clear_gap(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    // The tracker has read this, and takes these pages for unchanged.
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    epoch.next()?.judge(&before, PAGES)
}
