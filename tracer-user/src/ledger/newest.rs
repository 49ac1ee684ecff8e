//! The newest epoch of one address space, VMA by VMA: what a map of it is drawn from.

use tracer_common::classify::VmaKind;

use super::Ledger;
use super::epoch::kind_of;
use super::space::Phase;

/// One state of one VMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownVma {
    /// First address.
    pub start: u64,
    /// First address behind, when this state was last met.
    pub end: u64,
    /// `vm_flags`.
    pub flags: u64,
    /// `vm_page_prot`.
    pub page_prot: u64,
    /// Inode number of the mapped file, 0 without one.
    pub inode: u64,
    /// Its device.
    pub device: u32,
    /// `vm_pgoff`, in pages.
    pub offset: u64,
    /// Shared mappings of the file at the clear, this one included.
    pub shared_mappings: u32,
    /// Its kind.
    pub kind: VmaKind,
    /// The clear that opened the epoch met this state.
    pub met_by_clear: bool,
}

/// The newest epoch of an address space.
#[derive(Clone, Debug, PartialEq)]
pub struct Newest {
    /// The kernel side's id of the address space.
    pub birth: u64,
    /// Process id in sdtrace's pid namespace and start in nanoseconds since the boot, where it is visible.
    pub process: Option<(u32, u64)>,
    /// Whether the address space is there still.
    pub live: bool,
    /// Number of the epoch; 0 before the first record.
    pub epoch: u32,
    /// Every VMA that the clear met is listed.
    pub complete: bool,
    /// By address; a VMA that changed within the epoch is listed once for each state.
    pub vmas: Vec<KnownVma>,
}

impl Ledger {
    /// The newest epoch of the address space with this id, at most `most` VMA states of it; the flag says whether there
    /// are more.
    #[must_use]
    pub fn newest(&self, id: u64, most: usize) -> Option<(Newest, bool)> {
        let space = self.spaces.get(&id)?;
        let epoch = space.epochs.back();
        let vmas: Vec<_> = epoch
            .into_iter()
            .flat_map(|epoch| &epoch.vmas)
            .map(|(key, entry)| KnownVma {
                start: key.start,
                end: entry.end,
                flags: key.flags,
                page_prot: key.page_prot,
                inode: entry.inode,
                device: entry.device,
                offset: entry.offset,
                shared_mappings: entry.shared_mappings,
                kind: kind_of(entry.kind),
                met_by_clear: entry.armed_at_clear,
            })
            .take(most)
            .collect();
        let more = epoch.is_some_and(|epoch| epoch.vmas.len() > most || epoch.folded_vmas > 0);
        let owner = space.owner.filter(|owner| owner.pid != 0);
        let newest = Newest {
            birth: space.birth,
            process: owner.map(|owner| (owner.pid, owner.start_ns)),
            live: space.phase == Phase::Live,
            epoch: space.newest(),
            complete: epoch.is_some_and(|epoch| epoch.vmas_complete),
            vmas,
        };
        Some((newest, more))
    }

    /// The id of the address space with this birth.
    #[must_use]
    pub fn id_of(&self, birth: u64) -> Option<u64> {
        self.ids.get(&birth).copied()
    }
}
