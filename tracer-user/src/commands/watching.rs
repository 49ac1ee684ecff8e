//! Write faults are watched while somebody tracks, or is about to.
//!
//! The order is what makes this honest. Records that came before a change are taken in with the sample of losses from before
//! it: while nothing is watched, that sample says that every epoch is late, so the epoch whose record causes the attaching
//! is. Before anything is detached the state says so, and the next sample is taken before the next record.

use tracer_common::records::{CLEAR_TRACKED, Record, TaskIdentity};

use super::agent::Agent;
use super::health::unavailable;
use crate::ledger::Clock as _;
use crate::probes::demand::{Situation, Step};
use crate::processes::SystemClock;

impl Agent {
    /// Attaches or detaches what watches write faults, as the ledger and these records demand. Each moment counts, so it
    /// comes before the records are taken in.
    pub(super) fn watch_on_demand(&mut self, records: &[Record]) {
        let reader = records.iter().find_map(reader);
        let situation = Situation {
            now_ns: SystemClock.monotonic_ns(),
            tracked: records.iter().any(opens_an_epoch) || self.ledger.is_anything_live(),
            asked: reader.is_some(),
            read_ns: self.kernel.probes.pagemap_read_ns(),
        };
        match self.demand.next(&situation) {
            Some(Step::Attach) => self.attach(reader, situation.now_ns),
            Some(Step::Detach) => self.detach(),
            None => {}
        }
    }

    fn attach(&mut self, reader: Option<&TaskIdentity>, asked_ns: u64) {
        let result = self.kernel.probes.watch_writes();
        let now_ns = SystemClock.monotonic_ns();
        self.unavailable = unavailable(self.kernel.probes.verdicts());
        let because = reader.map_or_else(
            || "an address space is tracked".to_owned(),
            |reader| format!("{} (pid {}) reads pagemap", name(reader), reader.pid),
        );
        match result {
            Ok(()) => {
                self.demand.attached(now_ns);
                let took_us = now_ns.saturating_sub(asked_ns) / 1000;
                tracing::info!(because, took_us, "write faults are watched");
            }
            Err(error) => {
                self.demand.refused(now_ns);
                tracing::error!(
                    because,
                    error = format!("{error:#}"),
                    "write faults cannot be watched: no epoch is trusted"
                );
            }
        }
    }

    fn detach(&mut self) {
        match self.kernel.probes.stop_watching_writes() {
            Ok(()) => tracing::info!("write faults are not watched: nothing is tracked"),
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "what watches write faults cannot be detached as it should"
            ),
        }
    }
}

fn opens_an_epoch(record: &Record) -> bool {
    match record {
        Record::Clear(clear) => clear.status == CLEAR_TRACKED,
        Record::Track(_) => true,
        _ => false,
    }
}

fn reader(record: &Record) -> Option<&TaskIdentity> {
    match record {
        Record::Interest(interest) => Some(&interest.reader),
        _ => None,
    }
}

fn name(task: &TaskIdentity) -> String {
    let end = task.comm.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(&task.comm[..end.unwrap_or(task.comm.len())]).into_owned()
}
