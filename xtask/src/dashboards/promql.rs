//! Reads expressions, and holds each name in them against the registry: metrics, labels, and values of labels.

use super::registry::{Kind, Registry, TARGET};
use anyhow::{Context as _, Result, bail, ensure};
use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::{Call, Expr, LabelModifier, VectorMatchCardinality, VectorSelector, parse};
use std::collections::BTreeSet;

/// A set of labels.
pub type Labels = BTreeSet<String>;

/// What an expression asks for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The labels that its result can have.
    pub labels: Labels,
    /// Each selector with the function that takes it, if one does.
    pub selectors: Vec<Selector>,
    /// Whether the result is a number without labels of its own.
    scalar: bool,
}

/// A selector.
#[derive(Clone, Debug)]
pub struct Selector {
    /// The series' name.
    pub name: String,
    /// Label, operator, value.
    pub matchers: Vec<(String, String, String)>,
    /// The function that it is an argument of.
    pub function: Option<String>,
}

/// Parses an expression and looks up every name in it.
///
/// # Errors
/// If it is no expression, or names something that does not exist.
pub fn check(expression: &str, registry: &Registry) -> Result<Asked> {
    // Grafana puts the durations in, which stand where no variable can.
    let text = expression
        .replace("$__rate_interval", "5m")
        .replace("$__range", "1h");
    let parsed = parse(&text).map_err(|error| anyhow::anyhow!("{error}: {expression}"))?;
    walk(&parsed, registry).with_context(|| expression.to_owned())
}

fn walk(expression: &Expr, registry: &Registry) -> Result<Asked> {
    Ok(match expression {
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Asked {
            scalar: true,
            ..Asked::default()
        },
        Expr::Paren(inner) => walk(&inner.expr, registry)?,
        Expr::Unary(inner) => walk(&inner.expr, registry)?,
        Expr::Subquery(inner) => walk(&inner.expr, registry)?,
        Expr::VectorSelector(selector) => select(selector, registry)?,
        Expr::MatrixSelector(matrix) => select(&matrix.vs, registry)?,
        Expr::Aggregate(aggregate) => {
            let mut asked = walk(&aggregate.expr, registry)?;
            let keeps = ["topk", "bottomk"].contains(&aggregate.op.to_string().as_str());
            asked.labels = match &aggregate.modifier {
                Some(LabelModifier::Include(labels)) => {
                    contained(&labels.labels, &asked.labels)?;
                    labels.labels.iter().cloned().collect()
                }
                Some(LabelModifier::Exclude(labels)) => {
                    contained(&labels.labels, &asked.labels)?;
                    let mut left = asked.labels;
                    left.retain(|label| !labels.labels.contains(label));
                    left
                }
                None if keeps => asked.labels,
                None => Labels::new(),
            };
            asked
        }
        Expr::Binary(binary) => {
            let (mut left, right) = (walk(&binary.lhs, registry)?, walk(&binary.rhs, registry)?);
            let modifier = binary.modifier.as_ref();
            let one_to_one =
                modifier.is_some_and(|modifier| matches!(modifier.card, VectorMatchCardinality::OneToOne));
            match modifier.and_then(|modifier| modifier.matching.as_ref()) {
                Some(LabelModifier::Include(on)) => {
                    contained(&on.labels, &left.labels)?;
                    contained(&on.labels, &right.labels)?;
                    if one_to_one {
                        left.labels = on.labels.iter().cloned().collect();
                    }
                }
                Some(LabelModifier::Exclude(ignored)) => {
                    let either = left.labels.union(&right.labels).cloned().collect();
                    contained(&ignored.labels, &either)?;
                    if one_to_one {
                        left.labels.retain(|label| !ignored.labels.contains(label));
                    }
                }
                None => {}
            }
            if left.scalar {
                left.labels.clone_from(&right.labels);
                left.scalar = right.scalar;
            }
            left.selectors.extend(right.selectors);
            left
        }
        Expr::Call(call) => called(call, registry)?,
        Expr::Extension(_) => bail!("an extension of the language"),
    })
}

fn called(call: &Call, registry: &Registry) -> Result<Asked> {
    let name = call.func.name;
    let mut all = Asked {
        scalar: true,
        ..Asked::default()
    };
    for argument in &call.args.args {
        let mut asked = walk(argument, registry)?;
        if let Expr::MatrixSelector(_) | Expr::VectorSelector(_) = **argument {
            for selector in &mut asked.selectors {
                selector.function = Some(name.to_owned());
            }
        }
        all.scalar &= asked.scalar;
        all.labels.extend(asked.labels);
        all.selectors.extend(asked.selectors);
    }
    match name {
        "histogram_quantile" => ensure!(all.labels.remove("le"), "histogram_quantile needs le"),
        // It can only have what its selector says for certain.
        "absent" => {
            let equal = all.selectors.iter().flat_map(|selector| &selector.matchers);
            let equal = equal.filter(|(_, operator, _)| operator == "=");
            all.labels = equal.map(|(label, _, _)| label.clone()).collect();
        }
        "vector" => all.scalar = false,
        _ => {}
    }
    Ok(all)
}

fn select(selector: &VectorSelector, registry: &Registry) -> Result<Asked> {
    let name = selector.name.as_deref().context("a selector without a name")?;
    let (_, labels) = registry.series(name)?;
    ensure!(
        selector.matchers.or_matchers.is_empty(),
        "Prometheus has no `or` in a selector"
    );
    let mut matchers = Vec::new();
    for matcher in &selector.matchers.matchers {
        let Some(values) = labels.get(&matcher.name) else {
            bail!("{name} has no label {}", matcher.name);
        };
        if let Some(values) = values {
            matched(matcher, values).with_context(|| name.to_owned())?;
        }
        matchers.push((
            matcher.name.clone(),
            matcher.op.to_string(),
            matcher.value.clone(),
        ));
    }
    Ok(Asked {
        labels: labels.into_keys().collect(),
        selectors: vec![Selector {
            name: name.to_owned(),
            matchers,
            function: None,
        }],
        scalar: false,
    })
}

/// Whether each alternative of a matcher can match one of the values that there are.
fn matched(matcher: &Matcher, values: &BTreeSet<String>) -> Result<()> {
    let alternatives: Vec<&str> = match &matcher.op {
        MatchOp::Equal | MatchOp::NotEqual => vec![&matcher.value],
        MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
    };
    for alternative in alternatives {
        let whole = match &matcher.op {
            MatchOp::Equal | MatchOp::NotEqual => regex::escape(alternative),
            MatchOp::Re(_) | MatchOp::NotRe(_) => alternative.to_owned(),
        };
        let pattern = regex::Regex::new(&format!("^(?:{whole})$"))?;
        ensure!(
            values.iter().any(|value| pattern.is_match(value)),
            "{} is never {alternative:?}",
            matcher.name
        );
    }
    Ok(())
}

fn contained(labels: &[String], there: &Labels) -> Result<()> {
    for label in labels {
        ensure!(there.contains(label), "there is no label {label} at that place");
    }
    Ok(())
}

/// The places of all names in an expression, and of the values in its selectors: letters, digits and `_`, also within
/// quotes, without durations and numbers.
#[must_use]
pub fn names(expression: &str) -> Vec<std::ops::Range<usize>> {
    let mut names = Vec::new();
    let mut start = None;
    for (at, letter) in expression.char_indices().chain([(expression.len(), ' ')]) {
        let inside = letter.is_ascii_alphanumeric() || letter == '_' || letter == ':' || letter == '-';
        match (inside, start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                let name = &expression[from..at];
                if name.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_') {
                    names.push(from..at);
                }
                start = None;
            }
            _ => {}
        }
    }
    names
}

/// What is wrong with how counters and gauges are used.
///
/// # Errors
/// If a counter is shown as it is, or the growth of a gauge.
pub fn kinds(asked: &Asked, registry: &Registry) -> Result<()> {
    for selector in &asked.selectors {
        let (kind, _) = registry.series(&selector.name)?;
        let function = selector.function.as_deref();
        let grows = matches!(function, Some("rate" | "increase"));
        match kind {
            Kind::Gauge => ensure!(
                !grows,
                "{} is a gauge, and its rate has no meaning",
                selector.name
            ),
            _ => ensure!(
                grows,
                "{} is a counter, and only its growth has a meaning",
                selector.name
            ),
        }
    }
    Ok(())
}

/// Whether a label comes from Prometheus' own configuration.
#[must_use]
pub fn of_target(label: &str) -> bool {
    TARGET.contains(&label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(expression: &str) -> Result<Asked> {
        check(expression, &Registry::committed().unwrap())
    }

    #[test]
    fn names_that_exist_pass_and_give_the_labels_of_the_result() {
        let labels = |expression: &str| {
            let labels = asked(expression).unwrap().labels;
            labels.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            labels("sum by (cause) (rate(softdirty_missed_writes_total[$__rate_interval])) > 0"),
            "cause"
        );
        assert_eq!(
            labels(
                "topk(3, histogram_quantile(0.9, sum by (instance, le) (rate(softdirty_clear_hold_seconds_bucket[5m]))))"
            ),
            "instance"
        );
        assert_eq!(labels("sum(up) / count(up)"), "");
        assert_eq!(
            labels("sdtrace_map_entries / sdtrace_map_capacity"),
            "cluster instance job map"
        );
        assert_eq!(
            labels("100 * sum without (job, cluster) (sdtrace_ready)"),
            "instance"
        );
        assert_eq!(labels(r#"absent(up{job="a"})"#), "job");
    }

    #[test]
    fn names_that_do_not_exist_are_refused() {
        for expression in [
            "softdirty_epoch_total",
            r#"softdirty_epochs_total{verdikt="broken"}"#,
            r#"softdirty_epochs_total{verdict="brokn"}"#,
            r#"softdirty_epochs_total{verdict=~"broken|suspekt"}"#,
            "sum by (verdikt) (softdirty_epochs_total)",
            "sum by (cause) (softdirty_epochs_total)",
            "sum by (cause) (sum by (evidence) (softdirty_missed_writes_total))",
            "sum(sdtrace_ready) / on (instance) sum(sdtrace_ready)",
            "histogram_quantile(0.9, softdirty_clear_hold_seconds_sum)",
            "softdirty_clear_hold_seconds",
            "rat(up[5m])",
            "sum(up",
            r#"{job="a"}"#,
        ] {
            assert!(asked(expression).is_err(), "{expression}");
        }
    }

    #[test]
    fn counters_are_asked_for_their_growth_and_gauges_are_not() {
        let registry = Registry::committed().unwrap();
        let check = |expression: &str| kinds(&asked(expression).unwrap(), &registry);
        assert!(check("rate(softdirty_epochs_total[5m])").is_ok());
        assert!(check("changes(sdtrace_start_time_seconds[5m])").is_ok());
        assert!(check("sum(softdirty_epochs_total)").is_err());
        assert!(check("rate(sdtrace_ready[5m])").is_err());
    }
}
