//! Runs of probes that the kernel skipped, as far as it counts them.

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use aya::programs::{KProbe, Program};
use serde::{Deserialize, Serialize};

use super::hooks::START_HOOK;
use super::object::fdinfo;

/// How often the kernel skipped a program, and whether it counts that at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedRuns {
    /// Program of the object.
    pub program: String,
    /// Where it is skipped: `recursion` (the program was running on that CPU already) or `bpf_prog_active` (a
    /// kprobe hit while that CPU was in a bpf(2) map operation).
    pub stage: String,
    /// How often; `None` where it may happen and this kernel does not count it.
    pub count: Option<u64>,
}

impl MissedRuns {
    /// Whether a skipped run can leave something out of an epoch. Who is interested in pagemap only decides when write
    /// faults are watched, and every epoch knows whether they were.
    #[must_use]
    pub fn concerns_epochs(&self) -> bool {
        !START_HOOK.has(&self.program)
    }
}

/// Reads the counts of every loaded program from its fdinfo.
///
/// A kernel without `recursion_misses` (before 9ed9e9ba2337, 5.12) has no check for recursion in its trampolines
/// either (ca06f55b9002), so fentry programs are never skipped there. `bpf_prog_active` is set in map operations,
/// which do not sleep, and while a kprobe program runs, with preemption off. So where the kernel does not preempt
/// itself, no task comes by a probe meanwhile; where it does, it is counted since dd8657894c11 (6.7), which the
/// start-up finds out by making it happen. `kprobes_are_accounted_for` says that one of the two holds.
#[must_use]
pub fn missed_runs(object: &Ebpf, kprobes_are_accounted_for: bool) -> Vec<MissedRuns> {
    let mut all = Vec::new();
    for (name, program) in object.programs() {
        if program.fd().is_err() {
            continue;
        }
        let count = Some(fdinfo(program, "recursion_misses").unwrap_or(0));
        match program {
            Program::KProbe(_) => {
                let count = count.filter(|_| kprobes_are_accounted_for);
                all.push(MissedRuns {
                    program: name.to_owned(),
                    stage: "bpf_prog_active".to_owned(),
                    count,
                });
            }
            _ => all.push(MissedRuns {
                program: name.to_owned(),
                stage: "recursion".to_owned(),
                count,
            }),
        }
    }
    all
}

/// Takes what was missed `before` from `runs`.
pub fn subtract(runs: &mut [MissedRuns], before: &[MissedRuns]) {
    for run in runs {
        let same = |other: &&MissedRuns| other.program == run.program && other.stage == run.stage;
        if let (Some(count), Some(earlier)) = (
            &mut run.count,
            before.iter().find(same).and_then(|other| other.count),
        ) {
            *count = count.saturating_sub(earlier);
        }
    }
}

/// A function that every lookup in a per-CPU array by bpf(2) calls while `bpf_prog_active` is set on that CPU
/// (`bpf_map_copy_value`).
const INSIDE_A_LOOKUP: &str = "bpf_percpu_array_copy";

/// Finds out whether this kernel counts the kprobe runs that it skips because of `bpf_prog_active`, by making it
/// skip some: a counting kprobe on a function inside of bpf(2), and look-ups that call it. Kernels count them
/// since dd8657894c11 (6.7). `None` if it could not be tried; then it has to be taken for no.
#[must_use]
pub fn skipped_runs_are_counted(object: &mut Ebpf, bare: &PerCpuArray<MapData, u64>) -> Option<bool> {
    const LOOKUPS: u64 = 8;
    let program = object.program_mut("bare_kprobe")?;
    let kprobe: &mut KProbe = program.try_into().ok()?;
    if let Err(error) = kprobe
        .load()
        .and_then(|()| kprobe.attach(INSIDE_A_LOOKUP, 0).map(drop))
    {
        tracing::debug!(%error, "cannot find out whether skipped kprobe runs are counted");
        // Not loaded or not attached; either way nothing must stay.
        let _ = kprobe.unload();
        return None;
    }
    for _ in 0..LOOKUPS {
        bare.get(&0, 0).ok()?;
    }
    let skipped = fdinfo(object.program("bare_kprobe")?, "recursion_misses");
    let kprobe: &mut KProbe = object.program_mut("bare_kprobe")?.try_into().ok()?;
    kprobe.unload().ok()?;
    let ran: u64 = bare.get(&0, 0).ok()?.iter().sum();
    // A kernel that runs them all has nothing to count.
    Some(ran + skipped.unwrap_or(0) >= LOOKUPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &str, count: Option<u64>) -> MissedRuns {
        MissedRuns {
            program: program.to_owned(),
            stage: "recursion".to_owned(),
            count,
        }
    }

    #[test]
    fn whoever_reads_pagemap_unseen_makes_no_epoch_doubtful() {
        assert!(!run("pagemap_read_fentry", Some(1)).concerns_epochs());
        assert!(!run("pagemap_read_kprobe", Some(1)).concerns_epochs());
        assert!(run("pagemap_pmd_range_kprobe", Some(1)).concerns_epochs());
    }

    #[test]
    fn what_was_missed_before_counts_no_more() {
        let mut runs = [run("a", Some(7)), run("b", Some(1)), run("c", None)];
        subtract(&mut runs, &[run("a", Some(5)), run("c", None)]);
        assert_eq!(runs, [run("a", Some(2)), run("b", Some(1)), run("c", None)]);
    }
}
