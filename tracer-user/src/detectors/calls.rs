//! What targets ask for that works on ranges, holes in files, and looks at what was moved.

use std::collections::BTreeSet;

use tracer_common::audit::{RangeCause, RangeRecord};

use super::Detectors;
use super::cause::Dropped;
use super::epoch::{BLIND_RANGES, Epoch};
use super::hazards;
use super::holes::{self, FileRange};
use super::ranges::Range;
use super::worked::{self, Remap, Work};

/// Clears under way whose blind memory is remembered.
const CLEARS_UNDER_WAY: usize = 1024;

impl Detectors {
    /// Takes in what worked on a range.
    pub(super) fn range(&mut self, record: &RangeRecord) {
        let Some(cause) = RangeCause::from_raw(record.cause) else {
            self.totals.late += 1;
            return;
        };
        match cause {
            RangeCause::FileHole => return self.hole(record),
            RangeCause::FileCollapse => return self.collapse(record),
            RangeCause::FileWrite => return self.file_written(record),
            RangeCause::WriteUnreturned => return self.write_unreturned(record),
            RangeCause::Blind => return self.blind(record),
            _ => {}
        }
        let range = worked::pages_of(record.start, record.length);
        let at_ns = record.header.time_ns;
        let space = self.spaces.entry(record.birth).or_default();
        if cause == RangeCause::Remap {
            for replaced in Remap::of(record).replaced() {
                space.merged.remove(replaced);
            }
        }
        let Some(epoch) = space.epoch(record.epoch) else {
            self.totals.late += 1;
            return;
        };
        let mut new = Vec::new();
        match cause {
            RangeCause::Remap => {
                let remap = Remap::of(record);
                epoch.note_move(remap.source, remap.moved_here);
                new = hazards::remap(epoch, &remap, at_ns);
                if remap.keeps_source {
                    epoch.drop_by(Work::DontunmapSource, remap.source);
                }
                if let Some(at_clear) = &mut epoch.at_clear {
                    for replaced in remap.replaced() {
                        at_clear.intact.remove(replaced);
                    }
                }
            }
            RangeCause::UserfaultMove => {
                epoch.note_move(worked::pages_of(record.from, record.length), range);
                hazards::userfault_move(epoch, range);
            }
            RangeCause::UserfaultZero => new = hazards::userfault_zero(epoch, range, at_ns),
            _ => {}
        }
        epoch.worked.take_in(record);
        // What this very call dropped: a second call on the same pages drops nothing that counts again.
        match cause {
            RangeCause::Advice => {
                if let Some(work) = Work::by_advice(record.detail) {
                    epoch.drop_by(work, range);
                }
            }
            RangeCause::UserfaultMove => epoch.drop_by(
                Work::UserfaultMovedAway,
                worked::pages_of(record.from, record.length),
            ),
            _ => {}
        }
        if matches!(cause, RangeCause::Remap | RangeCause::UserfaultMove) && !epoch.to_verify.is_empty() {
            self.moved.insert(record.birth);
        }
        self.totals.flush_dropped(epoch);
        self.totals.hazards(&new);
        self.touched.insert((record.birth, record.epoch));
    }

    /// Blind memory that a clear meets. Its own record comes when it is over, so the epoch may not be known yet.
    fn blind(&mut self, record: &RangeRecord) {
        if self.blind_ahead.len() >= CLEARS_UNDER_WAY {
            // Records of clears were lost, which the ledger tells.
            self.blind_ahead.pop_first();
            self.totals.late += 1;
        }
        let range = worked::pages_of(record.start, record.length);
        let ranges = self.blind_ahead.entry((record.birth, record.epoch)).or_default();
        ranges.insert_bounded(range, BLIND_RANGES);
    }

    /// A write fault that began in the record's epoch and whose end nobody has seen: in that one or in the next.
    fn write_unreturned(&mut self, record: &RangeRecord) {
        let Some(space) = self.spaces.get_mut(&record.birth) else {
            return;
        };
        let range = worked::pages_of(record.start, record.length);
        for number in [record.epoch, record.epoch.wrapping_add(1)] {
            // One that is finished was marked when it was: the fault was still under way then.
            let unfinished = space.epochs.get_mut(&number).filter(|epoch| !epoch.finished);
            let Some(epoch) = unfinished else { continue };
            epoch.write_unreturned(range);
            if number == record.epoch {
                // The record of the clear that is walking is still to come, perhaps.
                epoch.unreturned.insert_bounded(range, BLIND_RANGES);
            }
            self.touched.insert((record.birth, number));
        }
    }

    /// A hole in a file concerns every address space that maps it.
    fn hole(&mut self, record: &RangeRecord) {
        let hole = FileRange::of(record);
        for space in self.spaces.values_mut() {
            let Some(epoch) = space.newest().filter(|epoch| !epoch.finished) else {
                continue;
            };
            epoch.note_hole(hole);
            for range in mapped(epoch, &hole) {
                epoch.drop_range(Dropped::FileHole, range);
            }
            self.totals.flush_dropped(epoch);
        }
    }

    /// So does the collapse of a piece of a file: it takes the pages out of every page table, whether it succeeds or not.
    fn collapse(&mut self, record: &RangeRecord) {
        let piece = FileRange::of(record);
        for space in self.spaces.values_mut() {
            let Some(epoch) = space.newest().filter(|epoch| !epoch.finished) else {
                continue;
            };
            for range in mapped(epoch, &piece) {
                epoch.worked.note(Work::Collapse, range);
            }
        }
    }

    /// What somebody who read the pagemap of an address space in this epoch saw: whether the page is present (or
    /// swapped), and its bit. Only pages that were moved here matter.
    pub fn seen_in_pagemap(
        &mut self,
        birth: u64,
        epoch: u32,
        page: u64,
        present: bool,
        soft_dirty: bool,
        at_ns: u64,
    ) {
        if let Some(found) = self
            .spaces
            .get_mut(&birth)
            .and_then(|space| space.epochs.get_mut(&epoch))
            .filter(|epoch| epoch.is_open())
        {
            let new = hazards::verified(found, page, present, soft_dirty, at_ns);
            self.totals.hazards(&new);
            self.touched.insert((birth, epoch));
        }
    }

    /// Address spaces in which pages have been moved over others since the last call: somebody should look at
    /// [`Self::to_verify`], before the process is gone.
    pub fn take_moved(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.moved)
    }

    /// Ranges of the newest epoch of an address space that somebody should look at, because pages were moved there.
    #[must_use]
    pub fn to_verify(&self, birth: u64) -> Option<(u32, Vec<Range>)> {
        let (&number, epoch) = self.spaces.get(&birth)?.epochs.iter().next_back()?;
        (epoch.is_open() && !epoch.to_verify.is_empty()).then(|| (number, epoch.to_verify.iter().collect()))
    }
}

/// Where the clear met a part of a file.
fn mapped(epoch: &Epoch, part: &FileRange) -> Vec<Range> {
    let at_clear = epoch.at_clear.as_ref();
    at_clear.map_or_else(Vec::new, |at_clear| holes::holes_at(at_clear, part))
}
