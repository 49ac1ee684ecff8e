//! What the detectors ask the ledger.

use tracer_common::records::TaskIdentity;

use super::epoch::kind_of;
use super::space::Phase;
use super::{Ledger, ProcessDetails};
use crate::detectors::{LedgerView, VmaAtClear};

/// Whose an address space is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The ledger's small number for it.
    pub id: u64,
    /// The process, as the first record named it.
    pub owner: Option<TaskIdentity>,
    /// What /proc told about the process.
    pub details: Option<ProcessDetails>,
}

impl Ledger {
    /// Whether any address space is tracked.
    #[must_use]
    pub fn is_anything_live(&self) -> bool {
        self.spaces.values().any(|space| space.phase == Phase::Live)
    }
}

impl LedgerView for Ledger {
    fn vmas_at_clear(&self, birth: u64, epoch: u32) -> Option<Vec<VmaAtClear>> {
        let space = self.spaces.get(self.ids.get(&birth)?)?;
        let epoch = space.epoch(epoch)?;
        if !epoch.vmas_complete || epoch.folded_vmas > 0 {
            return None;
        }
        let met = epoch.vmas.iter().filter(|(_, entry)| entry.armed_at_clear);
        Some(
            met.map(|(key, entry)| VmaAtClear {
                key: *key,
                end: entry.end_at_clear,
                inode: entry.inode,
                device: entry.device,
                offset: entry.offset,
                shared_mappings: entry.shared_mappings,
                kind: kind_of(entry.kind),
            })
            .collect(),
        )
    }

    fn is_live(&self, birth: u64) -> bool {
        self.ids
            .get(&birth)
            .and_then(|id| self.spaces.get(id))
            .is_some_and(|space| space.phase == Phase::Live)
    }

    fn lists(&self, birth: u64, epoch: u32) -> bool {
        self.ids
            .get(&birth)
            .and_then(|id| self.spaces.get(id))
            .is_some_and(|space| space.epoch(epoch).is_some())
    }

    fn live(&self) -> Vec<(u64, u32)> {
        let live = self.spaces.values().filter(|space| space.phase == Phase::Live);
        live.map(|space| (space.birth, space.newest())).collect()
    }

    fn newest_met(&self, birth: u64) -> u32 {
        self.ids
            .get(&birth)
            .and_then(|id| self.spaces.get(id))
            .map_or(0, |space| space.met_epoch)
    }

    fn describe(&self, birth: u64) -> Option<Description> {
        let space = self.spaces.get(self.ids.get(&birth)?)?;
        Some(Description {
            id: space.id,
            owner: space.owner,
            details: space.details.clone(),
        })
    }
}
