//! Labels that the user puts on every metric.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use super::reading::Reading;
use super::{Facts, Metrics};

/// How many there can be.
pub const MOST: usize = 32;

/// Labels that Prometheus itself puts on every target; ours would arrive as `exported_job`.
const OF_PROMETHEUS: [&str; 2] = ["instance", "job"];
/// Labels of histograms and summaries, which the text format reserves.
const OF_THE_FORMAT: [&str; 2] = ["le", "quantile"];

/// A label with its value, valid for Prometheus and not in the way of any label of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Name.
    pub name: String,
    /// Value; never empty, for Prometheus an empty one is none.
    pub value: String,
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.name, self.value)
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("write it as name=value, for instance cluster=berlin")?;
        if !is_name(name) {
            return Err(format!(
                "'{name}' is no name of a label; use letters, digits and _, with no digit at the beginning"
            ));
        }
        if name.starts_with("__") {
            return Err(format!(
                "'{name}' is reserved: Prometheus keeps names that begin with __ for itself; take another"
            ));
        }
        if OF_PROMETHEUS.contains(&name) {
            return Err(format!(
                "Prometheus gives every target its own '{name}'; set it there (relabel_configs), or take another name"
            ));
        }
        if OF_THE_FORMAT.contains(&name) || own().contains(name) {
            return Err(format!(
                "sdtrace's metrics have a label '{name}' of their own; take another name"
            ));
        }
        if value.is_empty() {
            return Err(format!(
                "'{name}' has no value, which to Prometheus means no label; give one"
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// Whether each name is there once only.
///
/// # Errors
/// Names the first that is there twice.
pub fn checked(labels: &[Label]) -> Result<(), String> {
    let mut met = BTreeSet::new();
    match labels.iter().find(|label| !met.insert(label.name.as_str())) {
        Some(label) => Err(format!("the label '{}' is given twice; give it once", label.name)),
        None => Ok(()),
    }
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`, as Prometheus' data model has it for every scraper, also those before 3.0.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The names of all labels that any metric of ours has.
fn own() -> BTreeSet<String> {
    let facts = Facts {
        kernel: String::new(),
        started: UNIX_EPOCH,
    };
    // Two metrics of one name fail in every test; the start of `run` would say so.
    let Ok(metrics) = Metrics::new(&facts) else {
        return BTreeSet::new();
    };
    metrics
        .gather(Reading::example())
        .iter()
        .flat_map(prometheus::proto::MetricFamily::get_metric)
        .flat_map(prometheus::proto::Metric::get_label)
        .map(|pair| pair.name().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_the_rules_of_prometheus() {
        for good in ["cluster=a", "_x=1", "Zone9=eu west = 1", "team=ä\"\\\n"] {
            assert_eq!(good.parse::<Label>().unwrap().to_string(), good);
        }
        for (bad, expected) in [
            ("cluster", "write it as name=value"),
            ("=a", "'' is no name"),
            ("9a=b", "no digit at the beginning"),
            ("a-b=c", "use letters, digits and _"),
            ("a:b=c", "use letters, digits and _"),
            ("ä=c", "use letters, digits and _"),
            ("__a=b", "reserved"),
            ("job=b", "Prometheus gives every target its own 'job'"),
            ("le=b", "a label 'le' of their own"),
            ("kind=b", "a label 'kind' of their own"),
            ("release=b", "a label 'release' of their own"),
            ("a=", "give one"),
        ] {
            let error = bad.parse::<Label>().unwrap_err();
            assert!(error.contains(expected), "{bad}: {error}");
        }
        let label = |text: &str| text.parse::<Label>().unwrap();
        assert_eq!(checked(&[label("a=1"), label("b=1")]), Ok(()));
        let twice = checked(&[label("a=1"), label("a=2")]).unwrap_err();
        assert!(twice.contains("'a' is given twice"), "{twice}");
    }

    /// Every sample line of everything that is exported carries the labels, escaped, and none carries one twice.
    #[test]
    fn every_metric_carries_the_labels() {
        let labels = ["cluster=a\"b\\c\nd", "zone=z"].map(|text| text.parse::<Label>().unwrap());
        let facts = Facts {
            kernel: "test".to_owned(),
            started: UNIX_EPOCH,
        };
        let metrics = Metrics::labelled(&facts, &labels).unwrap();
        let text = metrics.render(Reading::example()).unwrap();
        let mut samples = 0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert_eq!(line.matches(r#"cluster="a\"b\\c\nd""#).count(), 1, "{line}");
            assert_eq!(line.matches(r#"zone="z""#).count(), 1, "{line}");
            samples += 1;
        }
        let without = Metrics::new(&facts).unwrap().render(Reading::example()).unwrap();
        assert_eq!(
            without.lines().filter(|line| !line.starts_with('#')).count(),
            samples
        );
        assert!(text.contains("sdtrace_ready{") && text.contains("softdirty_clears_total{"));
    }
}
