//! Which series there are: the metrics of `docs/metrics.md`, which is made from sdtrace's registry and compared by a test;
//! those that Prometheus makes itself for each target; and what the recording rules make.

use crate::workspace::root;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// Labels that every series has because Prometheus puts them on the target, or `--label` on the node.
pub const TARGET: [&str; 3] = ["cluster", "instance", "job"];

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, a sum and a count.
    Histogram,
}

/// The values that a label can have; `None` if they depend on the machine.
type Values = Option<BTreeSet<String>>;

/// One metric.
#[derive(Clone, Debug)]
pub struct Metric {
    /// Kind.
    pub kind: Kind,
    /// Labels of its own, without those of the target.
    pub labels: BTreeMap<String, Values>,
}

/// All of them, by name.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    metrics: BTreeMap<String, Metric>,
    own: BTreeSet<String>,
}

impl Registry {
    /// The committed documentation and what Prometheus adds.
    pub fn committed() -> Result<Self> {
        let path = root().join("docs/metrics.md");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut registry = Self::parse(&text).context("docs/metrics.md")?;
        for name in ["up", "scrape_duration_seconds", "scrape_samples_scraped"] {
            registry.add(name, Kind::Gauge, BTreeMap::new());
        }
        Ok(registry)
    }

    /// Reads the documentation.
    fn parse(text: &str) -> Result<Self> {
        let mut registry = Self::default();
        for section in text.split("\n## ").skip(1) {
            let mut lines = section.lines().filter(|line| !line.is_empty());
            let name = lines.next().context("a section has a heading")?.trim();
            let meaning = lines.next().unwrap_or_default();
            let kind = match meaning.split_once(". ").map(|(kind, _)| kind) {
                Some("counter") => Kind::Counter,
                Some("gauge") => Kind::Gauge,
                Some("histogram") => Kind::Histogram,
                _ => bail!("{name} does not begin with its kind: {meaning}"),
            };
            let mut labels = BTreeMap::new();
            for line in lines {
                let (label, values) = line
                    .strip_prefix("- `")
                    .and_then(|line| line.split_once("`: "))
                    .with_context(|| format!("{name}: {line:?} describes no label"))?;
                labels.insert(label.to_owned(), closed(values));
            }
            registry.own.insert(name.to_owned());
            registry.add(name, kind, labels);
        }
        ensure!(!registry.own.is_empty(), "there is no metric");
        Ok(registry)
    }

    /// Adds a series that does not come from sdtrace.
    pub fn add(&mut self, name: &str, kind: Kind, labels: BTreeMap<String, Values>) {
        self.metrics.insert(name.to_owned(), Metric { kind, labels });
    }

    /// The metrics of sdtrace itself.
    pub fn own(&self) -> impl Iterator<Item = &str> {
        self.own.iter().map(String::as_str)
    }

    /// The metric to which a series of this name belongs: a histogram has three kinds of series.
    #[must_use]
    pub fn family<'a>(&'a self, series: &'a str) -> &'a str {
        ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|end| series.strip_suffix(end))
            .find(|name| {
                self.metrics
                    .get(*name)
                    .is_some_and(|metric| metric.kind == Kind::Histogram)
            })
            .unwrap_or(series)
    }

    /// Looks up a series: whether it counts, and its labels, those of the target included.
    pub fn series(&self, name: &str) -> Result<(Kind, BTreeMap<String, Values>)> {
        let family = self.family(name);
        let metric = self
            .metrics
            .get(family)
            .with_context(|| format!("there is no metric {name}"))?;
        let mut labels = metric.labels.clone();
        let kind = if metric.kind == Kind::Histogram {
            ensure!(
                family != name,
                "{name} is a histogram; its series end in _bucket, _sum or _count"
            );
            if name.ends_with("_bucket") {
                labels.insert("le".to_owned(), None);
            }
            Kind::Counter
        } else {
            metric.kind
        };
        labels.extend(TARGET.map(|label| (label.to_owned(), None)));
        Ok((kind, labels))
    }
}

/// The values in a list like `` `a`, `b` ``; anything else describes them in words.
fn closed(text: &str) -> Values {
    text.split(", ")
        .map(|value| {
            let value = value.strip_prefix('`')?.strip_suffix('`')?;
            (!value.contains('`')).then(|| value.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Metrics\n\nWords.\n\n## a_total\n\ncounter. What. More.\n\n- `by`: `x`, `y`\n- `open`: `x` and more\n\n\
                        ## b_seconds\n\nhistogram. Time.\n";

    #[test]
    fn names_kinds_and_labels_are_read() {
        let registry = Registry::parse(TEXT).unwrap();
        let (kind, labels) = registry.series("a_total").unwrap();
        assert_eq!(kind, Kind::Counter);
        let values = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(labels["by"], values(&["x", "y"]));
        assert_eq!((&labels["open"], &labels["job"]), (&None, &None));
        assert!(registry.series("b_seconds_bucket").unwrap().1.contains_key("le"));
        assert!(!registry.series("b_seconds_sum").unwrap().1.contains_key("le"));
        for name in ["a", "a_total_sum", "b_seconds"] {
            assert!(registry.series(name).is_err(), "{name}");
        }
        assert_eq!(registry.family("b_seconds_sum"), "b_seconds");
        assert!(Registry::parse("## c\n\nnothing. At all.\n").is_err());
    }

    #[test]
    fn the_committed_documentation_is_read() {
        let registry = Registry::committed().unwrap();
        let (_, labels) = registry.series("softdirty_epochs_total").unwrap();
        assert!(labels["verdict"].as_ref().unwrap().contains("broken"));
    }
}
