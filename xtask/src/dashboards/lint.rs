//! Reads the JSON of a dashboard as Grafana will, and says what is wrong with it.

use super::promql;
use super::registry::Registry;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;

/// Units that the panels use; Grafana shows an unknown one as it is, so a misspelt one would be seen by nobody.
/// Those after the first line are words of our own for things counted, which Grafana appends to the number.
const UNITS: [&str; 20] = [
    "none",
    "bytes",
    "s",
    "percentunit",
    "Bps",
    "dateTimeFromNow",
    "epochs/s",
    "pages/s",
    "clears/s",
    "faults/s",
    "calls/s",
    "records/s",
    "runs/s",
    "items/s",
    "turns/s",
    "lines/s",
    "workloads/s",
    "nodes",
    "events/s",
    "requests/s",
];
/// Matchers that each selector of a dashboard must have.
const CHOSEN: [(&str, &str); 3] = [
    ("cluster", "$cluster"),
    ("job", "$job"),
    ("instance", "$instance"),
];
/// Variables that Grafana itself knows.
const BUILT_IN: [&str; 5] = [
    "__rate_interval",
    "__range",
    "__url_time_range",
    "__data",
    "__all",
];

/// A query of a panel.
#[derive(Clone, Debug)]
pub struct Query {
    /// Title of the panel.
    pub panel: String,
    /// Expression, with Grafana's variables.
    pub expression: String,
    /// Whether it is asked for one moment only.
    pub instant: bool,
}

/// The panels that ask something.
pub fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    panels.filter(|panel| panel["type"] != "row")
}

/// The queries of all panels.
pub fn queries(dashboard: &Value) -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        for target in panel["targets"].as_array().context("a panel has targets")? {
            queries.push(Query {
                panel: text(panel, "title")?.to_owned(),
                expression: text(target, "expr")?.to_owned(),
                instant: target["instant"] == true,
            });
        }
    }
    Ok(queries)
}

fn text<'a>(object: &'a Value, key: &str) -> Result<&'a str> {
    let text = object[key].as_str().unwrap_or_default();
    ensure!(!text.is_empty(), "no {key}");
    Ok(text)
}

/// Checks one dashboard. `uids` are those of all of them.
pub fn check(dashboard: &Value, registry: &Registry, uids: &BTreeSet<String>) -> Result<()> {
    ensure!(
        text(dashboard, "uid")?.starts_with("sdtrace-"),
        "its uid is not ours"
    );
    sentence(dashboard)?;
    text(dashboard, "title")?;
    let variables = variables(dashboard)?;
    for name in used(&dashboard.to_string()) {
        let name = name.split(['.', ':']).next().unwrap_or_default().to_owned();
        ensure!(
            variables.contains(&name) || BUILT_IN.contains(&name.as_str()),
            "there is no variable ${name}"
        );
    }
    let (mut ids, mut titles, mut places) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for panel in dashboard["panels"].as_array().context("there are no panels")? {
        let title = text(panel, "title")?;
        let id = panel["id"].as_u64().context("a panel without an id")?;
        ensure!(ids.insert(id), "two panels have the id {id}");
        place(panel, &mut places).with_context(|| format!("panel {title}"))?;
        if panel["type"] != "row" {
            ensure!(titles.insert(title), "two panels are called {title}");
            check_panel(panel, registry, uids).with_context(|| format!("panel {title}"))?;
        }
    }
    Ok(())
}

/// A description is a sentence that says more than a title.
fn sentence(object: &Value) -> Result<()> {
    let description = text(object, "description")?;
    ensure!(
        description.len() > 20 && description.ends_with('.'),
        "its description {description:?} is no sentence"
    );
    Ok(())
}

fn variables(dashboard: &Value) -> Result<BTreeSet<String>> {
    let list = dashboard["templating"]["list"].as_array();
    let mut names = BTreeSet::new();
    for variable in list.context("there are no variables")? {
        let name = text(variable, "name")?;
        if variable["type"] == "query" {
            ensure!(
                variable["datasource"]["uid"] == "${datasource}",
                "the variable {name} does not ask the chosen data source"
            );
        }
        names.insert(name.to_owned());
    }
    for name in ["datasource", "cluster", "job", "instance", "runbook"] {
        ensure!(names.contains(name), "there is no variable {name}");
    }
    Ok(names)
}

/// The names after each `$` and `${`.
fn used(text: &str) -> BTreeSet<String> {
    let parts = text.split('$').skip(1);
    let names = parts.map(|rest| {
        let rest = rest.strip_prefix('{').unwrap_or(rest);
        let end = rest.find(|letter: char| !(letter.is_ascii_alphanumeric() || "_.:".contains(letter)));
        rest[..end.unwrap_or(rest.len())].to_owned()
    });
    names.collect()
}

/// Within the dashboard's width, and on no other panel.
fn place(panel: &Value, places: &mut Vec<[u64; 4]>) -> Result<()> {
    let mut at = [0; 4];
    for (number, key) in at.iter_mut().zip(["x", "y", "w", "h"]) {
        *number = panel["gridPos"][key]
            .as_u64()
            .with_context(|| format!("no gridPos.{key}"))?;
    }
    let [x, y, w, h] = at;
    ensure!(w > 0 && h > 0 && x + w <= 24, "it does not fit: {at:?}");
    let over = places.iter().find(|[left, top, width, height]| {
        x < left + width && *left < x + w && y < top + height && *top < y + h
    });
    ensure!(over.is_none(), "it lies over another one: {at:?} and {over:?}");
    places.push(at);
    Ok(())
}

fn check_panel(panel: &Value, registry: &Registry, uids: &BTreeSet<String>) -> Result<()> {
    sentence(panel)?;
    let chosen = serde_json::json!({"type": "prometheus", "uid": "${datasource}"});
    ensure!(
        panel["datasource"] == chosen,
        "it does not ask the chosen data source"
    );
    let defaults = &panel["fieldConfig"]["defaults"];
    unit(text(defaults, "unit")?)?;
    let targets = panel["targets"].as_array().context("it asks nothing")?;
    ensure!(!targets.is_empty(), "it asks nothing");
    let (mut letters, mut titles, mut labels) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for target in targets {
        ensure!(target["datasource"] == chosen, "a query has another data source");
        ensure!(
            letters.insert(text(target, "refId")?),
            "two queries have one letter"
        );
        let legend = text(target, "legendFormat")?;
        ensure!(titles.insert(legend), "two queries are called {legend}");
        let expression = text(target, "expr")?;
        let asked = promql::check(expression, registry)?;
        promql::kinds(&asked, registry).with_context(|| expression.to_owned())?;
        for selector in &asked.selectors {
            chooses(selector)?;
        }
        ranges(expression, target["instant"] == true)?;
        for label in labels_in(legend) {
            ensure!(
                asked.labels.contains(label),
                "no label {label} for the legend {legend}"
            );
        }
        labels.extend(asked.labels);
    }
    let overrides = panel["fieldConfig"]["overrides"].as_array();
    let (mut columns, mut links) = (titles, Vec::new());
    columns.extend(labels.iter().map(String::as_str));
    columns.extend(["trusted", "suspect", "broken"]);
    for change in overrides.into_iter().flatten() {
        let column = change["matcher"]["options"].as_str().unwrap_or_default();
        ensure!(columns.contains(column), "there is no column {column}");
        for property in change["properties"].as_array().into_iter().flatten() {
            if property["id"] == "unit" {
                unit(property["value"].as_str().unwrap_or_default())?;
            }
            if property["id"] == "links" {
                links.extend(property["value"].as_array().into_iter().flatten());
            }
        }
    }
    for link in links {
        let url = text(link, "url")?;
        if let Some(path) = url.strip_prefix("/d/") {
            let uid = path.split('?').next().unwrap_or_default();
            ensure!(uids.contains(uid), "the link {url} leads nowhere");
        }
        for field in url.split("__data.fields.").skip(1) {
            let field = field.split('}').next().unwrap_or_default();
            ensure!(
                labels.contains(field),
                "the link {url} names {field}, which is no label"
            );
        }
    }
    if panel["type"] == "table" {
        let organized = &panel["transformations"][1]["options"]["indexByName"];
        let places = organized.as_object().context("its columns have no order")?;
        for column in places.keys().filter(|column| !column.starts_with("Value")) {
            ensure!(labels.contains(column), "there is no column {column}");
        }
    }
    Ok(())
}

fn unit(unit: &str) -> Result<()> {
    ensure!(UNITS.contains(&unit), "{unit:?} is no unit");
    Ok(())
}

/// What is chosen by variables must be chosen by them alone.
fn chooses(selector: &promql::Selector) -> Result<()> {
    for (label, variable) in CHOSEN {
        let values: Vec<_> = selector
            .matchers
            .iter()
            .filter(|(name, _, _)| name == label)
            .map(|(_, operator, value)| (operator.as_str(), value.as_str()))
            .collect();
        ensure!(
            values == [("=~", variable)],
            "{} must have {label}=~\"{variable}\" and nothing else for {label}",
            selector.name
        );
    }
    Ok(())
}

/// A rate over time needs a range that grows with the interval of the scrapes and the width of the picture.
fn ranges(expression: &str, instant: bool) -> Result<()> {
    for (before, rest) in expression
        .match_indices('[')
        .map(|(at, _)| expression.split_at(at))
    {
        let range = rest[1..].split(']').next().unwrap_or_default();
        let of_changes = before.contains("changes(");
        ensure!(
            range == "$__rate_interval" || (instant && range == "$__range") || of_changes,
            "the range [{range}] must be $__rate_interval, or $__range in a table or a number"
        );
    }
    Ok(())
}

/// The labels that a legend names.
fn labels_in(legend: &str) -> impl Iterator<Item = &str> {
    legend
        .split("{{")
        .skip(1)
        .map(|rest| rest.split("}}").next().unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboards::{all, check as whole};
    use serde_json::json;

    /// What is said of the first dashboard after a change of it.
    fn said(change: impl FnOnce(&mut Value)) -> String {
        let (registry, uids) = whole::world().unwrap();
        let mut dashboard = all().remove(0).1;
        change(&mut dashboard);
        match check(&dashboard, &registry, &uids) {
            Ok(()) => String::new(),
            Err(error) => format!("{error:#}"),
        }
    }

    /// The first panel of a kind.
    fn panel<'a>(dashboard: &'a mut Value, kind: &str) -> &'a mut Value {
        let panels = dashboard["panels"].as_array_mut().unwrap();
        panels.iter_mut().find(|panel| panel["type"] == kind).unwrap()
    }

    #[test]
    fn each_lint_finds_what_it_is_for() {
        assert_eq!(said(|_| {}), "");
        let lines = "timeseries";
        for (pointer, value, expected) in [
            ("/title", json!(""), "no title"),
            ("/description", json!("Short."), "no sentence"),
            ("/id", json!(1), "two panels have the id"),
            ("/gridPos/w", json!(30), "does not fit"),
            ("/gridPos/y", json!(1), "lies over another"),
            ("/datasource/uid", json!("prometheus"), "chosen data source"),
            (
                "/targets/0/datasource/uid",
                json!("prometheus"),
                "another data source",
            ),
            ("/fieldConfig/defaults/unit", json!(""), "no unit"),
            ("/fieldConfig/defaults/unit", json!("epoch/s"), "is no unit"),
            (
                "/targets/0/legendFormat",
                json!("{{verdikt}}"),
                "no label verdikt",
            ),
            ("/targets/0/expr", json!("sum(up)"), "must have cluster"),
            ("/targets", json!([]), "asks nothing"),
            (
                "/fieldConfig/overrides/0/matcher/options",
                json!("trustet"),
                "no column trustet",
            ),
        ] {
            let found = said(|dashboard| *panel(dashboard, lines).pointer_mut(pointer).unwrap() = value);
            assert!(found.contains(expected), "{pointer}: {found:?}");
        }
        for (from, to, expected) in [
            ("[$__rate_interval]", "[5m]", "must be $__rate_interval"),
            ("[$__rate_interval]", "[$__range]", "must be $__rate_interval"),
            (r#"job=~"$job""#, r#"job="sdtrace""#, "must have job"),
            (
                r#"instance=~"$instance""#,
                r#"instance=~"$instance", instance!="a""#,
                "must have instance",
            ),
            ("$cluster", "$klusters", "no variable $klusters"),
            ("rate(", "(", ""),
        ] {
            let found = said(|dashboard| {
                let expression = panel(dashboard, lines).pointer_mut("/targets/0/expr").unwrap();
                *expression = json!(expression.as_str().unwrap().replace(from, to));
            });
            assert!(!found.is_empty() && found.contains(expected), "{from}: {found:?}");
        }
        let table = |pointer: &str, value: Value| {
            said(|dashboard| *panel(dashboard, "table").pointer_mut(pointer).unwrap() = value)
        };
        let link = "/fieldConfig/overrides/1/properties/0/value/0/url";
        assert!(table(link, json!("/d/sdtrace-nodes?x")).contains("leads nowhere"));
        assert!(table(link, json!("/d/sdtrace-node?x=${__data.fields.node}")).contains("which is no label"));
        let order = "/transformations/1/options/indexByName";
        assert!(table(order, json!({"instanze": 0})).contains("no column instanze"));
    }
}
