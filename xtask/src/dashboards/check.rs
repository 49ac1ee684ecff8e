//! All static checks together: the committed dashboards, rules and runbook against the registry.

use super::registry::Registry;
use super::{committed, current, lint, promql, rules, runbook};
use anyhow::{Context as _, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};

/// Metrics that no panel shows, each with the reason. Empty at present; an entry that is shown, or whose metric is gone,
/// fails the check.
const NOT_SHOWN: &[(&str, &str)] = &[];

/// What expressions are held against: the registry with the recorded series, and the uids of the dashboards.
pub fn world() -> Result<(Registry, BTreeSet<String>)> {
    let uids: BTreeSet<String> = super::all()
        .iter()
        .filter_map(|(_, dashboard)| Some(dashboard["uid"].as_str()?.to_owned()))
        .collect();
    let mut registry = Registry::committed()?;
    rules::check(&rules::committed()?, &mut registry, &uids)?;
    Ok((registry, uids))
}

/// Checks everything that needs neither Prometheus nor Grafana.
pub fn run() -> Result<String> {
    current()?;
    let (registry, uids) = world()?;
    runbook::check(&rules::committed()?)?;
    let dashboards = committed()?;
    ensure!(dashboards.len() == uids.len(), "two dashboards have one uid");
    let (mut panels, mut queries) = (0, Vec::new());
    for (name, dashboard) in &dashboards {
        lint::check(dashboard, &registry, &uids).with_context(|| name.clone())?;
        panels += lint::panels(dashboard).count();
        queries.extend(lint::queries(dashboard)?);
    }
    let shown: Vec<_> = queries.iter().map(|query| query.expression.as_str()).collect();
    coverage(&registry, &shown, NOT_SHOWN)?;
    let rules = rules::committed()?;
    let expressions: Vec<_> = shown
        .iter()
        .copied()
        .chain(rules.rules().map(|(_, rule)| rule.expr.as_str()))
        .collect();
    let mutants = mutants(&expressions, &registry)?;
    Ok(format!(
        "{} dashboards, {panels} panels, {} queries, {} rules; {} of {} misspelt names found",
        dashboards.len(),
        queries.len(),
        rules.rules().count(),
        mutants,
        mutants
    ))
}

/// Whether each metric of sdtrace is on a panel or among the exceptions, and never both.
fn coverage(registry: &Registry, shown: &[&str], exceptions: &[(&str, &str)]) -> Result<()> {
    let mut on_panels = BTreeSet::new();
    for expression in shown {
        for selector in promql::check(expression, registry)?.selectors {
            on_panels.insert(registry.family(&selector.name).to_owned());
        }
    }
    let exceptions: BTreeMap<_, _> = exceptions.iter().copied().collect();
    for name in registry.own() {
        ensure!(
            on_panels.contains(name) != exceptions.contains_key(name),
            "{name} must be on a panel of xtask/src/dashboards, or in NOT_SHOWN with a reason, and not both"
        );
    }
    for (name, why) in exceptions {
        ensure!(
            registry.own().any(|own| own == name),
            "NOT_SHOWN names {name}, which does not exist"
        );
        ensure!(!why.is_empty(), "NOT_SHOWN gives no reason for {name}");
    }
    Ok(())
}

/// Misspells each name of each expression in turn and fails unless every one of them is found. How many there were.
fn mutants(expressions: &[&str], registry: &Registry) -> Result<usize> {
    let mut count = 0;
    for expression in expressions {
        for place in promql::names(expression) {
            let name = &expression[place.clone()];
            // What Prometheus' configuration says is no name of ours, and a variable is looked up by the lint.
            let of_variable = expression[..place.start].ends_with('$');
            let of_job = expression[..place.start].ends_with(r#"job=~".*"#);
            if of_variable || of_job {
                continue;
            }
            for misspelt in misspellings(name) {
                let mutant = format!(
                    "{}{misspelt}{}",
                    &expression[..place.start],
                    &expression[place.end..]
                );
                count += 1;
                ensure!(
                    promql::check(&mutant, registry).is_err(),
                    "{misspelt} instead of {name} is not found in {expression}"
                );
            }
        }
    }
    ensure!(count > 1000, "only {count} names were misspelt");
    Ok(count)
}

/// Without its last letter, and with one too many in the middle.
fn misspellings(name: &str) -> [String; 2] {
    let (head, tail) = name.split_at(name.len() / 2);
    [name[..name.len() - 1].to_owned(), format!("{head}q{tail}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_passes() {
        run().unwrap();
    }

    #[test]
    fn a_metric_on_no_panel_is_named_and_so_is_a_needless_exception() {
        let registry = Registry::committed().unwrap();
        let all: Vec<String> = super::super::all()
            .iter()
            .flat_map(|(_, dashboard)| lint::queries(dashboard).unwrap())
            .map(|query| query.expression)
            .filter(|expression| !expression.contains("ALERTS"))
            .collect();
        let shown: Vec<_> = all.iter().map(String::as_str).collect();
        coverage(&registry, &shown, &[]).unwrap();
        let without: Vec<_> = shown
            .iter()
            .copied()
            .filter(|expression| !expression.contains("softdirty_mprotects_total"))
            .collect();
        let error = coverage(&registry, &without, &[]).unwrap_err().to_string();
        assert!(error.contains("softdirty_mprotects_total"), "{error}");
        let name = "softdirty_mprotects_total";
        coverage(&registry, &without, &[(name, "a reason")]).unwrap();
        for exceptions in [[(name, "")], [("softdirty_no_such_total", "a reason")]] {
            assert!(coverage(&registry, &without, &exceptions).is_err());
        }
        assert!(coverage(&registry, &shown, &[(name, "a reason")]).is_err());
    }
}
