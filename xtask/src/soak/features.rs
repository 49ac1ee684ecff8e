//! The kernel features that make soft-dirty lose writes: all off, or all at work. And what they did, from their counters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Whether the features are at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Features {
    /// Everything that soft-dirty tracks badly is switched off: it should miss nothing.
    Off,
    /// KSM on all stressors, compaction in a loop, NUMA balancing, huge pages of shared memory.
    On,
}

/// Where a setting lies, and its value when the features are off and on.
const SETTINGS: [(&str, &str, &str); 10] = [
    ("/sys/kernel/mm/ksm/run", "2", "1"),
    ("/sys/kernel/mm/ksm/pages_to_scan", "100", "2000"),
    ("/sys/kernel/mm/ksm/sleep_millisecs", "20", "20"),
    ("/proc/sys/kernel/numa_balancing", "0", "1"),
    ("/proc/sys/vm/compaction_proactiveness", "0", "100"),
    // Without room for a huge page the kernel would move pages to make some.
    ("/sys/kernel/mm/transparent_hugepage/defrag", "never", "always"),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag", "0", "1"),
    (
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "never",
        "always",
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs",
        "10000",
        "100",
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs",
        "60000",
        "100",
    ),
];

const COMPACT: &str = "/proc/sys/vm/compact_memory";
/// How often memory is compacted while the features are on.
const COMPACTION: Duration = Duration::from_millis(250);

/// What the features did since the machine started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters(pub BTreeMap<String, u64>);

/// Lines of /proc/vmstat that are told.
const VMSTAT: [&str; 8] = [
    "pgmigrate_success",
    "compact_stall",
    "compact_daemon_wake",
    "numa_pte_updates",
    "numa_pages_migrated",
    "thp_collapse_alloc",
    "pswpin",
    "pswpout",
];
/// Of these none may grow while the features are off.
const FORBIDDEN: [&str; 5] = [
    "pgmigrate_success",
    "numa_pte_updates",
    "pswpin",
    "pswpout",
    "ksm_pages_shared",
];
/// Of these each must grow while the features are on, or they were not at work.
const REQUIRED: [&str; 2] = ["pgmigrate_success", "ksm_pages_shared"];

impl Counters {
    /// As they are now.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
        let mut counters: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| VMSTAT.contains(name))
            .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
            .collect();
        let shared = Path::new("/sys/kernel/mm/ksm/pages_shared");
        if let Ok(text) = fs::read_to_string(shared) {
            counters.insert("ksm_pages_shared".to_owned(), text.trim().parse()?);
        }
        Ok(Self(counters))
    }

    /// What was added since `before`. A gauge that fell counts as 0.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(name, value)| {
            let earlier = before.0.get(name).copied().unwrap_or(0);
            (name.clone(), value.saturating_sub(earlier))
        });
        Self(grown.collect())
    }

    /// Takes the larger one of each: for gauges that go up and down.
    pub fn peak(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = (*mine).max(*value);
        }
    }

    /// What contradicts that the features were `features`.
    #[must_use]
    pub fn contradictions(&self, features: Features) -> Vec<String> {
        let count = |name: &str| self.0.get(name).copied().unwrap_or(0);
        match features {
            Features::Off => FORBIDDEN
                .iter()
                .filter(|name| count(name) > 0)
                .map(|name| format!("the features were to be off, and {name} grew by {}", count(name)))
                .collect(),
            Features::On => REQUIRED
                .iter()
                .filter(|name| count(name) == 0)
                .map(|name| format!("the features were to be on, and {name} did not grow"))
                .collect(),
        }
    }
}

/// The features, as they were set; compaction ends when this is dropped.
#[derive(Debug)]
pub struct Set {
    stop: Arc<AtomicBool>,
    compaction: Option<JoinHandle<()>>,
}

impl Set {
    /// Sets them.
    ///
    /// # Errors
    /// Names the setting that the kernel refuses or lacks.
    pub fn new(features: Features) -> Result<Self> {
        let swaps = fs::read_to_string("/proc/swaps").context("/proc/swaps")?;
        ensure!(
            features == Features::On || swaps.lines().count() <= 1,
            "swap is on, which the features should not be; end it with swapoff -a"
        );
        for (path, off, on) in SETTINGS {
            let value = match features {
                Features::Off => off,
                Features::On => on,
            };
            set(path, value)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let compaction = (features == Features::On).then(|| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    // Whether it did anything is told by the counters.
                    let _ = fs::write(COMPACT, "1");
                    thread::sleep(COMPACTION);
                }
            })
        });
        Ok(Self { stop, compaction })
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(compaction) = self.compaction.take() {
            // It only writes to a file in a loop.
            let _ = compaction.join();
        }
    }
}

/// Sets and looks whether it is set.
fn set(path: &str, value: &str) -> Result<()> {
    // A kernel with one memory node has no such setting, and needs none.
    if path.ends_with("numa_balancing") && !Path::new(path).exists() {
        return Ok(());
    }
    fs::write(path, value).with_context(|| format!("cannot write {value} to {path}"))?;
    let now = fs::read_to_string(path).with_context(|| path.to_owned())?;
    if !is_set(&now, value) {
        bail!("{path} is {} after {value} was written", now.trim());
    }
    Ok(())
}

/// A choice is shown as `always [never]`.
fn is_set(shown: &str, value: &str) -> bool {
    let shown = shown.trim();
    shown == value || shown.contains(&format!("[{value}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(pairs: &[(&str, u64)]) -> Counters {
        Counters(
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
        )
    }

    #[test]
    fn settings_are_read_back_in_both_forms() {
        assert!(is_set("2\n", "2"));
        assert!(is_set("always defer [never]\n", "never"));
        assert!(!is_set("always [defer] never\n", "never"));
        assert!(!is_set("20\n", "2"));
    }

    #[test]
    fn what_the_features_did_must_fit_what_they_were_set_to() {
        let quiet = counters(&[("pgmigrate_success", 0), ("ksm_pages_shared", 0)]);
        let busy = counters(&[("pgmigrate_success", 9), ("ksm_pages_shared", 3)]);
        assert!(quiet.contradictions(Features::Off).is_empty());
        assert_eq!(quiet.contradictions(Features::On).len(), 2);
        assert!(busy.contradictions(Features::On).is_empty());
        assert_eq!(busy.contradictions(Features::Off).len(), 2);
    }

    #[test]
    fn growth_and_peaks() {
        let before = counters(&[("a", 3), ("b", 5)]);
        let after = counters(&[("a", 7), ("b", 2)]);
        assert_eq!(after.since(&before), counters(&[("a", 4), ("b", 0)]));
        let mut peak = before;
        peak.peak(&after);
        assert_eq!(peak, counters(&[("a", 7), ("b", 5)]));
    }
}
