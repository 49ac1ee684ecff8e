//! Whatever comes in whatever order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::detectors::incident::State;

#[derive(Clone, Copy, Debug)]
enum Step {
    Clear {
        skip: u32,
        tracker: u32,
        read: bool,
    },
    Exit,
    Pages {
        back: u32,
        chunk: u64,
        first: usize,
        count: usize,
        what: u8,
        mark: usize,
        reader: u32,
    },
    Range {
        back: u32,
        cause: u32,
        first: u64,
        count: u64,
        detail: u32,
    },
    Vma {
        back: u32,
        start: u64,
        count: u64,
        state: u32,
        shared: bool,
    },
    Lose(usize),
    Settle,
    Tell,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u32..2, 7u32..9, any::<bool>())
            .prop_map(|(skip, tracker, read)| Step::Clear { skip: skip / 2 + skip % 2 * u32::from(read), tracker, read }),
        1 => Just(Step::Exit),
        6 => (0u32..3, 0u64..3, 0usize..500, 1usize..12, 0u8..6, 0usize..7, 0u32..5).prop_map(
            |(back, chunk, first, count, what, mark, reader)| Step::Pages { back, chunk, first, count, what, mark, reader }
        ),
        4 => (0u32..3, 1u32..8, 0u64..128, 1u64..64, prop::sample::select(vec![0u32, 3, 4, 7, 8, 9, 21, 25, 102]))
            .prop_map(|(back, cause, first, count, detail)| Step::Range { back, cause, first, count, detail }),
        2 => (0u32..3, 0u64..64, 1u64..128, 0u32..4, any::<bool>())
            .prop_map(|(back, start, count, state, shared)| Step::Vma { back, start, count, state, shared }),
        1 => (0..LOSSES.len()).prop_map(Step::Lose),
        2 => Just(Step::Settle),
        2 => Just(Step::Tell),
    ]
}

/// What the log has said.
#[derive(Default)]
struct Log {
    open: BTreeMap<(u32, String, Evidence), u64>,
    closed: BTreeMap<(u32, String, Evidence), u64>,
}

impl Log {
    fn take(&mut self, told: Vec<Incident>) {
        for incident in told {
            let key = (incident.epoch, incident.cause, incident.evidence);
            let again = match incident.state {
                State::Open => {
                    assert!(
                        !self.closed.contains_key(&key),
                        "opened after it was closed: {key:?}"
                    );
                    self.open.insert(key.clone(), incident.pages)
                }
                State::Closed => self.closed.insert(key.clone(), incident.pages),
            };
            assert_eq!(again, None, "told twice: {key:?}");
        }
    }
}

fn do_step(story: &mut Story, newest: &mut u32, lost: &mut u64, step: Step, log: &mut Log) {
    let of = |back: u32, newest: u32| newest.saturating_sub(back).max(1);
    match step {
        Step::Clear { skip, tracker, read } => {
            let before = *newest;
            *newest += 1 + skip;
            let mut file = shared(64, 64);
            (file.inode, file.device) = (9, 3);
            story.clear_with(*newest, vec![private(0, 64), file], |clear| {
                clear.tracker = task(tracker);
                (clear.read_epoch, clear.writes_after_read) = (before, u64::from(read) * 5);
            });
        }
        Step::Exit => {
            if *newest > 0 {
                story.exit(*newest);
            }
        }
        Step::Pages {
            back,
            chunk,
            first,
            count,
            what,
            mark,
            reader,
        } => {
            let vma = if first < 64 {
                private(0, 64)
            } else {
                shared(64, 64)
            };
            story.pages(vma, |record| {
                record.epoch = of(back, *newest);
                record.address += chunk << 21;
                record.reader = reader;
                let set = PageSet::range(first, count);
                match what {
                    0 => record.exposed = set,
                    1 => record.moved = set,
                    2 => (record.lost, record.raced) = (set, set),
                    3 => (record.lost, record.none) = (set, set),
                    4 => (record.lost, record.zero) = (set, set),
                    _ => (record.lost, record.exposed) = (set, set),
                }
                if let Some(&cause) = PageCause::ALL.get(mark) {
                    marked(record, cause, first, count.min(512 - first));
                }
            });
        }
        Step::Range {
            back,
            cause,
            first,
            count,
            detail,
        } => {
            let cause = RangeCause::from_raw(cause).unwrap();
            let of_file = matches!(cause, RangeCause::FileHole | RangeCause::FileWrite);
            story.range(cause, pages(first, count), |record| {
                record.epoch = of(back, *newest);
                record.detail = detail;
                (record.from, record.from_length) = (CHUNK + (first / 2) * PAGE, count / 2 * PAGE);
                if of_file {
                    record.start = first * PAGE;
                    (record.from, record.from_length) = (9, 3);
                }
            });
        }
        Step::Vma {
            back,
            start,
            count,
            state,
            shared: is_shared,
        } => {
            let vma = if is_shared {
                shared(start, count)
            } else {
                private(start, count)
            };
            story.vma_of(of(back, *newest), writable(vma), state);
        }
        Step::Lose(at) => {
            *lost += 1;
            let stages = LOSSES.map(|stage| (stage, *lost * u64::from(stage == LOSSES[at])));
            let mut sample = Sample {
                stages: stages.into_iter().collect(),
                missed_runs: 0,
                ..Sample::default()
            };
            // Counters never go back.
            for (stage, count) in &mut sample.stages {
                let before = story.detectors.losses.last(Unknown::Lost(*stage));
                *count = (*count).max(before);
            }
            story.detectors.note_losses(&sample);
        }
        Step::Settle => story.settle(),
        Step::Tell => log.take(story.told()),
    }
}

proptest! {
    #[test]
    fn nothing_is_told_twice_and_everything_is_given_back(steps in prop::collection::vec(step(), 0..80)) {
        let mut story = Story::new();
        let (mut newest, mut lost, mut log) = (0, 0, Log::default());
        for step in steps {
            do_step(&mut story, &mut newest, &mut lost, step, &mut log);
            for epoch in 1..=newest {
                let Some(known) = story.detectors.detection(BIRTH, epoch) else { continue };
                let missed = known.causes.iter().any(|found| found.evidence.is_miss());
                prop_assert_eq!(missed, known.verdict == Verdict::Broken);
                prop_assert_eq!(known.reasons.is_empty(), known.verdict == Verdict::Trusted);
                // Whatever was found lies in the ranges to dump again.
                let again: u64 = known.dump_again.iter().map(|range| range.end.0 - range.start.0).sum();
                for found in &known.causes {
                    let bytes: u64 = found.ranges.iter().map(|range| range.end.0 - range.start.0).sum();
                    prop_assert!(bytes <= again);
                    if found.bound == Bound::Exact {
                        prop_assert_eq!(bytes, found.pages * PAGE);
                    }
                }
            }
        }
        story.exit(newest.max(1));
        story.world.live.clear();
        story.settle();
        log.take(story.told());
        story.settle();
        // Everything that was opened was closed.
        for key in log.open.keys() {
            prop_assert!(log.closed.contains_key(key), "{:?} was never closed", key);
        }
        prop_assert_eq!(story.detectors.budget.left, Limits::default().chunks);
        // The counters have at least what stands at the end; of one cause they may have more, where a page was found
        // again under stronger evidence.
        let summary = story.detectors.summary();
        for (cause, evidence, pages) in summary.missed {
            let closed: u64 = log
                .closed
                .iter()
                .filter(|((_, of, how), _)| of == cause.label() && *how == evidence)
                .map(|(_, pages)| pages)
                .sum();
            prop_assert!(pages >= closed, "{:?} {:?}: {} < {}", cause, evidence, pages, closed);
        }
        let finished: u64 = summary.verdicts.iter().map(|(_, epochs)| epochs).sum();
        let known = (1..=newest.max(1)).filter(|&epoch| story.detectors.detection(BIRTH, epoch).is_some()).count();
        prop_assert_eq!(finished, known as u64);
        prop_assert!(summary.open.iter().all(|&(_, epochs)| epochs == 0));
        prop_assert!(summary.exposed.iter().all(|&(_, pages)| pages == 0));
    }
}
