//! Building families of samples that are computed at the scrape.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// Labels of one sample.
type Labels<'a> = &'a [(&'a str, &'a str)];

/// A family under construction.
pub(super) struct Family {
    family: MetricFamily,
    samples: Vec<Metric>,
}

impl Family {
    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self {
            family,
            samples: Vec::new(),
        }
    }

    /// A family of counters.
    pub(super) fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    /// A family of gauges.
    pub(super) fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    /// Adds a sample.
    #[allow(
        clippy::cast_precision_loss,
        reason = "the text format carries 64-bit floats; counts stay exact up to 2^53"
    )]
    pub(super) fn add(&mut self, labels: Labels<'_>, value: u64) {
        let mut metric = Metric::from_label(pairs(labels));
        if self.family.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value as f64);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value as f64);
            metric.set_gauge(gauge);
        }
        self.samples.push(metric);
    }

    /// The family with one sample.
    pub(super) fn single(mut self, value: u64) -> MetricFamily {
        self.add(&[], value);
        self.done()
    }

    /// The family with one sample, a number of nanoseconds in the base unit.
    #[allow(
        clippy::cast_precision_loss,
        reason = "the text format carries 64-bit floats; a nanosecond is exact up to a hundred days"
    )]
    pub(super) fn seconds(mut self, nanoseconds: u64) -> MetricFamily {
        let mut counter = Counter::default();
        counter.set_value(nanoseconds as f64 / 1e9);
        let mut metric = Metric::from_label(pairs(&[]));
        metric.set_counter(counter);
        self.samples.push(metric);
        self.done()
    }

    /// The family of gauges with one sample, a share between 0 and 1.
    pub(super) fn fraction(mut self, value: f64) -> MetricFamily {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = Metric::from_label(pairs(&[]));
        metric.set_gauge(gauge);
        self.samples.push(metric);
        self.done()
    }

    /// The family with a sample for each value of one label.
    pub(super) fn by<'a>(
        mut self,
        label: &str,
        samples: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> MetricFamily {
        for (value, count) in samples {
            self.add(&[(label, value)], count);
        }
        self.done()
    }

    /// The finished family.
    pub(super) fn done(mut self) -> MetricFamily {
        self.family.set_metric(self.samples);
        self.family
    }
}

/// A histogram whose buckets, with their inclusive upper bounds, do not yet include those below. A bucket without
/// bound only counts: the encoder writes `+Inf` itself.
pub(super) fn histogram(
    name: &str,
    help: &str,
    buckets: impl Iterator<Item = (Option<f64>, u64)>,
    sum: f64,
) -> MetricFamily {
    let mut count = 0;
    let mut cumulative = Vec::new();
    for (bound, in_bucket) in buckets {
        count += in_bucket;
        if let Some(bound) = bound {
            let mut bucket = Bucket::default();
            bucket.set_cumulative_count(count);
            bucket.set_upper_bound(bound);
            cumulative.push(bucket);
        }
    }
    let mut histogram = Histogram::default();
    histogram.set_bucket(cumulative);
    histogram.set_sample_count(count);
    histogram.set_sample_sum(sum);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    let mut family = Family::new(name, help, MetricType::HISTOGRAM);
    family.samples.push(metric);
    family.done()
}

fn pairs(labels: Labels<'_>) -> Vec<LabelPair> {
    labels
        .iter()
        .map(|&(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        })
        .collect()
}

/// What the registry needs to know to refuse two families of one name.
pub(super) fn description(family: &MetricFamily) -> Result<Desc, prometheus::Error> {
    let labels = family.get_metric().first().map_or_else(Vec::new, |metric| {
        metric
            .get_label()
            .iter()
            .map(|pair| pair.name().to_owned())
            .collect()
    });
    Desc::new(
        family.name().to_owned(),
        family.help().to_owned(),
        labels,
        HashMap::new(),
    )
}
