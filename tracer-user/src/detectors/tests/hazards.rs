//! Hazards.

use tracer_common::flags::VM_SHADOW_STACK;

use super::*;

#[test]
fn a_fresh_range_that_an_armed_vma_swallowed() {
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 64)]);
    // The range behind was mapped after the clear; now both are one VMA.
    story.vma(writable(shared(0, 128)), VMA_CHANGED | VMA_BORN_WRITABLE);
    story.pages(writable(shared(0, 128)), |record| {
        record.exposed = PageSet::range(64, 64);
    });
    let found = story.found(1);
    assert!(
        found.contains(&("vma-merge".to_owned(), Evidence::Exposed, 64)),
        "{found:?}"
    );
    assert!(
        found.iter().any(|(cause, evidence, pages)| cause == "vma-merge"
            && *evidence == Evidence::Hazard
            && *pages >= 64),
        "{found:?}"
    );
    // In the next epoch the VMA is what the clear met, and its protection is as it was.
    story.clear(2, vec![writable(shared(0, 128))]);
    story.pages(writable(shared(0, 128)), |record| {
        record.epoch = 2;
        record.exposed = PageSet::range(0, 3);
    });
    assert_eq!(story.found(2), [("vma-merge".to_owned(), Evidence::Exposed, 3)]);
}

#[test]
fn a_split_or_an_mprotect_of_a_part_is_nothing() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64), private(64, 64)]);
    story.vma(private(0, 32), VMA_CHANGED);
    story.vma(private(32, 96), VMA_CHANGED);
    assert_eq!(story.of(1).verdict, Verdict::Trusted);
    assert_eq!(story.found(1), []);
}

#[test]
fn fresh_private_memory_hides_something_only_where_old_memory_was() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64), shared(64, 32)]);
    story.range(RangeCause::Remap, pages(0, 128), |record| {
        (record.from, record.from_length) = (CHUNK, 64 * PAGE);
    });
    // Grown in place by 64 pages; 32 of them were mapped at the clear.
    assert_eq!(story.found(1), [("mremap-grow".to_owned(), Evidence::Hazard, 32)]);
    story.vma(private(0, 128), VMA_CHANGED);
    assert_eq!(story.found(1), [("mremap-grow".to_owned(), Evidence::Hazard, 32)]);
}

#[test]
fn a_stack_that_grows_is_nothing() {
    let mut story = Story::new();
    let stack = |start, pages| vma(start, pages, 0x100, VmaKind::PrivateAnon);
    story.clear(1, vec![stack(32, 32)]);
    story.vma(stack(0, 64), VMA_CHANGED);
    assert_eq!(story.of(1).verdict, Verdict::Trusted);
}

#[test]
fn a_move_is_judged_by_who_looks_at_its_pages() {
    let to = |story: &mut Story| {
        story.clear(1, vec![private(0, 4), private(16, 4)]);
        story.range(RangeCause::Remap, pages(16, 4), |record| {
            (record.from, record.from_length, record.detail) = (CHUNK, 4 * PAGE, 3);
        });
        story.detectors.to_verify(BIRTH).unwrap()
    };
    let mut story = Story::new();
    assert_eq!(to(&mut story), (1, vec![pages(16, 4)]));
    assert_eq!(story.of(1).verdict, Verdict::Suspect, "nobody has looked");
    for page in 16..20 {
        story
            .detectors
            .seen_in_pagemap(BIRTH, 1, CHUNK + page * PAGE, true, true, 5);
    }
    assert_eq!(story.of(1).verdict, Verdict::Trusted);
    assert_eq!(story.detectors.to_verify(BIRTH), None);

    let mut story = Story::new();
    to(&mut story);
    for page in 16..20 {
        story
            .detectors
            .seen_in_pagemap(BIRTH, 1, CHUNK + page * PAGE, false, false, 5);
    }
    assert_eq!(story.found(1), [("mremap-grow".to_owned(), Evidence::Hazard, 4)]);

    let mut story = Story::new();
    to(&mut story);
    story.exit(1);
    story.settle();
    assert_eq!(
        story.of(1).verdict,
        Verdict::Trusted,
        "no tracker was told anything"
    );

    let mut story = Story::new();
    to(&mut story);
    // The process is gone, and nobody told of it.
    story.world.live.clear();
    story.settle();
    story.settle();
    let end = story.of(1);
    assert_eq!((end.verdict, end.causes.len()), (Verdict::Suspect, 0));
    let reasons: Vec<_> = end.reasons.iter().map(|reason| reason.name.as_str()).collect();
    assert_eq!(reasons, ["end_unseen", "move_unverified"]);
}

#[test]
fn trackers_that_are_in_each_others_way() {
    let mut story = Story::new();
    story.clear(1, vec![]);
    story.clear_with(2, vec![], |clear| {
        clear.tracker = task(8);
        (clear.read_epoch, clear.writes_after_read) = (1, 64);
    });
    assert_eq!(
        story.found(1),
        [
            ("foreign-clear".to_owned(), Evidence::Hazard, 1),
            ("read-clear-gap".to_owned(), Evidence::Hazard, 64)
        ]
    );
    assert_eq!(story.of(1).causes[1].bound, Bound::AtLeast);
    // Read in an older epoch: it tells nothing about this one.
    story.clear_with(3, vec![], |clear| {
        clear.tracker = task(8);
        (clear.read_epoch, clear.writes_after_read) = (1, 64);
    });
    assert_eq!(story.found(2), []);
    let hazards = story.detectors.summary().hazards;
    assert_eq!(hazards[Cause::ForeignClear as usize].1, 1);
}

#[test]
fn blind_memory_forbids_trust_and_is_no_incident() {
    let mut story = Story::new();
    story.clear_with(1, vec![], |clear| {
        clear.blind_bytes[Blind::Hugetlb as usize] = 4096;
    });
    let so_far = story.of(1);
    assert_eq!(so_far.verdict, Verdict::Suspect);
    assert_eq!(so_far.blind_bytes["hugetlb"], 4096);
    assert_eq!(story.told(), []);
    assert_eq!(story.detectors.summary().blind_bytes[0], (Blind::Hugetlb, 4096));
    story.exit(1);
    assert_eq!(story.detectors.summary().blind_bytes[0], (Blind::Hugetlb, 0));
}

#[test]
fn shared_memory_that_is_mapped_twice_is_blind() {
    let mapped = |start, offset, shared_mappings| VmaAtClear {
        inode: 9,
        offset,
        shared_mappings,
        ..shared(start, 16)
    };
    let aliased = |vmas: Vec<VmaAtClear>| {
        let mut story = Story::new();
        story.clear(1, vmas);
        story
            .of(1)
            .blind_bytes
            .get("writable_alias")
            .copied()
            .unwrap_or(0)
    };
    assert_eq!(aliased(vec![mapped(0, 0, 1)]), 0);
    assert_eq!(aliased(vec![mapped(0, 0, 2)]), 16 * PAGE);
    // Two parts of one file, and twice the same part.
    assert_eq!(aliased(vec![mapped(0, 0, 2), mapped(16, 16, 2)]), 0);
    assert_eq!(aliased(vec![mapped(0, 0, 2), mapped(16, 15, 2)]), 32 * PAGE);

    let mut story = Story::new();
    story.clear(1, vec![mapped(0, 0, 1)]);
    let header = story.header();
    story.apply(&Record::Track(TrackRecord {
        header,
        birth: 2 * BIRTH,
        parent: BIRTH,
        parent_epoch: 1,
        origin: ORIGIN_FORK,
        ..TrackRecord::default()
    }));
    assert_eq!(story.of(1).blind_bytes["writable_alias"], 16 * PAGE);
}

#[test]
fn a_mapping_that_is_gone_at_the_next_clear_hid_nothing() {
    let mapped = |start, inode| VmaAtClear {
        inode,
        shared_mappings: 2,
        ..shared(start, 16)
    };
    let blind_after = |next: Vec<VmaAtClear>| {
        let mut story = Story::new();
        story.clear(1, vec![mapped(0, 9), mapped(64, 10)]);
        assert_eq!(story.of(1).blind_bytes["writable_alias"], 32 * PAGE);
        story.clear(2, next);
        story
            .of(1)
            .blind_bytes
            .get("writable_alias")
            .copied()
            .unwrap_or(0)
    };
    assert_eq!(blind_after(vec![mapped(0, 9), mapped(64, 10)]), 32 * PAGE);
    assert_eq!(blind_after(vec![mapped(0, 9)]), 16 * PAGE);
    // Another file is mapped there now.
    assert_eq!(blind_after(vec![mapped(0, 11), mapped(64, 12)]), 0);
    assert_eq!(blind_after(vec![]), 0);
}

#[test]
fn a_shadow_stack_is_not_audited_and_not_trusted() {
    let mut story = Story::new();
    let stack = |start| {
        let mut vma = private(start, 16);
        vma.key.flags |= VM_SHADOW_STACK;
        vma
    };
    story.clear(1, vec![private(64, 64), stack(0)]);
    assert_eq!(story.of(1).verdict, Verdict::Suspect);
    assert_eq!(story.of(1).reasons[0].name, "shadow_stack");
    // Before 6.6 the bit means something else, of memory that is not anonymous.
    let mut file = stack(0);
    file.kind = VmaKind::PrivateFile;
    story.clear(2, vec![private(64, 64), file]);
    assert_eq!(story.of(2).verdict, Verdict::Trusted);
}

#[test]
fn a_tracker_that_is_a_new_process_each_time_takes_over() {
    let foreign = |read_epoch, comm: u8, gone: bool| {
        let mut story = Story::new();
        story.clear(1, vec![]);
        story.clear_with(2, vec![], |clear| {
            clear.tracker = task(8);
            clear.tracker.comm[0] = comm;
            clear.read_epoch = read_epoch;
            clear.opener_gone = u32::from(gone);
        });
        !story.found(1).is_empty()
    };
    let same = task(8).comm[0];
    assert!(!foreign(1, same, true));
    assert!(foreign(1, same, false), "the other one lives");
    assert!(foreign(0, same, true), "it has not read what it cleared");
    assert!(foreign(1, same + 1, true), "another program");
}

#[test]
fn what_took_the_place_of_another_mapping_and_was_swallowed() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64), shared(64, 64)]);
    // Shared memory was there; now it is a part of the private mapping beside it.
    story.vma(private(0, 128), VMA_CHANGED);
    assert_eq!(story.found(1), [("vma-merge".to_owned(), Evidence::Hazard, 64)]);

    // The same file, but another part of it.
    let mut story = Story::new();
    let part = |start, offset| VmaAtClear {
        inode: 9,
        offset,
        ..shared(start, 64)
    };
    story.clear(1, vec![part(0, 0), part(64, 200)]);
    let whole = VmaAtClear {
        end: part(64, 64).end,
        ..part(0, 0)
    };
    story.vma(whole, VMA_CHANGED);
    assert_eq!(story.found(1), [("vma-merge".to_owned(), Evidence::Hazard, 64)]);
}

#[test]
fn a_place_that_was_moved_here_untouched_and_then_read() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64), private(64, 64)]);
    story.pages(private(64, 64), |record| {
        record.moved = PageSet::range(64, 64);
        record.zero = PageSet::range(64, 32);
        record.none = PageSet::range(96, 30);
    });
    assert_eq!(
        story.found(1),
        [
            ("mremap-table-move".to_owned(), Evidence::Observed, 2),
            ("mremap-grow".to_owned(), Evidence::Hazard, 62)
        ]
    );
}

#[test]
fn a_zero_page_that_userfaultfd_moved() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64), private(64, 64)]);
    story.range(RangeCause::UserfaultMove, pages(64, 2), |record| {
        record.from = CHUNK;
    });
    assert_eq!(story.detectors.take_moved().len(), 1);
    for (page, soft_dirty) in [(64, false), (65, true)] {
        story
            .detectors
            .seen_in_pagemap(BIRTH, 1, CHUNK + page * PAGE, true, soft_dirty, 5);
    }
    assert_eq!(
        story.found(1),
        [("userfaultfd-move".to_owned(), Evidence::Hazard, 1)]
    );
    assert_eq!(
        story.of(1).dropped_pages,
        BTreeMap::from([("userfaultfd_move".to_owned(), 2)])
    );
}

#[test]
fn a_fresh_mapping_that_was_moved_beside_an_armed_one() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64), shared(64, 64)]);
    // Made after the clear at page 300, moved over the shared memory, and swallowed by the mapping beside it.
    story.range(RangeCause::Remap, pages(64, 64), |record| {
        (record.from, record.from_length, record.detail) = (CHUNK + 300 * PAGE, 64 * PAGE, 3);
    });
    assert_eq!(
        story.of(1).verdict,
        Verdict::Trusted,
        "it carries VM_SOFTDIRTY still"
    );
    story.vma(private(0, 128), VMA_CHANGED);
    // mremap has marked the pages that were there. What was never touched has lost its bit.
    assert_eq!(story.detectors.to_verify(BIRTH), Some((1, vec![pages(64, 64)])));
    let see = |story: &mut Story, page: u64, there: bool| {
        story
            .detectors
            .seen_in_pagemap(BIRTH, 1, CHUNK + page * PAGE, there, there, 5);
    };
    for page in 64..96 {
        see(&mut story, page, true);
    }
    assert_eq!(story.found(1), []);
    for page in 96..128 {
        see(&mut story, page, false);
    }
    assert_eq!(story.found(1), [("vma-merge".to_owned(), Evidence::Hazard, 32)]);
    // Nobody needs to look again when the VMA is told of once more.
    story.vma(private(0, 128), VMA_CHANGED);
    assert_eq!(story.detectors.to_verify(BIRTH), None);
}

#[test]
fn a_fresh_mapping_without_pages_that_was_moved_beside_an_armed_one() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64), shared(64, 64)]);
    story.range(RangeCause::Remap, pages(64, 64), |record| {
        (record.from, record.from_length, record.detail) = (CHUNK + 300 * PAGE, 64 * PAGE, 3);
    });
    story.vma(private(0, 128), VMA_CHANGED);
    story.pages(private(0, 128), |record| {
        record.moved = PageSet::range(64, 64);
        record.none = PageSet::range(64, 64);
    });
    assert_eq!(story.found(1), [("vma-merge".to_owned(), Evidence::Hazard, 64)]);
    assert_eq!(story.of(1).verdict, Verdict::Suspect);
}

#[test]
fn a_fresh_mapping_in_the_place_of_a_reservation_that_was_moved() {
    let reservation = VmaAtClear {
        key: VmaKey {
            flags: 0,
            ..private(300, 64).key
        },
        ..private(300, 64)
    };
    let cause = |protected: bool| {
        let mut story = Story::new();
        story.clear(1, vec![private(0, 64), shared(64, 64), reservation]);
        if protected {
            story.range(RangeCause::Protect, pages(300, 64), |_| ());
        }
        story.range(RangeCause::Remap, pages(64, 64), |record| {
            (record.from, record.from_length, record.detail) = (CHUNK + 300 * PAGE, 64 * PAGE, 3);
        });
        story.pages(private(0, 128), |record| {
            record.moved = PageSet::range(64, 64);
            record.none = PageSet::range(64, 64);
        });
        story.found(1)[0].0.clone()
    };
    assert_eq!(cause(false), "vma-merge");
    assert_eq!(cause(true), "mremap-grow");
}
