//! The workloads with the most faults, as metrics: `--top-workloads N`.
//!
//! At most N workloads have series of their own, all others share the series `other`. Every series only grows, and a
//! fault is counted in exactly one: that of its workload if it has one at that moment, else `other`. So rates add up.
//! A workload that gets its series later begins at 0 there; one that loses it takes its count along.

use std::collections::{BTreeMap, HashMap, HashSet};

use prometheus::proto::MetricFamily;

use super::family::Family;
use super::reading::Reading;
use crate::detectors::Verdict;
use crate::ledger::{Measure, Measured, Tally};
use crate::workload::{Kind, Name, Workload};

/// The most that can be asked for.
pub const MOST: usize = 200;
/// What is not in a series of its own.
const OTHER: &str = "other";
/// Workloads of address spaces that are gone, which wait for the next scrape; more are summed up as unnamed.
const MOST_WAITING: usize = 4096;

/// What stands behind a name.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// Everything it did since it was met.
    total: Measured,
    live: u64,
    /// Its address spaces in the ledger.
    present: u64,
    /// It was left to `other`, and that was counted.
    overflown: bool,
}

impl Standing {
    /// What it is ranked by.
    fn rank(&self) -> (u64, u64) {
        let of = |measure: Measure| self.total[measure as usize];
        (of(Measure::Faults), of(Measure::Clears))
    }
}

/// Keeps account by workload.
#[derive(Debug)]
pub struct Workloads {
    most: usize,
    /// What was taken in of each address space.
    seen: HashMap<u64, Measured>,
    standings: HashMap<Name, Standing>,
    /// The series.
    series: BTreeMap<Name, Measured>,
    other: Measured,
    /// Live address spaces of none of the series.
    other_live: u64,
    /// What address spaces did that are gone, since the last update.
    waiting: HashMap<Option<Name>, Measured>,
    overflows: u64,
}

/// What a scrape shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopWorkloads {
    /// Kind, name, what was counted, live address spaces; the last is `other`.
    pub series: Vec<(String, String, Measured, u64)>,
    /// Workloads that got no series.
    pub overflows: u64,
}

impl Workloads {
    /// With series for at most `most` workloads.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most: most.min(MOST),
            seen: HashMap::new(),
            standings: HashMap::new(),
            series: BTreeMap::new(),
            other: Measured::default(),
            other_live: 0,
            waiting: HashMap::new(),
            overflows: 0,
        }
    }

    /// Takes in the last word of an address space that the ledger has given up.
    pub fn depart(&mut self, tally: &Tally<'_>) {
        let before = self.seen.remove(&tally.birth).unwrap_or_default();
        let mut name = name_of(tally);
        if self.waiting.len() >= MOST_WAITING && !self.waiting.contains_key(&name) {
            name = None;
        }
        add(
            self.waiting.entry(name).or_default(),
            growth(&tally.measured, &before),
        );
    }

    /// Takes in an epoch that is finished, of a process in this cgroup.
    pub fn finished(&mut self, cgroup: Option<&str>, verdict: Verdict) {
        let mut name = cgroup.and_then(|cgroup| Workload::of(cgroup).name());
        if self.waiting.len() >= MOST_WAITING && !self.waiting.contains_key(&name) {
            name = None;
        }
        self.waiting.entry(name).or_default()[measure_of(verdict) as usize] += 1;
    }

    /// Takes in how every address space of the ledger stands.
    pub fn update<'l>(&mut self, tallies: impl IntoIterator<Item = Tally<'l>>) {
        let mut grown = std::mem::take(&mut self.waiting);
        for standing in self.standings.values_mut() {
            (standing.live, standing.present) = (0, 0);
        }
        let mut live = 0;
        let mut met = HashSet::new();
        for tally in tallies {
            met.insert(tally.birth);
            let name = name_of(&tally);
            let seen = self.seen.entry(tally.birth).or_default();
            let growth = growth(&tally.measured, seen);
            *seen = tally.measured;
            live += u64::from(tally.live);
            if let Some(name) = &name {
                let standing = self.standings.entry(name.clone()).or_default();
                standing.present += 1;
                standing.live += u64::from(tally.live);
            }
            add(grown.entry(name).or_default(), growth);
        }
        self.seen.retain(|birth, _| met.contains(birth));
        for (name, growth) in &grown {
            if let Some(name) = name {
                add(
                    &mut self.standings.entry(name.clone()).or_default().total,
                    *growth,
                );
            }
        }
        self.give_series();
        for (name, growth) in grown {
            let series = name.as_ref().and_then(|name| self.series.get_mut(name));
            if let Some(series) = series {
                add(series, growth);
                continue;
            }
            add(&mut self.other, growth);
            let standing = name.as_ref().and_then(|name| self.standings.get_mut(name));
            if let Some(standing) = standing
                && !standing.overflown
                && growth != Measured::default()
            {
                standing.overflown = true;
                self.overflows += 1;
            }
        }
        let series = &self.series;
        self.standings
            .retain(|name, standing| standing.present > 0 || series.contains_key(name));
        let shown: u64 = series
            .keys()
            .filter_map(|name| self.standings.get(name))
            .map(|standing| standing.live)
            .sum();
        self.other_live = live - shown;
    }

    /// Gives free series to those that rank highest, and takes one from a workload that is gone, or that ranks so far
    /// below that they would not change places at every scrape.
    fn give_series(&mut self) {
        let mut asking: Vec<_> = self
            .standings
            .iter()
            .filter(|(name, standing)| {
                !self.series.contains_key(*name) && standing.total != Measured::default()
            })
            .map(|(name, standing)| (standing.rank(), name.clone()))
            .collect();
        asking.sort_unstable_by(|a, b| b.cmp(a));
        for (rank, name) in asking {
            if self.series.len() >= self.most {
                let Some(out) = self.weakest(rank) else {
                    // Those after it rank lower.
                    break;
                };
                self.series.remove(&out);
            }
            if let Some(standing) = self.standings.get_mut(&name) {
                standing.overflown = false;
            }
            self.series.insert(name, Measured::default());
        }
    }

    /// The series that one of this rank may take.
    fn weakest(&self, rank: (u64, u64)) -> Option<Name> {
        let standing = |name: &Name| self.standings.get(name).copied().unwrap_or_default();
        let (is_there, weakest, name) = self
            .series
            .keys()
            .map(|name| {
                let standing = standing(name);
                (standing.present > 0, standing.rank(), name)
            })
            .min()?;
        let (faults, clears) = weakest;
        let beyond = (faults + faults / 4, clears + clears / 4);
        (!is_there || rank > beyond).then(|| name.clone())
    }

    /// What a scrape shows.
    #[must_use]
    pub fn top(&self) -> TopWorkloads {
        let mut series: Vec<_> = self
            .series
            .iter()
            .map(|(name, measured)| {
                let live = self.standings.get(name).map_or(0, |standing| standing.live);
                (name.kind.label().to_owned(), name.name.clone(), *measured, live)
            })
            .collect();
        series.push((OTHER.to_owned(), OTHER.to_owned(), self.other, self.other_live));
        TopWorkloads {
            series,
            overflows: self.overflows,
        }
    }
}

impl TopWorkloads {
    /// One of each, for the documentation.
    #[must_use]
    pub fn example() -> Self {
        let of = |kind: &str| (kind.to_owned(), OTHER.to_owned(), Measured::default(), 0);
        let kinds = Kind::ALL.map(Kind::label).into_iter().chain([OTHER]);
        Self {
            series: kinds.map(of).collect(),
            overflows: 0,
        }
    }
}

fn name_of(tally: &Tally<'_>) -> Option<Name> {
    Workload::of(tally.cgroup.as_deref()?).name()
}

const fn measure_of(verdict: Verdict) -> Measure {
    match verdict {
        Verdict::Trusted => Measure::Trusted,
        Verdict::Suspect => Measure::Suspect,
        Verdict::Broken => Measure::Broken,
    }
}

fn growth(now: &Measured, before: &Measured) -> Measured {
    std::array::from_fn(|at| now[at].saturating_sub(before[at]))
}

fn add(sum: &mut Measured, more: Measured) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

/// The families; none unless they were asked for.
pub(super) fn families(reading: &Reading) -> Vec<MetricFamily> {
    let Some(top) = &reading.workloads else {
        return Vec::new();
    };
    let mut families: Vec<_> = DESCRIBED
        .into_iter()
        .map(|(measure, name, help)| {
            let help = format!("{help}, by workload; only with --top-workloads.");
            let mut family = Family::counter(name, &help);
            for (kind, name, measured, _) in &top.series {
                let labels = [("workload_kind", kind.as_str()), ("workload", name.as_str())];
                family.add(&labels, measured[measure as usize]);
            }
            family.done()
        })
        .collect();
    let mut verdicts = Family::counter(
        "softdirty_workload_verdicts_total",
        "Finished epochs by verdict, by workload; only with --top-workloads.",
    );
    for (kind, name, measured, _) in &top.series {
        for verdict in Verdict::ALL {
            let labels = [
                ("workload_kind", kind.as_str()),
                ("workload", name.as_str()),
                ("verdict", verdict.label()),
            ];
            verdicts.add(&labels, measured[measure_of(verdict) as usize]);
        }
    }
    families.push(verdicts.done());
    let mut live = Family::gauge(
        "softdirty_workload_address_spaces",
        "Live address spaces that are tracked, by workload; only with --top-workloads.",
    );
    for (kind, name, _, count) in &top.series {
        let labels = [("workload_kind", kind.as_str()), ("workload", name.as_str())];
        live.add(&labels, *count);
    }
    families.push(live.done());
    families.push(
        Family::counter(
            "sdtrace_workload_overflow_total",
            "Times that a workload was left to the series other, because as many had series as --top-workloads \
             says; only with --top-workloads.",
        )
        .single(top.overflows),
    );
    families
}

/// Measures with a family of their own, its name and meaning.
const DESCRIBED: [(Measure, &str, &str); 3] = [
    (
        Measure::Faults,
        "softdirty_workload_write_notify_faults_total",
        "Write-notify faults in armed VMAs, without those whose epoch is not known yet",
    ),
    (Measure::Clears, "softdirty_workload_clears_total", "Clears"),
    (
        Measure::Epochs,
        "softdirty_workload_epochs_total",
        "Epochs that began, by a clear, by adoption or by a fork",
    ),
];

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;

    fn tally(birth: u64, unit: &str, faults: u64) -> Tally<'static> {
        Tally {
            birth,
            cgroup: (!unit.is_empty()).then(|| Cow::Owned(format!("/system.slice/{unit}.service"))),
            live: true,
            measured: [faults, faults / 10, faults / 10 + 1, 0, 0, 0],
        }
    }

    fn shown(workloads: &Workloads) -> Vec<(String, u64, u64)> {
        let top = workloads.top();
        top.series
            .into_iter()
            .map(|(_, name, measured, live)| (name, measured[0], live))
            .collect()
    }

    fn row(name: &str, faults: u64, live: u64) -> (String, u64, u64) {
        (name.to_owned(), faults, live)
    }

    #[test]
    fn verdicts_are_those_of_the_workload_or_of_other() {
        let mut workloads = Workloads::new(1);
        workloads.update([tally(1, "a", 100), tally(2, "b", 10)]);
        for (unit, verdict) in [
            ("a", Verdict::Broken),
            ("b", Verdict::Suspect),
            ("a", Verdict::Trusted),
        ] {
            workloads.finished(Some(&format!("/system.slice/{unit}.service")), verdict);
        }
        workloads.finished(None, Verdict::Suspect);
        workloads.update([tally(1, "a", 100), tally(2, "b", 10)]);
        let verdicts: Vec<_> = workloads
            .top()
            .series
            .into_iter()
            .map(|(_, name, measured, _)| (name, measured[Measure::Trusted as usize..].to_vec()))
            .collect();
        assert_eq!(
            verdicts,
            [
                ("a.service".to_owned(), vec![1, 0, 1]),
                ("other".to_owned(), vec![0, 2, 0])
            ]
        );
    }

    #[test]
    fn the_highest_have_series_and_the_rest_is_other() {
        let mut workloads = Workloads::new(2);
        workloads.update([
            tally(1, "a", 100),
            tally(2, "a", 50),
            tally(3, "b", 10),
            tally(4, "c", 500),
            tally(5, "", 7),
        ]);
        let (a, c) = ("a.service", "c.service");
        assert_eq!(
            shown(&workloads),
            [row(a, 150, 2), row(c, 500, 1), row(OTHER, 17, 2)]
        );
        assert_eq!(workloads.top().overflows, 1);
        // b grows, but not yet so far that it takes the series of a.
        workloads.update([
            tally(1, "a", 100),
            tally(2, "a", 50),
            tally(3, "b", 170),
            tally(4, "c", 600),
            tally(5, "", 7),
        ]);
        assert_eq!(
            shown(&workloads),
            [row(a, 150, 2), row(c, 600, 1), row(OTHER, 177, 2)]
        );
        assert_eq!(workloads.top().overflows, 1, "it is counted once");
        // Now it does: its series begins with what it does from now on.
        workloads.update([tally(3, "b", 300), tally(4, "c", 600), tally(5, "", 7)]);
        assert_eq!(
            shown(&workloads),
            [row("b.service", 130, 1), row(c, 600, 1), row(OTHER, 177, 1)]
        );
    }

    #[test]
    fn there_are_never_more_series_than_the_manual_says() {
        let mut workloads = Workloads::new(2);
        workloads.update([tally(1, "a", 3), tally(2, "b", 2), tally(3, "c", 1)]);
        let reading = Reading {
            workloads: Some(workloads.top()),
            ..Reading::default()
        };
        let families = families(&reading);
        let series: usize = families.iter().map(|family| family.get_metric().len()).sum();
        assert_eq!(series, 7 * (2 + 1) + 1);
        let manual = include_str!("../../../../docs/operations.md");
        assert!(manual.contains("never more than 7 × (N + 1) + 1 series"));
    }

    #[test]
    fn the_last_word_of_an_address_space_counts_once() {
        let mut workloads = Workloads::new(1);
        workloads.update([tally(1, "a", 100)]);
        workloads.depart(&tally(1, "a", 130));
        workloads.depart(&tally(2, "a", 5));
        workloads.update([]);
        assert_eq!(shown(&workloads), [row("a.service", 135, 0), row(OTHER, 0, 0)]);
        // What is gone makes room at once.
        workloads.update([tally(3, "b", 1)]);
        assert_eq!(shown(&workloads), [row("b.service", 1, 1), row(OTHER, 0, 0)]);
    }

    proptest! {
        /// Whatever happens: the bound holds, no series shrinks while it is there, and what is shown of growth is
        /// exactly what grew.
        #[test]
        fn nothing_is_counted_twice_or_lost(
            steps in prop::collection::vec(prop::collection::vec((0_u64..12, 0_u64..1000), 0..12), 1..12),
            most in 1_usize..4,
        ) {
            let mut workloads = Workloads::new(most);
            let mut faults: BTreeMap<u64, u64> = BTreeMap::new();
            let (mut happened, mut counted) = (0, 0);
            let mut before: BTreeMap<String, u64> = BTreeMap::new();
            for step in steps {
                for (birth, more) in step {
                    if more == 999 {
                        if let Some(last) = faults.remove(&birth) {
                            workloads.depart(&tally(birth, &format!("u{}", birth % 5), last));
                        }
                        continue;
                    }
                    happened += more;
                    *faults.entry(birth).or_default() += more;
                }
                // Births are never used again; here they are, so the ledger and the account forget together.
                workloads.update(
                    faults.iter().map(|(&birth, &faults)| tally(birth, &format!("u{}", birth % 5), faults)),
                );
                let now: BTreeMap<String, u64> =
                    shown(&workloads).into_iter().map(|(name, faults, _)| (name, faults)).collect();
                prop_assert!(now.len() <= most + 1);
                for (name, &faults) in &now {
                    let earlier = before.get(name).copied().unwrap_or(0);
                    prop_assert!(faults >= earlier, "{name} shrank");
                    counted += faults - earlier;
                }
                before = now;
                prop_assert_eq!(happened, counted);
            }
        }
    }
}
