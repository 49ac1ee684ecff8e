//! What watches write faults, attached and detached while sdtrace runs. Every fault of the machine comes by these programs,
//! so they are there on demand ([`super::demand`]); they stay loaded, and the kernel goes on counting their skipped runs.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use tracer_common::interest::{Interest, LAST_WORD, WISH_RECORD, WISH_TIME, WISH_WORD};

use super::Probes;
use super::hooks::{HOOKS, Hook};
use super::links::{self, Attached};
use super::mapped::MappedArray;
use super::object;
use super::verdict::{Mechanism, Verdict};

/// The function that every fault of the machine comes by.
const TARGET: &str = "handle_mm_fault";

/// The programs, and the word by which it is known who is interested.
pub(super) struct WriteWatch {
    /// Those that are attached, if any.
    attached: Vec<Attached>,
    /// How they are attached; `None`: they cannot be.
    mechanism: Option<Mechanism>,
    interest: MappedArray<Interest>,
    /// Whether they must be loaded anew after they were detached: before f3a95075549e (5.13) a kernel attaches a trampoline
    /// program once. Found out when they are detached first.
    once_only: Option<bool>,
}

impl WriteWatch {
    pub(super) fn new(interest: MappedArray<Interest>) -> Self {
        Self {
            attached: Vec::new(),
            mechanism: None,
            interest,
            once_only: None,
        }
    }

    /// Takes over what the start has attached, if it is the hook on write faults.
    pub(super) fn take_over(&mut self, hook: &Hook, verdict: &Verdict, attached: Vec<Attached>) {
        if hook.target == TARGET {
            self.mechanism = verdict.mechanism();
            self.attached = attached;
        }
    }

    /// Has the programs note from now on who reads pagemap.
    pub(super) fn note_readers(&self) {
        self.interest.write_word(0, WISH_WORD, WISH_TIME);
    }

    fn detach(&mut self, object: &mut Ebpf, hook: &Hook, mechanism: Mechanism) -> Result<()> {
        links::detach_all(object, std::mem::take(&mut self.attached))?;
        let once_only = match self.once_only {
            Some(known) => known,
            None => match links::attach_all(object, hook, mechanism, false) {
                Ok(attached) => {
                    links::detach_all(object, attached)?;
                    false
                }
                Err(error) => {
                    tracing::debug!(
                        error = object::explain(&error),
                        "programs are loaded anew each time"
                    );
                    true
                }
            },
        };
        self.once_only = Some(once_only);
        if once_only {
            // Now, while there is time.
            object::detach(object, hook, mechanism, false);
            load(object, hook, mechanism)?;
        }
        Ok(())
    }
}

fn load(object: &mut Ebpf, hook: &Hook, mechanism: Mechanism) -> Result<()> {
    let btf = aya::Btf::from_sys_fs()?;
    for program in hook.programs(mechanism, false) {
        links::load(object, &btf, hook, program)?;
    }
    Ok(())
}

/// Whether a kernel with this type information keeps a trampoline until nobody is in it.
fn counts_sleepers(btf: &[u8]) -> bool {
    const COUNTED: &[u8] = b"\0bpf_tramp_image\0";
    btf.windows(COUNTED.len()).any(|window| window == COUNTED)
}

fn hook() -> Result<&'static Hook> {
    HOOKS
        .iter()
        .find(|hook| hook.target == TARGET)
        .context("no hook on write faults")
}

impl Probes {
    /// Whether write faults can be watched on this kernel at all.
    #[must_use]
    pub const fn can_watch_writes(&self) -> bool {
        self.write_watch.mechanism.is_some()
    }

    /// Whether that can be ended while faults are under way. A fault may sleep in the trampoline of a fexit program; before
    /// e21aa341785c (5.12, and stable kernels since) detaching would free it under the sleeper.
    #[must_use]
    pub fn can_stop_watching_writes(&self) -> bool {
        match self.write_watch.mechanism {
            Some(Mechanism::Fentry) => std::fs::read(object::BTF_PATH).is_ok_and(|btf| counts_sleepers(&btf)),
            Some(Mechanism::Kprobe) => true,
            None => false,
        }
    }

    /// When a process other than sdtrace read a pagemap file last, monotonic nanoseconds; 0: none has.
    #[must_use]
    pub fn pagemap_read_ns(&self) -> u64 {
        self.write_watch.interest.read_word(0, LAST_WORD)
    }

    /// Attaches what watches write faults. Whatever the kernel says becomes the verdict of the probe.
    ///
    /// # Errors
    /// What the kernel says; nothing of it is attached then.
    pub fn watch_writes(&mut self) -> Result<()> {
        let mechanism = self
            .write_watch
            .mechanism
            .context("write faults cannot be watched")?;
        // No program runs that would use them; a fault that was under way when it was detached has left its note.
        for slot in 0..self.writes.len() {
            self.writes.zero(slot);
        }
        let result = links::attach_all(&mut self.object, hook()?, mechanism, false);
        let verdict = match &result {
            Ok(_) => Verdict::Attached { mechanism },
            Err(error) => Verdict::Broken {
                why: format!("{}: {}", mechanism.label(), object::explain(error)),
            },
        };
        if let Some(known) = self.verdicts.iter_mut().find(|known| known.probe == TARGET) {
            known.verdict = verdict;
        }
        self.write_watch.attached = result?;
        self.write_watch.note_readers();
        Ok(())
    }

    /// Detaches it, and has the programs tell of the next reader of pagemap.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn stop_watching_writes(&mut self) -> Result<()> {
        let Some(mechanism) = self.write_watch.mechanism else {
            return Ok(());
        };
        self.write_watch.interest.write_word(0, WISH_WORD, WISH_RECORD);
        self.write_watch.detach(&mut self.object, hook()?, mechanism)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trampoline_that_counts_who_is_in_it_is_known_by_its_type() {
        assert!(counts_sleepers(b"\0int\0bpf_tramp_image\0char\0"));
        assert!(!counts_sleepers(b"\0bpf_tramp_image_put\0bpf_trampoline\0"));
    }

    #[test]
    fn the_hook_on_write_faults_is_there() {
        assert_eq!(hook().unwrap().target, TARGET);
    }
}
