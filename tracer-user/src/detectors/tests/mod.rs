//! Stories: what the programs report, in the order in which it happens, and what must come of it.

mod again;
mod any_order;
mod complete;
mod file_writes;
mod found;
mod hazards;
mod verify;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use tracer_common::audit::{
    PagesRecord, RangeCause, RangeRecord, Reader, VMA_BORN_WRITABLE, VMA_CHANGED, VmaFacts, VmaRecord,
};
use tracer_common::classify::VmaKind;
use tracer_common::counters::Stage;
use tracer_common::flags::{PTE_WRITE, VM_READ, VM_SHARED, VM_WRITE};
use tracer_common::pages::{PageCause, PageSet, cause_mark};
use tracer_common::records::{Blind, ClearRecord, ExitRecord, Header, Record, TaskIdentity, TrackRecord};
use tracer_common::table::VmaKey;
use tracer_common::tracked::{ORIGIN_ADOPTED, ORIGIN_FORK};

use super::tell::Detection;
use super::*;
use crate::ledger::{Clock, Description};

const BIRTH: u64 = 0x1000;
const CHUNK: u64 = 0x4000_0000;
const PAGE: u64 = 4096;

/// The ledger and /proc as far as the detectors ask.
#[derive(Default)]
struct World {
    at_clear: BTreeMap<(u64, u32), Vec<VmaAtClear>>,
    live: BTreeMap<u64, u32>,
    unlisted: BTreeSet<(u64, u32)>,
    mappings: Option<Vec<Mapping>>,
    newest_met: u32,
    asked: RefCell<u32>,
}

impl LedgerView for World {
    fn vmas_at_clear(&self, birth: u64, epoch: u32) -> Option<Vec<VmaAtClear>> {
        self.at_clear.get(&(birth, epoch)).cloned()
    }
    fn is_live(&self, birth: u64) -> bool {
        self.live.contains_key(&birth)
    }
    fn lists(&self, birth: u64, epoch: u32) -> bool {
        !self.unlisted.contains(&(birth, epoch))
    }
    fn live(&self) -> Vec<(u64, u32)> {
        self.live.iter().map(|(&birth, &epoch)| (birth, epoch)).collect()
    }
    fn newest_met(&self, _birth: u64) -> u32 {
        self.newest_met
    }
    fn describe(&self, _birth: u64) -> Option<Description> {
        Some(Description {
            id: 1,
            owner: Some(task(50)),
            details: None,
        })
    }
}

impl Mappings for World {
    fn mappings(&self, pid: u32, _start_ns: u64) -> Option<Vec<Mapping>> {
        assert_eq!(pid, 50);
        *self.asked.borrow_mut() += 1;
        self.mappings.clone()
    }
}

impl Clock for World {
    fn monotonic_ns(&self) -> u64 {
        0
    }
    fn unix_ns(&self, monotonic_ns: u64) -> u64 {
        1_000_000_000_000 + monotonic_ns
    }
}

fn task(pid: u32) -> TaskIdentity {
    TaskIdentity {
        pid,
        initial_pid: pid,
        start_ns: u64::from(pid) * 1000,
        ..TaskIdentity::default()
    }
}

struct Story {
    detectors: Detectors,
    world: World,
    now: u64,
}

impl Story {
    fn new() -> Self {
        let mut story = Self {
            detectors: Detectors::new(Limits::default()),
            world: World::default(),
            now: 1_000_000_000,
        };
        story.detectors.note_losses(&Sample::default());
        story
    }

    fn header(&mut self) -> Header {
        self.now += 1000;
        Header {
            time_ns: self.now,
            ..Header::default()
        }
    }

    fn apply(&mut self, record: &Record) {
        self.detectors.apply(record, &self.world);
    }

    /// A clear that opens `epoch` and meets these VMAs.
    fn clear_with(&mut self, epoch: u32, vmas: Vec<VmaAtClear>, change: impl FnOnce(&mut ClearRecord)) {
        let header = self.header();
        let mut clear = ClearRecord {
            header,
            birth: BIRTH,
            result: 1,
            entry_ns: header.time_ns - 500,
            first_walk_ns: header.time_ns - 400,
            epoch,
            vmas: 20,
            tracker: task(7),
            target: task(50),
            ..ClearRecord::default()
        };
        change(&mut clear);
        self.world.at_clear.insert((BIRTH, epoch), vmas);
        self.world.live.insert(BIRTH, epoch);
        self.apply(&Record::Clear(clear));
    }

    fn clear(&mut self, epoch: u32, vmas: Vec<VmaAtClear>) {
        self.clear_with(epoch, vmas, |_| ());
    }

    fn exit(&mut self, epoch: u32) {
        let header = self.header();
        self.world.live.remove(&BIRTH);
        self.apply(&Record::Exit(ExitRecord {
            header,
            birth: BIRTH,
            epoch,
            padding: 0,
        }));
    }

    fn range(&mut self, cause: RangeCause, range: Range, change: impl FnOnce(&mut RangeRecord)) {
        let header = self.header();
        let mut record = RangeRecord {
            header,
            birth: BIRTH,
            start: range.start,
            length: range.len(),
            epoch: 1,
            cause: cause as u32,
            ..RangeRecord::default()
        };
        change(&mut record);
        self.apply(&Record::Range(record));
    }

    fn vma(&mut self, vma: VmaAtClear, state: u32) {
        self.vma_of(1, vma, state);
    }

    fn vma_of(&mut self, epoch: u32, vma: VmaAtClear, state: u32) {
        let header = self.header();
        self.apply(&Record::Vma(VmaRecord {
            header,
            vma: facts(&vma),
            epoch,
            reader: Reader::Pagemap as u32,
            state,
            padding: 0,
        }));
    }

    fn pages(&mut self, vma: VmaAtClear, change: impl FnOnce(&mut PagesRecord)) {
        let header = self.header();
        let mut record = PagesRecord {
            header,
            vma: facts(&vma),
            address: CHUNK,
            epoch: 1,
            reader: Reader::Pagemap as u32,
            looked_at: PageSet::range(0, 512),
            ..bytemuck::Zeroable::zeroed()
        };
        change(&mut record);
        self.apply(&Record::Pages(record));
    }

    fn settle(&mut self) {
        self.now += FORGETTING_NS;
        self.detectors.settle(&self.world, self.now);
    }

    fn lose(&mut self, stage: Stage, count: u64) {
        let sample = Sample {
            stages: BTreeMap::from([(stage, count)]),
            missed_runs: 0,
            ..Sample::default()
        };
        self.detectors.note_losses(&sample);
    }

    fn of(&self, epoch: u32) -> Detection {
        self.detectors.detection(BIRTH, epoch).unwrap()
    }

    /// Cause, evidence and pages of everything found in an epoch.
    fn found(&self, epoch: u32) -> Vec<(String, Evidence, u64)> {
        let causes = self.of(epoch).causes;
        causes
            .into_iter()
            .map(|found| (found.cause, found.evidence, found.pages))
            .collect()
    }

    fn told(&mut self) -> Vec<Incident> {
        self.detectors.incidents(&self.world, &self.world, &self.world)
    }

    fn missed(&self, cause: Cause) -> u64 {
        let missed = self.detectors.summary().missed;
        missed
            .iter()
            .filter(|(is, ..)| *is == cause)
            .map(|(_, _, pages)| pages)
            .sum()
    }
}

/// A VMA of so many pages from `CHUNK` on.
fn vma(start_page: u64, pages: u64, flags: u64, kind: VmaKind) -> VmaAtClear {
    VmaAtClear {
        key: VmaKey {
            birth: BIRTH,
            start: CHUNK + start_page * PAGE,
            flags: VM_READ | VM_WRITE | flags,
            page_prot: 0,
        },
        end: CHUNK + (start_page + pages) * PAGE,
        inode: 0,
        device: 0,
        offset: start_page,
        shared_mappings: 0,
        kind,
    }
}

fn private(start_page: u64, pages: u64) -> VmaAtClear {
    vma(start_page, pages, 0, VmaKind::PrivateAnon)
}

fn shared(start_page: u64, pages: u64) -> VmaAtClear {
    vma(start_page, pages, VM_SHARED, VmaKind::SharedAnon)
}

fn facts(vma: &VmaAtClear) -> VmaFacts {
    VmaFacts {
        key: vma.key,
        end: vma.end,
        offset: vma.offset,
        inode: vma.inode,
        device: vma.device,
        kind: vma.kind as u32,
    }
}

fn pages(first: u64, count: u64) -> Range {
    Range::of(CHUNK + first * PAGE, count * PAGE)
}

fn marked(record: &mut PagesRecord, cause: PageCause, first: usize, count: usize) {
    for page in first..first + count {
        record.causes[page] = cause_mark(cause, record.epoch);
    }
}

fn ksm(record: &mut PagesRecord) {
    record.lost = PageSet::range(1, 63);
    marked(record, PageCause::Ksm, 0, 64);
}

fn writable(mut vma: VmaAtClear) -> VmaAtClear {
    vma.key.page_prot = PTE_WRITE;
    vma
}
