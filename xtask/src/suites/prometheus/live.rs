//! What the queries of the panels and rules give on a Prometheus that scrapes a running sdtrace.

use super::server::Prometheus;
use crate::dashboards::{committed, lint, promql, rules};
use anyhow::{Context as _, Result, bail, ensure};
use promql_parser::parser::{Expr, parse};
use std::collections::BTreeSet;
use std::time::SystemTime;

/// Queries that give nothing in this run, by dashboard or `rule`, and panel or name of the rule, each with the reason. One
/// that does give something, or does not exist, fails.
const EMPTY: &[(&str, &str, &str)] = &[
    (
        "rule",
        "SdtraceAbsent",
        "it asks whether the target is absent, which it is not",
    ),
    (
        "rule",
        "SdtraceProbeBroken",
        "this kernel refuses no probe, so no series has this verdict",
    ),
];
/// Queries that may give something or not, because it depends on luck. One that does not exist fails.
const LUCK: &[(&str, &str, &str)] = &[
    (
        "sdtrace-health.json",
        "Skipped probe runs",
        "the kernel skips runs of a probe when two things meet on one processor",
    ),
    (
        "sdtrace-node.json",
        "Bound on the miss rate",
        "the battery's epochs are short, and only those that live when a period is over are compared",
    ),
    (
        "sdtrace-node.json",
        "Sampled pages left out",
        "as above, and their pages must have been written meanwhile",
    ),
];
/// Alerts that fire in this run, because the battery makes the kernel miss writes.
const FIRING: &[&str] = &["SoftDirtyBrokenEpochs", "SoftDirtyForeignClear"];
/// Alerts that would say that this test itself is broken.
const SILENT: &[&str] = &[
    "SdtraceDown",
    "SdtraceAbsent",
    "SdtraceNotReady",
    "SdtraceProbeBroken",
];

/// A query as Prometheus gets it.
pub struct Question {
    place: (String, String),
    expression: String,
    instant: bool,
}

impl Question {
    fn is_in(&self, list: &[(&str, &str, &str)]) -> bool {
        list.iter()
            .any(|(place, name, _)| (*place, *name) == (&self.place.0, &self.place.1))
    }
}

/// Every query of every panel, with the variables that a user would choose, and the expression of every rule. Rules are
/// asked without their limits: on a healthy node nothing is beyond them, and still what they look at must be there.
pub fn questions(instance: &str) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (file, dashboard) in committed()? {
        // One node alone is chosen where only one can be.
        let node = if dashboard["uid"] == "sdtrace-node" {
            instance
        } else {
            ".*"
        };
        for query in lint::queries(&dashboard)? {
            let expression = query
                .expression
                .replace("$__rate_interval", "20s")
                .replace("$__range", "10m")
                .replace("$cluster", ".*")
                .replace("$job", ".*")
                .replace("$instance", node);
            ensure!(!expression.contains('$'), "a variable is left in {expression}");
            questions.push(Question {
                place: (file.clone(), query.panel),
                expression,
                instant: query.instant,
            });
        }
    }
    for (name, rule) in rules::committed()?.rules() {
        let parsed = parse(&rule.expr).map_err(anyhow::Error::msg)?;
        questions.push(Question {
            place: ("rule".to_owned(), name.to_owned()),
            expression: unlimited(parsed).to_string(),
            instant: true,
        });
    }
    for list in [EMPTY, LUCK] {
        for (place, name, why) in list {
            ensure!(!why.is_empty(), "no reason for {name}");
            ensure!(
                questions
                    .iter()
                    .any(|question| (&question.place.0, &question.place.1)
                        == (&(*place).to_owned(), &(*name).to_owned())),
                "the list names {place}, {name}, which does not exist"
            );
        }
    }
    Ok(questions)
}

/// An expression without its comparisons with numbers.
fn unlimited(expression: Expr) -> Expr {
    match expression {
        Expr::Binary(mut binary) => {
            if binary.op.is_comparison_operator() && matches!(*binary.rhs, Expr::NumberLiteral(_)) {
                return unlimited(*binary.lhs);
            }
            binary.lhs = Box::new(unlimited(*binary.lhs));
            binary.rhs = Box::new(unlimited(*binary.rhs));
            Expr::Binary(binary)
        }
        Expr::Paren(mut paren) => {
            paren.expr = Box::new(unlimited(*paren.expr));
            Expr::Paren(paren)
        }
        Expr::Aggregate(mut aggregate) => {
            aggregate.expr = Box::new(unlimited(*aggregate.expr));
            Expr::Aggregate(aggregate)
        }
        other => other,
    }
}

/// The questions that must give data and do not yet.
pub fn unanswered(prometheus: &Prometheus, questions: &[Question], since: SystemTime) -> Result<Vec<String>> {
    let mut unanswered = Vec::new();
    for question in questions {
        if question.is_in(EMPTY) || question.is_in(LUCK) {
            continue;
        }
        let since = (!question.instant).then_some(since);
        if prometheus.series(&question.expression, since)? == 0 {
            let (place, name) = &question.place;
            unanswered.push(format!("{place}, {name}: {}", question.expression));
        }
    }
    let firing = alerts(prometheus)?;
    for alert in FIRING.iter().filter(|alert| !firing.contains(**alert)) {
        unanswered.push(format!("{alert} does not fire"));
    }
    Ok(unanswered)
}

/// The alerts that fire.
fn alerts(prometheus: &Prometheus) -> Result<BTreeSet<String>> {
    let data = prometheus.ask("alerts", &[])?;
    let alerts = data["alerts"].as_array().context("no list of alerts")?;
    let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
    let names = firing.filter_map(|alert| alert["labels"]["alertname"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Everything that is asked once all questions have their answers: that Prometheus evaluates every rule, that what should be
/// empty is, and that a misspelt name would have been noticed. In one line.
pub fn check(prometheus: &Prometheus, questions: &[Question], since: SystemTime) -> Result<String> {
    let (mut misspelt, mut found) = (0, Vec::new());
    for question in questions {
        let since = (!question.instant).then_some(since);
        let (place, name) = &question.place;
        if question.is_in(EMPTY) {
            let series = prometheus.series(&question.expression, since)?;
            ensure!(
                series == 0,
                "{place}, {name} gives data; take it out of the list EMPTY"
            );
        } else if place != "rule" && !question.is_in(LUCK) {
            for mutant in mutants(&question.expression)? {
                misspelt += 1;
                if prometheus.series(&mutant, since)? > 0 {
                    found.push(format!("{place}, {name}: {mutant}"));
                }
            }
        }
    }
    ensure!(
        found.is_empty(),
        "these have a misspelt metric, and data:\n  {}",
        found.join("\n  ")
    );
    let data = prometheus.ask("rules", &[])?;
    let mut evaluated = 0;
    for group in data["groups"].as_array().context("no groups of rules")? {
        for rule in group["rules"].as_array().context("no rules")? {
            if rule["health"] != "ok" {
                bail!(
                    "the rule {} is {}: {}",
                    rule["name"],
                    rule["health"],
                    rule["lastError"]
                );
            }
            evaluated += 1;
        }
    }
    let firing = alerts(prometheus)?;
    for alert in SILENT {
        ensure!(!firing.contains(*alert), "{alert} fires");
    }
    ensure!(
        evaluated == rules::committed()?.rules().count(),
        "Prometheus evaluates {evaluated} rules"
    );
    let causes = prometheus.ask(
        "query",
        &[("query", "sum by (cause) (softdirty_missed_writes_total) > 0")],
    )?;
    let causes = causes["result"].as_array().context("no causes")?;
    let causes: Vec<_> = causes
        .iter()
        .filter_map(|series| series["metric"]["cause"].as_str())
        .collect();
    Ok(format!(
        "{} queries have data, {evaluated} rules are evaluated, {misspelt} misspelt metrics give nothing; missed writes by {}; \
         alerts that fire: {}",
        questions.len(),
        causes.join(", "),
        firing.into_iter().collect::<Vec<_>>().join(", ")
    ))
}

/// The expression with each of its metrics misspelt in turn, where nothing else could give data.
fn mutants(expression: &str) -> Result<Vec<String>> {
    let registry = crate::dashboards::check::world()?.0;
    let asked = promql::check(expression, &registry)?;
    let names: BTreeSet<_> = asked
        .selectors
        .into_iter()
        .map(|selector| selector.name)
        .collect();
    Ok(names
        .into_iter()
        .map(|name| expression.replacen(&name, &format!("{name}x"), 1))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_taken_out_and_nothing_else() {
        let without = |text: &str| unlimited(parse(text).unwrap()).to_string();
        assert_eq!(without("up == 0"), "up");
        assert_eq!(without("(a > 1) / b > 0.5 and c >= 10"), "(a) / b and c");
        assert_eq!(
            without("sum by (x) (a > 0 or (b > 0 and on (x) time() - c < 9))"),
            "sum by (x) (a or (b and on (x) time() - c))"
        );
        assert_eq!(without("a - b"), "a - b");
        assert_eq!(without("a > b"), "a > b");
    }

    #[test]
    fn every_query_and_rule_is_asked() {
        let questions = questions("a:1").unwrap();
        assert!(questions.len() > 100);
        assert!(
            questions
                .iter()
                .all(|question| !question.expression.contains('$'))
        );
    }
}
