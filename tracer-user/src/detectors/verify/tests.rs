//! A simulated address space, and everything that can happen to a page between two looks.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::means::PAGE;
use super::*;
use crate::detectors::Range;
use crate::ledger::Clock;

const PRESENT: u64 = 1 << 63;
const FILE: u64 = 1 << 61;
const SOFT_DIRTY: u64 = 1 << 55;
const START: u64 = 0x7000_0000_0000;

#[derive(Clone, Copy, Debug)]
struct Page {
    entry: u64,
    byte: u8,
    readable: bool,
}

/// Something that happens at a certain moment.
type Event = Box<dyn FnOnce(&mut BTreeMap<u64, Page>)>;

#[derive(Default)]
struct Simulated {
    pages: BTreeMap<u64, Page>,
    gone: bool,
    /// Just before and just after a content is read.
    before_content: Option<Event>,
    after_content: Option<Event>,
    /// Pages whose content was read, and those of them that were not present, which faults them in.
    read: Vec<u64>,
    faulted: Vec<u64>,
}

impl Watched for Simulated {
    fn entries(&mut self, address: u64, entries: &mut [u64]) -> bool {
        for (entry, page) in entries.iter_mut().zip((address..).step_by(PAGE)) {
            *entry = self.pages.get(&page).map_or(0, |page| page.entry);
        }
        !self.gone
    }

    fn content(&mut self, address: u64, page: &mut [u8]) -> bool {
        if let Some(event) = self.before_content.take() {
            event(&mut self.pages);
        }
        self.read.push(address);
        let found = self.pages.entry(address).or_insert(Page {
            entry: 0,
            byte: 0,
            readable: true,
        });
        if found.entry & PRESENT == 0 {
            self.faulted.push(address);
            (found.entry, found.byte) = (PRESENT, 0);
        }
        page.fill(found.byte);
        let readable = found.readable && !self.gone;
        if let Some(event) = self.after_content.take() {
            event(&mut self.pages);
        }
        readable
    }
}

/// A clock that goes on by a microsecond each time somebody looks.
#[derive(Default)]
struct Ticking(Cell<u64>);

impl Clock for Ticking {
    fn monotonic_ns(&self) -> u64 {
        self.0.set(self.0.get() + 1_000);
        self.0.get()
    }
    fn unix_ns(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns
    }
}

struct Case {
    memory: Simulated,
    digests: Digests,
    random: Random,
    allowance: Allowance,
    clock: Ticking,
    until_ns: u64,
    sample: Sample,
    areas: Vec<Area>,
}

impl Case {
    fn new(shared: bool, pages: u64) -> Self {
        let mut case = Self {
            memory: Simulated::default(),
            digests: Digests::default(),
            random: Random::new(7),
            allowance: Allowance::new(1 << 40, 0),
            clock: Ticking::default(),
            until_ns: u64::MAX,
            sample: Sample::default(),
            areas: vec![Area {
                range: Range::of(START, pages * PAGE as u64),
                shared,
            }],
        };
        for page in 0..pages {
            case.memory.pages.insert(
                address(page),
                Page {
                    entry: PRESENT | if shared { FILE } else { 0 },
                    byte: 1,
                    readable: true,
                },
            );
        }
        case
    }

    /// All pages of such memory are sampled.
    fn drawn(shared: bool, pages: u64) -> Self {
        let mut case = Self::new(shared, pages);
        case.draw(usize::MAX);
        assert_eq!(case.sample.len() as u64, pages);
        case
    }

    fn draw(&mut self, most: usize) {
        let mut means = Means {
            digests: &self.digests,
            random: &mut self.random,
            allowance: &mut self.allowance,
            clock: &self.clock,
            until_ns: self.until_ns,
        };
        self.sample = Sample::draw(&mut self.memory, &self.areas, most, &mut means);
    }

    fn compare(&mut self) -> Reading {
        let mut means = Means {
            digests: &self.digests,
            random: &mut self.random,
            allowance: &mut self.allowance,
            clock: &self.clock,
            until_ns: self.until_ns,
        };
        self.sample.compare(&mut self.memory, &mut means)
    }

    fn page(&mut self, page: u64) -> &mut Page {
        self.memory.pages.get_mut(&address(page)).unwrap()
    }
}

fn address(page: u64) -> u64 {
    START + page * PAGE as u64
}

fn left(reading: &Reading, why: LeftOut) -> u64 {
    reading.left_out[why as usize]
}

#[test]
fn a_changed_page_that_reads_clean_is_told_once_as_new() {
    let mut case = Case::drawn(true, 16);
    let quiet = case.compare();
    assert_eq!((quiet.compared, quiet.changed.len()), (16, 0));
    case.page(5).byte = 2;
    let told = case.compare();
    assert_eq!(
        told.changed,
        [Changed {
            address: address(5),
            first: true
        }]
    );
    // The others were compared before.
    assert_eq!(told.compared, 0);
    let again = case.compare();
    assert_eq!(
        again.changed,
        [Changed {
            address: address(5),
            first: false
        }]
    );
    assert!(again.done_ns > told.done_ns);
}

#[test]
fn a_page_that_the_kernel_tracked_leaves_the_sample() {
    let mut case = Case::drawn(false, 4);
    *case.page(1) = Page {
        entry: PRESENT | SOFT_DIRTY,
        byte: 2,
        readable: true,
    };
    let reading = case.compare();
    assert_eq!((reading.compared, reading.changed.len()), (3, 0));
    assert_eq!(left(&reading, LeftOut::Written), 1);
    assert_eq!(case.sample.len(), 3);
}

#[test]
fn a_write_between_the_bit_and_the_content_is_no_miss() {
    let mut case = Case::drawn(false, 1);
    case.memory.before_content = Some(Box::new(|pages| {
        let page = pages.get_mut(&START).unwrap();
        (page.entry, page.byte) = (PRESENT | SOFT_DIRTY, 2);
    }));
    let reading = case.compare();
    assert_eq!((reading.changed.len(), left(&reading, LeftOut::Written)), (0, 1));
}

#[test]
fn a_write_while_the_sample_is_drawn_keeps_the_page_out() {
    for after in [false, true] {
        let mut case = Case::new(false, 1);
        let event: Event = Box::new(|pages| {
            let page = pages.get_mut(&START).unwrap();
            (page.entry, page.byte) = (PRESENT | SOFT_DIRTY, 2);
        });
        if after {
            case.memory.after_content = Some(event);
        } else {
            case.memory.before_content = Some(event);
        }
        case.draw(1);
        assert!(case.sample.is_empty());
    }
}

#[test]
fn content_that_was_thrown_away_is_no_miss() {
    // MADV_DONTNEED: nothing is there, and nothing is faulted in.
    let mut case = Case::drawn(false, 3);
    case.page(0).entry = 0;
    let reading = case.compare();
    assert_eq!((reading.compared, reading.changed.len()), (2, 0));
    assert_eq!(case.memory.faulted, [0u64; 0]);
    // Read again: the zero page.
    (case.page(0).entry, case.page(0).byte) = (PRESENT, 0);
    let reading = case.compare();
    assert_eq!((reading.changed.len(), left(&reading, LeftOut::Zeroed)), (0, 1));
    // Between the bit and the content: our own reading faults in the zero page.
    case.memory.before_content = Some(Box::new(|pages| {
        pages.get_mut(&address(1)).unwrap().entry = 0;
    }));
    let reading = case.compare();
    assert_eq!((reading.changed.len(), left(&reading, LeftOut::Zeroed)), (0, 1));
    assert_eq!(case.memory.faulted, [address(1)]);
    // Of a private mapping of a file: the file's content.
    (case.page(2).entry, case.page(2).byte) = (PRESENT | FILE, 9);
    let reading = case.compare();
    assert_eq!(
        (reading.changed.len(), left(&reading, LeftOut::OtherPage)),
        (0, 1)
    );
    assert!(case.sample.is_empty());
}

#[test]
fn a_hole_in_shared_memory_reads_as_zeros() {
    let mut case = Case::drawn(true, 1);
    case.page(0).byte = 0;
    let reading = case.compare();
    assert_eq!((reading.changed.len(), left(&reading, LeftOut::Zeroed)), (0, 1));
    assert_eq!(reading.compared, 0);
}

#[test]
fn a_page_that_comes_back_from_swap_stays_in_the_sample() {
    let mut case = Case::drawn(false, 1);
    case.page(0).entry = 1 << 62;
    assert_eq!(case.compare().compared, 0);
    case.page(0).entry = PRESENT;
    assert_eq!(case.compare().compared, 1);
}

#[test]
fn a_mapping_in_the_place_of_another_carries_the_bit() {
    let mut case = Case::drawn(false, 2);
    // munmap and mmap: VM_SOFTDIRTY makes pagemap say so, of pages that are there and of others.
    (case.page(0).entry, case.page(0).byte) = (PRESENT | SOFT_DIRTY, 7);
    case.page(1).entry = SOFT_DIRTY;
    let reading = case.compare();
    assert_eq!((reading.changed.len(), left(&reading, LeftOut::Written)), (0, 2));
}

#[test]
fn what_is_not_clean_present_memory_is_not_drawn() {
    let mut case = Case::new(false, 5);
    case.page(0).entry = PRESENT | SOFT_DIRTY;
    case.page(1).entry = 0;
    case.page(2).entry = PRESENT | FILE;
    case.page(3).readable = false;
    case.draw(usize::MAX);
    assert_eq!(case.sample.len(), 1);
    // Only what could be read at all was read.
    assert_eq!(case.memory.read, [address(3), address(4)]);
    assert_eq!(case.memory.faulted, [0u64; 0]);
}

#[test]
fn an_address_space_that_is_gone_ends_the_sample() {
    let mut case = Case::drawn(true, 3);
    case.page(0).byte = 2;
    case.memory.gone = true;
    let reading = case.compare();
    assert!(reading.gone && reading.changed.is_empty());
    assert_eq!(left(&reading, LeftOut::Unreadable), 3);
}

#[test]
fn a_sample_is_drawn_evenly() {
    let mut counts = [0u32; 64];
    let mut case = Case::new(true, 64);
    for _ in 0..1_000 {
        case.draw(16);
        assert_eq!(case.sample.len(), 16);
        case.memory.read.clear();
        case.compare();
        for address in &case.memory.read {
            counts[usize::try_from(address - START).unwrap() / PAGE] += 1;
        }
    }
    // 250 of each, give or take six standard deviations.
    assert!(
        counts.iter().all(|count| (165..335).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn a_terabyte_is_not_gone_through() {
    let mut case = Case::new(true, 16);
    case.areas = vec![
        Area {
            range: Range::of(0x10_0000_0000, 1 << 40),
            shared: true,
        },
        Area {
            range: Range::of(START, 16 * PAGE as u64),
            shared: true,
        },
    ];
    case.draw(64);
    // 256 of half a million pieces: the populated one is hardly ever among them, and time was looked at so often only.
    assert!(case.clock.0.get() < 300 * 1_000);
}

#[test]
fn what_does_not_fit_into_the_allowance_has_its_turn_later() {
    let mut case = Case::drawn(true, 8);
    for page in 0..8 {
        case.page(page).byte = 2;
    }
    case.allowance = Allowance::new(5 * PAGE as u64, 0);
    let first = case.compare();
    assert_eq!((first.compared, first.changed.len()), (5, 5));
    case.allowance.refill(10_000_000_000);
    let second = case.compare();
    assert_eq!((second.compared, second.changed.len()), (3, 5));
    assert_eq!(second.changed.iter().filter(|changed| changed.first).count(), 3);
    // A reading without time does nothing.
    case.until_ns = 0;
    assert_eq!(case.compare().changed, []);
    assert_eq!(case.sample.len(), 8);
}
