//! Debian kernels to boot: found in the suites' indexes at run time, downloaded once, unpacked, never installed.

pub mod fetch;
pub mod index;
pub mod modules;

use std::fmt;
use std::str::FromStr;

/// A kernel series: `6.12`. Ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Series {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
}

impl fmt::Display for Series {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("`{text}` is not a kernel series; write it like 6.12, or newest");
        let (major, minor) = text.split_once('.').ok_or_else(refuse)?;
        Ok(Self {
            major: major.parse().map_err(|_| refuse())?,
            minor: minor.parse().map_err(|_| refuse())?,
        })
    }
}

/// Which kernel a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The newest that the indexes offer.
    Newest,
    /// A given series.
    Series(Series),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "newest" {
            Ok(Self::Newest)
        } else {
            text.parse().map(Self::Series)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_ordered_by_number_not_by_text() {
        let series = |text: &str| text.parse::<Series>().unwrap();
        assert!(series("6.9") < series("6.12"));
        assert!(series("6.19") < series("7.0"));
        assert_eq!(series("5.10").to_string(), "5.10");
    }

    #[test]
    fn what_is_no_series_is_refused() {
        for text in ["6", "6.", "six", "6.1.2", "", "latest"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
        assert_eq!("newest".parse(), Ok(Wanted::Newest));
    }
}
