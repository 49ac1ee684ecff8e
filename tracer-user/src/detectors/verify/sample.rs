//! A sample of clean pages of one epoch: drawn once, compared as long as the epoch lasts.

use std::collections::BTreeSet;

use super::LeftOut;
use super::entry::{State, state};
use super::means::{Means, PAGE, Watched};
use crate::detectors::Range;

/// A page table: what one look at pagemap reads at most, so that the bits before and after a content lie close to it.
const PIECE: u64 = 512 * PAGE as u64;
/// Pieces that a sample is drawn from: 512 MiB. In a larger address space these are drawn by chance first.
const PIECES: u64 = 256;

/// Memory that a sample may be drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Addresses.
    pub range: Range,
    /// `VM_SHARED`.
    pub shared: bool,
}

/// What was told of a page in this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    /// Its content was compared.
    Compared,
    /// Its content was seen changed.
    Changed,
}

/// One page of a sample.
#[derive(Clone, Copy, Debug)]
struct Page {
    address: u64,
    digest: u64,
    shared: bool,
    told: Told,
    /// It leaves the sample.
    leaves: bool,
}

/// Bytes that a sampled page takes.
pub const BYTES_PER_PAGE: usize = size_of::<Page>();
const _: () = assert!(BYTES_PER_PAGE == 24, "docs/detectors.md says so");

/// A page whose content changed while its bit said clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its address.
    pub address: u64,
    /// It was not told before.
    pub first: bool,
}

/// What one look at a sample found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Address space.
    pub birth: u64,
    /// Epoch that the sample was drawn in.
    pub epoch: u32,
    /// When it was over, monotonic.
    pub done_ns: u64,
    /// Pages compared for the first time, the changed ones included.
    pub compared: u64,
    /// Pages that have changed.
    pub changed: Vec<Changed>,
    /// Pages that left the sample, by [`LeftOut`].
    pub left_out: [u64; LeftOut::ALL.len()],
    /// The address space is gone.
    pub gone: bool,
}

/// What a look found of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Clean, read, clean.
    Content {
        digest: u64,
        zero: bool,
    },
    /// Not there now.
    Absent,
    Left(LeftOut),
    /// Neither time nor bytes were left.
    NotLookedAt,
}

/// The sample.
#[derive(Debug, Default)]
pub struct Sample {
    /// By address.
    pages: Vec<Page>,
    /// Where the next look begins: the last one had no time or bytes left.
    next: u64,
}

impl Sample {
    /// Draws at most `most` clean pages. Where all pieces fit, each page is as likely as the others; else pages of pieces
    /// with few clean ones are somewhat likelier.
    #[must_use]
    pub fn draw(watched: &mut dyn Watched, areas: &[Area], most: usize, means: &mut Means<'_>) -> Self {
        let mut drawn: Vec<Page> = Vec::new();
        let mut met = 0;
        let mut entries = [0; 512];
        for piece in pieces(areas, means) {
            if !means.has_time() {
                break;
            }
            let pages = usize::try_from(piece.range.len()).unwrap_or(0) / PAGE;
            let Some(entries) = entries.get_mut(..pages) else {
                continue;
            };
            if !watched.entries(piece.range.start, entries) {
                continue;
            }
            for (address, &entry) in (piece.range.start..).step_by(PAGE).zip(entries.iter()) {
                if state(entry, piece.shared) != State::Clean {
                    continue;
                }
                met += 1;
                let page = Page {
                    address,
                    digest: 0,
                    shared: piece.shared,
                    told: Told::Nothing,
                    leaves: true,
                };
                // Every page so far has the same chance to be among the drawn (algorithm R of Vitter).
                if drawn.len() < most {
                    drawn.push(page);
                } else if let Ok(place) = usize::try_from(means.random.below(met))
                    && let Some(place) = drawn.get_mut(place)
                {
                    *place = page;
                }
            }
        }
        drawn.sort_unstable_by_key(|page| page.address);
        look(watched, &mut drawn, means, |page, seen| {
            if let Seen::Content { digest, .. } = seen {
                page.digest = digest;
                page.leaves = false;
            }
        });
        drawn.retain(|page| !page.leaves);
        drawn.shrink_to_fit();
        Self {
            pages: drawn,
            next: 0,
        }
    }

    /// Pages in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Reads the pages again and compares them.
    pub fn compare(&mut self, watched: &mut dyn Watched, means: &mut Means<'_>) -> Reading {
        let mut reading = Reading::default();
        let first = self.pages.partition_point(|page| page.address < self.next);
        let (before, after) = self.pages.split_at_mut(first);
        let mut next = None;
        for pages in [after, before] {
            look(watched, pages, means, |page, seen| match seen {
                Seen::NotLookedAt => {
                    next.get_or_insert(page.address);
                }
                Seen::Absent => {}
                Seen::Left(why) => leave(page, why, &mut reading),
                Seen::Content { digest, .. } if digest == page.digest => compared(page, &mut reading),
                // Thrown away or written with zeros: nobody can tell.
                Seen::Content { zero: true, .. } => leave(page, LeftOut::Zeroed, &mut reading),
                Seen::Content { .. } => {
                    compared(page, &mut reading);
                    let first = std::mem::replace(&mut page.told, Told::Changed) != Told::Changed;
                    let address = page.address;
                    reading.changed.push(Changed { address, first });
                }
            });
        }
        reading.gone = !self.pages.is_empty()
            && reading.left_out[LeftOut::Unreadable as usize] == self.pages.len() as u64;
        self.next = next.unwrap_or(0);
        self.pages.retain(|page| !page.leaves);
        reading.changed.sort_unstable_by_key(|changed| changed.address);
        reading.done_ns = means.clock.monotonic_ns();
        reading
    }
}

fn compared(page: &mut Page, reading: &mut Reading) {
    if page.told == Told::Nothing {
        reading.compared += 1;
        page.told = Told::Compared;
    }
}

fn leave(page: &mut Page, why: LeftOut, reading: &mut Reading) {
    page.leaves = true;
    reading.left_out[why as usize] += 1;
}

/// The areas in pieces that lie in one page table each, or as many of them as are looked at.
fn pieces(areas: &[Area], means: &mut Means<'_>) -> Vec<Area> {
    let count = |area: &Area| {
        area.range
            .end
            .div_ceil(PIECE)
            .saturating_sub(area.range.start / PIECE)
    };
    let piece = |area: &Area, number: u64| {
        let start = (area.range.start / PIECE + number) * PIECE;
        Area {
            range: area.range.and(Range::of(start, PIECE)),
            shared: area.shared,
        }
    };
    let all: u64 = areas.iter().map(count).sum();
    if all <= PIECES {
        return areas
            .iter()
            .flat_map(|area| (0..count(area)).map(|number| piece(area, number)))
            .collect();
    }
    let chosen: BTreeSet<u64> = (0..PIECES).map(|_| means.random.below(all)).collect();
    let (mut chosen, mut before, mut found) = (chosen.into_iter().peekable(), 0, Vec::new());
    for area in areas {
        let end = before + count(area);
        while let Some(number) = chosen.next_if(|&number| number < end) {
            found.push(piece(area, number - before));
        }
        before = end;
    }
    found
}

/// Reads pages: the bits, the contents, the bits again, one page table after the other.
fn look(
    watched: &mut dyn Watched,
    pages: &mut [Page],
    means: &mut Means<'_>,
    mut visit: impl FnMut(&mut Page, Seen),
) {
    let mut content = vec![0; PAGE];
    let (mut before, mut after) = ([0; 512], [0; 512]);
    let mut seen = Vec::with_capacity(512);
    for group in pages.chunk_by_mut(|one, other| one.address / PIECE == other.address / PIECE) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            continue;
        };
        let start = first.address;
        let place = |page: &Page| usize::try_from(page.address - start).unwrap_or(0) / PAGE;
        let span = place(last) + 1;
        seen.clear();
        if !means.has_time() {
            seen.resize(group.len(), Seen::NotLookedAt);
        } else if !watched.entries(start, &mut before[..span]) {
            seen.resize(group.len(), Seen::Left(LeftOut::Unreadable));
        } else {
            for page in group.iter() {
                seen.push(match state(before[place(page)], page.shared) {
                    State::Clean if !means.may_read_a_page() => Seen::NotLookedAt,
                    State::Clean if !watched.content(page.address, &mut content) => {
                        Seen::Left(LeftOut::Unreadable)
                    }
                    State::Clean => Seen::Content {
                        digest: means.digests.of(&content),
                        zero: content.iter().all(|&byte| byte == 0),
                    },
                    other => without_content(other),
                });
            }
            let there = watched.entries(start, &mut after[..span]);
            for (page, seen) in group.iter().zip(&mut seen) {
                // Also of a page that could not be read: perhaps it was taken away.
                let read = !matches!(seen, Seen::NotLookedAt | Seen::Absent);
                *seen = match state(after[place(page)], page.shared) {
                    _ if !there => Seen::Left(LeftOut::Unreadable),
                    State::Clean => *seen,
                    other if read => without_content(other),
                    _ => *seen,
                };
            }
        }
        for (page, seen) in group.iter_mut().zip(&seen) {
            visit(page, *seen);
        }
    }
}

fn without_content(state: State) -> Seen {
    match state {
        State::Clean | State::Absent => Seen::Absent,
        State::Written => Seen::Left(LeftOut::Written),
        State::OtherPage => Seen::Left(LeftOut::OtherPage),
    }
}
