//! The results expected of each kernel series: `expected.txt`, a table that a person can read.
//!
//! The first line that is no comment names the series; every other is a scenario and one cell per series. A cell is a
//! result, or several separated by `|` where the outcome is a race: `tracked`, `missed`, `missed=N` (exactly N pages),
//! `missed>=N` (a race: at least N pages), `dropped`, `none` (not supported there), `-` (nothing is known: any result will do).

use std::fmt;
use std::path::Path;

use super::outcome::{Outcome, Verdict};
use super::runner::ScenarioResult;

const BUILT_IN: &str = include_str!("expected.txt");

/// How many pages are missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    Exactly(u64),
    AtLeast(u64),
}

impl Pages {
    fn match_count(self, missed: u64) -> bool {
        match self {
            Self::Exactly(count) => missed == count,
            Self::AtLeast(count) => missed >= count,
        }
    }
}

/// One allowed result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    Tracked,
    Missed(Pages),
    Dropped,
    NotSupported,
}

impl Allowed {
    fn parse(word: &str) -> Result<Self, String> {
        let count = |text: &str| {
            text.parse()
                .map_err(|_| format!("'{text}' is no number of pages"))
        };
        Ok(match word {
            "tracked" => Self::Tracked,
            "missed" => Self::Missed(Pages::AtLeast(1)),
            "dropped" => Self::Dropped,
            "none" => Self::NotSupported,
            _ => match (word.strip_prefix("missed="), word.strip_prefix("missed>=")) {
                (Some(exactly), _) => Self::Missed(Pages::Exactly(count(exactly)?)),
                (_, Some(at_least)) => Self::Missed(Pages::AtLeast(count(at_least)?)),
                (None, None) => return Err(format!("'{word}' is no result")),
            },
        })
    }

    fn matches(self, outcome: &Outcome) -> bool {
        match (self, &outcome.verdict) {
            (Self::Tracked, Verdict::Tracked)
            | (Self::Dropped, Verdict::Dropped)
            | (Self::NotSupported, Verdict::NotSupported { .. }) => true,
            (Self::Missed(pages), Verdict::Missed) => pages.match_count(outcome.pages.missed),
            _ => false,
        }
    }
}

/// A cell of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cell {
    text: String,
    /// `None`: anything.
    allowed: Option<Vec<Allowed>>,
}

impl Cell {
    fn parse(text: &str) -> Result<Self, String> {
        let allowed = if text == "-" {
            None
        } else {
            Some(text.split('|').map(Allowed::parse).collect::<Result<_, _>>()?)
        };
        Ok(Self {
            text: text.to_owned(),
            allowed,
        })
    }

    fn matches(&self, outcome: &Outcome) -> bool {
        self.allowed
            .as_ref()
            .is_none_or(|allowed| allowed.iter().any(|one| one.matches(outcome)))
    }
}

/// The column of one series.
#[derive(Debug)]
pub struct Expected {
    series: String,
    cells: Vec<(String, Cell)>,
}

/// A result that is not the expected one.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    scenario: String,
    expected: Option<String>,
    found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.expected {
            Some(expected) => write!(f, "{}: expected {expected}, found {}", self.scenario, self.found),
            None => write!(
                f,
                "{}: found {}, and no result is expected of it",
                self.scenario, self.found
            ),
        }
    }
}

impl Expected {
    /// The column of the built-in table for a kernel release such as `6.1.0-50-cloud-amd64`.
    pub fn built_in(release: &str) -> Result<Self, String> {
        Self::parse(BUILT_IN, release)
            .map_err(|error| format!("the built-in table of expected results: {error}"))
    }

    /// The same from a file.
    pub fn read(file: &Path, release: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Self::parse(&text, release).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn parse(text: &str, release: &str) -> Result<Self, String> {
        let mut lines = text
            .lines()
            .enumerate()
            .map(|(number, line)| (number + 1, line.split_whitespace().collect::<Vec<_>>()))
            .filter(|(_, words)| words.first().is_some_and(|word| !word.starts_with('#')));
        let (_, header) = lines.next().ok_or("it is empty")?;
        let column = header
            .iter()
            .skip(1)
            .position(|series| is_of_series(release, series))
            .ok_or_else(|| {
                format!(
                    "it has no column for kernel {release}; it knows {}",
                    header[1..].join(", ")
                )
            })?;
        let mut cells = Vec::new();
        for (number, words) in lines {
            if words.len() != header.len() {
                return Err(format!(
                    "line {number}: {} cells where the header has {}",
                    words.len() - 1,
                    header.len() - 1
                ));
            }
            for cell in &words[1..] {
                Cell::parse(cell).map_err(|error| format!("line {number}: {error}"))?;
            }
            let cell = Cell::parse(words[column + 1]).map_err(|error| format!("line {number}: {error}"))?;
            cells.push((words[0].to_owned(), cell));
        }
        Ok(Self {
            series: header[column + 1].to_owned(),
            cells,
        })
    }

    /// The series whose column it is.
    pub fn series(&self) -> &str {
        &self.series
    }

    /// The results that differ from the expected ones.
    pub fn differences(&self, results: &[ScenarioResult]) -> Vec<Difference> {
        results
            .iter()
            .filter_map(|result| self.difference(result.scenario.name, &result.outcome))
            .collect()
    }

    fn difference(&self, scenario: &str, outcome: &Outcome) -> Option<Difference> {
        let cell = self
            .cells
            .iter()
            .find(|(name, _)| name == scenario)
            .map(|(_, cell)| cell);
        if cell.is_some_and(|cell| cell.matches(outcome)) {
            return None;
        }
        let why = outcome
            .verdict
            .why()
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        let counts = format!(
            "{} of {} changed pages missed",
            outcome.pages.missed, outcome.pages.changed
        );
        Some(Difference {
            scenario: scenario.to_owned(),
            expected: cell.map(|cell| cell.text.clone()),
            found: format!("{}{why} ({counts})", outcome.verdict.name()),
        })
    }
}

/// `6.1.0-50-cloud-amd64` is of series 6.1 and not of 6.12.
fn is_of_series(release: &str, series: &str) -> bool {
    release
        .strip_prefix(series)
        .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::outcome::Tally;
    use super::super::scenarios;
    use super::*;

    const TABLE: &str = "# comment\nscenario 6.1 6.12\na tracked missed=2|none\nb - dropped\n";

    fn outcome(verdict: Verdict, missed: u64) -> Outcome {
        Outcome {
            verdict,
            pages: Tally {
                changed: 9,
                missed,
                ..Tally::default()
            },
        }
    }

    #[test]
    fn a_release_finds_its_own_series() {
        assert_eq!(
            Expected::parse(TABLE, "6.1.0-50").expect("is known").series(),
            "6.1"
        );
        assert_eq!(
            Expected::parse(TABLE, "6.12.95+deb12")
                .expect("is known")
                .series(),
            "6.12"
        );
        assert!(
            Expected::parse(TABLE, "6.18.1")
                .expect_err("is unknown")
                .contains("6.1, 6.12")
        );
    }

    #[test]
    fn a_difference_names_both() {
        let expected = Expected::parse(TABLE, "6.12.1").expect("parses");
        assert_eq!(expected.difference("a", &outcome(Verdict::Missed, 2)), None);
        assert_eq!(
            expected.difference("a", &outcome(Verdict::NotSupported { why: "x".into() }, 0)),
            None
        );
        let text = expected
            .difference("a", &outcome(Verdict::Missed, 3))
            .expect("differs")
            .to_string();
        assert_eq!(
            text,
            "a: expected missed=2|none, found missed (3 of 9 changed pages missed)"
        );
    }

    #[test]
    fn failures_and_inconclusive_results_are_never_expected() {
        let expected = Expected::parse(TABLE, "6.1.1").expect("parses");
        assert!(
            expected
                .difference("a", &outcome(Verdict::Failed { why: "x".into() }, 0))
                .is_some()
        );
        assert!(
            expected
                .difference("a", &outcome(Verdict::Inconclusive { why: "x".into() }, 0))
                .is_some()
        );
        assert_eq!(
            expected.difference("b", &outcome(Verdict::Missed, 1)),
            None,
            "nothing is known of b"
        );
        assert!(
            expected.difference("c", &outcome(Verdict::Tracked, 0)).is_some(),
            "c is not in the table"
        );
    }

    #[test]
    fn counts_are_exact_or_bounds() {
        let table = "scenario 6.1\na missed>=3|tracked\nb missed\n";
        let expected = Expected::parse(table, "6.1.1").expect("parses");
        assert_eq!(expected.difference("a", &outcome(Verdict::Missed, 3)), None);
        assert!(expected.difference("a", &outcome(Verdict::Missed, 2)).is_some());
        assert_eq!(expected.difference("b", &outcome(Verdict::Missed, 1)), None);
        assert!(Expected::parse("scenario 6.1\na missed=x\n", "6.1.1").is_err());
    }

    #[test]
    fn a_torn_table_is_refused() {
        assert!(Expected::parse("scenario 6.1\na\n", "6.1.1").is_err());
        assert!(Expected::parse("scenario 6.1\na maybe\n", "6.1.1").is_err());
        assert!(Expected::parse("# nothing\n", "6.1.1").is_err());
    }

    #[test]
    fn the_built_in_table_names_exactly_the_scenarios() {
        let expected = Expected::built_in("6.1.0-50-cloud-amd64").expect("parses");
        let named: BTreeSet<_> = expected.cells.iter().map(|(name, _)| name.as_str()).collect();
        let known: BTreeSet<_> = scenarios::all().map(|scenario| scenario.name).collect();
        assert_eq!(named, known);
        assert_eq!(named.len(), expected.cells.len(), "no scenario stands twice");
    }
}
