//! Whether the probes do what they are needed for.

use tokio::sync::watch;

use super::agent::Agent;
use crate::export::source::Readiness;
use crate::probes::verdict::{ProbeVerdict, Verdict};

impl Agent {
    /// Whether everything that was asked for is attached.
    fn readiness(&self) -> Readiness {
        let broken = self
            .kernel
            .probes
            .verdicts()
            .iter()
            .filter_map(|verdict| match &verdict.verdict {
                Verdict::Broken { why } => Some(format!("the probe on {} is broken: {why}", verdict.probe)),
                Verdict::Attached { .. } | Verdict::Unsupported { .. } => None,
            });
        Readiness::of(broken.collect())
    }

    /// Says so, if that is news.
    pub(super) fn tell_readiness(&self, readiness: &watch::Sender<Readiness>) {
        let now = self.readiness();
        readiness.send_if_modified(|told| {
            let news = *told != now;
            if news {
                *told = now;
            }
            news
        });
    }
}

/// Probes that the detectors cannot do without: those of the audit, of pages that come back exposed, of write faults, of mremap and of
/// writes to files. Others only name causes, or belong to what this kernel does not have; but one that is broken may leave anything
/// out.
const NEEDED: [&str; 9] = [
    "clear_refs_pte_range",
    "pagemap_pmd_range",
    "pagemap_pte_hole",
    "vma_set_page_prot",
    "remove_migration_pte",
    "handle_mm_fault",
    "do_huge_pmd_wp_page",
    "__x64_sys_mremap",
    "generic_perform_write",
];

/// How many of them are missing.
pub(super) fn unavailable(verdicts: &[ProbeVerdict]) -> u64 {
    let missing = verdicts.iter().filter(|verdict| match &verdict.verdict {
        Verdict::Attached { .. } => false,
        Verdict::Unsupported { .. } => NEEDED.contains(&verdict.probe.as_str()),
        Verdict::Broken { .. } => true,
    });
    missing.count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::hooks::HOOKS;
    use crate::probes::verdict::Mechanism;

    fn verdict(probe: &str, verdict: Verdict) -> ProbeVerdict {
        ProbeVerdict {
            probe: probe.to_owned(),
            required: false,
            verdict,
            fell_back_because: None,
        }
    }

    #[test]
    fn what_only_names_causes_may_be_missing_but_nothing_may_be_broken() {
        let why = || "why".to_owned();
        let unsupported = |probe| unavailable(&[verdict(probe, Verdict::Unsupported { why: why() })]);
        assert_eq!(unsupported("remove_migration_pte"), 1);
        assert_eq!(unsupported("migrate:remove_migration_pte"), 0);
        assert_eq!(
            unavailable(&[
                verdict("migrate:remove_migration_pte", Verdict::Broken { why: why() }),
                verdict(
                    "handle_mm_fault",
                    Verdict::Attached {
                        mechanism: Mechanism::Kprobe
                    }
                ),
            ]),
            1
        );
    }

    #[test]
    fn what_is_needed_is_probed() {
        for needed in NEEDED {
            assert!(HOOKS.iter().any(|hook| hook.target == needed), "{needed}");
        }
    }
}
