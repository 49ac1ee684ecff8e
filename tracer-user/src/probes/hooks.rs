//! The probed functions and the programs for each.

mod table;

pub use self::table::{HOOKS, START_HOOK};
use super::verdict::Mechanism;

/// Where a program of the object is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// At the entry of the function.
    Entry,
    /// At its return.
    Return,
    /// At a tracepoint.
    Tracepoint,
}

/// A program of the object.
#[derive(Clone, Copy, Debug)]
pub struct HookProgram {
    /// Its name in the object.
    pub name: &'static str,
    /// Where it goes.
    pub site: Site,
}

/// A probed function or tracepoint.
#[derive(Debug)]
pub struct Hook {
    /// Name of the kernel function or tracepoint; of a tracepoint that is called like a function, with its subsystem.
    pub target: &'static str,
    /// Whether sdtrace cannot work without it.
    pub required: bool,
    fentry: &'static [HookProgram],
    kprobe: &'static [HookProgram],
    /// Programs of `kprobe` that are only attached with `--fault-return`.
    return_on_request: bool,
    /// What the programs take for granted of the prototype, to save instructions on a hot path: globals of the
    /// layout and the only value that will do.
    pub fixed: &'static [(&'static str, u32)],
}

impl Hook {
    /// Whether a program of the object belongs to this hook.
    pub fn has(&self, program: &str) -> bool {
        let programs = self.fentry.iter().chain(self.kprobe);
        programs.into_iter().any(|own| own.name == program)
    }

    /// The kernel's name of the tracepoint, if it is one.
    pub fn tracepoint(&self) -> Option<&'static str> {
        let sites = self.fentry.iter().chain(self.kprobe).map(|program| program.site);
        sites
            .into_iter()
            .all(|site| site == Site::Tracepoint)
            .then(|| self.target.rsplit(':').next().unwrap_or(self.target))
    }

    /// The programs that make this hook, return probes first: an entry is never without its return.
    pub fn programs(&self, mechanism: Mechanism, fault_return: bool) -> impl Iterator<Item = HookProgram> {
        let programs = match mechanism {
            Mechanism::Fentry => self.fentry,
            Mechanism::Kprobe => self.kprobe,
        };
        let leave_out_return = mechanism == Mechanism::Kprobe && self.return_on_request && !fault_return;
        programs
            .iter()
            .copied()
            .filter(move |program| program.site != Site::Return || !leave_out_return)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_never_attached_before_its_return() {
        for hook in HOOKS {
            for mechanism in Mechanism::ALL {
                let sites: Vec<_> = hook
                    .programs(mechanism, true)
                    .map(|program| program.site)
                    .collect();
                assert!(!sites.is_empty(), "{} has no program", hook.target);
                assert!(
                    sites.iter().skip(1).all(|&site| site != Site::Return),
                    "{}",
                    hook.target
                );
            }
        }
    }

    #[test]
    fn tracepoints_are_known_by_their_own_names() {
        let name = |target| HOOKS.iter().find(|hook| hook.target == target)?.tracepoint();
        assert_eq!(name("sched_process_fork"), Some("sched_process_fork"));
        assert_eq!(name("migrate:remove_migration_pte"), Some("remove_migration_pte"));
        assert_eq!(name("remove_migration_pte"), None);
    }

    #[test]
    fn the_return_probe_of_the_hot_path_is_on_request_in_kprobe_mode_only() {
        let hook = HOOKS.iter().find(|hook| hook.target == "do_wp_page").unwrap();
        assert_eq!(hook.programs(Mechanism::Kprobe, false).count(), 1);
        assert_eq!(hook.programs(Mechanism::Kprobe, true).count(), 2);
        assert_eq!(hook.programs(Mechanism::Fentry, false).count(), 2);
    }
}
