//! Writes to files: write(2) and its kin change the memory of every address space that maps the file shared.
//!
//! A clear tells of itself when it returns, and the records of what was written while it walked come before its own: so
//! the newest are kept, and a new epoch is given those since the clear began.

use std::collections::VecDeque;

use tracer_common::audit::RangeRecord;

use super::Detectors;
use super::cause::Cause;
use super::epoch::Epoch;
use super::findings::Sight;
use super::hazards::New;
use super::holes::{self, FileRange};
use super::verdict::Unknown;

/// Writes that are kept.
const RECENT: usize = 4096;

/// The newest writes, in the order of their records.
#[derive(Debug, Default)]
pub(super) struct Recent {
    writes: VecDeque<(u64, FileRange)>,
    /// When the newest of those was told that are not kept any more.
    forgotten_ns: u64,
}

impl Recent {
    fn note(&mut self, at_ns: u64, write: FileRange) {
        if self.writes.len() == RECENT
            && let Some((at_ns, _)) = self.writes.pop_front()
        {
            self.forgotten_ns = self.forgotten_ns.max(at_ns);
        }
        self.writes.push_back((at_ns, write));
    }

    /// Gives an epoch what was written since its clear began. Returns the hazards that came up.
    pub(super) fn since(&self, epoch: &mut Epoch, clear_ns: u64) -> New {
        if self.forgotten_ns >= clear_ns {
            epoch.note_unknown(Unknown::FindingsFull, 1);
        }
        let since = self.writes.iter().filter(|(at_ns, _)| *at_ns >= clear_ns);
        since
            .flat_map(|(at_ns, write)| written(epoch, write, *at_ns))
            .collect()
    }
}

/// Takes in a write: a hazard in every VMA that mapped this part of the file shared at the clear. In a private mapping
/// it is one of a page that nobody has written there, which no tracker saves.
fn written(epoch: &mut Epoch, write: &FileRange, at_ns: u64) -> New {
    let Some(at_clear) = &epoch.at_clear else {
        if epoch.opened_by_clear().is_some() {
            epoch.note_unknown(Unknown::VmasUnknown, 1);
        }
        return New::new();
    };
    let shared = at_clear.of_file(write).filter(|vma| vma.is_shared());
    let parts: Vec<_> = shared
        .map(|vma| (vma.facts(), holes::place_in(&vma.facts(), write)))
        .filter(|(_, range)| !range.is_empty())
        .collect();
    let mut new = New::new();
    for (vma, range) in parts {
        let sight = Sight {
            vma: Some(&vma),
            reader: None,
            at_ns,
        };
        if epoch.findings.hazard(Cause::FileWrite, range, sight) {
            new.push(Cause::FileWrite);
        }
    }
    new
}

impl Detectors {
    /// A write to a file concerns every address space that maps it shared.
    pub(super) fn file_written(&mut self, record: &RangeRecord) {
        let write = FileRange::in_pages(record);
        let at_ns = record.header.time_ns;
        for (&birth, space) in &mut self.spaces {
            let Some((&number, epoch)) = space
                .epochs
                .iter_mut()
                .next_back()
                .filter(|(_, epoch)| epoch.is_open())
            else {
                continue;
            };
            let before = epoch.findings.hazards_of(Cause::FileWrite);
            let new = written(epoch, &write, at_ns);
            if epoch.findings.hazards_of(Cause::FileWrite) != before {
                self.touched.insert((birth, number));
            }
            self.totals.hazards(&new);
        }
        self.file_writes.note(at_ns, write);
    }
}
