//! What becomes of a changed content, and what makes it no proof.

use tracer_common::flags::{VM_HUGETLB, VM_MAYWRITE, VM_PFNMAP};
use tracer_common::records::{ExecRecord, Kind};

use super::*;
use crate::detectors::verify::{Area, Changed, LeftOut, Reading};

/// A reading of epoch 1 in which these pages had changed, of 64 that were compared for the first time.
fn changed(story: &mut Story, which: std::ops::Range<u64>) -> Reading {
    story.now += 1000;
    Reading {
        birth: BIRTH,
        epoch: 1,
        done_ns: story.now,
        compared: 64,
        changed: which
            .map(|page| Changed {
                address: CHUNK + page * PAGE,
                first: true,
            })
            .collect(),
        ..Reading::default()
    }
}

fn again(mut reading: Reading) -> Reading {
    reading.compared = 0;
    for changed in &mut reading.changed {
        changed.first = false;
    }
    reading
}

impl Story {
    fn verified(&mut self, reading: &Reading) {
        self.detectors.verified(reading, &self.world);
    }

    fn left_out(&self, why: LeftOut) -> u64 {
        let left_out = self.detectors.summary().left_out;
        left_out.iter().find(|(is, _)| *is == why).unwrap().1
    }

    /// Nothing came of it, for this reason.
    fn proves_nothing(&self, why: LeftOut) {
        let found = self.found(1);
        assert!(
            found.iter().all(|(_, evidence, _)| *evidence != Evidence::Proved),
            "{found:?}"
        );
        assert!(self.left_out(why) > 0, "{why:?}");
        assert_eq!(self.detectors.summary().verified.missed, 0);
    }
}

/// Memory that somebody else maps writable, too.
fn aliased(start_page: u64, pages: u64) -> VmaAtClear {
    VmaAtClear {
        inode: 9,
        shared_mappings: 2,
        ..shared(start_page, pages)
    }
}

#[test]
fn a_changed_content_is_a_missed_write_and_breaks_the_epoch() {
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 64)]);
    let reading = changed(&mut story, 4..8);
    story.verified(&reading);
    let so_far = story.of(1);
    assert_eq!(so_far.verdict, Verdict::Broken);
    assert_eq!(
        story.found(1),
        [("unknown_cause".to_owned(), Evidence::Proved, 4)]
    );
    assert_eq!(so_far.dump_again.len(), 1);
    assert_eq!(so_far.dump_again[0].start.0, CHUNK + 4 * PAGE);
    assert_eq!(so_far.dump_again[0].end.0, CHUNK + 8 * PAGE);
    let verified = so_far.verified.unwrap();
    assert_eq!((verified.pages, verified.missed), (64, 4));
    let told = story.told();
    assert_eq!(
        (told.len(), told[0].evidence, told[0].pages),
        (1, Evidence::Proved, 4)
    );
    assert_eq!(told[0].readers, ["own_audit"]);
    // Told again it is no other page. What nobody knows the cause of is counted when its epoch is over.
    story.verified(&again(reading));
    assert_eq!(story.detectors.summary().verified.missed, 4);
    assert_eq!(story.missed(Cause::Unknown), 0);
    story.exit(1);
    story.settle();
    assert_eq!(story.missed(Cause::Unknown), 4);
}

#[test]
fn a_cause_may_come_to_be_known_later() {
    let mut story = Story::new();
    let file = VmaAtClear {
        inode: 9,
        ..vma(0, 64, VM_SHARED, VmaKind::SharedFile)
    };
    story.clear(1, vec![file]);
    let reading = changed(&mut story, 0..4);
    story.verified(&reading);
    story.range(RangeCause::FileWrite, Range::of(0, 4 * PAGE), |record| {
        (record.birth, record.epoch, record.from) = (0, 0, 9);
    });
    story.verified(&again(reading));
    let mut found = story.found(1);
    found.retain(|(_, evidence, _)| *evidence == Evidence::Proved);
    assert_eq!(found, [("file-write".to_owned(), Evidence::Proved, 4)]);
    assert_eq!(story.missed(Cause::FileWrite), 4);
    assert_eq!(story.detectors.summary().verified.missed, 4);
}

#[test]
fn the_cause_is_what_is_known_of_the_memory() {
    let cause = |vma: VmaAtClear, change: &dyn Fn(&mut Story)| {
        let mut story = Story::new();
        story.range(RangeCause::Blind, pages(0, 1), |record| {
            record.detail = Blind::Pinned as u32;
        });
        story.clear_with(1, vec![vma], |clear| {
            clear.blind_bytes[Blind::Pinned as usize] = 4096;
            clear.blind_bytes[Blind::AioRing as usize] = 4096;
        });
        change(&mut story);
        let reading = changed(&mut story, 0..1);
        story.verified(&reading);
        let mut found = story.found(1);
        found.retain(|(_, evidence, _)| *evidence == Evidence::Proved);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0).0
    };
    let nothing = |_: &mut Story| ();
    assert_eq!(cause(aliased(0, 64), &nothing), "other-mapper");
    assert_eq!(cause(shared(0, 64), &nothing), "pinned-buffer");
    let other_ring = vma(0, 64, VM_SHARED | 0x4_0000, VmaKind::SharedFile);
    let ring = VmaAtClear {
        inode: 8,
        ..other_ring
    };
    assert_eq!(cause(ring, &nothing), "aio-ring");
    assert_eq!(cause(other_ring, &nothing), "pinned-buffer");
    let file = VmaAtClear {
        inode: 9,
        ..vma(0, 64, VM_SHARED, VmaKind::SharedFile)
    };
    let written = |story: &mut Story| {
        story.range(RangeCause::FileWrite, Range::of(0, PAGE), |record| {
            (record.birth, record.epoch, record.from) = (0, 0, 9);
        });
    };
    assert_eq!(cause(file, &written), "file-write");
    let moved = |story: &mut Story| {
        story.range(RangeCause::Remap, pages(0, 64), |record| {
            (record.from, record.from_length) = (CHUNK + 0x20_0000, 64 * PAGE);
        });
    };
    assert_eq!(cause(private(0, 64), &moved), "mremap-table-move");
    // A child that was forked since the clear maps all of it.
    let forked = |story: &mut Story| {
        let header = story.header();
        story.apply(&Record::Track(TrackRecord {
            header,
            birth: BIRTH + 1,
            parent: BIRTH,
            parent_epoch: 1,
            origin: ORIGIN_FORK,
            target: task(51),
        }));
    };
    assert_eq!(cause(shared(0, 64), &forked), "other-mapper");
}

#[test]
fn a_page_that_was_observed_counts_once_and_keeps_its_cause() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    story.pages(private(0, 64), ksm);
    assert_eq!(story.missed(Cause::KsmMerge), 63);
    let reading = changed(&mut story, 0..64);
    story.verified(&reading);
    assert_eq!(
        story.found(1),
        [
            ("ksm-merge".to_owned(), Evidence::Proved, 63),
            ("unknown_cause".to_owned(), Evidence::Proved, 1)
        ]
    );
    assert_eq!(story.missed(Cause::KsmMerge), 63);
}

#[test]
fn a_clear_before_the_reading_was_over_makes_it_worthless() {
    // Its record is there: it began before the reading was over.
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 64)]);
    let reading = changed(&mut story, 0..4);
    story.clear_with(2, vec![], |clear| clear.entry_ns = reading.done_ns - 1);
    story.verified(&reading);
    story.proves_nothing(LeftOut::Cleared);
    // Its record is still to come, but the rows tell of it.
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 64)]);
    let reading = changed(&mut story, 0..4);
    story.world.newest_met = 2;
    story.verified(&reading);
    story.proves_nothing(LeftOut::Cleared);
    // Its record is lost, and that of the one after it is there.
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 64)]);
    let reading = changed(&mut story, 0..4);
    story.clear(3, vec![]);
    story.verified(&reading);
    story.proves_nothing(LeftOut::Cleared);
    // The epoch is finished.
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 64)]);
    let reading = changed(&mut story, 0..4);
    story.exit(1);
    story.settle();
    story.verified(&reading);
    story.proves_nothing(LeftOut::Cleared);
}

#[test]
fn a_clear_after_the_reading_takes_nothing_from_it() {
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 64)]);
    let reading = changed(&mut story, 0..4);
    story.clear_with(2, vec![], |clear| clear.entry_ns = reading.done_ns + 1);
    story.world.newest_met = 2;
    story.verified(&reading);
    assert_eq!(story.of(1).verdict, Verdict::Broken);
    assert_eq!(story.of(2).verdict, Verdict::Trusted);
}

#[test]
fn an_exec_ends_the_memory_and_not_the_proof() {
    let mut story = Story::new();
    story.clear(1, vec![shared(0, 64)]);
    let reading = changed(&mut story, 0..4);
    let header = story.header();
    story.apply(&Record::Exec(ExecRecord {
        header: Header {
            kind: Kind::Exec as u16,
            ..header
        },
        birth: BIRTH,
        task: task(50),
    }));
    story.exit(1);
    assert_eq!(story.detectors.to_sample(BIRTH), None);
    // What was read before was read in its own address space.
    story.verified(&reading);
    assert_eq!(story.of(1).verdict, Verdict::Broken);
}

#[test]
fn what_may_have_hidden_a_clear_withholds_the_proof() {
    for stage in [Stage::ClearsFull, Stage::OrphanReturn] {
        let mut story = Story::new();
        story.clear(1, vec![shared(0, 64)]);
        story.lose(stage, 1);
        let reading = changed(&mut story, 0..4);
        story.verified(&reading);
        story.proves_nothing(LeftOut::Unsure);
    }
}

#[test]
fn what_the_target_threw_away_proves_nothing() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    story.range(RangeCause::Advice, pages(0, 4), |record| record.detail = 4);
    let reading = changed(&mut story, 0..4);
    story.verified(&reading);
    story.proves_nothing(LeftOut::Dropped);
    assert_eq!(story.of(1).verdict, Verdict::Trusted);
}

#[test]
fn a_sample_is_drawn_from_writable_memory_that_the_clear_met() {
    let mut story = Story::new();
    assert_eq!(story.detectors.to_sample(BIRTH), None);
    let mut reserved = private(8, 2);
    reserved.key.flags = VM_MAYWRITE;
    let mut constant = private(10, 2);
    constant.key.flags = VM_READ;
    story.clear(
        1,
        vec![
            private(0, 2),
            shared(2, 2),
            vma(4, 2, VM_PFNMAP, VmaKind::SharedFile),
            vma(6, 2, VM_HUGETLB, VmaKind::SharedFile),
            reserved,
            constant,
            // A driver's.
            vma(12, 2, 0x4000, VmaKind::SharedFile),
            vma(14, 2, 0x1000_0000, VmaKind::SharedFile),
            // The target's own fault handler would have to bring the pages.
            vma(16, 2, 0x200, VmaKind::PrivateAnon),
        ],
    );
    let area = |start, shared| Area {
        range: pages(start, 2),
        shared,
    };
    assert_eq!(
        story.detectors.to_sample(BIRTH),
        Some((1, vec![area(0, false), area(2, true)]))
    );
    // What was moved over is another memory.
    story.range(RangeCause::Remap, pages(0, 1), |record| {
        (record.from, record.from_length) = (CHUNK + 0x20_0000, PAGE);
    });
    assert_eq!(story.detectors.to_sample(BIRTH).unwrap().1[0].range, pages(1, 1));
    // It is not known what a clear met, or none opened the epoch.
    story.detectors.clear_without_rows();
    assert_eq!(story.detectors.to_sample(BIRTH), None);
}

impl Detectors {
    fn clear_without_rows(&mut self) {
        for space in self.spaces.values_mut() {
            for epoch in space.epochs.values_mut() {
                epoch.at_clear = None;
            }
        }
    }
}
