//! Reading `/metrics`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// One series: its name and its labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
}

/// What one scrape gave.
#[derive(Clone, Debug, Default)]
pub struct Scrape(BTreeMap<Series, f64>);

impl Scrape {
    /// Reads the text format of Prometheus.
    ///
    /// # Errors
    /// Names the line that is malformed or comes twice.
    pub fn parse(text: &str) -> Result<Self> {
        let mut scrape = BTreeMap::new();
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (series, value) = parse_line(line).with_context(|| format!("malformed line {line:?}"))?;
            if scrape.insert(series, value).is_some() {
                bail!("{line:?} comes twice");
            }
        }
        Ok(Self(scrape))
    }

    /// The value of the one series with this name and these labels.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let series = Series {
            name: name.to_owned(),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        self.0
            .get(&series)
            .copied()
            .with_context(|| format!("/metrics has no {name} {labels:?}"))
    }

    /// Like [`Self::get`], as a whole number.
    ///
    /// # Errors
    /// If there is none, or if it is no whole number.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> Result<u64> {
        whole(self.get(name, labels)?).with_context(|| format!("{name} {labels:?}"))
    }

    /// All series of this name that have all these labels: their labels and values.
    pub fn all<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = (&'a BTreeMap<String, String>, f64)> {
        self.0
            .iter()
            .filter(move |(series, _)| {
                series.name == name
                    && labels
                        .iter()
                        .all(|(key, value)| series.labels.get(*key).is_some_and(|found| found == value))
            })
            .map(|(series, value)| (&series.labels, *value))
    }

    /// The sum over all series of this name that have all these labels.
    ///
    /// # Errors
    /// If there is no such series, or if it is no whole number.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Result<u64> {
        let mut found = false;
        let mut sum = 0;
        for (_, value) in self.all(name, labels) {
            found = true;
            sum += whole(value).with_context(|| name.to_owned())?;
        }
        if !found {
            bail!("/metrics has no {name} {labels:?}");
        }
        Ok(sum)
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range is checked before"
)]
fn whole(value: f64) -> Result<u64> {
    // Above 2^53 a float no longer holds every whole number.
    if value.fract() != 0.0 || !(0.0..=9_007_199_254_740_992.0).contains(&value) {
        bail!("{value} is no count");
    }
    Ok(value as u64)
}

fn parse_line(line: &str) -> Option<(Series, f64)> {
    let split = line.find(['{', ' '])?;
    let name = line[..split].to_owned();
    let mut labels = BTreeMap::new();
    let mut rest = &line[split..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(key.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    Some((Series { name, labels }, rest.trim().parse().ok()?))
}

/// The text up to the closing quote, unescaped, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total x\n# TYPE a_total counter\na_total{kind=\"x\",state=\"s\"} 3\n\
                        a_total{kind=\"y\",state=\"say \\\"}\\\" \\n\"} 4\nb 0.5\n";

    #[test]
    fn series_are_found_by_name_and_labels() {
        let scrape = Scrape::parse(TEXT).unwrap();
        assert_eq!(
            scrape.count("a_total", &[("state", "s"), ("kind", "x")]).unwrap(),
            3
        );
        assert_eq!(
            scrape
                .count("a_total", &[("kind", "y"), ("state", "say \"}\" \n")])
                .unwrap(),
            4
        );
        assert_eq!(scrape.sum("a_total", &[]).unwrap(), 7);
        assert_eq!(scrape.sum("a_total", &[("kind", "x")]).unwrap(), 3);
        assert!(scrape.count("a_total", &[("kind", "x")]).is_err());
        assert!(scrape.count("b", &[]).is_err());
        assert!(scrape.sum("c", &[]).is_err());
    }

    #[test]
    fn malformed_and_repeated_lines_are_named() {
        for text in ["a{b=\"c} 1", "a", "a x", "a{b} 1", "a 1\na 2"] {
            assert!(Scrape::parse(text).is_err(), "{text}");
        }
    }
}
