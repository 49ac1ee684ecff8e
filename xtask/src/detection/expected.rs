//! The committed file `xtask/expected/detection.txt`: scenario × kernel × what sdtrace says.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::said::Said;

/// The committed file.
pub const FILE: &str = include_str!("../../expected/detection.txt");

/// The scenario of rows that hold for every scenario and for the battery itself.
const EVERYTHING: &str = "*";

/// A kernel series, as two numbers.
type Series = (u32, u32);

/// The rows of the file.
#[derive(Clone, Debug)]
pub struct Expected {
    rows: Vec<Row>,
}

/// What is expected of a scenario on some kernels.
#[derive(Clone, Debug)]
pub struct Row {
    scenario: String,
    kernels: Kernels,
    words: BTreeMap<String, Count>,
    /// Why sdtrace does not say what the rules ask for.
    pub gap: Option<String>,
}

/// Kernels, and perhaps an attach mode, that a row holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kernels {
    ranges: Vec<(Series, Series)>,
    mode: Option<String>,
}

/// How often a word is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Exactly(u64),
    AtLeast(u64),
    /// Said or not, as chance has it.
    Any,
}

impl Count {
    fn fits(self, count: u64) -> bool {
        match self {
            Self::Exactly(expected) => count == expected,
            Self::AtLeast(least) => count >= least,
            Self::Any => true,
        }
    }
}

impl Expected {
    /// The committed rows.
    ///
    /// # Errors
    /// Names the line that cannot be read.
    pub fn committed() -> Result<Self> {
        Self::read(FILE)
    }

    fn read(text: &str) -> Result<Self> {
        let rows: Result<Vec<_>> = text
            .lines()
            .enumerate()
            .map(|(number, line)| (number + 1, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(number, line)| row(line).with_context(|| format!("detection.txt, line {number}")))
            .collect();
        Ok(Self { rows: rows? })
    }

    /// The row of a scenario on a kernel in an attach mode, with what may be said of everything there (the rows of `*`).
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn row(&self, scenario: &str, series: Series, mode: &str) -> Result<Row> {
        let mut row = self.one(scenario, series, mode)?.clone();
        for (word, count) in self.everywhere(series, mode).words {
            row.words.entry(word).or_insert(count);
        }
        Ok(row)
    }

    /// What may be said of everything on a kernel in an attach mode.
    #[must_use]
    pub fn everywhere(&self, series: Series, mode: &str) -> Row {
        self.one(EVERYTHING, series, mode)
            .cloned()
            .unwrap_or_else(|_| Row {
                scenario: EVERYTHING.to_owned(),
                kernels: Kernels {
                    ranges: Vec::new(),
                    mode: None,
                },
                words: BTreeMap::new(),
                gap: None,
            })
    }

    /// A row for this mode goes before one for both.
    fn one(&self, scenario: &str, series: Series, mode: &str) -> Result<&Row> {
        let fitting = |mode: Option<&str>| -> Vec<&Row> {
            self.rows
                .iter()
                .filter(|row| row.scenario == scenario && row.kernels.mode.as_deref() == mode)
                .filter(|row| {
                    row.kernels
                        .ranges
                        .iter()
                        .any(|(from, to)| (*from..=*to).contains(&series))
                })
                .collect()
        };
        let rows = match fitting(Some(mode)) {
            rows if rows.is_empty() => fitting(None),
            rows => rows,
        };
        match rows[..] {
            [row] => Ok(row),
            [] => bail!(
                "detection.txt has no row for {scenario} on {}.{} by {mode}",
                series.0,
                series.1
            ),
            _ => bail!(
                "detection.txt has {} rows for {scenario} on {}.{} by {mode}",
                rows.len(),
                series.0,
                series.1
            ),
        }
    }

    /// Rows whose scenario is not among these.
    pub fn strangers<'a>(&'a self, scenarios: &'a [&str]) -> impl Iterator<Item = &'a str> {
        self.rows
            .iter()
            .map(|row| row.scenario.as_str())
            .filter(|scenario| *scenario != EVERYTHING && !scenarios.contains(scenario))
    }
}

impl Row {
    /// Every word that is missing, has another count, or was not expected.
    #[must_use]
    pub fn differences(&self, said: &Said) -> Vec<String> {
        let mut differences = Vec::new();
        for (word, expected) in &self.words {
            let count = said.0.get(word).copied().unwrap_or(0);
            if !expected.fits(count) {
                differences.push(format!("{word}={count}"));
            }
        }
        let more = said.0.iter().filter(|(word, _)| !self.words.contains_key(*word));
        differences.extend(more.map(|(word, count)| format!("{word}={count}")));
        differences
    }

    /// The row as the file has it.
    #[must_use]
    pub fn text(&self) -> String {
        let words: Vec<_> = self
            .words
            .iter()
            .map(|(word, count)| match count {
                Count::Exactly(count) => format!("{word}={count}"),
                Count::AtLeast(1) => word.clone(),
                Count::AtLeast(count) => format!("{word}>={count}"),
                Count::Any => format!("{word}?"),
            })
            .collect();
        if words.is_empty() {
            "quiet".to_owned()
        } else {
            words.join(" ")
        }
    }
}

fn row(line: &str) -> Result<Row> {
    let (line, gap) = match line.split_once("gap:") {
        Some((line, why)) => {
            ensure!(!why.trim().is_empty(), "a gap needs its reason");
            (line, Some(why.trim().to_owned()))
        }
        None => (line, None),
    };
    let mut fields = line.split_whitespace();
    let (Some(scenario), Some(on)) = (fields.next(), fields.next()) else {
        bail!("a row is SCENARIO KERNELS WORDS");
    };
    let fields: Vec<_> = fields.collect();
    let words = match fields[..] {
        [] => bail!("what sdtrace says is missing; nothing is written as `quiet`"),
        ["quiet"] => BTreeMap::new(),
        _ => fields.iter().map(|field| word(field)).collect::<Result<_>>()?,
    };
    Ok(Row {
        scenario: scenario.to_owned(),
        kernels: kernels(on)?,
        words,
        gap,
    })
}

fn word(text: &str) -> Result<(String, Count)> {
    let number = |digits: &str| {
        digits
            .parse()
            .with_context(|| format!("{text}: {digits} is no number"))
    };
    let (name, count) = if let Some((name, least)) = text.split_once(">=") {
        (name, Count::AtLeast(number(least)?))
    } else if let Some((name, exact)) = text.split_once('=') {
        (name, Count::Exactly(number(exact)?))
    } else if let Some(name) = text.strip_suffix('?') {
        (name, Count::Any)
    } else {
        (text, Count::AtLeast(1))
    };
    let kinds = [
        "missed", "exposed", "hazard", "blind", "dropped", "unknown", "nowhere",
    ];
    ensure!(
        name.split_once(':')
            .is_some_and(|(kind, name)| kinds.contains(&kind) && !name.is_empty()),
        "{text}: a word is KIND:NAME, KIND one of {}",
        kinds.join(", ")
    );
    Ok((name.to_owned(), count))
}

/// `all`, `5.10`, `..6.18`, `6.19..`, `6.12..6.18`, several with commas, and perhaps `/kprobe`.
fn kernels(text: &str) -> Result<Kernels> {
    const FIRST: Series = (0, 0);
    const LAST: Series = (u32::MAX, u32::MAX);
    let (text, mode) = match text.split_once('/') {
        Some((text, mode)) => (text, Some(mode.to_owned())),
        None => (text, None),
    };
    ensure!(
        mode.as_deref()
            .is_none_or(|mode| ["auto", "kprobe"].contains(&mode)),
        "{text}: a mode is auto or kprobe"
    );
    let end = |text: &str, open| if text.is_empty() { Ok(open) } else { series(text) };
    let range = |text: &str| -> Result<(Series, Series)> {
        match text.split_once("..") {
            _ if text == "all" => Ok((FIRST, LAST)),
            Some((from, to)) => Ok((end(from, FIRST)?, end(to, LAST)?)),
            None => Ok((series(text)?, series(text)?)),
        }
    };
    let ranges: Result<_> = text.split(',').map(range).collect();
    Ok(Kernels {
        ranges: ranges?,
        mode,
    })
}

/// `6.12` as numbers.
///
/// # Errors
/// If it is none.
pub fn series(text: &str) -> Result<Series> {
    text.split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .with_context(|| format!("{text:?} is no kernel series like 6.12"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# words\n\nksm   all        missed:ksm-merge=63\nmerge ..6.18     exposed:vma-merge>=64 unknown:x?\n\
                        merge 6.19..     quiet\nwrite 5.10,6.1   quiet   gap: nobody looks\nksm   5.10/kprobe hazard:y\n* 7.1.. unknown:z?\n";

    fn said(words: &[(&str, u64)]) -> Said {
        Said(
            words
                .iter()
                .map(|(word, count)| ((*word).to_owned(), *count))
                .collect(),
        )
    }

    #[test]
    fn the_row_is_that_of_the_kernel_and_the_mode() {
        let expected = Expected::read(TEXT).unwrap();
        let text = |scenario, on, mode| {
            expected
                .row(scenario, series(on).unwrap(), mode)
                .map(|row| row.text())
        };
        assert_eq!(text("ksm", "6.12", "auto").unwrap(), "missed:ksm-merge=63");
        assert_eq!(text("ksm", "5.10", "kprobe").unwrap(), "hazard:y");
        assert_eq!(text("ksm", "5.10", "auto").unwrap(), "missed:ksm-merge=63");
        assert_eq!(
            text("merge", "6.18", "auto").unwrap(),
            "exposed:vma-merge>=64 unknown:x?"
        );
        assert_eq!(text("merge", "7.0", "auto").unwrap(), "quiet");
        assert_eq!(text("merge", "7.1", "auto").unwrap(), "unknown:z?");
        assert!(text("write", "6.12", "auto").is_err());
        assert!(text("other", "6.12", "auto").is_err());
        assert_eq!(
            expected.strangers(&["ksm", "merge"]).collect::<Vec<_>>(),
            ["write"]
        );
        let row = expected.row("write", (6, 1), "auto").unwrap();
        assert_eq!(row.gap.as_deref(), Some("nobody looks"));
    }

    #[test]
    fn more_and_less_and_other_words_are_differences() {
        let expected = Expected::read(TEXT).unwrap();
        let ksm = expected.row("ksm", (6, 1), "auto").unwrap();
        assert!(ksm.differences(&said(&[("missed:ksm-merge", 63)])).is_empty());
        assert_eq!(ksm.differences(&said(&[])), ["missed:ksm-merge=0"]);
        assert_eq!(
            ksm.differences(&said(&[("missed:ksm-merge", 64), ("blind:a", 1)]))
                .len(),
            2
        );
        let merge = expected.row("merge", (6, 1), "auto").unwrap();
        assert!(merge.differences(&said(&[("exposed:vma-merge", 128)])).is_empty());
        assert!(
            merge
                .differences(&said(&[("exposed:vma-merge", 64), ("unknown:x", 2)]))
                .is_empty()
        );
        assert_eq!(
            merge.differences(&said(&[("exposed:vma-merge", 63)])),
            ["exposed:vma-merge=63"]
        );
    }

    #[test]
    fn mistakes_are_refused() {
        for text in [
            "ksm",
            "ksm all",
            "ksm 6 quiet",
            "ksm all missed",
            "ksm all guess:x=1",
            "ksm all missed:x=y",
            "ksm all/x quiet",
            "ksm all quiet gap:",
        ] {
            assert!(Expected::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_committed_file_can_be_read() {
        let expected = Expected::committed().unwrap();
        assert!(!expected.rows.is_empty());
    }
}
