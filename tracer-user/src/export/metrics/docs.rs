//! docs/metrics.md, from the registry itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use prometheus::proto::{MetricFamily, MetricType};

use super::reading::Reading;
use super::{Facts, Metrics};

/// The documentation of every metric as Markdown.
///
/// # Errors
/// If the metrics cannot be registered.
pub fn render() -> Result<String> {
    let metrics = Metrics::new(&Facts {
        kernel: String::new(),
        started: UNIX_EPOCH,
    })?;
    let mut text = String::from(
        "# Metrics\n\n\
         Made from the registry by `sdtrace metrics-docs`; a test compares. Names that begin with `softdirty_` \
         are observations, those with `sdtrace_` and `process_` are about sdtrace itself. No metric has a pid, an address or a \
         path as a label. Labels that are given with `--label` come on top, on every metric.\n",
    );
    for family in &metrics.gather(Reading::example()) {
        describe(&mut text, family)?;
    }
    Ok(text)
}

/// The values of labels that depend on the machine, the version or the object; the others are all there from the
/// start.
fn open_values(family: &str, label: &str) -> Option<&'static str> {
    Some(match (family, label) {
        (_, "version") => "a version",
        (_, "release") => "as `uname -r` prints it",
        (_, "workload") => {
            "`docker-` and 12 digits of the id, `nginx.service`, …; `other` for all without series"
        }
        (_, "map") => "`rows`, `address_spaces`",
        ("sdtrace_probe_verdict", "probe") => "a kernel function or tracepoint",
        (_, "probe") => "a program of the eBPF object",
        (_, "mode") => "`fentry`, `kprobe`, `none`",
        ("sdtrace_probe_verdict", "verdict") => "`attached`, `unsupported`, `broken`",
        ("sdtrace_missed_probe_runs_total" | "sdtrace_missed_probe_runs_counted", "stage") => {
            "`recursion`, `bpf_prog_active`"
        }
        _ => return None,
    })
}

fn describe(text: &mut String, family: &MetricFamily) -> Result<()> {
    let kind = match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        other => anyhow::bail!("{}: {other:?} is not used here", family.name()),
    };
    write!(text, "\n## {}\n\n{kind}. {}\n", family.name(), family.help())?;
    let mut labels: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pair in family
        .get_metric()
        .iter()
        .flat_map(prometheus::proto::Metric::get_label)
    {
        let values = labels.entry(pair.name()).or_default();
        if !values.contains(&pair.value()) {
            values.push(pair.value());
        }
    }
    if !labels.is_empty() {
        text.push('\n');
    }
    for (label, values) in labels {
        let listed = open_values(family.name(), label).map_or_else(
            || {
                values
                    .iter()
                    .map(|value| format!("`{value}`"))
                    .collect::<Vec<_>>()
                    .join(", ")
            },
            str::to_owned,
        );
        writeln!(text, "- `{label}`: {listed}")?;
    }
    Ok(())
}
