//! The ledger: address spaces, their epochs, and the VMAs in each epoch with what they counted.
//!
//! Records tell of clears, forks, execs and exits; the table of VMA rows tells what was counted. The ledger
//! joins the two. It is pure: records, table, clock and /proc come in through traits. Its memory is bounded by
//! [`Limits`]; what is given up for that stays in the sums.
//!
//! The sum over the ledger (open, closed, folded, pending) plus the faults that the programs could link to no
//! row equals the kernel's counters, always.

pub mod brief;
mod counts;
pub mod dump;
mod epoch;
mod limits;
mod loss;
mod newest;
mod release;
mod rows;
#[cfg(any(test, feature = "simulation"))]
pub mod simulated;
mod slots;
mod snapshot;
mod sources;
mod space;
#[cfg(test)]
mod tests;
mod view;
mod workloads;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

pub use counts::{Counts, fault_counter, fault_kind_labels};
pub use epoch::EndReason;
pub use limits::{LimitError, Limits};
pub use loss::{Incompleteness, Losses};
pub use newest::{KnownVma, Newest};
pub(crate) use snapshot::{CLEAR_RESULTS, clear_result, clear_times};
pub use snapshot::{Summary, Surroundings};
pub use sources::{Clock, LiveAddressSpaces, ProcessDetails, ProcessInfo, VmaTable};
pub use space::Origin;
use tracer_common::records::{CLEAR_TRACKED, ClearRecord, Record, TaskIdentity, TrackRecord};
use tracer_common::table::{CLEAR_MARKS, VmaRow};
use tracer_common::tracked::ORIGIN_FORK;
pub use view::Description;
pub use workloads::{Measure, Measured, Tally};

use epoch::Opening;
use release::is_stale;
use rows::{RowState, RowView};
use slots::Slots;
use space::{Ends, Phase, Space};

/// How long after an exit counts are still taken in: a return probe that was entered before may come late.
const EXIT_GRACE_NS: u64 = 100_000_000;
/// How long a record may stay away before what it would have told is taken from the rows. A clear's record comes
/// at its end, and the clear of a terabyte takes seconds.
const RECORD_GRACE_NS: u64 = 10_000_000_000;
/// Times that /proc is asked about a process.
const LOOK_UPS: u8 = 3;

/// Clears that opened no epoch and are shown in the dump.
const OTHER_CLEARS: usize = 64;

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    limits: Limits,
    /// In boxes: a look at the rows searches this tree once for each row, and so it fits into the cache.
    spaces: BTreeMap<u64, Box<Space>>,
    ids: HashMap<u64, u64>,
    next_id: u64,
    /// Ended address spaces, oldest first.
    ended: VecDeque<u64>,
    rows: Slots<RowState>,
    /// What the last look at all rows left to do.
    left: Left,
    /// Address spaces that were cleared since their rows were looked at.
    cleared: HashSet<u64>,
    /// Number of the last look at all rows.
    looks: u64,
    ends: [u64; EndReason::ALL.len()],
    folded: Counts,
    folded_spaces: u64,
    folded_epochs: u64,
    folded_vmas: u64,
    other_clears: VecDeque<ClearRecord>,
    departed: workloads::Departed,
    loss: loss::State,
}

/// What a look at all rows leaves to do, so that it is the only one that goes through them all.
#[derive(Debug, Default)]
struct Left {
    /// Rows that may be retired or recycled.
    rows: Vec<u32>,
    /// Address spaces that rows tell of and no record does.
    strangers: HashSet<u64>,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            spaces: BTreeMap::new(),
            ids: HashMap::new(),
            next_id: 1,
            ended: VecDeque::new(),
            rows: Slots::new(),
            left: Left::default(),
            cleared: HashSet::new(),
            looks: 0,
            ends: [0; EndReason::ALL.len()],
            folded: Counts::default(),
            folded_spaces: 0,
            folded_epochs: 0,
            folded_vmas: 0,
            other_clears: VecDeque::new(),
            departed: workloads::Departed::default(),
            loss: loss::State::default(),
        }
    }

    /// Takes in one record, at `now_ns` of the monotonic clock.
    pub fn apply(&mut self, record: &Record, processes: &dyn ProcessInfo, now_ns: u64) {
        let mut ends = Ends::new();
        match record {
            Record::Clear(clear) => self.clear(clear, processes, &mut ends),
            Record::Track(track) => self.track(track, processes, &mut ends),
            Record::Exec(exec) => self.space(exec.birth).exec(&exec.task, exec.header.time_ns),
            Record::Exit(exit) => {
                self.space(exit.birth)
                    .exit(Some(exit.epoch), exit.header.time_ns, now_ns, &mut ends);
            }
            // Shown to the user, or for the detectors; see `commands::agent`.
            Record::Fault(_) | Record::Pages(_) | Record::Vma(_) | Record::Range(_) | Record::Interest(_) => {
            }
        }
        self.count_ends(&ends);
    }

    fn clear(&mut self, clear: &ClearRecord, processes: &dyn ProcessInfo, ends: &mut Ends) {
        if clear.status != CLEAR_TRACKED || clear.birth == 0 {
            if self.other_clears.len() == OTHER_CLEARS {
                self.other_clears.pop_front();
            }
            self.other_clears.push_back(*clear);
            return;
        }
        self.cleared.insert(clear.birth);
        let space = self.space(clear.birth);
        if space.origin == Origin::Unknown {
            space.origin = Origin::of(clear.origin);
        }
        own(space, &clear.target, processes);
        let opening = Opening::Clear(Box::new(*clear));
        if !space.open(clear.epoch, opening, clear.header.time_ns, ends) {
            self.loss.inconsistent += 1;
        }
    }

    fn track(&mut self, track: &TrackRecord, processes: &dyn ProcessInfo, ends: &mut Ends) {
        let space = self.space(track.birth);
        space.origin = Origin::of(track.origin);
        space.parent_birth = track.parent;
        space.parent_epoch = track.parent_epoch;
        own(space, &track.target, processes);
        let at_ns = track.header.time_ns;
        let opening = if track.origin == ORIGIN_FORK {
            Opening::Fork(at_ns)
        } else {
            Opening::Adopted(at_ns)
        };
        if !space.open(1, opening, at_ns, ends) {
            self.loss.inconsistent += 1;
        }
    }

    /// Looks at the rows of those address spaces that were cleared since the last look: before the next clear, which
    /// takes the marks of this one from the rows, and before eight clears have used every cell of a row. All other
    /// rows can wait for [`Self::look`]: their counters only grow, and nothing else tells their epochs apart.
    pub fn look_at_cleared(&mut self, table: &dyn VmaTable, now_ns: u64) {
        let births = std::mem::take(&mut self.cleared);
        if births.is_empty() {
            return;
        }
        for &birth in &births {
            if let Some(space) = self.known(birth) {
                space.met_epoch = 0;
            }
        }
        table.for_each_of(&births, &mut |slot, row| {
            self.take_in(slot, row, table, now_ns);
        });
        let mut ends = Ends::new();
        for birth in births {
            let Some(space) = self.ids.get(&birth).and_then(|id| self.spaces.get_mut(id)) else {
                continue;
            };
            if settle(space, now_ns, &mut ends) {
                self.ended.push_back(space.id);
            }
        }
        self.count_ends(&ends);
    }

    /// Looks at the whole table: takes in what was counted, settles, releases rows and memory. To be called after
    /// the records that are there have been applied, at least once a second and before every dump.
    /// Returns what went wrong when rows were released; they are tried again the next time.
    pub fn look<K: VmaTable + LiveAddressSpaces>(
        &mut self,
        kernel: &mut K,
        processes: &dyn ProcessInfo,
        now_ns: u64,
    ) -> Vec<anyhow::Error> {
        let mut ends = Ends::new();
        let mut errors = self.reconcile(kernel, now_ns, &mut ends);
        self.scan(kernel, now_ns);
        for space in self.spaces.values_mut() {
            if settle(space, now_ns, &mut ends) {
                self.ended.push_back(space.id);
            }
        }
        // After settling: an epoch must meet one scan before it can settle.
        self.note_gaps(now_ns);
        self.count_ends(&ends);
        errors.extend(self.release_rows(kernel, now_ns));
        self.fold();
        for space in self
            .spaces
            .values_mut()
            .filter(|space| space.phase == Phase::Live)
        {
            look_up(space, processes);
        }
        errors
    }

    /// The address space with this birth, made if there is none.
    fn space(&mut self, birth: u64) -> &mut Space {
        let id = *self.ids.entry(birth).or_insert(self.next_id);
        if id == self.next_id {
            self.next_id += 1;
        }
        self.spaces
            .entry(id)
            .or_insert_with(|| Box::new(Space::new(id, birth)))
    }

    /// Whether a record has told of this address space, and it has not been given up to save memory.
    #[must_use]
    pub fn knows(&self, birth: u64) -> bool {
        self.ids.contains_key(&birth)
    }

    fn known(&mut self, birth: u64) -> Option<&mut Space> {
        self.spaces.get_mut(self.ids.get(&birth)?).map(Box::as_mut)
    }

    fn count_ends(&mut self, ends: &Ends) {
        for reason in ends {
            if let Some(at) = EndReason::ALL.iter().position(|other| other == reason) {
                self.ends[at] += 1;
            }
        }
    }

    fn scan(&mut self, table: &dyn VmaTable, now_ns: u64) {
        self.cleared.clear();
        for space in self.spaces.values_mut() {
            space.met_epoch = 0;
            space.rows = 0;
        }
        self.looks += 1;
        let mut left = std::mem::take(&mut self.left);
        left.rows.clear();
        left.strangers.clear();
        table.for_each_used(&mut |slot, row| {
            let (state, space) = self.take_in(slot, row, table, now_ns);
            match space {
                Some(space) => {
                    space.rows += 1;
                    if state.retired_at.is_some() || is_stale(state.met_epoch, space) || !space.is_live() {
                        left.rows.push(slot);
                    }
                }
                None if now_ns >= state.first_met + RECORD_GRACE_NS => {
                    left.strangers.insert(state.birth);
                }
                None => {}
            }
        });
        self.left = left;
        // Only `recycle` empties a row, and it forgets the row's state at the same time.
        let (before, looks) = (self.rows.len(), self.looks);
        self.rows.retain(|state| state.look == looks);
        self.loss.inconsistent += (before - self.rows.len()) as u64;
    }

    /// Takes in one row; returns what is known of it now, and its address space if a record has told of that.
    fn take_in(
        &mut self,
        slot: u32,
        row: &VmaRow,
        table: &dyn VmaTable,
        now_ns: u64,
    ) -> (&mut RowState, Option<&mut Space>) {
        let birth = row.key.birth;
        let state = self.rows.entry(slot, || RowState::new(birth, now_ns));
        let mut new = state.has_new(row);
        if state.birth != birth || (new && state.went_back(row)) {
            self.loss.inconsistent += 1;
            *state = RowState::new(birth, now_ns);
            new = state.has_new(row);
        }
        state.look = self.looks;
        if state.space == 0 {
            state.space = self.ids.get(&birth).copied().unwrap_or(0);
        }
        // An address space that has rows is never given up, so the number stays right.
        let Some(space) = self.spaces.get_mut(&state.space) else {
            state.set_pending(row);
            return (state, None);
        };
        if !new {
            state.meet(row, space);
            return (state, Some(space));
        }
        let everything = match space.phase {
            Phase::Live => false,
            Phase::Ending { since_ns, .. } => now_ns >= since_ns + EXIT_GRACE_NS,
            Phase::Ended { .. } => true,
        };
        let again = table.row(slot);
        let view = RowView {
            counted: row,
            numbered: &again,
        };
        state.meet(&again, space);
        state.absorb(&view, space, everything);
        (state, Some(space))
    }
}

/// Settles what can be settled after a look at the rows of an address space. Returns whether the address space has
/// just ended for good.
fn settle(space: &mut Space, now_ns: u64, ends: &mut Ends) -> bool {
    let newest = space.newest();
    space.looked_at = newest;
    // The rows of a process that has just gone are there still, and no clear comes any more that could change them. A clear's
    // marks stay in the rows until that many others have come.
    if !matches!(space.phase, Phase::Ended { .. }) {
        let marks = u32::try_from(CLEAR_MARKS).unwrap_or(1);
        let met = space.met_epoch;
        for epoch in space.epochs.iter_mut().rev().take(CLEAR_MARKS) {
            epoch.vmas_complete |= !epoch.settled && met < epoch.number.saturating_add(marks);
        }
    }
    let (over, ended) = match space.phase {
        Phase::Ending { at_ns, since_ns } if now_ns >= since_ns + EXIT_GRACE_NS => {
            space.phase = Phase::Ended { at_ns };
            (true, true)
        }
        Phase::Ended { .. } => (true, false),
        Phase::Live | Phase::Ending { .. } => (false, false),
    };
    space.settle(over, now_ns, ends);
    ended
}

/// Notes whose address space it is.
fn own(space: &mut Space, target: &TaskIdentity, processes: &dyn ProcessInfo) {
    if space.owner.is_none() && target.initial_pid != 0 {
        space.owner = Some(*target);
        look_up(space, processes);
    }
}

fn look_up(space: &mut Space, processes: &dyn ProcessInfo) {
    if let Some(owner) = &space.owner
        && space.details.is_none()
        && space.look_ups < LOOK_UPS
        && owner.pid != 0
    {
        space.look_ups += 1;
        space.details = processes.look_up(owner.pid, owner.start_ns);
    }
}
