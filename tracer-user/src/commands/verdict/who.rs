//! Which process is meant. A pid alone names nobody for good, and it means something only in its pid namespace; with the
//! time at which the process started it is never mistaken.

use std::fs;
use std::path::Path;

use procfs::ProcError;
use procfs::process::Process as Procfs;

use super::Unknown;
use crate::cli::UsageError;
use crate::export::api::model::{Process, SpaceState};
use crate::processes;

/// Inode of the initial pid namespace: `PROC_PID_INIT_INO` (`include/linux/proc_ns.h`).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A process as the caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    start_ticks: u64,
    /// Whether it is there now.
    alive: bool,
    /// The caller's pid namespace.
    namespace: u64,
}

/// The address space that is asked about.
#[derive(Debug)]
pub(super) struct Space(pub(super) Process);

impl Who {
    /// Reads it from /proc.
    ///
    /// # Errors
    /// If `pid` is no process but a thread of one. Within: if it cannot be known who is meant.
    pub(super) fn read(pid: u32, given_start: Option<u64>) -> Result<Result<Self, Unknown>, UsageError> {
        let namespace = match processes::pid_namespace() {
            Ok(namespace) if own_proc() => namespace,
            _ => return Ok(Err("/proc is not that of this pid namespace; mount it".to_owned())),
        };
        let there = start_of(pid)?;
        Ok(match (there, given_start) {
            (Ok(Some(start)), given) => Ok(Self {
                pid,
                start_ticks: given.unwrap_or(start),
                alive: given.is_none_or(|given| given == start),
                namespace,
            }),
            (Ok(None), Some(start_ticks)) => Ok(Self {
                pid,
                start_ticks,
                alive: false,
                namespace,
            }),
            (Ok(None), None) => Err(format!(
                "there is no process {pid}; for one that has ended, give its start with --start-time (field 22 of \
                 /proc/{pid}/stat while it lived)"
            )),
            (Err(why), _) => Err(why),
        })
    }

    /// How to ask for it, if its pid means anything to sdtrace.
    pub(super) fn filter(&self, daemon_namespace: Option<u64>) -> Result<String, Unknown> {
        if daemon_namespace == Some(self.namespace) {
            Ok(format!("pid={}", self.pid))
        } else if self.namespace == INITIAL_NAMESPACE {
            Ok(format!("initial_pid={}", self.pid))
        } else {
            Err(format!(
                "process {} is named in another pid namespace than sdtrace runs in, so it cannot be told which one it is; \
                 ask from the host, or in sdtrace's own",
                self.pid
            ))
        }
    }
}

/// Whether /proc shows the pids of our own namespace.
fn own_proc() -> bool {
    fs::read_link("/proc/self").is_ok_and(|target| target == Path::new(&std::process::id().to_string()))
}

/// When the process started, if it is there.
fn start_of(pid: u32) -> Result<Result<Option<u64>, Unknown>, UsageError> {
    let read = || -> Result<(u64, i32), ProcError> {
        let process = Procfs::new(i32::try_from(pid).unwrap_or(i32::MAX))?;
        let start = process.stat()?.starttime;
        Ok((start, process.status()?.tgid))
    };
    match read() {
        Ok((_, leader)) if u32::try_from(leader) != Ok(pid) => Err(UsageError(format!(
            "{pid} is a thread of process {leader}; soft-dirty belongs to the whole process, ask for {leader}"
        ))),
        Ok((start, _)) => Ok(Ok(Some(start))),
        Err(ProcError::NotFound(_)) => Ok(Ok(None)),
        Err(error) => Ok(Err(format!("/proc/{pid} cannot be read: {error}"))),
    }
}

/// The address space of this process; of several, because it has called exec, the present one.
pub(super) fn choose(who: &Who, spaces: Vec<Process>) -> Result<Space, Unknown> {
    let tick = processes::nanoseconds_per_tick();
    let pid = who.pid;
    let others = spaces.len();
    let own: Vec<_> = spaces
        .into_iter()
        .filter(|space| {
            space
                .start_ns
                .is_some_and(|start| start / tick == who.start_ticks)
        })
        .collect();
    if own.is_empty() {
        return Err(if others == 0 {
            format!(
                "sdtrace does not track process {pid}: nobody has cleared its soft-dirty bits since sdtrace started, or \
                 the filters of sdtrace leave it out"
            )
        } else {
            format!(
                "sdtrace does not track this process {pid}: it knows only an earlier process that had the same pid"
            )
        });
    }
    let live = |space: &Process| space.state == SpaceState::Live;
    let newest = own.into_iter().max_by_key(|space| (live(space), space.id));
    match newest {
        Some(space) if !who.alive || live(&space) => Ok(Space(space)),
        _ => Err(format!(
            "process {pid} has called exec, and nobody has cleared its soft-dirty bits since"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: u64 = 4_026_532_000;

    fn who(start_ticks: u64) -> Who {
        Who {
            pid: 7,
            start_ticks,
            alive: true,
            namespace: HERE,
        }
    }

    fn space(id: u64, start_ticks: u64, state: SpaceState) -> Process {
        let start_ns = start_ticks * processes::nanoseconds_per_tick() + 5;
        serde_json::from_value(serde_json::json!({
            "id": id, "birth": id, "pid": 7, "initial_pid": 7, "start_ns": start_ns, "state": state, "origin": "clear",
            "epochs": {"trusted": 0, "suspect": 0, "broken": 0}, "missed_pages": 0, "exposed_pages": 0,
            "blind_bytes": 0, "dropped_pages": 0, "write_notify_faults": 0
        }))
        .unwrap()
    }

    #[test]
    fn a_reused_pid_does_not_get_the_verdict_of_another_process() {
        let why = choose(&who(200), vec![space(1, 100, SpaceState::Ended)]).unwrap_err();
        assert!(why.contains("an earlier process that had the same pid"), "{why}");
        // Even if the end of the earlier one has not been seen.
        let both = vec![space(1, 100, SpaceState::Live), space(2, 200, SpaceState::Live)];
        assert_eq!(choose(&who(200), both).unwrap().0.id, 2);
        let why = choose(&who(200), Vec::new()).unwrap_err();
        assert!(why.contains("nobody has cleared"), "{why}");
    }

    #[test]
    fn after_exec_the_old_address_space_answers_for_nothing() {
        let old = space(1, 100, SpaceState::Ended);
        let why = choose(&who(100), vec![old.clone()]).unwrap_err();
        assert!(why.contains("has called exec"), "{why}");
        let both = vec![space(2, 100, SpaceState::Live), old.clone()];
        assert_eq!(choose(&who(100), both).unwrap().0.id, 2);
        let gone = Who {
            alive: false,
            ..who(100)
        };
        assert_eq!(choose(&gone, vec![old]).unwrap().0.id, 1);
    }

    #[test]
    fn pids_are_asked_for_in_the_namespace_that_they_belong_to() {
        assert_eq!(who(1).filter(Some(HERE)).unwrap(), "pid=7");
        let on_the_host = Who {
            namespace: INITIAL_NAMESPACE,
            ..who(1)
        };
        assert_eq!(on_the_host.filter(Some(HERE)).unwrap(), "initial_pid=7");
        assert!(who(1).filter(Some(INITIAL_NAMESPACE)).is_err());
        assert!(who(1).filter(None).is_err());
    }

    #[test]
    fn processes_are_read_and_threads_refused() {
        let pid = std::process::id();
        let who = Who::read(pid, None).unwrap().unwrap();
        assert!(who.alive);
        let other = Who::read(pid, Some(who.start_ticks + 1)).unwrap().unwrap();
        assert!(!other.alive);
        // Nobody has the largest pid of all.
        assert!(Who::read(4_194_304, None).unwrap().is_err());
        assert!(Who::read(4_194_304, Some(5)).unwrap().is_ok());
        let (told, wait) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            told.send(rustix::thread::gettid().as_raw_nonzero().get())
                .unwrap();
            let _ = ended.recv();
        });
        let id = u32::try_from(wait.recv().unwrap()).unwrap();
        let refused = Who::read(id, None).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("a thread of process {pid}")),
            "{refused}"
        );
        drop(end);
        thread.join().unwrap();
    }
}
