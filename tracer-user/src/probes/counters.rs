//! The event counters, summed over the CPUs.

use tracer_common::counters::{Counter, STRIP};

use super::mapped::MappedArray;

/// The counters of the programs since the daemon went live.
#[derive(Debug)]
pub struct Counters {
    cells: MappedArray<u64>,
    /// What the self-test left.
    baseline: CounterSums,
}

impl Counters {
    /// Reads from `cells`, one strip for each CPU.
    #[must_use]
    pub fn new(cells: MappedArray<u64>) -> Self {
        Self {
            cells,
            baseline: CounterSums::default(),
        }
    }

    /// Everything counted so far counts no more.
    pub fn start_over(&mut self) {
        self.baseline = CounterSums::default();
        self.baseline = self.sums();
    }

    /// The present sums.
    #[must_use]
    pub fn sums(&self) -> CounterSums {
        let strip = STRIP as usize;
        let mut sums = CounterSums::default();
        for cell in 0..self.cells.len() {
            let sum = &mut sums.0[cell % strip];
            *sum = sum.wrapping_add(self.cells.read_word(cell, 0));
        }
        for (sum, baseline) in sums.0.iter_mut().zip(&self.baseline.0) {
            *sum = sum.wrapping_sub(*baseline);
        }
        sums
    }
}

/// Sums of all counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterSums([u64; STRIP as usize]);

impl Default for CounterSums {
    fn default() -> Self {
        Self([0; STRIP as usize])
    }
}

impl CounterSums {
    /// One counter's sum.
    #[must_use]
    pub const fn get(&self, counter: Counter) -> u64 {
        self.0[counter.cell() as usize]
    }

    /// Sums for tests of what reads them.
    #[must_use]
    pub fn of(counters: impl IntoIterator<Item = (Counter, u64)>) -> Self {
        let mut sums = Self::default();
        for (counter, value) in counters {
            sums.0[counter.cell() as usize] += value;
        }
        sums
    }
}
