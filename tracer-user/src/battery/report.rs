//! The results as a table and as JSON.

use std::fmt::Write as _;
use std::io;

use serde_json::json;

use super::outcome::Verdict;
use super::runner::{Report, ScenarioResult};
use super::scenarios::Scenario;

/// The release of the running kernel, as `uname -r` prints it.
///
/// # Errors
/// /proc is not mounted.
pub fn kernel_release() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .to_owned())
}

/// Lays rows out in columns; the last is left ragged.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `--list`.
pub fn list(scenarios: &[&Scenario]) -> String {
    let mut rows = vec![
        ["SCENARIO", "CLASS", "CAUSE", "ROUNDS", "HOST", "WHAT IT DOES"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(scenarios.iter().map(|scenario| {
        vec![
            scenario.name.to_owned(),
            scenario.class.name().to_owned(),
            scenario.cause.to_owned(),
            scenario.rounds.to_string(),
            if scenario.disruptive { "disruptive" } else { "-" }.to_owned(),
            scenario.about.to_owned(),
        ]
    }));
    columns(&rows)
}

fn describe(scenario: &Scenario) -> serde_json::Value {
    json!({
        "scenario": scenario.name,
        "class": scenario.class,
        "cause": scenario.cause,
        "rounds": scenario.rounds,
        "disruptive": scenario.disruptive,
        "about": scenario.about,
    })
}

/// `--list --json`.
pub fn list_json(scenarios: &[&Scenario]) -> String {
    let scenarios: Vec<_> = scenarios.iter().map(|scenario| describe(scenario)).collect();
    format!("{:#}\n", json!({ "scenarios": scenarios }))
}

fn result_text(result: &ScenarioResult) -> String {
    let verdict = &result.outcome.verdict;
    match verdict {
        Verdict::NotSupported { why } => format!("not supported here: {why}"),
        Verdict::Inconclusive { why } | Verdict::Failed { why } => format!("{}: {why}", verdict.name()),
        Verdict::Tracked | Verdict::Missed | Verdict::Dropped => verdict.name().to_owned(),
    }
}

/// The table of results.
pub fn table(release: &str, report: &Report, skipped: &[&Scenario]) -> String {
    let header = [
        "SCENARIO",
        "CLASS",
        "CAUSE",
        "CHANGED",
        "MISSED",
        "OVER-REPORTED",
        "RESULT",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for result in &report.results {
        let pages = &result.outcome.pages;
        rows.push(vec![
            result.scenario.name.to_owned(),
            result.scenario.class.name().to_owned(),
            result.scenario.cause.to_owned(),
            pages.changed.to_string(),
            pages.missed.to_string(),
            pages.over_reported.to_string(),
            result_text(result),
        ]);
    }
    let count = |name: &str| {
        report
            .results
            .iter()
            .filter(|result| result.outcome.verdict.name() == name)
            .count()
    };
    let mut text = columns(&rows);
    let _ = writeln!(
        text,
        "\nLinux {release}: {} tracked, {} missed, {} dropped, {} not supported, {} inconclusive, {} failed",
        count("tracked"),
        count("missed"),
        count("dropped"),
        count("not supported"),
        count("inconclusive"),
        count("failed"),
    );
    if count("missed") > 0 {
        text.push_str("Each cause is described under its name in docs/causes.md.\n");
    }
    if !skipped.is_empty() {
        let _ = writeln!(
            text,
            "{} scenarios that change the host were not run (--disruptive runs them).",
            skipped.len()
        );
    }
    if report.interrupted {
        text.push_str("Interrupted: the results are not complete.\n");
    }
    for error in &report.not_restored {
        let _ = writeln!(text, "NOT RESTORED: {error}");
    }
    text
}

/// The results as one JSON document.
pub fn json(release: &str, report: &Report, skipped: &[&Scenario]) -> String {
    let results: Vec<_> = report
        .results
        .iter()
        .map(|result| {
            json!({
                "scenario": result.scenario.name,
                "class": result.scenario.class,
                "cause": result.scenario.cause,
                "result": result.outcome.verdict.name(),
                "why": result.outcome.verdict.why(),
                "pages": result.outcome.pages,
                "seconds": result.took.as_secs_f64(),
            })
        })
        .collect();
    let skipped: Vec<_> = skipped.iter().map(|scenario| scenario.name).collect();
    let document = json!({
        "kernel": release,
        "soft_dirty": true,
        "results": results,
        "not_run": skipped,
        "interrupted": report.interrupted,
        "not_restored": report.not_restored,
    });
    format!("{document:#}\n")
}

/// The JSON document of a kernel that has no soft-dirty tracking.
pub fn unsupported_json(release: &str, why: &str) -> String {
    let document =
        json!({ "kernel": release, "soft_dirty": false, "why": why, "results": [], "not_run": [] });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "bb"], ["ccc", "d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "a    bb\nccc  d\n");
    }
}
