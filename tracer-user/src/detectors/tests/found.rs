//! Pages that were found, and what is told of them.

use super::*;

#[test]
fn an_epoch_in_which_nothing_happens_is_trusted() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    assert_eq!(story.of(1).verdict, Verdict::Trusted);
    story.clear_with(2, vec![private(0, 64)], |clear| {
        clear.audited_vmas = 1;
        clear.audited_pages = 64;
    });
    story.settle();
    let first = story.of(1);
    assert!(first.finished);
    assert_eq!((first.verdict, first.reasons), (Verdict::Trusted, vec![]));
    assert_eq!(first.audited_pages, Some(64));
    story.exit(2);
    story.settle();
    let summary = story.detectors.summary();
    assert_eq!(summary.verdicts[0], (Verdict::Trusted, 2));
    assert!(summary.unknown.iter().all(|&(_, count)| count == 0));
    assert_eq!(story.told(), []);
}

#[test]
fn a_merged_page_is_missed_and_told_once_and_again_at_the_end() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    story.pages(private(0, 64), ksm);
    story.pages(private(0, 64), |record| {
        ksm(record);
        record.reader = Reader::Clear as u32;
    });
    assert_eq!(story.found(1), [("ksm-merge".to_owned(), Evidence::Observed, 63)]);
    assert_eq!(story.of(1).verdict, Verdict::Broken);
    assert_eq!(story.missed(Cause::KsmMerge), 63);
    let told = story.told();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].pages, 63);
    assert_eq!(told[0].readers, ["clear", "pagemap"]);
    assert_eq!(told[0].help, "docs/causes.md#ksm-merge");
    assert_eq!(told[0].ranges.len(), 1);
    assert_eq!(told[0].process.as_ref().unwrap().initial_pid, 50);
    assert_eq!(story.told(), []);
    story.clear(2, vec![]);
    story.settle();
    let closed = story.told();
    assert_eq!(closed.len(), 1);
    assert_eq!(
        (closed[0].state, closed[0].ended_by),
        (incident::State::Closed, Some(incident::EndedBy::Clear))
    );
    assert_eq!(story.of(1).dump_again, closed[0].ranges);
}

#[test]
fn two_mechanisms_in_one_epoch_get_both_names() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64), shared(64, 64)]);
    story.range(RangeCause::Advice, pages(64, 64), |record| record.detail = 4);
    story.pages(private(0, 64), ksm);
    story.pages(shared(64, 64), |record| {
        record.lost = PageSet::range(64, 64);
        record.none = PageSet::range(64, 64);
    });
    assert_eq!(
        story.found(1),
        [
            ("ksm-merge".to_owned(), Evidence::Observed, 63),
            ("shared-zap".to_owned(), Evidence::Observed, 64)
        ]
    );
}

#[test]
fn a_mark_of_another_epoch_is_no_cause() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    story.clear(2, vec![private(0, 64)]);
    story.pages(private(0, 64), |record| {
        record.epoch = 2;
        record.lost = PageSet::range(0, 1);
        record.causes[0] = cause_mark(PageCause::Ksm, 1);
    });
    assert_eq!(
        story.found(2),
        [("unknown_cause".to_owned(), Evidence::Observed, 1)]
    );
    // Counted when the epoch is over: a cause may be found until then.
    assert_eq!(story.missed(Cause::Unknown), 0);
    story.exit(2);
    story.settle();
    assert_eq!(story.missed(Cause::Unknown), 1);
}

#[test]
fn a_write_that_raced_with_the_clear_is_unknown_and_not_missed() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    story.pages(private(0, 64), |record| {
        record.lost = PageSet::range(0, 4);
        record.raced = PageSet::range(0, 4);
    });
    let so_far = story.of(1);
    assert_eq!(so_far.verdict, Verdict::Suspect);
    assert_eq!(so_far.causes, []);
    assert_eq!(so_far.reasons[0].name, "raced_with_clear");
    assert_eq!(so_far.reasons[0].count, 4);
    assert_eq!(story.told(), []);
}

#[test]
fn what_came_back_exposed_stays_so_whoever_protects_it() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64), shared(64, 64)]);
    let exposed = |record: &mut PagesRecord, first| {
        record.lost = PageSet::range(first, 4);
        record.raced = PageSet::range(first, 4);
        for page in first..first + 4 {
            record.causes[page] = cause_mark(PageCause::ExposedArrival, 1);
        }
        record.none = PageSet::range(first, 1);
    };
    // Thrown away: the tracker sees that of private memory; of shared memory it is only the entry.
    for first in [0, 64] {
        story.range(RangeCause::Advice, pages(first, 1), |record| record.detail = 4);
    }
    story.pages(private(0, 64), |record| exposed(record, 0));
    assert_eq!(story.of(1).verdict, Verdict::Suspect);
    assert_eq!(
        story.found(1),
        [("migration-race".to_owned(), Evidence::Exposed, 3)]
    );
    story.pages(shared(64, 64), |record| exposed(record, 64));
    assert_eq!(
        story.found(1),
        [("migration-race".to_owned(), Evidence::Exposed, 7)]
    );
    assert!(
        story
            .of(1)
            .reasons
            .iter()
            .all(|reason| reason.name != "raced_with_clear")
    );
}

#[test]
fn what_private_memory_dropped_is_counted_and_nothing_else() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    for _ in 0..2 {
        story.range(RangeCause::Advice, pages(0, 16), |record| record.detail = 4);
    }
    story.pages(private(0, 64), |record| {
        record.lost = PageSet::range(0, 16);
        record.none = PageSet::range(0, 8);
        record.zero = PageSet::range(8, 8);
    });
    let so_far = story.of(1);
    assert_eq!(so_far.verdict, Verdict::Trusted);
    assert_eq!(
        so_far.dropped_pages,
        BTreeMap::from([("madv_dontneed".to_owned(), 16)])
    );
    let dropped: u64 = story
        .detectors
        .summary()
        .dropped
        .iter()
        .map(|(_, pages)| pages)
        .sum();
    assert_eq!(dropped, 16);
    assert_eq!(story.told(), []);
}

#[test]
fn a_hole_in_a_file_is_found_where_the_file_was_mapped() {
    let mut story = Story::new();
    let mut file = shared(0, 64);
    (file.inode, file.device, file.offset) = (9, 3, 16);
    story.clear(1, vec![file]);
    story.range(RangeCause::FileHole, Range::of(0, 20 * PAGE), |record| {
        record.birth = 0;
        (record.from, record.from_length) = (9, 3);
    });
    assert_eq!(
        story.of(1).dropped_pages,
        BTreeMap::from([("file_hole".to_owned(), 4)])
    );
    assert_eq!(story.of(1).verdict, Verdict::Trusted);
}

#[test]
fn a_collapse_of_a_piece_of_a_file_is_the_cause_where_the_file_was_mapped() {
    let mut story = Story::new();
    let mut file = shared(0, 64);
    (file.inode, file.device, file.offset) = (9, 3, 16);
    story.clear(1, vec![file, shared(512, 8)]);
    story.range(RangeCause::FileCollapse, Range::of(0, 20 * PAGE), |record| {
        record.birth = 0;
        (record.from, record.from_length) = (9, 3);
    });
    story.pages(file, |record| record.lost = PageSet::range(0, 6));
    assert_eq!(
        story.found(1),
        [
            ("shared-collapse".to_owned(), Evidence::Observed, 4),
            ("unknown_cause".to_owned(), Evidence::Observed, 2),
        ]
    );
}

#[test]
fn exposed_pages_of_a_migration_and_what_became_of_them() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    story.pages(private(0, 64), |record| {
        record.exposed = PageSet::range(0, 8);
        record.exposed_dirty = PageSet::range(0, 2);
        marked(record, PageCause::Migration, 0, 8);
    });
    let so_far = story.of(1);
    assert_eq!(so_far.verdict, Verdict::Suspect);
    assert_eq!((so_far.causes[0].pages, so_far.causes[0].dirty_pages), (8, 2));
    let exposed = |story: &Story| {
        let summary = story.detectors.summary();
        summary.exposed[Cause::MigrationRace as usize].1
    };
    assert_eq!(exposed(&story), 8);
    story.clear(2, vec![private(0, 64)]);
    assert_eq!(exposed(&story), 0, "the gauge is about open epochs");
    let summary = story.detectors.summary();
    assert_eq!(
        summary.exposed_total[Cause::MigrationRace as usize],
        (Cause::MigrationRace, 8)
    );
}

#[test]
fn a_table_that_moved_whole_is_observed() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 512)]);
    story.pages(private(0, 512), |record| record.moved = PageSet::range(0, 512));
    assert_eq!(
        story.found(1),
        [("mremap-table-move".to_owned(), Evidence::Observed, 512)]
    );
}

#[test]
fn an_unknown_cause_gets_its_name_when_it_is_found_again() {
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 64)]);
    let zapped = |record: &mut PagesRecord| {
        record.lost = PageSet::range(0, 64);
        record.none = PageSet::range(0, 64);
    };
    story.pages(shared(0, 64), zapped);
    assert_eq!(story.told()[0].cause, "unknown_cause");
    // The record of the call comes at its end.
    story.range(RangeCause::Advice, pages(0, 64), |record| record.detail = 4);
    story.pages(shared(0, 64), zapped);
    assert_eq!(
        story.found(1),
        [("shared-zap".to_owned(), Evidence::Observed, 64)]
    );
    story.exit(1);
    story.settle();
    let told: Vec<_> = story
        .told()
        .into_iter()
        .map(|told| (told.cause, told.pages))
        .collect();
    assert_eq!(
        told,
        [("shared-zap".to_owned(), 64), ("unknown_cause".to_owned(), 0)]
    );
    assert_eq!(story.missed(Cause::SharedZap), 64);
    assert_eq!(story.missed(Cause::Unknown), 0);
}

#[test]
fn mappings_are_named_while_the_process_is_there() {
    let mut story = Story::new();
    let mut file = private(0, 64);
    file.inode = 9;
    story.clear(1, vec![file]);
    story.world.mappings = Some(vec![Mapping {
        range: pages(0, 64),
        offset: 0,
        inode: 9,
        path: Some("/usr/lib/x.so".to_owned()),
    }]);
    story.pages(file, ksm);
    assert_eq!(story.told()[0].vmas[0].file.as_deref(), Some("/usr/lib/x.so"));
    assert_eq!(*story.world.asked.borrow(), 1);
}

#[test]
fn a_migration_whose_mark_the_clear_forgot() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    story.pages(private(0, 64), |record| {
        record.exposed = PageSet::range(0, 8);
        // Written, and taken out of the page table for a moment.
        record.lost = PageSet::range(8, 1);
        record.none = PageSet::range(8, 1);
        marked(record, PageCause::Migration, 2, 3);
        record.migrating = 1;
    });
    assert_eq!(
        story.found(1),
        [("migration-race".to_owned(), Evidence::Exposed, 8)]
    );
    assert!(story.of(1).dropped_pages.is_empty());
    assert_eq!(story.of(1).reasons.last().unwrap().name, "raced_with_clear");
}
