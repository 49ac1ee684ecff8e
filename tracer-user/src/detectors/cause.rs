//! The closed lists: mechanisms that make soft-dirty miss a write, how we know, and what the target itself throws away.

use serde::{Deserialize, Serialize};
use tracer_common::records::Blind;

/// Class of a cause, as docs/causes.md divides them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Class {
    /// A page-table entry is writable without the soft-dirty bit.
    A,
    /// The bit is destroyed after the write.
    B,
    /// The content changes with no write through this page-table entry.
    C,
    /// Misuse by the tracker.
    D,
    /// The mechanism is not known.
    #[serde(rename = "unknown")]
    Unknown,
}

/// What makes soft-dirty miss a write: the headings of docs/causes.md, and `unknown_cause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(
    missing_docs,
    reason = "docs/causes.md has a section about each, named as the label is"
)]
pub enum Cause {
    SharedReadFault,
    MprotectUpgrade,
    VmaMerge,
    MigrationRace,
    MigrationRaceThp,
    Pfnmap,
    KsmMerge,
    MremapTableMove,
    SharedZap,
    SharedThpSplit,
    SharedCollapse,
    ThpZeroSubpages,
    Uprobe,
    Hugetlb,
    PinnedBuffer,
    OtherMapper,
    FileWrite,
    AioRing,
    MremapGrow,
    Discard,
    UserfaultfdZeropage,
    UserfaultfdMove,
    ForeignClear,
    ReadClearGap,
    NoSupport,
    Unknown,
}

impl Cause {
    /// Every cause, in the order of the discriminants.
    pub const ALL: [Self; 26] = [
        Self::SharedReadFault,
        Self::MprotectUpgrade,
        Self::VmaMerge,
        Self::MigrationRace,
        Self::MigrationRaceThp,
        Self::Pfnmap,
        Self::KsmMerge,
        Self::MremapTableMove,
        Self::SharedZap,
        Self::SharedThpSplit,
        Self::SharedCollapse,
        Self::ThpZeroSubpages,
        Self::Uprobe,
        Self::Hugetlb,
        Self::PinnedBuffer,
        Self::OtherMapper,
        Self::FileWrite,
        Self::AioRing,
        Self::MremapGrow,
        Self::Discard,
        Self::UserfaultfdZeropage,
        Self::UserfaultfdMove,
        Self::ForeignClear,
        Self::ReadClearGap,
        Self::NoSupport,
        Self::Unknown,
    ];

    /// The heading in docs/causes.md and the label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SharedReadFault => "shared-read-fault",
            Self::MprotectUpgrade => "mprotect-upgrade",
            Self::VmaMerge => "vma-merge",
            Self::MigrationRace => "migration-race",
            Self::MigrationRaceThp => "migration-race-thp",
            Self::Pfnmap => "pfnmap",
            Self::KsmMerge => "ksm-merge",
            Self::MremapTableMove => "mremap-table-move",
            Self::SharedZap => "shared-zap",
            Self::SharedThpSplit => "shared-thp-split",
            Self::SharedCollapse => "shared-collapse",
            Self::ThpZeroSubpages => "thp-zero-subpages",
            Self::Uprobe => "uprobe",
            Self::Hugetlb => "hugetlb",
            Self::PinnedBuffer => "pinned-buffer",
            Self::OtherMapper => "other-mapper",
            Self::FileWrite => "file-write",
            Self::AioRing => "aio-ring",
            Self::MremapGrow => "mremap-grow",
            Self::Discard => "discard",
            Self::UserfaultfdZeropage => "userfaultfd-zeropage",
            Self::UserfaultfdMove => "userfaultfd-move",
            Self::ForeignClear => "foreign-clear",
            Self::ReadClearGap => "read-clear-gap",
            Self::NoSupport => "no-support",
            Self::Unknown => "unknown_cause",
        }
    }

    /// The class that docs/causes.md puts it in.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::SharedReadFault
            | Self::MprotectUpgrade
            | Self::VmaMerge
            | Self::MigrationRace
            | Self::MigrationRaceThp
            | Self::Pfnmap => Class::A,
            Self::KsmMerge
            | Self::MremapTableMove
            | Self::SharedZap
            | Self::SharedThpSplit
            | Self::SharedCollapse
            | Self::ThpZeroSubpages
            | Self::Uprobe => Class::B,
            Self::Hugetlb
            | Self::PinnedBuffer
            | Self::OtherMapper
            | Self::FileWrite
            | Self::AioRing
            | Self::MremapGrow
            | Self::Discard
            | Self::UserfaultfdZeropage
            | Self::UserfaultfdMove => Class::C,
            Self::ForeignClear | Self::ReadClearGap | Self::NoSupport => Class::D,
            Self::Unknown => Class::Unknown,
        }
    }

    /// Where the cause is explained.
    #[must_use]
    pub fn help(self) -> String {
        match self {
            Self::Unknown => "docs/incidents.md#unknown_cause".to_owned(),
            _ => format!("docs/causes.md#{}", self.label()),
        }
    }

    /// The cause that a kind of blind memory falls under.
    #[must_use]
    pub const fn of_blind(blind: Blind) -> Self {
        match blind {
            Blind::Hugetlb => Self::Hugetlb,
            Blind::Pfnmap => Self::Pfnmap,
            Blind::Pinned => Self::PinnedBuffer,
            Blind::WritableAlias => Self::OtherMapper,
            Blind::AioRing => Self::AioRing,
            Blind::PageProtection => Self::SharedReadFault,
        }
    }

    pub(super) fn from_raw(raw: u8) -> Option<Self> {
        Self::ALL.get(usize::from(raw)).copied()
    }
}

/// How we know, from weak to strong.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// What happened can hide writes, or a change of content, from the tracker; nobody saw one.
    Hazard,
    /// The page-table entry lets the next write through unseen.
    Exposed,
    /// A write was seen, and its bit was seen gone.
    Observed,
    /// The content changed and the bit says that it did not.
    Proved,
}

impl Evidence {
    /// Every kind, from weak to strong.
    pub const ALL: [Self; 4] = [Self::Hazard, Self::Exposed, Self::Observed, Self::Proved];

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hazard => "hazard",
            Self::Exposed => "exposed",
            Self::Observed => "observed",
            Self::Proved => "proved",
        }
    }

    /// Whether a write was missed, and not only could be.
    #[must_use]
    pub const fn is_miss(self) -> bool {
        matches!(self, Self::Observed | Self::Proved)
    }
}

/// How the target threw content away. Not a miss: the tracker sees the page as not present, or as the zero page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dropped {
    /// `MADV_DONTNEED`, `MADV_DONTNEED_LOCKED` of private memory.
    Dontneed,
    /// `MADV_FREE`, and reclaim took the page since.
    Free,
    /// `MADV_REMOVE`.
    Remove,
    /// `MADV_GUARD_INSTALL`.
    Guard,
    /// A hole was punched into the mapped file, or it was truncated.
    FileHole,
    /// The place that `MREMAP_DONTUNMAP` left.
    MremapDontunmap,
    /// The place that `UFFDIO_MOVE` took pages from.
    UserfaultfdMove,
    /// Private memory written in this epoch has no page any more, and no hook saw why.
    Unknown,
}

impl Dropped {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Dontneed,
        Self::Free,
        Self::Remove,
        Self::Guard,
        Self::FileHole,
        Self::MremapDontunmap,
        Self::UserfaultfdMove,
        Self::Unknown,
    ];

    /// The label value in metrics and in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Dontneed => "madv_dontneed",
            Self::Free => "madv_free",
            Self::Remove => "madv_remove",
            Self::Guard => "madv_guard",
            Self::FileHole => "file_hole",
            Self::MremapDontunmap => "mremap_dontunmap",
            Self::UserfaultfdMove => "userfaultfd_move",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_that_of_the_documentation() {
        let text = include_str!("../../../docs/causes.md");
        let mut class = Class::Unknown;
        let mut described = Vec::new();
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                class = match title.get(..7) {
                    Some("Class A") => Class::A,
                    Some("Class B") => Class::B,
                    Some("Class C") => Class::C,
                    Some("Class D") => Class::D,
                    _ => Class::Unknown,
                };
            } else if let Some(name) = line.strip_prefix("### ") {
                described.push((name.to_owned(), class));
            }
        }
        let ours: Vec<_> = Cause::ALL
            .iter()
            .filter(|&&cause| cause != Cause::Unknown)
            .map(|cause| (cause.label().to_owned(), cause.class()))
            .collect();
        let sorted = |mut list: Vec<(String, Class)>| {
            list.sort();
            list
        };
        assert_eq!(sorted(ours), sorted(described));
    }

    #[test]
    fn discriminants_are_places() {
        for (at, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, at);
            assert_eq!(Cause::from_raw(cause as u8), Some(cause));
        }
        assert!(Cause::ALL.len() < 32, "a page's state has five bits for it");
    }

    #[test]
    fn unknown_cause_is_explained() {
        assert!(include_str!("../../../docs/incidents.md").contains("## unknown_cause"));
    }
}
