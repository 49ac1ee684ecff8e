//! `dashboards/rules.yml`, read and held against the registry, the dashboards and the runbook.

use super::promql::{self, Asked, Labels};
use super::registry::{Kind, Registry};
use super::{GRAFANA, RUNBOOK};
use crate::workspace::root;
use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// How urgent an alert can be: somebody must act now, this week, or look when there is time.
pub const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];
/// A label of every alert, for dashboards and for the routes of Alertmanager.
const SERVICE: &str = "sdtrace";
/// The only job that rules ask for; a job that scrapes sdtrace has its name somewhere in its own.
const JOB: &str = ".*sdtrace.*";

/// A file of rules.
#[derive(Clone, Debug, Deserialize)]
pub struct File {
    /// Groups.
    pub groups: Vec<Group>,
}

/// A group of rules that are evaluated together, in their order.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Rules.
    pub rules: Vec<Rule>,
}

/// A rule; it either records or alerts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the series.
    pub record: Option<String>,
    /// Name of the alert.
    pub alert: Option<String>,
    /// Expression.
    pub expr: String,
    /// How long it must hold.
    #[serde(rename = "for")]
    pub lasting: Option<String>,
    /// Labels of the alert.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Words.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl File {
    /// The rules that alert, with their names.
    pub fn alerts(&self) -> impl Iterator<Item = (&str, &Rule)> {
        let rules = self.groups.iter().flat_map(|group| &group.rules);
        rules.filter_map(|rule| Some((rule.alert.as_deref()?, rule)))
    }

    /// All rules with their expressions, under the names that they go by.
    pub fn rules(&self) -> impl Iterator<Item = (&str, &Rule)> {
        let rules = self.groups.iter().flat_map(|group| &group.rules);
        rules.map(|rule| {
            let name = rule.alert.as_deref().or(rule.record.as_deref());
            (name.unwrap_or("a rule without a name"), rule)
        })
    }
}

/// The committed rules.
pub fn committed() -> Result<File> {
    let path = root().join("dashboards/rules.yml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    read(&text)
}

/// Reads a file of rules.
pub fn read(text: &str) -> Result<File> {
    serde_yaml_ng::from_str(text).context("dashboards/rules.yml")
}

/// Checks the rules; the series that they record, and those of the alerts, are in the registry afterwards.
pub fn check(file: &File, registry: &mut Registry, dashboards: &BTreeSet<String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for (name, rule) in file.rules() {
        ensure!(seen.insert(name.to_owned()), "{name} is there twice");
        let asked = expression(rule, registry).with_context(|| format!("rule {name}"))?;
        let labels = asked.labels.clone();
        match (&rule.record, &rule.alert) {
            (Some(record), None) => {
                recorded(record, &labels).with_context(|| format!("rule {name}"))?;
                let mut own = BTreeMap::new();
                for label in labels.into_iter().filter(|label| !promql::of_target(label)) {
                    // A label has the values that it has in what is recorded.
                    let values = asked.selectors.iter().find_map(|selector| {
                        let (_, labels) = registry.series(&selector.name).ok()?;
                        labels.get(&label).cloned()
                    });
                    own.insert(label, values.flatten());
                }
                registry.add(record, Kind::Gauge, own);
            }
            (None, Some(alert)) => {
                alerting(alert, rule, &labels, dashboards).with_context(|| format!("alert {alert}"))?;
            }
            _ => bail!("{name} must either record or alert"),
        }
    }
    let alerts: BTreeSet<String> = file.alerts().map(|(name, _)| name.to_owned()).collect();
    let states = ["firing", "pending"].map(str::to_owned).into();
    let severities = SEVERITIES.map(str::to_owned).into();
    registry.add(
        "ALERTS",
        Kind::Gauge,
        BTreeMap::from([
            ("alertname".to_owned(), Some(alerts)),
            ("alertstate".to_owned(), Some(states)),
            ("service".to_owned(), Some([SERVICE.to_owned()].into())),
            ("severity".to_owned(), Some(severities)),
        ]),
    );
    Ok(())
}

fn expression(rule: &Rule, registry: &Registry) -> Result<Asked> {
    let asked = promql::check(&rule.expr, registry)?;
    for selector in &asked.selectors {
        for (label, _, value) in &selector.matchers {
            ensure!(
                !promql::of_target(label) || (label == "job" && value == JOB),
                "{label} must not be fixed, but for job=~{JOB:?}"
            );
        }
    }
    Ok(asked)
}

/// What a recorded series is called: by which labels it is summed up, what it is of, what was done.
fn recorded(name: &str, labels: &Labels) -> Result<()> {
    let mut parts = name.split(':');
    let level = parts.next().unwrap_or_default();
    ensure!(
        parts.clone().count() == 2 && parts.all(|part| !part.is_empty()),
        "it is called level:metric:operation"
    );
    let fits = match level {
        "instance" => labels.contains("instance"),
        "cluster" => labels.contains("cluster") && !labels.contains("instance"),
        _ => bail!("its level is instance or cluster"),
    };
    ensure!(fits, "its labels {labels:?} are not those of its level");
    Ok(())
}

fn alerting(name: &str, rule: &Rule, labels: &Labels, dashboards: &BTreeSet<String>) -> Result<()> {
    let severity = rule.labels.get("severity").map_or("", String::as_str);
    ensure!(SEVERITIES.contains(&severity), "its severity is {severity:?}");
    ensure!(
        rule.labels
            .get("service")
            .is_some_and(|service| service == SERVICE),
        "the dashboard looks for alerts with the label service: {SERVICE}"
    );
    let names: BTreeSet<&str> = rule.annotations.keys().map(String::as_str).collect();
    ensure!(
        names == ["dashboard_url", "description", "runbook_url", "summary"].into(),
        "its annotations are {names:?}"
    );
    let runbook = &rule.annotations["runbook_url"];
    ensure!(*runbook == format!("{RUNBOOK}#{name}"), "it leads to {runbook}");
    let link = &rule.annotations["dashboard_url"];
    let uid = link
        .strip_prefix(GRAFANA)
        .and_then(|path| path.strip_prefix("/d/"))
        .map(|path| path.split('?').next().unwrap_or_default());
    ensure!(
        uid.is_some_and(|uid| dashboards.contains(uid)),
        "its dashboard {link} does not exist"
    );
    for (annotation, text) in &rule.annotations {
        for label in labels_in(text) {
            ensure!(
                labels.contains(label) || rule.labels.contains_key(label),
                "{annotation} names the label {label}, which the expression does not have"
            );
        }
    }
    // A series that comes and goes must not make the alert come and go: either the condition lasts, or it looks back.
    let looks_back = ["15m", "30m", "1h"]
        .iter()
        .any(|range| rule.expr.contains(&format!("[{range}]")))
        || rule.expr.contains(":increase15m")
        || rule.expr.contains("1h");
    ensure!(
        looks_back || rule.lasting.is_some(),
        "it fires on one sample: give it a `for`, or a range of 15 minutes"
    );
    Ok(())
}

/// The labels that a template names.
fn labels_in(template: &str) -> impl Iterator<Item = &str> {
    template.split("$labels.").skip(1).map(|rest| {
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl Fn(&mut Rule)) -> String {
        let mut file = committed().unwrap();
        let rules = file.groups.iter_mut().flat_map(|group| &mut group.rules);
        for rule in rules.filter(|rule| rule.alert.as_deref() == Some("SdtraceNotReady")) {
            change(rule);
        }
        let dashboards = BTreeSet::from([
            "sdtrace-health".to_owned(),
            "sdtrace-node".to_owned(),
            "sdtrace-fleet".to_owned(),
        ]);
        let mut registry = Registry::committed().unwrap();
        match check(&file, &mut registry, &dashboards) {
            Ok(()) => String::new(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn each_rule_about_alerts_can_be_broken() {
        assert_eq!(wrong(|_| {}), "");
        let annotate = |rule: &mut Rule, name: &str, text: &str| {
            rule.annotations.insert(name.to_owned(), text.to_owned());
        };
        assert!(wrong(|rule| rule.labels.clear()).contains("severity"));
        assert!(wrong(|rule| drop(rule.labels.remove("service"))).contains("service: sdtrace"));
        assert!(wrong(|rule| annotate(rule, "runbook_url", "x")).contains("leads to x"));
        assert!(
            wrong(|rule| annotate(rule, "dashboard_url", "https://grafana.example/d/no"))
                .contains("does not exist")
        );
        assert!(wrong(|rule| annotate(rule, "summary", "{{ $labels.probe }}")).contains("label probe"));
        assert!(wrong(|rule| annotate(rule, "more", "")).contains("annotations"));
        assert!(wrong(|rule| rule.lasting = None).contains("one sample"));
        assert!(wrong(|rule| rule.expr = "sdtrace_redy == 0".to_owned()).contains("sdtrace_redy"));
        assert!(wrong(|rule| rule.expr = r#"sdtrace_ready{instance="a"} == 0"#.to_owned()).contains("fixed"));
    }
}
