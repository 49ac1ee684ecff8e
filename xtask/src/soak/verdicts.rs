//! Why epochs were not trusted, from sdtrace's own dumps. Pure.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::detection::said::{Dump, Epoch, Space};

/// Reasons of epochs that no clear of a tracker opened.
const WITHOUT_A_CLEAR: [&str; 2] = ["forked", "adopted"];

/// Finished epochs, each looked at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Examined {
    /// How many were looked at: those that were listed by one of the dumps.
    pub epochs: u64,
    /// Of those, the ones that a clear opened.
    pub of_clears: u64,
    /// Of the latter, those with a check that could not be completed.
    pub unknown: u64,
    /// By process name, verdict and reasons (`stress-ng-vm suspect: unknown:vmas_unknown`).
    pub reasons: BTreeMap<String, u64>,
    /// Those of the last dump that were looked at: birth of the address space and number.
    #[serde(skip)]
    pub(super) seen: HashSet<(u64, u32)>,
}

impl Examined {
    /// Takes in a dump.
    pub fn take_in(&mut self, dump: &Dump) {
        let mut listed = HashSet::new();
        for space in &dump.address_spaces {
            for epoch in &space.epochs {
                let key = (space.birth, epoch.number);
                if self.seen.contains(&key) || self.look_at(space, epoch) {
                    listed.insert(key);
                }
            }
        }
        // What is not listed any more never comes back.
        self.seen = listed;
    }

    /// The epochs with a missed write or an exposed page: how many, and in words.
    #[must_use]
    pub fn incidents(&self) -> (u64, Vec<String>) {
        let found = self
            .reasons
            .iter()
            .filter(|(words, _)| words.contains(" missed:") || words.contains(" exposed:"));
        let (mut sum, mut all) = (0, Vec::new());
        for (words, &epochs) in found {
            sum += epochs;
            all.push(format!("{epochs} of {words}"));
        }
        (sum, all)
    }

    /// The epochs of a process that have another reason against trust than these.
    #[must_use]
    pub fn distrusted(&self, name: &str, but_for: &[&str]) -> Vec<String> {
        let found = self.reasons.iter().filter(|(words, _)| {
            let reasons = words.strip_prefix(name).and_then(|words| words.split_once(": "));
            reasons.is_some_and(|(_, reasons)| reasons.split(' ').any(|reason| !but_for.contains(&reason)))
        });
        found
            .map(|(words, epochs)| format!("{epochs} of {words}"))
            .collect()
    }

    /// Whether it is finished.
    fn look_at(&mut self, space: &Space, epoch: &Epoch) -> bool {
        let Some(detection) = epoch.detection.as_ref().filter(|detection| detection.finished) else {
            return false;
        };
        self.epochs += 1;
        let because = |names: &[&str]| {
            let unknown = detection.reasons.iter().filter(|reason| reason.kind == "unknown");
            unknown
                .filter(|reason| names.is_empty() || names.contains(&reason.name.as_str()))
                .count()
                > 0
        };
        if !because(&WITHOUT_A_CLEAR) {
            self.of_clears += 1;
            self.unknown += u64::from(because(&[]));
        }
        let name = space.process.as_ref().map_or("?", |process| &process.comm);
        let reasons: Vec<_> = detection
            .reasons
            .iter()
            .map(|reason| format!("{}:{}", reason.kind, reason.name))
            .collect();
        let words = if reasons.is_empty() {
            format!("{name} {}", detection.verdict)
        } else {
            format!("{name} {}: {}", detection.verdict, reasons.join(" "))
        };
        *self.reasons.entry(words).or_default() += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dump(finished: bool) -> Dump {
        let detection = json!({ "verdict": "suspect", "finished": finished, "causes": [], "dropped_pages": {},
            "reasons": [{ "kind": "unknown", "name": "forked", "count": 1 }] });
        serde_json::from_value(
            json!({ "incomplete": [], "address_spaces": [{ "birth": 5, "folded_epochs": 0,
            "process": { "pid": 7, "comm": "vm" }, "epochs": [{ "number": 1, "detection": detection }] }] }),
        )
        .unwrap()
    }

    #[test]
    fn what_no_clear_opened_is_no_epoch_of_a_tracker() {
        let mut examined = Examined::default();
        examined.take_in(&dump(true));
        assert_eq!((examined.of_clears, examined.unknown), (0, 0));
        let mut other = dump(true);
        other.address_spaces[0].birth = 6;
        let reasons = &mut other.address_spaces[0].epochs[0]
            .detection
            .as_mut()
            .unwrap()
            .reasons;
        reasons[0].name = "ring_full".to_owned();
        examined.take_in(&other);
        assert_eq!((examined.of_clears, examined.unknown), (1, 1));
    }

    #[test]
    fn incidents_are_missed_writes_and_exposed_pages() {
        let count = |words: &[&str]| {
            let mut examined = Examined::default();
            for words in words {
                examined.reasons.insert((*words).to_owned(), 1);
            }
            let (sum, all) = examined.incidents();
            assert_eq!(sum, all.len() as u64);
            all.len()
        };
        assert_eq!(count(&["vm suspect: hazard:vma-merge", "vm trusted"]), 0);
        assert_eq!(
            count(&["vm broken: missed:shared-zap", "vm suspect: exposed:vma-merge"]),
            2
        );
    }

    #[test]
    fn a_finished_epoch_counts_once() {
        let mut examined = Examined::default();
        examined.take_in(&dump(false));
        assert_eq!(examined.epochs, 0);
        examined.take_in(&dump(true));
        examined.take_in(&dump(true));
        assert_eq!(examined.epochs, 1);
        let reasons: Vec<_> = examined.reasons.into_iter().collect();
        assert_eq!(reasons, [("vm suspect: unknown:forked".to_owned(), 1)]);
    }
}
