//! What is to be dumped again though nobody saw it missed.

use super::*;

fn again(story: &Story, epoch: u32) -> Vec<(u64, u64)> {
    let ranges = story.of(epoch).dump_again;
    ranges
        .iter()
        .map(|range| ((range.start.0 - CHUNK) / PAGE, (range.end.0 - CHUNK) / PAGE))
        .collect()
}

fn blind(story: &mut Story, epoch: u32, blind: Blind, start: u64, pages: u64) {
    story.range(
        RangeCause::Blind,
        Range::of(CHUNK + start * PAGE, pages * PAGE),
        |record| {
            record.epoch = epoch;
            record.detail = blind as u32;
        },
    );
}

#[test]
fn blind_memory_is_dumped_again_in_its_own_epoch() {
    let mut story = Story::new();
    // The programs tell where it is before the record of the clear comes.
    blind(&mut story, 1, Blind::Hugetlb, 512, 512);
    blind(&mut story, 1, Blind::Pinned, 4, 3);
    story.clear_with(1, vec![private(0, 64)], |clear| {
        clear.blind_bytes[Blind::Hugetlb as usize] = 512 * PAGE;
        clear.blind_bytes[Blind::Pinned as usize] = 3 * PAGE;
    });
    assert_eq!(again(&story, 1), [(4, 7), (512, 1024)]);
    story.clear(2, vec![private(0, 64)]);
    story.settle();
    assert_eq!(again(&story, 1), [(4, 7), (512, 1024)]);
    assert_eq!(again(&story, 2), []);
}

#[test]
fn so_is_memory_with_a_second_mapping_while_it_is_there() {
    let mapped = |start, inode| VmaAtClear {
        inode,
        shared_mappings: 2,
        ..shared(start, 16)
    };
    let mut story = Story::new();
    story.clear(1, vec![mapped(0, 9), mapped(64, 10), private(128, 16)]);
    assert_eq!(again(&story, 1), [(0, 16), (64, 80)]);
    story.clear(2, vec![mapped(0, 9), private(128, 16)]);
    assert_eq!(again(&story, 1), [(0, 16)]);
}

#[test]
fn a_child_may_write_all_that_is_shared() {
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 16), private(64, 16)]);
    assert_eq!(again(&story, 1), []);
    let header = story.header();
    story.apply(&Record::Track(TrackRecord {
        header,
        birth: 2 * BIRTH,
        parent: BIRTH,
        parent_epoch: 1,
        origin: ORIGIN_FORK,
        ..TrackRecord::default()
    }));
    assert_eq!(again(&story, 1), [(0, 16)]);
}

#[test]
fn where_direct_reads_are_delivered_to_is_not_known() {
    let mut story = Story::new();
    blind(&mut story, 1, Blind::Pinned, 4, 1);
    story.clear_with(1, vec![private(0, 64)], |clear| {
        clear.blind_bytes[Blind::Pinned as usize] = 3 * PAGE;
        clear.direct_read_bytes = 2 * PAGE;
    });
    assert_eq!(story.of(1).blind_bytes_nowhere, 2 * PAGE);
    // Nor is what was lost on the way.
    story.clear_with(2, vec![private(0, 64)], |clear| {
        clear.blind_bytes[Blind::Hugetlb as usize] = 512 * PAGE;
    });
    assert_eq!(story.of(2).blind_bytes_nowhere, 512 * PAGE);
}

#[test]
fn an_epoch_does_not_begin_before_the_record_of_its_clear() {
    let mut story = Story::new();
    // The ledger does not know of the address space yet.
    blind(&mut story, 1, Blind::AioRing, 4, 1);
    story.settle();
    story.clear(1, vec![private(0, 64)]);
    assert_eq!(story.of(1).reasons, []);
    assert_eq!(again(&story, 1), [(4, 5)]);
}
