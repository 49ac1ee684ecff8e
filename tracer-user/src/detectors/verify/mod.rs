//! Verify: whether the content of clean pages is what it was, whatever the mechanism that changed it (class C).
//!
//! After a clear, a random sample of clean pages is read and a digest of each is kept. Later the same pages are read
//! again: the bit, the content, the bit. Another digest, clean both times, in the same epoch: a write was missed.
//! [`entry`] is what pagemap says of a page, [`sample`] the drawing and the comparing, [`means`] what both need,
//! [`proof`] what becomes of a change, [`rate`] what the pages without one show. What reads a process is a [`Watched`];
//! see `commands::verify`.
//!
//! Why a digest cannot raise a false alarm: a write that the kernel tracks sets its bit in the fault, before the
//! processor writes. So if the bit reads clean after the content was read, nothing tracked was written since the clear.

mod entry;
mod means;
mod proof;
mod rate;
mod sample;
#[cfg(test)]
mod tests;

pub use means::{Allowance, Digests, Means, Random, Watched};
pub use rate::upper_bound;
pub use sample::{Area, Changed, Reading, Sample};

use serde::{Deserialize, Serialize};

/// Why a sampled page was not verified, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LeftOut {
    /// Its bit is set now: the kernel has tracked a write.
    Written,
    /// Another kind of page: of a private mapping of a file, the file's own page took its place.
    OtherPage,
    /// It reads as zeros, as content that was thrown away does.
    Zeroed,
    /// It could not be read.
    Unreadable,
    /// A clear came, or may have come, before the reading was over.
    Cleared,
    /// The target threw the content away in this epoch.
    Dropped,
    /// Something was lost that may have told of a clear.
    Unsure,
}

impl LeftOut {
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; 7] = [
        Self::Written,
        Self::OtherPage,
        Self::Zeroed,
        Self::Unreadable,
        Self::Cleared,
        Self::Dropped,
        Self::Unsure,
    ];

    /// The label value in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::OtherPage => "other_page",
            Self::Zeroed => "zeroed",
            Self::Unreadable => "unreadable",
            Self::Cleared => "cleared",
            Self::Dropped => "dropped",
            Self::Unsure => "unsure",
        }
    }
}

/// What verify has shown: each page counts once in an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Verified {
    /// Pages whose content was compared while their bit said clean.
    pub pages: u64,
    /// Of these, pages whose content had changed.
    pub missed: u64,
    /// Of the clean pages of this memory, at most this share has changed, with 95 % confidence; 1 if nothing was
    /// compared.
    pub miss_rate_bound: f64,
}

impl Verified {
    pub(super) fn of(pages: u64, missed: u64) -> Self {
        Self {
            pages,
            missed,
            miss_rate_bound: upper_bound(missed, pages),
        }
    }
}
