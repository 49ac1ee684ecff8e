//! The answer: for people, for programs, and as an exit code.

use std::fmt::Write as _;

use serde::Serialize;

use super::Unknown;
use super::who::Space;
use crate::detectors::{CauseBrief, Moment, Reason, Verdict};
use crate::export::api::model::{EpochDetail, Process, RangeFound, Ranges, Tracker};

/// Version of the JSON; it rises when a field changes its meaning or goes.
const FORMAT: u32 = 1;
/// Ranges that are printed for people.
const SHOWN: usize = 64;

/// What sdtrace knows.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) space: Space,
    pub(super) epoch: EpochDetail,
    pub(super) ranges: Ranges,
    pub(super) waited: bool,
    pub(super) asked_for_open: bool,
}

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    Trusted,
    Suspect,
    Broken,
    Unknown,
}

impl Word {
    const fn label(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Suspect => "suspect",
            Self::Broken => "broken",
            Self::Unknown => "unknown",
        }
    }
}

/// The answer.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    format: u32,
    verdict: Word,
    /// Why there is no verdict, in one line.
    why: Option<String>,
    pid: u32,
    process: Option<Process>,
    epoch: Option<EpochAnswer>,
    /// Address ranges to dump in full.
    dump_again: Vec<RangeFound>,
    /// The ranges are not enough: dump everything.
    dump_everything: bool,
}

/// About the epoch.
#[derive(Debug, Serialize)]
struct EpochAnswer {
    number: u32,
    #[serde(rename = "final")]
    is_final: bool,
    opened_by: String,
    opened_unix: Option<Moment>,
    ended_by: Option<String>,
    ended_ns: Option<u64>,
    tracker: Option<Tracker>,
    reasons: Vec<Reason>,
    causes: Vec<CauseBrief>,
}

impl Answer {
    pub(super) fn of(pid: u32, found: Result<Found, Unknown>) -> Self {
        let nothing = Self {
            format: FORMAT,
            verdict: Word::Unknown,
            why: None,
            pid,
            process: None,
            epoch: None,
            dump_again: Vec::new(),
            dump_everything: true,
        };
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                return Self {
                    why: Some(why),
                    ..nothing
                };
            }
        };
        let (verdict, why) = judged(&found);
        let epoch = found.epoch.epoch;
        Self {
            verdict,
            why,
            process: Some(found.space.0),
            epoch: Some(EpochAnswer {
                number: epoch.number,
                is_final: epoch.is_final,
                opened_by: epoch.opened_by,
                opened_unix: epoch.opened_unix,
                ended_by: epoch.ended_by,
                ended_ns: epoch.ended_ns,
                tracker: epoch.tracker,
                reasons: epoch.reasons,
                causes: epoch.causes,
            }),
            dump_again: found.ranges.items,
            dump_everything: found.ranges.dump_everything || verdict == Word::Unknown,
            ..nothing
        }
    }

    pub(super) const fn exit_code(&self) -> u8 {
        match self.verdict {
            Word::Trusted => 0,
            Word::Suspect => 3,
            Word::Broken => 4,
            Word::Unknown => 5,
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = self.verdict.label().to_owned();
        // Writing to a string does not fail.
        let _ = match &self.epoch {
            Some(epoch) => {
                let comm = self.process.as_ref().and_then(|process| process.comm.as_deref());
                let far = match (epoch.is_final, &epoch.ended_by) {
                    (true, _) => "",
                    (false, Some(_)) => ", not final yet",
                    (false, None) => ", still open",
                };
                let comm = comm.unwrap_or("?");
                write!(
                    text,
                    ": process {} ({comm}), epoch {}{far}",
                    self.pid, epoch.number
                )
            }
            None => write!(text, ": process {}", self.pid),
        };
        if let Some(why) = &self.why {
            let _ = write!(text, ": {why}");
        }
        text.push('\n');
        for reason in self.epoch.iter().flat_map(|epoch| &epoch.reasons) {
            let _ = writeln!(text, "  {}", worded(reason));
        }
        if self.verdict == Word::Trusted {
            return text;
        }
        if self.dump_everything {
            text.push_str("dump everything in full\n");
        } else {
            text.push_str("dump these addresses in full, whatever pagemap says:\n");
        }
        for range in self.dump_again.iter().take(SHOWN) {
            let cause = range.cause.as_deref().unwrap_or("moved");
            let _ = writeln!(text, "  {:#x}-{:#x} {cause}", range.start.0, range.end.0);
        }
        if let Some(more) = self.dump_again.len().checked_sub(SHOWN + 1) {
            let _ = writeln!(text, "  and {} more, see --json", more + 1);
        }
        text
    }
}

/// The verdict, and why there is none. What is not final may still get worse: then nobody is told to trust it, unless it
/// was asked how an open epoch does so far.
fn judged(found: &Found) -> (Word, Option<String>) {
    let epoch = &found.epoch.epoch;
    match epoch.verdict {
        None => (
            Word::Unknown,
            Some("the detectors know nothing of this epoch any more; ask sooner after it ends".to_owned()),
        ),
        Some(Verdict::Broken) => (Word::Broken, None),
        Some(Verdict::Suspect) => (Word::Suspect, None),
        Some(Verdict::Trusted) if epoch.is_final || (found.asked_for_open && !found.waited) => {
            (Word::Trusted, None)
        }
        Some(Verdict::Trusted) => {
            let remedy = if found.waited {
                "it did not become final in time; give --timeout more"
            } else {
                "nothing is found, but records may still come; give --wait"
            };
            (Word::Unknown, Some(remedy.to_owned()))
        }
    }
}

fn worded(reason: &Reason) -> String {
    let Reason { kind, name, count } = reason;
    match kind.as_str() {
        "blind" => format!("blind: {count} bytes of {name} cannot be tracked"),
        "unknown" => format!("not checked: {name}, {count} times"),
        "missed" => format!("missed: {name}, {count} pages"),
        "exposed" => format!("exposed: {name}, {count} pages"),
        _ => format!("{kind}: {name}, {count}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(verdict: Option<&str>, is_final: bool) -> Found {
        let epoch = json!({
            "number": 3, "opened_by": "clear", "verdict": verdict, "final": is_final,
            "ended_by": "clear_same_tracker",
            "reasons": if verdict == Some("trusted") { json!([]) } else {
                json!([{"kind": "exposed", "name": "migration-race", "count": 2}])
            },
            "causes": [], "write_notify_faults": 9, "missed_pages": 0, "exposed_pages": 2, "blind_bytes": 0,
            "dropped_pages": 0
        });
        let process = json!({
            "id": 1, "birth": 1, "pid": 7, "initial_pid": 7, "start_ns": 5, "comm": "redis", "state": "live",
            "origin": "clear", "epochs": {"trusted": 0, "suspect": 0, "broken": 0}, "missed_pages": 0,
            "exposed_pages": 0, "blind_bytes": 0, "dropped_pages": 0, "write_notify_faults": 0
        });
        let ranges = json!({
            "epoch": 3, "final": is_final, "dump_everything": false, "ranges_joined": false,
            "items": [{"start": "0x1000", "end": "0x3000", "cause": "migration-race", "evidence": "exposed"}]
        });
        Found {
            space: Space(serde_json::from_value(process).unwrap()),
            epoch: serde_json::from_value(epoch).unwrap(),
            ranges: serde_json::from_value(ranges).unwrap(),
            waited: false,
            asked_for_open: false,
        }
    }

    #[test]
    fn only_a_final_epoch_is_trusted() {
        let code = |found| Answer::of(7, Ok(found)).exit_code();
        assert_eq!(code(found(Some("trusted"), true)), 0);
        assert_eq!(code(found(Some("trusted"), false)), 5);
        assert_eq!(code(found(Some("suspect"), false)), 3);
        assert_eq!(code(found(Some("suspect"), true)), 3);
        assert_eq!(code(found(Some("broken"), false)), 4);
        assert_eq!(code(found(None, true)), 5);
        let open = |waited| Found {
            asked_for_open: true,
            waited,
            ..found(Some("trusted"), false)
        };
        assert_eq!((code(open(false)), code(open(true))), (0, 5));
    }

    #[test]
    fn people_get_reasons_and_addresses() {
        let text = Answer::of(7, Ok(found(Some("suspect"), true))).text();
        assert_eq!(
            text,
            "suspect: process 7 (redis), epoch 3\n  exposed: migration-race, 2 pages\n\
             dump these addresses in full, whatever pagemap says:\n  0x1000-0x3000 migration-race\n"
        );
        let text = Answer::of(7, Ok(found(Some("trusted"), true))).text();
        assert_eq!(text, "trusted: process 7 (redis), epoch 3\n");
    }

    #[test]
    fn what_is_not_known_is_never_trusted() {
        let answer = Answer::of(7, Err("no answer from sdtrace".to_owned()));
        assert_eq!(answer.exit_code(), 5);
        assert_eq!(
            answer.text(),
            "unknown: process 7: no answer from sdtrace\ndump everything in full\n"
        );
        let json = serde_json::to_value(&answer).unwrap();
        assert_eq!(
            (&json["verdict"], &json["dump_everything"]),
            (&json!("unknown"), &json!(true))
        );
    }

    #[test]
    fn a_long_list_is_cut_for_people() {
        let mut long = found(Some("suspect"), true);
        long.ranges.items = vec![long.ranges.items[0].clone(); SHOWN + 2];
        let text = Answer::of(7, Ok(long)).text();
        assert!(text.ends_with("  and 2 more, see --json\n"), "{text}");
    }
}
