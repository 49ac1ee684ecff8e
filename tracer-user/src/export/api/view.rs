//! What the owner of the ledger lets others look at, and the answers that are made there: one page at a time, so that
//! a long list costs the owner little.

use tracer_common::records::TaskIdentity;

use super::model::{
    Container, Epoch, EpochCounts, EpochDetail, Incidents, List, Process, ProcessDetail, RangeFound, Ranges,
    SpaceState, Tracker,
};
use super::query::{EpochName, IncidentsQuery, Page, ProcessesQuery, WhichProcesses};
use super::recent::Recent;
use crate::detectors::{Detection, Detectors, Moment, Verdict};
use crate::ledger::brief::{EpochBrief, SpaceBrief};
use crate::ledger::{Clock, Ledger, clear_times};
use crate::workload::Workload;

/// What the owner of the ledger lets others look at, as of the last turn of its loop.
#[derive(Clone, Copy)]
pub struct View<'v> {
    /// Address spaces and epochs.
    pub ledger: &'v Ledger,
    /// Findings and verdicts.
    pub detectors: &'v Detectors,
    /// The newest incidents.
    pub incidents: &'v Recent,
    /// The clocks.
    pub clock: &'v dyn Clock,
}

/// The epoch that is asked for is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no such address space.
    Process,
    /// There is no such epoch.
    Epoch,
}

/// The name in a zero-padded `comm`; bytes that are no UTF-8 are replaced.
fn comm(task: &TaskIdentity) -> String {
    let end = task.comm.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(&task.comm[..end.unwrap_or(task.comm.len())]).into_owned()
}

fn visible(pid: u32) -> Option<u32> {
    (pid != 0).then_some(pid)
}

fn tracker(task: &TaskIdentity) -> Tracker {
    Tracker {
        pid: visible(task.pid),
        initial_pid: task.initial_pid,
        comm: comm(task),
    }
}

fn wanted(space: SpaceBrief<'_>, query: &ProcessesQuery) -> bool {
    let state = match query.state {
        WhichProcesses::All => true,
        WhichProcesses::Live => space.is_live(),
        WhichProcesses::Ended => !space.is_live(),
    };
    let owner = space.owner();
    let pid = |wanted: u64, pid: fn(&TaskIdentity) -> u32| {
        owner.is_some_and(|owner| u64::from(pid(owner)) == wanted)
    };
    state
        && query
            .pid
            .is_none_or(|wanted| pid(wanted.get(), |owner| owner.pid))
        && query
            .initial_pid
            .is_none_or(|wanted| pid(wanted.get(), |owner| owner.initial_pid))
        && query
            .comm()
            .is_none_or(|wanted| owner.is_some_and(|owner| comm(owner) == wanted))
}

/// Up to `page.limit` of the items, and the place of the last one if there are more.
fn page_of<T>(items: impl Iterator<Item = (u64, T)>, page: Page) -> (Vec<T>, Option<u64>) {
    let mut items = items.peekable();
    let mut taken = Vec::new();
    let mut place = 0;
    for (at, item) in items.by_ref().take(page.limit) {
        place = at;
        taken.push(item);
    }
    (taken, items.peek().is_some().then_some(place))
}

impl View<'_> {
    fn moment(&self, monotonic_ns: u64) -> Moment {
        Moment(self.clock.unix_ns(monotonic_ns))
    }

    /// A page of the processes, by their small numbers.
    #[must_use]
    pub fn processes(&self, query: &ProcessesQuery) -> List<Process> {
        let page = query.page();
        let verdict = |space: &SpaceBrief<'_>| {
            query.verdict.is_none_or(|wanted| {
                let now = match space.open() {
                    Some(open) => self.verdict(*space, open.number()),
                    None => self.detectors.space_brief(space.birth()).last,
                };
                now == Some(wanted)
            })
        };
        let spaces = self
            .ledger
            .briefs(page.cursor.unwrap_or(0))
            .filter(|&space| wanted(space, query))
            .filter(verdict)
            .map(|space| (space.id(), space));
        let (spaces, next) = page_of(spaces, page);
        List {
            items: spaces.into_iter().map(|space| self.describe(space)).collect(),
            next_cursor: Page::next(next),
        }
    }

    fn verdict(&self, space: SpaceBrief<'_>, number: u32) -> Option<Verdict> {
        let epoch = self.detectors.epoch_brief(space.birth(), number)?;
        Some(epoch.verdict)
    }

    fn describe(&self, space: SpaceBrief<'_>) -> Process {
        let owner = space.owner();
        let details = space.details();
        let container = details.and_then(|details| Workload::of(&details.cgroup).container);
        let open = space.open().map(EpochBrief::number);
        let findings = open.and_then(|number| self.detectors.epoch_brief(space.birth(), number));
        let brief = self.detectors.space_brief(space.birth());
        let [trusted, suspect, broken] = brief.verdicts;
        let last_clear = space.last_clear();
        Process {
            id: space.id(),
            birth: space.birth(),
            pid: owner.and_then(|owner| visible(owner.pid)),
            initial_pid: owner.map(|owner| owner.initial_pid),
            start_ns: owner.map(|owner| owner.start_ns),
            comm: owner.map(comm),
            cgroup: details.map(|details| details.cgroup.clone()),
            container: container.map(|container| Container {
                runtime: container.runtime.label().to_owned(),
                id: container.id,
            }),
            state: if space.is_live() {
                SpaceState::Live
            } else {
                SpaceState::Ended
            },
            ended_ns: space.ended_ns(),
            origin: space.origin().label().to_owned(),
            epoch: open,
            verdict: findings.map(|findings| findings.verdict),
            last_verdict: brief.last,
            epochs: EpochCounts {
                trusted,
                suspect,
                broken,
            },
            missed_pages: brief.missed_pages,
            exposed_pages: findings.map_or(0, |findings| findings.exposed_pages),
            blind_bytes: findings.map_or(0, |findings| findings.blind_bytes),
            dropped_pages: findings.map_or(0, |findings| findings.dropped_pages),
            write_notify_faults: space.faults(),
            last_clear_unix: last_clear.map(|clear| self.moment(clear.header.time_ns)),
            tracker: last_clear.map(|clear| tracker(&clear.tracker)),
        }
    }

    /// One process, as the list has it.
    #[must_use]
    pub fn listed(&self, id: u64) -> Option<Process> {
        self.ledger.brief(id).map(|space| self.describe(space))
    }

    /// One epoch, as the list of its process has it.
    #[must_use]
    pub fn listed_epoch(&self, id: u64, number: u32) -> Option<Epoch> {
        let space = self.ledger.brief(id)?;
        space.epoch(number).map(|epoch| self.describe_epoch(space, epoch))
    }

    /// One process, with what is found in its open epoch.
    #[must_use]
    pub fn process(&self, id: u64) -> Option<ProcessDetail> {
        let space = self.ledger.brief(id)?;
        let open = space.open();
        Some(ProcessDetail {
            process: self.describe(space),
            detection: open.and_then(|open| self.detectors.detection(space.birth(), open.number())),
        })
    }

    /// A page of the epochs of a process, newest first.
    #[must_use]
    pub fn epochs(&self, id: u64, page: Page) -> Option<List<Epoch>> {
        let space = self.ledger.brief(id)?;
        let epochs = space
            .epochs()
            .map(|epoch| (u64::from(epoch.number()), epoch))
            .filter(|&(number, _)| page.cursor.is_none_or(|cursor| number < cursor));
        let (epochs, next) = page_of(epochs, page);
        Some(List {
            items: epochs
                .into_iter()
                .map(|epoch| self.describe_epoch(space, epoch))
                .collect(),
            next_cursor: Page::next(next),
        })
    }

    fn describe_epoch(&self, space: SpaceBrief<'_>, epoch: EpochBrief<'_>) -> Epoch {
        let number = epoch.number();
        let (opened_by, opened_ns) = epoch.opened();
        let clear = epoch.clear();
        let ended = epoch.ended();
        let findings = self.detectors.epoch_brief(space.birth(), number);
        Epoch {
            number,
            opened_by: opened_by.to_owned(),
            opened_ns,
            opened_unix: opened_ns.map(|at| self.moment(at)),
            ended_by: ended.map(|(reason, _)| reason.label().to_owned()),
            ended_ns: ended.map(|(_, at)| at),
            tracker: clear.map(|clear| tracker(&clear.tracker)),
            verdict: findings.map(|findings| findings.verdict),
            is_final: findings.map_or(epoch.is_settled(), |findings| findings.finished),
            reasons: self.detectors.reasons(space.birth(), number),
            causes: self.detectors.causes(space.birth(), number),
            write_notify_faults: epoch.faults(),
            missed_pages: findings.map_or(0, |findings| findings.missed_pages),
            exposed_pages: findings.map_or(0, |findings| findings.exposed_pages),
            blind_bytes: findings.map_or(0, |findings| findings.blind_bytes),
            dropped_pages: findings.map_or(0, |findings| findings.dropped_pages),
            hold_seconds: clear.and_then(clear_times).map(|(_, hold)| seconds(hold)),
            armed_bytes: clear.map(|clear| clear.armed_bytes),
        }
    }

    fn find(&self, id: u64, name: EpochName) -> Result<(SpaceBrief<'_>, EpochBrief<'_>), Missing> {
        let space = self.ledger.brief(id).ok_or(Missing::Process)?;
        let epoch = match name {
            EpochName::Number(number) => space.epoch(number),
            EpochName::Last => space.last(),
            EpochName::Open => space.open(),
        };
        epoch.map(|epoch| (space, epoch)).ok_or(Missing::Epoch)
    }

    /// One epoch with all that is known of it.
    ///
    /// # Errors
    /// If there is none.
    pub fn epoch(&self, id: u64, name: EpochName) -> Result<EpochDetail, Missing> {
        let (space, epoch) = self.find(id, name)?;
        Ok(EpochDetail {
            epoch: self.describe_epoch(space, epoch),
            detection: self.detectors.detection(space.birth(), epoch.number()),
        })
    }

    /// A page of the addresses of an epoch to dump again.
    ///
    /// # Errors
    /// If there is no such epoch.
    pub fn ranges(&self, id: u64, name: EpochName, page: Page) -> Result<Ranges, Missing> {
        let (space, epoch) = self.find(id, name)?;
        let number = epoch.number();
        let detection = self.detectors.detection(space.birth(), number);
        let items = detection.as_ref().map_or_else(Vec::new, ranges);
        let from = page
            .cursor
            .and_then(|cursor| usize::try_from(cursor).ok())
            .unwrap_or(0);
        let rest = items
            .into_iter()
            .enumerate()
            .skip(from)
            .map(|(at, range)| (at as u64 + 1, range));
        let (items, next) = page_of(rest, page);
        Ok(Ranges {
            epoch: number,
            is_final: detection
                .as_ref()
                .map_or(epoch.is_settled(), |detection| detection.finished),
            dump_everything: detection.as_ref().is_none_or(needs_everything),
            ranges_joined: detection.is_some_and(|detection| detection.ranges_joined),
            items,
            next_cursor: Page::next(next),
        })
    }

    /// A page of incidents, newest first.
    #[must_use]
    pub fn incidents(&self, query: &IncidentsQuery) -> Incidents {
        let page = query.page();
        let wanted = self.incidents.newest_before(page.cursor).filter(|(_, incident)| {
            let pid = || incident.process.as_ref().and_then(|process| process.pid);
            query.cause.is_none_or(|cause| incident.cause == cause.0.label())
                && query
                    .evidence
                    .is_none_or(|evidence| incident.evidence == evidence)
                && query.state.is_none_or(|state| incident.state == state)
                && query
                    .process
                    .is_none_or(|id| incident.address_space == Some(id.get()))
                && query
                    .pid
                    .is_none_or(|wanted| pid().map(u64::from) == Some(wanted.get()))
        });
        let (items, next) = page_of(wanted, page);
        Incidents {
            items: items.into_iter().cloned().collect(),
            next_cursor: Page::next(next),
            forgotten: self.incidents.forgotten(),
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a 64-bit float keeps durations of days to a nanosecond"
)]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// The ranges of every cause; and those that no cause has, because nobody has looked at what was moved there.
fn ranges(detection: &Detection) -> Vec<RangeFound> {
    let mut ranges: Vec<_> = detection
        .causes
        .iter()
        .flat_map(|found| {
            found.ranges.iter().map(|range| RangeFound {
                start: range.start,
                end: range.end,
                cause: Some(found.cause.clone()),
                evidence: Some(found.evidence),
            })
        })
        .collect();
    let unexplained = detection
        .dump_again
        .iter()
        .filter(|again| {
            !ranges
                .iter()
                .any(|range| range.start < again.end && again.start < range.end)
        })
        .map(|again| RangeFound {
            start: again.start,
            end: again.end,
            cause: None,
            evidence: None,
        })
        .collect::<Vec<_>>();
    ranges.extend(unexplained);
    ranges.sort_by_key(|range| (range.start, range.end));
    ranges
}

/// Whether something against trust has no addresses.
fn needs_everything(detection: &Detection) -> bool {
    detection.ranges_given_up
        || detection.blind_bytes_nowhere > 0
        || detection.reasons.iter().any(|reason| reason.kind == "unknown")
        || detection.causes.iter().any(|found| found.ranges.is_empty())
}
