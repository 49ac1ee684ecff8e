//! What must hold before anything is attached, and what to do where it does not. Pure: the facts come in.

use serde::Serialize;

use super::round_trip::RoundTrip;
use crate::kernel::config::{Need, State};
use crate::kernel::survey::Survey;
use crate::probes::verdict::AttachMode;

/// Something that keeps sdtrace from working.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    /// What is wrong.
    pub(super) what: String,
    /// What to do about it.
    pub(super) remedy: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}; {}", self.what, self.remedy)
    }
}

/// Everything that keeps `run` from working on this machine, the gravest first. `round_trips` is an error if the
/// round trip could not be made.
pub(super) fn problems(
    survey: &Survey,
    attach: AttachMode,
    round_trips: &Result<Vec<RoundTrip>, String>,
) -> Vec<Problem> {
    let mut problems = kernel_problems(survey, attach);
    let soft_dirty_named = problems
        .iter()
        .any(|problem| problem.what.contains("CONFIG_MEM_SOFT_DIRTY"));
    if !soft_dirty_named {
        problems.extend(round_trip_problem(round_trips));
    }
    problems.extend(privilege_problems(survey));
    problems
}

/// Options that the kernel certainly lacks, in one problem: the remedy is the same for all.
fn kernel_problems(survey: &Survey, attach: AttachMode) -> Vec<Problem> {
    let lacking = |need: Need| {
        survey
            .options
            .iter()
            .filter(move |option| option.need == need && option.state == State::Absent)
            .map(|option| (option.name, option.gives))
    };
    let mut missing: Vec<_> = lacking(Need::Always).collect();
    let fentry: Vec<_> = lacking(Need::Fentry).collect();
    let kprobe: Vec<_> = lacking(Need::Kprobe).collect();
    match attach {
        AttachMode::Fentry => missing.extend(fentry),
        AttachMode::Kprobe => missing.extend(kprobe),
        // One of the two ways is enough.
        AttachMode::Auto if !fentry.is_empty() && !kprobe.is_empty() => {
            missing.extend(kprobe);
            missing.extend(fentry);
        }
        AttachMode::Auto => {}
    }
    if missing.is_empty() {
        return Vec::new();
    }
    let names: Vec<_> = missing
        .iter()
        .map(|(name, gives)| format!("{name} ({gives})"))
        .collect();
    let release = survey.release.as_deref().unwrap_or("of this machine");
    vec![Problem {
        what: format!("the kernel {release} was built without {}", names.join(", ")),
        remedy: "boot a kernel that has them, one of Debian's for instance".to_owned(),
    }]
}

fn round_trip_problem(round_trips: &Result<Vec<RoundTrip>, String>) -> Option<Problem> {
    let what = match round_trips {
        Ok(trips) => {
            let failed: Vec<_> = trips
                .iter()
                .filter(|trip| !trip.works)
                .map(|trip| format!("{}: {}", trip.memory, trip.seen))
                .collect();
            if failed.is_empty() {
                return None;
            }
            format!("soft-dirty tracking does not work here ({})", failed.join("; "))
        }
        Err(error) => format!("the soft-dirty round trip could not be made ({error})"),
    };
    Some(Problem {
        what,
        remedy: "boot a kernel with CONFIG_MEM_SOFT_DIRTY=y on a machine that supports it".to_owned(),
    })
}

fn privilege_problems(survey: &Survey) -> Vec<Problem> {
    if survey.in_initial_user_namespace == Some(false) {
        return vec![Problem {
            what: "sdtrace runs inside a user namespace, where no capability lets it load eBPF programs"
                .to_owned(),
            remedy: "run it outside, or in a privileged container".to_owned(),
        }];
    }
    if survey.missing_capabilities.is_empty() {
        return Vec::new();
    }
    let names: Vec<_> = survey
        .missing_capabilities
        .iter()
        .map(|missing| format!("{} for {}", missing.capability, missing.needed_for))
        .collect();
    let mut remedies: Vec<_> = survey
        .missing_capabilities
        .iter()
        .map(|missing| missing.remedy.to_owned())
        .collect();
    remedies.dedup();
    vec![Problem {
        what: format!("capabilities are missing: {}", names.join(", ")),
        remedy: format!("run as root, or {}", remedies.join(", and ")),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::capabilities::{Capabilities, Situation};
    use crate::kernel::config::KernelOption;
    use crate::kernel::preemption::Preemption;

    fn survey(absent: &[&'static str], capabilities: &str) -> Survey {
        let option = |name: &'static str, need| KernelOption {
            name,
            gives: "something",
            need,
            state: if absent.contains(&name) {
                State::Absent
            } else {
                State::Unknown
            },
            learned_from: String::new(),
        };
        let situation = Situation {
            memlock_is_charged: false,
            memlock_is_unlimited: false,
            perf_event_paranoid: None,
            kprobes_wanted: true,
        };
        Survey {
            release: Some("6.1.0".to_owned()),
            options: vec![
                option("CONFIG_MEM_SOFT_DIRTY", Need::Always),
                option("CONFIG_KPROBES", Need::Kprobe),
                option("CONFIG_FUNCTION_TRACER", Need::Fentry),
            ],
            preemption: Preemption::Never,
            missing_capabilities: Capabilities::from_status(&format!("CapEff: {capabilities}"))
                .unwrap()
                .missing(&situation),
            in_initial_user_namespace: Some(true),
            unreadable: Vec::new(),
        }
    }

    fn works() -> RoundTrip {
        RoundTrip {
            memory: "private anonymous memory".to_owned(),
            works: true,
            seen: String::new(),
        }
    }

    #[test]
    fn a_good_machine_has_no_problem() {
        assert_eq!(
            problems(&survey(&[], "1ffffffffff"), AttachMode::Auto, &Ok(vec![works()])),
            []
        );
    }

    #[test]
    fn one_way_to_attach_is_enough_unless_the_other_was_asked_for() {
        let no_kprobes = survey(&["CONFIG_KPROBES"], "1ffffffffff");
        assert_eq!(problems(&no_kprobes, AttachMode::Auto, &Ok(vec![works()])), []);
        assert_eq!(problems(&no_kprobes, AttachMode::Fentry, &Ok(vec![works()])), []);
        assert_eq!(
            problems(&no_kprobes, AttachMode::Kprobe, &Ok(vec![works()])).len(),
            1
        );
        let neither = survey(&["CONFIG_KPROBES", "CONFIG_FUNCTION_TRACER"], "1ffffffffff");
        let found = problems(&neither, AttachMode::Auto, &Ok(vec![works()]));
        assert!(found[0].what.contains("CONFIG_KPROBES") && found[0].what.contains("CONFIG_FUNCTION_TRACER"));
    }

    #[test]
    fn a_kernel_without_support_is_named_once() {
        let trips = Ok(vec![RoundTrip {
            memory: "private anonymous memory".to_owned(),
            works: false,
            seen: "0 pages".to_owned(),
        }]);
        let named = problems(
            &survey(&["CONFIG_MEM_SOFT_DIRTY"], "1ffffffffff"),
            AttachMode::Auto,
            &trips,
        );
        assert_eq!(named.len(), 1);
        assert!(
            named[0]
                .what
                .contains("6.1.0 was built without CONFIG_MEM_SOFT_DIRTY")
        );
        let silent = problems(&survey(&[], "1ffffffffff"), AttachMode::Auto, &trips);
        assert!(
            silent[0]
                .what
                .contains("does not work here (private anonymous memory: 0 pages)")
        );
    }

    #[test]
    fn missing_capabilities_are_named_with_one_remedy() {
        let found = problems(&survey(&[], "0"), AttachMode::Auto, &Ok(vec![works()]));
        assert_eq!(found.len(), 1);
        for name in [
            "CAP_BPF",
            "CAP_PERFMON",
            "CAP_SYS_PTRACE",
            "run as root, or give the service",
        ] {
            assert!(found[0].to_string().contains(name), "{found:?}");
        }
        assert_eq!(found[0].remedy.matches("AmbientCapabilities").count(), 1);
    }

    #[test]
    fn in_a_user_namespace_capabilities_do_not_count() {
        let inside = Survey {
            in_initial_user_namespace: Some(false),
            ..survey(&[], "1ffffffffff")
        };
        assert!(
            problems(&inside, AttachMode::Auto, &Ok(vec![works()]))[0]
                .what
                .contains("user namespace")
        );
    }
}
