//! A kernel in miniature for the tests: it counts in rows as the programs do, queues records as the ring buffer
//! does, and remembers the truth that the ledger must find.

#![allow(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "a tool of tests and measurements, whose own mistakes must stop them"
)]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use anyhow::{Result, ensure};
use tracer_common::audit::{PagesRecord, Reader, VmaFacts};
use tracer_common::classify::{Outcome, ProtectionState, VmaKind};
use tracer_common::counters::Stage;
use tracer_common::flags::{VM_READ, VM_SOFTDIRTY, VM_WRITE};
use tracer_common::pages::PageSet;
use tracer_common::records::{
    CLEAR_TRACKED, ClearRecord, ExecRecord, ExitRecord, Header, Record, TaskIdentity, TrackRecord,
};
use tracer_common::table::{VmaKey, VmaRow, clear_cell, clear_mark, epoch_cell};
use tracer_common::tracked::{ORIGIN_CLEAR, ORIGIN_FORK};

use super::counts::Counts;
use super::{Clock, LiveAddressSpaces, Losses, ProcessDetails, ProcessInfo, VmaTable};

/// The truth about one VMA state in one epoch: faults on PTEs and PMDs.
pub type Truth = BTreeMap<(u64, u32, VmaKey), (u64, u64)>;

struct SimulatedSpace {
    epoch: u32,
    owner: TaskIdentity,
    /// Number of VMAs, and for each a version that an mprotect raises.
    vmas: Vec<u64>,
    tracked: bool,
}

/// A fault that has entered and has not returned.
struct InFlight {
    birth: u64,
    epoch: u32,
    key: VmaKey,
    slot: Option<u32>,
    huge: bool,
    entered: u64,
}

/// A kernel in miniature.
pub struct Kernel {
    /// Its monotonic clock.
    pub now: u64,
    rows: Vec<VmaRow>,
    free: Vec<u32>,
    index: HashMap<VmaKey, u32>,
    spaces: BTreeMap<u64, SimulatedSpace>,
    in_flight: Vec<InFlight>,
    ring: VecDeque<Record>,
    ring_capacity: usize,
    next_pid: u32,
    /// What each VMA state counted in each epoch.
    pub truth: Truth,
    /// What the kernel's own counters show.
    pub counters: Counts,
    /// Of these, what no row could be found for.
    pub unlinked: Counts,
    /// What was lost.
    pub stages: BTreeMap<Stage, u64>,
}

/// The kernel, shared between the test and the traits that the ledger calls.
#[derive(Clone)]
pub struct Shared(pub Rc<RefCell<Kernel>>);

impl Kernel {
    /// A kernel with room for so many rows and records.
    pub fn new(rows: u32, ring_capacity: usize) -> Self {
        Self {
            now: 5_000_000_000,
            rows: vec![VmaRow::default(); rows as usize],
            free: (0..rows).rev().collect(),
            index: HashMap::new(),
            spaces: BTreeMap::new(),
            in_flight: Vec::new(),
            ring: VecDeque::new(),
            ring_capacity,
            next_pid: 100,
            truth: Truth::new(),
            counters: Counts::default(),
            unlinked: Counts::default(),
            stages: BTreeMap::new(),
        }
    }

    fn header(&self) -> Header {
        Header {
            time_ns: self.now,
            ..Header::default()
        }
    }

    #[allow(
        clippy::large_types_passed_by_value,
        reason = "the queue takes the record over"
    )]
    fn submit(&mut self, record: Record) {
        if self.ring.len() < self.ring_capacity {
            self.ring.push_back(record);
        } else {
            *self.stages.entry(Stage::RingFull).or_default() += 1;
        }
    }

    fn birth(&mut self) -> u64 {
        self.now += 4096;
        self.now
    }

    fn nth(&self, at: usize) -> Option<u64> {
        let live = self.spaces.len();
        (live > 0).then(|| *self.spaces.keys().nth(at % live).unwrap())
    }

    fn key(&self, birth: u64, vma: usize) -> VmaKey {
        let space = &self.spaces[&birth];
        let vma = vma % space.vmas.len();
        let version = space.vmas[vma];
        VmaKey {
            birth,
            start: 0x1000 * (vma as u64 + 1),
            // Every third VMA of the first version is not reached by any clear yet.
            flags: VM_READ
                | VM_WRITE
                | if version == 0 && vma % 3 == 2 {
                    VM_SOFTDIRTY
                } else {
                    0
                },
            page_prot: version << 12 | u64::from(vma % 2 == 1) << 1,
        }
    }

    fn row(&mut self, key: VmaKey) -> Option<u32> {
        if let Some(&slot) = self.index.get(&key) {
            return Some(slot);
        }
        let Some(slot) = self.free.pop() else {
            *self.stages.entry(Stage::RowsFull).or_default() += 1;
            return None;
        };
        self.rows[slot as usize] = VmaRow {
            key,
            end: key.start + 0x1000,
            kind: u32::try_from(key.start >> 12).unwrap() % 4,
            ..VmaRow::default()
        };
        self.index.insert(key, slot);
        Some(slot)
    }

    /// A new process with `vmas` VMAs; it is not tracked before its first clear.
    pub fn spawn(&mut self, vmas: usize) {
        let birth = self.birth();
        self.next_pid += 1;
        let owner = TaskIdentity {
            pid: self.next_pid,
            initial_pid: self.next_pid,
            start_ns: birth,
            ..TaskIdentity::default()
        };
        let space = SimulatedSpace {
            epoch: 0,
            owner,
            vmas: vec![0; vmas],
            tracked: false,
        };
        self.spaces.insert(birth, space);
    }

    /// A clear of the process in this place.
    pub fn clear(&mut self, at: usize, tracker: u32) {
        let Some(birth) = self.nth(at) else { return };
        // A fault holds its VMA's lock, so the clear waits for those of its own epoch; that one epoch may
        // pass is more than any kernel allows.
        let epoch = self.spaces[&birth].epoch;
        self.finish(|fault| fault.birth == birth && fault.epoch < epoch);
        let space = self.spaces.get_mut(&birth).unwrap();
        space.epoch += 1;
        space.tracked = true;
        let (epoch, owner, vmas) = (space.epoch, space.owner, space.vmas.len());
        let entry_ns = self.now;
        self.now += 10;
        let first_walk_ns = self.now;
        for vma in 0..vmas {
            let space = self.spaces.get_mut(&birth).unwrap();
            if vma % 3 == 2 && space.vmas[vma] == 0 {
                space.vmas[vma] = 1;
            }
            let key = self.key(birth, vma);
            if let Some(slot) = self.row(key) {
                let row = &mut self.rows[slot as usize];
                row.armed_epoch = epoch;
                row.clears[clear_cell(epoch)] = clear_mark(row.end, epoch);
            }
        }
        self.now += 10;
        let record = ClearRecord {
            header: self.header(),
            birth,
            result: 1,
            entry_ns,
            first_walk_ns,
            armed_bytes: 0x1000 * vmas as u64,
            epoch,
            vmas: u32::try_from(vmas).unwrap(),
            status: CLEAR_TRACKED,
            origin: ORIGIN_CLEAR,
            tracker: TaskIdentity {
                initial_pid: tracker,
                ..TaskIdentity::default()
            },
            target: owner,
            ..ClearRecord::default()
        };
        self.submit(Record::Clear(record));
    }

    /// A fault enters; `finish` lets it return at once.
    pub fn fault(&mut self, at: usize, vma: usize, huge: bool, finish: bool) {
        let Some(birth) = self.nth(at) else { return };
        if !self.spaces[&birth].tracked {
            return;
        }
        let key = self.key(birth, vma);
        let epoch = self.spaces[&birth].epoch;
        let slot = self.row(key);
        if let Some(slot) = slot {
            let row = &mut self.rows[slot as usize];
            row.last_fault_epoch = row.last_fault_epoch.max(epoch);
        }
        let fault = InFlight {
            birth,
            epoch,
            key,
            slot,
            huge,
            entered: self.now,
        };
        if finish {
            self.count(&fault);
        } else {
            self.in_flight.push(fault);
        }
    }

    fn count(&mut self, fault: &InFlight) {
        let state = ProtectionState::of(fault.key.page_prot);
        let kind = VmaKind::from_raw(u8::try_from((fault.key.start >> 12) % 4).unwrap()).unwrap();
        let mut one = Counts::default();
        if fault.key.flags & VM_SOFTDIRTY != 0 {
            let mut outcomes = [0; Outcome::ALL.len()];
            outcomes[Outcome::NotArmed as usize] = 1;
            one.add_outcomes(&outcomes);
        } else if fault.huge {
            one.add_huge_faults(state, 1);
        } else {
            one.add_faults(kind, state, 1);
        }
        self.counters.add(&one);
        let Some(slot) = fault.slot else {
            self.unlinked.add(&one);
            return;
        };
        let row = &mut self.rows[slot as usize];
        assert_eq!(
            row.key, fault.key,
            "a row was recycled while a program could still count in it"
        );
        row.faults[epoch_cell(fault.epoch)] += one.faults();
        row.huge_faults[epoch_cell(fault.epoch)] += one.huge_faults();
        row.outcomes[Outcome::NotArmed as usize] += one.outcomes()[Outcome::NotArmed as usize];
        let truth = self
            .truth
            .entry((fault.birth, fault.epoch, fault.key))
            .or_default();
        truth.0 += one.faults();
        truth.1 += one.huge_faults();
    }

    fn finish(&mut self, which: impl Fn(&InFlight) -> bool) {
        let (done, rest) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition(|fault| which(fault));
        self.in_flight = rest;
        for fault in &done {
            self.count(fault);
        }
    }

    /// A successful mprotect.
    pub fn mprotect(&mut self, at: usize, vma: usize) {
        let Some(birth) = self.nth(at) else { return };
        if !self.spaces[&birth].tracked {
            return;
        }
        let space = self.spaces.get_mut(&birth).unwrap();
        let vma = vma % space.vmas.len();
        space.vmas[vma] += 1;
        let epoch = space.epoch;
        let key = self.key(birth, vma);
        let mut one = Counts::default();
        one.add_mprotects(1);
        self.counters.add(&one);
        if let Some(slot) = self.row(key) {
            let row = &mut self.rows[slot as usize];
            row.mprotect_epoch = epoch;
            row.mprotect_changes |= 1;
            row.mprotects += 1;
        } else {
            self.unlinked.add(&one);
        }
    }

    /// A fork of a tracked process.
    pub fn fork(&mut self, at: usize) {
        let Some(parent) = self.nth(at) else { return };
        if !self.spaces[&parent].tracked {
            return;
        }
        let vmas = self.spaces[&parent].vmas.len();
        let parent_epoch = self.spaces[&parent].epoch;
        self.spawn(vmas);
        let birth = *self.spaces.keys().next_back().unwrap();
        let space = self.spaces.get_mut(&birth).unwrap();
        (space.tracked, space.epoch) = (true, 1);
        let target = space.owner;
        let record = TrackRecord {
            header: self.header(),
            birth,
            parent,
            parent_epoch,
            origin: ORIGIN_FORK,
            target,
        };
        self.submit(Record::Track(record));
    }

    /// The audit finds the first `pages` pages of the first VMA exposed.
    pub fn expose(&mut self, at: usize, pages: usize) {
        let Some(birth) = self.nth(at) else { return };
        let exposed = PageSet::range(1, pages);
        let key = self.key(birth, 0);
        let record = PagesRecord {
            header: self.header(),
            vma: VmaFacts {
                key,
                end: key.start + pages as u64 * 4096,
                ..VmaFacts::default()
            },
            address: 0,
            epoch: self.spaces[&birth].epoch,
            reader: Reader::Own as u32,
            looked_at: exposed,
            exposed,
            ..bytemuck::Zeroable::zeroed()
        };
        self.submit(Record::Pages(record));
    }

    /// The process ends, by exec or by exit.
    pub fn end(&mut self, at: usize, by_exec: bool) {
        let Some(birth) = self.nth(at) else { return };
        let space = self.spaces.remove(&birth).unwrap();
        if !space.tracked {
            return;
        }
        let header = self.header();
        if by_exec {
            let task = space.owner;
            self.submit(Record::Exec(ExecRecord { header, birth, task }));
        }
        let epoch = space.epoch;
        let padding = 0;
        self.submit(Record::Exit(ExitRecord {
            header,
            birth,
            epoch,
            padding,
        }));
    }

    /// Time passes; no fault takes as long as the ledger's grace period.
    pub fn pass(&mut self, ns: u64) {
        let end = self.now + ns;
        let oldest = end.saturating_sub(50_000_000);
        self.finish(|fault| fault.entered < oldest);
        self.now = end;
    }

    /// Every fault returns.
    pub fn finish_all(&mut self) {
        self.finish(|_| true);
    }

    /// The oldest records of the ring buffer.
    pub fn take_records(&mut self, count: usize) -> Vec<Record> {
        let count = count.min(self.ring.len());
        self.ring.drain(..count).collect()
    }

    /// What was lost, as the daemon reads it.
    pub fn losses(&self) -> Losses {
        Losses {
            stages: self.stages.clone(),
            ..Losses::default()
        }
    }

    /// Rows that are not in use.
    pub fn free_rows(&self) -> usize {
        self.free.len()
    }
}

impl VmaTable for Shared {
    fn capacity(&self) -> u32 {
        u32::try_from(self.0.borrow().rows.len()).unwrap()
    }

    fn row(&self, slot: u32) -> VmaRow {
        self.0.borrow().rows[slot as usize]
    }

    fn for_each_used(&self, visit: &mut dyn FnMut(u32, &VmaRow)) {
        // As the daemon does: a word of each row tells whether it is in use, and only those are copied.
        for slot in 0..self.capacity() {
            if self.0.borrow().rows[slot as usize].key.birth != 0 {
                visit(slot, &self.row(slot));
            }
        }
    }

    fn retire(&mut self, slot: u32, key: &VmaKey) -> Result<()> {
        let mut kernel = self.0.borrow_mut();
        ensure!(
            kernel.index.remove(key) == Some(slot),
            "the key is not in the index"
        );
        Ok(())
    }

    fn recycle(&mut self, slot: u32) -> Result<()> {
        let mut kernel = self.0.borrow_mut();
        ensure!(!kernel.free.contains(&slot), "the row is free already");
        kernel.rows[slot as usize] = VmaRow::default();
        kernel.free.push(slot);
        Ok(())
    }
}

impl LiveAddressSpaces for Shared {
    fn live_births(&mut self) -> Result<Vec<u64>> {
        let kernel = self.0.borrow();
        Ok(kernel
            .spaces
            .iter()
            .filter(|(_, space)| space.tracked)
            .map(|(&birth, _)| birth)
            .collect())
    }
}

impl Clock for Shared {
    fn monotonic_ns(&self) -> u64 {
        self.0.borrow().now
    }

    fn unix_ns(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns + 1_800_000_000_000_000_000
    }
}

impl ProcessInfo for Shared {
    fn look_up(&self, pid: u32, start_ns: u64) -> Option<ProcessDetails> {
        let kernel = self.0.borrow();
        let lives = kernel
            .spaces
            .values()
            .any(|space| (space.owner.pid, space.owner.start_ns) == (pid, start_ns));
        lives.then(|| ProcessDetails {
            comm: format!("task-{pid}"),
            cgroup: "/test.slice".to_owned(),
        })
    }
}
