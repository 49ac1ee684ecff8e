//! What a scenario found.

use serde::{Deserialize, Serialize};

/// The mechanism class of a cause; `docs/causes.md` describes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// Nothing is expected to be missed: shows that the oracle says `tracked` when it should.
    #[serde(rename = "control")]
    Control,
    /// A page-table entry becomes writable without the soft-dirty bit.
    A,
    /// The bit is destroyed after the write.
    B,
    /// The content changes with no write through this page-table entry.
    C,
    /// The tracker's own misuse.
    D,
}

impl Class {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
            Self::D => "D",
        }
    }
}

/// The verdict on a scenario.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Verdict {
    /// Every changed page was reported.
    Tracked,
    /// At least one changed page was not reported.
    Missed,
    /// The target threw the content away, and the tracker sees the pages as not present or as zero pages.
    Dropped,
    /// This kernel, this machine or these rights do not allow the scenario.
    NotSupported {
        /// What is lacking.
        why: String,
    },
    /// The scenario ran, but what it saw proves nothing.
    Inconclusive {
        /// What was not as it must be.
        why: String,
    },
    /// The battery itself failed.
    Failed {
        /// The error.
        why: String,
    },
}

impl Verdict {
    /// The name without the reason.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tracked => "tracked",
            Self::Missed => "missed",
            Self::Dropped => "dropped",
            Self::NotSupported { .. } => "not supported",
            Self::Inconclusive { .. } => "inconclusive",
            Self::Failed { .. } => "failed",
        }
    }

    /// The reason, of those that have one.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::NotSupported { why } | Self::Inconclusive { why } | Self::Failed { why } => Some(why),
            Self::Tracked | Self::Missed | Self::Dropped => None,
        }
    }
}

/// Page counts of a scenario, summed over its rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Pages whose content differs from what it was before the clear.
    pub changed: u64,
    /// Changed pages whose soft-dirty bit read 0 before and after the content was looked at.
    pub missed: u64,
    /// Changed pages that the target itself discarded.
    pub dropped: u64,
    /// Changed pages whose bit read 0 before and 1 after the content was looked at.
    pub unstable: u64,
    /// Unchanged pages whose bit read 1: the other cost, not a miss.
    pub over_reported: u64,
    /// Rounds that count.
    pub rounds: u64,
}

impl Tally {
    /// Adds the counts of another round.
    pub fn add(&mut self, other: Self) {
        self.changed += other.changed;
        self.missed += other.missed;
        self.dropped += other.dropped;
        self.unstable += other.unstable;
        self.over_reported += other.over_reported;
        self.rounds += other.rounds;
    }

    /// The verdict that these counts are.
    ///
    /// Pages that the reading itself changed ([`Tally::unstable`]) prove nothing, unless others were plainly missed.
    pub fn verdict(&self) -> Verdict {
        if self.missed > 0 {
            Verdict::Missed
        } else if self.unstable > 0 {
            Verdict::Inconclusive {
                why: format!("looking at the content set the bit of {} pages", self.unstable),
            }
        } else if self.dropped > 0 {
            Verdict::Dropped
        } else if self.changed > 0 {
            Verdict::Tracked
        } else {
            Verdict::Inconclusive {
                why: "no page changed".into(),
            }
        }
    }
}

/// Why a scenario ended without counts.
#[derive(Debug)]
pub enum Stop {
    /// See [`Verdict::NotSupported`].
    NotSupported(String),
    /// See [`Verdict::Inconclusive`].
    Inconclusive(String),
    /// See [`Verdict::Failed`].
    Failed(String),
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Stop> for Verdict {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::NotSupported(why) => Self::NotSupported { why },
            Stop::Inconclusive(why) => Self::Inconclusive { why },
            Stop::Failed(why) => Self::Failed { why },
        }
    }
}

/// Reads a refusal of the kernel as "not supported here", naming what was asked for.
pub trait Needs<T> {
    /// Errors that say that the kernel, the machine or the rights do not allow `what` become
    /// [`Stop::NotSupported`]; any other is a failure.
    ///
    /// # Errors
    /// The stop that the error means.
    fn needs(self, what: &str) -> Result<T, Stop>;

    /// Any error is a failure, and the message says of what.
    ///
    /// # Errors
    /// [`Stop::Failed`] with `what` and the error.
    fn works(self, what: &str) -> Result<T, Stop>;
}

impl<T> Needs<T> for std::io::Result<T> {
    fn needs(self, what: &str) -> Result<T, Stop> {
        self.map_err(|error| {
            let text = format!("{what}: {error}");
            match error.raw_os_error() {
                Some(
                    libc::EINVAL
                    | libc::ENOSYS
                    | libc::EPERM
                    | libc::EACCES
                    | libc::ENOENT
                    | libc::ENODEV
                    | libc::EOPNOTSUPP
                    | libc::ENOMEM
                    | libc::ENXIO,
                ) => Stop::NotSupported(text),
                _ => Stop::Failed(text),
            }
        })
    }

    fn works(self, what: &str) -> Result<T, Stop> {
        self.map_err(|error| Stop::Failed(format!("{what}: {error}")))
    }
}

/// One line of the battery's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The counts it rests on.
    pub pages: Tally,
}

impl From<Result<Tally, Stop>> for Outcome {
    fn from(result: Result<Tally, Stop>) -> Self {
        match result {
            Ok(pages) => Self {
                verdict: pages.verdict(),
                pages,
            },
            Err(stop) => Self {
                verdict: stop.into(),
                pages: Tally::default(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_missed_page_makes_it_missed() {
        let tally = Tally {
            changed: 64,
            missed: 1,
            unstable: 3,
            dropped: 2,
            ..Tally::default()
        };
        assert_eq!(tally.verdict(), Verdict::Missed);
    }

    #[test]
    fn no_change_proves_nothing() {
        assert_eq!(Tally::default().verdict().name(), "inconclusive");
        assert_eq!(
            Tally {
                over_reported: 9,
                ..Tally::default()
            }
            .verdict()
            .name(),
            "inconclusive"
        );
    }

    #[test]
    fn a_bit_set_by_the_reading_is_not_tracked() {
        let tally = Tally {
            changed: 64,
            unstable: 1,
            ..Tally::default()
        };
        assert_eq!(tally.verdict().name(), "inconclusive");
    }

    #[test]
    fn an_outcome_survives_the_pipe() {
        let outcome = Outcome {
            verdict: Verdict::NotSupported {
                why: "no swap".into(),
            },
            pages: Tally {
                changed: 1,
                ..Tally::default()
            },
        };
        let text = serde_json::to_string(&outcome).expect("serialises");
        assert_eq!(serde_json::from_str::<Outcome>(&text).expect("parses"), outcome);
    }

    #[test]
    fn only_refusals_mean_not_supported() {
        let refused: std::io::Result<()> = Err(std::io::Error::from_raw_os_error(libc::EINVAL));
        assert!(matches!(refused.needs("x"), Err(Stop::NotSupported(_))));
        let broken: std::io::Result<()> = Err(std::io::Error::from_raw_os_error(libc::EFAULT));
        assert!(matches!(broken.needs("x"), Err(Stop::Failed(_))));
    }
}
