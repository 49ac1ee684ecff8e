//! Which address spaces are tracked.

use tracer_common::settings::{MAX_CGROUPS, MAX_COMMS, MAX_PIDS, Settings};

use super::StartError;

/// Which address spaces are tracked; an empty list lets everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Process ids of our own pid namespace, at most [`MAX_PIDS`]. Forks of these are not followed.
    pub pids: Vec<u32>,
    /// Names of processes, at most 15 bytes each and [`MAX_COMMS`] of them.
    pub comms: Vec<String>,
    /// Ids of cgroups of the unified hierarchy, at most [`MAX_CGROUPS`]; their descendants pass too.
    pub cgroups: Vec<u64>,
}

/// The filters as the programs read them.
pub(super) fn settings_of(filters: &Filters) -> Result<Settings, StartError> {
    let mut settings = Settings::default();
    let too_many =
        |what: &str, limit: usize| StartError::Filter(format!("at most {limit} {what} can be given"));
    if filters.pids.len() > MAX_PIDS {
        return Err(too_many("--pid", MAX_PIDS));
    }
    if filters.comms.len() > MAX_COMMS {
        return Err(too_many("--comm", MAX_COMMS));
    }
    if filters.cgroups.len() > MAX_CGROUPS {
        return Err(too_many("--cgroup", MAX_CGROUPS));
    }
    for (slot, pid) in settings.pid_list.iter_mut().zip(&filters.pids) {
        *slot = *pid;
        settings.pids += 1;
    }
    for (slot, comm) in settings.comm_list.iter_mut().zip(&filters.comms) {
        if comm.len() > 15 || comm.is_empty() {
            return Err(StartError::Filter(format!(
                "--comm {comm}: the kernel keeps names of 1 to 15 bytes; give the name as /proc/PID/comm shows it"
            )));
        }
        slot[..comm.len()].copy_from_slice(comm.as_bytes());
        settings.comms += 1;
    }
    for (slot, cgroup) in settings.cgroup_ids.iter_mut().zip(&filters.cgroups) {
        *slot = *cgroup;
        settings.cgroups += 1;
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_beyond_their_bounds_name_the_remedy() {
        let pids = Filters {
            pids: vec![1; MAX_PIDS + 1],
            ..Filters::default()
        };
        assert!(
            settings_of(&pids)
                .unwrap_err()
                .to_string()
                .contains("at most 32 --pid")
        );
        let comm = Filters {
            comms: vec!["a-name-of-16-byte".to_owned()],
            ..Filters::default()
        };
        assert!(
            settings_of(&comm)
                .unwrap_err()
                .to_string()
                .contains("1 to 15 bytes")
        );
    }

    #[test]
    fn filters_reach_the_settings() {
        let filters = Filters {
            pids: vec![7, 8],
            comms: vec!["redis".to_owned()],
            cgroups: vec![42],
        };
        let settings = settings_of(&filters).unwrap();
        assert_eq!((settings.pids, settings.pid_list[1]), (2, 8));
        assert_eq!(&settings.comm_list[0][..6], b"redis\0");
        assert_eq!((settings.cgroups, settings.cgroup_ids[0]), (1, 42));
    }
}
