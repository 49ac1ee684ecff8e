//! What sdtrace must say, by the class of the cause and by what the battery counted in the same run. No recording of
//! what it did say can loosen these; only a gap with its reason in the committed file can.

use super::said::Said;
use super::{Battery, Played};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// The words for a kind of blind memory, by the cause that it falls under.
const BLIND: [(&str, &[&str]); 5] = [
    ("hugetlb", &["hugetlb"]),
    ("pfnmap", &["pfnmap"]),
    ("pinned-buffer", &["pinned"]),
    ("other-mapper", &["writable_alias"]),
    ("aio-ring", &["aio_ring"]),
];

/// Every rule that what sdtrace said breaks.
#[must_use]
pub fn broken(played: &Played) -> Vec<String> {
    let Played {
        battery, race, said, ..
    } = played;
    let mut broken = Vec::new();
    match (battery.result.as_str(), battery.class.as_str()) {
        ("missed", "B") => {
            let missed = said.count("missed", &battery.cause);
            if missed != battery.pages.missed {
                broken.push(format!(
                    "class B: {} pages were missed by {}, sdtrace says {missed}",
                    battery.pages.missed, battery.cause
                ));
            }
        }
        ("missed", "A") => broken.extend(class_a(battery, *race, said)),
        ("missed", "C") => {
            let named = said
                .count("hazard", &battery.cause)
                .max(blind_pages(&battery.cause, said));
            if named < battery.pages.missed {
                broken.push(format!(
                    "class C: {} pages were missed by {}, sdtrace names {named}",
                    battery.pages.missed, battery.cause
                ));
            }
        }
        ("missed", "D") => {
            if said.count("hazard", &battery.cause) == 0 {
                broken.push(format!("class D: the hazard {} is not named", battery.cause));
            }
        }
        ("dropped", _) => {
            let dropped: u64 = said.all("dropped").map(|(_, pages)| pages).sum();
            if dropped < battery.pages.dropped {
                broken.push(format!(
                    "{} pages were dropped, sdtrace says {dropped}",
                    battery.pages.dropped
                ));
            }
        }
        ("tracked" | "not supported", _) => {}
        // A race that was never won proves nothing, and what sdtrace saw of it may be true.
        ("inconclusive", _) if *race => return broken,
        (result, _) => {
            let why = battery.why.as_deref().unwrap_or("no reason given");
            broken.push(format!("the battery's result is {result}: {why}"));
        }
    }
    broken.extend(false_alarms(battery, *race, said));
    // What could not be checked is held against the committed file.
    for (word, count) in played
        .said_of_battery
        .0
        .iter()
        .filter(|(word, _)| !word.starts_with("unknown:"))
    {
        broken.push(format!(
            "of the battery's own process, which misses nothing: {word}={count}"
        ));
    }
    broken
}

/// Exposed pages at or above those missed; at least 90 % of a race's. Where no page is mapped yet, nothing can be exposed:
/// then the range is a hazard of that cause.
fn class_a(battery: &Battery, race: bool, said: &Said) -> Option<String> {
    let pages = ["exposed", "missed"]
        .map(|kind| said.count(kind, &battery.cause))
        .iter()
        .sum::<u64>();
    let pages = pages
        .max(said.count("hazard", &battery.cause))
        .max(blind_pages(&battery.cause, said));
    let missed = battery.pages.missed;
    let enough = if race {
        pages * 10 >= missed * 9
    } else {
        pages >= missed
    };
    (!enough).then(|| {
        format!(
            "class A: {missed} pages were missed by {}, sdtrace names {pages}",
            battery.cause
        )
    })
}

fn blind_pages(cause: &str, said: &Said) -> u64 {
    let words = BLIND
        .iter()
        .find(|(of, _)| *of == cause)
        .map_or(&[][..], |(_, words)| words);
    words.iter().map(|word| said.count("blind", word) / PAGE).sum()
}

/// What is said of another cause than the one at work. Writes between a reading and the next clear are real in
/// every scenario of more than one epoch, and dropped pages are no alarm; nor are pages that a race left exposed and
/// that were not written.
fn false_alarms(battery: &Battery, race: bool, said: &Said) -> Vec<String> {
    let missed = battery.result == "missed";
    ["missed", "exposed", "hazard"]
        .into_iter()
        .flat_map(|kind| said.all(kind).map(move |(name, count)| (kind, name, count)))
        .filter(|(kind, name, _)| {
            let gap = *kind == "hazard" && *name == "read-clear-gap";
            let at_work = missed || race && *kind == "exposed";
            !(gap || at_work && *name == battery.cause)
        })
        .map(|(kind, name, count)| {
            format!(
                "false alarm: {kind}:{name}={count}, and the battery says {}",
                battery.cell()
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Pages;
    use super::*;

    fn played(class: &str, cause: &str, result: &str, race: bool, said: &[(&str, u64)]) -> Played {
        let words = said
            .iter()
            .map(|(word, count)| ((*word).to_owned(), *count))
            .collect();
        let pages = if result == "dropped" { (0, 64) } else { (64, 0) };
        Played {
            battery: Battery {
                scenario: "x".into(),
                class: class.into(),
                cause: cause.into(),
                result: result.into(),
                why: None,
                pages: Pages {
                    missed: pages.0,
                    dropped: pages.1,
                },
            },
            race,
            said: Said(words),
            said_of_battery: Said::default(),
        }
    }

    fn count(class: &str, cause: &str, result: &str, race: bool, said: &[(&str, u64)]) -> usize {
        broken(&played(class, cause, result, race, said)).len()
    }

    #[test]
    fn class_b_is_exact_and_has_its_cause() {
        let of = |said: &[(&str, u64)]| count("B", "ksm-merge", "missed", false, said);
        assert_eq!(of(&[("missed:ksm-merge", 64)]), 0);
        assert_eq!(of(&[("missed:ksm-merge", 63)]), 1);
        assert_eq!(of(&[("missed:ksm-merge", 65)]), 1);
        assert_eq!(of(&[("missed:unknown_cause", 64)]), 2);
        assert_eq!(of(&[("exposed:ksm-merge", 64)]), 1);
        assert_eq!(of(&[]), 1);
    }

    #[test]
    fn class_a_is_at_or_above_and_a_race_has_a_tenth_of_play() {
        let of = |race, said: &[(&str, u64)]| count("A", "vma-merge", "missed", race, said);
        assert_eq!(of(false, &[("exposed:vma-merge", 64)]), 0);
        assert_eq!(of(false, &[("exposed:vma-merge", 63)]), 1);
        assert_eq!(of(true, &[("exposed:vma-merge", 58)]), 0);
        assert_eq!(of(true, &[("exposed:vma-merge", 57)]), 1);
        assert_eq!(of(true, &[("exposed:vma-merge", 50), ("missed:vma-merge", 8)]), 0);
        assert_eq!(of(false, &[("hazard:vma-merge", 64)]), 0);
        assert_eq!(
            count("A", "pfnmap", "missed", false, &[("blind:pfnmap", 64 * PAGE)]),
            0
        );
        assert_eq!(
            count("A", "pfnmap", "missed", false, &[("blind:pfnmap", PAGE)]),
            1
        );
    }

    #[test]
    fn classes_c_and_d_are_named() {
        assert_eq!(
            count("C", "hugetlb", "missed", false, &[("blind:hugetlb", 64 * PAGE)]),
            0
        );
        assert_eq!(
            count("C", "hugetlb", "missed", false, &[("blind:pinned", 64 * PAGE)]),
            1
        );
        assert_eq!(
            count("C", "mremap-grow", "missed", false, &[("hazard:mremap-grow", 64)]),
            0
        );
        assert_eq!(
            count(
                "D",
                "foreign-clear",
                "missed",
                false,
                &[("hazard:foreign-clear", 1)]
            ),
            0
        );
        assert_eq!(
            count(
                "D",
                "foreign-clear",
                "missed",
                false,
                &[("hazard:read-clear-gap", 1)]
            ),
            1
        );
        assert_eq!(
            count("C", "discard", "dropped", false, &[("dropped:madv_dontneed", 64)]),
            0
        );
        assert_eq!(
            count("C", "discard", "dropped", false, &[("dropped:madv_dontneed", 63)]),
            1
        );
    }

    #[test]
    fn what_is_tracked_raises_no_word() {
        let of = |said: &[(&str, u64)]| count("control", "none", "tracked", false, said);
        assert_eq!(of(&[]), 0);
        assert_eq!(
            of(&[("hazard:read-clear-gap", 3), ("dropped:madv_dontneed", 1)]),
            0
        );
        assert_eq!(of(&[("missed:unknown_cause", 1)]), 1);
        assert_eq!(of(&[("exposed:migration-race", 1)]), 1);
        assert_eq!(of(&[("hazard:mremap-grow", 1)]), 1);
        assert_eq!(
            count("A", "vma-merge", "tracked", false, &[("exposed:vma-merge", 1)]),
            1
        );
        assert_eq!(
            count(
                "A",
                "migration-race",
                "tracked",
                true,
                &[("exposed:migration-race", 1)]
            ),
            0
        );
        assert_eq!(
            count(
                "A",
                "migration-race",
                "tracked",
                true,
                &[("missed:migration-race", 1)]
            ),
            1
        );
        assert_eq!(count("A", "vma-merge", "failed", false, &[]), 1);
        assert_eq!(
            count(
                "A",
                "migration-race",
                "inconclusive",
                true,
                &[("exposed:migration-race", 1)]
            ),
            0
        );
    }

    #[test]
    fn the_battery_itself_is_a_control() {
        let mut played = played("control", "none", "tracked", false, &[]);
        played.said_of_battery.0.insert("unknown:forked".into(), 1);
        assert!(broken(&played).is_empty());
        played.said_of_battery.0.insert("hazard:read-clear-gap".into(), 1);
        assert_eq!(broken(&played).len(), 1);
    }
}
