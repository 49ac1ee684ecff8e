//! What happens when records are lost: the ledger says that it is incomplete and why, and finds out from the
//! kernel's own list and from the rows which address spaces there are.

use std::collections::{BTreeMap, HashSet};

use tracer_common::counters::Stage;

use super::space::{Ends, Phase};
use super::{Ledger, LiveAddressSpaces, RECORD_GRACE_NS};

/// How long after a loss the kernel's list is read, and how long after that it is used: the records of what
/// happened in between must have arrived.
const SETTLING_NS: u64 = 1_000_000_000;

/// Stages at which the programs lose what the ledger needs.
const LOSSES: [Stage; 7] = [
    Stage::RingFull,
    Stage::RowsFull,
    Stage::TrackedFull,
    Stage::ClearsFull,
    Stage::MprotectsFull,
    Stage::SlotTaken,
    Stage::OrphanReturn,
];

/// Counters that say what was lost, as they stand now.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    /// By stage in the programs.
    pub stages: BTreeMap<Stage, u64>,
    /// Bytes from the ring buffer that were no record.
    pub undecodable: u64,
    /// Runs of probes that the kernel skipped and counted.
    pub missed_runs: u64,
    /// Probes whose skipped runs this kernel does not count.
    pub uncounted_probes: u64,
}

/// One reason why the ledger does not tell everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incompleteness {
    /// A stage, or what went wrong in the daemon.
    pub reason: &'static str,
    /// How often.
    pub count: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    losses: Losses,
    /// The table or two records contradicted each other.
    pub(super) inconsistent: u64,
    /// Address spaces and epochs that only rows told of.
    missing_records: u64,
    /// Address spaces whose end no record told of.
    missing_exits: u64,
    read_list_at: Option<u64>,
    list: Option<List>,
}

#[derive(Debug)]
struct List {
    births: HashSet<u64>,
    read_at: u64,
}

impl Ledger {
    /// Takes note of what was lost so far. A lost record makes the ledger ask the kernel which address spaces
    /// are tracked.
    pub fn note_losses(&mut self, losses: Losses, now_ns: u64) {
        let ring_full = |losses: &Losses| losses.stages.get(&Stage::RingFull).copied().unwrap_or(0);
        let more = ring_full(&losses) > ring_full(&self.loss.losses)
            || losses.undecodable > self.loss.losses.undecodable;
        if more {
            self.loss.read_list_at = Some(now_ns + SETTLING_NS);
        }
        self.loss.losses = losses;
    }

    /// Why the ledger does not tell everything; empty if it does.
    #[must_use]
    pub fn incomplete(&self) -> Vec<Incompleteness> {
        let loss = &self.loss;
        let stages = LOSSES.iter().map(|stage| {
            let count = loss.losses.stages.get(stage).copied().unwrap_or(0);
            (stage.label(), count)
        });
        let own = [
            ("undecodable", loss.losses.undecodable),
            ("missed_probe_runs", loss.losses.missed_runs),
            ("missing_records", loss.missing_records),
            ("missing_exits", loss.missing_exits),
            ("inconsistent", loss.inconsistent),
        ];
        stages
            .chain(own)
            .filter(|&(_, count)| count > 0)
            .map(|(reason, count)| Incompleteness { reason, count })
            .collect()
    }

    /// Probes whose skipped runs this kernel does not count, so that [`Self::incomplete`] cannot know of them.
    #[must_use]
    pub fn uncounted_probes(&self) -> u64 {
        self.loss.losses.uncounted_probes
    }

    /// Compares with the kernel's list, some time after records were lost.
    pub(super) fn reconcile(
        &mut self,
        live: &mut dyn LiveAddressSpaces,
        now_ns: u64,
        ends: &mut Ends,
    ) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        if self.loss.read_list_at.is_some_and(|at| now_ns >= at) {
            match live.live_births() {
                Ok(births) => {
                    self.loss.read_list_at = None;
                    self.loss.list = Some(List {
                        births: births.into_iter().collect(),
                        read_at: now_ns,
                    });
                }
                Err(error) => {
                    self.loss.read_list_at = Some(now_ns + SETTLING_NS);
                    errors.push(error.context("the kernel's list of tracked address spaces cannot be read"));
                }
            }
        }
        if self
            .loss
            .list
            .as_ref()
            .is_some_and(|list| now_ns >= list.read_at + SETTLING_NS)
            && let Some(list) = self.loss.list.take()
        {
            self.compare(&list, now_ns, ends);
        }
        errors
    }

    fn compare(&mut self, list: &List, now_ns: u64, ends: &mut Ends) {
        for space in self.spaces.values_mut() {
            // A birth is a time of the monotonic clock: what was born after the list was read cannot be in it.
            let gone = space.phase == Phase::Live
                && space.birth + SETTLING_NS < list.read_at
                && !list.births.contains(&space.birth);
            if gone {
                space.exit(None, now_ns, now_ns, ends);
                self.loss.missing_exits += 1;
            }
        }
        for &birth in &list.births {
            if self.known(birth).is_none() {
                self.loss.missing_records += 1;
                self.space(birth).open_unseen(1);
                // Should it have ended since, the next list tells.
                self.loss.read_list_at = Some(now_ns);
            }
        }
    }

    /// Notices address spaces and epochs that rows tell of and records do not, for too long.
    pub(super) fn note_gaps(&mut self, now_ns: u64) {
        let overdue = |since: u64| now_ns >= since + RECORD_GRACE_NS;
        for birth in std::mem::take(&mut self.left.strangers) {
            self.space(birth).open_unseen(1);
            self.loss.missing_records += 1;
            // It may be gone already.
            self.loss.read_list_at.get_or_insert(now_ns);
        }
        for space in self.spaces.values_mut() {
            if space.met_epoch <= space.newest() {
                space.ahead_since = None;
            } else if overdue(*space.ahead_since.get_or_insert(now_ns)) {
                let missing = space.met_epoch - space.newest();
                space.open_unseen(space.met_epoch);
                space.ahead_since = None;
                self.loss.missing_records += u64::from(missing);
            }
        }
    }
}
