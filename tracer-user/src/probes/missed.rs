//! Runs of probes that the kernel skipped, as far as it counts them.

use aya::Ebpf;
use aya::programs::Program;
use serde::{Deserialize, Serialize};

use super::object::fdinfo;

/// How often the kernel skipped a program, and whether it counts that at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedRuns {
    /// Program of the object.
    pub program: String,
    /// Where it is skipped: `recursion` (the program was running on that CPU already) or `bpf_prog_active` (a
    /// kprobe hit while that CPU was in a bpf(2) map operation).
    pub stage: String,
    /// How often; `None` where this kernel does not count it.
    pub count: Option<u64>,
}

/// Reads the counts of every loaded program from its fdinfo. `active_is_counted` says whether this kernel counts
/// kprobe runs that `bpf_prog_active` kept off, which the start-up finds out by making it happen.
#[must_use]
pub fn missed_runs(object: &Ebpf, active_is_counted: bool) -> Vec<MissedRuns> {
    let mut all = Vec::new();
    for (name, program) in object.programs() {
        if program.fd().is_err() {
            continue;
        }
        // `recursion_misses` came with 5.12; before, a trampoline had no such check, and a kprobe was skipped
        // silently.
        let count = fdinfo(program, "recursion_misses");
        match program {
            Program::KProbe(_) => {
                let count = count.filter(|_| active_is_counted);
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
