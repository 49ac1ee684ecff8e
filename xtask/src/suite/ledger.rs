//! The ledger as `/debug/ledger` prints it, read by types of our own: a change of the format that a user of it
//! would notice fails here too.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// The whole ledger.
#[derive(Clone, Debug, Deserialize)]
pub struct Ledger {
    /// Version of the format.
    pub format: u32,
    /// Whether it tells everything.
    pub complete: bool,
    /// Why not.
    pub incomplete: Vec<Reason>,
    /// Sum over everything.
    pub total: Sum,
    /// Handled faults without a row.
    pub unlinked_faults: u64,
    /// Not yet in an epoch.
    pub pending: Sum,
    /// Given up.
    pub folded: Folded,
    /// Address spaces.
    pub address_spaces: Vec<Space>,
}

/// Why a ledger is incomplete.
#[derive(Clone, Debug, Deserialize)]
pub struct Reason {
    /// Stage.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// A sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Sum {
    /// Handled faults on PTEs.
    pub faults: u64,
    /// Handled faults on PMDs.
    pub huge_faults: u64,
    /// By kind and state.
    pub by_kind: BTreeMap<String, BTreeMap<String, u64>>,
    /// Other outcomes.
    pub outcomes: BTreeMap<String, u64>,
    /// Mprotect calls.
    pub mprotects: u64,
}

impl Sum {
    /// Adds another sum, leaving out what is 0.
    pub fn add(&mut self, other: &Self) {
        self.faults += other.faults;
        self.huge_faults += other.huge_faults;
        self.mprotects += other.mprotects;
        for (kind, states) in &other.by_kind {
            for (state, count) in states.iter().filter(|(_, count)| **count > 0) {
                *self
                    .by_kind
                    .entry(kind.clone())
                    .or_default()
                    .entry(state.clone())
                    .or_default() += count;
            }
        }
        for (outcome, count) in other.outcomes.iter().filter(|(_, count)| **count > 0) {
            *self.outcomes.entry(outcome.clone()).or_default() += count;
        }
    }

    /// Without the entries that are 0.
    #[must_use]
    pub fn without_zeros(&self) -> Self {
        let mut sum = Self::default();
        sum.add(self);
        sum
    }
}

/// What was given up.
#[derive(Clone, Debug, Deserialize)]
pub struct Folded {
    /// Its counts.
    pub sum: Sum,
}

/// An address space.
#[derive(Clone, Debug, Deserialize)]
pub struct Space {
    /// Id.
    pub id: u64,
    /// `clear`, `adopted`, `fork`, `unknown`.
    pub origin: String,
    /// Id of the parent.
    pub parent: Option<u64>,
    /// The parent's epoch.
    pub parent_epoch: Option<u32>,
    /// Whose.
    pub process: Option<Process>,
    /// `live`, `ending`, `ended`.
    pub state: String,
    /// Sum.
    pub total: Sum,
    /// Not listed.
    pub folded_epochs: u64,
    /// Without a record.
    pub unseen_epochs: u64,
    /// Epochs.
    pub epochs: Vec<Epoch>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: Option<u32>,
    /// Name.
    pub comm: String,
}

/// An epoch.
#[derive(Clone, Debug, Deserialize)]
pub struct Epoch {
    /// Number.
    pub number: u32,
    /// What opened it.
    pub opened_by: String,
    /// Its clear.
    pub clear: Option<Clear>,
    /// What ended it.
    pub ended_by: Option<String>,
    /// Not divided for certain.
    pub uncertain: bool,
    /// Whether it is known what its clear met: sdtrace looked before the next clear came.
    pub vmas_complete: bool,
    /// Sum.
    pub total: Sum,
    /// VMA states not listed.
    pub folded_vmas: u64,
    /// VMA states.
    pub vmas: Vec<Vma>,
}

/// A clear.
#[derive(Clone, Debug, Deserialize)]
pub struct Clear {
    /// Who.
    pub tracker: Process,
    /// Result.
    pub result: i64,
    /// Seconds to the first VMA.
    pub wait_seconds: Option<f64>,
    /// Seconds from there.
    pub hold_seconds: Option<f64>,
    /// Bytes armed.
    pub armed_bytes: u64,
    /// VMAs walked.
    pub vmas: u32,
}

/// A VMA state.
#[derive(Clone, Debug, Deserialize)]
pub struct Vma {
    /// First byte, hexadecimal.
    pub start: Address,
    /// First byte after it, hexadecimal.
    pub end: Address,
    /// Names of the flags.
    pub flags: Vec<String>,
    /// Born writable.
    pub page_prot_writable: bool,
    /// Tracked.
    pub armed: bool,
    /// Met by the clear.
    pub armed_at_clear: bool,
    /// Kind.
    pub kind: String,
    /// Inode number.
    pub inode: Option<u64>,
    /// Handled faults on PTEs.
    pub faults: u64,
    /// Handled faults on PMDs.
    pub huge_faults: u64,
    /// Other outcomes.
    pub outcomes: BTreeMap<String, u64>,
    /// Mprotect calls.
    pub mprotects: u64,
    /// What they changed.
    pub mprotect_changes: Vec<String>,
}

/// An address, printed as a hexadecimal string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Address(pub u64);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text
            .strip_prefix("0x")
            .ok_or_else(|| format!("{text:?} has no 0x"))?;
        let number = u64::from_str_radix(digits, 16).map_err(|error| format!("{text:?}: {error}"))?;
        Ok(Self(number))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

impl Ledger {
    /// The newest address space of a process.
    #[must_use]
    pub fn space_of(&self, pid: u32) -> Option<&Space> {
        self.spaces_of(pid).last()
    }

    /// All address spaces of a process, in the order in which they were met.
    pub fn spaces_of(&self, pid: u32) -> impl Iterator<Item = &Space> {
        self.address_spaces.iter().filter(move |space| {
            space
                .process
                .as_ref()
                .is_some_and(|process| process.pid == Some(pid))
        })
    }

    /// The sum over what is listed, folded and pending, added up anew.
    #[must_use]
    pub fn added_up(&self) -> Sum {
        let mut sum = self.pending.without_zeros();
        sum.add(&self.folded.sum);
        for space in &self.address_spaces {
            sum.add(&space.total);
        }
        sum
    }
}

impl Epoch {
    /// The sum over its rows, added up anew.
    #[must_use]
    pub fn added_up(&self) -> Sum {
        let mut sum = Sum::default();
        for vma in &self.vmas {
            let state = if vma.page_prot_writable {
                "armed_writable_page_prot"
            } else {
                "armed"
            };
            let cell = |kind: &str, count| {
                BTreeMap::from([(kind.to_owned(), BTreeMap::from([(state.to_owned(), count)]))])
            };
            let mut by_kind = cell(&vma.kind, vma.faults);
            by_kind.extend(cell("huge", vma.huge_faults));
            sum.add(&Sum {
                faults: vma.faults,
                huge_faults: vma.huge_faults,
                by_kind,
                outcomes: vma.outcomes.clone(),
                mprotects: vma.mprotects,
            });
        }
        sum
    }
}
