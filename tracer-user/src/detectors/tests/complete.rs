//! What was not seen, what came late, and what is given up.

use super::*;

type Change = fn(&mut Sample);

#[test]
fn every_kind_of_loss_forbids_trust() {
    for stage in LOSSES {
        let mut story = Story::new();
        story.clear(1, vec![]);
        story.lose(stage, 1);
        story.clear(2, vec![]);
        story.settle();
        assert_eq!(story.of(1).verdict, Verdict::Suspect, "{stage:?}");
        assert_eq!(story.of(1).reasons[0].name, stage.label());
        // The loss was over when the next one began; nothing has been lost since.
        story.lose(stage, 1);
        story.clear(3, vec![]);
        story.settle();
        assert_eq!(story.of(2).verdict, Verdict::Trusted, "{stage:?}");
    }
    let own: [(Change, &str); 3] = [
        (|sample| sample.undecodable = 1, "undecodable"),
        (|sample| sample.missing_records = 1, "missing_records"),
        (|sample| sample.missed_runs = 1, "missed_probe_runs"),
    ];
    for (change, reason) in own {
        let mut story = Story::new();
        story.clear(1, vec![]);
        let mut sample = Sample::default();
        change(&mut sample);
        story.detectors.note_losses(&sample);
        assert_eq!(story.of(1).reasons[0].name, reason);
    }
    let mut story = Story::new();
    story.detectors.note_losses(&Sample {
        unavailable_probes: 1,
        uncounted_probes: 1,
        watched_since_ns: Some(u64::MAX),
        ..Sample::default()
    });
    story.clear(1, vec![]);
    let reasons: Vec<_> = story
        .of(1)
        .reasons
        .into_iter()
        .map(|reason| reason.name)
        .collect();
    assert_eq!(
        reasons,
        ["uncounted_probes", "probe_unavailable", "watch_started_late"]
    );
}

#[test]
fn a_skipped_run_concerns_no_epoch_that_ended_before_the_last_reading() {
    let mut story = Story::new();
    story.clear(1, vec![]);
    story.clear(2, vec![]);
    let at_ns = story.now + 500;
    story.detectors.note_losses(&Sample {
        missed_runs_at_ns: at_ns,
        ..Sample::default()
    });
    story.clear(3, vec![]);
    story.clear(4, vec![]);
    story.detectors.note_losses(&Sample {
        missed_runs: 1,
        missed_runs_at_ns: story.now + 500,
        ..Sample::default()
    });
    story.clear(5, vec![]);
    story.settle();
    let verdicts: Vec<_> = (1..=4).map(|epoch| story.of(epoch).verdict).collect();
    assert_eq!(
        verdicts,
        [
            Verdict::Trusted,
            Verdict::Suspect,
            Verdict::Suspect,
            Verdict::Suspect
        ]
    );
    // What comes to light late may be of any of them.
    let mut story = Story::new();
    story.clear(1, vec![]);
    story.clear(2, vec![]);
    story.detectors.note_losses(&Sample {
        missed_runs_at_ns: story.now + 500,
        ..Sample::default()
    });
    story.detectors.note_losses(&Sample {
        missing_records: 1,
        ..Sample::default()
    });
    assert_eq!(story.of(1).verdict, Verdict::Suspect);
}

#[test]
fn a_write_that_has_not_returned_long_after_its_epoch_forbids_trust_in_that_and_the_next() {
    let mut story = Story::new();
    for epoch in 1..=4 {
        story.clear(epoch, vec![]);
    }
    story.detectors.note_losses(&Sample {
        writes_under_way: vec![(BIRTH, 2), (BIRTH + 0x1000, 1)],
        ..Sample::default()
    });
    story.settle();
    let verdicts: Vec<_> = (1..=3).map(|epoch| story.of(epoch).verdict).collect();
    assert_eq!(verdicts, [Verdict::Trusted, Verdict::Suspect, Verdict::Suspect]);
    assert_eq!(story.of(2).reasons[0].name, "write_unreturned");
}

#[test]
fn so_does_one_that_comes_to_light_before_that() {
    let mut story = Story::new();
    for epoch in 1..=4 {
        story.clear(epoch, vec![private(0, 16)]);
    }
    story.range(
        RangeCause::WriteUnreturned,
        Range::of(CHUNK + PAGE, PAGE),
        |record| {
            record.epoch = 2;
        },
    );
    story.settle();
    let verdicts: Vec<_> = (1..=4).map(|epoch| story.of(epoch).verdict).collect();
    assert_eq!(
        verdicts,
        [
            Verdict::Trusted,
            Verdict::Suspect,
            Verdict::Suspect,
            Verdict::Trusted
        ]
    );
    assert_eq!(story.of(3).reasons[0].name, "write_unreturned");
    assert_eq!(story.of(2).dump_again.len(), 1);
}

#[test]
fn and_one_that_comes_to_light_while_the_next_clear_walks() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 16)]);
    story.range(
        RangeCause::WriteUnreturned,
        Range::of(CHUNK + PAGE, PAGE),
        |record| {
            record.epoch = 1;
        },
    );
    for epoch in 2..=3 {
        story.clear(epoch, vec![private(0, 16)]);
    }
    story.exit(3);
    story.settle();
    let verdicts: Vec<_> = (1..=3).map(|epoch| story.of(epoch).verdict).collect();
    assert_eq!(verdicts, [Verdict::Suspect, Verdict::Suspect, Verdict::Trusted]);
    assert_eq!(story.of(2).reasons[0].name, "write_unreturned");
    assert_eq!(story.of(2).dump_again.len(), 1);
}

#[test]
fn epochs_that_no_clear_opened_are_not_trusted() {
    for (origin, reason) in [(ORIGIN_ADOPTED, "adopted"), (ORIGIN_FORK, "forked")] {
        let mut story = Story::new();
        let header = story.header();
        story.apply(&Record::Track(TrackRecord {
            header,
            birth: BIRTH,
            origin,
            target: task(50),
            ..TrackRecord::default()
        }));
        // The kernel side does not know what was there when it began; nor is it asked.
        story.vma(private(0, 64), VMA_CHANGED);
        let so_far = story.of(1);
        assert_eq!(so_far.verdict, Verdict::Suspect);
        assert_eq!(so_far.reasons.len(), 1);
        assert_eq!(so_far.reasons[0].name, reason);
        story.clear(2, vec![]);
        assert_eq!(story.of(2).verdict, Verdict::Trusted);
    }
}

#[test]
fn an_epoch_from_before_the_last_attaching_is_late_however_it_began() {
    let watched = |story: &mut Story, watched_since_ns| {
        story.detectors.note_losses(&Sample {
            watched_since_ns,
            ..Sample::default()
        });
    };
    let is_late = |story: &Story, epoch| {
        let reasons = story.of(epoch).reasons;
        reasons.iter().any(|reason| reason.name == "watch_started_late")
    };
    let mut story = Story::new();
    watched(&mut story, Some(u64::MAX));
    story.clear(1, vec![]);
    assert!(is_late(&story, 1));
    // Attached after the record of the second was written, and before it is taken in; the third is later.
    let at_ns = story.now + 1000;
    watched(&mut story, Some(at_ns));
    story.clear(2, vec![]);
    story.clear(3, vec![]);
    assert!(is_late(&story, 2) && !is_late(&story, 3));
    // Detached: whatever is taken in now may have begun after that.
    watched(&mut story, Some(u64::MAX));
    story.clear(4, vec![]);
    assert!(is_late(&story, 4) && !is_late(&story, 3));
    for origin in [ORIGIN_ADOPTED, ORIGIN_FORK] {
        for (since_ns, late) in [(None, false), (Some(0), false), (Some(u64::MAX), true)] {
            let mut story = Story::new();
            watched(&mut story, since_ns);
            let header = story.header();
            story.apply(&Record::Track(TrackRecord {
                header,
                birth: BIRTH,
                origin,
                target: task(50),
                ..TrackRecord::default()
            }));
            assert_eq!(is_late(&story, 1), late, "{origin} {since_ns:?}");
        }
    }
}

#[test]
fn records_that_never_came_leave_their_mark() {
    let mut story = Story::new();
    story.clear(1, vec![]);
    story.clear(3, vec![]);
    story.settle();
    assert_eq!(story.of(1).verdict, Verdict::Suspect);
    assert_eq!(story.of(1).reasons[0].name, "end_unseen");
    assert_eq!(story.of(3).verdict, Verdict::Trusted);
    // The ledger knows of a newer epoch, from its rows.
    story.world.live.insert(BIRTH, 4);
    story.settle();
    assert_eq!(story.of(4).reasons[0].name, "opening_unseen");
    // And that the address space is gone.
    story.world.live.clear();
    story.settle();
    story.settle();
    assert!(story.of(4).finished);
}

#[test]
fn a_finding_that_overtakes_the_record_of_its_clear() {
    let mut story = Story::new();
    story.pages(private(0, 64), ksm);
    assert_eq!(story.of(1).reasons[1].name, "opening_unseen");
    story.clear(1, vec![private(0, 64)]);
    let so_far = story.of(1);
    assert_eq!((so_far.verdict, so_far.reasons.len()), (Verdict::Broken, 1));
}

#[test]
fn a_finding_of_the_old_epoch_after_the_clear_still_counts_and_later_it_is_counted_as_late() {
    let mut story = Story::new();
    story.clear(1, vec![private(0, 64)]);
    story.clear(2, vec![private(0, 64)]);
    story.pages(private(0, 64), ksm);
    assert_eq!(story.of(1).verdict, Verdict::Broken);
    story.settle();
    story.pages(private(0, 64), |record| record.lost = PageSet::range(0, 64));
    assert_eq!(story.found(1), [("ksm-merge".to_owned(), Evidence::Observed, 63)]);
    assert_eq!(story.detectors.summary().late, 1);
}

#[test]
fn memory_is_given_back() {
    let mut story = Story::new();
    story.detectors = Detectors::new(Limits {
        chunks: 2,
        detailed_epochs: 1,
    });
    for epoch in 1..=4 {
        story.clear(epoch, vec![]);
        for chunk in 0..3 {
            story.pages(private(0, 512), |record| {
                record.epoch = epoch;
                record.address = CHUNK + (chunk << 21);
                record.lost = PageSet::range(0, 2);
                marked(record, PageCause::Ksm, 0, 2);
            });
        }
        assert_eq!(story.detectors.budget.left, 0);
        let found = &story.of(epoch).causes[0];
        assert_eq!((found.pages, found.bound), (4, Bound::AtLeast));
        assert_eq!(found.ranges.len(), 3);
        assert!(
            story
                .of(epoch)
                .reasons
                .iter()
                .any(|reason| reason.name == "findings_full" && reason.count == 2)
        );
        story.told();
        story.clear(epoch + 1, vec![]);
        story.settle();
        story.told();
        assert_eq!(story.detectors.budget.left, 2);
    }
    let summary = story.detectors.summary();
    assert_eq!((summary.folded, summary.unlisted), (3, 8));
    assert!(story.of(1).ranges_given_up);
    assert_eq!(story.of(1).causes[0].pages, 4);
    assert!(!story.of(4).ranges_given_up);
    for epoch in 1..=5 {
        story.world.unlisted.insert((BIRTH, epoch));
    }
    story.settle();
    assert!(story.detectors.detection(BIRTH, 4).is_none());
    assert!(story.detectors.detection(BIRTH, 5).is_some(), "it is open");
    story.exit(5);
    story.settle();
    story.told();
    story.settle();
    assert!(story.detectors.spaces.is_empty());
}

#[test]
fn more_moves_than_the_programs_remember_concern_their_address_space() {
    let moved = |moves: &[(u64, u64)]| {
        let mut story = Story::new();
        story.clear(1, vec![private(0, 4)]);
        for &(from, to) in moves {
            story.range(RangeCause::Remap, pages(to, 4), |record| {
                (record.from, record.from_length, record.detail) = (CHUNK + from * PAGE, 4 * PAGE, 3);
            });
        }
        story
            .of(1)
            .reasons
            .iter()
            .any(|reason| reason.name == "moved_full")
    };
    // One mapping that goes from place to place, and eight that go once.
    let chain: Vec<_> = (0..20).map(|at| (at * 8, at * 8 + 8)).collect();
    assert!(!moved(&chain));
    let once: Vec<_> = (0..9).map(|at| (at * 8, 400 + at * 8)).collect();
    assert!(!moved(&once[..8]));
    assert!(moved(&once));
}
