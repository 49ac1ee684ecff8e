//! Writes to files that are mapped.

use super::*;

/// The pages from `start_page` on, of a file from its page 16 on.
fn file(start_page: u64, count: u64, flags: u64) -> VmaAtClear {
    VmaAtClear {
        inode: 9,
        device: 3,
        offset: 16,
        ..vma(start_page, count, flags, VmaKind::SharedFile)
    }
}

/// A write to this file: from a byte on, so many.
fn write(story: &mut Story, start: u64, length: u64) {
    story.range(RangeCause::FileWrite, Range::of(start, length), |record| {
        (record.birth, record.epoch) = (0, 0);
        (record.from, record.from_length) = (9, 3);
    });
}

fn hazard(pages: u64) -> Vec<(String, Evidence, u64)> {
    vec![("file-write".to_owned(), Evidence::Hazard, pages)]
}

#[test]
fn a_write_is_a_hazard_of_the_pages_where_the_file_is_mapped_shared() {
    let mut story = Story::new();
    let mut next = file(128, 64, VM_SHARED);
    next.offset = 80;
    story.clear(1, vec![file(0, 64, VM_SHARED), next, file(256, 64, 0)]);
    // Before what is mapped, and behind it.
    write(&mut story, 0, 16 * PAGE);
    write(&mut story, 144 * PAGE, PAGE);
    assert_eq!(story.of(1).verdict, Verdict::Trusted);
    // The last byte of one page and the first of another, in two mappings.
    write(&mut story, 80 * PAGE - 1, 2);
    assert_eq!(story.found(1), hazard(2));
    let again = story.of(1).dump_again;
    let again: Vec<_> = again.iter().map(|range| range.start.0..range.end.0).collect();
    let of = |range: Range| range.start..range.end;
    assert_eq!(again, [of(pages(63, 1)), of(pages(128, 1))]);
    assert_eq!(story.of(1).verdict, Verdict::Suspect);
    // The same again is nothing new.
    write(&mut story, 79 * PAGE, 2 * PAGE);
    assert_eq!(story.found(1), hazard(2));
    let hazards = story.detectors.summary().hazards;
    assert_eq!(hazards[Cause::FileWrite as usize].1, 1);
    let told = story.told();
    assert_eq!((told.len(), told[0].cause.as_str()), (1, "file-write"));
}

#[test]
fn a_write_to_another_file_is_nothing() {
    let mut story = Story::new();
    let mut other = file(0, 64, VM_SHARED);
    other.device = 4;
    story.clear(1, vec![other, shared(64, 64)]);
    write(&mut story, 0, u64::MAX);
    assert_eq!(story.found(1), []);
    assert_eq!(story.of(1).verdict, Verdict::Trusted);
}

#[test]
fn a_write_while_the_clear_walked_belongs_to_its_epoch_too() {
    let mut story = Story::new();
    story.clear(1, vec![file(0, 64, VM_SHARED)]);
    write(&mut story, 20 * PAGE, PAGE);
    // The second clear has begun by now, and tells of itself when it returns.
    let walked_ns = story.now + 500;
    write(&mut story, 30 * PAGE, 2 * PAGE);
    story.clear_with(2, vec![file(0, 64, VM_SHARED)], |clear| {
        clear.first_walk_ns = walked_ns;
    });
    assert_eq!(story.found(1), hazard(3));
    assert_eq!(story.found(2), hazard(2));
    story.clear(3, vec![file(0, 64, VM_SHARED)]);
    assert_eq!(story.found(3), []);
    assert_eq!(story.of(3).verdict, Verdict::Trusted);
}

#[test]
fn more_writes_within_a_clear_than_are_kept_are_told() {
    let mut story = Story::new();
    let walked_ns = story.now;
    for page in 0..4097 {
        write(&mut story, page * PAGE, PAGE);
    }
    let clear = |story: &mut Story, epoch, walked_ns| {
        story.clear_with(epoch, vec![file(0, 64, VM_SHARED)], |clear| {
            clear.first_walk_ns = walked_ns;
        });
        story.of(epoch).reasons
    };
    let reasons = clear(&mut story, 1, walked_ns);
    assert!(
        reasons.iter().any(|reason| reason.name == "findings_full"),
        "{reasons:?}"
    );
    let now = story.now;
    assert_eq!(clear(&mut story, 2, now + 1), []);
}

#[test]
fn without_the_mappings_at_the_clear_a_write_may_be_anywhere() {
    let mut story = Story::new();
    story.clear(1, vec![]);
    story.world.at_clear.clear();
    let header = story.header();
    story.apply(&Record::Clear(ClearRecord {
        header,
        birth: BIRTH,
        result: 1,
        first_walk_ns: header.time_ns,
        epoch: 2,
        vmas: 20,
        ..ClearRecord::default()
    }));
    write(&mut story, 0, PAGE);
    let reasons = story.of(2).reasons;
    assert!(
        reasons.iter().any(|reason| reason.name == "vmas_unknown"),
        "{reasons:?}"
    );
}

#[test]
fn what_is_written_after_the_end_is_nobodys() {
    let mut story = Story::new();
    story.clear(1, vec![file(0, 64, VM_SHARED)]);
    story.exit(1);
    write(&mut story, 20 * PAGE, PAGE);
    assert_eq!(story.found(1), []);
}
