//! What every scenario needs: the table's entry, areas, checks, and the words of the oracle.

pub(super) use std::fs;
pub(super) use std::os::fd::{AsRawFd as _, OwnedFd};

pub(super) use super::super::oracle::{Before, Entry, Epoch, Tracked, clear_from_child, judge};
pub(super) use super::super::outcome::{Class, Needs, Stop, Tally};
pub(super) use super::super::sys::{
    self, Area, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, READ_WRITE, page_size,
};

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::restore::Host;

/// How many pages most scenarios work on.
pub(super) const PAGES: usize = 64;

/// What a page holds before the clear.
pub(super) const OLD: u8 = 0x11;

/// What is written after the clear.
pub(super) const NEW: u8 = 0x22;

/// What a scenario ends with.
pub(super) type Found = Result<Tally, Stop>;

/// One scenario.
#[derive(Debug)]
pub struct Scenario {
    /// Its stable name.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub about: &'static str,
    /// The class of its cause.
    pub class: Class,
    /// The name of its cause in `docs/causes.md`; `none` for controls.
    pub cause: &'static str,
    /// Whether it changes the host for as long as it runs.
    pub disruptive: bool,
    /// How often it is run; more than once only for races.
    pub rounds: u32,
    /// The body.
    pub run: fn(&Bench) -> Found,
}

impl Scenario {
    /// A scenario that touches its own memory only, once.
    pub(super) const fn new(
        name: &'static str,
        class: Class,
        cause: &'static str,
        run: fn(&Bench) -> Found,
        about: &'static str,
    ) -> Self {
        Self {
            name,
            about,
            class,
            cause,
            disruptive: false,
            rounds: 1,
            run,
        }
    }

    /// A scenario in which nothing is expected to be missed.
    pub(super) const fn control(name: &'static str, run: fn(&Bench) -> Found, about: &'static str) -> Self {
        Self::new(name, Class::Control, "none", run, about)
    }

    /// The same, but it changes the host.
    pub(super) const fn disruptive(mut self) -> Self {
        self.disruptive = true;
        self
    }

    /// The same, as a race of so many rounds.
    pub(super) const fn race(mut self, rounds: u32) -> Self {
        self.rounds = rounds;
        self
    }
}

/// What a scenario is given.
#[derive(Debug)]
pub struct Bench {
    rounds: u32,
    host: Option<Host>,
    directory: Option<PathBuf>,
}

impl Bench {
    /// For a scenario's process. A disruptive scenario finds its guard's pipe as standard input.
    pub fn new(rounds: u32, disruptive: bool, directory: Option<PathBuf>) -> Self {
        Self {
            rounds,
            host: disruptive.then(Host::inherited),
            directory,
        }
    }

    /// Where to make files, if the user named a directory.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// The host's settings, which only `--disruptive` allows to be changed.
    pub(super) fn host(&self) -> Result<&Host, Stop> {
        self.host
            .as_ref()
            .ok_or_else(|| Stop::NotSupported("it changes the host, which needs --disruptive".into()))
    }

    /// Runs `round` as often as asked for, and adds up. Rounds that prove nothing are left out, unless none is left.
    pub(super) fn rounds(&self, round: impl FnMut(u32) -> Found) -> Found {
        self.rounds_until_missed(Duration::ZERO, round)
    }

    /// The same, and goes on after these rounds until something was missed or `patience`, counted from the first, is over.
    pub(super) fn rounds_until_missed(
        &self,
        patience: Duration,
        mut round: impl FnMut(u32) -> Found,
    ) -> Found {
        let start = Instant::now();
        let mut sum = Tally::default();
        let mut last = Stop::Inconclusive("no round was run".into());
        for number in 0.. {
            if number >= self.rounds && (sum.missed > 0 || start.elapsed() >= patience) {
                break;
            }
            match round(number) {
                Ok(tally) => sum.add(tally),
                Err(stop @ Stop::Inconclusive(_)) => last = stop,
                Err(stop) => return Err(stop),
            }
        }
        if sum.rounds == 0 { Err(last) } else { Ok(sum) }
    }
}

/// The size of a transparent huge page in pages.
pub(super) fn huge_pages() -> Result<usize, Stop> {
    let path = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
    let bytes: usize = fs::read_to_string(path)
        .needs("this kernel has no transparent huge pages")?
        .trim()
        .parse()
        .map_err(|error| Stop::Failed(format!("{path}: {error}")))?;
    Ok(bytes / page_size())
}

/// Fresh private anonymous memory, untouched.
pub(super) fn private(pages: usize) -> Result<Area, Stop> {
    place(Area::reserve(pages, 0)?, MAP_PRIVATE | MAP_ANONYMOUS)
}

/// Fresh shared anonymous memory, untouched.
pub(super) fn shared(pages: usize) -> Result<Area, Stop> {
    place(Area::reserve(pages, 0)?, MAP_SHARED | MAP_ANONYMOUS)
}

/// Maps anonymous memory at `area`.
pub(super) fn place(area: Area, flags: i32) -> Result<Area, Stop> {
    area.place(READ_WRITE, flags, None).works("mmap")
}

/// A file in memory, mapped shared.
pub(super) fn shared_file(pages: usize) -> Result<(OwnedFd, Area), Stop> {
    use std::os::fd::AsFd as _;
    let file = sys::memfd(pages, 0).needs("memfd_create")?;
    let area = Area::reserve(pages, 0)?
        .place(READ_WRITE, MAP_SHARED, Some((file.as_fd(), 0)))
        .works("mmap")?;
    Ok((file, area))
}

/// Fills an area with [`OLD`] and remembers that.
pub(super) fn populated(area: Area) -> Before {
    area.fill(OLD);
    Before::known(area, OLD)
}

/// The sum of a field of `/proc/self/smaps`, in bytes, over the mappings that overlap `area`.
pub(super) fn smaps(area: Area, field: &str) -> Result<usize, Stop> {
    let text = fs::read_to_string("/proc/self/smaps").works("/proc/self/smaps")?;
    let mut inside = false;
    let mut bytes = 0;
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| usize::from_str_radix(text, 16).unwrap_or(0);
            inside = number(start) < area.start() + area.len() && number(end) > area.start();
        } else if inside && first.strip_suffix(':') == Some(field) {
            let value: usize = line
                .split_whitespace()
                .nth(1)
                .and_then(|word| word.parse().ok())
                .unwrap_or(0);
            bytes += value * 1024;
        }
    }
    Ok(bytes)
}

/// An error unless all of `area` is mapped by huge pages.
pub(super) fn needs_huge(area: Area, field: &str) -> Result<(), Stop> {
    let bytes = smaps(area, field)?;
    if bytes >= area.len() {
        Ok(())
    } else {
        Err(Stop::NotSupported(format!(
            "the kernel gave no transparent huge page ({field}: {bytes} bytes)"
        )))
    }
}

/// Private anonymous memory of one huge page, filled with [`OLD`].
pub(super) fn huge_private() -> Result<Area, Stop> {
    let pages = huge_pages()?;
    let area = place(
        Area::reserve(pages, pages * page_size())?,
        MAP_PRIVATE | MAP_ANONYMOUS,
    )?;
    area.advise(libc::MADV_HUGEPAGE).needs("MADV_HUGEPAGE")?;
    area.fill(OLD);
    needs_huge(area, "AnonHugePages")?;
    Ok(area)
}
