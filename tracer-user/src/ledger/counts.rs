//! Sums of what rows count, in the same classes as the metrics, so that both can be compared.

use tracer_common::classify::{MprotectChange, Outcome, ProtectionState, VmaKind};
use tracer_common::counters::{Counter, FAULT_KINDS};

const STATES: usize = ProtectionState::ALL.len();
const HUGE: usize = VmaKind::ALL.len();

/// Faults and mprotect calls of any number of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    faults: [[u64; STATES]; FAULT_KINDS as usize],
    outcomes: [u64; Outcome::ALL.len()],
    mprotects: u64,
}

impl Counts {
    /// Adds handled write-notify faults on PTEs.
    pub fn add_faults(&mut self, kind: VmaKind, state: ProtectionState, count: u64) {
        self.faults[kind as usize][state as usize] += count;
    }

    /// Adds handled write-notify faults on PMDs.
    pub fn add_huge_faults(&mut self, state: ProtectionState, count: u64) {
        self.faults[HUGE][state as usize] += count;
    }

    /// Adds faults that ended otherwise, by [`Outcome`].
    pub fn add_outcomes(&mut self, outcomes: &[u64; Outcome::ALL.len()]) {
        for (sum, count) in self.outcomes.iter_mut().zip(outcomes) {
            *sum += count;
        }
    }

    /// Adds successful mprotect calls.
    pub fn add_mprotects(&mut self, count: u64) {
        self.mprotects += count;
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self
            .faults
            .iter_mut()
            .flatten()
            .zip(other.faults.iter().flatten())
        {
            *sum += count;
        }
        self.add_outcomes(&other.outcomes);
        self.mprotects += other.mprotects;
    }

    /// The sum that stands beside the kernel's own counter, if rows count the same thing. Calls of mprotect
    /// do not: one call may count under several changes.
    #[must_use]
    pub fn get(&self, counter: Counter) -> Option<u64> {
        match counter {
            Counter::Fault(kind, state) => Some(self.faults[kind as usize][state as usize]),
            Counter::HugeFault(state) => Some(self.faults[HUGE][state as usize]),
            Counter::Outcome(Outcome::Handled) => Some(self.faults() + self.huge_faults()),
            Counter::Outcome(outcome) => Some(self.outcomes[outcome as usize]),
            Counter::Mprotect(_) | Counter::Stage(_) | Counter::FaultTime(_) | Counter::FaultTimeSum => None,
        }
    }

    /// Handled write-notify faults on PTEs.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults[..HUGE].iter().flatten().sum()
    }

    /// Handled write-notify faults on PMDs.
    #[must_use]
    pub fn huge_faults(&self) -> u64 {
        self.faults[HUGE].iter().sum()
    }

    /// Faults that ended otherwise, by [`Outcome`].
    #[must_use]
    pub fn outcomes(&self) -> &[u64; Outcome::ALL.len()] {
        &self.outcomes
    }

    /// Successful mprotect calls.
    #[must_use]
    pub fn mprotects(&self) -> u64 {
        self.mprotects
    }
}

/// The names of the changes in a set of [`MprotectChange`] bits.
pub fn change_names(bits: u32) -> impl Iterator<Item = &'static str> {
    MprotectChange::ALL
        .into_iter()
        .filter(move |change| bits & change.bit() != 0)
        .map(MprotectChange::label)
}

/// Labels of the kinds that write-notify faults are counted by, in the order of the counters.
#[must_use]
pub fn fault_kind_labels() -> [&'static str; FAULT_KINDS as usize] {
    let mut labels = ["huge"; FAULT_KINDS as usize];
    for kind in VmaKind::ALL {
        labels[kind as usize] = kind.label();
    }
    labels
}

/// The counter of write-notify faults of a kind, by its place in [`fault_kind_labels`].
#[must_use]
pub fn fault_counter(kind: usize, state: ProtectionState) -> Counter {
    match VmaKind::ALL.get(kind) {
        Some(&kind) => Counter::Fault(kind, state),
        None => Counter::HugeFault(state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stand_beside_the_counters_of_the_kernel() {
        let mut counts = Counts::default();
        counts.add_faults(VmaKind::SharedAnon, ProtectionState::ArmedWritable, 3);
        counts.add_huge_faults(ProtectionState::Armed, 2);
        counts.add_mprotects(7);
        let mut twice = counts;
        twice.add(&counts);
        let shared = Counter::Fault(VmaKind::SharedAnon, ProtectionState::ArmedWritable);
        assert_eq!(twice.get(shared), Some(6));
        assert_eq!(twice.get(Counter::HugeFault(ProtectionState::Armed)), Some(4));
        assert_eq!(twice.get(Counter::Outcome(Outcome::Handled)), Some(10));
        assert_eq!(
            (twice.faults(), twice.huge_faults(), twice.mprotects()),
            (6, 4, 14)
        );
    }

    #[test]
    fn kinds_of_faults_have_the_counters_of_their_labels() {
        let labels = fault_kind_labels();
        assert_eq!(
            labels,
            [
                "private_anon",
                "shared_anon",
                "private_file",
                "shared_file",
                "huge"
            ]
        );
        assert_eq!(
            fault_counter(1, ProtectionState::Armed),
            Counter::Fault(VmaKind::SharedAnon, ProtectionState::Armed)
        );
        assert_eq!(
            fault_counter(4, ProtectionState::Armed),
            Counter::HugeFault(ProtectionState::Armed)
        );
    }

    #[test]
    fn a_set_of_changes_has_names() {
        let bits = MprotectChange::GainedWrite.bit() | MprotectChange::SoftDirtyLost.bit();
        assert_eq!(
            change_names(bits).collect::<Vec<_>>(),
            ["gained_write", "softdirty_lost"]
        );
    }
}
