//! VMA merges, in which an armed VMA and a fresh one become one.
//!
//! A is the armed side: it was there at the clear. B is mapped next to it after the clear, so that it carries
//! `VM_SOFTDIRTY` and reads as soft-dirty all over. Merged, the two have one set of flags.

use std::os::fd::{AsFd as _, OwnedFd};

use super::prelude::*;

const CAUSE: &str = "vma-merge";

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "merge-shared-madvise-a",
        Class::A,
        CAUSE,
        |_| shared_merge(Call::Advise, Side::Armed),
        "Maps shared B next to armed A, reads B, merges them by madvise of A, then writes B.",
    ),
    Scenario::new(
        "merge-shared-madvise-b",
        Class::A,
        CAUSE,
        |_| shared_merge(Call::Advise, Side::Fresh),
        "The same merged by madvise of B.",
    ),
    Scenario::new(
        "merge-shared-mlock-a",
        Class::A,
        CAUSE,
        |_| shared_merge(Call::Lock, Side::Armed),
        "The same merged by mlock of A.",
    ),
    Scenario::new(
        "merge-shared-mlock-b",
        Class::A,
        CAUSE,
        |_| shared_merge(Call::Lock, Side::Fresh),
        "The same merged by mlock of B.",
    ),
    Scenario::new(
        "merge-shared-munlock-a",
        Class::A,
        CAUSE,
        |_| shared_merge(Call::Unlock, Side::Armed),
        "The same merged by munlock of A.",
    ),
    Scenario::new(
        "merge-shared-munlock-b",
        Class::A,
        CAUSE,
        |_| shared_merge(Call::Unlock, Side::Fresh),
        "The same merged by munlock of B.",
    ),
    Scenario::new(
        "merge-shared-mprotect-a",
        Class::A,
        CAUSE,
        |_| shared_merge(Call::Protect, Side::Armed),
        "The same merged by mprotect of A.",
    ),
    Scenario::new(
        "merge-shared-mprotect-b",
        Class::A,
        CAUSE,
        |_| shared_merge(Call::Protect, Side::Fresh),
        "The same merged by mprotect of B.",
    ),
    Scenario::new(
        "merge-shared-mremap-b",
        Class::A,
        CAUSE,
        shared_mremap,
        "Maps shared B elsewhere, reads it, moves it next to armed A by mremap, then writes B.",
    ),
    Scenario::new(
        "merge-shared-mmap-b",
        Class::A,
        CAUSE,
        shared_mmap,
        "Maps shared B so that mmap itself merges it with armed A, reads B, then writes B.",
    ),
    Scenario::new(
        "merge-shared-next-epoch",
        Class::A,
        CAUSE,
        shared_next_epoch,
        "Merges as merge-shared-madvise-a, clears again, reads pages never touched before, then writes them.",
    ),
    Scenario::new(
        "merge-remap-madvise-a",
        Class::A,
        CAUSE,
        |_| remap_merge(Call::Advise, Side::Armed),
        "Replaces populated private B by a fresh mapping after the clear and merges it with armed A by madvise of A.",
    ),
    Scenario::new(
        "merge-remap-madvise-b",
        Class::A,
        CAUSE,
        |_| remap_merge(Call::Advise, Side::Fresh),
        "The same merged by madvise of B.",
    ),
    Scenario::new(
        "merge-remap-mprotect-a",
        Class::A,
        CAUSE,
        |_| remap_merge(Call::Protect, Side::Armed),
        "The same merged by mprotect of A.",
    ),
    Scenario::new(
        "merge-remap-mprotect-b",
        Class::A,
        CAUSE,
        |_| remap_merge(Call::Protect, Side::Fresh),
        "The same merged by mprotect of B.",
    ),
    Scenario::new(
        "merge-untouched-mprotect-a",
        Class::A,
        CAUSE,
        |_| replaced(&Sides::private()?, Call::Protect, Side::Armed),
        "The same as merge-remap-mprotect-a with an A that was never touched.",
    ),
    Scenario::new(
        "merge-untouched-mremap-b",
        Class::A,
        CAUSE,
        untouched_mremap,
        "Maps private B elsewhere and moves it onto populated memory next to an armed A that was never touched.",
    ),
    Scenario::new(
        "merge-remap-mmap-b",
        Class::A,
        CAUSE,
        remap_mmap,
        "Replaces populated private B by a fresh mapping that mmap itself merges with armed A.",
    ),
];

/// By what the two become alike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Advise,
    Lock,
    Unlock,
    Protect,
}

/// Which side that call is made on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Armed,
    Fresh,
}

/// Makes `area` differ from what [`join`] makes of it.
fn part_from(area: Area, call: Call) -> Result<(), Stop> {
    match call {
        Call::Advise => area.advise(libc::MADV_DONTDUMP),
        Call::Unlock => area.lock(),
        Call::Protect => area.protect(PROT_READ),
        Call::Lock => Ok(()),
    }
    .needs("setting one side apart")
}

/// Gives `area` the flags that the other side has.
fn join(area: Area, call: Call) -> Result<(), Stop> {
    match call {
        Call::Advise => area.advise(libc::MADV_DODUMP),
        Call::Lock => area.lock(),
        Call::Unlock => area.unlock(),
        Call::Protect => area.protect(READ_WRITE),
    }
    .needs("merging")
}

/// The start of the mapping in which `area` lies, which tells whether a merge took place.
fn mapping_start(area: Area) -> Result<usize, Stop> {
    let maps = fs::read_to_string("/proc/self/maps").works("/proc/self/maps")?;
    maps.lines()
        .filter_map(|line| line.split_once(' ')?.0.split_once('-'))
        .filter_map(|(start, end)| {
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some((number(start)?, number(end)?))
        })
        .find(|(start, end)| (*start..*end).contains(&area.start()))
        .map(|(start, _)| start)
        .ok_or_else(|| Stop::Failed("the area is not mapped".into()))
}

fn merged(armed: Area, fresh: Area) -> Result<(), Stop> {
    if mapping_start(armed)? == mapping_start(fresh)? {
        Ok(())
    } else {
        Err(Stop::NotSupported(
            "this kernel does not merge these mappings".into(),
        ))
    }
}

/// The two sides: `room` holds first A, then B. Shared sides are adjacent parts of one file, which is what can merge.
struct Sides {
    file: Option<OwnedFd>,
    armed: Area,
    fresh: Area,
}

impl Sides {
    fn shared() -> Result<Self, Stop> {
        let room = Area::reserve(2 * PAGES, 0)?;
        let file = sys::memfd(2 * PAGES, 0).needs("memfd_create")?;
        let sides = Self {
            file: Some(file),
            armed: room.part(0, PAGES),
            fresh: room.part(PAGES, PAGES),
        };
        sides.map(sides.armed, READ_WRITE)?;
        sides.armed.fill(OLD);
        Ok(sides)
    }

    /// Both sides are private and there before the clear, B populated and as a mapping that cannot merge with A.
    fn private() -> Result<Self, Stop> {
        let room = Area::reserve(2 * PAGES, 0)?;
        let sides = Self {
            file: None,
            armed: room.part(0, PAGES),
            fresh: room.part(PAGES, PAGES),
        };
        sides.map(sides.armed, READ_WRITE)?;
        place(sides.fresh, MAP_SHARED | MAP_ANONYMOUS)?.fill(OLD);
        Ok(sides)
    }

    /// Maps a side, in place of what is there.
    fn map(&self, side: Area, prot: i32) -> Result<(), Stop> {
        self.map_with(side, prot, 0)
    }

    fn map_with(&self, side: Area, prot: i32, flags: i32) -> Result<(), Stop> {
        let offset = side.start() - self.armed.start();
        match &self.file {
            Some(file) => side.place(prot, MAP_SHARED | flags, Some((file.as_fd(), offset))),
            None => side.place(prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, None),
        }
        .works("mmap")
        .map(drop)
    }

    /// Arms A, maps B unlike A, has `touch` use B, and makes the two alike by `call` on `side`.
    fn merge(&self, call: Call, side: Side, touch: impl FnOnce(Area)) -> Result<Epoch, Stop> {
        // What B is to join must be so before B is mapped, or the two would be alike from the start.
        match (side, call) {
            (Side::Fresh, Call::Lock) => self.armed.lock().needs("mlock")?,
            (Side::Fresh, Call::Advise) => self.armed.advise(libc::MADV_DONTDUMP).needs("MADV_DONTDUMP")?,
            _ => {}
        }
        let epoch = Epoch::open()?;
        epoch.armed(self.armed)?;
        if side == Side::Armed {
            part_from(self.armed, call)?;
        }
        let (prot, locked) = match (side, call) {
            (Side::Fresh, Call::Protect) => (PROT_READ, 0),
            (Side::Armed, Call::Lock) | (Side::Fresh, Call::Unlock) => (READ_WRITE, libc::MAP_LOCKED),
            _ => (READ_WRITE, 0),
        };
        self.map_with(self.fresh, prot, locked)?;
        touch(self.fresh);
        match (side, call) {
            (Side::Armed, _) => join(self.armed, call)?,
            (Side::Fresh, Call::Advise) => part_from(self.fresh, call)?,
            (Side::Fresh, _) => join(self.fresh, call)?,
        }
        merged(self.armed, self.fresh)?;
        Ok(epoch)
    }
}

fn shared_merge(call: Call, side: Side) -> Found {
    let sides = Sides::shared()?;
    let epoch = sides.merge(call, side, Area::read_each)?;
    sides.fresh.write_each(NEW);
    epoch.judge(&Before::zero(sides.fresh), PAGES)
}

fn shared_mmap(_: &Bench) -> Found {
    let sides = Sides::shared()?;
    let epoch = Epoch::open()?;
    epoch.armed(sides.armed)?;
    sides.map(sides.fresh, READ_WRITE)?;
    merged(sides.armed, sides.fresh)?;
    sides.fresh.read_each();
    sides.fresh.write_each(NEW);
    epoch.judge(&Before::zero(sides.fresh), PAGES)
}

fn shared_mremap(_: &Bench) -> Found {
    let sides = Sides::shared()?;
    let elsewhere = Area::reserve(PAGES, 0)?;
    let epoch = Epoch::open()?;
    epoch.armed(sides.armed)?;
    let file = sides.file.as_ref().map(|file| (file.as_fd(), sides.armed.len()));
    elsewhere
        .place(READ_WRITE, MAP_SHARED, file)
        .works("mmap")?
        .read_each();
    elsewhere.move_to(sides.fresh, 0).works("mremap")?;
    merged(sides.armed, sides.fresh)?;
    sides.fresh.write_each(NEW);
    epoch.judge(&Before::zero(sides.fresh), PAGES)
}

fn shared_next_epoch(_: &Bench) -> Found {
    let sides = Sides::shared()?;
    let epoch = sides.merge(Call::Advise, Side::Armed, |_| ())?.next()?;
    sides.fresh.read_each();
    epoch.armed(sides.fresh)?;
    sides.fresh.write_each(NEW);
    epoch.judge(&Before::zero(sides.fresh), PAGES)
}

/// Merges with a B that took the place of older content, which the tracker must be told.
fn replaced(sides: &Sides, call: Call, side: Side) -> Found {
    let epoch = sides.merge(call, side, |_| ())?;
    epoch.judge(&Before::known(sides.fresh, OLD), PAGES)
}

fn untouched_mremap(_: &Bench) -> Found {
    let sides = Sides::private()?;
    let elsewhere = Area::reserve(PAGES, 0)?;
    let epoch = Epoch::open()?;
    epoch.armed(sides.armed)?;
    place(elsewhere, MAP_PRIVATE | MAP_ANONYMOUS)?;
    elsewhere.move_to(sides.fresh, 0).works("mremap")?;
    merged(sides.armed, sides.fresh)?;
    epoch.judge(&Before::known(sides.fresh, OLD), PAGES)
}

fn remap_merge(call: Call, side: Side) -> Found {
    let sides = Sides::private()?;
    sides.armed.fill(OLD);
    replaced(&sides, call, side)
}

fn remap_mmap(_: &Bench) -> Found {
    let sides = Sides::private()?;
    sides.armed.fill(OLD);
    let epoch = Epoch::open()?;
    epoch.armed(sides.armed)?;
    sides.map(sides.fresh, READ_WRITE)?;
    merged(sides.armed, sides.fresh)?;
    epoch.judge(&Before::known(sides.fresh, OLD), PAGES)
}
