//! The metrics, the only module that knows the crate `prometheus`.
//!
//! What the programs count and what the ledger knows is read at the scrape ([`reading::Reading`]); only what
//! comes as an event (clears) is kept here. Every label value comes from a closed list and is there from the
//! start, with the value 0.

mod detected;
mod docs;
mod family;
pub mod labels;
mod observed;
mod own;
pub mod process;
pub mod reading;
#[cfg(test)]
mod tests;
mod verified;
pub mod workloads;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
    exponential_buckets,
};
use tracer_common::records::ClearRecord;

pub use docs::render as documentation;
use labels::Label;
use reading::Reading;

use crate::ledger::{CLEAR_RESULTS, clear_result, clear_times};

/// What is known once and for all when sdtrace starts.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release of the running kernel.
    pub kernel: String,
    /// When sdtrace started.
    pub started: SystemTime,
}

/// The registry and what is counted by events.
pub struct Metrics {
    registry: Registry,
    reading: Arc<Mutex<Reading>>,
    /// Held from setting the reading to the end of gathering: two scrapes at a time must not mix.
    gathering: Mutex<()>,
    clears: IntCounterVec,
    wait: Histogram,
    hold: Histogram,
    scrape: Gauge,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// If two metrics have the same name.
    pub fn new(facts: &Facts) -> Result<Self> {
        Self::labelled(facts, &[])
    }

    /// The same, with these labels on every metric.
    ///
    /// # Errors
    /// If two metrics have the same name.
    pub fn labelled(facts: &Facts, labels: &[Label]) -> Result<Self> {
        let constant = labels
            .iter()
            .map(|label| (label.name.clone(), label.value.clone()))
            .collect();
        let clears = IntCounterVec::new(
            Opts::new(
                "softdirty_clears_total",
                "Soft-dirty clears (4 written to /proc/PID/clear_refs), by result: tracked opened an epoch, \
                 filtered was left out by a filter, untracked found the map of address spaces full, \
                 reached_nothing met no address space, failed returned an error.",
            ),
            &["result"],
        )?;
        for result in CLEAR_RESULTS {
            clears.with_label_values(&[result]);
        }
        // 1 µs to 34 s: an idle clear of a small process takes some 10 µs, that of a terabyte seconds.
        let buckets = exponential_buckets(1e-6, 2.0, 26)?;
        let histogram = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.clone()))
        };
        let wait = histogram(
            "softdirty_clear_wait_seconds",
            "From the entry of clear_refs_write to the first VMA: mostly the wait for mmap_lock.",
        )?;
        let hold = histogram(
            "softdirty_clear_hold_seconds",
            "From the first VMA to the return of clear_refs_write: how long a clear keeps the target's page \
             faults and mmap calls out.",
        )?;
        let scrape = Gauge::new(
            "sdtrace_last_scrape_duration_seconds",
            "Time that sdtrace spent on the scrape before this one.",
        )?;
        let metrics = Self {
            registry: Registry::new_custom(None, Some(constant))?,
            reading: Arc::new(Mutex::new(Reading::default())),
            gathering: Mutex::new(()),
            clears,
            wait,
            hold,
            scrape,
        };
        metrics
            .register(facts)
            .context("the metrics cannot be registered")?;
        Ok(metrics)
    }

    fn register(&self, facts: &Facts) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(self.clears.clone()))?;
        self.registry.register(Box::new(self.wait.clone()))?;
        self.registry.register(Box::new(self.hold.clone()))?;
        self.registry.register(Box::new(self.scrape.clone()))?;
        for collect in [
            observed::families,
            detected::families,
            own::families,
            verified::families,
            process::families,
            workloads::families,
        ] {
            let at_scrape = AtScrape::new(Arc::clone(&self.reading), collect)?;
            self.registry.register(Box::new(at_scrape))?;
        }
        let build = IntGaugeVec::new(
            Opts::new("sdtrace_build_info", "Version of sdtrace; the value is 1."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        self.registry.register(Box::new(build))?;
        let kernel = IntGaugeVec::new(
            Opts::new(
                "sdtrace_kernel_info",
                "Release of the traced kernel; the value is 1.",
            ),
            &["release"],
        )?;
        kernel.with_label_values(&[&facts.kernel]).set(1);
        self.registry.register(Box::new(kernel))?;
        let started = Gauge::new(
            "sdtrace_start_time_seconds",
            "When sdtrace started, in seconds since 1970.",
        )?;
        let since_1970 = facts.started.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        started.set(since_1970.as_secs_f64());
        self.registry.register(Box::new(started))
    }

    /// Counts a clear.
    pub fn count_clear(&self, clear: &ClearRecord) {
        self.clears.with_label_values(&[clear_result(clear)]).inc();
        if let Some((wait_ns, hold_ns)) = clear_times(clear) {
            self.wait.observe(Duration::from_nanos(wait_ns).as_secs_f64());
            self.hold.observe(Duration::from_nanos(hold_ns).as_secs_f64());
        }
    }

    /// Notes how long a scrape took, for the next one.
    pub fn note_scrape(&self, took: Duration) {
        self.scrape.set(took.as_secs_f64());
    }

    /// Everything in the text format of Prometheus, with what `reading` says.
    ///
    /// # Errors
    /// If a family is malformed.
    pub fn render(&self, reading: Reading) -> Result<String> {
        Ok(TextEncoder::new().encode_to_string(&self.gather(reading))?)
    }

    fn gather(&self, reading: Reading) -> Vec<MetricFamily> {
        let _one_at_a_time = self.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = reading;
        self.registry.gather()
    }
}

/// Families that are computed from the reading at each scrape.
struct AtScrape {
    reading: Arc<Mutex<Reading>>,
    collect: fn(&Reading) -> Vec<MetricFamily>,
    descriptions: Vec<Desc>,
}

impl AtScrape {
    fn new(
        reading: Arc<Mutex<Reading>>,
        collect: fn(&Reading) -> Vec<MetricFamily>,
    ) -> Result<Self, prometheus::Error> {
        let families = collect(&Reading::example());
        Ok(Self {
            reading,
            collect,
            descriptions: families
                .iter()
                .map(family::description)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Collector for AtScrape {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.collect)(&self.reading.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
