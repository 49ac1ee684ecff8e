//! mremap(2): memory that moves and memory that grows.
//!
//! Documentation/admin-guide/mm/soft-dirty.rst promises that "the kernel always marks new memory regions (and expanded
//! regions) as soft dirty". mremap does not, so a region that it put over old content is a miss, although its pages are
//! not there yet.

use super::prelude::*;

pub(super) const ALL: &[Scenario] = &[
    Scenario::control(
        "mremap-small-move",
        |_| small_move(Source::Clean),
        "Moves 16 KiB, not written since the clear, onto other memory, page by page.",
    ),
    Scenario::new(
        "mremap-table-move",
        Class::B,
        "mremap-table-move",
        |_| table_move(Source::Clean),
        "Moves 4 MiB, not written since the clear, onto other memory, 2 MiB-aligned, so that whole page tables move.",
    ),
    Scenario::control(
        "mremap-table-move-written",
        |_| table_move(Source::Written),
        "The same after writing the 4 MiB, whose bits move along with the page tables.",
    ),
    Scenario::new(
        "mremap-grow-untouched",
        Class::C,
        "mremap-grow",
        |_| grow(|_| ()),
        "Grows an armed mapping over the place of one that was unmapped after the clear.",
    ),
    Scenario::new(
        "mremap-grow-read",
        Class::C,
        "mremap-grow",
        |_| grow(Area::read_each),
        "The same, and reads the new pages.",
    ),
    Scenario::new(
        "mremap-untouched-move",
        Class::C,
        "mremap-grow",
        untouched_move,
        "Moves an armed mapping that was never touched onto populated memory after the clear.",
    ),
    Scenario::new(
        "mremap-dontunmap-private",
        Class::C,
        "discard",
        dontunmap_private,
        "Moves private pages away with MREMAP_DONTUNMAP, which leaves the old place empty.",
    ),
    Scenario::new(
        "mremap-dontunmap-shared",
        Class::B,
        "shared-zap",
        dontunmap_shared,
        "Writes shared pages after the clear, moves them with MREMAP_DONTUNMAP, and looks at the old place.",
    ),
];

/// Whether the source is written between the clear and the move, or only before the clear.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Clean,
    Written,
}

/// Moves `from` onto the populated `to`, whose content is thereby replaced.
fn moved(from: Area, to: Area, source: Source) -> Found {
    from.fill(NEW);
    let before = populated(to);
    let epoch = Epoch::open()?;
    epoch.armed(from)?;
    epoch.armed(to)?;
    if source == Source::Written {
        from.write_each(NEW + 1);
    }
    from.move_to(to, 0).works("mremap")?;
    epoch.judge(&before, to.pages())
}

fn small_move(source: Source) -> Found {
    const SMALL: usize = 4;
    moved(private(SMALL)?, private(SMALL)?, source)
}

fn table_move(source: Source) -> Found {
    let table = huge_pages()?;
    let length = 2 * table;
    let plain = || -> Result<Area, Stop> {
        let area = place(
            Area::reserve(length, table * page_size())?,
            MAP_PRIVATE | MAP_ANONYMOUS,
        )?;
        area.advise(libc::MADV_NOHUGEPAGE).needs("MADV_NOHUGEPAGE")?;
        Ok(area)
    };
    moved(plain()?, plain()?, source)
}

fn grow(touch: impl FnOnce(Area)) -> Found {
    let room = Area::reserve(2 * PAGES, 0)?;
    let kept = place(room.part(0, PAGES), MAP_PRIVATE | MAP_ANONYMOUS)?;
    kept.fill(OLD);
    // Shared, so that the two cannot be one mapping from the start.
    let replaced = populated(place(room.part(PAGES, PAGES), MAP_SHARED | MAP_ANONYMOUS)?);
    let epoch = Epoch::open()?;
    epoch.armed(kept)?;
    epoch.armed(replaced.area())?;
    replaced.area().unmap()?;
    kept.grow_in_place(2 * PAGES).works("mremap")?;
    touch(replaced.area());
    epoch.judge(&replaced, PAGES)
}

fn untouched_move(_: &Bench) -> Found {
    let from = private(PAGES)?;
    let before = populated(private(PAGES)?);
    let epoch = Epoch::open()?;
    epoch.armed(from)?;
    epoch.armed(before.area())?;
    from.move_to(before.area(), 0).works("mremap")?;
    epoch.judge(&before, PAGES)
}

fn dontunmap_private(_: &Bench) -> Found {
    let before = populated(private(PAGES)?);
    let to = private(PAGES)?;
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before
        .area()
        .move_to(to, libc::MREMAP_DONTUNMAP)
        .needs("MREMAP_DONTUNMAP")?;
    epoch.judge_discarded(&before, PAGES)
}

fn dontunmap_shared(_: &Bench) -> Found {
    let before = populated(shared(PAGES)?);
    let to = private(PAGES)?;
    let epoch = Epoch::open()?;
    epoch.armed(before.area())?;
    before.area().write_each(NEW);
    before
        .area()
        .move_to(to, libc::MREMAP_DONTUNMAP)
        .needs("MREMAP_DONTUNMAP of shared memory")?;
    epoch.judge(&before, PAGES)
}
