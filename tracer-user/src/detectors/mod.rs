//! The detectors: from what the programs report to findings, causes and a verdict for each epoch.
//!
//! Records, the ledger and /proc come in through arguments and traits; everything here is pure. A module each:
//! [`cause`] the closed lists, [`exposed`] class A, [`lost`] class B, [`hazards`] classes C and D and the state of
//! whole VMAs, [`worked`] and [`holes`] which mechanism worked where, [`file_writes`] what was
//! written past the page tables, [`findings`] each page once under its strongest evidence,
//! [`verify`] what changed although it is clean, [`losses`] what was not seen, [`verdict`] the answer, [`incident`] what is told about it.
//!
//! Memory is bounded by [`Limits`]: page states over all epochs, ranges of each incident (joined over the smallest
//! gaps, so that they never say too little), and finished epochs, which go with those of the ledger.

mod brief;
mod calls;
mod cause;
mod epoch;
mod exposed;
mod file_writes;
mod findings;
mod hazards;
mod holes;
mod incident;
mod losses;
mod lost;
mod ranges;
mod tell;
#[cfg(test)]
mod tests;
mod verdict;
pub mod verify;
mod worked;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tracer_common::records::{Blind, CLEAR_TRACKED, ClearRecord, ExitRecord, Record, TrackRecord};
use tracer_common::tracked::ORIGIN_FORK;

pub use brief::{CauseBrief, EpochBrief, SpaceBrief};
pub use cause::{Cause, Class, Dropped, Evidence};
#[cfg(test)]
pub(crate) use incident::example;
pub use incident::{Bound, Hex, Incident, IncidentRange, Moment, SCHEMA, State, schema};
pub use losses::Sample;
pub use ranges::{Range, RangeSet};
pub use tell::{CauseFound, Detection, Reason, Summary};
pub use verdict::{LOSSES, Unknown, Verdict};
pub use worked::VmaAtClear;

use epoch::{Ending, Epoch, Opening};
use findings::Budget;
use hazards::born_writable;
use tell::Totals;
use worked::AtClear;

/// How long after its end an epoch is kept open for records that come late.
const GRACE_NS: u64 = 200_000_000;

/// How often what the ledger does not list any more is forgotten; it takes a look at everything that is kept.
const FORGETTING_NS: u64 = 2_000_000_000;

/// Bounds of the detectors' memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Chunks of 2 MiB whose pages are known one by one, over all epochs that are not finished; 512 bytes each.
    pub chunks: usize,
    /// Finished epochs whose incidents keep their ranges; some 4 KiB each, if they are scattered.
    pub detailed_epochs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            chunks: 65_536,
            detailed_epochs: 1_024,
        }
    }
}

/// What the detectors ask the ledger.
pub trait LedgerView {
    /// The VMAs that the clear met which opened this epoch; `None` if they are not all known.
    fn vmas_at_clear(&self, birth: u64, epoch: u32) -> Option<Vec<VmaAtClear>>;
    /// Whether this address space is live.
    fn is_live(&self, birth: u64) -> bool;
    /// Whether the ledger still lists this epoch.
    fn lists(&self, birth: u64, epoch: u32) -> bool;
    /// Live address spaces with the number of their newest epoch.
    fn live(&self) -> Vec<(u64, u32)>;
    /// The newest epoch that the last look at the rows met anything of in this address space.
    fn newest_met(&self, birth: u64) -> u32;
    /// Whose address space it is.
    fn describe(&self, birth: u64) -> Option<crate::ledger::Description>;
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Addresses.
    pub range: Range,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Inode number.
    pub inode: u64,
    /// Name, as the kernel prints it.
    pub path: Option<String>,
}

/// What is mapped where now, and under which name.
pub trait Mappings {
    /// The mappings of process `pid`, unless it is gone: a process that did not start at `start_ns` nanoseconds
    /// after the boot is another one.
    fn mappings(&self, pid: u32, start_ns: u64) -> Option<Vec<Mapping>>;
}

/// One address space.
#[derive(Debug, Default)]
struct Space {
    epochs: BTreeMap<u32, Epoch>,
    /// VMAs that have swallowed a range mapped after a clear, in any epoch.
    merged: RangeSet,
    /// Its finished epochs in numbers.
    finished: brief::Finished,
}

impl Space {
    fn newest(&mut self) -> Option<&mut Epoch> {
        self.epochs.values_mut().next_back()
    }

    /// The epochs that are not finished, newest first. None of them is older than one that is: epochs end in their
    /// order.
    fn unfinished(&self) -> impl Iterator<Item = (u32, &Epoch)> {
        let epochs = self.epochs.iter().rev();
        epochs
            .take_while(|(_, epoch)| !epoch.finished)
            .map(|(&number, epoch)| (number, epoch))
    }

    /// The epoch, made if no record told of it; `None` if it is finished.
    fn epoch(&mut self, number: u32) -> Option<&mut Epoch> {
        let newest = self.epochs.keys().next_back().copied().unwrap_or(0);
        if number > newest {
            self.epochs.insert(number, Epoch::new(Opening::Unseen));
        }
        self.epochs.get_mut(&number).filter(|epoch| !epoch.finished)
    }

    /// Ends every epoch before `number` that is open still.
    fn end_before(&mut self, number: u32, ending: Ending, at_ns: u64) {
        for (_, epoch) in self.epochs.range_mut(..number) {
            if epoch.is_open() {
                epoch.ending = Some((ending, at_ns));
                if ending == Ending::Unseen {
                    epoch.note_unknown(Unknown::EndUnseen, 1);
                }
            }
        }
    }
}

/// The detectors.
#[derive(Debug)]
pub struct Detectors {
    limits: Limits,
    spaces: BTreeMap<u64, Space>,
    budget: Budget,
    totals: Totals,
    losses: losses::State,
    /// Epochs whose incidents may have changed since they were told.
    touched: BTreeSet<(u64, u32)>,
    /// Address spaces with new ranges to verify.
    moved: BTreeSet<u64>,
    /// Blind memory that a clear has met whose own record is still to come: address space, and the epoch that it opens.
    blind_ahead: BTreeMap<(u64, u32), RangeSet>,
    /// What was written to files of late.
    file_writes: file_writes::Recent,
    /// See [`Self::take_finished`].
    just_finished: Vec<(u64, Verdict)>,
    /// When finished epochs were forgotten last.
    forgot_ns: u64,
    /// Finished epochs with ranges, oldest first.
    detailed: VecDeque<(u64, u32)>,
}

impl Detectors {
    /// Without anything found.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            spaces: BTreeMap::new(),
            budget: Budget { left: limits.chunks },
            totals: Totals::default(),
            losses: losses::State::default(),
            touched: BTreeSet::new(),
            moved: BTreeSet::new(),
            blind_ahead: BTreeMap::new(),
            file_writes: file_writes::Recent::default(),
            just_finished: Vec::new(),
            forgot_ns: 0,
            detailed: VecDeque::new(),
        }
    }

    /// Takes in one record. The ledger must have taken in this one and looked at the rows already.
    pub fn apply(&mut self, record: &Record, ledger: &dyn LedgerView) {
        match record {
            Record::Clear(clear) => self.clear(clear, ledger),
            Record::Track(track) => self.track(track),
            Record::Exit(exit) => self.exit(exit),
            Record::Pages(pages) => {
                let birth = pages.vma.key.birth;
                let whole = Range {
                    start: pages.vma.key.start,
                    end: pages.vma.end,
                };
                let space = self.spaces.entry(birth).or_default();
                let merged = born_writable(&pages.vma.key) && space.merged.overlaps(whole);
                let Some(epoch) = space.epoch(pages.epoch) else {
                    self.totals.late += 1;
                    return;
                };
                let counted = epoch.pages(pages, merged, &mut self.budget);
                self.totals.flush_dropped(epoch);
                self.totals.count(&counted);
                self.touched.insert((birth, pages.epoch));
            }
            Record::Vma(vma) => {
                let birth = vma.vma.key.birth;
                let space = self.spaces.entry(birth).or_default();
                let mut merged = std::mem::take(&mut space.merged);
                if let Some(epoch) = space.epoch(vma.epoch) {
                    let new = hazards::vma(epoch, vma, &mut merged);
                    if epoch.is_open() && !epoch.to_verify.is_empty() {
                        self.moved.insert(birth);
                    }
                    self.totals.hazards(&new);
                    self.touched.insert((birth, vma.epoch));
                } else {
                    self.totals.late += 1;
                }
                space.merged = merged;
            }
            Record::Range(range) => self.range(range),
            // exec ends an address space by its exit, and faults are counted in rows.
            Record::Exec(_) | Record::Fault(_) | Record::Interest(_) => {}
        }
    }

    fn clear(&mut self, clear: &ClearRecord, ledger: &dyn LedgerView) {
        if clear.status != CLEAR_TRACKED || clear.birth == 0 {
            return;
        }
        let space = self.spaces.entry(clear.birth).or_default();
        let number = clear.epoch;
        if let Some(closed) = number
            .checked_sub(1)
            .and_then(|before| space.epochs.get_mut(&before))
            && closed.is_open()
        {
            closed.ending = Some((Ending::Clear, clear.header.time_ns));
            let new = hazards::closing_clear(closed, number - 1, clear);
            self.totals.hazards(&new);
            self.touched.insert((clear.birth, number - 1));
        }
        space.end_before(number, Ending::Unseen, clear.header.time_ns);
        let aliased_before = space
            .newest()
            .map_or(0, |epoch| epoch.blind[Blind::WritableAlias as usize]);
        let shadow_stacks_before = space
            .newest()
            .and_then(|epoch| epoch.unknown.get(&Unknown::ShadowStack).copied())
            .unwrap_or(0);
        let unreturned_before = number
            .checked_sub(1)
            .and_then(|before| space.epochs.get(&before))
            .map(|before| before.unreturned.clone());
        let opening = Opening::Clear(Box::new(*clear));
        let epoch = match space.epochs.get_mut(&number) {
            // Something of it was met before its record.
            Some(epoch) if epoch.opening == Opening::Unseen && !epoch.finished => {
                epoch.opening = opening;
                epoch.blind = clear.blind_bytes;
                epoch.blind_nowhere = clear.direct_read_bytes;
                epoch.unknown.remove(&Unknown::OpeningUnseen);
                epoch
            }
            // Two records of one clear, or one that comes after everything is over.
            Some(_) => {
                self.totals.late += 1;
                return;
            }
            None => {
                let newest = space.epochs.keys().next_back().copied().unwrap_or(0);
                if number < newest {
                    self.totals.late += 1;
                    return;
                }
                space.epochs.entry(number).or_insert_with(|| Epoch::new(opening))
            }
        };
        epoch.blind_ranges = self
            .blind_ahead
            .remove(&(clear.birth, number))
            .unwrap_or_default();
        // Addresses that were lost on the way are not known either.
        let bytes: u64 = clear.blind_bytes.iter().sum();
        let placed = epoch.blind_ranges.bytes();
        epoch.blind_nowhere = clear.direct_read_bytes.max(bytes.saturating_sub(placed));
        epoch.at_clear = ledger.vmas_at_clear(clear.birth, number).map(AtClear::new);
        // Of clears that follow each other faster than rows are looked at, the newest is known; what was mapped
        // elsewhere before is taken to be so still.
        if let Some(ranges) = epoch.at_clear.as_ref().map(AtClear::aliased_ranges) {
            epoch.aliased(&ranges);
        } else {
            epoch.blind[Blind::WritableAlias as usize] += aliased_before;
            epoch.blind_nowhere += aliased_before;
        }
        let shadow_stacks = epoch
            .at_clear
            .as_ref()
            .map_or(shadow_stacks_before, AtClear::shadow_stacks);
        epoch.note_unknown(Unknown::ShadowStack, shadow_stacks);
        if let Some(before) = unreturned_before {
            for range in before.iter() {
                epoch.write_unreturned(range);
            }
        }
        let met_now = epoch.at_clear.clone();
        self.losses.note_start(epoch, clear.first_walk_ns);
        let mut new = hazards::opening_clear(epoch, clear);
        new.extend(self.file_writes.since(epoch, clear.first_walk_ns));
        if let Some(closed) = number
            .checked_sub(1)
            .and_then(|before| space.epochs.get_mut(&before))
            && let (Some(at_clear), Some(met_now)) = (&closed.at_clear, &met_now)
        {
            let gone = at_clear.aliased_and_gone(met_now);
            closed.not_aliased(&gone);
        }
        self.totals.hazards(&new);
        self.touched.insert((clear.birth, number));
    }

    fn track(&mut self, track: &TrackRecord) {
        let opening = if track.origin == ORIGIN_FORK {
            Opening::Fork
        } else {
            Opening::Adopted
        };
        // From now on the child writes the parent's shared memory through entries of its own.
        if track.origin == ORIGIN_FORK
            && let Some(epoch) = self
                .spaces
                .get_mut(&track.parent)
                .and_then(|space| space.epochs.get_mut(&track.parent_epoch))
                .filter(|epoch| epoch.is_open())
            && let Some(at_clear) = &epoch.at_clear
        {
            let shared = at_clear.shared_ranges();
            epoch.blind[Blind::WritableAlias as usize] = 0;
            epoch.aliased(&shared);
        }
        let space = self.spaces.entry(track.birth).or_default();
        let epoch = space.epochs.entry(1).or_insert_with(|| Epoch::new(opening));
        self.losses.note_start(epoch, track.header.time_ns);
    }

    fn exit(&mut self, exit: &ExitRecord) {
        self.blind_ahead.retain(|&(birth, _), _| birth != exit.birth);
        let space = self.spaces.entry(exit.birth).or_default();
        let at_ns = exit.header.time_ns;
        // The last epoch, even if its record never came.
        let _ = space.epoch(exit.epoch);
        space.end_before(exit.epoch, Ending::Unseen, at_ns);
        space.end_before(u32::MAX, Ending::Gone, at_ns);
        for &number in space.epochs.keys() {
            self.touched.insert((exit.birth, number));
        }
    }

    /// The epochs that have been finished since the last call: address space and verdict.
    pub fn take_finished(&mut self) -> Vec<(u64, Verdict)> {
        std::mem::take(&mut self.just_finished)
    }

    /// Whether an epoch waits for a full sample of losses to be finished.
    #[must_use]
    pub fn is_anything_over(&self, now_ns: u64) -> bool {
        self.spaces
            .values()
            .flat_map(Space::unfinished)
            .any(|(_, epoch)| epoch.is_over(now_ns))
    }

    /// Brings the detectors in line with the ledger and finishes what is over. To be called after
    /// [`Self::note_losses`] with a full sample, about once a second.
    pub fn settle(&mut self, ledger: &dyn LedgerView, now_ns: u64) {
        for (birth, newest) in ledger.live() {
            let space = self.spaces.entry(birth).or_default();
            if newest > 0
                && space
                    .epochs
                    .keys()
                    .next_back()
                    .is_none_or(|&known| known < newest)
            {
                let _ = space.epoch(newest);
                space.end_before(newest, Ending::Unseen, now_ns);
            }
        }
        let mut finished = Vec::new();
        for (&birth, space) in &mut self.spaces {
            if !ledger.is_live(birth) {
                space.end_before(u32::MAX, Ending::Unseen, now_ns);
            }
            let over = space.unfinished().filter(|(_, epoch)| epoch.is_over(now_ns));
            finished.extend(over.map(|(number, _)| (birth, number)));
        }
        // An older epoch ends first, and is counted first.
        finished.sort_unstable();
        for (birth, number) in finished {
            self.finish(birth, number);
        }
        if now_ns >= self.forgot_ns.saturating_add(FORGETTING_NS) {
            self.forgot_ns = now_ns;
            self.forget(ledger);
        }
    }

    fn finish(&mut self, birth: u64, number: u32) {
        let Some(space) = self.spaces.get_mut(&birth) else {
            return;
        };
        let Some(epoch) = space.epochs.get_mut(&number) else {
            return;
        };
        // Every walk reports what was moved without its bit: the one of the clear, and those of a tracker that read
        // pagemap before it. What no walk came to, no tracker was told of.
        if matches!(epoch.ending, Some((Ending::Clear | Ending::Gone, _))) {
            epoch.to_verify = RangeSet::default();
        } else if !epoch.to_verify.is_empty() {
            epoch.note_unknown(Unknown::MoveUnverified, 1);
        }
        epoch.note_unknown(Unknown::WriteUnreturned, self.losses.unreturned(birth, number));
        epoch.finish(&mut self.budget);
        for evidence in [Evidence::Exposed, Evidence::Observed, Evidence::Proved] {
            for (cause, pages) in epoch.standing_pages(evidence) {
                if cause == Cause::Unknown {
                    self.totals.pages(cause, evidence, pages);
                }
            }
        }
        self.totals.finished(epoch);
        self.just_finished.push((birth, epoch.verdict()));
        space.finished.note(number, epoch);
        self.touched.insert((birth, number));
        if epoch.has_ranges() {
            self.detailed.push_back((birth, number));
        }
        while self.detailed.len() > self.limits.detailed_epochs {
            if let Some((birth, number)) = self.detailed.pop_front()
                && let Some(epoch) = self
                    .spaces
                    .get_mut(&birth)
                    .and_then(|space| space.epochs.get_mut(&number))
            {
                epoch.give_up_ranges();
                self.totals.folded += 1;
            }
        }
    }

    /// Forgets finished epochs that the ledger does not list any more and that everything was told about.
    fn forget(&mut self, ledger: &dyn LedgerView) {
        let touched = &self.touched;
        self.spaces.retain(|&birth, space| {
            space.epochs.retain(|&number, epoch| {
                !epoch.finished || touched.contains(&(birth, number)) || ledger.lists(birth, number)
            });
            !space.epochs.is_empty() || ledger.is_live(birth)
        });
        let spaces = &self.spaces;
        self.detailed.retain(|(birth, number)| {
            spaces
                .get(birth)
                .is_some_and(|space| space.epochs.contains_key(number))
        });
    }
}
