//! What sdtrace said of an address space: the dump's words, added up.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::suite::ledger::Address;

/// The kind of blind memory that is counted anew in each epoch.
const PINNED: &str = "pinned";

/// The words, each with its count: pages for `missed`, `exposed`, `hazard` and `dropped`, bytes for `blind`, times for
/// `unknown` (`missed:ksm-merge` is 63). `nowhere` are bytes of blind memory that are not among the addresses to dump again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said(pub BTreeMap<String, u64>);

impl Said {
    /// The count of a word, 0 if it was not said.
    #[must_use]
    pub fn count(&self, kind: &str, name: &str) -> u64 {
        self.0.get(&format!("{kind}:{name}")).copied().unwrap_or(0)
    }

    /// All words of a kind: names and counts.
    pub fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
        self.0.iter().filter_map(move |(word, count)| {
            let (its_kind, name) = word.split_once(':')?;
            (its_kind == kind).then_some((name, *count))
        })
    }

    fn add(&mut self, kind: &str, name: &str, count: u64) {
        *self.0.entry(format!("{kind}:{name}")).or_default() += count;
    }

    fn at_least(&mut self, kind: &str, name: &str, count: u64) {
        let known = self.0.entry(format!("{kind}:{name}")).or_default();
        *known = count.max(*known);
    }

    /// Takes in what was said of one more address space.
    pub fn take_in(&mut self, space: &Space) {
        let mut blind = Self::default();
        for detection in space.epochs.iter().filter_map(|epoch| epoch.detection.as_ref()) {
            for reason in &detection.reasons {
                match reason.kind.as_str() {
                    // The same bytes are blind in every epoch, but for what reads under way deliver to.
                    "blind" if reason.name != PINNED => blind.at_least("blind", &reason.name, reason.count),
                    kind => self.add(kind, &reason.name, reason.count),
                }
            }
            for (reason, bytes) in detection.nowhere() {
                blind.at_least("nowhere", reason, bytes);
            }
            for (reason, pages) in &detection.dropped_pages {
                self.add("dropped", reason, *pages);
            }
        }
        for (word, bytes) in blind.0 {
            *self.0.entry(word).or_default() += bytes;
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("quiet");
        }
        let words: Vec<_> = self
            .0
            .iter()
            .map(|(word, count)| format!("{word}={count}"))
            .collect();
        formatter.write_str(&words.join(" "))
    }
}

/// The dump, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub struct Dump {
    /// What is missing.
    pub incomplete: Vec<Missing>,
    /// Address spaces.
    pub address_spaces: Vec<Space>,
}

/// Something that is missing.
#[derive(Clone, Debug, Deserialize)]
pub struct Missing {
    /// What.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// An address space.
#[derive(Clone, Debug, Deserialize)]
pub struct Space {
    /// Monotonic nanoseconds of the first meeting, and the CPU in the low twelve bits.
    pub birth: u64,
    /// Whose it is.
    pub process: Option<Process>,
    /// Epochs that are not listed.
    pub folded_epochs: u64,
    /// Epochs.
    pub epochs: Vec<Epoch>,
}

/// A process.
#[derive(Clone, Debug, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: Option<u32>,
    /// Name.
    pub comm: String,
}

/// An epoch.
#[derive(Clone, Debug, Deserialize)]
pub struct Epoch {
    /// Number.
    pub number: u32,
    /// What the detectors say.
    pub detection: Option<Detection>,
}

/// What the detectors say of an epoch.
#[derive(Clone, Debug, Deserialize)]
pub struct Detection {
    /// `trusted`, `suspect` or `broken`.
    pub verdict: String,
    /// Nothing can change any more.
    pub finished: bool,
    /// Why it is not trusted.
    pub reasons: Vec<Reason>,
    /// What was found.
    pub causes: Vec<Found>,
    /// Pages thrown away, by reason.
    pub dropped_pages: BTreeMap<String, u64>,
    /// What to dump in full.
    #[serde(default)]
    pub dump_again: Vec<Place>,
    /// What the contents of sampled pages showed.
    #[serde(default)]
    pub verified: Option<Verified>,
}

impl Detection {
    /// Blind memory of each reason that is more than all there is to dump again.
    fn nowhere(&self) -> impl Iterator<Item = (&str, u64)> {
        let again: u64 = self
            .dump_again
            .iter()
            .map(|place| place.end.0 - place.start.0)
            .sum();
        let blind = self.reasons.iter().filter(|reason| reason.kind == "blind");
        blind.filter_map(move |reason| {
            let bytes = reason.count.saturating_sub(again);
            (bytes > 0).then_some((reason.name.as_str(), bytes))
        })
    }
}

/// What the contents of sampled pages showed.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Verified {
    /// Pages whose content was compared.
    pub pages: u64,
    /// Of these, pages whose content had changed.
    pub missed: u64,
}

/// A reason.
#[derive(Clone, Debug, Deserialize)]
pub struct Reason {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Pages, bytes or times.
    pub count: u64,
}

/// What was found of one cause and one kind of evidence.
#[derive(Clone, Debug, Deserialize)]
pub struct Found {
    /// The cause.
    pub cause: String,
    /// How it is known.
    pub evidence: String,
    /// Pages.
    pub pages: u64,
    /// Of exposed pages: those with the hardware dirty bit.
    pub dirty_pages: u64,
    /// Addresses.
    pub ranges: Vec<Place>,
}

/// Addresses from `start` up to and without `end`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Place {
    /// First address.
    pub start: Address,
    /// First address behind.
    pub end: Address,
}

/// A line of the incident log.
#[derive(Clone, Debug, Deserialize)]
pub struct Incident {
    /// `open` or `closed`.
    pub state: String,
    /// The address space.
    pub birth: u64,
    /// The epoch.
    pub epoch: u32,
    /// The cause.
    pub cause: String,
    /// How it is known.
    pub evidence: String,
    /// Pages.
    pub pages: u64,
}

/// What was found in an epoch: address space, epoch, cause, evidence.
type Key = (u64, u32, String, String);

/// Where the incident log says something else than the dump. Each finding that stands must have been told once as open
/// and once as closed, the last time with the dump's number of pages; nothing else may have been told at the end.
#[must_use]
pub fn contradictions(dump: &Dump, log: &[Incident]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut stands: BTreeMap<Key, u64> = BTreeMap::new();
    for space in &dump.address_spaces {
        for epoch in &space.epochs {
            let Some(detection) = &epoch.detection else {
                wrong.push(format!("epoch {} of {}: no verdict", epoch.number, space.birth));
                continue;
            };
            if !detection.finished {
                wrong.push(format!("epoch {} of {}: not finished", epoch.number, space.birth));
            }
            wrong.extend(
                wrong_verdict(detection)
                    .map(|why| format!("epoch {} of {}: {why}", epoch.number, space.birth)),
            );
            for found in &detection.causes {
                let key = (
                    space.birth,
                    epoch.number,
                    found.cause.clone(),
                    found.evidence.clone(),
                );
                stands.insert(key, found.pages);
            }
        }
        if space.folded_epochs > 0 {
            wrong.push(format!("address space {}: epochs are not listed", space.birth));
        }
    }
    let mut closed: BTreeMap<Key, u64> = BTreeMap::new();
    for line in log.iter().filter(|line| line.state == "closed") {
        let key = (line.birth, line.epoch, line.cause.clone(), line.evidence.clone());
        if closed.insert(key, line.pages).is_some() {
            let Incident {
                birth,
                epoch,
                cause,
                evidence,
                ..
            } = line;
            wrong.push(format!(
                "epoch {epoch} of {birth}: {evidence} {cause} is closed twice in the log"
            ));
        }
    }
    // An incident whose pages were all found again under stronger evidence is told as closed with none.
    closed.retain(|key, pages| *pages > 0 || stands.contains_key(key));
    if closed != stands {
        for key in stands.keys().chain(closed.keys()) {
            let (dumped, logged) = (stands.get(key), closed.get(key));
            if dumped != logged {
                let (birth, epoch, cause, evidence) = key;
                wrong.push(format!(
                    "epoch {epoch} of {birth}: {evidence} {cause}: {dumped:?} pages in the dump, {logged:?} in the log"
                ));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

/// The verdict follows from the reasons.
fn wrong_verdict(detection: &Detection) -> Option<String> {
    let verdict = if detection.reasons.iter().any(|reason| reason.kind == "missed") {
        "broken"
    } else if detection.reasons.is_empty() {
        "trusted"
    } else {
        "suspect"
    };
    (verdict != detection.verdict).then(|| format!("{} for {:?}", detection.verdict, detection.reasons))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = r#"{"incomplete": [], "address_spaces": [{"birth": 4096, "process": null, "folded_epochs": 0,
        "epochs": [{"number": 1, "detection": {"verdict": "broken", "finished": true,
        "reasons": [{"kind": "missed", "name": "ksm-merge", "count": 63}, {"kind": "blind", "name": "hugetlb", "count": 9}],
        "causes": [{"cause": "ksm-merge", "evidence": "observed", "pages": 63,
        "dirty_pages": 0, "ranges": [{"start": "0x1000", "end": "0x2000"}]}], "dropped_pages": {"madv_free": 2},
        "dump_again": [{"start": "0x1000", "end": "0x2000"}]}},
        {"number": 2, "detection": {"verdict": "suspect", "finished": true,
        "reasons": [{"kind": "blind", "name": "hugetlb", "count": 7}], "causes": [], "dropped_pages": {"madv_free": 3},
        "dump_again": [{"start": "0x5000", "end": "0x5007"}]}}]}]}"#;

    fn line(state: &str, pages: u64) -> Incident {
        let text = format!(
            r#"{{"state": "{state}", "birth": 4096, "epoch": 1, "cause": "ksm-merge", "evidence": "observed", "pages": {pages}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn epochs_add_up_but_blind_bytes_are_the_same_bytes() {
        let dump: Dump = serde_json::from_str(DUMP).unwrap();
        let mut said = Said::default();
        said.take_in(&dump.address_spaces[0]);
        assert_eq!(
            said.to_string(),
            "blind:hugetlb=9 dropped:madv_free=5 missed:ksm-merge=63"
        );
        said.take_in(&dump.address_spaces[0]);
        assert_eq!(said.count("blind", "hugetlb"), 18);
        // Less is to be dumped again than cannot be tracked.
        let short = serde_json::from_str::<Dump>(&DUMP.replace("0x5007", "0x5004")).unwrap();
        let mut said = Said::default();
        said.take_in(&short.address_spaces[0]);
        assert_eq!(said.count("nowhere", "hugetlb"), 3);
        // What reads under way deliver to is other memory in each epoch.
        let reads = serde_json::from_str::<Dump>(&DUMP.replace("hugetlb", "pinned")).unwrap();
        let mut said = Said::default();
        said.take_in(&reads.address_spaces[0]);
        assert_eq!(said.count("blind", "pinned"), 16);
    }

    #[test]
    fn log_and_dump_must_agree() {
        let mut dump: Dump = serde_json::from_str(DUMP).unwrap();
        assert!(contradictions(&dump, &[line("open", 1), line("closed", 63)]).is_empty());
        assert_eq!(contradictions(&dump, &[line("open", 1)]).len(), 1);
        assert_eq!(contradictions(&dump, &[line("closed", 62)]).len(), 1);
        assert_eq!(
            contradictions(&dump, &[line("closed", 63), line("closed", 63)]).len(),
            1
        );
        "trusted".clone_into(
            &mut dump.address_spaces[0].epochs[0]
                .detection
                .as_mut()
                .unwrap()
                .verdict,
        );
        assert_eq!(contradictions(&dump, &[line("closed", 63)]).len(), 1);
    }
}
